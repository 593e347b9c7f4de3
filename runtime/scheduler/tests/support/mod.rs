//! A scheduler in this process over real TLS, and a worker whose every step a test decides.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use oxidask_comm::{
    BulkFound, BulkObject, BulkPieceRequest, BulkRead, BulkSource, Credentials,
    install_crypto_provider, serve_bulk,
};
use oxidask_core::CoreConfig;
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use oxidask_scheduler::{
    HttpTokens, JournalConfig, LogTap, SchedulerConfig, SchedulerError, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;
use tonic::transport::Channel;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    authority: Authority,
    pub(crate) address: String,
    pub(crate) http: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<Result<(), SchedulerError>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(CoreConfig::default()).await
    }

    /// Waits until the scheduler says so of a worker.
    pub(crate) async fn until_standing(&self, name: &str, standing: Option<wire::Standing>) {
        let mut client = self.connect(Role::Client).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = client.status(wire::StatusRequest {}).await.unwrap();
            let workers = status.into_inner().workers;
            let found = workers.iter().find(|worker| worker.name == name);
            if found.map(wire::WorkerStatus::standing) == standing {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{name}: {found:?}, not {standing:?}"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A scheduler with settings of its own.
    pub(crate) async fn start_with(core: CoreConfig) -> Self {
        Self::start_kept(core, None).await
    }

    /// A scheduler with a journal.
    pub(crate) async fn start_kept(core: CoreConfig, journal: Option<JournalConfig>) -> Self {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let shutdown = CancellationToken::new();
        let started = start(&authority, core, journal, shutdown.clone()).await;
        Self {
            authority,
            address: started.0,
            http: started.1,
            shutdown,
            serving: started.2,
        }
    }

    /// A scheduler whose HTTP port lets those in who have a token.
    pub(crate) async fn start_with_tokens(http_tokens: HttpTokens) -> Self {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let shutdown = CancellationToken::new();
        let core = CoreConfig::default();
        let started = start_guarded(&authority, core, None, shutdown.clone(), http_tokens).await;
        Self {
            authority,
            address: started.0,
            http: started.1,
            shutdown,
            serving: started.2,
        }
    }

    /// Ends the scheduler without a goodbye, and starts another one for the same workers and clients.
    pub(crate) async fn replace(&mut self, core: CoreConfig, journal: Option<JournalConfig>) {
        self.serving.abort();
        let started = start(&self.authority, core, journal, self.shutdown.clone()).await;
        (self.address, self.http, self.serving) = started;
    }

    pub(crate) fn credentials(&self, role: Role) -> Credentials {
        credentials(&self.authority, role)
    }

    pub(crate) async fn connect(&self, role: Role) -> SchedulerClient<Channel> {
        let credentials = self.credentials(role);
        let channel = oxidask_comm::connect(&self.address, &credentials, Role::Scheduler)
            .await
            .unwrap();
        SchedulerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

type Serving = JoinHandle<Result<(), SchedulerError>>;

async fn start(
    authority: &Authority,
    core: CoreConfig,
    journal: Option<JournalConfig>,
    shutdown: CancellationToken,
) -> (String, SocketAddr, Serving) {
    start_guarded(authority, core, journal, shutdown, HttpTokens::default()).await
}

async fn start_guarded(
    authority: &Authority,
    core: CoreConfig,
    journal: Option<JournalConfig>,
    shutdown: CancellationToken,
    http_tokens: HttpTokens,
) -> (String, SocketAddr, Serving) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("oxidask://{}", listener.local_addr().unwrap());
    let http = http_listener.local_addr().unwrap();
    let config = SchedulerConfig {
        listener,
        http_listener: Some(http_listener),
        credentials: credentials(authority, Role::Scheduler),
        has_loop_thread: false,
        core,
        journal,
        http_tokens,
        log_tap: LogTap::default(),
    };
    (address, http, tokio::spawn(serve(config, shutdown)))
}

pub(crate) fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

/// Results of a scripted worker, by bulk key.
#[derive(Default, Clone)]
pub(crate) struct Results(pub(crate) Arc<Mutex<HashMap<u64, Bytes>>>);

impl BulkSource for Results {
    fn find(&self, key: u64) -> BulkFound {
        let data = self.0.lock().unwrap().get(&key).cloned();
        BulkFound::from(data.map(|data| BulkObject {
            kind: 1,
            parts: vec![data],
        }))
    }

    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        Box::pin(std::future::ready(BulkRead::Missing))
    }

    fn free(&self, _: &[(u64, u32)]) {}
}

pub(crate) struct ScriptedWorker {
    pub(crate) number: u32,
    pub(crate) peers: HashMap<u32, String>,
    pub(crate) bodies: HashMap<(u32, u32), Bytes>,
    pub(crate) bodies_received: usize,
    pub(crate) results: Results,
    pub(crate) sender: mpsc::Sender<wire::WorkerBatch>,
    pub(crate) inbound: Streaming<wire::WorkBatch>,
    pub(crate) data_address: String,
    /// What it said first.
    pub(crate) hello: wire::WorkerHello,
    /// Whether it may keep what it has.
    pub(crate) is_resumed: bool,
    /// Says something twice a second, but no heartbeat.
    pub(crate) beats: JoinHandle<()>,
    /// Its data plane ends with it.
    process: Arc<DropGuard>,
    /// The first message: it may hold orders already.
    pub(crate) first: Option<wire::WorkBatch>,
}

/// A worker whose stream is over while its process lives.
pub(crate) struct CutWorker {
    pub(crate) number: u32,
    pub(crate) hello: wire::WorkerHello,
    pub(crate) results: Results,
    pub(crate) incarnation: u64,
    process: Arc<DropGuard>,
}

impl CutWorker {
    /// Connects again and says who it was.
    pub(crate) async fn come_back(self, cluster: &Cluster) -> ScriptedWorker {
        let incarnation = self.incarnation;
        self.come_back_from(cluster, incarnation).await
    }

    /// The same, of a scheduler that was there before.
    pub(crate) async fn come_back_from(
        mut self,
        cluster: &Cluster,
        incarnation: u64,
    ) -> ScriptedWorker {
        self.hello.former = self.number;
        self.hello.hello.as_mut().unwrap().incarnation = incarnation;
        let parts = (self.results, self.process);
        let worker = ScriptedWorker::connect(cluster, self.hello, parts).await;
        worker.expect("the worker is accepted")
    }
}

impl ScriptedWorker {
    pub(crate) async fn join(cluster: &Cluster, name: &str) -> Self {
        Self::try_join(cluster, name)
            .await
            .expect("the worker is accepted")
    }

    pub(crate) async fn try_join(cluster: &Cluster, name: &str) -> Result<Self, wire::Fault> {
        Self::try_join_as(cluster, Self::hello(name)).await
    }

    /// What a worker says of itself, apart from its address.
    pub(crate) fn hello(name: &str) -> wire::WorkerHello {
        wire::WorkerHello {
            hello: Some(hello::hello()),
            name: name.to_owned(),
            group: "default".to_owned(),
            slots: 1,
            memory_bytes: 1 << 30,
            ..wire::WorkerHello::default()
        }
    }

    pub(crate) async fn join_as(cluster: &Cluster, hello: wire::WorkerHello) -> Self {
        let worker = Self::try_join_as(cluster, hello).await;
        worker.expect("the worker is accepted")
    }

    async fn try_join_as(
        cluster: &Cluster,
        mut hello: wire::WorkerHello,
    ) -> Result<Self, wire::Fault> {
        let results = Results::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        hello.data_address = listener.local_addr().unwrap().to_string();
        let credentials = cluster.credentials(Role::Worker);
        let source = Arc::new(results.clone());
        let process = cluster.shutdown.child_token();
        tokio::spawn(serve_bulk(listener, credentials, source, process.clone()));
        let process = Arc::new(process.drop_guard());
        Self::connect(cluster, hello, (results, process)).await
    }

    async fn connect(
        cluster: &Cluster,
        hello: wire::WorkerHello,
        (results, process): (Results, Arc<DropGuard>),
    ) -> Result<Self, wire::Fault> {
        let (sender, receiver) = mpsc::channel(16);
        let first = wire::WorkerBatch {
            hello: Some(hello.clone()),
            ..Default::default()
        };
        sender.send(first).await.unwrap();
        let mut scheduler = cluster.connect(Role::Worker).await;
        let mut inbound = scheduler
            .work(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let first = timeout(PATIENCE, inbound.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let Some(fault) = first.refused {
            assert!(
                inbound.message().await.unwrap().is_none(),
                "the stream ends after a refusal"
            );
            return Err(fault);
        }
        assert!(first.hello.is_some());
        let beats = tokio::spawn(beat(sender.downgrade()));
        let data_address = hello.data_address.clone();
        let mut worker = Self {
            hello,
            process,
            beats,
            is_resumed: first.is_resumed,
            number: first.worker,
            peers: HashMap::new(),
            bodies: HashMap::new(),
            bodies_received: 0,
            results,
            sender,
            inbound,
            data_address,
            first: None,
        };
        worker.note(&first);
        worker.first = Some(first);
        Ok(worker)
    }

    /// Its stream is over, its process lives.
    pub(crate) fn cut(self) -> CutWorker {
        let first = self.first.as_ref().and_then(|first| first.hello.as_ref());
        CutWorker {
            number: self.number,
            incarnation: first.map_or(0, |hello| hello.incarnation),
            hello: self.hello,
            results: self.results,
            process: self.process,
        }
    }

    /// Connects once more while the first stream is there.
    pub(crate) async fn second_stream(&self, cluster: &Cluster, hello: wire::WorkerHello) -> Self {
        let parts = (self.results.clone(), Arc::clone(&self.process));
        let worker = Self::connect(cluster, hello, parts).await;
        worker.expect("the worker is accepted")
    }

    /// Results it holds, for an inventory.
    pub(crate) fn holding(tasks: &[(u32, u32, u64)]) -> wire::Inventory {
        wire::Inventory {
            held_graph: tasks.iter().map(|task| task.0).collect(),
            held_task: tasks.iter().map(|task| task.1).collect(),
            held_bytes: tasks.iter().map(|task| task.2).collect(),
            is_last: true,
            ..wire::Inventory::default()
        }
    }

    pub(crate) async fn send_inventory(&self, inventory: wire::Inventory) {
        let inventory = Some(inventory);
        self.send(wire::WorkerBatch {
            inventory,
            ..Default::default()
        })
        .await;
    }

    /// The next message that is as it should be.
    pub(crate) async fn until(
        &mut self,
        what: impl Fn(&wire::WorkBatch) -> bool,
    ) -> wire::WorkBatch {
        let waiting = async {
            loop {
                let batch = self.next().await;
                if what(&batch) {
                    return batch;
                }
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .expect("what is waited for comes")
    }

    /// Nothing comes for a while that is as it should not be.
    pub(crate) async fn never(&mut self, time: Duration, what: impl Fn(&wire::WorkBatch) -> bool) {
        let waiting = async {
            while let Ok(Some(batch)) = self.inbound.message().await {
                self.note(&batch);
                assert!(!what(&batch), "{batch:?}");
            }
        };
        let _ = timeout(time, waiting).await;
    }

    /// Says that it runs the task.
    pub(crate) async fn start(&self, assign: &wire::Assign) {
        let started = wire::Report {
            outcome: Some(wire::report::Outcome::Started(wire::Empty {})),
            ..Self::finished(assign, 0)
        };
        self.send(wire::WorkerBatch {
            reports: vec![started],
            ..Default::default()
        })
        .await;
    }

    fn note(&mut self, batch: &wire::WorkBatch) {
        for peer in &batch.peers {
            self.peers.insert(peer.worker, peer.data_address.clone());
        }
        for body in &batch.bodies {
            self.bodies_received += 1;
            self.bodies
                .insert((body.graph, body.body), body.content.clone());
        }
    }

    /// The next message from the scheduler.
    pub(crate) async fn next(&mut self) -> wire::WorkBatch {
        if let Some(first) = self.first.as_mut()
            && !first.orders.is_empty()
        {
            let orders = std::mem::take(&mut first.orders);
            return wire::WorkBatch {
                orders,
                ..Default::default()
            };
        }
        let batch = timeout(PATIENCE, self.inbound.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.note(&batch);
        batch
    }

    /// Waits for assignments, at least one.
    pub(crate) async fn assigned(&mut self) -> Vec<wire::Assign> {
        loop {
            let batch = self.next().await;
            let assigned = assignments(batch);
            if !assigned.is_empty() {
                return assigned;
            }
        }
    }

    /// The body of an assignment, however it came.
    pub(crate) fn body(&self, assign: &wire::Assign) -> Bytes {
        if assign.is_inline {
            return assign.inline_body.clone();
        }
        self.bodies
            .get(&(assign.graph, assign.body))
            .expect("bodies come first")
            .clone()
    }

    pub(crate) fn finished(assign: &wire::Assign, bytes: usize) -> wire::Report {
        wire::Report {
            task: Some(wire::TaskId {
                graph: assign.graph,
                task: assign.task,
            }),
            epoch: assign.epoch,
            attempt: assign.attempt,
            outcome: Some(wire::report::Outcome::Finished(wire::Finished {
                bytes: bytes as u64,
                duration_micros: 10,
                rows: 7,
            })),
        }
    }

    pub(crate) fn failed(assign: &wire::Assign, bytes: usize) -> wire::Report {
        let fault = wire::Fault {
            code: "OX208".to_owned(),
            message: "x".repeat(bytes),
            ..wire::Fault::default()
        };
        let failed = wire::Failed {
            fault: Some(fault),
            is_retryable: false,
        };
        let outcome = Some(wire::report::Outcome::Failed(failed));
        wire::Report {
            outcome,
            ..Self::finished(assign, 0)
        }
    }

    /// Keeps a result for each assignment and reports its end.
    pub(crate) async fn finish(
        &mut self,
        assigned: &[wire::Assign],
        data: impl Fn(&wire::Assign) -> Bytes,
    ) {
        let mut reports = Vec::new();
        for assign in assigned {
            let data = data(assign);
            reports.push(Self::finished(assign, data.len()));
            let key = u64::from(assign.graph) << 32 | u64::from(assign.task);
            self.results.0.lock().unwrap().insert(key, data);
        }
        self.send(wire::WorkerBatch {
            reports,
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn send(&self, batch: wire::WorkerBatch) {
        self.sender.send(batch).await.unwrap();
    }

    /// Runs whatever comes: the result of a task is its body.
    pub(crate) fn run(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            // Its process ends with its stream.
            let _process = Arc::clone(&self.process);
            let mut next = self.first.take();
            while let Some(batch) = next {
                self.note(&batch);
                let assigned = assignments(batch);
                let bodies: HashMap<u32, Bytes> = assigned
                    .iter()
                    .map(|assign| (assign.task, self.body(assign)))
                    .collect();
                self.finish(&assigned, |assign| bodies[&assign.task].clone())
                    .await;
                next = self.inbound.message().await.ok().flatten();
            }
        })
    }
}

async fn beat(sender: mpsc::WeakSender<wire::WorkerBatch>) {
    loop {
        sleep(Duration::from_millis(500)).await;
        match sender.upgrade() {
            Some(sender) if sender.send(wire::WorkerBatch::default()).await.is_ok() => {}
            _ => return,
        }
    }
}

pub(crate) struct Session {
    pub(crate) graph: u32,
    pub(crate) next_chunk: u32,
    pub(crate) sender: mpsc::Sender<wire::ClientBatch>,
    pub(crate) inbound: Streaming<wire::SessionBatch>,
    pub(crate) scheduler: SchedulerClient<Channel>,
    pub(crate) ready: Vec<(u32, u64)>,
    pub(crate) notices: Vec<String>,
    pub(crate) progress: Vec<wire::Progress>,
    pub(crate) failures: Vec<wire::TaskFailure>,
    pub(crate) refused: Vec<wire::GraphRefused>,
    pub(crate) accepted: Vec<u32>,
    pub(crate) is_done: bool,
}

impl Session {
    pub(crate) async fn open(cluster: &Cluster, name: &str) -> Self {
        let mut scheduler = cluster.connect(Role::Client).await;
        let (sender, receiver) = mpsc::channel(4);
        let open = Some(wire::OpenGraph {
            name: name.to_owned(),
            ..wire::OpenGraph::default()
        });
        let first = wire::ClientBatch {
            hello: Some(hello::hello()),
            open,
            ..Default::default()
        };
        sender.send(first).await.unwrap();
        let mut inbound = scheduler
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let mut is_greeted = false;
        let (attached, rest) = loop {
            let mut batch = timeout(PATIENCE, inbound.message())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            is_greeted |= batch.hello.is_some();
            assert!(is_greeted, "hello comes first");
            if let Some(attached) = batch.attached.pop() {
                break (attached, batch);
            }
        };
        assert_eq!(attached.name, name);
        let mut session = Self {
            graph: attached.graph,
            next_chunk: attached.next_chunk,
            sender,
            inbound,
            scheduler,
            ready: Vec::new(),
            notices: Vec::new(),
            progress: Vec::new(),
            failures: Vec::new(),
            refused: Vec::new(),
            accepted: Vec::new(),
            is_done: false,
        };
        session.note(rest);
        session
    }

    pub(crate) fn note(&mut self, batch: wire::SessionBatch) {
        self.ready
            .extend(batch.ready_task.into_iter().zip(batch.ready_bytes));
        self.notices
            .extend(batch.notices.into_iter().map(|notice| notice.text));
        self.progress.extend(batch.progress);
        self.failures.extend(batch.failures);
        self.refused.extend(batch.refused);
        let accepted = batch.accepted.into_iter().map(|chunk| chunk.number);
        self.accepted.extend(accepted);
        self.is_done |= batch.done.contains(&self.graph);
    }

    pub(crate) async fn next(&mut self) {
        let batch = timeout(PATIENCE, self.inbound.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.note(batch);
    }

    pub(crate) async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !what(self) {
                self.next().await;
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .expect("what is waited for comes");
    }

    pub(crate) async fn send(&self, chunk: wire::GraphChunk) {
        let batch = wire::ClientBatch {
            chunks: vec![chunk],
            ..Default::default()
        };
        self.sender.send(batch).await.unwrap();
    }

    /// Tasks without inputs, all wanted, whose bodies are `bodies[number % len]`.
    pub(crate) fn independent(&self, tasks: u32, bodies: &[&str]) -> wire::GraphChunk {
        let mut chunk = wire::GraphChunk {
            graph: self.graph,
            is_last: true,
            ..Default::default()
        };
        for task in 0..tasks {
            let key = format!("task-{task}");
            chunk.key_lengths.push(u32::try_from(key.len()).unwrap());
            chunk.keys.push_str(&key);
            chunk.body.push(task % u32::try_from(bodies.len()).unwrap());
            chunk.group.push(0);
            chunk.wanted.push(task);
        }
        chunk.new_groups.push("task".to_owned());
        chunk.new_bodies = bodies
            .iter()
            .map(|body| Bytes::copy_from_slice(body.as_bytes()))
            .collect();
        chunk
    }

    /// Everything that a fetch brings, in order: task and bytes or the fault's code.
    pub(crate) async fn fetch(&mut self, tasks: &[u32]) -> Vec<(u32, Result<Bytes, String>)> {
        let mut chunks = self.open_fetch(tasks).await;
        Fetched::read(&mut chunks).await.found
    }

    pub(crate) async fn open_fetch(&mut self, tasks: &[u32]) -> Streaming<wire::FetchChunk> {
        let graph = self.graph;
        let tasks = tasks
            .iter()
            .map(|task| wire::TaskId { graph, task: *task })
            .collect();
        let reply = self
            .scheduler
            .fetch(wire::FetchRequest {
                tasks,
                ..Default::default()
            })
            .await
            .unwrap();
        reply.into_inner()
    }
}

/// What a fetch brought.
#[derive(Default)]
pub(crate) struct Fetched {
    pub(crate) found: Vec<(u32, Result<Bytes, String>)>,
    /// How often a large result began, or began again.
    pub(crate) starts: u32,
}

impl Fetched {
    pub(crate) async fn read(chunks: &mut Streaming<wire::FetchChunk>) -> Self {
        let mut fetched = Self::default();
        let found = &mut fetched.found;
        let mut large: Option<(u32, Vec<u8>, u64)> = None;
        while let Some(chunk) = timeout(PATIENCE, chunks.message()).await.unwrap().unwrap() {
            for small in chunk.small {
                found.push((small.task.unwrap().task, Ok(small.data)));
            }
            if let Some(fault) = chunk.fault {
                found.push((chunk.task.unwrap().task, Err(fault.code)));
                continue;
            }
            if chunk.is_start {
                fetched.starts += 1;
                large = Some((chunk.task.unwrap().task, Vec::new(), chunk.total_bytes));
            }
            if let Some((_, data, _)) = &mut large {
                assert!(chunk.data.len() <= 1 << 20);
                data.extend_from_slice(&chunk.data);
            }
            if chunk.is_end {
                let (task, data, bytes) = large.take().unwrap();
                assert_eq!(data.len() as u64, bytes);
                found.push((task, Ok(data.into())));
            }
        }
        fetched
    }
}

/// The assignments of a message.
pub(crate) fn assignments(batch: wire::WorkBatch) -> Vec<wire::Assign> {
    let orders = batch.orders.into_iter().filter_map(|order| order.order);
    let assigned = orders.filter_map(|order| match order {
        wire::order::Order::Assign(assign) => Some(assign),
        _ => None,
    });
    assigned.collect()
}

/// The text of `/metrics`.
pub(crate) async fn metrics(cluster: &Cluster) -> String {
    get(cluster, "/metrics").await
}

/// What the HTTP port answers.
pub(crate) async fn get(cluster: &Cluster, path: &str) -> String {
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
