//! How the scheduler regards its workers: over real TLS, with workers that fall silent, come back,
//! believe something else, or die.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_core::{CoreConfig, Digest, GraphId, TaskIndex, TaskRef};
use oxidask_identity::Role;
use oxidask_proto::wire::{self, Standing};
use oxidask_scheduler::JournalConfig;
use support::{Cluster, PATIENCE, ScriptedWorker, Session, metrics};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

fn data(text: &'static str) -> impl Fn(&wire::Assign) -> Bytes {
    move |_| Bytes::from_static(text.as_bytes())
}

fn task(graph: u32, task: u32) -> wire::TaskId {
    wire::TaskId { graph, task }
}

fn released(batch: &wire::WorkBatch) -> Vec<wire::TaskId> {
    let orders = batch.orders.iter().filter_map(|order| match &order.order {
        Some(wire::order::Order::Release(task)) => Some(*task),
        _ => None,
    });
    orders.collect()
}

fn attempt(assign: &wire::Assign) -> wire::AttemptId {
    wire::AttemptId {
        task: Some(task(assign.graph, assign.task)),
        epoch: assign.epoch,
        attempt: assign.attempt,
    }
}

/// A worker with the results of two finished tasks, and the session that wants them.
async fn with_results(cluster: &Cluster, name: &str) -> (ScriptedWorker, Session) {
    let mut worker = ScriptedWorker::join(cluster, name).await;
    let mut session = Session::open(cluster, "g").await;
    session.send(session.independent(2, &["body"])).await;
    let mut done = 0;
    while done < 2 {
        let assigned = worker.assigned().await;
        done += assigned.len();
        worker.finish(&assigned, data("made once")).await;
    }
    session.until(|session| session.is_done).await;
    (worker, session)
}

