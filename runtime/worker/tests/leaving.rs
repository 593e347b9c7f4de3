//! Workers that go: copies of what they hold, and their end; over real TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{
    Cluster, GRAPH, Joined, Proxy, Settings, Worker, assign, assign_with, closed_address, figure,
    order,
};
use oxidask_exec::Body;
use oxidask_proto::wire;
use oxidask_proto::wire::order::Order;
use oxidask_proto::wire::report::Outcome;
use tokio::net::TcpListener;

const GIBIBYTE: u64 = 1 << 30;
const MEBIBYTE: u64 = 1 << 20;

fn noop() -> Body {
    Body::new("noop")
}

fn buffer(len: u64) -> Body {
    Body::new("bytes").with("len", len)
}

fn copy(task: u32, bytes: u64, from: u32) -> wire::CopyOrder {
    wire::CopyOrder {
        task: Some(wire::TaskId { graph: GRAPH, task }),
        bytes,
        from,
    }
}

async fn order_copies(joined: &Joined, copies: impl IntoIterator<Item = wire::CopyOrder>) {
    let copies = copies.into_iter().collect();
    joined
        .send(wire::WorkBatch {
            copies,
            ..Default::default()
        })
        .await;
}

fn release(task: u32) -> Order {
    Order::Release(wire::TaskId { graph: GRAPH, task })
}

async fn say_empty(joined: &Joined) {
    joined
        .send(wire::WorkBatch {
            is_empty: true,
            ..Default::default()
        })
        .await;
}

async fn refuse(joined: &Joined) {
    joined
        .send(wire::WorkBatch {
            leaving_refused: "nobody has room".into(),
            ..Default::default()
        })
        .await;
}

async fn asked(joined: &mut Joined, times: usize) {
    joined
        .until("that it wants to leave", |joined| {
            joined.leaving_ms.len() >= times
        })
        .await;
}

/// The worker knows that it is accepted.
async fn beats(joined: &mut Joined) {
    joined
        .until("a beat", |joined| joined.heartbeat.is_some())
        .await;
}

async fn ends_within(worker: Worker, time: Duration) {
    let start = Instant::now();
    worker.end().await.unwrap();
    assert!(start.elapsed() < time, "{:?}", start.elapsed());
}

