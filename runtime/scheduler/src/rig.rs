//! A main loop on a thread of its own, and workers of which a test decides every word.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use oxidask_core::{ClientId, CoreConfig, Event, GraphId, Inventory, WorkerId};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::{hello, wire};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::bodies::NewBodies;
use crate::input::{Arrival, ChunkInput, Input, Inputs, Said};
use crate::journal::{Beginning, JournalConfig};
use crate::links::ClientLink;
use crate::logs::LogTap;
use crate::main_loop::MainLoop;
use crate::metrics::Metrics;
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};
use crate::parts::NewParts;

const PATIENCE: Duration = Duration::from_secs(20);

/// The loop.
pub(crate) struct Rig {
    pub(crate) inputs: Inputs,
    pub(crate) metrics: Arc<Metrics>,
    thread: Option<std::thread::JoinHandle<()>>,
    next_stream: u32,
}

impl Rig {
    /// Without a journal.
    pub(crate) fn start() -> Self {
        Self::start_kept(None)
    }

    pub(crate) fn start_kept(journal: Option<&JournalConfig>) -> Self {
        let (inputs, receiver) = Inputs::channel();
        let metrics = Arc::new(Metrics::new());
        let core = CoreConfig::default();
        let beginning = match journal {
            Some(config) => Beginning::recover(config, core, 1, &inputs, &metrics).unwrap(),
            None => Beginning::new(core, 1),
        };
        let hello = wire::Hello {
            incarnation: beginning.incarnation,
            epoch: beginning.epoch,
            ..hello::hello()
        };
        let next_stream = beginning.next_worker;
        let logs = LogTap::default().0;
        let main_loop = MainLoop::new(hello, Arc::clone(&metrics), logs).begin(beginning);
        let runtime = Handle::current();
        let thread = std::thread::spawn(move || {
            runtime.block_on(main_loop.run(receiver, false));
        });
        Self {
            inputs,
            metrics,
            thread: Some(thread),
            next_stream,
        }
    }

    /// Ends the loop, and with it its journal.
    pub(crate) async fn stop(mut self) {
        self.inputs.send(Input::Stop).await;
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap())
            .await
            .unwrap();
    }

    /// Time passes.
    pub(crate) async fn wake_after(&self, time: Duration) {
        tokio::time::sleep(time).await;
        self.inputs.send(Input::Wake).await;
    }

    /// A client opens a graph that is this chunk.
    pub(crate) async fn submit(&self, chunk: wire::GraphChunk) -> GraphId {
        let client = ClientId(1_000);
        let outbox = Outbox::new(OUTBOX_BYTES_MAX, &CancellationToken::new());
        let link = Box::new(ClientLink::new(outbox));
        self.inputs.send(Input::ClientJoined(client, link)).await;
        let name = "g".into();
        let opened = Event::GraphOpened {
            client,
            name,
            is_open_ended: false,
        };
        self.inputs.events(vec![opened]).await;
        let graph = self
            .inputs
            .look(|main_loop| *main_loop.graphs.keys().next().unwrap());
        let graph = graph.await.unwrap();
        let chunk = wire::GraphChunk {
            graph: graph.0,
            ..chunk
        };
        let placed = PlacedChunk::try_from(chunk).unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let parts = NewParts::new(placed.chunk.len(), Vec::new(), Vec::new());
        let input = ChunkInput {
            client,
            graph,
            number: placed.number,
            bodies: NewBodies::new(&placed.bodies, &placed.chunk.body),
            parts: parts.with_arguments(&placed.arguments),
            chunk: Box::new(placed.chunk),
            message: Vec::new(),
            permit: permits.acquire_owned().await.unwrap(),
        };
        self.inputs.send(Input::Chunk(Box::new(input))).await;
        graph
    }

    pub(crate) async fn join(&mut self, name: &str) -> Peer {
        self.join_at(name, &format!("{name}:1")).await
    }

    pub(crate) async fn join_at(&mut self, name: &str, address: &str) -> Peer {
        let hello = wire::WorkerHello {
            hello: Some(hello::hello()),
            name: name.to_owned(),
            group: "default".to_owned(),
            slots: 1,
            memory_bytes: 1 << 30,
            data_address: address.to_owned(),
            process_id: self.next_stream,
            ..wire::WorkerHello::default()
        };
        self.connect(hello).await
    }

    /// One that was there before the scheduler began, or whose stream broke.
    pub(crate) async fn come_back(&mut self, peer: Peer, incarnation: u64) -> Peer {
        let mut hello = peer.hello;
        hello.former = peer.worker.0;
        hello.hello.as_mut().unwrap().incarnation = incarnation;
        self.connect(hello).await
    }

    async fn connect(&mut self, hello: wire::WorkerHello) -> Peer {
        let outbox = Outbox::new(OUTBOX_BYTES_MAX, &CancellationToken::new());
        let number = self.next_stream;
        self.next_stream += 1;
        let (admitted, answer) = oneshot::channel();
        let arrival = Arrival {
            number,
            hello: hello.clone(),
            vitals: Arc::default(),
            outbox: Arc::clone(&outbox),
            admitted,
        };
        self.inputs
            .send(Input::WorkerArrived(Box::new(arrival)))
            .await;
        Peer {
            worker: answer.await.unwrap(),
            stream: number,
            hello,
            batches: outbox.into_stream().boxed(),
            inputs: self.inputs.clone(),
        }
    }
}

