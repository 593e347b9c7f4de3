//! Tasks that read their inputs while they run, on real workers over real TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{
    Cluster, GRAPH, Joined, Settings, assign, assign_streaming, attempt, figure, order,
    slice_content,
};
use oxidask_exec::Body;
use oxidask_proto::wire;
use oxidask_proto::wire::order::Order;
use oxidask_proto::wire::report::Outcome;

const GIBIBYTE: u64 = 1 << 30;
const MEBIBYTE: u64 = 1 << 20;

fn slices(count: u32, len: u64, seed: u32) -> Body {
    Body::new("slices")
        .with("count", count)
        .with("len", len)
        .with("seed", seed)
}

fn gather() -> Body {
    Body::new("gather")
}

/// Makes tasks of `count` slices, each with its own number as seed.
async fn make(holder: &mut Joined, tasks: impl IntoIterator<Item = u32>, count: u32, len: u64) {
    let tasks: Vec<u32> = tasks.into_iter().collect();
    let orders = tasks
        .iter()
        .map(|task| order(assign(*task, &slices(count, len, *task))));
    holder.order(orders.collect::<Vec<_>>()).await;
    for task in tasks {
        holder.finished(task).await;
    }
}

/// What a gathering task makes of a slice of these tasks.
fn gathered(tasks: impl IntoIterator<Item = u32>, slice: u32, len: u64) -> Vec<u8> {
    let len = usize::try_from(len).unwrap();
    let contents = tasks
        .into_iter()
        .map(|task| slice_content(task.into(), slice, len));
    contents.collect::<Vec<_>>().concat()
}

