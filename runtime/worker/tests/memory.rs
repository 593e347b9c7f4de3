//! Workers whose memory is too small for what they hold, over real TLS and with real files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Cluster, GRAPH, Joined, PATIENCE, Settings, Worker, assign, assign_streaming, assign_with,
    attempt, figure, order,
};
use oxidask_diagnostic::Code;
use oxidask_exec::Body;
use oxidask_proto::wire;
use oxidask_proto::wire::order::Order;
use oxidask_proto::wire::report::Outcome;
use tempfile::TempDir;

const MEBIBYTE: u64 = 1 << 20;
const CHILD: &str = "OXIDASK_TEST_CHILD";

fn buffer(len: u64, seed: u32) -> Body {
    Body::new("bytes").with("len", len).with("seed", seed)
}

fn digest() -> Body {
    Body::new("sha256")
}

fn gather() -> Body {
    Body::new("gather")
}

fn release(task: u32) -> Order {
    Order::Release(wire::TaskId { graph: GRAPH, task })
}

/// Buffers of this length, each with its task as seed.
async fn make(holder: &mut Joined, tasks: std::ops::Range<u32>, len: u64) {
    for task in tasks.clone() {
        holder
            .order([order(assign(task, &buffer(len, task)))])
            .await;
    }
    for task in tasks {
        holder.finished(task).await;
    }
}

async fn until_figure(worker: &Worker, name: &str, is_so: impl Fn(u64) -> bool) {
    let start = Instant::now();
    loop {
        let figure = figure(worker, name).await;
        if is_so(figure) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{name} is {figure}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The anonymous memory of this process.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.unwrap().split_whitespace().next().unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

/// A tree over buffers of four times the memory, in a process of its own.
#[test]
fn a_tree_larger_than_the_memory_finishes_and_the_process_stays_within_it() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_tree", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} is not in {text}"))
            .parse::<u64>()
            .unwrap()
    };
    let (before, peak) = (number("before: "), number("peak: "));
    println!("{} MiB before, {} MiB at most", before >> 20, peak >> 20);
    // Before means: with TLS, the scheduler of the test and its runtime.
    assert!(peak - before < 256 * MEBIBYTE * 6 / 5, "{}", peak - before);
}

/// Only does something as a child of the test above.
#[test]
fn the_tree() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(grow_tree());
}

