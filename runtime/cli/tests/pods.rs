//! The services and `submit` as pods run them: started in any order, ended and started again, with
//! nothing but a folder of certificates and one for temporary files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use oxidask_identity::Role;
use oxidask_pki::Authority;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Running, Workspace, eventually};

const HOUR: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_secs(15);
/// A service that is asked to end has ended by then.
const TIDY: Duration = Duration::from_millis(1_500);
const SCHEDULER_TIDY: Duration = Duration::from_secs(1);

/// A cluster of which every process is started and ended by the test.
struct Pods {
    workspace: Workspace,
    /// The port behind the scheduler's name, which outlives each scheduler.
    port: u16,
    address: String,
}

impl Pods {
    fn new() -> Self {
        oxidask_comm::install_crypto_provider();
        let workspace = Workspace::new();
        let authority = Authority::new("local", "pods").unwrap();
        for role in [Role::Scheduler, Role::Worker, Role::Client] {
            let folder = workspace.path().join(role.to_string());
            authority.write_dir(&folder, role, HOUR).unwrap();
        }
        // Free now, and nothing else of this machine asks for it.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        Self {
            workspace,
            port,
            address: format!("oxidask://localhost:{port}"),
        }
    }

    fn scheduler(&self) -> Running {
        let mut command = self.workspace.command(&["scheduler", "--http-port", "0"]);
        command
            .env("OXIDASK_BIND", "127.0.0.1")
            .env("OXIDASK_PORT", self.port.to_string())
            .env("OXIDASK_TLS_DIR", "scheduler");
        let scheduler = Running::spawn(command);
        scheduler.await_stdout("\"ready\":\"scheduler\"");
        scheduler
    }

    /// A worker, and the port of its open paths.
    fn worker(&self, name: &str, environment: &[(&str, &str)]) -> (Running, String) {
        let mut command = self
            .workspace
            .command(&["worker", "--port=0", "--http-port=0"]);
        command
            .env("OXIDASK_TLS_DIR", "worker")
            .env("OXIDASK_THREADS", "1")
            .env("DASK_SCHEDULER_ADDRESS", &self.address)
            .env("DASK_WORKER_NAME", name)
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        let worker = Running::spawn(command);
        worker.await_stdout("\"ready\":\"worker\"");
        let ready: Value = serde_json::from_str(worker.stdout().trim()).unwrap();
        let http = ready["http"].as_str().unwrap();
        (worker, http.replace("http://0.0.0.0", "127.0.0.1"))
    }

    fn submit(&self, file: &str, flags: &[&str]) -> Running {
        let mut command = self.workspace.command(&["submit", file, "-o", "json"]);
        command
            .args(flags)
            .env("OXIDASK_TLS_DIR", "client")
            .env("DASK_SCHEDULER_ADDRESS", &self.address);
        Running::spawn(command)
    }

    /// A manifest as the API server keeps it.
    fn job(&self, work: &Value) {
        let mut manifest = json!({
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskJob",
            "metadata": {
                "name": "job", "namespace": "team", "uid": "a7c1", "generation": 1,
                "resourceVersion": "4711", "creationTimestamp": null, "labels": {},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {".": {}}}}],
            },
            "spec": {"cluster": {"spec": {"worker": {"replicas": 2, "env": null}}}},
            "status": {"jobStatus": "ClusterCreated"},
        });
        let (kind, value) = work.as_object().unwrap().iter().next().unwrap();
        manifest["spec"][kind] = value.clone();
        self.workspace.write("job.json", manifest.to_string());
    }
}

/// Status of an open path; 0 if nobody answers.
fn status(http: &str, path: &str) -> u16 {
    let asked = || {
        let mut stream = TcpStream::connect(http).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    asked().unwrap_or(0)
}

fn value_of_one() -> Value {
    json!({"graph": {"tasks": [{"key": "a", "op": "value", "args": {"value": 1}}]}})
}

#[test]
fn everything_finds_its_scheduler_and_the_next_one() {
    let pods = Pods::new();
    pods.job(&value_of_one());
    let (worker, http) = pods.worker("w", &[]);
    let submit = pods.submit("job.json", &["--wait-seconds", "60"]);
    worker.await_stderr("worker `w` cannot reach the scheduler");
    submit.await_stderr("waiting for the scheduler: ");
    assert_eq!(
        (status(&http, "/livez"), status(&http, "/readyz")),
        (200, 503)
    );

    let scheduler = pods.scheduler();
    assert_eq!(
        submit.finish().expect(0).stdout,
        "{\"key\":\"a\",\"value\":1}\n"
    );
    assert_eq!(status(&http, "/readyz"), 200);

    for kind in [Signal::KILL, Signal::TERM] {
        let scheduler = if kind == Signal::KILL {
            &scheduler
        } else {
            &pods.scheduler()
        };
        eventually("the registration", SOON, || status(&http, "/readyz") == 200);
        scheduler.signal(kind);
        eventually("its end", SOON, || status(&http, "/readyz") == 503);
    }
    let scheduler = pods.scheduler();
    let submit = pods.submit("job.json", &["--wait-seconds", "60"]);
    assert_eq!(
        submit.finish().expect(0).stdout,
        "{\"key\":\"a\",\"value\":1}\n"
    );
    let told = worker.stderr();
    let lines = |text: &str| told.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("registered worker="), 3, "{told}");
    assert!(lines("cannot reach the scheduler") <= 6, "{told}");

    worker.signal(Signal::TERM);
    worker.finish_within(TIDY).expect(0);
    scheduler.signal(Signal::TERM);
    scheduler.finish_within(SCHEDULER_TIDY).expect(0);
    assert_eq!(pods.workspace.leftovers().len(), 0);
}

