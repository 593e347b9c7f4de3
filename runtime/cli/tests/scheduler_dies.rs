//! The scheduler is killed in the middle of a job: the job goes on, and nothing that is there is
//! computed again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Finished, PATIENCE, Running, Workspace, eventually, signal};

const TIDY: Duration = Duration::from_secs(2);
/// Tasks that leave a line in a file each time they run, and all tasks of the graph.
const NOTED: usize = 600;
const TASKS: usize = 10_000;

/// A graph whose noted tasks take some milliseconds each and everything else nothing. Each noted
/// task writes its number and the id of its worker's process. The last task wants all their results,
/// so that none is freed before: it runs again only if the worker that holds it is lost.
fn graph(workspace: &Workspace) {
    let runs = workspace.path().join("runs");
    let mut lines = "{\"outputs\": [\"total\", \"end\"]}\n".to_owned();
    let noted: Vec<String> = (0..NOTED).map(|n| format!("\"noted-{n}\"")).collect();
    for n in 0..NOTED {
        let script = format!(
            "sleep 0.015; echo {n} $PPID >> {}; echo {n}",
            runs.display()
        );
        let _ = writeln!(
            lines,
            r#"{{"key": "noted-{n}", "op": "exec", "args": {{"command": ["sh", "-c", "{script}"]}}}}"#
        );
    }
    let mut inputs = Vec::new();
    for n in 0..TASKS - NOTED - 2 {
        let waits = n % NOTED;
        let _ = writeln!(
            lines,
            r#"{{"key": "v-{n}", "op": "value", "args": {{"value": {n}}}, "inputs": ["noted-{waits}"]}}"#
        );
        inputs.push(format!("\"v-{n}\""));
    }
    let _ = writeln!(
        lines,
        r#"{{"key": "total", "op": "sum", "inputs": [{}]}}"#,
        inputs.join(", ")
    );
    let _ = writeln!(
        lines,
        r#"{{"key": "end", "op": "value", "args": {{"value": 1}}, "inputs": ["total", {}]}}"#,
        noted.join(", ")
    );
    workspace.graph_job(2, &lines);
}

fn total() -> String {
    let values = TASKS - NOTED - 2;
    let sum = values * (values - 1) / 2;
    format!("{{\"key\":\"total\",\"value\":{sum}}}\n{{\"key\":\"end\",\"value\":1}}\n")
}

/// What the noted tasks have left: number and worker of each run, in order.
fn runs(workspace: &Workspace) -> Vec<(usize, i32)> {
    let text = fs::read_to_string(workspace.path().join("runs")).unwrap_or_default();
    let run = |line: &str| {
        let (number, worker) = line.split_once(' ').unwrap();
        (number.parse().unwrap(), worker.parse().unwrap())
    };
    text.lines().map(run).collect()
}

fn until_runs(workspace: &Workspace, count: usize) {
    eventually(&format!("{count} runs"), PATIENCE, || {
        runs(workspace).len() >= count
    });
}

/// Every noted task ran, and none twice whose first run was on a worker that lived.
fn assert_nothing_twice(workspace: &Workspace, dead: &BTreeSet<i32>) -> usize {
    let mut by_task: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
    for (number, worker) in runs(workspace) {
        by_task.entry(number).or_default().push(worker);
    }
    assert_eq!(by_task.len(), NOTED);
    let twice = by_task.iter().filter(|(_, workers)| workers.len() > 1);
    let (lost, without_cause): (Vec<_>, Vec<_>) =
        twice.partition(|(_, workers)| dead.contains(&workers[0]));
    assert!(without_cause.is_empty(), "{without_cause:?}");
    lost.len()
}

/// Kills the scheduler that runs, and waits for the next one.
fn kill_scheduler(workspace: &Workspace) -> i32 {
    let old = workspace.service("scheduler");
    signal(old, Signal::KILL);
    let mut new = old;
    eventually("the next scheduler", PATIENCE, || {
        let found = workspace.services("scheduler");
        new = found.into_iter().find(|pid| *pid != old).unwrap_or(old);
        new != old
    });
    new
}

fn assert_told(run: &Finished) {
    run.assert_stderr("the scheduler died (signal 9, SIGKILL");
    run.assert_stderr("it is started again (1 of 5)");
    assert_one_outage(run);
}

/// However many graphs a job has, an outage is told once.
fn assert_one_outage(run: &Finished) {
    for text in [
        "reconnecting to the scheduler",
        "connected to the scheduler again after",
    ] {
        assert_eq!(
            run.stderr.matches(text).count(),
            1,
            "{text}: {}",
            run.stderr
        );
    }
    assert!(!run.stderr.contains("error["), "{}", run.stderr);
}

#[test]
fn a_graph_under_run_goes_on() {
    let workspace = Workspace::new();
    graph(&workspace);
    let run = workspace.start(&["run", "job.yaml", "--threads", "2"]);
    until_runs(&workspace, NOTED / 3);
    kill_scheduler(&workspace);
    let run = run.finish().expect(0);
    assert_eq!(run.stdout, total());
    assert_told(&run);
    assert_nothing_twice(&workspace, &BTreeSet::new());
    assert_eq!(runs(&workspace).len(), NOTED, "each task ran once");
    workspace.assert_clean(TIDY);
}