async fn grow_tree() {
    const LEAVES: u32 = 16;
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 256 * MEBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    joined
        .order([order(assign(1_000, &Body::new("noop")))])
        .await;
    joined.finished(1_000).await;
    println!("before: {}", anonymous_bytes());
    let (peak, is_over) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (highest, ends) = (Arc::clone(&peak), Arc::clone(&is_over));
    let watching = std::thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            highest.fetch_max(anonymous_bytes(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    make(&mut joined, 0..LEAVES, 64 * MEBIBYTE).await;
    let (mut level, mut next): (Vec<u32>, _) = ((0..LEAVES).collect(), LEAVES);
    while level.len() > 1 {
        let mut above = Vec::new();
        for pair in level.chunks(2) {
            let inputs: Vec<_> = pair.iter().map(|task| (*task, 1)).collect();
            joined
                .order([order(assign_with(next, &digest(), &inputs))])
                .await;
            above.push(next);
            next += 1;
        }
        for task in &above {
            joined.finished(*task).await;
        }
        level = above;
    }
    is_over.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    assert!(figure(&worker, "oxidask_worker_spilled_bytes_total").await > 700 * MEBIBYTE);
    println!("peak: {}", peak.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_fit_fails_alone_and_says_what_it_needed() {
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 32 * MEBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    make(&mut joined, 0..10, 4 * MEBIBYTE).await;
    let inputs: Vec<_> = (0..10).map(|task| (task, 1)).collect();
    let slices = |count: u32| {
        Body::new("slices")
            .with("count", count)
            .with("len", 4 * MEBIBYTE)
    };
    let all = Body::new("concat");
    joined
        .order([
            order(assign_with(20, &digest(), &inputs)),
            order(assign(21, &slices(9))),
            // 24 MiB are shared with its inputs; the digest of a part of it fits, too.
            order(assign_with(22, &all, &inputs[..6])),
            order(assign_with(23, &digest(), &inputs[..7])),
        ])
        .await;
    let (fault, is_retryable) = joined.failed(20).await;
    assert_eq!(fault.code, Code::MemoryExceeded.to_string());
    let needed = "the inputs of task `t20` do not fit: they need `41943040` bytes";
    assert!(fault.message.contains(needed), "{fault:?}");
    assert!(!is_retryable);
    let (fault, is_retryable) = joined.failed(21).await;
    assert_eq!(fault.code, Code::MemoryExceeded.to_string());
    let needed = "the result of task `t21` does not fit: it needs `37748816` bytes";
    assert!(fault.message.contains(needed), "{fault:?}");
    assert!(!is_retryable);
    assert_eq!(joined.finished(22).await, 24 * MEBIBYTE);
    joined.finished(23).await;
    for task in 0..10 {
        let content = cluster.read(&worker, task).await.unwrap();
        assert_eq!(content.len() as u64, 4 * MEBIBYTE);
    }
}

/// A file system of a few mebibytes; gone with this.
struct TinyDisk(TempDir);

impl TinyDisk {
    /// None, if this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        let is_mounted = mounted.is_ok_and(|status| status.success());
        is_mounted.then_some(Self(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// The disk takes 8 MiB and no more, because it is so small or because the worker may not use more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_what_is_in_memory_stays_usable() {
    let settings = |spill_bytes_max: u64, spill_dir: Option<PathBuf>| Settings {
        spill_bytes_max,
        spill_dir,
        ..Settings::new(1, 32 * MEBIBYTE)
    };
    fill_up(settings(8 * MEBIBYTE, None)).await;
    match TinyDisk::mount(8 * MEBIBYTE) {
        Some(disk) => fill_up(settings(1 << 40, Some(disk.0.path().to_owned()))).await,
        None => println!("no file system can be mounted here: only the limit was tried"),
    }
}

async fn fill_up(settings: Settings) {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    let len = 3 * MEBIBYTE;
    let mut made = 0;
    let fault = loop {
        joined
            .order([order(assign(made, &buffer(len, made)))])
            .await;
        match joined.end_of(made).await {
            Outcome::Finished(_) => made += 1,
            Outcome::Failed(failed) => {
                assert!(failed.is_retryable, "there may be room later");
                break failed.fault.unwrap();
            }
            other => panic!("{other:?}"),
        }
        assert!(made < 20, "`{made}` buffers of 3 MiB fit into 32 + 8 MiB");
    };
    assert!(made >= 9, "{made}");
    assert_eq!(fault.code, Code::WorkerDisk.to_string());
    assert!(
        fault.message.contains(&format!("task `t{made}`")),
        "{fault:?}"
    );
    assert!(fault.message.contains("needs `3145728` bytes"), "{fault:?}");
    let text = harness::http(worker.http, "/metrics").await;
    assert!(text.contains("oxidask_worker_disk_full 1"), "{text}");
    // Everything that was made can be read, by tasks and by peers.
    for task in 0..made {
        let content = cluster.read(&worker, task).await.unwrap();
        assert_eq!(content.len() as u64, len, "{task}");
    }
    let inputs: Vec<_> = (0..made).map(|task| (task, 1)).collect();
    for (number, pair) in (100..).zip(inputs.chunks(2)) {
        joined
            .order([order(assign_with(number, &digest(), pair))])
            .await;
        joined.finished(number).await;
    }
    // Once something is released, there is room again.
    joined.order((0..4).map(release)).await;
    joined.order([order(assign(200, &buffer(len, 0)))]).await;
    joined.finished(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_run_starts_while_memory_is_short_and_all_start_in_the_end() {
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(2, 32 * MEBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    make(&mut joined, 0..1, 1_000).await;
    let greedy = gather()
        .with("take", 30 * MEBIBYTE)
        .with("page", 10)
        .with("pause_ms", 20);
    let streaming = |task| {
        order(assign_streaming(
            task,
            0,
            &greedy.clone().with("whole", 1),
            &[(0, 1)],
        ))
    };
    joined.order([streaming(1)]).await;
    joined
        .until("the start", |joined| joined.has_started(1))
        .await;
    until_figure(&worker, "oxidask_worker_paused", |is_paused| is_paused == 1).await;
    joined.order([order(assign(2, &Body::new("litter")))]).await;
    // Twenty looks at it: a second slot is free, and it does not start.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(figure(&worker, "oxidask_worker_tasks_running").await, 1);
    }
    joined.order([Order::Cancel(attempt(1))]).await;
    joined
        .until("the start", |joined| joined.has_started(2))
        .await;
    joined.order([Order::Cancel(attempt(2))]).await;

    // Each takes so much that no other starts beside it; nothing waits for ever.
    let quick = gather().with("whole", 1).with("take", 30 * MEBIBYTE);
    let orders = (10..30).map(|task| order(assign_streaming(task, 0, &quick, &[(0, 1)])));
    joined.order(orders.collect::<Vec<_>>()).await;
    for task in 10..30 {
        joined.finished(task).await;
    }
    until_figure(&worker, "oxidask_worker_paused", |is_paused| is_paused == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_a_run_has_taken_is_given_back_however_it_ends() {
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 256 * MEBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    make(&mut joined, 0..1, 1_000).await;
    let taking = || gather().with("whole", 1).with("take", 10 * MEBIBYTE);
    let reserved = || figure(&worker, "oxidask_worker_memory_reserved_bytes");
    joined
        .order([
            order(assign_streaming(1, 0, &taking(), &[(0, 1)])),
            order(assign_streaming(
                2,
                0,
                &taking().with("panic", 1),
                &[(0, 1)],
            )),
            order(assign_streaming(3, 0, &taking(), &[(77, 9)])),
        ])
        .await;
    joined.finished(1).await;
    assert_eq!(
        joined.failed(2).await.0.code,
        Code::TaskPanicked.to_string()
    );
    assert!(matches!(joined.end_of(3).await, Outcome::InputsLost(_)));
    assert_eq!(reserved().await, 0);
    let slow = taking().with("page", 1).with("pause_ms", 20);
    joined
        .order([order(assign_streaming(4, 0, &slow, &[(0, 1)]))])
        .await;
    joined
        .until("a heartbeat", |joined| {
            joined
                .heartbeat
                .as_ref()
                .is_some_and(|beat| beat.reserved_bytes == 10 * MEBIBYTE)
        })
        .await;
    joined.order([Order::Cancel(attempt(4))]).await;
    joined.order([order(assign(5, &Body::new("noop")))]).await;
    joined.finished(5).await;
    assert_eq!(reserved().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_when_nobody_waits_for_them_and_memory_is_short() {
    const TASKS: u32 = 24;
    let mut cluster = Cluster::start().await;
    let (first, mut holder) = cluster.join(1, 1, 1 << 30).await;
    let settings = Settings::spilling(1, 32 * MEBIBYTE);
    let (second, mut reader) = cluster.join_as(2, settings).await;
    make(&mut holder, 0..TASKS, 4 * MEBIBYTE).await;
    reader.introduce(1, first.data).await;
    // All are known at once: three times the memory is wanted.
    let assigned = |task| wire::Assign {
        input_bytes: vec![4 * MEBIBYTE],
        ..assign_with(100 + task, &digest(), &[(task, 1)])
    };
    let orders = (0..TASKS).map(|task| order(assigned(task)));
    reader.order(orders.collect::<Vec<_>>()).await;
    for task in 0..TASKS {
        reader.finished(100 + task).await;
        let held = figure(&second, "oxidask_worker_held_bytes").await;
        // A few more than fit on a busy machine: when nothing runs and nothing is on its way, one is
        // asked for whatever room there is.
        assert!(held <= 48 * MEBIBYTE, "{held}");
    }
    assert!(figure(&second, "oxidask_worker_copies_dropped_total").await > 8);
    let fetched = figure(&second, "oxidask_worker_fetched_bytes_total").await;
    assert_eq!(
        fetched,
        u64::from(TASKS) * 4 * MEBIBYTE,
        "something was fetched twice"
    );
    // The scheduler is told that they are no longer here.
    reader
        .until("what has gone", |reader| reader.copies_missing.len() > 8)
        .await;
    assert!(reader.copies_missing.iter().all(|missing| missing.1 == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spilled_result_that_is_damaged_is_lost_and_nothing_else() {
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 32 * MEBIBYTE);
    let (first, mut holder) = cluster.join_as(1, settings).await;
    let (_second, mut reader) = cluster.join(2, 1, 1 << 30).await;
    make(&mut holder, 0..16, 4 * MEBIBYTE).await;
    reader.introduce(1, first.data).await;
    let damaged = damage_two(&first.scratch.path().join("spill"));
    assert_ne!(damaged[0], damaged[1]);
    // One is read by a peer, one by a task of its own.
    let streaming = assign_streaming(100, 0, &gather().with("whole", 1), &[(damaged[0], 1)]);
    reader.order([order(streaming)]).await;
    let Outcome::InputsLost(lost) = reader.end_of(100).await else {
        panic!()
    };
    assert_eq!(
        (lost.lost[0].task.unwrap().task, lost.lost[0].worker),
        (damaged[0], 1)
    );
    holder
        .order([order(assign_with(101, &digest(), &[(damaged[1], 1)]))])
        .await;
    let Outcome::InputsLost(lost) = holder.end_of(101).await else {
        panic!()
    };
    assert_eq!(
        (lost.lost[0].task.unwrap().task, lost.lost[0].worker),
        (damaged[1], 1)
    );
    holder
        .until("both", |holder| holder.copies_missing.len() == 2)
        .await;
    for task in (0..16).filter(|task| !damaged.contains(task)) {
        assert!(cluster.read(&first, task).await.is_some(), "{task}");
    }
    assert_eq!(cluster.read(&first, damaged[0]).await, None);
    assert_eq!(
        figure(&first, "oxidask_worker_spill_damaged_total").await,
        2
    );
}

/// Changes a byte in two spill files. Returns whose they are.
fn damage_two(spill_dir: &Path) -> [u32; 2] {
    let mut damaged = Vec::new();
    for folder in std::fs::read_dir(spill_dir).unwrap() {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let Some(name) = name.strip_suffix(".spill") else {
                continue;
            };
            let task: u32 = name.split('-').nth(1).unwrap().parse().unwrap();
            let mut content = std::fs::read(&path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 0x10;
            std::fs::write(&path, content).unwrap();
            damaged.push(task);
            if damaged.len() == 2 {
                return [damaged[0], damaged[1]];
            }
        }
    }
    panic!(
        "only {damaged:?} were spilled below {}",
        spill_dir.display()
    )
}
