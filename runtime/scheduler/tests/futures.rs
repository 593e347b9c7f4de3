//! Dask clients as the scheduler sees them: over real TLS, with a worker and clients whose every
//! message is decided here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_comm::BulkPool;
use oxidask_core::CoreConfig;
use oxidask_identity::Role;
use oxidask_proto::ids::bulk_key;
use oxidask_proto::wire::future_event::Event;
use oxidask_proto::wire::futures_client::FuturesClient;
use oxidask_proto::wire::futures_command::Command;
use oxidask_proto::{MESSAGE_BYTES_MAX, SMALL_VALUE_BYTES_MAX, hello, wire};
use oxidask_scheduler::JournalConfig;
use serde_json::{Value, json};
use support::{Cluster, Fetched, PATIENCE, ScriptedWorker, Session, metrics};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const A_MOMENT: Duration = Duration::from_millis(200);

/// A Dask client whose every message a test decides.
struct Dask {
    service: FuturesClient<Channel>,
    name: String,
    sender: Option<mpsc::Sender<wire::FuturesBatch>>,
    inbound: Streaming<wire::FuturesReply>,
    number: u64,
    acknowledged: u64,
    events: Vec<(String, Event)>,
    is_restarted: bool,
    refused: Option<wire::Fault>,
}

/// A task: its key and the keys of its inputs; positions are found by name.
type Task<'a> = (&'a str, &'a [&'a str]);

