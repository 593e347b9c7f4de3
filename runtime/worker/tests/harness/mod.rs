//! A scheduler that does what a test says, and real workers, over real TLS.
#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

mod doer;
mod proxy;
mod streaming;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_comm::{BulkPool, Credentials, incoming, install_crypto_provider, server};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, Builtin, Executor, Program, TaskContext, TaskError};
use oxidask_identity::Role;
use oxidask_logbook::Logbook;
use oxidask_pki::Authority;
use oxidask_proto::wire::report::Outcome;
use oxidask_proto::wire::scheduler_server::{Scheduler, SchedulerServer};
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use oxidask_store::Payload;
use oxidask_worker::{Ends, Listeners, MemoryThresholds, WorkerConfig, WorkerError, serve_until};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use proxy::Proxy;
pub(crate) use streaming::slice_content;

pub(crate) const GRAPH: u32 = 1;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Of the fake scheduler, unless a test says otherwise.
pub(crate) const INCARNATION: u64 = 77;
const DAY: Duration = Duration::from_hours(24);

/// A worker as the scheduler sees it.
pub(crate) struct Joined {
    pub(crate) hello: wire::WorkerHello,
    batches: Streaming<wire::WorkerBatch>,
    orders: Option<mpsc::Sender<Result<wire::WorkBatch, Status>>>,
    pub(crate) reports: Vec<wire::Report>,
    pub(crate) copies_added: Vec<u32>,
    pub(crate) copies_missing: Vec<(u32, u32)>,
    pub(crate) copies_failed: Vec<u32>,
    pub(crate) heartbeat: Option<wire::Heartbeat>,
    pub(crate) is_paused: Option<bool>,
    pub(crate) log_lines: Vec<wire::LogLine>,
    pub(crate) command_results: Vec<wire::CommandResult>,
    /// Parts of inventories, each with the number of reports that came before it.
    pub(crate) inventory: Vec<(wire::Inventory, usize)>,
    /// Each time the worker asked to leave.
    pub(crate) leaving_ms: Vec<u64>,
    /// Whether the worker has closed its side in good order.
    pub(crate) has_ended: bool,
    /// Batches that carried reports.
    pub(crate) batches_count: usize,
}

impl Joined {
    pub(crate) async fn send(&self, batch: wire::WorkBatch) {
        self.orders.as_ref().unwrap().send(Ok(batch)).await.unwrap();
    }

    pub(crate) async fn welcome(&self, worker: u32) {
        self.answer(worker, INCARNATION, false).await;
    }

    /// Accepts a worker that comes back: it keeps what it has.
    pub(crate) async fn welcome_back(&self, worker: u32) {
        self.answer(worker, INCARNATION, true).await;
    }

    pub(crate) async fn answer(&self, worker: u32, incarnation: u64, is_resumed: bool) {
        let hello = Some(wire::Hello {
            incarnation,
            epoch: 1,
            ..hello::hello()
        });
        self.send(wire::WorkBatch {
            hello,
            worker,
            is_resumed,
            ..wire::WorkBatch::default()
        })
        .await;
    }

    /// The next whole inventory: results, attempts that run, attempts that wait; and how many
    /// reports came before it.
    pub(crate) async fn whole_inventory(&mut self) -> (Whole, usize) {
        let is_whole = |joined: &Self| {
            joined
                .inventory
                .last()
                .is_some_and(|(part, _)| part.is_last)
        };
        self.until("the inventory", is_whole).await;
        let told = self.inventory[0].1;
        let mut whole = Whole::default();
        let number = |attempt: &wire::AttemptId| attempt.task.unwrap().task;
        for (part, _) in self.inventory.drain(..) {
            let held = part.held_task.iter().copied().zip(part.held_bytes);
            whole.held.extend(held);
            whole.running.extend(part.running.iter().map(number));
            whole.queued.extend(part.queued.iter().map(number));
            whole.parts += 1;
        }
        (whole, told)
    }

    /// The stream breaks, and nobody says why.
    pub(crate) fn vanish(self) {
        drop(self);
    }

    pub(crate) async fn order(&self, orders: impl IntoIterator<Item = wire::order::Order>) {
        let orders = orders
            .into_iter()
            .map(|order| wire::Order { order: Some(order) })
            .collect();
        self.send(wire::WorkBatch {
            orders,
            ..wire::WorkBatch::default()
        })
        .await;
    }

