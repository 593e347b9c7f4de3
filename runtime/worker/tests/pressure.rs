//! Workers whose whole process, with its programs or its control group, is short of memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{Cluster, Joined, PATIENCE, Settings, Worker, assign, figure, http, order};
use oxidask_diagnostic::Code;
use oxidask_exec::Body;
use oxidask_proto::wire::order::Order;
use oxidask_worker::MemoryThresholds;
use serde_json::json;
use tempfile::TempDir;

const MEBIBYTE: u64 = 1 << 20;
const GIBIBYTE: u64 = 1 << 30;
const MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

/// A control group that says what a test wants.
struct Group(TempDir);

impl Group {
    fn new(limit_bytes: u64) -> Self {
        let group = Self(TempDir::new().unwrap());
        for folder in ["proc/self", "sys/fs/cgroup"] {
            std::fs::create_dir_all(group.0.path().join(folder)).unwrap();
        }
        group.write("proc/self/cgroup", "0::/\n");
        group.write("proc/self/mountinfo", MOUNT);
        group.write("sys/fs/cgroup/memory.max", &format!("{limit_bytes}\n"));
        group.write("sys/fs/cgroup/memory.events", "oom 0\noom_kill 0\n");
        group.write("sys/fs/cgroup/memory.stat", "inactive_file 1048576\n");
        group.uses(MEBIBYTE);
        group
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.0.path().join(path), text).unwrap();
    }

    /// Besides what the system could take back at once.
    fn uses(&self, bytes: u64) {
        let text = format!("{}\n", bytes + MEBIBYTE);
        self.write("sys/fs/cgroup/memory.current", &text);
    }

    fn uses_percent(&self, percent: u64) {
        self.uses(GIBIBYTE / 100 * percent);
    }

    /// A worker to which the group belongs.
    fn settings(&self, slots: u32) -> Settings {
        Settings {
            memory_thresholds: MemoryThresholds::default(),
            system_dir: self.0.path().into(),
            ..Settings::spilling(slots, GIBIBYTE)
        }
    }
}

fn noop() -> Body {
    Body::new("noop")
}

fn hoard(bytes: u64) -> Body {
    Body::new("hoard").with("bytes", bytes)
}

fn shell(script: &str) -> Body {
    Body::new("exec").with("command", json!(["sh", "-c", script]))
}