/// As [`with_results`], with a worker `default-1` beside that knows the first one: it has read a
/// result there.
async fn with_results_and_a_reader(cluster: &Cluster) -> (ScriptedWorker, ScriptedWorker, Session) {
    let mut worker = ScriptedWorker::join(cluster, "default-0").await;
    let mut session = Session::open(cluster, "g").await;
    let mut chunk = session.independent(3, &["body"]);
    chunk.new_requirements = vec![wire::Requirement {
        slots: 1,
        workers: vec!["default-1".to_owned()],
        ..Default::default()
    }];
    chunk.requirement = vec![0, 0, 1];
    chunk.input_counts = vec![0, 0, 1];
    chunk.inputs = vec![0];
    session.send(chunk).await;
    let mut done = 0;
    while done < 2 {
        let assigned = worker.assigned().await;
        done += assigned.len();
        worker.finish(&assigned, data("made once")).await;
    }
    let mut reader = ScriptedWorker::join(cluster, "default-1").await;
    let assigned = reader.assigned().await;
    assert_eq!(reader.peers.get(&worker.number), Some(&worker.data_address));
    reader.finish(&assigned, data("read")).await;
    session.until(|session| session.is_done).await;
    (worker, reader, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_port_tells_a_death_at_once_and_running_tasks_run_elsewhere() {
    let cluster = Cluster::start().await;
    let mut doomed = ScriptedWorker::join(&cluster, "default-0").await;
    let session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = doomed.assigned().await;
    doomed.start(&assigned[0]).await;
    let mut heir = ScriptedWorker::join(&cluster, "default-1").await;
    sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    drop(doomed);
    let again = heir.assigned().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((again[0].task, again[0].attempt), (0, 2));
    cluster.until_standing("default-0", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_of_a_living_process_makes_a_suspect_whose_data_is_read() {
    let cluster = Cluster::start().await;
    let (worker, mut session) = with_results(&cluster, "default-0").await;
    let cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let made = Bytes::from_static(b"made once");
    assert_eq!(
        session.fetch(&[0, 1]).await,
        [(0, Ok(made.clone())), (1, Ok(made))]
    );
    assert!(session.notices.is_empty(), "{:?}", session.notices);
    drop(cut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_suspect_was_handed_is_waited_for_whether_it_runs_or_waits() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(2, &["body"])).await;
    let first = worker.assigned().await;
    let [running, queued] = first.as_slice() else {
        panic!("both tasks come at once: {first:?}")
    };
    worker.start(running).await;
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    let cut = worker.cut();
    other
        .never(Duration::from_millis(500), |batch| !batch.orders.is_empty())
        .await;
    // Back in time: its tasks go on as if nothing had happened.
    let back = cut.come_back(&cluster).await;
    assert!(back.is_resumed);
    let inventory = wire::Inventory {
        running: vec![attempt(running)],
        queued: vec![attempt(queued)],
        ..ScriptedWorker::holding(&[])
    };
    back.send_inventory(inventory).await;
    cluster
        .until_standing("default-0", Some(Standing::Active))
        .await;
    let reports = first.iter().map(|task| ScriptedWorker::finished(task, 1));
    back.send(wire::WorkerBatch {
        reports: reports.collect(),
        ..Default::default()
    })
    .await;
    session.until(|session| session.is_done).await;
    assert!(session.notices.is_empty(), "{:?}", session.notices);
    other
        .never(Duration::from_millis(300), |batch| !batch.orders.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_reports_first_then_says_what_it_has() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = worker.assigned().await;
    worker.start(&assigned[0]).await;
    let (graph, number) = (assigned[0].graph, worker.number);
    sleep(Duration::from_millis(50)).await;
    let cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let mut newcomer = ScriptedWorker::join(&cluster, "default-1").await;
    let mut back = cut.come_back(&cluster).await;
    assert!(back.is_resumed);
    assert_eq!(back.number, number, "it keeps its number");
    assert_eq!(
        back.peers.get(&newcomer.number),
        Some(&newcomer.data_address),
        "it learns of those that came meanwhile"
    );
    back.finish(&assigned, data("made while away")).await;
    session.until(|session| session.is_done).await;
    back.send_inventory(ScriptedWorker::holding(&[(graph, 0, 15)]))
        .await;
    cluster
        .until_standing("default-0", Some(Standing::Active))
        .await;
    assert_eq!(
        session.fetch(&[0]).await,
        [(0, Ok(Bytes::from_static(b"made while away")))]
    );
    newcomer
        .never(Duration::from_millis(200), |batch| !batch.orders.is_empty())
        .await;
    back.never(Duration::from_millis(200), |batch| !batch.orders.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ordered_of_a_suspect_does_not_reach_it_but_is_settled_at_its_return() {
    let cluster = Cluster::start().await;
    let (worker, session) = with_results(&cluster, "default-0").await;
    let graph = session.graph;
    let cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    session
        .sender
        .send(wire::ClientBatch {
            released: vec![task(graph, 0)],
            ..Default::default()
        })
        .await
        .unwrap();
    sleep(Duration::from_millis(100)).await;
    let mut back = cut.come_back(&cluster).await;
    back.never(Duration::from_millis(300), |batch| !batch.orders.is_empty())
        .await;
    back.send_inventory(ScriptedWorker::holding(&[(graph, 0, 9), (graph, 1, 9)]))
        .await;
    let batch = back.until(|batch| !batch.orders.is_empty()).await;
    assert_eq!(released(&batch), [task(graph, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_that_ended_meanwhile_is_forgotten_at_the_return() {
    let cluster = Cluster::start().await;
    let (worker, session) = with_results(&cluster, "default-0").await;
    let graph = session.graph;
    let cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    session
        .sender
        .send(wire::ClientBatch {
            closed: vec![graph],
            ..Default::default()
        })
        .await
        .unwrap();
    sleep(Duration::from_millis(100)).await;
    let mut back = cut.come_back(&cluster).await;
    // In two parts.
    let first = wire::Inventory {
        is_last: false,
        ..ScriptedWorker::holding(&[(graph, 0, 9)])
    };
    back.send_inventory(first).await;
    back.never(Duration::from_millis(200), |batch| {
        !batch.graphs_forgotten.is_empty()
    })
    .await;
    back.send_inventory(ScriptedWorker::holding(&[(graph, 1, 9)]))
        .await;
    let batch = back.until(|batch| !batch.graphs_forgotten.is_empty()).await;
    assert_eq!(batch.graphs_forgotten, [graph]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_bodies_are_sent_again_to_a_worker_that_came_back() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let session = Session::open(&cluster, "g").await;
    let first = wire::GraphChunk {
        is_last: false,
        ..session.independent(2, &["shared"])
    };
    session.send(first).await;
    let mut done = 0;
    while done < 2 {
        let assigned = worker.assigned().await;
        done += assigned.len();
        worker.finish(&assigned, data("x")).await;
    }
    assert_eq!(worker.bodies_received, 1);
    let mut back = worker.cut().come_back(&cluster).await;
    let graph = session.graph;
    back.send_inventory(ScriptedWorker::holding(&[(graph, 0, 1), (graph, 1, 1)]))
        .await;
    let second = wire::GraphChunk {
        number: 1,
        new_bodies: Vec::new(),
        new_groups: Vec::new(),
        wanted: vec![2, 3],
        ..session.independent(2, &["shared"])
    };
    session.send(second).await;
    let assigned = back.assigned().await;
    assert_eq!(back.body(&assigned[0]), "shared");
    assert_eq!(back.bodies_received, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_incarnation_and_an_unknown_number_begin_anew() {
    let cluster = Cluster::start().await;
    let (worker, mut session) = with_results(&cluster, "default-0").await;
    let number = worker.number;
    let cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let strange = cut.incarnation.wrapping_add(1);
    let anew = cut.come_back_from(&cluster, strange).await;
    assert!(!anew.is_resumed && anew.number != number);
    // What it had is lost with that, and is computed again.
    let mut anew = anew;
    let mut done = 0;
    while done < 2 {
        let assigned = anew.assigned().await;
        done += assigned.len();
        anew.finish(&assigned, data("made twice")).await;
    }
    assert_eq!(
        session.fetch(&[0]).await,
        [(0, Ok(Bytes::from_static(b"made twice")))]
    );
    let mut cut = anew.cut();
    cut.number = 9_999;
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let again = cut.come_back(&cluster).await;
    assert!(!again.is_resumed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_of_the_same_name_does_not_inherit_the_number() {
    let cluster = Cluster::start().await;
    let hello = wire::WorkerHello {
        process_id: 10,
        ..ScriptedWorker::hello("default-0")
    };
    let worker = ScriptedWorker::join_as(&cluster, hello).await;
    let mut cut = worker.cut();
    cut.hello.process_id = 11;
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    assert!(!cut.come_back(&cluster).await.is_resumed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_of_the_same_worker_replaces_the_first_one() {
    let cluster = Cluster::start().await;
    let (mut first, mut session) = with_results(&cluster, "default-0").await;
    let graph = session.graph;
    let mut hello = first.hello.clone();
    hello.former = first.number;
    let greeting = first.first.as_ref().unwrap().hello.clone().unwrap();
    hello.hello.as_mut().unwrap().incarnation = greeting.incarnation;
    let second = first.second_stream(&cluster, hello).await;
    assert!(second.is_resumed);
    let ended = async { while let Ok(Some(_)) = first.inbound.message().await {} };
    timeout(PATIENCE, ended)
        .await
        .expect("the first stream ends");
    // What the first one still says does not count: its results are there.
    let lost = wire::CopyMissing {
        task: Some(task(graph, 0)),
        worker: first.number,
    };
    let nonsense = wire::WorkerBatch {
        copies_missing: vec![lost],
        ..Default::default()
    };
    let _ = first.sender.send(nonsense).await;
    second
        .send_inventory(ScriptedWorker::holding(&[(graph, 0, 9), (graph, 1, 9)]))
        .await;
    cluster
        .until_standing("default-0", Some(Standing::Active))
        .await;
    let found = session.fetch(&[0]).await;
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made once")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_stream_is_found_and_heard_again_with_an_inventory() {
    let cluster = Cluster::start().await;
    let (mut worker, session) = with_results(&cluster, "default-0").await;
    let graph = session.graph;
    worker.beats.abort();
    let began = Instant::now();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let silent = began.elapsed();
    assert!(silent > Duration::from_millis(1_900) && silent < Duration::from_secs(10));
    // What is ordered now must not reach it.
    let mut rest = Session::open(&cluster, "h").await;
    rest.send(rest.independent(1, &["body"])).await;
    worker
        .never(Duration::from_millis(300), |batch| !batch.orders.is_empty())
        .await;
    worker.send(wire::WorkerBatch::default()).await;
    worker.until(|batch| batch.inventory_wanted).await;
    worker
        .send_inventory(ScriptedWorker::holding(&[(graph, 0, 9), (graph, 1, 9)]))
        .await;
    cluster
        .until_standing("default-0", Some(Standing::Active))
        .await;
    let assigned = worker.assigned().await;
    worker.finish(&assigned, data("x")).await;
    rest.until(|session| session.is_done).await;
    assert!(
        metrics(&cluster)
            .await
            .contains("oxidask_scheduler_workers_returned_total 1")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_that_does_not_come_back_is_given_up_and_only_then_gone_for_others() {
    let cluster = Cluster::start_with(CoreConfig {
        suspect_grace_micros: 1_500_000,
        ..CoreConfig::default()
    })
    .await;
    let (worker, mut other, mut session) = with_results_and_a_reader(&cluster).await;
    let number = worker.number;
    let is_gone = |batch: &wire::WorkBatch| {
        let mut peers = batch.peers.iter();
        peers.any(|peer| peer.worker == number && peer.data_address.is_empty())
    };
    let cut = worker.cut();
    other.never(Duration::from_secs(1), is_gone).await;
    let news = other.until(is_gone).await;
    let mut again = support::assignments(news);
    while again.len() < 2 {
        again.extend(other.assigned().await);
    }
    other.finish(&again, data("made twice")).await;
    let found = session.fetch(&[0]).await;
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made twice")));
    // Its number means nothing any more.
    assert!(!cut.come_back(&cluster).await.is_resumed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_a_suspect_runs_elsewhere_too_after_a_while() {
    let cluster = Cluster::start_with(CoreConfig {
        suspect_rerun_micros: 500_000,
        ..CoreConfig::default()
    })
    .await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = worker.assigned().await;
    worker.start(&assigned[0]).await;
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    sleep(Duration::from_millis(50)).await;
    let cut = worker.cut();
    let again = other.assigned().await;
    assert_eq!(again[0].task, 0);
    other.finish(&again, data("x")).await;
    session.until(|session| session.is_done).await;
    drop(cut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_a_task_that_died_with_its_worker_tells_how() {
    let cluster = Cluster::start_with(CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    })
    .await;
    let hello = wire::WorkerHello {
        process_id: 4_711,
        ..ScriptedWorker::hello("default-0")
    };
    let mut worker = ScriptedWorker::join_as(&cluster, hello).await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = worker.assigned().await;
    worker.start(&assigned[0]).await;
    let heartbeat = wire::Heartbeat {
        resident_bytes: 700 << 20,
        limit_bytes: 1 << 30,
        ..Default::default()
    };
    let line = wire::LogLine {
        level: "WARN".to_owned(),
        target: "worker".to_owned(),
        text: "memory is nearly used up".to_owned(),
        ..Default::default()
    };
    worker
        .send(wire::WorkerBatch {
            heartbeat: Some(heartbeat),
            log_lines: vec![line],
            ..Default::default()
        })
        .await;
    sleep(Duration::from_millis(100)).await;
    let mut supervisor = cluster.connect(Role::Client).await;
    let ended = |process_id, pod_uid: &str| wire::WorkerEndedRequest {
        worker: "default-0".to_owned(),
        reason: "killed by signal 9, out of memory".to_owned(),
        process_id,
        pod_uid: pod_uid.to_owned(),
    };
    for other in [ended(4_712, ""), ended(4_711, "another pod")] {
        let reply = supervisor.worker_ended(other).await.unwrap();
        assert!(
            !reply.into_inner().was_known,
            "another process is not meant"
        );
    }
    let reply = supervisor.worker_ended(ended(4_711, "")).await.unwrap();
    assert!(reply.into_inner().was_known);
    session.until(|session| !session.failures.is_empty()).await;
    let fault = session.failures[0].fault.clone().unwrap();
    assert_eq!(fault.code, "OX303");
    let told = fault.causes.join("\n");
    for part in [
        "killed by signal 9, out of memory",
        "at its last beat it used 700 MiB of 1024 MiB of memory",
        "memory is nearly used up",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let ended = async { while let Ok(Some(_)) = worker.inbound.message().await {} };
    timeout(PATIENCE, ended).await.expect("its stream ends");
}

fn digest(held: &[(u32, u32)]) -> wire::WorkerBatch {
    let mut digest = Digest::default();
    for (graph, task) in held {
        digest.add_held(TaskRef {
            graph: GraphId(*graph),
            task: TaskIndex(*task),
        });
    }
    let heartbeat = wire::Heartbeat {
        digest: digest.sum,
        digest_count: digest.count,
        ..Default::default()
    };
    wire::WorkerBatch {
        heartbeat: Some(heartbeat),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_believes_something_else_is_asked_and_only_that_is_mended() {
    let cluster = Cluster::start().await;
    let (mut worker, mut session) = with_results(&cluster, "default-0").await;
    let graph = session.graph;
    for _ in 0..4 {
        worker.send(digest(&[(graph, 0), (graph, 1)])).await;
    }
    worker
        .never(Duration::from_millis(300), |batch| batch.inventory_wanted)
        .await;
    // One beat may be about something that was on its way.
    worker
        .results
        .0
        .lock()
        .unwrap()
        .remove(&(u64::from(graph) << 32));
    let mut fresh = Session::open(&cluster, "h").await;
    fresh.send(fresh.independent(1, &["body"])).await;
    let assigned = worker.assigned().await;
    worker.finish(&assigned, data("x")).await;
    fresh.until(|session| session.is_done).await;
    worker.send(digest(&[(graph, 1), (fresh.graph, 0)])).await;
    worker
        .never(Duration::from_millis(300), |batch| batch.inventory_wanted)
        .await;
    worker.send(digest(&[(graph, 1), (fresh.graph, 0)])).await;
    worker.until(|batch| batch.inventory_wanted).await;
    let text = metrics(&cluster).await;
    assert!(text.contains("oxidask_scheduler_repairs_total 1"), "{text}");
    worker
        .send_inventory(ScriptedWorker::holding(&[
            (graph, 1, 9),
            (fresh.graph, 0, 1),
        ]))
        .await;
    let assigned = worker.assigned().await;
    let lost: Vec<u32> = assigned.iter().map(|assign| assign.task).collect();
    assert_eq!(lost, [0], "what is lost is computed again, nothing else");
    worker.finish(&assigned, data("made twice")).await;
    let found = session.fetch(&[0, 1]).await;
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made twice")));
    assert_eq!(found[1].1, Ok(Bytes::from_static(b"made once")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_room_gets_no_work_until_it_has_room_again() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let paused = |is_paused| wire::WorkerBatch {
        is_paused: Some(is_paused),
        ..Default::default()
    };
    worker.send(paused(true)).await;
    cluster
        .until_standing("default-0", Some(Standing::Paused))
        .await;
    let session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    worker
        .never(Duration::from_millis(300), |batch| !batch.orders.is_empty())
        .await;
    worker.send(paused(false)).await;
    assert_eq!(worker.assigned().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inventory_that_cannot_be_understood_ends_the_stream() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    worker
        .send_inventory(wire::Inventory {
            held_graph: vec![1],
            is_last: true,
            ..Default::default()
        })
        .await;
    let error = loop {
        match timeout(PATIENCE, worker.inbound.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends with an error"),
            Err(status) => break status,
        }
    };
    assert!(error.message().contains("OX308"), "{error}");
    cluster.until_standing("default-0", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inventory_that_nobody_asked_for_changes_nothing() {
    let cluster = Cluster::start().await;
    let (worker, mut session) = with_results(&cluster, "default-0").await;
    worker.send_inventory(ScriptedWorker::holding(&[])).await;
    sleep(Duration::from_millis(200)).await;
    let found = session.fetch(&[0]).await;
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made once")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_died_with_the_scheduler_is_not_waited_for() {
    let folder = TempDir::new().unwrap();
    let kept = |folder: &TempDir| Some(JournalConfig::in_folder(folder.path()));
    let core = CoreConfig::default();
    let mut cluster = Cluster::start_kept(core.clone(), kept(&folder)).await;
    let (worker, _session) = with_results(&cluster, "default-0").await;
    sleep(Duration::from_millis(150)).await;
    cluster.serving.abort();
    sleep(Duration::from_millis(150)).await;
    drop(worker);
    // The first scheduler has nothing more to say.
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "log") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    cluster.replace(core, kept(&copy)).await;
    let began = Instant::now();
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    let assigned = other.assigned().await;
    assert!(!assigned.is_empty());
    assert!(began.elapsed() < Duration::from_secs(3), "not the grace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_waits_for_a_suspect_that_cannot_be_reached_and_nothing_is_computed_again() {
    let cluster = Cluster::start().await;
    let (worker, mut other, mut session) = with_results_and_a_reader(&cluster).await;
    let graph = session.graph;
    let elsewhere = worker.hello.data_address.clone();
    let mut cut = worker.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    // As if its node had no way to us: it comes back with an address that nobody answers.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nowhere.local_addr().unwrap().to_string();
    tokio::spawn(async move { while nowhere.accept().await.is_ok() {} });
    cut.hello.data_address.clone_from(&address);
    let back = cut.come_back(&cluster).await;
    assert!(back.is_resumed);
    assert_eq!(
        other
            .until(|batch| !batch.peers.is_empty())
            .await
            .peers
            .iter()
            .map(|peer| (peer.worker, peer.data_address.as_str()))
            .collect::<Vec<_>>(),
        [(back.number, address.as_str())],
        "others learn where it is now"
    );
    let fetching = tokio::spawn(async move { session.fetch(&[0]).await });
    other
        .never(Duration::from_secs(2), |batch| !batch.orders.is_empty())
        .await;
    let mut cut = back.cut();
    cut.hello.data_address = elsewhere;
    let back = cut.come_back(&cluster).await;
    back.send_inventory(ScriptedWorker::holding(&[(graph, 0, 9), (graph, 1, 9)]))
        .await;
    let found = timeout(PATIENCE, fetching).await.unwrap().unwrap();
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made once")));
}