fn patient(grace: Duration) -> Settings {
    Settings {
        grace,
        ..Settings::patient(1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_are_ordered_are_fetched_kept_and_released() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut taker) = cluster.join(2, 1, GIBIBYTE).await;
    holder.order([order(assign(1, &buffer(5_000_000)))]).await;
    holder.finished(1).await;
    taker.introduce(1, first.data).await;
    taker.introduce(3, closed_address()).await;
    // 77 is nowhere, 78 is with somebody who is dead, 79 with somebody unknown.
    let copies = [
        copy(1, 5_000_000, 1),
        copy(77, 10, 1),
        copy(78, 10, 3),
        copy(79, 10, 9),
    ];
    order_copies(&taker, copies).await;
    taker
        .until("all answers", |taker| {
            taker.copies_added.len() == 1 && taker.copies_failed.len() == 3
        })
        .await;
    taker.copies_failed.sort_unstable();
    assert_eq!(taker.copies_failed, [77, 78, 79]);
    assert_eq!(
        taker.copies_missing,
        [(77, 1)],
        "who answered that it lacks it"
    );
    let original = cluster.read(&first, 1).await.unwrap();
    assert_eq!(cluster.read(&second, 1).await.unwrap(), original);
    // Once more: it is there.
    order_copies(&taker, [copy(1, 5_000_000, 1)]).await;
    taker
        .until("the answer", |taker| taker.copies_added.len() == 2)
        .await;
    taker.order([release(1), order(assign(9, &noop()))]).await;
    taker.finished(9).await;
    assert_eq!(cluster.read(&second, 1).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_are_ordered_are_never_dropped_for_want_of_memory() {
    const COUNT: u32 = 16;
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let small = Settings::spilling(1, 24 * MEBIBYTE);
    let (second, mut taker) = cluster.join_as(2, small).await;
    let makes = (0..COUNT).map(|task| order(assign(task, &buffer(4 * MEBIBYTE))));
    holder.order(makes.collect::<Vec<_>>()).await;
    for task in 0..COUNT {
        holder.finished(task).await;
    }
    taker.introduce(1, first.data).await;
    // The first is there for a task already, as one that may be dropped.
    taker
        .order([order(assign_with(99, &Body::new("count"), &[(0, 1)]))])
        .await;
    taker.finished(99).await;
    let copies = (0..COUNT).map(|task| copy(task, 4 * MEBIBYTE, 1));
    order_copies(&taker, copies).await;
    taker
        .until("all copies", |taker| {
            taker.copies_added.len() > COUNT as usize
        })
        .await;
    assert!(taker.copies_failed.is_empty() && taker.copies_missing.is_empty());
    for task in 0..COUNT {
        let copied = cluster.read(&second, task).await.unwrap();
        assert_eq!(copied.len() as u64, 4 * MEBIBYTE);
    }
    assert_eq!(
        figure(&second, "oxidask_worker_copies_dropped_total").await,
        0
    );
    assert!(figure(&second, "oxidask_worker_spilled_bytes_total").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn works_on_until_nothing_is_left_and_ends_in_order() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_as(1, patient(Duration::from_secs(20))).await;
    joined.order([order(assign(1, &buffer(100)))]).await;
    joined.finished(1).await;
    worker.leave.cancel();
    asked(&mut joined, 1).await;
    let within = joined.leaving_ms[0];
    assert!((16_000..20_000).contains(&within), "{within}");
    // It goes on as before meanwhile.
    joined.order([order(assign(2, &noop()))]).await;
    joined.finished(2).await;
    assert_eq!(cluster.read(&worker, 1).await.unwrap().len(), 100);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!worker.serving.is_finished());
    say_empty(&joined).await;
    joined.until("its end", |joined| joined.has_ended).await;
    joined.hang_up();
    ends_within(worker, Duration::from_secs(1)).await;
    assert_eq!(joined.leaving_ms.len(), 1, "it asks once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_that_it_is_empty_ends_without_having_asked() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_patient(1, 1).await;
    say_empty(&joined).await;
    joined.until("its end", |joined| joined.has_ended).await;
    joined.hang_up();
    ends_within(worker, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_nothing_is_gone_at_once() {
    let mut cluster = Cluster::start().await;
    // The scheduler says so.
    let (worker, mut joined) = cluster.join_as(1, patient(Duration::from_secs(20))).await;
    beats(&mut joined).await;
    worker.leave.cancel();
    asked(&mut joined, 1).await;
    say_empty(&joined).await;
    joined.until("its end", |joined| joined.has_ended).await;
    joined.hang_up();
    ends_within(worker, Duration::from_millis(300)).await;
    // It says nothing.
    let (worker, mut joined) = cluster.join_as(1, patient(Duration::from_secs(20))).await;
    beats(&mut joined).await;
    worker.leave.cancel();
    ends_within(worker, Duration::from_secs(2)).await;
    drop(joined);
    // There is none.
    let settings = Settings {
        scheduler: Some(closed_address()),
        ..patient(Duration::from_secs(20))
    };
    let worker = cluster.spawn_as(settings, None).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    worker.leave.cancel();
    ends_within(worker, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_asked_again_and_the_grace_period_ends_it() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_as(1, patient(Duration::from_secs(4))).await;
    joined
        .order([
            order(assign(1, &buffer(100))),
            order(assign(2, &Body::new("litter"))),
        ])
        .await;
    joined.finished(1).await;
    let start = Instant::now();
    worker.leave.cancel();
    asked(&mut joined, 1).await;
    refuse(&joined).await;
    asked(&mut joined, 2).await;
    assert!(joined.leaving_ms[1] < joined.leaving_ms[0]);
    refuse(&joined).await;
    let scratch = worker.scratch.path().join("tasks");
    let ended = tokio::time::timeout(Duration::from_secs(10), worker.serving);
    joined.until("its end", |joined| joined.has_ended).await;
    joined.hang_up();
    ended.await.unwrap().unwrap().unwrap();
    let took = start.elapsed();
    let is_right = (Duration::from_secs(4)..Duration::from_secs(6)).contains(&took);
    assert!(is_right, "{took:?}");
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_in_the_middle_of_leaving_changes_nothing() {
    let mut cluster = Cluster::start().await;
    let proxy = Proxy::start(cluster.address).await;
    let settings = Settings {
        scheduler: Some(proxy.address),
        ..patient(Duration::from_secs(20))
    };
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    joined.order([order(assign(1, &buffer(100)))]).await;
    joined.finished(1).await;
    worker.leave.cancel();
    asked(&mut joined, 1).await;
    proxy.cut();
    let mut back = cluster.next_joined().await;
    back.welcome_back(1).await;
    let (whole, _) = back.whole_inventory().await;
    assert_eq!(whole.held.len(), 1);
    asked(&mut back, 1).await;
    assert!(back.leaving_ms[0] <= joined.leaving_ms[0]);
    say_empty(&back).await;
    back.until("its end", |joined| joined.has_ended).await;
    back.hang_up();
    ends_within(worker, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_wait_for_ever_for_a_scheduler_that_is_gone() {
    let mut cluster = Cluster::start().await;
    let proxy = Proxy::start(cluster.address).await;
    let settings = Settings {
        scheduler: Some(proxy.address),
        ..patient(Duration::from_secs(20))
    };
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    joined.order([order(assign(1, &buffer(100)))]).await;
    joined.finished(1).await;
    worker.leave.cancel();
    asked(&mut joined, 1).await;
    proxy.close();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!worker.serving.is_finished());
    ends_within(worker, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_given_up_and_another_one_asked() {
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, GIBIBYTE).await;
    let (_second, mut reader) = cluster.join(2, 1, GIBIBYTE).await;
    holder.order([order(assign(1, &buffer(10)))]).await;
    holder.finished(1).await;
    // They take connections and say nothing, ever.
    let silent = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    reader.introduce(1, first.data).await;
    reader.introduce(3, silent[0].local_addr().unwrap()).await;
    reader.introduce(4, silent[1].local_addr().unwrap()).await;
    let concat = Body::new("concat");
    let rescued = |task, from| {
        let alternates = vec![wire::Alternate {
            position: 0,
            holders: vec![1],
        }];
        order(wire::Assign {
            alternates,
            ..assign_with(task, &concat, &[(1, from)])
        })
    };
    let start = Instant::now();
    // The scheduler knows of 3 that it is gone, and says so.
    reader.order([rescued(5, 3)]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    reader
        .send(wire::WorkBatch {
            peers: vec![wire::Peer {
                worker: 3,
                data_address: String::new(),
            }],
            ..Default::default()
        })
        .await;
    assert_eq!(reader.finished(5).await, 10);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // Of 4 nobody knows; only it has 2.
    reader.order([release(1)]).await;
    reader
        .order([rescued(6, 4), order(assign_with(7, &concat, &[(2, 4)]))])
        .await;
    assert_eq!(reader.finished(6).await, 10);
    let Outcome::InputsLost(lost) = reader.end_of(7).await else {
        panic!()
    };
    assert_eq!(lost.lost[0].worker, 4);
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
}