    /// To a stream that may be gone.
    pub(crate) async fn try_order(
        &self,
        orders: impl IntoIterator<Item = wire::order::Order>,
    ) -> bool {
        let orders = orders.into_iter();
        let orders = orders.map(|order| wire::Order { order: Some(order) });
        let batch = wire::WorkBatch {
            orders: orders.collect(),
            ..wire::WorkBatch::default()
        };
        self.orders.as_ref().unwrap().send(Ok(batch)).await.is_ok()
    }

    pub(crate) async fn introduce(&self, peer: u32, address: SocketAddr) {
        let peers = vec![wire::Peer {
            worker: peer,
            data_address: address.to_string(),
        }];
        self.send(wire::WorkBatch {
            peers,
            ..wire::WorkBatch::default()
        })
        .await;
    }

    pub(crate) fn hang_up(&mut self) {
        self.orders = None;
    }

    /// Takes in what the worker says until it is so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = std::time::Instant::now();
        while !is_so(self) {
            // Beats come for ever.
            assert!(start.elapsed() < 2 * PATIENCE, "never came: {what}");
            let batch = timeout(PATIENCE, self.batches.message()).await;
            let Ok(batch) = batch else {
                panic!("never came: {what}; so far {:?}", self.reports)
            };
            let Some(batch) = batch.unwrap() else {
                self.has_ended = true;
                assert!(is_so(self), "the worker has ended; never came: {what}");
                return;
            };
            self.batches_count += usize::from(!batch.reports.is_empty());
            self.reports.extend(batch.reports);
            let number = |id: wire::TaskId| id.task;
            self.copies_added
                .extend(batch.copies_added.into_iter().map(number));
            let missing = batch.copies_missing.into_iter();
            self.copies_missing
                .extend(missing.map(|copy| (copy.task.unwrap().task, copy.worker)));
            self.heartbeat = batch.heartbeat.or_else(|| self.heartbeat.take());
            self.is_paused = batch.is_paused.or(self.is_paused);
            self.log_lines.extend(batch.log_lines);
            self.command_results.extend(batch.command_results);
            let failed = batch.copies_failed.into_iter().map(number);
            self.copies_failed.extend(failed);
            let told = self.reports.len();
            self.inventory
                .extend(batch.inventory.map(|part| (part, told)));
            self.leaving_ms.extend(batch.leaving_ms);
        }
    }

    /// The end of a task, whatever it is.
    pub(crate) async fn end_of(&mut self, task: u32) -> Outcome {
        self.until(&format!("end of {task}"), |joined| {
            joined.find_end(task).is_some()
        })
        .await;
        self.find_end(task).unwrap()
    }

    pub(crate) async fn finished(&mut self, task: u32) -> u64 {
        match self.end_of(task).await {
            Outcome::Finished(finished) => finished.bytes,
            other => panic!("task {task} did not finish: {other:?}"),
        }
    }

    pub(crate) async fn failed(&mut self, task: u32) -> (wire::Fault, bool) {
        match self.end_of(task).await {
            Outcome::Failed(failed) => (failed.fault.unwrap(), failed.is_retryable),
            other => panic!("task {task} did not fail: {other:?}"),
        }
    }

    pub(crate) fn has_started(&self, task: u32) -> bool {
        self.outcomes(task)
            .any(|outcome| matches!(outcome, Outcome::Started(_)))
    }

    fn find_end(&self, task: u32) -> Option<Outcome> {
        self.outcomes(task)
            .find(|outcome| {
                !matches!(
                    outcome,
                    Outcome::Started(_) | Outcome::Seceded(_) | Outcome::Rejoined(_)
                )
            })
            .cloned()
    }

    fn outcomes(&self, task: u32) -> impl Iterator<Item = &Outcome> {
        let of_task = move |report: &&wire::Report| report.task.unwrap().task == task;
        self.reports
            .iter()
            .filter(of_task)
            .map(|report| report.outcome.as_ref().unwrap())
    }
}

/// An inventory, put together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Results and their sizes.
    pub(crate) held: std::collections::BTreeMap<u32, u64>,
    pub(crate) running: Vec<u32>,
    pub(crate) queued: Vec<u32>,
    pub(crate) parts: usize,
}

