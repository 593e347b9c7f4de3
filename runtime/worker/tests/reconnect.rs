//! Workers whose scheduler goes and comes back, over real TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{
    Cluster, GRAPH, INCARNATION, Joined, PATIENCE, Proxy, Settings, Whole, Worker, assign,
    assign_with, attempt, http, order,
};
use oxidask_core::{Attempt, AttemptState, Digest, GraphId, TaskIndex, TaskRef};
use oxidask_diagnostic::{Code, Coded};
use oxidask_exec::Body;
use oxidask_proto::wire;
use oxidask_proto::wire::order::Order;
use oxidask_worker::WorkerError;

const GIBIBYTE: u64 = 1 << 30;

fn noop() -> Body {
    Body::new("noop")
}

fn sleep(seconds: f64) -> Body {
    Body::new("sleep").with("seconds", seconds)
}

fn buffer(len: u64) -> Body {
    Body::new("bytes").with("len", len)
}

/// Runs until it is cancelled.
fn litter() -> Body {
    Body::new("litter")
}

fn folders(worker: &Worker) -> usize {
    std::fs::read_dir(worker.scratch.path().join("tasks"))
        .unwrap()
        .count()
}

async fn started(joined: &mut Joined, task: u32) {
    joined
        .until("the start", |joined| joined.has_started(task))
        .await;
}

