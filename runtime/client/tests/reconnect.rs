//! A client whose scheduler dies, comes back, or comes back as another one. The scheduler is a play:
//! it keeps what a journal would keep, and a kill takes all its connections away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use oxidask_client::{Client, GraphEvent, GraphRun};
use oxidask_comm::{Credentials, install_crypto_provider};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_proto::wire::scheduler_server::{Scheduler, SchedulerServer};
use oxidask_proto::{hello, wire};
use oxidask_store::PayloadKind;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a journal keeps, and what a test wants to know.
struct State {
    incarnation: u64,
    graphs: BTreeMap<String, Graph>,
    /// Chunks from this number on are taken but not acknowledged, and a kill loses them.
    acknowledged_before: u32,
    /// Incarnations that clients say they have met.
    met: Vec<u64>,
    /// The newest session.
    session: Option<mpsc::UnboundedSender<wire::SessionBatch>>,
    /// Each fetch breaks after so many answers.
    fetch_breaks_after: usize,
    fetched: Vec<Vec<u32>>,
}

#[derive(Default, Clone)]
struct Graph {
    number: u32,
    chunks: Vec<u32>,
    /// All chunks that ever came, also those that were lost.
    seen: Vec<u32>,
    released: Vec<u32>,
    cancelled: usize,
    closed: usize,
    opened: usize,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Play(Arc<Mutex<State>>);

impl Play {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn take(state: &mut State, name: &str, batch: wire::ClientBatch) -> wire::SessionBatch {
    let before = state.acknowledged_before;
    let graph = state.graphs.get_mut(name).unwrap();
    let mut answer = wire::SessionBatch::default();
    for chunk in batch.chunks {
        assert_eq!(chunk.graph, graph.number);
        graph.seen.push(chunk.number);
        if chunk.number < before {
            graph.chunks.push(chunk.number);
            let (graph, number) = (graph.number, chunk.number);
            answer.accepted.push(wire::ChunkAccepted { graph, number });
        }
    }
    graph
        .released
        .extend(batch.released.iter().map(|id| id.task));
    graph.cancelled += batch.cancelled.len();
    graph.closed += batch.closed.len();
    answer
}

#[tonic::async_trait]
impl Scheduler for Play {
    type WorkStream = Answers<wire::WorkBatch>;
    type SessionStream = Answers<wire::SessionBatch>;
    type FetchStream = Answers<wire::FetchChunk>;
    type TelemetryStream = Answers<wire::TelemetryReply>;
    type LogsStream = Answers<wire::LogsReply>;

