//! Commands that a real worker carries out beside its tasks, over real TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{Cluster, Joined, Worker, assign, order};
use oxidask_exec::Body;
use oxidask_proto::wire;

fn command(number: u64, text: &str) -> wire::WorkerCommand {
    wire::WorkerCommand {
        command: number,
        executor: "done".into(),
        content: text.as_bytes().to_vec().into(),
        is_standing: false,
    }
}

fn standing(number: u64, text: &str) -> wire::WorkerCommand {
    wire::WorkerCommand {
        is_standing: true,
        ..command(number, text)
    }
}

fn done() -> Body {
    Body::new("done")
}

async fn give(joined: &Joined, commands: Vec<wire::WorkerCommand>) {
    joined
        .send(wire::WorkBatch {
            commands,
            ..wire::WorkBatch::default()
        })
        .await;
}

/// The answers, by number.
async fn answers(joined: &mut Joined, count: usize) -> Vec<(u64, Result<Vec<u8>, wire::Fault>)> {
    joined
        .until("answers", |joined| joined.command_results.len() >= count)
        .await;
    let mut answers: Vec<_> = joined
        .command_results
        .drain(..)
        .map(|answer| {
            let content = answer.content.to_vec();
            (answer.command, answer.fault.map_or(Ok(content), Err))
        })
        .collect();
    answers.sort_by_key(|answer| answer.0);
    answers
}

async fn seen(cluster: &Cluster, worker: &Worker, joined: &mut Joined, task: u32) -> String {
    joined.finished(task).await;
    let bytes = cluster.read(worker, task).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_wait_for_standing_commands_and_not_for_others() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 2, 1 << 30).await;
    // In one message, as the scheduler does for a worker that has joined.
    let order_of = |task| wire::Order {
        order: Some(order(assign(task, &done()))),
    };
    let start = Instant::now();
    joined
        .send(wire::WorkBatch {
            commands: vec![
                command(1, "sleep 5000"),
                standing(2, "sleep 300"),
                standing(3, "b"),
                command(4, "c"),
            ],
            orders: vec![order_of(1)],
            ..wire::WorkBatch::default()
        })
        .await;
    let told = seen(&cluster, &worker, &mut joined, 1).await;
    assert!(told.starts_with("forget,sleep 300!,b!"), "{told}");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(4), "it held tasks up");
    let told = answers(&mut joined, 3).await;
    let numbers: Vec<u64> = told.iter().map(|answer| answer.0).collect();
    assert_eq!(numbers, [2, 3, 4]);
    assert_eq!(told[1].1.as_deref().unwrap(), b"b");
    assert_eq!(answers(&mut joined, 1).await[0].0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_told_and_stops_nothing() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 1, 1 << 30).await;
    let unknown = wire::WorkerCommand {
        executor: "snake".into(),
        ..command(5, "x")
    };
    let commands = vec![
        standing(1, "fail no"),
        standing(2, "panic oh"),
        command(3, "large 5000000"),
        command(4, "large 4000000"),
        unknown,
    ];
    give(&joined, commands).await;
    joined.order([order(assign(1, &done()))]).await;
    assert_eq!(seen(&cluster, &worker, &mut joined, 1).await, "forget");
    let told = answers(&mut joined, 5).await;
    let fault = |at: usize| {
        let fault = told[at].1.clone().unwrap_err();
        (fault.code.clone(), fault.message)
    };
    assert_eq!(fault(0), ("OX208".into(), "no".into()));
    assert_eq!(
        fault(1),
        ("OX347".into(), "the command panicked: oh".into())
    );
    let (code, message) = fault(2);
    assert!(
        code == "OX347" && message.contains("`5000000` bytes"),
        "{message}"
    );
    assert_eq!(told[3].1.as_ref().unwrap().len(), 4_000_000);
    assert_eq!(fault(4).0, "OX205");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_outlast_a_stream_that_breaks_and_nothing_is_done_twice() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(1, 1).await;
    give(&joined, vec![standing(1, "a"), command(2, "sleep 400")]).await;
    assert_eq!(answers(&mut joined, 1).await[0].0, 1);
    joined.vanish();

    let mut back = cluster.next_joined().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    back.welcome_back(1).await;
    let told = answers(&mut back, 1).await;
    assert_eq!(told[0], (2, Ok(b"sleep 400".to_vec())));
    // The scheduler may not know what has come.
    give(&back, vec![standing(1, "a"), standing(3, "d")]).await;
    let told = answers(&mut back, 2).await;
    assert_eq!(told, [(1, Ok(b"a".to_vec())), (3, Ok(b"d".to_vec()))]);
    back.order([order(assign(1, &done()))]).await;
    let told = seen(&cluster, &worker, &mut back, 1).await;
    assert_eq!(told, "forget,a!,sleep 400,d!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_scheduler_begins_anew() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(1, 1).await;
    give(&joined, vec![standing(7, "a"), command(8, "sleep 60000")]).await;
    answers(&mut joined, 1).await;
    joined.vanish();
    let mut other = cluster.next_joined().await;
    other.answer(2, 99, false).await;
    give(&other, vec![standing(1, "b")]).await;
    let told = answers(&mut other, 1).await;
    assert_eq!(told, [(1, Ok(b"b".to_vec()))], "numbers begin anew");
    other.order([order(assign(1, &done()))]).await;
    let told = seen(&cluster, &worker, &mut other, 1).await;
    assert_eq!(told, "forget,a!,forget,b!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_cancelled_while_it_waits_does_not_run() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 1, 1 << 30).await;
    give(&joined, vec![standing(1, "sleep 500")]).await;
    let tasks = [order(assign(1, &done())), order(assign(2, &done()))];
    joined.order(tasks).await;
    let cancel = wire::order::Order::Cancel(harness::attempt(1));
    joined.order([cancel]).await;
    joined.finished(2).await;
    assert!(cluster.read(&worker, 1).await.is_none());
}
