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
use std::time::Duration;

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
use oxidask_scheduler::{SchedulerConfig, SchedulerError, serve};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
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
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("oxidask://{}", listener.local_addr().unwrap());
        let http = http_listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let config = SchedulerConfig {
            listener,
            http_listener: Some(http_listener),
            credentials: credentials(&authority, Role::Scheduler),
            core: CoreConfig::default(),
        };
        let serving = tokio::spawn(serve(config, shutdown.clone()));
        Self {
            authority,
            address,
            http,
            shutdown,
            serving,
        }
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
    /// The first message: it may hold orders already.
    first: Option<wire::WorkBatch>,
}

impl ScriptedWorker {
    pub(crate) async fn join(cluster: &Cluster, name: &str) -> Self {
        Self::try_join(cluster, name)
            .await
            .expect("the worker is accepted")
    }

    pub(crate) async fn try_join(cluster: &Cluster, name: &str) -> Result<Self, wire::Fault> {
        let results = Results::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let data_address = listener.local_addr().unwrap().to_string();
        let credentials = cluster.credentials(Role::Worker);
        let source = Arc::new(results.clone());
        tokio::spawn(serve_bulk(
            listener,
            credentials,
            source,
            cluster.shutdown.clone(),
        ));
        let (sender, receiver) = mpsc::channel(16);
        let worker_hello = wire::WorkerHello {
            hello: Some(hello::hello()),
            name: name.to_owned(),
            group: "default".to_owned(),
            slots: 1,
            memory_bytes: 1 << 30,
            data_address: data_address.clone(),
            ..wire::WorkerHello::default()
        };
        let first = wire::WorkerBatch {
            hello: Some(worker_hello),
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
        let mut worker = Self {
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
        if let Some(first) = self.first.take_if(|first| !first.orders.is_empty()) {
            return first;
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
            let assigned: Vec<_> = batch
                .orders
                .into_iter()
                .filter_map(|order| match order.order {
                    Some(wire::order::Order::Assign(assign)) => Some(assign),
                    _ => None,
                })
                .collect();
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
            let mut next = self.first.take();
            while let Some(batch) = next {
                self.note(&batch);
                let assigned: Vec<_> = batch
                    .orders
                    .into_iter()
                    .filter_map(|order| match order.order {
                        Some(wire::order::Order::Assign(assign)) => Some(assign),
                        _ => None,
                    })
                    .collect();
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
    pub(crate) is_done: bool,
}

impl Session {
    pub(crate) async fn open(cluster: &Cluster, name: &str) -> Self {
        let mut scheduler = cluster.connect(Role::Client).await;
        let (sender, receiver) = mpsc::channel(4);
        let open = Some(wire::OpenGraph {
            name: name.to_owned(),
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
            .fetch(wire::FetchRequest { tasks })
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
