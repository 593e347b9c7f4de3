//! A worker is killed: how soon its tasks run elsewhere, and what is computed again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use support::{PATIENCE, Workspace, eventually, signal};

const TIDY: Duration = Duration::from_secs(2);
/// A task that ran on a worker that was killed runs elsewhere by then.
const ELSEWHERE: Duration = Duration::from_millis(500);

struct Start {
    task: String,
    worker: i32,
    at: Duration,
}

/// The starts of the tasks, in order.
fn starts(workspace: &Workspace) -> Vec<Start> {
    let text = fs::read_to_string(workspace.path().join("starts")).unwrap_or_default();
    let start = |line: &str| {
        let mut fields = line.split(' ');
        let mut next = || fields.next().unwrap().to_owned();
        Start {
            task: next(),
            worker: next().parse().unwrap(),
            at: Duration::from_nanos(next().parse().unwrap()),
        }
    };
    text.lines().map(start).collect()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// So many tasks that note when and where they start, and then take their time.
fn graph(workspace: &Workspace, tasks: usize, seconds: f64) {
    let file = workspace.path().join("starts");
    let mut lines = String::new();
    for n in 0..tasks {
        let script = format!(
            "echo t-{n} $PPID $(date +%s%N) >> {}; sleep {seconds}; echo {n}",
            file.display()
        );
        let _ = writeln!(
            lines,
            r#"{{"key": "t-{n}", "op": "exec", "args": {{"command": ["sh", "-c", "{script}"]}}}}"#
        );
    }
    workspace.graph_job(2, &lines);
}

#[test]
fn its_tasks_run_elsewhere_at_once() {
    let mut times = Vec::new();
    for _ in 0..3 {
        let workspace = Workspace::new();
        graph(&workspace, 4, 2.0);
        let run = workspace.start(&["run", "job.yaml", "--threads", "4"]);
        eventually("all tasks", PATIENCE, || starts(&workspace).len() == 4);
        sleep(Duration::from_millis(100));
        // Whichever has work: the first to join may have all of it.
        let before = starts(&workspace);
        let worker = before[0].worker;
        assert!(workspace.services("worker").contains(&worker));
        let running = before.iter().filter(|s| s.worker == worker).count();
        let killed_at = now();
        signal(worker, Signal::KILL);
        eventually("the tasks elsewhere", PATIENCE, || {
            starts(&workspace).len() == 4 + running
        });
        for start in &starts(&workspace)[4..] {
            times.push(start.at.saturating_sub(killed_at));
            assert_ne!(start.worker, worker);
        }
        let run = run.finish().expect(0);
        assert_eq!(run.stdout.lines().count(), 4);
        run.assert_stderr("died (signal 9, SIGKILL");
        let starts = starts(&workspace);
        assert_eq!(starts.len(), 4 + running, "only what ran there runs again");
        let tasks: Vec<&str> = starts.iter().map(|start| start.task.as_str()).collect();
        for task in &tasks[4..] {
            assert!(tasks[..4].contains(task));
        }
        workspace.assert_clean(TIDY);
    }
    times.sort_unstable();
    println!("from the kill to the start elsewhere: {times:?}");
    assert!(times.iter().all(|time| *time < ELSEWHERE), "{times:?}");
}

#[test]
fn every_worker_at_once() {
    let workspace = Workspace::new();
    graph(&workspace, 40, 0.05);
    let run = workspace.start(&["run", "job.yaml", "--threads", "2"]);
    eventually("a few tasks", PATIENCE, || starts(&workspace).len() >= 20);
    for worker in workspace.services("worker") {
        signal(worker, Signal::KILL);
    }
    let run = run.finish().expect(0);
    assert_eq!(run.stdout.lines().count(), 40);
    workspace.assert_clean(TIDY);
}
