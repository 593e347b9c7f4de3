//! Real workers over real TLS, and a scheduler that does what the test says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::{
    Cluster, GRAPH, PATIENCE, assign, assign_with, attempt, closed_address, http, order,
};
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::Body;
use oxidask_proto::wire;
use oxidask_proto::wire::order::Order;
use oxidask_proto::wire::report::Outcome;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introduces_itself_runs_tasks_and_beats() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(7, 2, GIBIBYTE).await;
    assert_eq!(joined.hello.name, "w");
    assert_eq!(joined.hello.slots, 2);
    assert_eq!(joined.hello.memory_bytes, GIBIBYTE);
    assert_eq!(joined.hello.data_address, worker.data.to_string());
    assert_eq!(joined.hello.process_id, std::process::id());
    joined
        .order([order(assign(1, &noop())), order(assign(2, &sleep(0.05)))])
        .await;
    assert_eq!(joined.finished(1).await, 4);
    assert_eq!(joined.finished(2).await, 4);
    assert!(
        !joined.has_started(1),
        "a task that ends at once is not said to have started"
    );
    assert!(joined.has_started(2));
    assert_eq!(cluster.read(&worker, 1).await.unwrap(), b"null");
    joined
        .until("a heartbeat", |joined| {
            joined.heartbeat.as_ref().is_some_and(|b| b.held_bytes == 4)
        })
        .await;
    assert!(joined.heartbeat.unwrap().resident_bytes > 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tiny_tasks_of_a_shared_body_are_reported_in_few_messages() {
    const TASKS: u32 = 20_000;
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(0, 1, GIBIBYTE).await;
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
    let start = Instant::now();
    joined
        .send(wire::WorkBatch {
            bodies,
            orders: orders.collect(),
            ..Default::default()
        })
        .await;
    joined
        .until("all reports", |joined| {
            joined.reports.len() >= TASKS as usize
        })
        .await;
    println!("{:?} a task", start.elapsed() / TASKS);
    let is_finished = |report: &wire::Report| matches!(report.outcome, Some(Outcome::Finished(_)));
    assert!(joined.reports.iter().all(is_finished));
    assert!(
        joined.batches_count < 500,
        "{} messages",
        joined.batches_count
    );

    let release = |task| Order::Release(wire::TaskId { graph: GRAPH, task });
    joined.order([release(5)]).await;
    let graphs_forgotten = vec![GRAPH];
    joined.order([order(assign(TASKS, &noop()))]).await;
    joined.finished(TASKS).await;
    assert_eq!(cluster.read(&worker, 5).await, None);
    assert!(cluster.read(&worker, 6).await.is_some());
    joined
        .send(wire::WorkBatch {
            graphs_forgotten,
            ..Default::default()
        })
        .await;
    // The body went with its graph.
    let late = wire::Assign {
        is_inline: false,
        body: 3,
        ..assign(TASKS + 1, &noop())
    };
    joined.order([order(late)]).await;
    let (fault, is_retryable) = joined.failed(TASKS + 1).await;
    assert!(fault.message.contains("never reached"), "{fault:?}");
    assert!(!is_retryable);
    assert_eq!(cluster.read(&worker, 6).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_fails_its_task_and_the_worker_goes_on() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join(0, 1, GIBIBYTE).await;
    for (task, op, text, may_retry) in [
        (1, "panic", "the task panicked: odd 2", true),
        (2, "panic_at_once", "the task panicked: odd 1", true),
        (
            3,
            "panic_in_prepare",
            "the task panicked: odd panic_in_prepare",
            false,
        ),
    ] {
        joined.order([order(assign(task, &Body::new(op)))]).await;
        let (fault, is_retryable) = joined.failed(task).await;
        assert_eq!(fault.code, Code::TaskPanicked.to_string());
        assert_eq!(fault.message, text);
        assert_eq!(is_retryable, may_retry);
    }
    let nonsense = wire::Assign {
        inline_body: "{".into(),
        ..assign(4, &noop())
    };
    joined
        .order([order(nonsense), order(assign(5, &Body::new("nop")))])
        .await;
    assert!(!joined.failed(4).await.1);
    assert_eq!(
        joined.failed(5).await.0.code,
        Code::OperationUnknown.to_string()
    );
    joined.order([order(assign(6, &noop()))]).await;
    joined.finished(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_frees_its_slot_and_its_folder_and_is_not_heard_of() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(0, 1, GIBIBYTE).await;
    joined
        .order([
            order(assign(1, &Body::new("litter"))),
            order(assign(2, &noop())),
        ])
        .await;
    joined
        .until("the start", |joined| joined.has_started(1))
        .await;
    joined
        .order([Order::Retract(attempt(1)), Order::Cancel(attempt(1))])
        .await;
    joined.finished(2).await;
    assert_eq!(joined.reports.len(), 2);
    assert_eq!(cluster.read(&worker, 1).await, None);
    let left = std::fs::read_dir(worker.scratch.path().join("tasks"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_started_can_be_retracted() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join(0, 1, GIBIBYTE).await;
    joined
        .order([order(assign(1, &sleep(0.3))), order(assign(2, &noop()))])
        .await;
    joined.order([Order::Retract(attempt(2))]).await;
    assert!(matches!(joined.end_of(2).await, Outcome::Retracted(_)));
    joined.finished(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_are_fetched_from_another_worker() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut reader) = cluster.join(2, 1, GIBIBYTE).await;
    let len = 3_000_000;
    holder
        .order([
            order(assign(1, &buffer(len))),
            order(assign(2, &buffer(10))),
        ])
        .await;
    assert_eq!(holder.finished(1).await, len);
    assert_eq!(holder.finished(2).await, 10);
    reader.introduce(1, first.data).await;
    let concat = Body::new("concat");
    reader
        .order([order(assign_with(3, &concat, &[(1, 1), (2, 1), (1, 1)]))])
        .await;
    assert_eq!(reader.finished(3).await, 2 * len + 10);
    reader
        .until("the copies", |reader| reader.copies_added.len() == 2)
        .await;
    let (one, two) = (
        cluster.read(&first, 1).await.unwrap(),
        cluster.read(&first, 2).await.unwrap(),
    );
    assert_eq!(
        cluster.read(&second, 3).await.unwrap(),
        [one.clone(), two, one].concat()
    );
    let text = http(second.http, "/metrics").await;
    assert!(
        text.contains("oxidask_worker_fetched_bytes_total 3000010"),
        "{text}"
    );
    // The copies are held until they are released.
    assert!(cluster.read(&second, 1).await.is_some());
    reader
        .order([Order::Release(wire::TaskId {
            graph: GRAPH,
            task: 1,
        })])
        .await;
    reader.order([order(assign(9, &noop()))]).await;
    reader.finished(9).await;
    assert!(cluster.read(&second, 1).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_only_give_order_are_not_fetched() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut reader) = cluster.join(2, 1, GIBIBYTE).await;
    holder.order([order(assign(1, &buffer(3_000_000)))]).await;
    holder.finished(1).await;
    reader.introduce(1, first.data).await;
    let value = Body::new("value").with("value", 7);
    reader
        .order([order(assign_with(2, &value, &[(1, 1)]))])
        .await;
    assert_eq!(reader.finished(2).await, 1);
    let text = http(second.http, "/metrics").await;
    assert!(
        text.contains("oxidask_worker_fetched_bytes_total 0"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_input_is_looked_for_elsewhere_and_then_reported() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (_second, mut reader) = cluster.join(2, 1, GIBIBYTE).await;
    let nobody = closed_address();
    holder.order([order(assign(1, &noop()))]).await;
    holder.finished(1).await;
    reader.introduce(1, first.data).await;
    reader.introduce(3, nobody).await;
    let count = Body::new("count");
    // Worker 1 lacks 77. Worker 3 is dead, but worker 1 also has 1.
    let alternates = vec![wire::Alternate {
        position: 0,
        holders: vec![1],
    }];
    let rescued = wire::Assign {
        alternates,
        ..assign_with(5, &count, &[(1, 3)])
    };
    reader
        .order([order(assign_with(4, &count, &[(77, 1)])), order(rescued)])
        .await;
    let Outcome::InputsLost(lost) = reader.end_of(4).await else {
        panic!()
    };
    assert_eq!(lost.lost.len(), 1);
    assert_eq!(
        (lost.lost[0].task.unwrap().task, lost.lost[0].worker),
        (77, 1)
    );
    assert_eq!(reader.finished(5).await, 1);
    reader
        .order([
            order(assign_with(6, &count, &[(78, 3)])),
            order(assign(7, &noop())),
        ])
        .await;
    reader.finished(7).await;
    let Outcome::InputsLost(lost) = reader.end_of(6).await else {
        panic!()
    };
    assert_eq!(lost.lost[0].worker, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_fails_its_task_by_name() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut small) = cluster.join(2, 1, 1_000).await;
    holder.order([order(assign(1, &buffer(600)))]).await;
    holder.finished(1).await;
    small.introduce(1, first.data).await;
    let long = Body::new("value").with("value", "x".repeat(1_000));
    small
        .order([order(assign(2, &long)), order(assign(3, &buffer(500)))])
        .await;
    let (fault, is_retryable) = small.failed(2).await;
    assert_eq!(fault.code, Code::MemoryExceeded.to_string());
    assert!(fault.message.contains("task `t2`"), "{fault:?}");
    assert!(fault.message.contains("needs `1002` bytes"), "{fault:?}");
    assert!(!is_retryable, "it can never fit");
    assert_eq!(small.finished(3).await, 500);
    small.order([order(assign(4, &buffer(600)))]).await;
    let (fault, is_retryable) = small.failed(4).await;
    assert!(fault.message.contains("`500` of `1000` bytes"), "{fault:?}");
    assert!(is_retryable, "there may be room later");
    small
        .order([order(assign_with(5, &Body::new("count"), &[(1, 1)]))])
        .await;
    let (fault, _) = small.failed(5).await;
    assert_eq!(fault.code, Code::MemoryExceeded.to_string());
    assert!(fault.message.contains("input of task `t5`"), "{fault:?}");
    assert!(cluster.read(&second, 3).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_at_once_when_the_scheduler_does() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(0, 1, GIBIBYTE).await;
    joined.order([order(assign(1, &sleep(60.0)))]).await;
    joined
        .until("the start", |joined| joined.has_started(1))
        .await;
    let start = Instant::now();
    joined.hang_up();
    let error = worker.end().await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        matches!(error, WorkerError::SchedulerGone { .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), Code::SchedulerEnded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_asked_for_again_and_other_refusals_are_final() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.spawn_patient(1, GIBIBYTE, PATIENCE).await;
    let refuse = |code| wire::WorkBatch {
        refused: Some(wire::Fault::from(Diagnostic::new(code, "not you"))),
        ..Default::default()
    };
    for _ in 0..2 {
        let joined = cluster.next_joined().await;
        joined.send(refuse(Code::WorkerRefused)).await;
    }
    let joined = cluster.next_joined().await;
    joined.send(refuse(Code::ProtocolMismatch)).await;
    assert_eq!(
        worker.end().await.unwrap_err().code(),
        Code::ProtocolMismatch
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unspecified_host_is_told_as_the_one_that_faces_the_scheduler() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.spawn_facing("0.0.0.0:8789").await;
    let joined = cluster.next_joined().await;
    assert_eq!(joined.hello.data_address, "127.0.0.1:8789");
    worker.stop.cancel();
    worker.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_is_quick_and_tidy() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(0, 2, GIBIBYTE).await;
    joined
        .order([
            order(assign(1, &sleep(60.0))),
            order(assign(2, &Body::new("litter"))),
        ])
        .await;
    let both = |joined: &harness::Joined| joined.has_started(1) && joined.has_started(2);
    joined.until("the starts", both).await;
    let start = Instant::now();
    worker.stop.cancel();
    let (data, http, scratch) = (
        worker.data,
        worker.http,
        worker.scratch.path().join("tasks"),
    );
    tokio::time::timeout(PATIENCE, worker.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0);
    for address in [data, http] {
        // The last parts of the servers are dropped by the runtime, a moment later.
        while TcpStream::connect(address).is_ok() {
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{address} is still open"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_before_registration_is_no_error() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.spawn(1, GIBIBYTE).await;
    let joined = cluster.next_joined().await;
    worker.stop.cancel();
    worker.end().await.unwrap();
    drop(joined);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_and_another_version_are_told() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.spawn(1, GIBIBYTE).await;
    let joined = cluster.next_joined().await;
    let fault = Diagnostic::new(Code::WorkerRefused, "the name `w` is taken").with_hint("wait");
    let refused = Some(wire::Fault::from(fault));
    joined
        .send(wire::WorkBatch {
            refused,
            ..Default::default()
        })
        .await;
    let error = worker.end().await.unwrap_err();
    let told = Diagnostic::from_error(&error);
    assert_eq!(
        (told.code, told.hint.as_str()),
        (Code::WorkerRefused, "wait")
    );
    assert_eq!(told.causes, ["the name `w` is taken"]);

    let worker = cluster.spawn(1, GIBIBYTE).await;
    let joined = cluster.next_joined().await;
    let hello = Some(wire::Hello {
        protocol_version: 99,
        ..Default::default()
    });
    joined
        .send(wire::WorkBatch {
            hello,
            ..Default::default()
        })
        .await;
    assert_eq!(
        worker.end().await.unwrap_err().code(),
        Code::ProtocolMismatch
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_contradicts_itself_ends_the_worker_with_a_code() {
    let mut cluster = Cluster::start().await;
    let (worker, joined) = cluster.join(0, 1, GIBIBYTE).await;
    let broken = wire::Assign {
        holders: vec![],
        ..assign_with(1, &noop(), &[(2, 0)])
    };
    joined.order([order(broken)]).await;
    assert_eq!(
        worker.end().await.unwrap_err().code(),
        Code::ProtocolMismatch
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_and_figures_are_open() {
    let mut cluster = Cluster::start().await;
    let worker = cluster.spawn(1, GIBIBYTE).await;
    let mut joined = cluster.next_joined().await;
    assert!(
        http(worker.http, "/health")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        http(worker.http, "/livez")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        http(worker.http, "/readyz")
            .await
            .starts_with("HTTP/1.1 503")
    );
    joined.welcome(0).await;
    joined
        .order([
            order(assign(1, &buffer(123))),
            order(assign(2, &Body::new("fail"))),
        ])
        .await;
    joined.finished(1).await;
    joined.failed(2).await;
    assert!(
        http(worker.http, "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let text = http(worker.http, "/metrics").await;
    for line in [
        "oxidask_worker_held_bytes 123",
        "oxidask_worker_tasks_running 0",
        "oxidask_worker_tasks_queued 0",
        "oxidask_worker_tasks_finished_total 1",
        "oxidask_worker_tasks_failed_total 1",
        "oxidask_worker_fetched_bytes_total 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in {text}"
        );
    }
    assert!(
        http(worker.http, "/api/v1/results")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_secedes_waits_for_another_one_on_the_only_slot() {
    let mut cluster = Cluster::start().await;
    let (_worker, mut joined) = cluster.join(1, 1, GIBIBYTE).await;
    let secede = || Body::new("secede");
    joined.order([order(assign(1, &secede()))]).await;
    let says = |task: u32, is_meant: fn(&Outcome) -> bool| {
        move |joined: &harness::Joined| {
            joined.reports.iter().any(|report| {
                report.task.is_some_and(|own| own.task == task)
                    && report.outcome.as_ref().is_some_and(is_meant)
            })
        }
    };
    let has_seceded = |outcome: &Outcome| matches!(outcome, Outcome::Seceded(_));
    joined.until("a slot", says(1, has_seceded)).await;
    joined.order([order(assign(2, &Body::new("signal")))]).await;
    joined.finished(2).await;
    joined.finished(1).await;

    // One that is cancelled meanwhile gives nothing back twice.
    joined.order([order(assign(3, &secede()))]).await;
    joined.until("a slot", says(3, has_seceded)).await;
    joined.order([Order::Cancel(attempt(3))]).await;
    joined
        .order([order(assign(4, &sleep(0.3))), order(assign(5, &sleep(0.0)))])
        .await;
    joined.finished(4).await;
    joined.finished(5).await;
    let at = |task| {
        let of = |report: &wire::Report| report.task.unwrap().task == task;
        let is_end = |report: &wire::Report| matches!(report.outcome, Some(Outcome::Finished(_)));
        let reports = joined.reports.iter();
        reports
            .clone()
            .position(|report| of(report) && is_end(report))
    };
    assert!(at(4) < at(5), "there is one slot");
}
