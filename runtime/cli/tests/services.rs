//! `up`, `submit`, `status`, and the services as pods run them.

mod support;

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use support::{Running, Workspace, eventually};

const TIDY: Duration = Duration::from_secs(2);

/// The value in a line such as `  scheduler  oxidask://…`.
fn value(text: &str, name: &str) -> String {
    let value = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name));
    value.unwrap_or_default().trim().to_owned()
}

#[test]
fn up_submit_and_status() {
    let workspace = Workspace::new();
    workspace.cluster(2);
    let up = workspace.start(&["up", "cluster.yaml"]);
    up.await_stdout("oxidask submit");
    let scheduler = value(&up.stdout(), "scheduler ");
    let tls_dir = value(&up.stdout(), "tls dir ");
    let connect = ["--scheduler", &scheduler, "--tls-dir", &tls_dir];
    let with = |command: &[&str]| -> Vec<String> {
        command
            .iter()
            .chain(&connect)
            .map(|&argument| argument.to_owned())
            .collect()
    };
    let run = |command: &[&str]| {
        let arguments = with(command);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        workspace.run(&arguments)
    };

    eventually("two workers", TIDY * 5, || {
        let status = run(&["status", "-o", "json"]).expect(0);
        status
            .json()
            .iter()
            .filter(|line| line["kind"] == "worker")
            .count()
            == 2
    });
    let table = run(&["status", "-o", "table"]).expect(0);
    assert!(
        table.stdout.contains("WORKER     GROUP    STANDING  SLOTS"),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("default-1  default  active    1"),
        "{}",
        table.stdout
    );

    workspace.graph_job(
        1,
        "{\"key\": \"a\", \"op\": \"value\", \"args\": {\"value\": [1]}}\n",
    );
    let submitted = run(&["submit", "job.yaml"]).expect(0);
    assert_eq!(submitted.stdout, "{\"key\":\"a\",\"value\":[1]}\n");
    submitted.assert_stderr("done: 1 task in ");
    // The same again: names of graphs do not meet.
    run(&["submit", "job.yaml"]).expect(0);
    workspace.graph_job(
        1,
        "{\"key\": \"a\", \"op\": \"fail\", \"args\": {\"message\": \"no\"}}\n",
    );
    run(&["submit", "job.yaml"])
        .expect(1)
        .assert_stderr("error[OX208]: ");

    up.signal(Signal::INT);
    up.finish_within(TIDY).expect(130);
    workspace.assert_clean(TIDY);
    let gone = run(&["status"]).expect(2);
    gone.assert_stderr("error[OX401]: ");
}

#[test]
fn two_clusters_take_different_ports() {
    let workspace = Workspace::new();
    workspace.cluster(1);
    let first = workspace.start(&["up", "cluster.yaml"]);
    first.await_stdout("oxidask submit");
    let second = workspace.start(&["up", "cluster.yaml"]);
    second.await_stdout("oxidask submit");
    let (one, two) = (
        value(&first.stdout(), "scheduler "),
        value(&second.stdout(), "scheduler "),
    );
    assert_ne!(one, two);
    assert_ne!(
        value(&first.stdout(), "http "),
        value(&second.stdout(), "http ")
    );
    for up in [first, second] {
        up.signal(Signal::TERM);
        up.finish_within(TIDY).expect(143);
    }
    workspace.assert_clean(TIDY);
}

#[test]
fn services_say_where_they_listen_and_end_on_sigterm() {
    let workspace = Workspace::new();
    workspace.cluster(1);
    // Its certificates serve here.
    let up = workspace.start(&["up", "cluster.yaml"]);
    up.await_stdout("oxidask submit");
    let client = value(&up.stdout(), "tls dir ");
    let certificates = |role: &str| client.replace("/client", &format!("/{role}"));
    let tls_dir = certificates("scheduler");
    let scheduler = workspace.start(&[
        "scheduler",
        "--bind",
        "127.0.0.1",
        "--port",
        "0",
        "--http-port",
        "0",
        "--tls-dir",
        &tls_dir,
    ]);
    scheduler.await_stdout("\n");
    let ready: serde_json::Value = serde_json::from_str(scheduler.stdout().trim()).unwrap();
    assert_eq!(ready["ready"], "scheduler");
    let address = ready["address"].as_str().unwrap().to_owned();
    assert!(
        ready["http"]
            .as_str()
            .unwrap()
            .starts_with("http://127.0.0.1:")
    );

    let mut command = workspace.command(&[
        "worker",
        "--bind",
        "127.0.0.1",
        "--port",
        "0",
        "--http-port=0",
    ]);
    command
        .env("DASK_SCHEDULER_ADDRESS", &address)
        .env("DASK_WORKER_NAME", "wanda")
        .env("OXIDASK_TLS_DIR", certificates("worker"))
        .env("OXIDASK_RESOURCES", "gpu=1,license=2")
        .stdin(Stdio::null());
    let worker = Running::spawn(command);
    worker.await_stdout("\"ready\":\"worker\"");
    eventually("the worker", TIDY * 5, || {
        let status = [
            "status",
            "-o",
            "json",
            "--scheduler",
            &address,
            "--tls-dir",
            &client,
        ];
        workspace
            .run(&status)
            .expect(0)
            .json()
            .iter()
            .any(|line| line["name"] == "wanda")
    });
    worker.signal(Signal::TERM);
    worker.finish_within(TIDY).expect(0);
    scheduler.signal(Signal::TERM);
    scheduler.finish_within(TIDY).expect(0);
    up.signal(Signal::INT);
    up.finish_within(TIDY).expect(130);
    workspace.assert_clean(TIDY);
}

#[test]
fn services_without_certificates_or_ports_say_so() {
    let workspace = Workspace::new();
    let run = workspace.run(&[
        "scheduler",
        "--bind",
        "127.0.0.1",
        "--port=0",
        "--http-port=0",
        "--tls-dir",
        "nowhere",
    ]);
    run.expect(2).assert_stderr("error[OX401]: ");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = workspace.run(&["scheduler", "--bind", "127.0.0.1", "--port", &port]);
    run.expect(1).assert_stderr("error[OX110]: ");
    let run = workspace.run(&["worker", "--threads", "many"]);
    run.expect(2);
}