/// Says something, and then holds that much memory: `tail` keeps a line that has not ended.
fn hungry(mebibytes: u64) -> Body {
    let bytes = mebibytes * MEBIBYTE;
    shell(&format!(
        "echo {mebibytes} MiB >&2; (head -c {bytes} /dev/zero; sleep 60) | tail -n 1"
    ))
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

async fn until_paused(joined: &mut Joined, is_paused: bool) {
    let what = if is_paused { "a pause" } else { "its end" };
    joined
        .until(what, |joined| joined.is_paused == Some(is_paused))
        .await;
}

async fn start(joined: &mut Joined, task: u32, body: &Body) {
    joined.order([order(assign(task, body))]).await;
    joined
        .until("a start", |joined| joined.has_started(task))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_control_group_pauses_the_worker_and_the_scheduler_is_told() {
    let mut cluster = Cluster::start().await;
    let group = Group::new(GIBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, group.settings(2)).await;
    joined.order([order(assign(1, &noop()))]).await;
    joined.finished(1).await;
    assert_eq!(joined.is_paused, None);
    group.uses_percent(85);
    until_paused(&mut joined, true).await;
    joined.order([order(assign(2, &noop()))]).await;
    until_figure(&worker, "oxidask_worker_tasks_queued", |queued| queued == 1).await;
    assert_eq!(figure(&worker, "oxidask_worker_paused").await, 1);
    assert_eq!(figure(&worker, "oxidask_worker_memory_paused").await, 1);
    // Between the two shares nothing changes.
    group.uses_percent(72);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(figure(&worker, "oxidask_worker_tasks_queued").await, 1);
    group.uses_percent(60);
    until_paused(&mut joined, false).await;
    joined.finished(2).await;
    joined
        .until("a beat", |joined| {
            joined
                .heartbeat
                .as_ref()
                .is_some_and(|beat| beat.limit_bytes == GIBIBYTE)
        })
        .await;
    assert!(joined.heartbeat.unwrap().resident_bytes > MEBIBYTE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_go_to_the_disk_when_the_control_group_is_short() {
    let mut cluster = Cluster::start().await;
    let group = Group::new(GIBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, group.settings(1)).await;
    for task in 0..4 {
        let body = Body::new("bytes")
            .with("len", 8 * MEBIBYTE)
            .with("seed", task);
        joined.order([order(assign(task, &body))]).await;
        joined.finished(task).await;
    }
    assert_eq!(
        figure(&worker, "oxidask_worker_spilled_bytes_total").await,
        0
    );
    group.uses_percent(75);
    // 15 % of the limit are too much, and there are 3 % to be had.
    until_figure(&worker, "oxidask_worker_held_bytes", |held| held == 0).await;
    assert!(figure(&worker, "oxidask_worker_spilled_bytes_total").await >= 32 * MEBIBYTE);
    assert!(joined.is_paused.is_none());
    let text = http(worker.http, "/metrics").await;
    for line in [
        "dask_worker_memory_bytes{type=\"managed\"} 0",
        "dask_worker_threads 1",
        "dask_worker_tasks{state=\"executing\"} 0",
        "dask_worker_spill_count_total{activity=\"disk-write\"} 4",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert_eq!(cluster.read(&worker, 2).await.unwrap().len(), 8 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_program_is_ended_before_the_system_acts_and_the_others_go_on() {
    let mut cluster = Cluster::start().await;
    let nothing = TempDir::new().unwrap();
    let settings = Settings {
        memory_thresholds: MemoryThresholds::default(),
        system_dir: nothing.path().into(),
        ..Settings::new(2, 256 * MEBIBYTE)
    };
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    start(&mut joined, 1, &hungry(60)).await;
    let programs = "oxidask_worker_program_bytes";
    until_figure(&worker, programs, |bytes| bytes > 60 * MEBIBYTE).await;
    joined.order([order(assign(2, &hungry(220)))]).await;
    let (fault, is_retryable) = joined.failed(2).await;
    assert_eq!(fault.code, Code::MemoryRanOut.to_string(), "{fault:?}");
    assert!(is_retryable);
    // How far it came before it was seen depends on how busy the machine is.
    let message = "the program `sh` was ended because memory ran out: it used ";
    let used = mebibytes_after(&fault.message, message);
    assert!((100.0..230.0).contains(&used), "{fault:?}");
    assert!(
        fault.message.ends_with("of the worker's 256.0 MiB"),
        "{fault:?}"
    );
    assert!(fault.causes[0].contains("were used in all"), "{fault:?}");
    let most = mebibytes_after(&fault.causes[1], "it was seen to use at most ");
    assert!((used..230.0).contains(&most), "{fault:?}");
    assert!(fault.causes[2].ends_with("220 MiB"), "{fault:?}");
    // What others use is none of its business.
    let ended = "oxidask_worker_memory_programs_ended_total";
    assert_eq!(figure(&worker, ended).await, 1);
    until_figure(&worker, programs, |bytes| bytes < 100 * MEBIBYTE).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(figure(&worker, ended).await, 1);
    assert_eq!(figure(&worker, "oxidask_worker_programs").await, 1);
    let lines = |joined: &Joined| {
        let lines = joined.log_lines.iter();
        let line = |line: &oxidask_proto::wire::LogLine| {
            (
                line.text.clone(),
                line.graph.clone(),
                line.key.clone(),
                line.attempt,
            )
        };
        lines.map(line).collect::<Vec<_>>()
    };
    joined
        .until("the lines of both", |joined| joined.log_lines.len() >= 2)
        .await;
    let (first, second) = (assign(1, &noop()), assign(2, &noop()));
    let said = |text: &str, assign: &oxidask_proto::wire::Assign| {
        let graph = assign.graph.to_string();
        (text.to_owned(), graph, assign.key.clone(), assign.attempt)
    };
    let expected = [said("60 MiB", &first), said("220 MiB", &second)];
    assert_eq!(lines(&joined), expected);
    joined.order([Order::Cancel(harness::attempt(1))]).await;
    until_figure(&worker, "oxidask_worker_programs", |programs| programs == 0).await;
}

fn mebibytes_after(text: &str, start: &str) -> f64 {
    let rest = text.strip_prefix(start).unwrap();
    let (number, unit) = rest.split_once(' ').unwrap();
    assert!(unit.starts_with("MiB"), "{text}");
    number.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_programs_the_task_that_took_the_most_is_cancelled() {
    let mut cluster = Cluster::start().await;
    let group = Group::new(GIBIBYTE);
    let (worker, mut joined) = cluster.join_as(1, group.settings(2)).await;
    start(&mut joined, 1, &hoard(100 * MEBIBYTE)).await;
    start(&mut joined, 2, &hoard(300 * MEBIBYTE)).await;
    group.uses_percent(97);
    let (fault, is_retryable) = joined.failed(2).await;
    group.uses_percent(50);
    assert_eq!(fault.code, Code::MemoryRanOut.to_string());
    assert!(is_retryable);
    let name = assign(2, &noop()).key;
    assert!(fault.message.contains(&format!(
        "task `{name}` was cancelled because memory ran out"
    )));
    assert!(
        fault
            .message
            .contains(&format!("had taken `{}`", 300 * MEBIBYTE))
    );
    assert_eq!(
        figure(&worker, "oxidask_worker_memory_tasks_ended_total").await,
        1
    );
    assert_eq!(figure(&worker, "oxidask_worker_tasks_running").await, 1);
    // Now what is left could not help.
    group.uses_percent(110);
    until_figure(&worker, "oxidask_worker_memory_helpless", |is_so| {
        is_so == 1
    })
    .await;
    assert_eq!(
        figure(&worker, "oxidask_worker_memory_tasks_ended_total").await,
        1
    );
    group.uses_percent(50);
    until_figure(&worker, "oxidask_worker_memory_helpless", |is_so| {
        is_so == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_nothing_can_end_is_told_and_what_is_here_runs_one_by_one() {
    let mut cluster = Cluster::start().await;
    let group = Group::new(GIBIBYTE);
    group.uses_percent(85);
    let (worker, mut joined) = cluster.join_as(1, group.settings(2)).await;
    until_paused(&mut joined, true).await;
    let since = Instant::now();
    let sleep = Body::new("sleep").with("seconds", 0.2);
    joined
        .order([order(assign(1, &sleep)), order(assign(2, &sleep))])
        .await;
    joined.finished(1).await;
    joined.finished(2).await;
    assert!(
        since.elapsed() >= Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(figure(&worker, "oxidask_worker_memory_stuck").await, 1);
    assert_eq!(joined.is_paused, Some(true));
    group.uses_percent(10);
    until_paused(&mut joined, false).await;
    assert_eq!(figure(&worker, "oxidask_worker_memory_stuck").await, 0);
}
