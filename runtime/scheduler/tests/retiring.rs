//! Workers that are to go, or want to: drained, refused, told to stay.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use oxidask_identity::Role;
use oxidask_proto::fault::from_status;
use oxidask_proto::wire::{self, Standing};
use support::{Cluster, ScriptedWorker, Session};
use tokio::time::sleep;

/// A worker with the result of a finished task, and the session that wants it.
async fn with_result(cluster: &Cluster, name: &str) -> (ScriptedWorker, Session) {
    let mut worker = ScriptedWorker::join(cluster, name).await;
    let mut session = Session::open(cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = worker.assigned().await;
    worker
        .finish(&assigned, |_| Bytes::from_static(b"made once"))
        .await;
    session.until(|session| session.is_done).await;
    (worker, session)
}

fn leaving() -> wire::WorkerBatch {
    wire::WorkerBatch {
        leaving_ms: Some(10_000),
        ..Default::default()
    }
}

fn is_empty(batch: &wire::WorkBatch) -> bool {
    batch.is_empty
}

/// Takes the copies that it is told to, and says so.
async fn take_copies(worker: &mut ScriptedWorker, from: &ScriptedWorker) {
    let batch = worker.until(|batch| !batch.copies.is_empty()).await;
    let copies: Vec<wire::TaskId> = batch.copies.iter().filter_map(|copy| copy.task).collect();
    for copy in &batch.copies {
        assert_eq!(copy.from, from.number);
        assert_eq!(copy.bytes, 9);
    }
    let held = from.results.0.lock().unwrap().clone();
    worker.results.0.lock().unwrap().extend(held);
    worker
        .send(wire::WorkerBatch {
            copies_added: copies,
            ..Default::default()
        })
        .await;
}

async fn retire(cluster: &Cluster, request: wire::RetireRequest) -> wire::RetireReply {
    let mut client = cluster.connect(Role::Client).await;
    client.retire(request).await.unwrap().into_inner()
}

fn named(names: &[&str]) -> wire::RetireRequest {
    wire::RetireRequest {
        workers: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn reasons(reply: &wire::RetireReply) -> Vec<(&str, &str)> {
    let refused = reply.refused.iter();
    refused
        .map(|refused| (refused.worker.as_str(), refused.reason.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_is_drained_told_so_and_missed_by_nobody() {
    let cluster = Cluster::start().await;
    let (mut leaver, mut session) = with_result(&cluster, "default-0").await;
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    leaver.send(leaving()).await;
    take_copies(&mut other, &leaver).await;
    leaver.until(is_empty).await;
    drop(leaver);
    cluster.until_standing("default-0", None).await;
    let found = session.fetch(&[0]).await;
    assert_eq!(found[0].1, Ok(Bytes::from_static(b"made once")));
    other
        .never(Duration::from_millis(200), |batch| !batch.orders.is_empty())
        .await;
    assert!(session.notices.is_empty(), "{:?}", session.notices);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_leave_is_told_why_and_tries_again_when_another_has_come() {
    let cluster = Cluster::start().await;
    let (mut leaver, _session) = with_result(&cluster, "default-0").await;
    leaver.send(leaving()).await;
    let batch = leaver
        .until(|batch| !batch.leaving_refused.is_empty())
        .await;
    assert!(
        batch.leaving_refused.contains("9 bytes"),
        "{}",
        batch.leaving_refused
    );
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    take_copies(&mut other, &leaver).await;
    leaver.until(is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_failed_is_asked_of_another() {
    let cluster = Cluster::start().await;
    let (mut leaver, _session) = with_result(&cluster, "default-0").await;
    let mut first = ScriptedWorker::join(&cluster, "default-1").await;
    leaver.send(leaving()).await;
    let batch = first.until(|batch| !batch.copies.is_empty()).await;
    let mut second = ScriptedWorker::join(&cluster, "default-2").await;
    let failed = batch.copies.iter().filter_map(|copy| copy.task).collect();
    first
        .send(wire::WorkerBatch {
            copies_failed: failed,
            ..Default::default()
        })
        .await;
    take_copies(&mut second, &leaver).await;
    leaver.until(is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retired_workers_stay_empty_until_somebody_ends_them() {
    let cluster = Cluster::start().await;
    let (mut idle, session) = with_result(&cluster, "default-0").await;
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    let reply = retire(&cluster, named(&["default-0"])).await;
    assert_eq!(reply.accepted, ["default-0"]);
    take_copies(&mut other, &idle).await;
    cluster
        .until_standing("default-0", Some(Standing::Empty))
        .await;
    idle.never(Duration::from_millis(200), is_empty).await;
    // Asked again, now with an end.
    let ends = wire::RetireRequest {
        ends: true,
        ..named(&["default-0"])
    };
    assert_eq!(retire(&cluster, ends).await.accepted, ["default-0"]);
    idle.until(is_empty).await;
    drop(idle);
    cluster.until_standing("default-0", None).await;
    assert!(session.notices.is_empty(), "{:?}", session.notices);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_tasks_are_moved_at_the_deadline_and_no_new_ones_come() {
    let cluster = Cluster::start().await;
    let mut busy = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let running = busy.assigned().await;
    busy.start(&running[0]).await;
    let mut other = ScriptedWorker::join(&cluster, "default-1").await;
    let request = wire::RetireRequest {
        deadline_ms: 300,
        ends: true,
        ..named(&["default-0"])
    };
    retire(&cluster, request).await;
    let moved = other.assigned().await;
    assert_eq!(moved[0].task, 0);
    other.finish(&moved, |_| Bytes::from_static(b"x")).await;
    session.until(|session| session.is_done).await;
    busy.until(is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_and_workers_that_nobody_can_relieve_are_refused_with_reasons() {
    let cluster = Cluster::start().await;
    let (_worker, _session) = with_result(&cluster, "default-0").await;
    let reply = retire(&cluster, named(&["default-0", "defualt-0", "x"])).await;
    assert!(reply.accepted.is_empty(), "{reply:?}");
    let reasons = reasons(&reply);
    assert_eq!(
        reasons[0],
        (
            "defualt-0",
            "no worker has this name; did you mean `default-0`?"
        )
    );
    assert_eq!(reasons[1], ("x", "no worker has this name"));
    assert_eq!(reasons[2].0, "default-0");
    assert!(reasons[2].1.contains("holds 9 bytes"), "{reasons:?}");
    cluster
        .until_standing("default-0", Some(Standing::Active))
        .await;
    let mut client = cluster.connect(Role::Client).await;
    let nobody = client.retire(wire::RetireRequest::default()).await;
    let error = from_status(&nobody.unwrap_err());
    assert_eq!(error.code.to_string(), "OX308");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_group_those_go_that_can_go_most_cheaply() {
    let cluster = Cluster::start().await;
    let (_holder, _session) = with_result(&cluster, "default-0").await;
    let _idle = ScriptedWorker::join(&cluster, "default-1").await;
    let other = wire::WorkerHello {
        group: "big".to_owned(),
        ..ScriptedWorker::hello("big-0")
    };
    let _other = ScriptedWorker::join_as(&cluster, other).await;
    let of = |group: &str, count| wire::RetireRequest {
        group: group.to_owned(),
        count,
        ..Default::default()
    };
    let reply = retire(&cluster, of("default", 1)).await;
    assert_eq!(reply.accepted, ["default-1"], "it holds nothing");
    cluster
        .until_standing("default-1", Some(Standing::Empty))
        .await;
    let reply = retire(&cluster, of("bug", 1)).await;
    assert_eq!(
        reasons(&reply),
        [(
            "",
            "no worker of group `bug` can go; did you mean group `big`?"
        )]
    );
    let reply = retire(&cluster, of("big", 3)).await;
    assert_eq!(reply.accepted, ["big-0"]);
    assert_eq!(
        reasons(&reply),
        [("", "only 1 worker of group `big` can go")]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_stay_after_all_but_not_those_that_must_end() {
    let cluster = Cluster::start().await;
    let mut first = ScriptedWorker::join(&cluster, "default-0").await;
    let second = ScriptedWorker::join(&cluster, "default-1").await;
    retire(&cluster, named(&["default-0"])).await;
    second.send(leaving()).await;
    for name in ["default-0", "default-1"] {
        cluster.until_standing(name, Some(Standing::Empty)).await;
    }
    let stay = wire::RetireRequest {
        is_cancelled: true,
        group: "default".to_owned(),
        ..Default::default()
    };
    let reply = retire(&cluster, stay).await;
    assert_eq!(reply.accepted, ["default-0"]);
    assert_eq!(
        reasons(&reply),
        [("default-1", "it was told to end by whoever started it")]
    );
    let session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    assert_eq!(first.assigned().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspect_cannot_be_drained() {
    let cluster = Cluster::start().await;
    let cut = ScriptedWorker::join(&cluster, "default-0").await.cut();
    cluster
        .until_standing("default-0", Some(Standing::Suspect))
        .await;
    let reply = retire(&cluster, named(&["default-0"])).await;
    assert_eq!(
        reasons(&reply),
        [("default-0", "nobody hears of it at the moment")]
    );
    sleep(Duration::from_millis(10)).await;
    drop(cut);
}