    async fn session(
        &self,
        request: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let name = first.open.unwrap().name;
        {
            let mut state = self.state();
            state.met.push(first.hello.unwrap().incarnation);
            let number = u32::try_from(state.graphs.len()).unwrap() + 1;
            let graph = state.graphs.entry(name.clone()).or_insert_with(|| Graph {
                number,
                ..Graph::default()
            });
            graph.opened += 1;
            let attached = wire::GraphAttached {
                name: name.clone(),
                graph: graph.number,
                next_chunk: u32::try_from(graph.chunks.len()).unwrap(),
            };
            let hello = wire::Hello {
                incarnation: state.incarnation,
                ..hello::hello()
            };
            let answer = wire::SessionBatch {
                hello: Some(hello),
                attached: vec![attached],
                ..Default::default()
            };
            sender.send(answer).unwrap();
            state.session = Some(sender.clone());
        }
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = inbound.message().await {
                let answer = take(&mut state.lock().unwrap(), &name, batch);
                let _ = sender.send(answer);
            }
            state.lock().unwrap().session = None;
        });
        let answers = futures::stream::unfold(receiver, |mut receiver| async move {
            let batch = receiver.recv().await?;
            Some((Ok(batch), receiver))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let tasks = request.into_inner().tasks;
        let mut state = self.state();
        state
            .fetched
            .push(tasks.iter().map(|task| task.task).collect());
        let breaks_after = state.fetch_breaks_after;
        let is_broken = tasks.len() > breaks_after;
        let answer = |task: wire::TaskId| {
            let data = task.task.to_string().into_bytes().into();
            let kind = PayloadKind::Value as u32;
            let task = Some(task);
            let small = vec![wire::SmallResult { task, kind, data }];
            Ok(wire::FetchChunk {
                small,
                ..Default::default()
            })
        };
        let answers: Vec<_> = tasks.into_iter().take(breaks_after).map(answer).collect();
        let broken = is_broken.then(|| Err(Status::unavailable("broken on purpose")));
        let answers = futures::stream::iter(answers.into_iter().chain(broken));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn work(
        &self,
        _: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn retire(
        &self,
        _: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn worker_ended(
        &self,
        _: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn telemetry(
        &self,
        _: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn explain(
        &self,
        _: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        Err(Status::unimplemented("not in this play"))
    }

    async fn logs(
        &self,
        _: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("not in this play"))
    }
}

/// A scheduler that can be killed and started again at the same port, which is always bound.
struct Stage {
    authority: Authority,
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    running: Option<Runtime>,
}

impl Stage {
    fn new() -> Self {
        install_crypto_provider();
        let state = State {
            incarnation: 7,
            graphs: BTreeMap::new(),
            acknowledged_before: u32::MAX,
            met: Vec::new(),
            session: None,
            fetch_breaks_after: usize::MAX,
            fetched: Vec::new(),
        };
        let mut stage = Self {
            authority: Authority::new("local", "test").unwrap(),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            state: Arc::new(Mutex::new(state)),
            running: None,
        };
        stage.start();
        stage
    }

    fn credentials(&self, role: Role) -> Credentials {
        let leaf = self.authority.issue(role, Duration::from_hours(1)).unwrap();
        Credentials::from_pem(&self.authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
    }

    fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = self.listener.try_clone().unwrap();
        listener.set_nonblocking(true).unwrap();
        let credentials = self.credentials(Role::Scheduler);
        let play = Play(Arc::clone(&self.state));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let never = CancellationToken::new();
            let incoming = oxidask_comm::incoming(listener, credentials, never);
            let service = SchedulerServer::new(play);
            let server = oxidask_comm::server().add_service(service);
            server.serve_with_incoming(incoming).await
        });
        self.running = Some(runtime);
    }

    /// All its connections break, and what was not acknowledged is lost.
    fn kill(&mut self) {
        self.running.take().unwrap().shutdown_background();
        self.state().session = None;
    }

    async fn client(&self) -> Client {
        let address = format!("oxidask://{}", self.listener.local_addr().unwrap());
        let client = Client::connect(&address, &self.credentials(Role::Client)).await;
        client.unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn graph(&self, name: &str) -> Graph {
        self.state().graphs[name].clone()
    }

    /// Says something in the newest session.
    fn say(&self, batch: wire::SessionBatch) {
        self.state().session.as_ref().unwrap().send(batch).unwrap();
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let start = Instant::now();
        while !holds(&self.state()) {
            assert!(start.elapsed() < PATIENCE, "waited for {what}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown_background();
        }
    }
}

fn ready(graph: u32, tasks: &[u32]) -> wire::SessionBatch {
    wire::SessionBatch {
        ready_graph: vec![graph; tasks.len()],
        ready_task: tasks.to_vec(),
        ready_bytes: vec![1; tasks.len()],
        ..Default::default()
    }
}

fn chunks(count: usize) -> impl Iterator<Item = wire::GraphChunk> + Send {
    (0..count).map(|_| wire::GraphChunk::default())
}

async fn next(run: &mut GraphRun) -> GraphEvent {
    let event = timeout(PATIENCE, run.next_event()).await;
    event.expect("an event comes").expect("the last event")
}

async fn until_connected_again(run: &mut GraphRun) {
    let lost = next(run).await;
    assert!(matches!(lost, GraphEvent::Reconnecting(_)), "{lost:?}");
    let again = next(run).await;
    assert_eq!(again, GraphEvent::Reconnected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_lost_is_said_again_and_nothing_is_heard_twice() {
    let mut stage = Stage::new();
    stage.state().acknowledged_before = 3;
    let client = stage.client().await;
    let mut run = client.open("g").await.unwrap();
    run.send(chunks(6)).await;
    stage
        .eventually("all chunks", |state| state.graphs["g"].seen.len() == 6)
        .await;
    let number = run.graph();
    stage.say(ready(number, &[0, 1, 2]));
    assert_eq!(
        next(&mut run).await,
        GraphEvent::Ready(vec![(0, 1), (1, 1), (2, 1)])
    );
    run.release(vec![0, 2]);
    stage
        .eventually("releases", |state| state.graphs["g"].released.len() == 2)
        .await;

    stage.kill();
    stage.state().acknowledged_before = u32::MAX;
    sleep(Duration::from_millis(300)).await;
    stage.start();
    until_connected_again(&mut run).await;
    stage
        .eventually("what was lost", |state| {
            let graph = &state.graphs["g"];
            graph.chunks.len() == 6 && graph.released.len() == 4
        })
        .await;
    let graph = stage.graph("g");
    assert_eq!(graph.chunks, [0, 1, 2, 3, 4, 5]);
    assert_eq!(graph.seen, [0, 1, 2, 3, 4, 5, 3, 4, 5]);
    assert_eq!(graph.released, [0, 2, 0, 2]);
    assert_eq!(stage.state().met, [0, 7], "the incarnation that was met");

    // It says everything again.
    let done = wire::SessionBatch {
        done: vec![number],
        ..ready(number, &[0, 1, 2, 3])
    };
    stage.say(done.clone());
    stage.say(done);
    assert_eq!(next(&mut run).await, GraphEvent::Ready(vec![(3, 1)]));
    assert_eq!(next(&mut run).await, GraphEvent::Done);
    run.cancel();
    stage
        .eventually("the cancellation", |state| state.graphs["g"].cancelled == 1)
        .await;
    stage.kill();
    stage.start();
    until_connected_again(&mut run).await;
    stage
        .eventually("the cancellation again", |state| {
            state.graphs["g"].cancelled == 2
        })
        .await;
    run.close().await;
    stage
        .eventually("the end", |state| state.graphs["g"].closed == 1)
        .await;
    let state = stage.state();
    let twice = state.graphs["g"].seen.len();
    assert_eq!(twice, 9, "acknowledged chunks are not said again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_waits_for_acknowledgements_and_goes_on_after_a_death() {
    const CHUNKS: usize = 40;
    let mut stage = Stage::new();
    stage.state().acknowledged_before = 10;
    let client = stage.client().await;
    let run = client.open("g").await.unwrap();
    let sending = tokio::spawn(async move {
        run.send(chunks(CHUNKS)).await;
        run
    });
    stage
        .eventually("the window", |state| state.graphs["g"].seen.len() == 18)
        .await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(
        stage.graph("g").seen.len(),
        18,
        "8 beyond those that are safe"
    );
    assert!(!sending.is_finished());
    stage.kill();
    stage.state().acknowledged_before = u32::MAX;
    stage.start();
    let run = timeout(PATIENCE, sending).await.unwrap().unwrap();
    let count = u32::try_from(CHUNKS).unwrap();
    stage
        .eventually("all chunks", |state| {
            state.graphs["g"].chunks.len() == CHUNKS
        })
        .await;
    assert_eq!(stage.graph("g").chunks, (0..count).collect::<Vec<_>>());
    drop(run);
}

async fn until_disconnected(run: &mut GraphRun) -> Diagnostic {
    loop {
        if let GraphEvent::Disconnected(diagnostic) = next(run).await {
            assert!(run.next_event().await.is_none());
            return diagnostic;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_without_its_journal_is_a_clear_error() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let mut run = client.open("g").await.unwrap();
    run.send(chunks(2)).await;
    stage
        .eventually("all chunks", |state| state.graphs["g"].chunks.len() == 2)
        .await;
    stage.kill();
    {
        let mut state = stage.state();
        state.incarnation = 8;
        state.graphs.clear();
    }
    stage.start();
    let diagnostic = until_disconnected(&mut run).await;
    assert_eq!(diagnostic.code, Code::GraphForgotten);
    assert!(
        diagnostic.message.contains("lost its journal"),
        "{diagnostic}"
    );
    let found: Vec<_> = run.fetch(vec![0]).collect().await;
    assert!(found[0].1.is_ok(), "this play answers whoever asks");
    // The client itself goes on: a new graph is nothing that was lost.
    client.open("other").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_that_was_dropped_meanwhile_does_not_begin_anew() {
    for other_number in [false, true] {
        let mut stage = Stage::new();
        let client = stage.client().await;
        let mut run = client.open("g").await.unwrap();
        run.send(chunks(2)).await;
        stage
            .eventually("all chunks", |state| state.graphs["g"].chunks.len() == 2)
            .await;
        // The second acknowledgement has arrived when what follows it has.
        stage.say(ready(run.graph(), &[0]));
        next(&mut run).await;
        stage.kill();
        {
            let mut state = stage.state();
            let graph = state.graphs.get_mut("g").unwrap();
            graph.chunks.clear();
            graph.number += u32::from(other_number);
        }
        stage.start();
        let diagnostic = until_disconnected(&mut run).await;
        assert_eq!(diagnostic.code, Code::GraphForgotten);
        assert!(
            diagnostic.message.contains("away for too long"),
            "{diagnostic}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patience_ends() {
    let mut stage = Stage::new();
    for seconds in [0, 1] {
        let client = stage.client().await;
        let client = client.reconnecting_for(Duration::from_secs(seconds));
        let mut run = client.open("g").await.unwrap();
        let waiting = run.fetch(Vec::new());
        stage.kill();
        let began = Instant::now();
        let diagnostic = until_disconnected(&mut run).await;
        let code = [Code::SchedulerEnded, Code::SchedulerUnreachable];
        assert_eq!(
            diagnostic.code,
            code[usize::from(seconds > 0)],
            "{diagnostic}"
        );
        assert!(began.elapsed() >= Duration::from_secs(seconds));
        assert!(began.elapsed() < Duration::from_secs(seconds + 8));
        drop(waiting);
        stage.start();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetching_goes_on_after_a_break() {
    let stage = Stage::new();
    stage.state().fetch_breaks_after = 2;
    let client = stage.client().await;
    let run = client.open("g").await.unwrap();
    let found: Vec<_> = run.fetch(vec![4, 9, 1, 7, 5]).collect().await;
    let tasks: Vec<u32> = found.iter().map(|(task, _)| *task).collect();
    assert_eq!(tasks, [4, 9, 1, 7, 5], "each once and in order");
    for (task, result) in found {
        assert_eq!(result.unwrap().parts.concat(), task.to_string().as_bytes());
    }
    let asked = stage.state().fetched.clone();
    assert_eq!(asked, [vec![4, 9, 1, 7, 5], vec![1, 7, 5], vec![5]]);
    // Breaks without an answer between are bounded.
    stage.state().fetch_breaks_after = 0;
    stage.state().fetched.clear();
    let mut results = run.fetch(vec![4, 9]);
    let (task, result) = timeout(Duration::from_mins(1), results.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((task, result.unwrap_err().code), (4, Code::SchedulerEnded));
    assert!(results.next().await.unwrap().1.is_err());
    assert!(results.next().await.is_none());
    assert_eq!(stage.state().fetched.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_and_new_graphs_wait_for_a_scheduler_that_is_away() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let mut run = client.open("g").await.unwrap();
    stage.kill();
    assert!(matches!(next(&mut run).await, GraphEvent::Reconnecting(_)));
    let fetching = tokio::spawn(run.fetch(vec![1, 2]).collect::<Vec<_>>());
    let opening = tokio::spawn(async move { client.open("second").await });
    sleep(Duration::from_millis(500)).await;
    assert!(!fetching.is_finished() && !opening.is_finished());
    stage.start();
    let found = timeout(PATIENCE, fetching).await.unwrap().unwrap();
    assert!(found.iter().all(|(_, result)| result.is_ok()), "{found:?}");
    let second = timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    assert_ne!(second.graph(), run.graph());
    assert_eq!(next(&mut run).await, GraphEvent::Reconnected);
    // A client that ends while its scheduler is away does not wait for it.
    stage.kill();
    assert!(matches!(next(&mut run).await, GraphEvent::Reconnecting(_)));
    let began = Instant::now();
    run.close().await;
    assert!(began.elapsed() < Duration::from_secs(3));
}
