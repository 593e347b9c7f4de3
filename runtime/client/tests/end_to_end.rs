//! Client, scheduler and workers in one process over real TLS: graphs go in, results come out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder, TaskOptions};
use oxidask_client::{Client, ClientError, GraphEvent, GraphRun};
use oxidask_comm::{Credentials, install_crypto_provider};
use oxidask_core::CoreConfig;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::{Body, Builtin};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_scheduler::{HttpTokens, LogTap, SchedulerConfig, SchedulerError};
use oxidask_store::{Payload, PayloadKind};
use oxidask_worker::{Listeners, WorkerConfig, WorkerError};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    authority: Authority,
    address: String,
    scratch: TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), SchedulerError>>,
    workers: Vec<Worker>,
}

struct Worker {
    stop: CancellationToken,
    serving: JoinHandle<Result<(), WorkerError>>,
}

impl Cluster {
    async fn start(workers: u32) -> Self {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("oxidask://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let config = SchedulerConfig {
            listener,
            http_listener: None,
            credentials: credentials(&authority, Role::Scheduler),
            has_loop_thread: true,
            core: CoreConfig::default(),
            journal: None,
            http_tokens: HttpTokens::default(),
            log_tap: LogTap::default(),
        };
        let serving = tokio::spawn(oxidask_scheduler::serve(config, shutdown.clone()));
        let scratch = TempDir::new().unwrap();
        let mut cluster = Self {
            authority,
            address,
            scratch,
            shutdown,
            serving,
            workers: Vec::new(),
        };
        for _ in 0..workers {
            cluster.add_worker(Vec::new()).await;
        }
        let client = cluster.client().await;
        let deadline = Instant::now() + PATIENCE;
        while client.status().await.unwrap().workers.len() < workers as usize {
            assert!(Instant::now() < deadline, "the workers join");
            sleep(Duration::from_millis(10)).await;
        }
        cluster
    }

    async fn add_worker(&mut self, resources: Vec<(String, u64)>) {
        let data_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise_address = data_listener.local_addr().unwrap().to_string();
        let name = format!("default-{}", self.workers.len());
        let stop = CancellationToken::new();
        let config = WorkerConfig {
            scheduler_address: self.address.clone(),
            group: "default".to_owned(),
            pod_uid: String::new(),
            node: String::new(),
            slots: 1,
            resources,
            memory_bytes: 4 << 30,
            memory_thresholds: oxidask_worker::MemoryThresholds::OFF,
            system_dir: "/".into(),
            logbook: Arc::default(),
            advertise_address,
            reconnect_time: Duration::ZERO,
            base_dir: self.scratch.path().to_owned(),
            scratch_dir: self.scratch.path().join(&name),
            spill_dir: None,
            spill_bytes_max: 0,
            compute: Handle::current(),
            credentials: credentials(&self.authority, Role::Worker),
            executors: vec![Arc::new(Builtin::new())],
            name,
        };
        let listeners = Listeners {
            data: data_listener,
            http: None,
        };
        let serving = tokio::spawn(oxidask_worker::serve(config, listeners, stop.clone()));
        self.workers.push(Worker { stop, serving });
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address, &credentials(&self.authority, Role::Client))
            .await
            .unwrap()
    }
}

fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

/// Everything that was heard until the graph was done.
#[derive(Default)]
struct Heard {
    ready: Vec<u32>,
    failed: HashMap<u32, (Arc<Diagnostic>, bool)>,
    notices: Vec<String>,
    refused: Vec<Diagnostic>,
    done: u64,
    total: u64,
}

async fn until_done(run: &mut GraphRun) -> Heard {
    let mut heard = Heard::default();
    let listening = async {
        while let Some(event) = run.next_event().await {
            match event {
                GraphEvent::Ready(ready) => heard.ready.extend(ready.iter().map(|(task, _)| task)),
                GraphEvent::Failed {
                    task,
                    diagnostic,
                    is_origin,
                } => {
                    heard.failed.insert(task, (diagnostic, is_origin));
                }
                GraphEvent::Progress(progress) => {
                    heard.total = progress.groups.iter().map(|group| group.total).sum();
                    heard.done = progress.groups.iter().map(|group| group.done).sum();
                }
                GraphEvent::Notice(text) => heard.notices.push(text),
                GraphEvent::Refused(diagnostic) => heard.refused.push(diagnostic),
                GraphEvent::Done => return,
                GraphEvent::Reconnecting(diagnostic) | GraphEvent::Disconnected(diagnostic) => {
                    panic!("disconnected: {diagnostic}")
                }
                GraphEvent::Reconnected => {}
            }
        }
        panic!("the graph is done before the events end");
    };
    timeout(PATIENCE, listening)
        .await
        .expect("the graph is done in time");
    heard
}

