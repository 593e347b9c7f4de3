//! The HTTP port as its callers see it: who gets what, and what it looks like.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use oxidask_proto::wire;
use oxidask_scheduler::HttpTokens;
use serde_json::{Value, json};
use support::{Cluster, ScriptedWorker, Session};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

const READER: &str = "reader-token";
const OPERATOR: &str = "operator-token";

const READABLE: [&str; 13] = [
    "/api/v1",
    "/api/v1/status",
    "/api/v1/workers",
    "/api/v1/graphs",
    "/api/v1/graphs/g",
    "/api/v1/tasks/task-0",
    "/api/v1/backlog",
    "/api/v1/spans",
    "/api/v1/logs",
    "/api/v1/adaptive_target",
    "/api/v1/check_idle",
    "/api/v1/get_workers",
    "/json/counts.json",
];

/// What Dask counts, in its order.
const COUNTS: [&str; 16] = [
    "bytes",
    "clients",
    "cores",
    "erred",
    "hosts",
    "idle",
    "memory",
    "processing",
    "released",
    "saturated",
    "tasks",
    "unrunnable",
    "waiting",
    "waiting_data",
    "workers",
    "desired_workers",
];

/// What Dask says of a worker.
const WORKER: [&str; 9] = [
    "type",
    "id",
    "host",
    "name",
    "nthreads",
    "memory_limit",
    "last_seen",
    "metrics",
    "status",
];