/// A cluster that is up, and commands that use it.
struct Up {
    workspace: Workspace,
    process: Running,
    connect: Vec<String>,
    http: String,
}

impl Up {
    fn start(workers: u32, threads: &str) -> Self {
        let workspace = Workspace::new();
        workspace.cluster(workers);
        let process = workspace.start(&["up", "cluster.yaml", "--threads", threads]);
        process.await_stdout("oxidask submit");
        let value = |name: &str| {
            let text = process.stdout();
            let found = text.lines().find_map(|l| l.trim_start().strip_prefix(name));
            found.unwrap().trim().to_owned()
        };
        let connect = [
            "--scheduler",
            &value("scheduler "),
            "--tls-dir",
            &value("tls dir "),
        ];
        let connect = connect.map(str::to_owned).to_vec();
        let http = value("http ");
        Self {
            workspace,
            process,
            connect,
            http,
        }
    }

    fn command(&self, command: &[&str]) -> Running {
        let connect = self.connect.iter().map(String::as_str);
        let arguments: Vec<&str> = command.iter().copied().chain(connect).collect();
        self.workspace.start(&arguments)
    }

    fn until_workers(&self, count: usize) {
        eventually("the workers", PATIENCE, || {
            let status = self.command(&["status", "-o", "json"]).finish().expect(0);
            let lines = status.json();
            lines.iter().filter(|line| line["kind"] == "worker").count() == count
        });
    }

    fn end(self) {
        self.process.signal(Signal::INT);
        self.process.finish_within(TIDY).expect(130);
        self.workspace.assert_clean(TIDY);
    }
}

/// The address of HTTP as the standard library takes it.
fn is_served(http: &str) -> bool {
    let address = http.trim_start_matches("http://");
    let address = address.split(['/', '#']).next().unwrap_or_default();
    TcpStream::connect(address).is_ok()
}

#[test]
fn a_client_outside_goes_on_and_every_port_stays() {
    let up = Up::start(2, "2");
    up.until_workers(2);
    graph(&up.workspace);
    let submit = up.command(&["submit", "job.yaml"]);
    until_runs(&up.workspace, NOTED / 3);
    kill_scheduler(&up.workspace);
    let submit = submit.finish().expect(0);
    assert_eq!(submit.stdout, total());
    assert_one_outage(&submit);
    assert_nothing_twice(&up.workspace, &BTreeSet::new());
    assert_eq!(runs(&up.workspace).len(), NOTED, "each task ran once");
    up.process
        .await_stderr("the scheduler died (signal 9, SIGKILL");
    assert!(is_served(&up.http), "{}", up.http);
    up.until_workers(2);
    up.end();
}

/// A job of several statements, each of several stages.
fn sql_job(workspace: &Workspace) {
    let statements = "SET oxidask.stages = 'always'; SET oxidask.width = 6;
        CREATE VIEW numbers AS SELECT value AS n, value % 997 AS k
            FROM generate_series(1, 6000000);
        CREATE VIEW words AS SELECT value AS k, concat('word-', value) AS word
            FROM generate_series(0, 996);
        SELECT k, count(*) AS c, sum(n) AS s, avg(n) AS a FROM numbers GROUP BY k ORDER BY k LIMIT 20;
        SELECT word, max(n) AS most, count(DISTINCT n % 10007) AS d FROM numbers JOIN words USING (k)
            GROUP BY word ORDER BY word LIMIT 7;
        SELECT count(*) AS c FROM (SELECT DISTINCT n % 100003 AS m FROM numbers);";
    workspace.sql_job(2, statements);
}

#[test]
fn a_sql_job_of_several_stages_goes_on() {
    let workspace = Workspace::new();
    sql_job(&workspace);
    // The first run also reads the program from the disk: its time is no measure.
    workspace.run(&["run", "job.yaml"]).expect(0);
    let calm = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(calm.json().len(), 28);
    for share in [0.35, 0.6] {
        let run = workspace.start(&["run", "job.yaml"]);
        workspace.service("scheduler");
        sleep(calm.elapsed.mul_f64(share));
        kill_scheduler(&workspace);
        let run = run.finish().expect(0);
        assert_eq!(run.stdout, calm.stdout);
        run.assert_stderr("the scheduler died (signal 9, SIGKILL");
        assert!(!run.stderr.contains("error["), "{}", run.stderr);
        workspace.assert_clean(TIDY);
    }
    let up = Up::start(2, "1");
    up.until_workers(2);
    sql_job(&up.workspace);
    let submit = up.command(&["submit", "job.yaml"]);
    sleep(calm.elapsed.mul_f64(0.4));
    kill_scheduler(&up.workspace);
    let submit = submit.finish().expect(0);
    assert_eq!(submit.stdout, calm.stdout);
    up.end();
}