#[test]
fn a_service_ends_quickly_whatever_it_is_doing() {
    let pods = Pods::new();
    let sleep = json!({"key": "a", "op": "sleep", "args": {"seconds": 100}});
    pods.job(&json!({"graph": {"tasks": [sleep]}}));
    // One that looks for a scheduler, and one with a task.
    let (lonely, _) = pods.worker("lonely", &[]);
    lonely.signal(Signal::TERM);
    lonely.finish_within(TIDY).expect(0);
    let scheduler = pods.scheduler();
    let (worker, _) = pods.worker("w", &[]);
    let flags = ["--progress", "plain", "--reconnect-seconds", "0"];
    let submit = pods.submit("job.json", &flags);
    submit.await_stderr("1 of 1 slot busy");
    // Its task would be waited for, and nobody could take what it makes: the second one ends it.
    worker.signal(Signal::TERM);
    worker.await_stderr("hands over what only it has");
    worker.signal(Signal::TERM);
    worker.finish_within(TIDY).expect(143);
    submit.await_stderr("worker w died");
    scheduler.signal(Signal::TERM);
    scheduler.finish_within(SCHEDULER_TIDY).expect(0);
    submit
        .finish_within(SOON)
        .expect(1)
        .assert_error("submit", "OX112", &["scheduler"]);
}

#[test]
fn a_worker_ends_when_its_time_or_its_chance_is_over() {
    let pods = Pods::new();
    let (impatient, _) = pods.worker("w", &[("OXIDASK_RECONNECT_SECONDS", "1")]);
    let ended = impatient.finish_within(SOON).expect(1);
    ended.assert_error(
        "time",
        "OX113",
        &["no scheduler for `1` s", "cannot be reached"],
    );

    let _scheduler = pods.scheduler();
    let (client, _) = pods.worker("w", &[("OXIDASK_TLS_DIR", "client")]);
    client
        .finish_within(SOON)
        .expect(1)
        .assert_stderr("error[OX40");
    let stranger = Authority::new("local", "stranger").unwrap();
    let folder = pods.workspace.path().join("stranger");
    stranger.write_dir(&folder, Role::Worker, HOUR).unwrap();
    let (stranger, _) = pods.worker("w", &[("OXIDASK_TLS_DIR", "stranger")]);
    stranger
        .finish_within(SOON)
        .expect(1)
        .assert_stderr("error[OX40");
}

#[test]
fn a_restarted_container_takes_the_name_of_the_one_before() {
    let pods = Pods::new();
    let _scheduler = pods.scheduler();
    let (first, http) = pods.worker("w", &[]);
    eventually("the registration", SOON, || status(&http, "/readyz") == 200);
    let (second, http) = pods.worker("w", &[]);
    second.await_stderr("the scheduler refused worker `w`");
    first.signal(Signal::KILL);
    eventually("the registration", SOON, || status(&http, "/readyz") == 200);
}

#[test]
fn submit_waits_no_longer_than_it_should() {
    let pods = Pods::new();
    pods.job(&value_of_one());
    let run = pods
        .submit("job.json", &["--wait-seconds", "1"])
        .finish_within(SOON);
    run.assert_failed("submit", "OX113", &["cannot connect to the scheduler"], "");
    let waiting = pods.submit("job.json", &["--wait-seconds", "600"]);
    waiting.await_stderr("waiting for the scheduler: ");
    waiting.signal(Signal::TERM);
    waiting.finish_within(TIDY).expect(143);
    // What cannot change is told at once.
    let _scheduler = pods.scheduler();
    let run = pods.submit(
        "job.json",
        &["--wait-seconds", "600", "--tls-dir", "worker"],
    );
    run.finish_within(SOON)
        .expect(1)
        .assert_stderr("error[OX40");
}