struct Fake {
    joined: mpsc::Sender<Joined>,
}

type Replies<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Scheduler for Fake {
    type WorkStream = Replies<wire::WorkBatch>;
    type SessionStream = Replies<wire::SessionBatch>;
    type FetchStream = Replies<wire::FetchChunk>;
    type TelemetryStream = Replies<wire::TelemetryReply>;
    type LogsStream = Replies<wire::LogsReply>;

    async fn work(
        &self,
        request: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let mut batches = request.into_inner();
        let (orders, replies) = mpsc::channel(16);
        let joined = self.joined.clone();
        tokio::spawn(async move {
            let hello = batches.message().await.unwrap().unwrap().hello.unwrap();
            let worker = Joined {
                hello,
                batches,
                orders: Some(orders),
                reports: Vec::new(),
                copies_added: Vec::new(),
                copies_missing: Vec::new(),
                copies_failed: Vec::new(),
                heartbeat: None,
                is_paused: None,
                log_lines: Vec::new(),
                command_results: Vec::new(),
                inventory: Vec::new(),
                leaving_ms: Vec::new(),
                has_ended: false,
                batches_count: 0,
            };
            let _ = joined.send(worker).await;
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn session(
        &self,
        _: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch(
        &self,
        _: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn retire(
        &self,
        _: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn worker_ended(
        &self,
        _: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn explain(
        &self,
        _: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn logs(
        &self,
        _: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn telemetry(
        &self,
        _: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A scheduler that does what the test says.
pub(crate) struct Cluster {
    authority: Authority,
    pub(crate) address: SocketAddr,
    joined: mpsc::Receiver<Joined>,
    stop: CancellationToken,
}

/// What differs between workers.
pub(crate) struct Settings {
    pub(crate) slots: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) reconnect_time: Duration,
    /// Where the scheduler is; otherwise where it really is.
    pub(crate) scheduler: Option<SocketAddr>,
    /// For leaving in order.
    pub(crate) grace: Duration,
    pub(crate) spill_bytes_max: u64,
    pub(crate) spill_dir: Option<std::path::PathBuf>,
    pub(crate) memory_thresholds: MemoryThresholds,
    pub(crate) system_dir: std::path::PathBuf,
    pub(crate) logbook: Arc<Logbook>,
}

impl Settings {
    /// No disk, and no patience.
    pub(crate) fn new(slots: u32, memory_bytes: u64) -> Self {
        Self {
            slots,
            memory_bytes,
            reconnect_time: Duration::ZERO,
            scheduler: None,
            grace: PATIENCE,
            spill_bytes_max: 0,
            spill_dir: None,
            // The tests of one program share a process, and so its memory.
            memory_thresholds: MemoryThresholds::OFF,
            system_dir: "/".into(),
            logbook: Arc::default(),
        }
    }

    /// No disk, and patience.
    pub(crate) fn patient(slots: u32) -> Self {
        Self {
            reconnect_time: PATIENCE,
            ..Self::new(slots, 1 << 30)
        }
    }

    /// With a disk.
    pub(crate) fn spilling(slots: u32, memory_bytes: u64) -> Self {
        Self {
            spill_bytes_max: 1 << 40,
            ..Self::new(slots, memory_bytes)
        }
    }
}

pub(crate) struct Worker {
    pub(crate) serving: JoinHandle<Result<(), WorkerError>>,
    pub(crate) stop: CancellationToken,
    pub(crate) leave: CancellationToken,
    pub(crate) data: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) scratch: TempDir,
}

impl Worker {
    pub(crate) async fn end(self) -> Result<(), WorkerError> {
        timeout(PATIENCE, self.serving).await.unwrap().unwrap()
    }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let credentials = credentials(&authority, Role::Scheduler);
        let (sender, joined) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let service = SchedulerServer::new(Fake { joined: sender })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let connections = incoming(listener, credentials, stop.clone());
        tokio::spawn(
            server()
                .add_service(service)
                .serve_with_incoming(connections),
        );
        Self {
            authority,
            address,
            joined,
            stop,
        }
    }

    pub(crate) fn credentials(&self, role: Role) -> Credentials {
        credentials(&self.authority, role)
    }

    /// A worker that ends with its scheduler.
    pub(crate) async fn spawn(&self, slots: u32, memory_bytes: u64) -> Worker {
        self.spawn_patient(slots, memory_bytes, Duration::ZERO)
            .await
    }

    /// A worker that tells this address.
    pub(crate) async fn spawn_facing(&self, advertise_address: &str) -> Worker {
        let settings = Settings::new(1, 1 << 30);
        self.spawn_as(settings, Some(advertise_address)).await
    }

    /// A worker that goes without a scheduler for a time.
    pub(crate) async fn spawn_patient(
        &self,
        slots: u32,
        memory_bytes: u64,
        reconnect_time: Duration,
    ) -> Worker {
        let settings = Settings {
            reconnect_time,
            ..Settings::new(slots, memory_bytes)
        };
        self.spawn_as(settings, None).await
    }

    pub(crate) async fn spawn_as(
        &self,
        settings: Settings,
        advertise_address: Option<&str>,
    ) -> Worker {
        let Settings {
            slots,
            memory_bytes,
            reconnect_time,
            ..
        } = settings;
        let data_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let data = data_listener.local_addr().unwrap();
        let http = http_listener.local_addr().unwrap();
        let scratch = TempDir::new().unwrap();
        let config = WorkerConfig {
            scheduler_address: format!("oxidask://{}", settings.scheduler.unwrap_or(self.address)),
            name: "w".into(),
            group: "default".into(),
            pod_uid: String::new(),
            node: String::new(),
            slots,
            resources: vec![("gpu".into(), 1)],
            memory_bytes,
            memory_thresholds: settings.memory_thresholds,
            system_dir: settings.system_dir,
            logbook: settings.logbook,
            advertise_address: advertise_address.map_or_else(|| data.to_string(), str::to_owned),
            reconnect_time,
            base_dir: scratch.path().into(),
            scratch_dir: scratch.path().join("tasks"),
            spill_dir: Some(
                settings
                    .spill_dir
                    .unwrap_or_else(|| scratch.path().join("spill")),
            ),
            spill_bytes_max: settings.spill_bytes_max,
            compute: Handle::current(),
            credentials: self.credentials(Role::Worker),
            executors: vec![
                Arc::new(Builtin::new()),
                Arc::new(Odd),
                Arc::new(streaming::Streaming),
                Arc::new(doer::Doer::default()),
            ],
        };
        let stop = CancellationToken::new();
        let listeners = Listeners {
            data: data_listener,
            http: Some(http_listener),
        };
        let leave = CancellationToken::new();
        let ends = Ends {
            shutdown: stop.clone(),
            leave: leave.clone(),
            grace: settings.grace,
        };
        let serving = tokio::spawn(serve_until(config, listeners, ends));
        Worker {
            serving,
            stop,
            leave,
            data,
            http,
            scratch,
        }
    }

    pub(crate) async fn next_joined(&mut self) -> Joined {
        timeout(PATIENCE, self.joined.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// A patient worker that is accepted as this number.
    pub(crate) async fn join_patient(&mut self, worker: u32, slots: u32) -> (Worker, Joined) {
        self.join_as(worker, Settings::patient(slots)).await
    }

    /// A worker that is accepted as this number.
    pub(crate) async fn join(&mut self, worker: u32, slots: u32, memory: u64) -> (Worker, Joined) {
        let started = self.spawn(slots, memory).await;
        let joined = self.next_joined().await;
        joined.welcome(worker).await;
        (started, joined)
    }

    /// The same with settings of its own.
    pub(crate) async fn join_as(&mut self, worker: u32, settings: Settings) -> (Worker, Joined) {
        let started = self.spawn_as(settings, None).await;
        let joined = self.next_joined().await;
        joined.welcome(worker).await;
        (started, joined)
    }

    /// What a worker holds, as a peer reads it.
    pub(crate) async fn read(&self, worker: &Worker, task: u32) -> Option<Vec<u8>> {
        let pool = BulkPool::new(self.credentials(Role::Worker));
        let key = u64::from(GRAPH) << 32 | u64::from(task);
        let mut objects = pool.fetch(&worker.data.to_string(), &[key]).await.unwrap();
        let (_, object) = objects.pop().unwrap();
        object.map(|object| object.parts.concat())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, DAY).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

/// An assignment with its body in it.
pub(crate) fn assign(task: u32, body: &Body) -> wire::Assign {
    wire::Assign {
        graph: GRAPH,
        task,
        epoch: 1,
        attempt: 1,
        key: format!("t{task}"),
        slots: 1,
        inline_body: body.encode(),
        is_inline: true,
        ..wire::Assign::default()
    }
}

/// The same with inputs: task and holder.
pub(crate) fn assign_with(task: u32, body: &Body, inputs: &[(u32, u32)]) -> wire::Assign {
    wire::Assign {
        inputs: inputs.iter().map(|input| input.0).collect(),
        input_bytes: vec![1; inputs.len()],
        holders: inputs.iter().map(|input| input.1).collect(),
        ..assign(task, body)
    }
}

/// The same with inputs that the task reads by itself.
pub(crate) fn assign_streaming(
    task: u32,
    part: u32,
    body: &Body,
    inputs: &[(u32, u32)],
) -> wire::Assign {
    wire::Assign {
        part,
        streamed_inputs: u32::try_from(inputs.len()).unwrap(),
        // As large as anything here.
        input_bytes: vec![1 << 40; inputs.len()],
        ..assign_with(task, body, inputs)
    }
}

pub(crate) fn order(assign: wire::Assign) -> wire::order::Order {
    wire::order::Order::Assign(assign)
}

pub(crate) fn attempt(task: u32) -> wire::AttemptId {
    let task = Some(wire::TaskId { graph: GRAPH, task });
    wire::AttemptId {
        task,
        epoch: 1,
        attempt: 1,
    }
}

/// Operations that misbehave.
struct Odd;

enum OddProgram {
    Panic,
    PanicAtOnce,
    /// Leaves a file in its folder and holds its slot until it is cancelled.
    Litter,
    /// Takes so much from the account and holds it until it is cancelled.
    Hoard(u64),
    /// Gives its slot to others until one of them signals.
    Secede,
    Signal,
}

static SIGNAL: Notify = Notify::const_new();

impl Executor for Odd {
    fn operations(&self) -> &'static [&'static str] {
        &[
            "panic",
            "panic_at_once",
            "panic_in_prepare",
            "litter",
            "hoard",
            "secede",
            "signal",
        ]
    }

    fn prepare(&self, body: &Body) -> Result<Arc<dyn Program>, TaskError> {
        Ok(Arc::new(match body.op.as_str() {
            "panic" => OddProgram::Panic,
            "panic_at_once" => OddProgram::PanicAtOnce,
            "litter" => OddProgram::Litter,
            "hoard" => OddProgram::Hoard(body.args["bytes"].as_u64().unwrap()),
            "secede" => OddProgram::Secede,
            "signal" => OddProgram::Signal,
            other => panic!("odd {other}"),
        }))
    }
}

impl Program for OddProgram {
    fn run_now(&self, _: &[Payload], _: &TaskContext) -> Option<Result<Payload, TaskError>> {
        if let Self::PanicAtOnce = self {
            panic!("odd {}", 1);
        }
        None
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            if let Self::Panic = *self {
                panic!("odd {}", 2);
            }
            if let Self::Secede = *self {
                context.slot.leave();
                tokio::select! {
                    () = SIGNAL.notified() => {}
                    () = context.cancelled.cancelled() => {}
                }
                context.slot.take_back();
                return Ok(Payload::null());
            }
            if let Self::Signal = *self {
                SIGNAL.notify_one();
                return Ok(Payload::null());
            }
            if let Self::Hoard(bytes) = *self {
                context.memory.grow(bytes);
                context.cancelled.cancelled().await;
                let error = Diagnostic::new(Code::GraphCancelled, "cancelled");
                return Err(TaskError::retryable(error));
            }
            std::fs::create_dir_all(&context.scratch_dir).unwrap();
            std::fs::write(context.scratch_dir.join("litter"), b"x").unwrap();
            context.cancelled.cancelled().await;
            Ok(Payload::null())
        }
        .boxed()
    }
}

pub(crate) async fn http(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\r\n");
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    asked.await.unwrap()
}

/// An address at which nobody listens.
pub(crate) fn closed_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// One of a worker's metrics.
pub(crate) async fn figure(worker: &Worker, name: &str) -> u64 {
    let text = http(worker.http, "/metrics").await;
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(name));
    let Some(line) = line else {
        panic!("{name} is not in {text}")
    };
    line.split(' ').nth(1).unwrap().parse().unwrap()
}