#[test]
fn a_scheduler_and_a_worker_at_once() {
    let workspace = Workspace::new();
    graph(&workspace);
    let run = workspace.start(&["run", "job.yaml", "--threads", "2"]);
    until_runs(&workspace, NOTED / 3);
    let worker = workspace.service("default-1");
    let before = runs(&workspace).len();
    signal(worker, Signal::KILL);
    kill_scheduler(&workspace);
    let run = run.finish().expect(0);
    assert_eq!(run.stdout, total());
    run.assert_stderr("worker `default-1` died (signal 9, SIGKILL");
    // Process 1 has adopted a program whose worker died before the program's first line.
    let lost = assert_nothing_twice(&workspace, &BTreeSet::from([worker, 1]));
    assert!(lost <= before, "{lost} of {before}");
    workspace.assert_clean(TIDY);
}

#[test]
fn a_scheduler_that_dies_while_it_recovers() {
    let workspace = Workspace::new();
    graph(&workspace);
    let run = workspace.start(&["run", "job.yaml", "--threads", "2"]);
    until_runs(&workspace, NOTED / 4);
    kill_scheduler(&workspace);
    // As soon as it is there, and a little later.
    for pause_ms in [0, 15, 60] {
        sleep(Duration::from_millis(pause_ms));
        kill_scheduler(&workspace);
    }
    let run = run.finish().expect(0);
    assert_eq!(run.stdout, total());
    run.assert_stderr("(4 of 5)");
    assert_nothing_twice(&workspace, &BTreeSet::new());
    assert_eq!(runs(&workspace).len(), NOTED, "each task ran once");
    workspace.assert_clean(TIDY);
}

#[test]
fn a_client_that_is_killed_takes_nobody_with_it() {
    let up = Up::start(2, "2");
    up.until_workers(2);
    graph(&up.workspace);
    let submit = up.command(&["submit", "job.yaml"]);
    until_runs(&up.workspace, NOTED / 4);
    submit.signal(Signal::KILL);
    drop(submit.finish());
    kill_scheduler(&up.workspace);
    up.workspace.write(
        "graph.jsonl",
        "{\"key\": \"a\", \"op\": \"value\", \"args\": {\"value\": 1}, \"priority\": 1}\n",
    );
    let next = up.command(&["submit", "job.yaml", "--wait-seconds", "30"]);
    assert_eq!(
        next.finish().expect(0).stdout,
        "{\"key\":\"a\",\"value\":1}\n"
    );
    up.end();
}

const LONG: &str =
    "{\"key\": \"a\", \"op\": \"exec\", \"args\": {\"command\": [\"sleep\", \"100\"]}}\n";

fn until_program_runs(workspace: &Workspace) {
    eventually("the running program", PATIENCE, || {
        let processes = workspace.processes();
        processes.iter().any(|(_, line)| line.starts_with("sleep "))
    });
}

#[test]
fn a_scheduler_that_is_killed_again_and_again_is_given_up() {
    let workspace = Workspace::new();
    workspace.graph_job(2, LONG);
    let run = workspace.start(&["run", "job.yaml"]);
    until_program_runs(&workspace);
    for _ in 0..5 {
        kill_scheduler(&workspace);
    }
    signal(workspace.service("scheduler"), Signal::KILL);
    let run = run.finish_within(Duration::from_secs(5)).expect(1);
    run.assert_stderr("error[OX112]: the scheduler ended 6 times within 60 s");
    run.assert_stderr("(5 of 5)");
    assert_eq!(run.stderr.matches("error[").count(), 1, "{}", run.stderr);
    workspace.assert_clean(TIDY);
}

#[test]
fn an_interrupt_without_a_scheduler_is_as_tidy_as_any() {
    for pause_ms in [0, 10, 100] {
        let workspace = Workspace::new();
        workspace.graph_job(2, LONG);
        let run = workspace.start(&["run", "job.yaml"]);
        until_program_runs(&workspace);
        signal(workspace.service("scheduler"), Signal::KILL);
        sleep(Duration::from_millis(pause_ms));
        run.signal(Signal::TERM);
        let run = run.finish_within(TIDY).expect(143);
        run.assert_stderr("error[OX114]: interrupted");
        workspace.assert_clean(TIDY);
    }
    // A client whose cluster is gone for good.
    let up = Up::start(1, "1");
    up.workspace.graph_job(1, LONG);
    let submit = up.command(&["submit", "job.yaml"]);
    until_program_runs(&up.workspace);
    let patient = up.command(&["submit", "job.yaml", "--reconnect-seconds", "1"]);
    eventually("the second job", PATIENCE, || {
        let status = up.command(&["status", "-o", "json"]).finish().expect(0);
        status
            .json()
            .iter()
            .filter(|line| line["kind"] == "graph")
            .count()
            == 2
    });
    up.process.signal(Signal::INT);
    submit.await_stderr("reconnecting to the scheduler");
    let began = Instant::now();
    submit.signal(Signal::INT);
    submit.finish_within(TIDY).expect(130);
    assert!(began.elapsed() < TIDY);
    let patient = patient.finish_within(TIDY * 5).expect(1);
    patient.assert_error("patience", "OX113", &["did not come back within `1` s"]);
}