async fn lost_inputs(reader: &mut Joined, task: u32) -> Vec<(u32, u32)> {
    let Outcome::InputsLost(lost) = reader.end_of(task).await else {
        panic!("task {task} has not lost its inputs: {:?}", reader.reports)
    };
    let mut lost: Vec<_> = lost
        .lost
        .into_iter()
        .map(|lost| (lost.task.unwrap().task, lost.worker))
        .collect();
    lost.sort_unstable();
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_read_from_peers_and_from_the_own_store() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    let len = 3_000_001;
    make(&mut one, [1, 2], 3, len).await;
    make(&mut two, [3], 3, len).await;
    two.introduce(1, first.data).await;
    let inputs = [(1, 1), (3, 2), (2, 1), (1, 1)];
    let body = gather().with("page", 700_000);
    two.order([order(assign_streaming(9, 2, &body, &inputs))])
        .await;
    assert_eq!(two.finished(9).await, 4 * len);
    let expected = gathered([1, 3, 2, 1], 2, len);
    assert!(cluster.read(&second, 9).await.unwrap() == expected);
    // Nothing was fetched, and what was read is not kept.
    assert_eq!(
        figure(&second, "oxidask_worker_fetched_bytes_total").await,
        0
    );
    let streamed = figure(&second, "oxidask_worker_streamed_bytes_total").await;
    assert_eq!(streamed, 3 * len);
    assert!(two.copies_added.is_empty());
    // The whole of a result, and a result that has no slices.
    two.order([order(assign(4, &Body::new("bytes").with("len", 100)))])
        .await;
    two.finished(4).await;
    let whole = gather().with("whole", 1);
    two.order([order(assign_streaming(10, 0, &whole, &[(4, 2), (1, 1)]))])
        .await;
    let index_bytes = 4 * 8;
    assert_eq!(two.finished(10).await, 100 + index_bytes + 3 * len);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_inputs_of_three_peers_take_few_requests() {
    const INPUTS: u32 = 10_000;
    let mut cluster = Cluster::start().await;
    let mut holders = Vec::new();
    for number in 1..=3 {
        let (worker, mut joined) = cluster.join(number, 1, GIBIBYTE).await;
        let tasks = (0..INPUTS).filter(|task| task % 3 + 1 == number);
        make(&mut joined, tasks, 2, 100).await;
        holders.push((worker, joined));
    }
    let (reading, mut reader) = cluster.join(7, 1, GIBIBYTE).await;
    for (number, (worker, _)) in (1..).zip(&holders) {
        reader.introduce(number, worker.data).await;
    }
    let inputs: Vec<_> = (0..INPUTS).map(|task| (task, task % 3 + 1)).collect();
    let start = Instant::now();
    reader
        .order([order(assign_streaming(INPUTS, 1, &gather(), &inputs))])
        .await;
    reader.finished(INPUTS).await;
    println!("10,000 inputs: {:?}", start.elapsed());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let expected = gathered(0..INPUTS, 1, 100);
    assert!(cluster.read(&reading, INPUTS).await.unwrap() == expected);
    // One request to each peer: all was asked for at once.
    assert_eq!(
        figure(&reading, "oxidask_worker_stream_requests_total").await,
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_lack_it_or_are_dead_are_passed_over() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    let (_third, mut reader) = cluster.join(3, 1, GIBIBYTE).await;
    make(&mut one, [1, 2], 2, 1_000).await;
    make(&mut two, [1], 2, 1_000).await;
    reader.introduce(1, first.data).await;
    reader.introduce(2, second.data).await;
    reader.introduce(4, harness::closed_address()).await;
    let alternates = |position: u32, holders: &[u32]| wire::Alternate {
        position,
        holders: holders.to_vec(),
    };
    // Worker 4 is dead, nobody knows worker 5, worker 2 lacks task 2.
    let rescued = wire::Assign {
        alternates: vec![alternates(0, &[5, 2]), alternates(1, &[4, 1])],
        ..assign_streaming(8, 0, &gather(), &[(1, 4), (2, 2)])
    };
    reader.order([order(rescued)]).await;
    assert_eq!(reader.finished(8).await, 2_000);
    reader
        .until("the missing copy", |reader| {
            !reader.copies_missing.is_empty()
        })
        .await;
    assert_eq!(reader.copies_missing, [(2, 2)]);

    // Nobody is left: everyone who failed is named, those who were not asked are not.
    let hopeless = wire::Assign {
        alternates: vec![alternates(0, &[5, 4])],
        ..assign_streaming(9, 0, &gather(), &[(2, 2), (1, 1)])
    };
    reader.order([order(hopeless)]).await;
    assert_eq!(lost_inputs(&mut reader, 9).await, [(2, 2), (2, 4), (2, 5)]);
    // A slice that the result does not have is as good as missing.
    let odd = assign_streaming(10, 2, &gather(), &[(1, 1)]);
    reader.order([order(odd)]).await;
    assert_eq!(lost_inputs(&mut reader, 10).await, [(1, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_in_the_middle_loses_only_what_it_held() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    let (_third, mut reader) = cluster.join(3, 1, GIBIBYTE).await;
    make(&mut one, [1], 1, 10 * MEBIBYTE).await;
    make(&mut two, [1, 2], 1, 10 * MEBIBYTE).await;
    reader.introduce(1, first.data).await;
    reader.introduce(2, second.data).await;
    let slow = gather().with("page", 100_000).with("pause_ms", 10);
    let alternates = vec![wire::Alternate {
        position: 0,
        holders: vec![2],
    }];
    let streaming = wire::Assign {
        alternates,
        ..assign_streaming(9, 0, &slow, &[(1, 1), (2, 2)])
    };
    reader.order([order(streaming)]).await;
    reader
        .until("the start", |reader| reader.has_started(9))
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.stop.cancel();
    // Its bytes may differ from those that worker 2 holds, so nothing goes on in the middle. Worker
    // 2 is not blamed.
    assert_eq!(lost_inputs(&mut reader, 9).await, [(1, 1)]);
    let again = assign_streaming(9, 0, &gather(), &[(1, 2), (2, 2)]);
    reader
        .order([order(wire::Assign {
            attempt: 2,
            ..again
        })])
        .await;
    reader
        .until("the second attempt", |reader| {
            let is_end = |report: &wire::Report| {
                report.attempt == 2 && matches!(report.outcome, Some(Outcome::Finished(_)))
            };
            reader.reports.iter().any(is_end)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_made_anew_is_not_mixed_with_the_old_one() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (_second, mut reader) = cluster.join(2, 1, GIBIBYTE).await;
    let len = 10 * MEBIBYTE;
    one.order([order(assign(1, &slices(1, len, 5)))]).await;
    one.finished(1).await;
    reader.introduce(1, first.data).await;
    let slow = gather().with("page", 100_000).with("pause_ms", 10);
    reader
        .order([order(assign_streaming(9, 0, &slow, &[(1, 1)]))])
        .await;
    reader
        .until("the start", |reader| reader.has_started(9))
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Another attempt makes other bytes of the same length.
    let anew = wire::Assign {
        attempt: 2,
        ..assign(1, &slices(1, len, 6))
    };
    one.order([order(anew)]).await;
    let lost = lost_inputs(&mut reader, 9).await;
    // Between the two there was none for a moment.
    assert!(lost.is_empty() || lost == [(1, 1)], "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumed_slices_are_freed_and_made_again_when_they_are_needed_again() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    let len = MEBIBYTE;
    make(&mut one, [1, 2], 2, len).await;
    make(&mut two, [3], 2, len).await;
    // This one has no slice 1, and is not to be made again because of that.
    make(&mut one, [4], 1, 10).await;
    two.introduce(1, first.data).await;
    let inputs = [(1, 1), (2, 1), (3, 2), (4, 1)];
    let body = gather()
        .with("consume", 1)
        .with("counts", 1)
        .with("skip", 1);
    // Failed and cancelled runs free nothing.
    let failing = [&inputs[..3], &[(77, 1), (4, 1)]].concat();
    two.order([order(assign_streaming(8, 1, &body, &failing))])
        .await;
    assert_eq!(lost_inputs(&mut two, 8).await, [(77, 1)]);
    two.order([order(assign_streaming(9, 1, &body, &inputs))])
        .await;
    two.finished(9).await;
    let expected = (3 * len).to_string();
    assert_eq!(cluster.read(&second, 9).await.unwrap(), expected.as_bytes());
    let freed = 2 * len + 24;
    let start = Instant::now();
    while figure(&first, "oxidask_worker_held_bytes").await > 2 * len + 2 * 24 + 26 {
        assert!(start.elapsed() < harness::PATIENCE, "nothing was freed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(figure(&second, "oxidask_worker_held_bytes").await <= len + freed);
    // The other slice is still there.
    two.order([order(assign_streaming(10, 0, &body, &inputs))])
        .await;
    two.finished(10).await;

    // The consumer's result is lost: it runs again and finds its slices missing.
    two.order([Order::Release(wire::TaskId {
        graph: GRAPH,
        task: 9,
    })])
    .await;
    let again = wire::Assign {
        attempt: 2,
        ..assign_streaming(9, 1, &gather().with("skip", 3), &inputs)
    };
    two.reports.clear();
    two.order([order(again)]).await;
    let lost = lost_inputs(&mut two, 9).await;
    // All of them at once, not one with each attempt, although it asked only for the first.
    assert_eq!(lost, inputs[..3]);
    // The scheduler has everything made again that a holder does not have.
    for task in [1, 2] {
        let again = wire::Assign {
            attempt: 2,
            ..assign(task, &slices(2, len, task))
        };
        one.reports.clear();
        one.order([order(again)]).await;
        one.finished(task).await;
    }
    let again = wire::Assign {
        attempt: 2,
        ..assign(3, &slices(2, len, 3))
    };
    let last = wire::Assign {
        attempt: 3,
        ..assign_streaming(9, 1, &gather().with("skip", 1), &inputs)
    };
    two.reports.clear();
    two.order([order(again)]).await;
    two.finished(3).await;
    two.order([order(last)]).await;
    assert_eq!(two.finished(9).await, 3 * len);
    let expected = gathered([1, 2, 3], 1, len);
    assert!(cluster.read(&second, 9).await.unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_cancelled_while_it_streams_ends_at_once_and_frees_nothing() {
    let mut cluster = Cluster::start().await;
    let (first, mut one) = cluster.join(1, 1, GIBIBYTE).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    make(&mut one, [1], 1, 10 * MEBIBYTE).await;
    two.introduce(1, first.data).await;
    let slow = gather()
        .with("page", 1_000)
        .with("pause_ms", 1)
        .with("consume", 1)
        .with("take", 1_000_000);
    two.order([order(assign_streaming(9, 0, &slow, &[(1, 1)]))])
        .await;
    two.until("the start", |two| two.has_started(9)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    two.order([Order::Cancel(attempt(9))]).await;
    two.order([order(assign(10, &Body::new("noop")))]).await;
    two.finished(10).await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        figure(&second, "oxidask_worker_memory_reserved_bytes").await,
        0
    );
    assert_eq!(
        figure(&first, "oxidask_worker_held_bytes").await,
        10 * MEBIBYTE + 16
    );
    assert_eq!(two.reports.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spilled_slices_are_served_to_peers() {
    const TASKS: u32 = 16;
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 32 * MEBIBYTE);
    let (first, mut one) = cluster.join_as(1, settings).await;
    let (second, mut two) = cluster.join(2, 1, GIBIBYTE).await;
    let len = 4 * MEBIBYTE;
    make(&mut one, 0..TASKS, 2, len).await;
    assert!(figure(&first, "oxidask_worker_disk_bytes").await > 64 * MEBIBYTE);
    two.introduce(1, first.data).await;
    let inputs: Vec<_> = (0..TASKS).map(|task| (task, 1)).collect();
    two.order([order(assign_streaming(100, 1, &gather(), &inputs))])
        .await;
    assert_eq!(two.finished(100).await, u64::from(TASKS) * len);
    let expected = gathered(0..TASKS, 1, len);
    assert!(cluster.read(&second, 100).await.unwrap() == expected);
    assert!(figure(&first, "oxidask_worker_read_back_bytes_total").await > 20 * MEBIBYTE);
    // Serving them has brought nothing back into memory.
    assert!(figure(&first, "oxidask_worker_held_bytes").await <= 32 * MEBIBYTE);
    // A whole result from the disk.
    let whole = cluster.read(&first, 0).await.unwrap();
    assert!(whole[3 * 8..] == [gathered([0], 0, len), gathered([0], 1, len)].concat());

    // Nothing is left behind, whatever is just being written.
    make(&mut one, 200..204, 2, len).await;
    let start = Instant::now();
    let spill_dir = first.scratch.path().join("spill");
    first.stop.cancel();
    tokio::time::timeout(harness::PATIENCE, first.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    while std::fs::read_dir(&spill_dir).unwrap().count() > 0 {
        assert!(start.elapsed() < Duration::from_secs(2), "files are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