fn held(tasks: impl IntoIterator<Item = (u32, u64)>) -> BTreeMap<u32, u64> {
    tasks.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_and_results_outlive_a_stream_that_breaks() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(4, 2).await;
    joined
        .order([
            order(assign(1, &buffer(100))),
            order(assign(2, &litter())),
            order(assign(3, &sleep(2.0))),
        ])
        .await;
    joined.finished(1).await;
    started(&mut joined, 2).await;
    started(&mut joined, 3).await;
    joined.order([order(assign(4, &buffer(7)))]).await;
    joined.order([order(assign(5, &noop()))]).await;
    // Both have arrived: the slots are taken, so they wait.
    joined
        .until("a beat", |joined| {
            joined
                .heartbeat
                .as_ref()
                .is_some_and(|beat| beat.queued == 2)
        })
        .await;
    joined.vanish();

    let mut back = cluster.next_joined().await;
    assert_eq!(back.hello.former, 4);
    let hello = back.hello.hello.clone().unwrap();
    assert_eq!((hello.incarnation, hello.epoch), (INCARNATION, 1));
    let not_ready = http(worker.http, "/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503"), "{not_ready}");
    // Nobody has answered yet: what is here is read, and runs go on and follow each other.
    assert_eq!(cluster.read(&worker, 1).await.unwrap().len(), 100);
    let start = Instant::now();
    while cluster.read(&worker, 5).await.is_none() {
        assert!(start.elapsed() < PATIENCE, "the rest never ran");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    back.welcome_back(4).await;
    let (whole, told) = back.whole_inventory().await;
    let expected = Whole {
        held: held([(1, 100), (3, 4), (4, 7), (5, 4)]),
        running: vec![2],
        queued: vec![],
        parts: 1,
    };
    assert_eq!(whole, expected);
    assert_eq!(told, 3, "what has ended meanwhile is told first");
    for task in [3, 4, 5] {
        back.finished(task).await;
    }
    assert_eq!(folders(&worker), 1, "the run that goes on has its folder");
    back.order([Order::Cancel(attempt(2)), order(assign(6, &noop()))])
        .await;
    back.finished(6).await;
    let ready = http(worker.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    worker.stop.cancel();
    worker.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_does_not_know_it_makes_it_begin_anew() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(4, 1).await;
    joined
        .order([order(assign(1, &buffer(100))), order(assign(2, &litter()))])
        .await;
    joined.finished(1).await;
    started(&mut joined, 2).await;
    joined.hang_up();

    let mut again = cluster.next_joined().await;
    assert_eq!(again.hello.name, joined.hello.name);
    assert_eq!(again.hello.data_address, joined.hello.data_address);
    assert_eq!(again.hello.process_id, joined.hello.process_id);
    again.answer(1, INCARNATION + 1, false).await;
    // The new scheduler counts graphs and tasks from the start.
    again.order([order(assign(1, &buffer(7)))]).await;
    assert_eq!(again.finished(1).await, 7);
    assert_eq!(again.reports.len(), 1, "{:?}", again.reports);
    assert_eq!(cluster.read(&worker, 1).await.unwrap().len(), 7);
    assert_eq!(folders(&worker), 0, "what ran before was cancelled");
    let figures = http(worker.http, "/metrics").await;
    assert!(figures.contains("held_bytes 7"), "{figures}");
    assert!(figures.contains("tasks_running 0"), "{figures}");
    // From now on it is that one's.
    again.vanish();
    let last = cluster.next_joined().await;
    assert_eq!(last.hello.former, 1);
    assert_eq!(last.hello.hello.unwrap().incarnation, INCARNATION + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_contradicts_itself_is_told_that_nothing_is_left() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(4, 1).await;
    for (number, incarnation) in [(4, INCARNATION + 1), (9, INCARNATION + 1)] {
        joined.order([order(assign(1, &buffer(100)))]).await;
        joined.finished(1).await;
        joined.vanish();
        joined = cluster.next_joined().await;
        joined.answer(number, incarnation, true).await;
        let (whole, told) = joined.whole_inventory().await;
        let nothing = Whole {
            parts: 1,
            ..Whole::default()
        };
        assert_eq!((whole, told), (nothing, 0));
        assert_eq!(cluster.read(&worker, 1).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_is_cut_again_and_again_loses_nothing() {
    const TASKS: u32 = 30;
    let mut cluster = Cluster::start().await;
    let proxy = Proxy::start(cluster.address).await;
    let settings = Settings {
        scheduler: Some(proxy.address),
        ..Settings::patient(2)
    };
    let (_worker, mut joined) = cluster.join_as(4, settings).await;
    let tasks = (1..=TASKS).map(|task| order(assign(task, &sleep(0.05))));
    joined.order(tasks.collect::<Vec<_>>()).await;
    started(&mut joined, 1).await;
    let mut seen = 0;
    let whole = loop {
        proxy.cut();
        // What is said to a stream that is gone does not count, even if it is written.
        let _ = joined.try_order([Order::Cancel(attempt(TASKS))]).await;
        joined = cluster.next_joined().await;
        assert_eq!(joined.hello.former, 4);
        joined.welcome_back(4).await;
        let (whole, _) = joined.whole_inventory().await;
        let all = whole.held.len() + whole.running.len() + whole.queued.len();
        assert_eq!(all, TASKS as usize, "{whole:?}");
        assert!(whole.held.len() >= seen, "{whole:?}");
        seen = whole.held.len();
        if whole.running.is_empty() && whole.queued.is_empty() {
            break whole;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    };
    assert_eq!(whole.held, held((1..=TASKS).map(|task| (task, 4))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_that_is_sent_again_is_ignored() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join_patient(4, 2).await;
    let tasks = || [order(assign(1, &buffer(100))), order(assign(2, &litter()))];
    joined.order(tasks()).await;
    joined.finished(1).await;
    started(&mut joined, 2).await;
    joined.vanish();
    let mut back = cluster.next_joined().await;
    back.welcome_back(4).await;
    back.whole_inventory().await;
    back.order(tasks()).await;
    back.order([order(assign(3, &noop()))]).await;
    back.finished(3).await;
    assert_eq!(back.reports.len(), 1, "{:?}", back.reports);
    // A newer epoch's is not the same.
    let newer = wire::Assign {
        epoch: 2,
        ..assign(2, &noop())
    };
    back.order([order(newer)]).await;
    back.finished(2).await;
    assert_eq!(back.reports.last().unwrap().epoch, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_results_are_told_in_parts() {
    const TASKS: u32 = 100_000;
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join_patient(4, 1).await;
    let bodies = vec![wire::Body {
        graph: GRAPH,
        body: 3,
        content: noop().encode(),
    }];
    let orders = (0..TASKS).map(|task| wire::Order {
        order: Some(order(wire::Assign {
            is_inline: false,
            inline_body: bytes::Bytes::new(),
            body: 3,
            ..assign(task, &noop())
        })),
    });
    joined
        .send(wire::WorkBatch {
            bodies,
            orders: orders.collect(),
            ..Default::default()
        })
        .await;
    joined
        .until("the first report", |joined| !joined.reports.is_empty())
        .await;
    joined.vanish();
    let back = cluster.next_joined().await;
    // All of them are done while nobody answers.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut back = back;
    let start = Instant::now();
    back.welcome_back(4).await;
    let (whole, told) = back.whole_inventory().await;
    println!("{told} reports and the inventory in {:?}", start.elapsed());
    assert_eq!(whole.held.len(), TASKS as usize);
    assert!(whole.running.is_empty() && whole.queued.is_empty());
    assert!(whole.parts >= 2, "{} parts", whole.parts);
    assert!(told > 10_000, "only {told} reports waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_go_on_without_a_scheduler() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join_patient(1, 1).await;
    let (second, mut reader) = cluster.join_patient(2, 1).await;
    holder.order([order(assign(1, &buffer(3_000_000)))]).await;
    holder.finished(1).await;
    reader.introduce(1, first.data).await;
    // It takes connections and says nothing: the other holder is asked some seconds later.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    reader.introduce(3, silent.local_addr().unwrap()).await;
    let alternates = vec![wire::Alternate {
        position: 0,
        holders: vec![1],
    }];
    let waits = wire::Assign {
        alternates,
        holders: vec![3],
        ..assign_with(3, &Body::new("concat"), &[(1, 3)])
    };
    reader.order([order(waits)]).await;
    reader
        .until("a beat", |joined| {
            joined
                .heartbeat
                .as_ref()
                .is_some_and(|beat| beat.queued == 1)
        })
        .await;
    holder.vanish();
    reader.vanish();
    let start = Instant::now();
    while cluster.read(&second, 3).await.is_none() {
        assert!(start.elapsed() < PATIENCE, "it never ran");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nobody has answered the workers until now.
    for _ in 0..2 {
        let mut back = cluster.next_joined().await;
        let number = back.hello.former;
        back.welcome_back(number).await;
        let (whole, _) = back.whole_inventory().await;
        let expected = match number {
            1 => held([(1, 3_000_000)]),
            _ => held([(1, 1), (3, 3_000_000)]),
        };
        assert_eq!(whole.held, expected, "the copy is told, too");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_time_without_a_scheduler_is_bounded() {
    let mut cluster = Cluster::start().await;
    let proxy = Proxy::start(cluster.address).await;
    let settings = Settings {
        scheduler: Some(proxy.address),
        reconnect_time: Duration::from_secs(1),
        ..Settings::patient(1)
    };
    let (worker, mut joined) = cluster.join_as(4, settings).await;
    joined.order([order(assign(1, &litter()))]).await;
    started(&mut joined, 1).await;
    proxy.close();
    let start = Instant::now();
    let scratch = worker.scratch.path().join("tasks");
    let error = tokio::time::timeout(PATIENCE, worker.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let took = start.elapsed();
    let is_right = (Duration::from_secs(1)..Duration::from_secs(5)).contains(&took);
    assert!(is_right, "{took:?}");
    assert!(matches!(error, WorkerError::NoScheduler { .. }), "{error}");
    assert_eq!(error.code(), Code::SchedulerUnreachable);
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inventory_is_had_on_a_living_stream_too() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join(4, 1, GIBIBYTE).await;
    let tasks = [
        order(assign(1, &buffer(100))),
        order(assign(2, &litter())),
        order(assign(3, &noop())),
    ];
    let orders = tasks.map(|order| wire::Order { order: Some(order) });
    joined
        .send(wire::WorkBatch {
            orders: orders.into(),
            inventory_wanted: true,
            ..Default::default()
        })
        .await;
    let (whole, told) = joined.whole_inventory().await;
    let expected = Whole {
        held: held([(1, 100)]),
        running: vec![2],
        queued: vec![3],
        parts: 1,
    };
    assert_eq!(whole, expected, "the orders of the same message count");
    assert_eq!(told, 2, "the end of 1 and the start of 2");
    joined.order([Order::Cancel(attempt(2))]).await;
    joined.finished(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_carry_the_digest_of_what_is_here() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join(4, 1, GIBIBYTE).await;
    joined
        .order([
            order(assign(1, &buffer(100))),
            order(assign(2, &litter())),
            order(assign(3, &noop())),
        ])
        .await;
    let task = |task| TaskRef {
        graph: GraphId(GRAPH),
        task: TaskIndex(task),
    };
    let attempt_of = Attempt {
        epoch: 1,
        number: 1,
    };
    let mut expected = Digest::default();
    expected.add_held(task(1));
    expected.add_attempt(task(2), attempt_of, AttemptState::Running);
    expected.add_attempt(task(3), attempt_of, AttemptState::Queued);
    let is_told = |digest: Digest| {
        move |joined: &Joined| {
            let beat = joined.heartbeat.clone().unwrap_or_default();
            (beat.digest, beat.digest_count) == (digest.sum, digest.count)
        }
    };
    joined.until("the digest", is_told(expected)).await;
    joined.order([Order::Cancel(attempt(2))]).await;
    joined.finished(3).await;
    let mut expected = Digest::default();
    expected.add_held(task(1));
    expected.add_held(task(3));
    joined.until("the new digest", is_told(expected)).await;
}