#[test]
fn what_nobody_offers_waits_and_says_so() {
    let pods = Pods::new();
    let task = json!({"key": "a", "op": "value", "args": {"value": 2}, "resources": {"gpu": 1}});
    pods.job(&json!({"graph": {"tasks": [task]}}));
    let _scheduler = pods.scheduler();
    let submit = pods.submit("job.json", &["--progress", "plain"]);
    submit.await_stderr("waiting for workers: 0 of 2; 0 of 1 task done");
    let (_plain, _) = pods.worker("plain", &[]);
    submit.await_stderr("1 task cannot run: task `a` needs 1 of resource `gpu`");
    let (_special, _) = pods.worker("special", &[("OXIDASK_RESOURCES", "gpu=1")]);
    assert_eq!(
        submit.finish().expect(0).stdout,
        "{\"key\":\"a\",\"value\":2}\n"
    );
}

#[test]
fn only_the_beginning_of_a_large_output_is_printed() {
    let pods = Pods::new();
    let statements = "SELECT value AS n FROM generate_series(1, 1000);\n\
                      SELECT value AS m FROM generate_series(1, 500);\n";
    pods.job(&json!({"sql": {"statements": statements}}));
    let _scheduler = pods.scheduler();
    let (_worker, _) = pods.worker("w", &[]);
    let all = pods.submit("job.json", &[]).finish().expect(0);
    assert_eq!(all.stdout.lines().count(), 1_500);
    assert!(!all.stderr.contains("left out"), "{}", all.stderr);
    for (flag, limit, rows, bytes) in [
        ("--rows-max", "3", 3, "24 B"),
        ("--output-bytes-max", "20", 2, "16 B"),
    ] {
        let run = pods.submit("job.json", &[flag, limit]).finish().expect(0);
        assert_eq!(run.stdout.lines().count(), rows, "{}", run.stdout);
        assert!(all.stdout.starts_with(&run.stdout));
        let left_out = format!(
            "printed {rows} rows ({bytes}) and left out {} rows: ",
            ["1,497", "1,498"][usize::from(rows == 2)]
        );
        run.assert_stderr(&left_out);
        run.assert_stderr("COPY … TO");
        run.assert_stderr("done: 2 tasks");
    }
}

/// Lines of a file, none if there is no such file.
fn lines(pods: &Pods, name: &str) -> usize {
    let text = std::fs::read_to_string(pods.workspace.path().join(name)).unwrap_or_default();
    text.lines().count()
}

#[test]
fn another_submission_of_the_same_run_goes_on_and_runs_nothing_twice() {
    const TASKS: usize = 24;
    for signal in [Signal::KILL, Signal::TERM] {
        let pods = Pods::new();
        let _scheduler = pods.scheduler();
        let _worker = pods.worker("w", &[]);
        let log = pods.workspace.path().join("log");
        let script = format!("echo x >> {}; sleep 0.1", log.display());
        let task = |number: usize| {
            let args = json!({"command": ["sh", "-c", script]});
            json!({"key": format!("t-{number:02}"), "op": "exec", "args": args})
        };
        let tasks: Vec<Value> = (0..TASKS).map(task).collect();
        pods.job(&json!({"graph": {"tasks": tasks}}));
        let first = pods.submit("job.json", &["--run-id", "a7c1-1"]);
        eventually("some tasks to run", SOON, || lines(&pods, "log") >= 5);
        first.signal(signal);
        let first = first.finish();
        if signal == Signal::TERM {
            first.expect(143);
        }
        let begun = lines(&pods, "log");
        assert!(begun < TASKS, "too late to show anything");
        let second = pods.submit("job.json", &["--run-id", "a7c1-1"]).finish();
        let printed = second.expect(0).stdout.clone();
        assert_eq!(printed.lines().count(), TASKS, "{printed}");
        assert_eq!(lines(&pods, "log"), TASKS, "nothing ran twice");
        // With a name of its own it is other work.
        pods.submit("job.json", &["--run-id", "a7c1-2"])
            .finish()
            .expect(0);
        assert_eq!(lines(&pods, "log"), 2 * TASKS);
    }
}

#[test]
fn another_submission_of_a_script_finds_its_statements_where_they_are() {
    let pods = Pods::new();
    let _scheduler = pods.scheduler();
    let _worker = pods.worker("w", &[]);
    pods.workspace.write("numbers.csv", "n\n1\n2\n3\n");
    let folder = pods.workspace.path().display();
    let statements = format!(
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{folder}/numbers.csv' \
         OPTIONS ('has_header' 'true'); \
         COPY (SELECT n + 1 AS n FROM t) TO '{folder}/out/' STORED AS CSV; \
         SELECT sum(n) AS n FROM t; SELECT count(*) AS n FROM t"
    );
    pods.job(&json!({"sql": {"statements": statements}}));
    let run = || pods.submit("job.json", &["--run-id", "r"]);
    // Killed when the first one has written: a second COPY would be refused.
    let first = run();
    eventually("the copy to be there", SOON, || {
        pods.workspace.path().join("out").exists()
    });
    first.signal(Signal::KILL);
    let _ = first.finish();
    let second = run().finish();
    let printed = second.expect(0).stdout;
    assert_eq!(printed, "{\"n\":6}\n{\"n\":3}\n");
}
