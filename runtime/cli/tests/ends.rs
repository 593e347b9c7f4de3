//! Every way in which a local run ends early: signals, and processes that are killed.

mod support;

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use support::{Workspace, eventually, signal};

const TIDY: Duration = Duration::from_secs(2);
const LONG: &str = "{\"key\": \"a\", \"op\": \"sleep\", \"args\": {\"seconds\": 100}}\n\
                    {\"key\": \"b\", \"op\": \"exec\", \"args\": {\"command\": [\"sleep\", \"100\"]}}\n";

/// So many short sleeps and their sum.
fn sleeps(count: usize, seconds: f64) -> String {
    let mut lines = String::new();
    for number in 0..count {
        let _ = write!(
            lines,
            "{{\"key\": \"nap-{number}\", \"op\": \"sleep\", \"args\": {{\"seconds\": {seconds}}}}}\n\
             {{\"key\": \"n-{number}\", \"op\": \"value\", \"inputs\": [\"nap-{number}\"], \
             \"args\": {{\"value\": {number}}}}}\n"
        );
    }
    let inputs: Vec<String> = (0..count).map(|number| format!("\"n-{number}\"")).collect();
    let _ = writeln!(
        lines,
        "{{\"key\": \"total\", \"op\": \"sum\", \"inputs\": [{}]}}",
        inputs.join(", ")
    );
    lines
}

#[test]
fn signals_end_a_run_tidily() {
    for (kind, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let workspace = Workspace::new();
        workspace.graph_job(2, LONG);
        let run = workspace.start(&["run", "job.yaml"]);
        eventually("the running program", TIDY * 5, || {
            workspace
                .processes()
                .iter()
                .any(|(_, line)| line.starts_with("sleep "))
        });
        assert_eq!(workspace.leftovers().len(), 1);
        run.signal(kind);
        let run = run.finish_within(TIDY).expect(status);
        run.assert_stderr("error[OX114]: interrupted");
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing() {
    for delay_ms in [1, 5, 10, 20, 40, 80, 160] {
        let workspace = Workspace::new();
        workspace.graph_job(2, LONG);
        let run = workspace.start(&["run", "job.yaml"]);
        sleep(Duration::from_millis(delay_ms));
        // Not SIGINT, which shells let background jobs, these tests perhaps, ignore from the start.
        run.signal(Signal::TERM);
        let run = run.finish_within(TIDY);
        // Before the signals are taken over, the system itself ends the process.
        assert!(matches!(run.status, None | Some(143)), "{run:?}");
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let workspace = Workspace::new();
    workspace.graph_job(2, LONG);
    let run = workspace.start(&["run", "job.yaml"]);
    let worker = workspace.service("default-0");
    workspace.service("default-1");
    // A worker that cannot end tidily.
    signal(worker, Signal::STOP);
    run.signal(Signal::INT);
    sleep(Duration::from_millis(100));
    run.signal(Signal::INT);
    run.finish_within(Duration::from_millis(300)).expect(130);
    eventually("the end of all processes", TIDY, || {
        workspace.processes().is_empty()
    });
}

#[test]
fn processes_die_with_a_parent_that_is_killed_and_the_next_run_cleans_up() {
    let workspace = Workspace::new();
    workspace.graph_job(2, LONG);
    let run = workspace.start(&["run", "job.yaml"]);
    eventually("the running program", TIDY * 5, || {
        workspace
            .processes()
            .iter()
            .any(|(_, line)| line.starts_with("sleep "))
    });
    // The guard of such programs starts with the first of them.
    workspace.service("exec-guard");
    sleep(Duration::from_millis(100));
    run.signal(Signal::KILL);
    drop(run.finish());
    eventually("the end of all processes", TIDY, || {
        workspace.processes().is_empty()
    });
    assert_eq!(workspace.leftovers().len(), 1);
    workspace.graph_job(1, "{\"key\": \"a\", \"op\": \"noop\"}\n");
    workspace.run(&["run", "job.yaml"]).expect(0);
    workspace.assert_clean(TIDY);
}

/// A pod that is deleted gets SIGTERM, one that needs too much memory SIGKILL.
#[test]
fn a_worker_that_ends_changes_no_result() {
    for (kind, how) in [(Signal::KILL, "SIGKILL"), (Signal::TERM, "exit status 0")] {
        let workspace = Workspace::new();
        workspace.graph_job(2, &sleeps(40, 0.05));
        let run = workspace.start(&["run", "job.yaml"]);
        let worker = workspace.service("default-1");
        sleep(Duration::from_millis(600));
        signal(worker, kind);
        let run = run.finish().expect(0);
        assert_eq!(run.stdout, "{\"key\":\"total\",\"value\":780}\n");
        let lines: Vec<&str> = run
            .stderr
            .lines()
            .filter(|line| line.contains("died"))
            .collect();
        assert_eq!(lines.len(), 1, "{}", run.stderr);
        assert!(
            lines[0].contains("`default-1`") && lines[0].contains(how),
            "{}",
            lines[0]
        );
        assert!(!run.stderr.contains("error"), "{}", run.stderr);
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn a_worker_that_is_killed_again_and_again_is_given_up() {
    let workspace = Workspace::new();
    workspace.graph_job(2, "{\"key\": \"a\", \"op\": \"sleep\", \"args\": {\"seconds\": 100}, \"workers\": [\"default-0\"]}\n");
    let run = workspace.start(&["run", "job.yaml"]);
    let mut killed = Vec::new();
    for _ in 0..6 {
        eventually("the worker", TIDY * 5, || {
            let alive = workspace.services("default-1");
            match alive.iter().find(|pid| !killed.contains(*pid)) {
                Some(pid) => {
                    signal(*pid, Signal::KILL);
                    killed.push(*pid);
                    true
                }
                None => false,
            }
        });
    }
    let run = run.finish_within(TIDY * 2).expect(1);
    run.assert_stderr("error[OX111]: worker `default-1` ended 6 times");
    workspace.assert_clean(TIDY);
}