async fn values(run: &GraphRun, tasks: &[u32]) -> Vec<String> {
    let found: Vec<_> = timeout(PATIENCE, run.fetch(tasks.to_vec()).collect())
        .await
        .expect("results come");
    let asked: Vec<u32> = found.iter().map(|(task, _): &(u32, _)| *task).collect();
    assert_eq!(asked, tasks, "in the order of the request");
    let text = |payload: Payload| String::from_utf8(payload.parts.concat()).unwrap();
    found
        .into_iter()
        .map(|(_, result)| text(result.unwrap()))
        .collect()
}

fn noops(count: u32) -> GraphPlan {
    let mut builder = GraphPlanBuilder::new("noops");
    for task in 0..count {
        builder
            .task(&format!("noop-{task}"), &Body::new("noop"), &[])
            .unwrap();
    }
    builder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_small_tasks() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    let plan = noops(1_000);
    let mut run = client.submit("noops", &plan).await.unwrap();
    let mut heard = until_done(&mut run).await;
    heard.ready.sort_unstable();
    assert_eq!(heard.ready, (0..1_000).collect::<Vec<_>>());
    assert_eq!(
        (heard.total, heard.done),
        (1_000, 1_000),
        "the last progress is complete"
    );
    let all = values(&run, plan.outputs()).await;
    assert!(all.iter().all(|value| value == "null") && all.len() == 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_and_a_tree_give_the_right_sums() {
    let cluster = Cluster::start(2).await;
    let mut builder = GraphPlanBuilder::new("sums");
    let mut level: Vec<u32> = (0..256)
        .map(|i| {
            let body = Body::new("value").with("value", i);
            builder.task(&format!("value-{i}"), &body, &[]).unwrap()
        })
        .collect();
    let merge = builder.task("merge", &Body::new("sum"), &level).unwrap();
    builder.output(merge);
    let mut number = 0;
    while level.len() > 1 {
        let pairs = level.chunks(2).map(|pair| {
            number += 1;
            builder
                .task(&format!("tree-{number}"), &Body::new("sum"), pair)
                .unwrap()
        });
        level = pairs.collect();
    }
    builder.output(level[0]);
    let plan = builder.finish().unwrap();
    let mut run = cluster.client().await.submit("sums", &plan).await.unwrap();
    let heard = until_done(&mut run).await;
    assert_eq!(heard.ready.len(), 2, "only what is wanted is told");
    assert_eq!(values(&run, plan.outputs()).await, ["32640", "32640"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_to_all() {
    const SIDE: u32 = 50;
    let cluster = Cluster::start(2).await;
    let mut builder = GraphPlanBuilder::new("all-to-all");
    let values_in: Vec<u32> = (0..SIDE)
        .map(|i| {
            let body = Body::new("value").with("value", i);
            builder.task(&format!("in-{i}"), &body, &[]).unwrap()
        })
        .collect();
    for i in 0..SIDE {
        builder
            .task(&format!("out-{i}"), &Body::new("sum"), &values_in)
            .unwrap();
    }
    let plan = builder.finish().unwrap();
    assert_eq!(plan.outputs().len(), SIDE as usize);
    let mut run = cluster
        .client()
        .await
        .submit("all-to-all", &plan)
        .await
        .unwrap();
    until_done(&mut run).await;
    let sum = (0..SIDE).sum::<u32>().to_string();
    assert!(
        values(&run, plan.outputs())
            .await
            .iter()
            .all(|value| *value == sum)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_task_fails_its_dependents_and_retries_help() {
    let cluster = Cluster::start(1).await;
    let mut builder = GraphPlanBuilder::new("failures");
    let flaky = Body::new("fail")
        .with("message", "not yet")
        .with("attempts", 2);
    let options = TaskOptions {
        retries: 2,
        ..TaskOptions::default()
    };
    let helped = builder.task_with("flaky", &flaky, &[], options).unwrap();
    let broken = Body::new("fail").with("message", "never");
    let broken = builder.task("broken", &broken, &[]).unwrap();
    let dependent = builder
        .task("dependent", &Body::new("noop"), &[broken])
        .unwrap();
    for task in [helped, broken, dependent] {
        builder.output(task);
    }
    let plan = builder.finish().unwrap();
    let by_key = |key: &str| {
        plan.outputs()
            .iter()
            .copied()
            .find(|t| plan.key(*t) == key)
            .unwrap()
    };
    let mut run = cluster
        .client()
        .await
        .submit("failures", &plan)
        .await
        .unwrap();
    let heard = until_done(&mut run).await;
    assert_eq!(heard.ready, [by_key("flaky")]);
    let (error, is_origin) = &heard.failed[&by_key("broken")];
    assert!(*is_origin && error.to_string().contains("never"), "{error}");
    let (error, is_origin) = &heard.failed[&by_key("dependent")];
    assert!(
        !*is_origin && error.to_string().contains("never"),
        "{error}"
    );
    assert_eq!(values(&run, &[by_key("flaky")]).await, ["null"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_goes_in_the_middle_changes_nothing_but_a_notice() {
    let mut cluster = Cluster::start(2).await;
    let mut builder = GraphPlanBuilder::new("loss");
    let slow = Body::new("sleep").with("seconds", 0.02);
    let values_in: Vec<u32> = (0..100)
        .map(|i| {
            let wait = builder.task(&format!("wait-{i}"), &slow, &[]).unwrap();
            let body = Body::new("value").with("value", i);
            builder.task(&format!("value-{i}"), &body, &[wait]).unwrap()
        })
        .collect();
    builder.task("sum", &Body::new("sum"), &values_in).unwrap();
    let plan = builder.finish().unwrap();
    let mut run = cluster.client().await.submit("loss", &plan).await.unwrap();
    sleep(Duration::from_millis(400)).await;
    let gone = cluster.workers.remove(0);
    gone.stop.cancel();
    gone.serving.await.unwrap().unwrap();
    let heard = until_done(&mut run).await;
    assert!(heard.failed.is_empty(), "{:?}", heard.failed);
    assert_eq!(values(&run, plan.outputs()).await, ["4950"]);
    assert!(heard.notices.len() <= 1, "{:?}", heard.notices);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_come_through_the_relay() {
    const BYTES: u64 = 100 << 20;
    let cluster = Cluster::start(2).await;
    let mut builder = GraphPlanBuilder::new("large");
    let small = Body::new("value").with("value", "small");
    let large = Body::new("bytes").with("len", BYTES).with("seed", 7);
    let first = builder.task("first", &small, &[]).unwrap();
    let middle = builder.task("middle", &large, &[]).unwrap();
    let digest = builder
        .task("digest", &Body::new("sha256"), &[middle])
        .unwrap();
    for task in [first, middle, digest] {
        builder.output(task);
    }
    let plan = builder.finish().unwrap();
    let mut run = cluster.client().await.submit("large", &plan).await.unwrap();
    until_done(&mut run).await;
    let mut results = Box::pin(run.fetch(plan.outputs().to_vec()));
    let mut found = Vec::new();
    while let Some((_, result)) = timeout(PATIENCE, results.next()).await.unwrap() {
        found.push(result.unwrap());
    }
    assert_eq!(found[0].parts.concat(), b"\"small\"");
    assert_eq!((found[1].kind, found[1].len()), (PayloadKind::Bytes, BYTES));
    assert_eq!(found[2].kind, PayloadKind::Value);
    // The same bytes again, made by another task.
    let mut builder = GraphPlanBuilder::new("again");
    let middle = builder.task("middle", &large, &[]).unwrap();
    builder.output(middle);
    let again = builder.finish().unwrap();
    let mut run = cluster
        .client()
        .await
        .submit("again", &again)
        .await
        .unwrap();
    until_done(&mut run).await;
    let all: Vec<_> = run.fetch(vec![0]).collect().await;
    assert!(all[0].1.as_ref().unwrap().parts.concat() == found[1].parts.concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_graph_ends_soon_and_a_closed_one_is_forgotten() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut builder = GraphPlanBuilder::new("long");
    let quick = builder.task("quick", &Body::new("noop"), &[]).unwrap();
    let long = builder
        .task("long", &Body::new("sleep").with("seconds", 600), &[quick])
        .unwrap();
    builder.output(quick);
    builder.output(long);
    let plan = builder.finish().unwrap();
    let mut run = client.submit("long", &plan).await.unwrap();
    while !matches!(run.next_event().await, Some(GraphEvent::Ready(_))) {}
    run.cancel();
    let heard = until_done(&mut run).await;
    let (error, _) = heard.failed.values().next().expect("the long task failed");
    assert_eq!(error.code, Code::GraphCancelled);
    assert_eq!(
        values(&run, &[0]).await,
        ["null"],
        "results that were there stay"
    );
    run.close().await;
    let deadline = Instant::now() + PATIENCE;
    while !client.status().await.unwrap().graphs.is_empty() {
        assert!(Instant::now() < deadline, "the graph is forgotten");
        sleep(Duration::from_millis(10)).await;
    }
    let mut run = client.submit("after", &noops(10)).await.unwrap();
    assert_eq!(
        until_done(&mut run).await.ready.len(),
        10,
        "the slot is free again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn released_results_are_gone_and_others_stay() {
    let cluster = Cluster::start(1).await;
    let mut run = cluster.client().await.submit("g", &noops(3)).await.unwrap();
    until_done(&mut run).await;
    run.release(vec![1]);
    let began = Instant::now();
    let found: Vec<_> = loop {
        let found: Vec<_> = timeout(PATIENCE, run.fetch(vec![0, 1, 2]).collect())
            .await
            .expect("answers come");
        let is_gone = found
            .iter()
            .any(|(_, result): &(u32, Result<_, _>)| result.is_err());
        if is_gone || began.elapsed() > PATIENCE {
            break found;
        }
    };
    assert!(found[0].1.is_ok() && found[2].1.is_ok());
    assert_eq!(
        found[1].1.as_ref().unwrap_err().code,
        Code::ResultUnavailable
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_finds_its_graph() {
    let cluster = Cluster::start(1).await;
    let plan = noops(100);
    let run = cluster.client().await.submit("g", &plan).await.unwrap();
    let graph = run.graph();
    drop(run);
    let mut again = cluster.client().await.submit("g", &plan).await.unwrap();
    assert_eq!(again.graph(), graph);
    let mut ready = until_done(&mut again).await.ready;
    ready.sort_unstable();
    assert_eq!(ready, (0..100).collect::<Vec<_>>());
    assert_eq!(values(&again, &[5]).await, ["null"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_where_their_resources_are() {
    let mut cluster = Cluster::start(1).await;
    let mut builder = GraphPlanBuilder::new("gpu");
    let options = TaskOptions {
        resources: vec![("gpu".to_owned(), 1)],
        ..TaskOptions::default()
    };
    builder
        .task_with("needs-gpu", &Body::new("noop"), &[], options)
        .unwrap();
    let plan = builder.finish().unwrap();
    let mut run = cluster.client().await.submit("gpu", &plan).await.unwrap();
    let parked = loop {
        if let Some(GraphEvent::Progress(progress)) = run.next_event().await {
            let cluster = progress.cluster.unwrap();
            if cluster.parked > 0 {
                break cluster.parked_reason;
            }
        }
    };
    assert!(parked.contains("gpu"), "{parked}");
    cluster.add_worker(vec![("gpu".to_owned(), 1)]).await;
    assert_eq!(until_done(&mut run).await.ready, [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_ends_is_heard_of_at_once() {
    let cluster = Cluster::start(1).await;
    let mut builder = GraphPlanBuilder::new("long");
    builder
        .task("long", &Body::new("sleep").with("seconds", 600), &[])
        .unwrap();
    let plan = builder.finish().unwrap();
    let client = cluster.client().await.reconnecting_for(Duration::ZERO);
    let mut run = client.submit("long", &plan).await.unwrap();
    while !matches!(run.next_event().await, Some(GraphEvent::Progress(_))) {}
    let began = Instant::now();
    cluster.shutdown.cancel();
    cluster.serving.await.unwrap().unwrap();
    let diagnostic = loop {
        match timeout(PATIENCE, run.next_event()).await.unwrap() {
            Some(GraphEvent::Disconnected(diagnostic)) => break diagnostic,
            Some(_) => {}
            None => panic!("the last event says why"),
        }
    };
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(diagnostic.code, Code::SchedulerEnded, "{diagnostic}");
    assert!(run.next_event().await.is_none());
    let error = client.status().await.unwrap_err();
    assert_eq!(error.code(), Code::SchedulerUnreachable, "{error}");
    let results: Vec<_> = run.fetch(vec![0]).collect().await;
    assert!(results[0].1.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_role_is_told_so() {
    let cluster = Cluster::start(1).await;
    let worker = credentials(&cluster.authority, Role::Worker);
    let client = Client::connect(&cluster.address, &worker).await.unwrap();
    assert_eq!(
        client.status().await.unwrap_err().code(),
        Code::CallForbidden
    );
    let error = client.submit("g", &noops(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::CallForbidden);
    let foreign = Authority::new("local", "other").unwrap();
    let foreign = credentials(&foreign, Role::Client);
    let error = Client::connect(&cluster.address, &foreign)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
    assert!(error.code().to_string().starts_with("OX4"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_graph_is_done_at_once() {
    let cluster = Cluster::start(1).await;
    let mut run = cluster
        .client()
        .await
        .submit("empty", &noops(0))
        .await
        .unwrap();
    assert!(until_done(&mut run).await.ready.is_empty());
    assert!(run.fetch(Vec::new()).collect::<Vec<_>>().await.is_empty());
}