/// A chunk of one task, without its body.
pub(crate) fn one_task() -> wire::GraphChunk {
    wire::GraphChunk {
        is_last: true,
        keys: "t".to_owned(),
        key_lengths: vec![1],
        body: vec![0],
        group: vec![0],
        wanted: vec![0],
        new_groups: vec!["t".to_owned()],
        ..wire::GraphChunk::default()
    }
}

/// A worker.
pub(crate) struct Peer {
    pub(crate) worker: WorkerId,
    stream: u32,
    hello: wire::WorkerHello,
    batches: BoxStream<'static, Result<wire::WorkBatch, Status>>,
    inputs: Inputs,
}

impl Peer {
    pub(crate) async fn next(&mut self) -> wire::WorkBatch {
        let next = timeout(PATIENCE, self.batches.next()).await;
        next.expect("a message comes").unwrap().unwrap()
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_left_alone(&mut self) -> bool {
        let wait = Duration::from_millis(300);
        timeout(wait, self.batches.next()).await.is_err()
    }

    /// The next commands, as text.
    pub(crate) async fn commands(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        while found.len() < count {
            found.extend(texts(self.next().await));
        }
        found
    }

    pub(crate) async fn say(&self, said: Said) {
        self.inputs.said(self.worker, self.stream, vec![said]).await;
    }

    pub(crate) async fn answer(&self, command: u64, content: &str) {
        self.say(Said::CommandResults(vec![wire::CommandResult {
            command,
            fault: None,
            content: content.as_bytes().to_vec().into(),
        }]))
        .await;
    }

    /// It is silent, and orders do not reach it.
    pub(crate) async fn fall_silent(&self) {
        self.say(Said::Silent).await;
    }

    /// It is heard again, and has nothing.
    pub(crate) async fn be_heard(&mut self) {
        self.say(Said::Heard).await;
        while !self.next().await.inventory_wanted {}
        self.give_inventory().await;
    }

    pub(crate) async fn give_inventory(&self) {
        let nothing: Box<Inventory> = Box::default();
        self.say(Said::Inventory(nothing)).await;
    }

    pub(crate) async fn die(&self) {
        let reason = "gone".to_owned();
        self.say(Said::Nonsense { reason }).await;
    }
}

/// Commands of a message, as text.
pub(crate) fn texts(batch: wire::WorkBatch) -> Vec<(u64, String)> {
    let commands = batch.commands.into_iter();
    let text = |content: &[u8]| String::from_utf8(content.to_vec()).unwrap();
    commands
        .map(|command| (command.command, text(&command.content)))
        .collect()
}