struct Guarded {
    cluster: Cluster,
    folder: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = HttpTokens {
            reader: Some(folder.path().join("reader")),
            operator: Some(folder.path().join("operator")),
        };
        std::fs::write(folder.path().join("reader"), format!("{READER}\n")).unwrap();
        std::fs::write(folder.path().join("operator"), OPERATOR).unwrap();
        let cluster = Cluster::start_with_tokens(tokens).await;
        Self { cluster, folder }
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = call(&self.cluster, "GET", path, Some(READER), "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn until(&self, path: &str, what: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + support::PATIENCE;
        loop {
            let value = self.get(path).await;
            if what(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path}: {value}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn call(
    cluster: &Cluster,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, String) {
    let (status, _, body) = call_raw(cluster, method, path, token, body).await;
    (status, body)
}

async fn call_raw(
    cluster: &Cluster,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}Content-Length: {}\r\n\r\n{body}",
        token.unwrap_or_default(),
        body.len()
    );
    // A body that is too large is not read to its end.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

fn error(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap();
    value["error"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_needs_a_token_and_changes_need_the_operators() {
    let site = Guarded::start().await;
    let _worker = ScriptedWorker::join(&site.cluster, "default-0").await;
    let session = Session::open(&site.cluster, "g").await;
    session.send(session.independent(1, &["a"])).await;
    site.until("/api/v1/status", |status| status["graphs"] == 1)
        .await;
    site.until("/api/v1/graphs/g", |graph| graph["total"] == 1)
        .await;
    for path in READABLE {
        let (status, head, body) = call_raw(&site.cluster, "GET", path, None, "").await;
        assert_eq!(status, 401, "{path}");
        assert!(
            head.to_ascii_lowercase()
                .contains("www-authenticate: bearer"),
            "{head}"
        );
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["code"], "OX405");
        assert!(
            value["hint"]
                .as_str()
                .unwrap()
                .contains("Authorization: Bearer")
        );
        for token in ["", "reader-tokem", "reader-token2", "reader"] {
            let (status, _) = call(&site.cluster, "GET", path, Some(token), "").await;
            assert_eq!(status, 401, "{path} with `{token}`");
        }
        for token in [READER, OPERATOR] {
            let (status, body) = call(&site.cluster, "GET", path, Some(token), "").await;
            assert_eq!(status, 200, "{path}: {body}");
        }
    }
    let path = "/api/v1/retire_workers";
    for (token, expected) in [(None, 401), (Some("x"), 401), (Some(READER), 403)] {
        let (status, body) = call(&site.cluster, "POST", path, token, "{}").await;
        assert_eq!(status, expected, "{body}");
    }
    let answer = call(&site.cluster, "POST", path, Some(OPERATOR), "{}").await;
    assert_eq!(answer, (200, "{}".to_owned()));
    std::fs::write(site.folder.path().join("reader"), "another").unwrap();
    let (status, _) = call(&site.cluster, "GET", "/api/v1/status", Some(READER), "").await;
    assert_eq!(status, 401, "a changed token counts at once");
    let (status, _) = call(&site.cluster, "GET", "/api/v1/status", Some("another"), "").await;
    assert_eq!(status, 200);
    std::fs::write(site.folder.path().join("reader"), "\n").unwrap();
    let (status, _) = call(&site.cluster, "GET", "/api/v1/status", Some(""), "").await;
    assert_eq!(status, 401, "an empty file lets nobody in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_token_files_nobody_gets_data_but_health_and_metrics_are_open() {
    let cluster = Cluster::start().await;
    for path in READABLE {
        let (status, body) = call(&cluster, "GET", path, Some(READER), "").await;
        assert_eq!(status, 401, "{path}");
        assert!(body.contains("--http-token-file"), "{body}");
    }
    let (status, body) = call(&cluster, "POST", "/api/v1/retire_workers", Some(""), "{}").await;
    assert_eq!(status, 401);
    assert!(body.contains("--http-operator-token-file"), "{body}");
    for path in ["/health", "/livez", "/readyz"] {
        let answer = call(&cluster, "GET", path, None, "").await;
        assert_eq!(answer, (200, "ok".to_owned()), "{path}");
    }
    let (status, body) = call(&cluster, "GET", "/metrics", None, "").await;
    assert_eq!(status, 200);
    assert!(body.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_answered_with_json_that_teaches() {
    let site = Guarded::start().await;
    let cluster = &site.cluster;
    let path = "/api/v1/statos";
    let (status, body) = call(cluster, "GET", path, Some(READER), "").await;
    assert_eq!(
        (status, error(&body).as_str()),
        (404, "there is no `/api/v1/statos`")
    );
    assert!(body.contains("/api/v1/status"), "{body}");
    let (status, body) = call(cluster, "POST", "/api/v1/status", Some(READER), "").await;
    assert_eq!(status, 405, "{body}");
    let (status, body) = call(cluster, "GET", "/api/v1/retire_workers", Some(OPERATOR), "").await;
    assert_eq!(status, 405, "{body}");
    for (path, part) in [
        ("/api/v1/spans?limit=x", "`limit` is `x`"),
        ("/api/v1/spans?limt=1", "`limt` means nothing here"),
        ("/api/v1/backlog?target_seconds=-1", "not a whole number"),
    ] {
        let (status, body) = call(cluster, "GET", path, Some(READER), "").await;
        assert_eq!(status, 400, "{path}");
        assert!(error(&body).contains(part), "{body}");
    }
    for (path, part) in [
        ("/api/v1/graphs/x", "there is no graph `x`"),
        ("/api/v1/tasks/a%2Fb", "no graph has a task `a/b`"),
    ] {
        let (status, body) = call(cluster, "GET", path, Some(READER), "").await;
        assert_eq!((status, error(&body).as_str()), (404, part));
    }
    let path = "/api/v1/retire_workers";
    for body in ["", "{", "[]", r#"{"x": 1}"#] {
        let (status, body) = call(cluster, "POST", path, Some(OPERATOR), body).await;
        assert_eq!(status, 400, "{body}");
    }
    let large = "x".repeat(80 * 1024);
    let (status, _) = call(cluster, "POST", path, Some(OPERATOR), &large).await;
    assert_eq!(status, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dasks_routes_have_dasks_names_and_agree_with_each_other() {
    let site = Guarded::start().await;
    assert_eq!(
        site.get("/api/v1/get_workers").await,
        json!({"num_workers": 0, "workers": []})
    );
    let mut session = Session::open(&site.cluster, "g").await;
    session.send(session.independent(3, &["a"])).await;
    let target = "/api/v1/adaptive_target";
    let unplaced = site.until(target, |target| target["workers"] == 1).await;
    assert_eq!(
        unplaced,
        json!({"workers": 1, "groups": {}}),
        "work, and nobody to do it"
    );
    assert_eq!(site.get("/json/counts.json").await["unrunnable"], 3);

    let mut worker = ScriptedWorker::join(&site.cluster, "default-0").await;
    let first = worker.assigned().await;
    assert_eq!(
        site.get("/api/v1/check_idle").await,
        json!({"idle_since": null})
    );
    let counts = site.get("/json/counts.json").await;
    let names = counts.as_object().unwrap().keys();
    assert_eq!(names.map(String::as_str).collect::<Vec<_>>(), COUNTS);
    assert_eq!(
        (&counts["tasks"], &counts["workers"], &counts["hosts"]),
        (&json!(3), &json!(1), &json!(1))
    );
    let wanted = site.get(target).await;
    assert_eq!(wanted["workers"], counts["desired_workers"]);
    assert_eq!(wanted["workers"], wanted["groups"]["default"]);
    let (_, metrics) = call(&site.cluster, "GET", "/metrics", None, "").await;
    let line = format!("dask_scheduler_desired_workers {}", wanted["workers"]);
    assert!(metrics.contains(&line), "{metrics}");

    worker.finish(&first, |_| Bytes::from_static(b"12")).await;
    worker.run();
    session.until(|session| session.is_done).await;
    idle_cluster(&site).await;
}

/// Nothing is to do any more, and one worker is there.
async fn idle_cluster(site: &Guarded) {
    let idle = site
        .until("/api/v1/check_idle", |idle| idle["idle_since"].is_f64())
        .await;
    let again = site.get("/api/v1/check_idle").await;
    let apart = again["idle_since"].as_f64().unwrap() - idle["idle_since"].as_f64().unwrap();
    assert!(
        apart.abs() < 0.2,
        "does not depend on who asked before: {apart}"
    );
    let identity = site.get("/json/identity.json").await;
    assert_eq!(identity["type"], "Scheduler");
    let workers = identity["workers"].as_object().unwrap();
    let (address, worker) = workers.iter().next().unwrap();
    assert!(address.starts_with("tls://127.0.0.1:"), "{address}");
    for name in WORKER {
        assert!(!worker[name].is_null(), "{name}");
    }
    let listed = site.get("/api/v1/get_workers").await;
    assert_eq!(
        (&listed["num_workers"], &listed["workers"][0]["name"]),
        (&json!(1), &json!("default-0"))
    );
    assert_eq!(listed["workers"][0]["address"], **address);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_explained_and_spans_and_logs_are_kept() {
    let site = Guarded::start().await;
    let mut worker = ScriptedWorker::join(&site.cluster, "default-0").await;
    let mut session = Session::open(&site.cluster, "a/graph").await;
    let mut chunk = session.independent(3, &["a"]);
    (chunk.input_counts, chunk.inputs) = (vec![0, 1, 1], vec![0, 1]);
    session.send(chunk).await;
    let first = worker.assigned().await;
    let task = site.get("/api/v1/tasks/task-0?graph=a%2Fgraph").await["tasks"][0].clone();
    assert_eq!(
        (&task["state"], &task["worker"]),
        (&json!("assigned"), &json!("default-0"))
    );
    let task = site.get("/api/v1/tasks/task-1").await["tasks"][0].clone();
    assert_eq!(task["state"], "waiting");
    assert_eq!(task["lines"][0], "waits for 1 input: `task-0` (assigned)");

    worker.finish(&first, |_| Bytes::from_static(b"12")).await;
    let second = worker.assigned().await;
    let lines = vec![wire::LogLine {
        time_micros: 7,
        level: "ERR".to_owned(),
        text: "it hurts".to_owned(),
        graph: session.graph.to_string(),
        key: "task-1".to_owned(),
        ..Default::default()
    }];
    // Names of graphs are known to the logs a tick after the graph is.
    sleep(Duration::from_millis(250)).await;
    worker
        .send(wire::WorkerBatch {
            reports: vec![ScriptedWorker::failed(&second[0], 10)],
            log_lines: lines,
            log_lines_dropped: 2,
            ..Default::default()
        })
        .await;
    session.until(|session| session.is_done).await;
    let task = site.get("/api/v1/tasks/task-1").await["tasks"][0].clone();
    assert_eq!(task["state"], "failed");
    assert_eq!(task["lines"][0], "failed: xxxxxxxxxx");
    assert_eq!(task["fault"]["code"], "OX208");
    let task = site.get("/api/v1/tasks/task-2").await["tasks"][0].clone();
    assert_eq!(
        task["lines"][0],
        "cannot run because `task-1` failed: xxxxxxxxxx"
    );
    let (_, body) = call(&site.cluster, "GET", "/api/v1/tasks/task-0", None, "").await;
    assert!(!body.contains("default-0"), "nothing without a token");

    spans_of_both(&site).await;
    lines_of_one(&site).await;
}

/// One task is done and one has failed.
async fn spans_of_both(site: &Guarded) {
    let spans = site.get("/api/v1/spans").await;
    let told: Vec<_> = spans["spans"]
        .as_array()
        .unwrap()
        .iter()
        .map(|span| {
            assert_eq!(
                (&span["graph"], &span["worker"]),
                (&json!("a/graph"), &json!("default-0"))
            );
            (span["key"].as_str().unwrap(), span["end"].as_str().unwrap())
        })
        .collect();
    assert_eq!(told, [("task-0", "finished"), ("task-1", "failed")]);
    assert_eq!(spans["next"], 2);
    let newest = site
        .get("/api/v1/spans?since=1&graph=a%2Fgraph&worker=default-0")
        .await;
    assert_eq!(newest["spans"].as_array().unwrap().len(), 1);
    let nobodys = site.get("/api/v1/spans?worker=nobody").await;
    assert!(nobodys["spans"].as_array().unwrap().is_empty());
}

/// One worker has said one line, of one task.
async fn lines_of_one(site: &Guarded) {
    let logs = site.get("/api/v1/logs?graph=a%2Fgraph&key=task-1").await;
    assert_eq!(logs["dropped"], 2);
    assert_eq!(logs["lines"].as_array().unwrap().len(), 1, "{logs}");
    let line = &logs["lines"][0];
    assert_eq!(
        (&line["text"], &line["worker"]),
        (&json!("it hurts"), &json!("default-0"))
    );
    assert_eq!(line["graph"], "a/graph", "the worker said its number");
    let none = site.get("/api/v1/logs?key=task-0").await;
    assert!(none["lines"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retiring_over_http_answers_when_the_worker_is_empty_and_leaves_out_who_cannot_go() {
    let site = Guarded::start().await;
    let path = "/api/v1/retire_workers";
    let mut holder = ScriptedWorker::join(&site.cluster, "default-0").await;
    let mut session = Session::open(&site.cluster, "g").await;
    session.send(session.independent(1, &["a"])).await;
    let assigned = holder.assigned().await;
    holder
        .finish(&assigned, |_| Bytes::from_static(b"12"))
        .await;
    session.until(|session| session.is_done).await;
    holder.run();
    let body = r#"{"workers": ["default-0"]}"#;
    let answer = call(&site.cluster, "POST", path, Some(OPERATOR), body).await;
    assert_eq!(answer, (200, "{}".to_owned()), "nobody could take its data");
    assert_eq!(site.get("/api/v1/get_workers").await["num_workers"], 1);

    ScriptedWorker::join(&site.cluster, "default-1").await.run();
    let body = r#"{"workers": ["default-1", "nobody"], "deadline_s": 1}"#;
    let (status, body) = call(&site.cluster, "POST", path, Some(OPERATOR), body).await;
    assert_eq!(status, 200);
    let retired: Value = serde_json::from_str(&body).unwrap();
    let retired: Vec<_> = retired.as_object().unwrap().values().collect();
    assert_eq!(retired.len(), 1, "{body}");
    assert_eq!(
        (&retired[0]["name"], &retired[0]["status"]),
        (&json!("default-1"), &json!("closed"))
    );
    let listed = site.get("/api/v1/workers").await;
    let standings: Vec<_> = listed["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["standing"].as_str().unwrap())
        .collect();
    assert_eq!(standings, ["active", "empty"]);
}
