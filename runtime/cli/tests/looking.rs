//! `status`, `top`, `explain KEY` and `logs` on a running cluster, and its HTTP port.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::{Finished, Running, Workspace, eventually};

const PATIENCE: Duration = Duration::from_secs(20);
const TIDY: Duration = Duration::from_secs(5);

/// A task that waits for one that runs for ever, one that says something, and one that is soon done.
const TASKS: &str = r#"{"outputs": ["after", "loud", "done"]}
{"key": "long", "op": "sleep", "args": {"seconds": 600}}
{"key": "after", "op": "count", "inputs": ["long"]}
{"key": "loud", "op": "exec", "args": {"command": ["sh", "-c", "echo it hurts >&2"]}}
{"key": "done", "op": "value", "args": {"value": 7}}
"#;

struct Cluster {
    workspace: Workspace,
    up: Running,
    scheduler: String,
    tls_dir: String,
    http: String,
}

impl Cluster {
    fn start() -> Self {
        let workspace = Workspace::new();
        workspace.cluster(2);
        let up = workspace.start(&["up", "cluster.yaml"]);
        up.await_stdout("oxidask submit");
        let text = up.stdout();
        let value = |name: &str| {
            let mut lines = text.lines().map(str::trim_start);
            let found = lines.find_map(|line| line.strip_prefix(name));
            found.unwrap().trim().to_owned()
        };
        Self {
            scheduler: value("scheduler "),
            tls_dir: value("tls dir "),
            http: value("http "),
            workspace,
            up,
        }
    }

    fn with<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let site = ["--scheduler", &self.scheduler, "--tls-dir", &self.tls_dir];
        [command, &site].concat()
    }

    fn run(&self, command: &[&str]) -> Finished {
        self.workspace.run(&self.with(command))
    }

    fn json(&self, command: &[&str]) -> Vec<Value> {
        self.run(&[command, &["-o", "json"]].concat())
            .expect(0)
            .json()
    }

    /// What the HTTP port says to the token behind the `#` of its address.
    fn get(&self, path: &str) -> (u16, String) {
        let (address, token) = self.http.split_once("/#token=").unwrap();
        let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }
}

#[test]
fn a_cluster_can_be_looked_at_while_it_works() {
    let cluster = Cluster::start();
    cluster.workspace.graph_job(1, TASKS);
    let submit = cluster
        .workspace
        .start(&cluster.with(&["submit", "job.yaml"]));
    eventually("two results", PATIENCE, || {
        let status = cluster.json(&["status"]);
        let is_there = |kind: &str, name: &str, count: u64| {
            status
                .iter()
                .any(|line| line["kind"] == kind && line[name] == count)
        };
        is_there("graph", "done", 2) && is_there("worker", "running", 1)
    });
    let status = cluster.json(&["status"]);
    let group = status.iter().find(|line| line["kind"] == "group").unwrap();
    assert_eq!(
        (&group["name"], &group["workers"]),
        (&"default".into(), &2.into())
    );
    assert!(!group["reason"].as_str().unwrap().is_empty());
    for worker in status.iter().filter(|line| line["kind"] == "worker") {
        assert_eq!(worker["standing"], "active");
    }
    // Comes with the first beats.
    eventually("their memory", PATIENCE, || {
        let status = cluster.json(&["status"]);
        let mut workers = status.iter().filter(|line| line["kind"] == "worker");
        workers.all(|worker| worker["residentBytes"].as_u64() > Some(0))
    });

    let graph = explains(&cluster);
    eventually("the program's line", PATIENCE, || {
        let lines = cluster.json(&["logs", "--key", "loud", "--graph", &graph]);
        lines
            .iter()
            .any(|line| line["text"] == "it hurts" && line["level"] == "ERR")
    });
    let own = cluster.json(&["logs", "--worker", "scheduler"]);
    assert!(
        own.iter()
            .any(|line| line["text"].as_str().unwrap().contains("worker joined"))
    );

    shows_changes(&cluster);
    submit.signal(Signal::INT);
    submit.finish_within(TIDY).expect(130);
    cluster.up.signal(Signal::INT);
    cluster.up.finish_within(TIDY).expect(130);
    cluster.workspace.assert_clean(TIDY);
}

/// Returns the name of the graph.
fn explains(cluster: &Cluster) -> String {
    let told = cluster
        .run(&["explain", "after", "-o", "table"])
        .expect(0)
        .stdout;
    assert!(
        told.contains(": waiting\n  waits for 1 input: `long` (running)"),
        "{told}"
    );
    let told = cluster
        .run(&["explain", "loud", "-o", "table"])
        .expect(0)
        .stdout;
    assert!(
        told.contains(": finished\n  its result of 0 bytes is at `default-"),
        "{told}"
    );
    let told = cluster.json(&["explain", "done"]);
    assert_eq!(told[0]["state"], "finished");
    let unknown = cluster.run(&["explain", "nothing"]).expect(1);
    unknown.assert_stderr("no graph that is there has a task `nothing`");
    let graph = told[0]["graph"].as_str().unwrap().to_owned();
    assert_eq!(cluster.json(&["explain", "done", "--graph", &graph]), told);
    graph
}

fn shows_changes(cluster: &Cluster) {
    let top = cluster.workspace.start(&cluster.with(&["top"]));
    top.await_stdout("default-1  default  active");
    top.await_stdout("GRAPH");
    top.signal(Signal::INT);
    top.finish_within(TIDY).expect(130);
    let follow = cluster
        .workspace
        .start(&cluster.with(&["logs", "--follow", "-o", "table"]));
    follow.await_stdout("it hurts");
    follow.signal(Signal::TERM);
    follow.finish_within(TIDY).expect(143);

    let (status, body) = cluster.get("/api/v1/tasks/after");
    assert_eq!(status, 200);
    assert!(body.contains("waits for 1 input"), "{body}");
    let (status, body) = cluster.get("/json/counts.json");
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["workers"], 2);
}

#[test]
fn looking_at_nothing_says_what_is_missing() {
    let workspace = Workspace::new();
    for command in [&["status"][..], &["top"], &["logs"], &["explain", "key"]] {
        let finished = workspace.run(command).expect(2);
        finished.assert_stderr("the scheduler's address is missing");
    }
    workspace
        .run(&["explain", "missing.yaml"])
        .expect(2)
        .assert_stderr("error[OX101]: ");
}
