//! Those who look at a cluster over gRPC: telemetry, KEDA's scaler, explanations, logs; and the names
//! of all metrics.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use oxidask_identity::Role;
use oxidask_proto::keda::external_scaler_client::ExternalScalerClient;
use oxidask_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use oxidask_proto::wire;
use support::{Cluster, PATIENCE, ScriptedWorker, Session};
use tokio::time::{Instant, timeout};
use tonic::Streaming;

async fn next<M>(stream: &mut Streaming<M>) -> M {
    let message = timeout(PATIENCE, stream.message()).await.unwrap();
    message.unwrap().unwrap()
}

async fn listen(cluster: &Cluster) -> Streaming<wire::TelemetryReply> {
    let mut operator = cluster.connect(Role::Operator).await;
    let told = operator.telemetry(wire::TelemetryRequest::default());
    told.await.unwrap().into_inner()
}

fn standings(told: &wire::TelemetryReply) -> Vec<(&str, wire::Standing)> {
    let workers = told.workers.iter();
    workers
        .map(|worker| (worker.name.as_str(), worker.standing()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telemetry_comes_at_once_with_each_change_and_not_without_one() {
    let cluster = Cluster::start().await;
    let mut telemetry = listen(&cluster).await;
    let first = next(&mut telemetry).await;
    assert!(first.workers.is_empty());
    assert_ne!(first.incarnation, 0);
    let silence = timeout(Duration::from_millis(600), telemetry.message()).await;
    assert!(silence.is_err(), "nothing changed: {silence:?}");

    let began = Instant::now();
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let told = next(&mut telemetry).await;
    let took = began.elapsed();
    assert_eq!(standings(&told), [("default-0", wire::Standing::Active)]);
    assert_eq!(told.groups[0].group, "default");
    assert!(took < Duration::from_millis(600), "{took:?}");

    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(40, &["a"])).await;
    let told = loop {
        let told = next(&mut telemetry).await;
        if told.groups[0].waiting_tasks + told.running + told.ready > 0 {
            break told;
        }
    };
    assert!(told.groups[0].workers_wanted >= 1);
    assert!(!told.groups[0].reason.is_empty());
    assert_eq!(
        (told.clients, told.graphs, told.idle_ms < 1_000),
        (1, 1, true)
    );
    let assigned = worker.assigned().await;
    worker.finish(&assigned, |_| "x".into()).await;
    worker.run();
    session.until(|session| session.is_done).await;
    loop {
        let told = next(&mut telemetry).await;
        if told.backlog_micros == 0 && told.groups[0].waiting_tasks == 0 && told.graphs == 0 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telemetry_comes_at_most_each_tenth_of_a_second() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    let mut telemetry = listen(&cluster).await;
    let mut session = Session::open(&cluster, "g").await;
    let began = Instant::now();
    session.send(session.independent(20_000, &["a"])).await;
    session.until(|session| session.is_done).await;
    let took = began.elapsed();
    let mut messages = 0_u128;
    while timeout(Duration::from_millis(300), telemetry.message())
        .await
        .is_ok()
    {
        messages += 1;
    }
    let allowed = took.as_millis() / 100 + 5;
    assert!(
        messages >= 2 && messages <= allowed,
        "{messages} in {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_drained_is_told_as_empty() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    ScriptedWorker::join(&cluster, "default-1").await.run();
    let mut telemetry = listen(&cluster).await;
    let mut operator = cluster.connect(Role::Operator).await;
    let retire = wire::RetireRequest {
        workers: vec!["default-1".to_owned()],
        ..Default::default()
    };
    operator.retire(retire).await.unwrap();
    loop {
        let told = next(&mut telemetry).await;
        if standings(&told).contains(&("default-1", wire::Standing::Empty)) {
            break;
        }
    }
}

fn trigger(pairs: &[(&str, &str)]) -> ScaledObjectRef {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    ScaledObjectRef {
        name: "workers".to_owned(),
        scaler_metadata: pairs.iter().map(owned).collect::<HashMap<_, _>>(),
        ..Default::default()
    }
}

async fn scaler(cluster: &Cluster, role: Role) -> ExternalScalerClient<tonic::transport::Channel> {
    let credentials = cluster.credentials(role);
    let channel = oxidask_comm::connect(&cluster.address, &credentials, Role::Scheduler);
    ExternalScalerClient::new(channel.await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keda_learns_the_workers_that_a_group_wants() {
    let cluster = Cluster::start().await;
    let mut keda = scaler(&cluster, Role::Operator).await;
    let group = trigger(&[("group", "default")]);
    assert!(
        !keda
            .is_active(group.clone())
            .await
            .unwrap()
            .into_inner()
            .result
    );
    let mut changes = keda
        .stream_is_active(group.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!next(&mut changes).await.result);

    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(100, &["a"])).await;
    assert!(
        next(&mut changes).await.result,
        "work that needs a first worker"
    );
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let assigned = worker.assigned().await;
    let spec = keda
        .get_metric_spec(group.clone())
        .await
        .unwrap()
        .into_inner();
    let spec = &spec.metric_specs[0];
    assert_eq!(spec.metric_name, "oxidask-workers-wanted-default");
    assert!((spec.target_size_float - 1.0).abs() < f64::EPSILON);
    let ask = GetMetricsRequest {
        scaled_object_ref: Some(group.clone()),
        metric_name: spec.metric_name.clone(),
    };
    let value = keda
        .get_metrics(ask)
        .await
        .unwrap()
        .into_inner()
        .metric_values;
    // A hundred tasks of an unknown 0.2 s each are 20 s: 4 workers do that in 5 s.
    assert_eq!(
        (value[0].metric_name.as_str(), value[0].metric_value),
        (spec.metric_name.as_str(), 4)
    );

    worker.finish(&assigned, |_| "x".into()).await;
    worker.run();
    session.until(|session| session.is_done).await;
    session
        .sender
        .send(wire::ClientBatch {
            closed: vec![session.graph],
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(
        !next(&mut changes).await.result,
        "nothing to do and nothing to keep"
    );

    let mut stranger = scaler(&cluster, Role::Worker).await;
    let refused = stranger.is_active(group).await.unwrap_err();
    assert!(refused.message().contains("OX404"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanations_come_for_each_graph_that_has_the_key() {
    let cluster = Cluster::start().await;
    let mut client = cluster.connect(Role::Client).await;
    let sessions = [
        Session::open(&cluster, "old").await,
        Session::open(&cluster, "new").await,
    ];
    for session in &sessions {
        session.send(session.independent(1, &["a"])).await;
    }
    let ask = |key: &str, graph: &str| wire::ExplainRequest {
        key: key.to_owned(),
        graph: graph.to_owned(),
    };
    let deadline = Instant::now() + PATIENCE;
    let both = loop {
        let tasks = client
            .explain(ask("task-0", ""))
            .await
            .unwrap()
            .into_inner()
            .tasks;
        if tasks.len() == 2 || Instant::now() > deadline {
            break tasks;
        }
    };
    let graphs: Vec<_> = both.iter().map(|task| task.graph.as_str()).collect();
    assert_eq!(graphs, ["new", "old"]);
    assert_eq!(both[0].state, "parked");
    assert!(
        both[0].lines[0].contains("waits for a worker"),
        "{:?}",
        both[0].lines
    );
    let one = client
        .explain(ask("task-0", "old"))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert_eq!(one.len(), 1);
    let none = client
        .explain(ask("task-1", ""))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert!(none.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_are_followed_over_the_wire() {
    let cluster = Cluster::start().await;
    let worker = ScriptedWorker::join(&cluster, "default-0").await;
    let line = |text: &str| wire::LogLine {
        level: "INFO".to_owned(),
        text: text.to_owned(),
        ..Default::default()
    };
    let mut client = cluster.connect(Role::Client).await;
    let ask = wire::LogsRequest {
        worker: "default-0".to_owned(),
        is_followed: true,
        ..Default::default()
    };
    let mut lines = client.logs(ask.clone()).await.unwrap().into_inner();
    assert!(next(&mut lines).await.lines.is_empty());
    let batch = wire::WorkerBatch {
        log_lines: vec![line("one"), line("two")],
        ..Default::default()
    };
    worker.send(batch).await;
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(
            next(&mut lines)
                .await
                .lines
                .into_iter()
                .map(|line| line.text),
        );
    }
    assert_eq!(told, ["one", "two"]);
    drop(worker);
    let kept = wire::LogsRequest {
        lines: 1,
        is_followed: false,
        ..ask
    };
    let mut lines = client.logs(kept).await.unwrap().into_inner();
    assert_eq!(
        next(&mut lines).await.lines[0].text,
        "two",
        "also of a worker that is gone"
    );
    assert!(
        timeout(PATIENCE, lines.message())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
}

/// Family and type, as `/metrics` says.
async fn families(cluster: &Cluster) -> BTreeMap<String, String> {
    let answer = support::get(cluster, "/metrics").await;
    let types = answer
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let types = types.map(|line| line.split_once(' ').unwrap());
    types
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_are_those_that_the_documentation_lists() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(3, &["a"])).await;
    session.until(|session| session.is_done).await;
    let found = families(&cluster).await;
    let page = include_str!("../../../docs/src/observing.md");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| `oxidask_") || line.starts_with("| `dask_"));
    let listed: BTreeSet<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
        })
        .collect();
    let as_written = |(name, kind): (&String, &String)| match kind.as_str() {
        "counter" => (format!("{name}_total"), kind.clone()),
        "info" => (format!("{name}_info"), kind.clone()),
        _ => (name.clone(), kind.clone()),
    };
    let found: BTreeSet<(String, String)> = found.iter().map(as_written).collect();
    let missing: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not listed: {missing:#?}, not there: {gone:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_of_states_and_standings_and_of_the_loop() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(3, &["abc"])).await;
    session.until(|session| session.is_done).await;
    let text = support::get(&cluster, "/metrics").await;
    for line in [
        "oxidask_scheduler_workers 1.0",
        "oxidask_scheduler_tasks{state=\"finished\"} 3.0",
        "oxidask_scheduler_tasks{state=\"parked\"} 0.0",
        "oxidask_scheduler_workers_by_standing{standing=\"active\"} 1.0",
        "oxidask_scheduler_group_workers_wanted{group=\"default\"} 1.0",
        "oxidask_scheduler_workers_added_total 1",
        "oxidask_scheduler_held_bytes 9.0",
        "dask_scheduler_tasks{state=\"memory\"} 3.0",
        "dask_scheduler_workers{state=\"idle\"} 1.0",
        "dask_scheduler_tasks_output_bytes{task_prefix_name=\"task\"} 9.0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let lag = text
        .lines()
        .find_map(|line| line.strip_prefix("oxidask_scheduler_loop_lag_seconds_count "));
    assert!(lag.unwrap().parse::<u64>().unwrap() > 3);
}

/// The file of a test that the page on failures names.
fn file_of(name: &str) -> std::path::PathBuf {
    let runtime = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap();
    match name.split_once('/') {
        Some((package, file)) => runtime
            .join(package)
            .join("tests")
            .join(format!("{file}.rs")),
        None => runtime.join("scheduler/tests").join(format!("{name}.rs")),
    }
}

#[test]
fn each_sentence_about_failures_names_a_test_that_is_there() {
    let page = include_str!("../../../docs/src/failures.md");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("proved by"));
    let mut sentences = 0;
    for row in rows {
        let proof = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let (file, test) = proof.trim_matches('`').split_once("::").expect(row);
        let path = file_of(file);
        let code = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{}", path.display()));
        assert!(
            code.contains(&format!("fn {test}()")),
            "{proof} is not there"
        );
        sentences += 1;
    }
    assert!(sentences > 50, "{sentences}");
}