fn submission(body: &str, tasks: &[Task<'_>], wanted: &[&str]) -> wire::Submission {
    let mut new = wire::Submission {
        body: Bytes::from(body.to_owned()),
        groups: vec!["g".to_owned()],
        ..wire::Submission::default()
    };
    let is_own = |key: &&str| tasks.iter().any(|(own, _)| own == key);
    for (_, inputs) in tasks {
        for input in inputs.iter().filter(|key| !is_own(key)) {
            if !new.external.iter().any(|known| known == input) {
                new.external.push((*input).to_owned());
            }
        }
    }
    for (key, inputs) in tasks {
        new.keys.push_str(key);
        new.key_lengths.push(key.len() as u32);
        new.group.push(0);
        new.arguments.push(Bytes::from((*key).to_owned()));
        new.input_counts.push(inputs.len() as u32);
        for input in *inputs {
            let external = new.external.iter().position(|known| known == input);
            let own = || tasks.iter().position(|(own, _)| own == input).unwrap();
            let position = external.unwrap_or_else(|| new.external.len() + own());
            new.inputs.push(position as u32);
        }
    }
    for key in wanted {
        let position = tasks.iter().position(|(own, _)| own == key).unwrap();
        new.wanted.push(position as u32);
    }
    new
}

impl Dask {
    async fn join(cluster: &Cluster, name: &str) -> Self {
        Self::open(cluster, name, Role::Client, None).await
    }

    async fn come_back(cluster: &Cluster, name: &str, wanted: &[&str]) -> Self {
        let wanted = wanted.iter().map(|key| (*key).to_owned()).collect();
        Self::open(cluster, name, Role::Client, Some(wanted)).await
    }

    async fn open(cluster: &Cluster, name: &str, role: Role, wanted: Option<Vec<String>>) -> Self {
        let credentials = cluster.credentials(role);
        let channel = oxidask_comm::connect(&cluster.address, &credentials, Role::Scheduler);
        let mut service =
            FuturesClient::new(channel.await.unwrap()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (sender, receiver) = mpsc::channel(16);
        let first = wire::FuturesBatch {
            hello: Some(wire::FuturesHello {
                hello: Some(hello::hello()),
                client: name.to_owned(),
                is_back: wanted.is_some(),
                wanted: wanted.unwrap_or_default(),
                versions: vec![wire::Version {
                    name: "python".to_owned(),
                    version: "3.12.1".to_owned(),
                }],
            }),
            commands: Vec::new(),
        };
        sender.send(first).await.unwrap();
        let exchange = service.exchange(ReceiverStream::new(receiver)).await;
        let mut dask = Self {
            service,
            name: name.to_owned(),
            sender: Some(sender),
            inbound: exchange.unwrap().into_inner(),
            number: 0,
            acknowledged: 0,
            events: Vec::new(),
            is_restarted: false,
            refused: None,
        };
        let first = dask.next().await.unwrap();
        assert!(first.hello.is_some());
        dask
    }

    async fn say(&mut self, command: Command) {
        self.number += 1;
        self.say_again(self.number, command).await;
    }

    async fn say_again(&mut self, number: u64, command: Command) {
        let command = wire::FuturesCommand {
            number,
            command: Some(command),
        };
        let batch = wire::FuturesBatch {
            hello: None,
            commands: vec![command],
        };
        self.sender.as_ref().unwrap().send(batch).await.unwrap();
    }

    async fn submit(&mut self, tasks: &[Task<'_>], wanted: &[&str]) {
        self.say(Command::Submit(submission("body", tasks, wanted)))
            .await;
    }

    async fn release(&mut self, keys: &[&str]) {
        self.say(Command::Release(self::keys(keys))).await;
    }

    async fn next(&mut self) -> Option<wire::FuturesReply> {
        let reply = timeout(PATIENCE, self.inbound.message()).await.unwrap();
        let reply = reply.ok().flatten()?;
        self.acknowledged = self.acknowledged.max(reply.acknowledged);
        self.is_restarted |= reply.is_restarted;
        let events = reply.events.iter().cloned();
        self.events
            .extend(events.map(|event| (event.key, event.event.unwrap())));
        if reply.refused.is_some() {
            self.refused.clone_from(&reply.refused);
        }
        Some(reply)
    }

    async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !what(self) {
                assert!(self.next().await.is_some(), "the stream is over");
            }
        };
        let is_there = timeout(PATIENCE, waiting).await;
        assert!(is_there.is_ok(), "what is waited for comes");
    }

    /// What is told next of a key.
    async fn heard(&mut self, key: &str) -> Event {
        loop {
            if let Some(at) = self.events.iter().position(|(told, _)| told == key) {
                return self.events.remove(at).1;
            }
            assert!(self.next().await.is_some(), "the stream is over");
        }
    }

    async fn ready(&mut self, key: &str) -> wire::TaskId {
        match self.heard(key).await {
            Event::Ready(ready) => ready.task.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The value that came with the news, if there was one.
    async fn ready_value(&mut self, key: &str) -> Option<Bytes> {
        match self.heard(key).await {
            Event::Ready(ready) => ready.value.map(|value| value.data),
            other => panic!("{other:?}"),
        }
    }

    async fn fetch(&self, cluster: &Cluster, task: wire::TaskId) -> Bytes {
        let mut scheduler = cluster.connect(Role::Worker).await;
        let request = wire::FetchRequest {
            tasks: vec![task],
            places_wanted: false,
        };
        let mut chunks = scheduler.fetch(request).await.unwrap().into_inner();
        let found = Fetched::read(&mut chunks).await.found;
        found[0].1.clone().unwrap()
    }

    async fn ask(&mut self, question: Value) -> Result<Value, wire::Fault> {
        let question = wire::Question {
            client: self.name.clone(),
            content: question.to_string().into_bytes().into(),
            values: Vec::new(),
        };
        let answer = self.service.ask(question).await.unwrap().into_inner();
        match answer.fault {
            Some(fault) => Err(fault),
            None => Ok(serde_json::from_slice(&answer.content).unwrap()),
        }
    }

    /// Ends the stream as a client does that is closed.
    async fn close(mut self) {
        self.sender = None;
        while self.next().await.is_some() {}
    }
}

fn keys(keys: &[&str]) -> wire::Keys {
    wire::Keys {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
    }
}

async fn assigned(worker: &mut ScriptedWorker, key: &str) -> wire::Assign {
    let found = worker.assigned().await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].key, key);
    found[0].clone()
}

async fn done(worker: &mut ScriptedWorker, key: &str) {
    let assign = assigned(worker, key).await;
    let data = Bytes::from(format!("<{key}>"));
    worker.finish(&[assign], |_| data.clone()).await;
}

/// Reports the end of a task with its value beside it.
async fn done_with(worker: &ScriptedWorker, assign: &wire::Assign, value: &str) {
    let data = Bytes::from(value.to_owned());
    let finished = ScriptedWorker::finished(assign, data.len());
    let value = Some(wire::SmallValue { kind: 1, data });
    let batch = wire::WorkerBatch {
        reports: vec![finished],
        values: vec![wire::ReportedValue { report: 0, value }],
        ..Default::default()
    };
    worker.send(batch).await;
}

fn core() -> CoreConfig {
    CoreConfig {
        suspect_grace_micros: 2_000_000,
        reunion_micros: 200_000,
        ..CoreConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_with_their_arguments_and_results_are_fetched() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("a", &[]), ("b", &["a"]), ("unneeded", &["a"])], &["b"])
        .await;
    let first = assigned(&mut worker, "a").await;
    assert_eq!(
        (&first.arguments[..], &worker.body(&first)[..]),
        (&b"a"[..], &b"body"[..])
    );
    worker.finish(&[first], |_| Bytes::from_static(b"1")).await;
    done(&mut worker, "b").await;
    let task = dask.ready("b").await;
    assert_eq!(dask.acknowledged, 1);
    assert_eq!(dask.fetch(&cluster, task).await, "<b>");
    // A key of an earlier submission as an input, of a client in a task.
    let mut other = Dask::open(&cluster, "nested", Role::Worker, None).await;
    other.submit(&[("c", &["b", "b"])], &["c"]).await;
    let third = assigned(&mut worker, "c").await;
    assert_eq!(third.inputs, [task.task, task.task]);
    worker.finish(&[third], |_| Bytes::from_static(b"3")).await;
    other.ready("c").await;
    let text = metrics(&cluster).await;
    assert!(
        text.contains("oxidask_scheduler_futures_clients 2\n"),
        "{text}"
    );
    assert!(
        text.contains("oxidask_scheduler_futures_keys 2\n"),
        "{text}"
    );
    assert!(text.contains("oxidask_scheduler_clients 2.0\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_somebody_wants_is_shared_and_hears_its_state_at_once() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut first = Dask::join(&cluster, "first").await;
    let mut second = Dask::join(&cluster, "second").await;
    first.submit(&[("k", &[])], &["k"]).await;
    done(&mut worker, "k").await;
    let task = first.ready("k").await;
    second.submit(&[("k", &[])], &["k"]).await;
    assert_eq!(second.ready("k").await, task);
    first.release(&["k"]).await;
    first.until(|client| client.acknowledged == 2).await;
    assert_eq!(second.fetch(&cluster, task).await, "<k>");
    // Wanted without a submission of its own, and by another way before the submission comes.
    first.say(Command::Want(keys(&["k", "early"]))).await;
    assert_eq!(first.ready("k").await, task);
    second.submit(&[("early", &[])], &["early"]).await;
    done(&mut worker, "early").await;
    first.ready("early").await;
    first.release(&["k", "early"]).await;
    second.release(&["k", "early"]).await;
    second.until(|client| client.acknowledged == 3).await;
    first.until(|client| client.acknowledged == 4).await;
    // Nobody wants it any more: it is made anew.
    second.submit(&[("k", &[])], &["k"]).await;
    done(&mut worker, "k").await;
    assert_ne!(second.ready("k").await, task);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_values_come_with_the_news_to_those_who_wait() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut first = Dask::join(&cluster, "first").await;
    let mut second = Dask::join(&cluster, "second").await;
    first.submit(&[("i", &[]), ("k", &["i"])], &["k"]).await;
    let input = assigned(&mut worker, "i").await;
    assert!(!input.value_wanted, "nobody waits for it");
    second.say(Command::Want(keys(&["k"]))).await;
    second.until(|client| client.acknowledged == 1).await;
    done_with(&worker, &input, "i").await;
    let assign = assigned(&mut worker, "k").await;
    assert!(assign.value_wanted);
    done_with(&worker, &assign, "value").await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.ready_value("k").await.unwrap(), "value");
    }
    // It is kept nowhere but at its worker.
    let mut late = Dask::join(&cluster, "late").await;
    late.say(Command::Want(keys(&["k"]))).await;
    assert_eq!(late.ready_value("k").await, None);
    first.submit(&[("large", &[])], &["large"]).await;
    let assign = assigned(&mut worker, "large").await;
    done_with(&worker, &assign, &"x".repeat(SMALL_VALUE_BYTES_MAX + 1)).await;
    assert_eq!(first.ready_value("large").await, None);
    // Clients of graphs fetch what they want.
    let mut client = Session::open(&cluster, "graph").await;
    let chunk = client.independent(1, &["body"]);
    client.send(chunk).await;
    let assign = worker.assigned().await.remove(0);
    assert!(!assign.value_wanted);
    done_with(&worker, &assign, "unasked").await;
    client.until(|client| !client.ready.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_made_again_comes_with_its_own_value_or_without_one() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("k", &[])], &["k"]).await;
    let first = assigned(&mut worker, "k").await;
    done_with(&worker, &first, "first").await;
    assert_eq!(dask.ready_value("k").await.unwrap(), "first");
    for (said, expected) in [(Some("again"), Some("again")), (None, None)] {
        let task = Some(wire::TaskId {
            graph: first.graph,
            task: first.task,
        });
        let missing = wire::CopyMissing {
            task,
            worker: worker.number,
        };
        let batch = wire::WorkerBatch {
            copies_missing: vec![missing],
            ..Default::default()
        };
        worker.send(batch).await;
        let again = assigned(&mut worker, "k").await;
        assert!(again.attempt > first.attempt && again.value_wanted);
        // An end of the attempt before means nothing, nor does its value.
        done_with(&worker, &first, "stale").await;
        match said {
            Some(value) => done_with(&worker, &again, value).await,
            None => {
                worker
                    .finish(&[again], |_| Bytes::from_static(b"new"))
                    .await;
            }
        }
        let value = dask.ready_value("k").await;
        assert_eq!(value.as_deref(), expected.map(str::as_bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_for_places_is_told_where_large_results_are() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    let sizes = [10, 100_000];
    let mut tasks = Vec::new();
    for (key, bytes) in ["a", "b"].into_iter().zip(sizes) {
        dask.submit(&[(key, &[])], &[key]).await;
        let assign = assigned(&mut worker, key).await;
        worker.finish(&[assign], |_| vec![7; bytes].into()).await;
        tasks.push(dask.ready(key).await);
    }
    let mut scheduler = cluster.connect(Role::Client).await;
    let request = wire::FetchRequest {
        tasks: tasks.clone(),
        places_wanted: true,
    };
    let mut chunks = scheduler.fetch(request).await.unwrap().into_inner();
    let small = chunks.message().await.unwrap().unwrap();
    assert_eq!((small.small.len(), &*small.data_address), (1, ""));
    let place = chunks.message().await.unwrap().unwrap();
    assert_eq!((place.task, place.total_bytes), (Some(tasks[1]), 100_000));
    assert!(!place.is_start && place.data.is_empty());
    let pool = BulkPool::new(cluster.credentials(Role::Client));
    let key = bulk_key(tasks[1].into());
    let found = pool.fetch(&place.data_address, &[key]).await.unwrap();
    assert_eq!(found[0].1.as_ref().unwrap().len(), 100_000);
    assert_eq!(chunks.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_said_again_is_acknowledged_and_ignored() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("k", &[])], &["k"]).await;
    done(&mut worker, "k").await;
    dask.ready("k").await;
    dask.release(&["k"]).await;
    dask.until(|dask| dask.acknowledged == 2).await;
    dask.acknowledged = 0;
    let again = Command::Submit(submission("body", &[("k", &[])], &["k"]));
    dask.say_again(1, again).await;
    dask.until(|dask| dask.acknowledged == 2).await;
    worker
        .never(A_MOMENT, |batch| {
            !support::assignments(batch.clone()).is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_made_is_told_and_harms_nobody() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(
        &[("x", &["nowhere"]), ("y", &["x"]), ("z", &[])],
        &["x", "y", "z"],
    )
    .await;
    for key in ["x", "y"] {
        match dask.heard(key).await {
            Event::Cancelled(cancelled) => assert_eq!(cancelled.reason, "lost dependencies"),
            other => panic!("{other:?}"),
        }
    }
    done(&mut worker, "z").await;
    dask.ready("z").await;
    let long = "k".repeat(2_000);
    dask.submit(&[(&long, &[])], &[&long]).await;
    match dask.heard(&long).await {
        Event::Failed(fault) => assert_eq!(fault.code, "OX340"),
        other => panic!("{other:?}"),
    }
    dask.submit(&[("after", &["z"])], &["after"]).await;
    done(&mut worker, "after").await;
    dask.ready("after").await;
    dask.say(Command::Want(keys(&["never"]))).await;
    assert_eq!(dask.heard("never").await, Event::Lost(wire::Empty {}));
    let mut broken = submission("body", &[("q", &[])], &["q"]);
    broken.key_lengths = vec![9];
    dask.say(Command::Submit(broken)).await;
    while dask.next().await.is_some() {}
    assert_eq!(dask.refused.unwrap().code, "OX340");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_reach_all_that_depend_on_them_and_can_be_tried_again() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    let mut other = Dask::join(&cluster, "d").await;
    let tasks: [Task<'_>; 4] = [("i", &[]), ("f", &["i"]), ("m", &["f"]), ("e", &["m", "i"])];
    dask.submit(&tasks, &["i", "e"]).await;
    done(&mut worker, "i").await;
    dask.ready("i").await;
    other.submit(&[("of-other", &["e"])], &["of-other"]).await;
    other.until(|client| client.acknowledged == 1).await;
    let failing = assigned(&mut worker, "f").await;
    let reports = vec![ScriptedWorker::failed(&failing, 3)];
    worker
        .send(wire::WorkerBatch {
            reports,
            ..Default::default()
        })
        .await;
    for (client, key) in [(&mut dask, "e"), (&mut other, "of-other")] {
        match client.heard(key).await {
            Event::Failed(fault) => assert_eq!((&*fault.code, &*fault.message), ("OX208", "xxx")),
            event => panic!("{event:?}"),
        }
    }
    // Attached to as it is.
    other.submit(&tasks, &["e"]).await;
    assert!(matches!(other.heard("e").await, Event::Failed(_)));
    dask.say(Command::Retry(keys(&["e", "i"]))).await;
    assert_eq!(dask.heard("e").await, Event::Retried(wire::Empty {}));
    assert_eq!(
        other.heard("of-other").await,
        Event::Retried(wire::Empty {})
    );
    let again = assigned(&mut worker, "f").await;
    assert_eq!(
        (&again.arguments[..], &worker.body(&again)[..]),
        (&b"f"[..], &b"body"[..])
    );
    worker.finish(&[again], |_| Bytes::from_static(b"f")).await;
    for key in ["m", "e", "of-other"] {
        done(&mut worker, key).await;
    }
    let task = dask.ready("e").await;
    assert_eq!(dask.fetch(&cluster, task).await, "<e>");
    other.ready("of-other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_key_stops_with_its_dependents_unless_others_want_it() {
    let cluster = Cluster::start().await;
    let mut dask = Dask::join(&cluster, "c").await;
    let mut other = Dask::join(&cluster, "d").await;
    dask.submit(
        &[("a", &[]), ("b", &["a"]), ("shared", &["a"]), ("kept", &[])],
        &["a", "b", "shared", "kept"],
    )
    .await;
    dask.until(|client| client.acknowledged == 1).await;
    other.say(Command::Want(keys(&["shared"]))).await;
    other.until(|client| client.acknowledged == 1).await;
    let cancel = wire::CancelKeys {
        keys: vec!["a".to_owned()],
        is_forced: false,
        reason: "tidy".to_owned(),
        message: "no longer wanted".to_owned(),
    };
    dask.say(Command::Cancel(cancel.clone())).await;
    for key in ["a", "b"] {
        match dask.heard(key).await {
            Event::Cancelled(told) => {
                assert_eq!(
                    (told.reason, told.message),
                    (cancel.reason.clone(), cancel.message.clone())
                );
            }
            event => panic!("{event:?}"),
        }
    }
    let worker = ScriptedWorker::join(&cluster, "default-0").await;
    worker.run();
    dask.ready("kept").await;
    dask.ready("shared").await;
    other.ready("shared").await;
    let status = dask
        .ask(json!({"op": "task_status", "keys": ["a", "b", "kept"]}))
        .await;
    assert_eq!(
        status.unwrap()["status"],
        json!({"a": null, "b": null, "kept": "memory"})
    );
    let forced = wire::CancelKeys {
        keys: vec!["shared".to_owned()],
        is_forced: true,
        ..cancel
    };
    dask.say(Command::Cancel(forced)).await;
    assert!(matches!(other.heard("shared").await, Event::Cancelled(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanished_comes_back_and_one_that_left_is_forgotten() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("a", &[]), ("b", &[])], &["a", "b"]).await;
    let both = worker.assigned().await;
    worker
        .finish(&both, |assign| Bytes::from(assign.key.clone()))
        .await;
    if both.len() == 1 {
        done(&mut worker, "b").await;
    }
    let task = dask.ready("a").await;
    dask.ready("b").await;
    let mut watcher = Dask::join(&cluster, "w").await;
    // Its connection is cut: no end of its stream comes.
    drop(dask);
    sleep(A_MOMENT).await;
    let all = watcher.ask(json!({"op": "who_has"})).await.unwrap();
    assert_eq!(all["who_has"].as_object().unwrap().len(), 2, "{all}");
    let mut back = Dask::come_back(&cluster, "c", &["a", "gone"]).await;
    assert_eq!(back.ready("a").await, task);
    assert_eq!(back.heard("gone").await, Event::Lost(wire::Empty {}));
    let all = watcher.ask(json!({"op": "who_has"})).await.unwrap();
    assert_eq!(all["who_has"].as_object().unwrap().len(), 1, "{all}");
    back.close().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = watcher.ask(json!({"op": "who_has"})).await.unwrap();
        if all["who_has"] == json!({}) {
            break;
        }
        assert!(Instant::now() < deadline, "{all}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A worker with a GPU that holds the result of `k`, and the client that wants it.
async fn with_a_result(cluster: &Cluster) -> (ScriptedWorker, Dask, String) {
    let hello = wire::WorkerHello {
        slots: 3,
        resources: vec![wire::Amount {
            name: "GPU".to_owned(),
            amount: 1,
        }],
        ..ScriptedWorker::hello("default-0")
    };
    let mut worker = ScriptedWorker::join_as(cluster, hello).await;
    let address = format!("oxidask://{}", worker.data_address);
    let mut dask = Dask::join(cluster, "c").await;
    let mut pinned = submission("body", &[("k", &[])], &["k"]);
    pinned.requirement = vec![1];
    pinned.requirements = vec![wire::Requirement {
        slots: 1,
        resources: vec![wire::Amount {
            name: "GPU".to_owned(),
            amount: 1,
        }],
        workers: vec![address.clone()],
    }];
    dask.say(Command::Submit(pinned)).await;
    let assign = assigned(&mut worker, "k").await;
    let processing = dask.ask(json!({"op": "processing"})).await.unwrap();
    assert_eq!(processing["processing"], json!({address.clone(): ["k"]}));
    worker
        .finish(&[assign], |_| Bytes::from_static(b"12345"))
        .await;
    dask.ready("k").await;
    (worker, dask, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_says_who_it_is() {
    let cluster = Cluster::start().await;
    let (_worker, mut dask, address) = with_a_result(&cluster).await;
    let identity = dask.ask(json!({"op": "identity"})).await.unwrap();
    let first = &identity["workers"][0];
    assert_eq!(identity["dashboard_port"], json!(cluster.http.port()));
    assert_eq!(
        (
            &first["name"],
            &first["address"],
            &first["nthreads"],
            &first["status"]
        ),
        (
            &json!("default-0"),
            &json!(address),
            &json!(3),
            &json!("running")
        )
    );
    assert_eq!(first["resources"], json!({"GPU": 1}));
    assert_eq!(
        (&identity["total_threads"], &identity["total_memory"]),
        (&json!(3), &json!(1 << 30))
    );
    let versions = dask.ask(json!({"op": "versions"})).await.unwrap();
    assert_eq!(versions["clients"]["c"]["python"], json!("3.12.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_about_the_cluster_are_answered() {
    let cluster = Cluster::start().await;
    let (_worker, mut dask, address) = with_a_result(&cluster).await;
    for (question, answer) in [
        (
            json!({"op": "who_has", "keys": ["k", "x"]}),
            json!({"who_has": {"k": [address]}}),
        ),
        (
            json!({"op": "has_what"}),
            json!({"has_what": {address.clone(): ["k"]}}),
        ),
        (
            json!({"op": "nbytes", "keys": null}),
            json!({"nbytes": {"k": 5}}),
        ),
        (
            json!({"op": "ncores", "workers": ["default-0"]}),
            json!({"ncores": {address.clone(): 3}}),
        ),
        (
            json!({"op": "ncores", "workers": ["other"]}),
            json!({"ncores": {}}),
        ),
        (
            json!({"op": "ncores_running"}),
            json!({"ncores": {address.clone(): 3}}),
        ),
        (
            json!({"op": "worker_names"}),
            json!({"names": {"default-0": address}}),
        ),
        (
            json!({"op": "groups"}),
            json!({"groups": [{"name": "g", "total": 1, "done": 1, "running": 0, "failed": 0, "bytes": 5}]}),
        ),
        (
            json!({"op": "worker_logs", "n": 5}),
            json!({"logs": {address.clone(): []}}),
        ),
        (
            json!({"op": "adaptive_target", "target_seconds": 1}),
            json!({"target": 1}),
        ),
        (
            json!({"op": "workers_to_close", "count": 1}),
            json!({"workers": [address]}),
        ),
    ] {
        assert_eq!(
            dask.ask(question.clone()).await.unwrap(),
            answer,
            "{question}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_are_not_there_are_refused() {
    let cluster = Cluster::start().await;
    let mut dask = Dask::join(&cluster, "c").await;
    for question in [
        json!({"op": "benchmark_hardware"}),
        json!({"op": "who_has", "keys": 3}),
    ] {
        let fault = dask.ask(question.clone()).await.unwrap_err();
        assert_eq!(fault.code, "OX342", "{question}");
        let operation = question["op"].as_str().unwrap();
        assert!(fault.message.contains(operation), "{}", fault.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_a_client_asks_for_drops_all_keys() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    let mut other = Dask::join(&cluster, "d").await;
    dask.submit(&[("k", &[])], &["k"]).await;
    done(&mut worker, "k").await;
    let before = dask.ready("k").await;
    assert_eq!(
        other.ask(json!({"op": "restart"})).await.unwrap(),
        json!({})
    );
    dask.until(|dask| dask.is_restarted).await;
    other.until(|dask| dask.is_restarted).await;
    dask.submit(&[("k", &[])], &["k"]).await;
    done(&mut worker, "k").await;
    assert_ne!(dask.ready("k").await.graph, before.graph);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_survive_a_scheduler_that_starts_anew() {
    let folder = TempDir::new().unwrap();
    let journal = |path: &std::path::Path| JournalConfig {
        delay: Duration::from_millis(1),
        ..JournalConfig::in_folder(path)
    };
    let mut cluster = Cluster::start_kept(core(), Some(journal(folder.path()))).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("a", &[]), ("b", &["a"])], &["a", "b"]).await;
    done(&mut worker, "a").await;
    dask.ready("a").await;
    let running = assigned(&mut worker, "b").await;
    worker.start(&running).await;
    dask.until(|dask| dask.acknowledged == 1).await;
    sleep(A_MOMENT).await;
    let crashed = image(folder.path());
    let worker = worker.cut();
    cluster.replace(core(), Some(journal(crashed.path()))).await;

    let mut back = Dask::come_back(&cluster, "c", &["a", "b", "unknown"]).await;
    back.number = 1;
    // Said again, because it was not acknowledged before the crash.
    back.submit(&[("c", &["a"])], &["c"]).await;
    let mut worker = worker.come_back(&cluster).await;
    assert!(worker.is_resumed);
    let mut inventory = ScriptedWorker::holding(&[(running.graph, 0, 3)]);
    inventory.running = vec![wire::AttemptId {
        task: Some(wire::TaskId {
            graph: running.graph,
            task: running.task,
        }),
        epoch: running.epoch,
        attempt: running.attempt,
    }];
    worker.send_inventory(inventory).await;
    let a = back.ready("a").await;
    assert_eq!((a.graph, a.task), (running.graph, 0));
    worker
        .finish(&[running], |_| Bytes::from_static(b"<b>"))
        .await;
    done(&mut worker, "c").await;
    let b = back.ready("b").await;
    assert_eq!(back.fetch(&cluster, b).await, "<b>");
    back.ready("c").await;
    back.until(|dask| dask.acknowledged == 2).await;
    assert_eq!(back.heard("unknown").await, Event::Lost(wire::Empty {}));
}

/// What a crash would leave of a folder now.
fn image(folder: &std::path::Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "log" || extension == "snap")
            || path.file_name().is_some_and(|name| name != "lock")
        {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_nobody_wants_go_and_what_needs_them_makes_them_anew() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    dask.submit(&[("a", &[]), ("b", &["a"])], &["b"]).await;
    done(&mut worker, "a").await;
    done(&mut worker, "b").await;
    let b = dask.ready("b").await;
    dask.release(&["b"]).await;
    let is_dropped = |batch: &wire::WorkBatch| {
        batch.orders.iter().any(|order| {
            let released = Some(wire::order::Order::Release(b));
            order.order == released
        })
    };
    worker.until(is_dropped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_coordinate_and_small_values_are_put() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut dask = Dask::join(&cluster, "c").await;
    let mut other = Dask::join(&cluster, "d").await;
    let set = json!({"op": "event_set", "name": "e"});
    let wait = json!({"op": "event_wait", "name": "e", "timeout_ms": 10_000});
    let waiting = tokio::spawn(async move { other.ask(wait).await });
    sleep(A_MOMENT).await;
    assert!(!waiting.is_finished());
    dask.ask(set).await.unwrap();
    let answer = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(answer["truth"], json!(true), "{answer}");
    let late = json!({"op": "event_wait", "name": "never", "timeout_ms": 50});
    let began = Instant::now();
    dask.ask(late).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));

    let part = wire::PutPart {
        client: "c".to_owned(),
        key: "put".to_owned(),
        kind: 1,
        total_bytes: 5,
        data: Bytes::from_static(b"value"),
        ..wire::PutPart::default()
    };
    let reply = dask.service.put(tokio_stream::iter([part])).await;
    let reply = reply.unwrap().into_inner();
    assert_eq!(reply.fault, None);
    let assign = assigned(&mut worker, "put").await;
    assert!(assign.arguments.ends_with(b"value"));
    worker
        .finish(&[assign], |_| Bytes::from_static(b"value"))
        .await;
    assert_eq!(Some(dask.ready("put").await), reply.task);
}
