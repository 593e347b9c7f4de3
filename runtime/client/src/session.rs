//! A client's connection, and the session in which one graph runs.
//!
//! Owns opening and attaching, and sending chunks with back-pressure. Each graph has a session of its
//! own on the shared connection, which is made again by itself when it breaks.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use oxidask_comm::Credentials;
use oxidask_diagnostic::Diagnostic;
use oxidask_identity::Role;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use oxidask_store::Payload;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::commands::Commands;
use crate::error::{ClientError, session_ended};
use crate::events::{EventQueue, GraphEvent};
use crate::graph_file::GraphPlan;
use crate::link::{Link, Patience, Standing};
use crate::results;

/// Time in which a scheduler must answer a call.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Time in which a session that was closed must end.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a client tries to reach a scheduler again, unless it is told otherwise.
pub const RECONNECT_TIME_DEFAULT: Duration = Duration::from_mins(10);

/// A connection to a scheduler.
#[derive(Debug, Clone)]
pub struct Client {
    scheduler: SchedulerClient<Channel>,
    /// The incarnation of the scheduler that was met last; 0: none.
    met: Arc<AtomicU64>,
    reconnect_time: Duration,
}

/// A session that the scheduler has taken.
pub(crate) struct Dialled {
    pub(crate) inbound: Streaming<wire::SessionBatch>,
    pub(crate) incarnation: u64,
    /// What came with the graph's number.
    pub(crate) first: wire::SessionBatch,
    pub(crate) attached: wire::GraphAttached,
}

impl Client {
    /// Connects to `oxidask://host:port`.
    ///
    /// The futures of a client are boxed so that their code is made once, here, and not anew in
    /// each program.
    pub fn connect<'a>(
        address: &'a str,
        credentials: &'a Credentials,
    ) -> BoxFuture<'a, Result<Self, ClientError>> {
        Box::pin(Self::connect_checked(address, credentials))
    }

    async fn connect_checked(
        address: &str,
        credentials: &Credentials,
    ) -> Result<Self, ClientError> {
        let channel = oxidask_comm::connect(address, credentials, Role::Scheduler).await;
        let channel = channel.map_err(|source| ClientError::Connect {
            address: address.to_owned(),
            source,
        })?;
        let scheduler = SchedulerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            scheduler,
            met: Arc::default(),
            reconnect_time: RECONNECT_TIME_DEFAULT,
        })
    }

    /// Sets how long graphs may be without a scheduler. With zero, a connection that breaks is the
    /// end of its graph.
    #[must_use]
    pub fn reconnecting_for(mut self, time: Duration) -> Self {
        self.reconnect_time = time;
        self
    }

    pub(crate) fn reconnect_time(&self) -> Duration {
        self.reconnect_time
    }

    pub(crate) fn scheduler(&self) -> SchedulerClient<Channel> {
        self.scheduler.clone()
    }

    /// Opens the graph `name` and sends the plan. If the graph is there already, attaches to it and
    /// sends only what the scheduler has not got yet.
    ///
    /// Returns when all of the plan is on its way. Events wait meanwhile.
    pub fn submit<'a>(
        &'a self,
        name: &'a str,
        plan: &'a GraphPlan,
    ) -> BoxFuture<'a, Result<GraphRun, ClientError>> {
        Box::pin(self.submit_chunks(name, plan.chunks()))
    }

    /// As [`Client::submit`], for a graph in chunks from anywhere. Their graph and their number are
    /// filled in here; the same name must always give the same chunks.
    pub async fn submit_chunks(
        &self,
        name: &str,
        chunks: impl Iterator<Item = wire::GraphChunk> + Send,
    ) -> Result<GraphRun, ClientError> {
        let run = self.open_checked(name).await?;
        run.send(chunks).await;
        Ok(run)
    }

    /// Opens the graph `name`, or attaches to it. Its chunks are sent with [`GraphRun::send`].
    pub fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<GraphRun, ClientError>> {
        Box::pin(self.open_checked(name))
    }

    async fn open_checked(&self, name: &str) -> Result<GraphRun, ClientError> {
        let commands = Commands::new();
        let mut patience = Patience::new(self.reconnect_time);
        let dialled = loop {
            let error = match self.dial(name, &commands).await {
                Ok(dialled) => break dialled,
                Err(error) => error,
            };
            // The first time, the caller may know better than to wait.
            let has_met = self.met.load(Ordering::Relaxed) != 0;
            match patience.next_pause() {
                Some(pause) if has_met && error.may_pass() => sleep(pause).await,
                _ => return Err(error),
            }
        };
        Ok(self.run(name, dialled, commands))
    }

    fn run(&self, name: &str, dialled: Dialled, commands: Arc<Commands>) -> GraphRun {
        let Dialled {
            inbound,
            incarnation,
            first,
            attached,
        } = dialled;
        // Nothing was acknowledged yet that could be lost.
        let _ = commands.attached(attached.graph, attached.next_chunk);
        let events = Arc::new(EventQueue::default());
        events.push(attached.graph, first);
        let (changes, standing) = watch::channel(Standing::Connected);
        let link = Link {
            client: self.clone(),
            name: name.to_owned(),
            graph: attached.graph,
            incarnation,
            commands: Arc::clone(&commands),
            events: Arc::clone(&events),
            standing: changes,
        };
        GraphRun {
            graph: attached.graph,
            next_chunk: attached.next_chunk,
            scheduler: self.scheduler.clone(),
            commands,
            events,
            standing,
            reader: tokio::spawn(link.keep(inbound)),
        }
    }

    /// Opens a session and the graph in it, once.
    pub(crate) async fn dial(
        &self,
        name: &str,
        commands: &Arc<Commands>,
    ) -> Result<Dialled, ClientError> {
        let hello = wire::Hello {
            incarnation: self.met.load(Ordering::Relaxed),
            ..hello::hello()
        };
        let outbound = commands.connect(wire::ClientBatch {
            hello: Some(hello),
            open: Some(wire::OpenGraph {
                name: name.to_owned(),
                ..wire::OpenGraph::default()
            }),
            ..wire::ClientBatch::default()
        });
        let mut scheduler = self.scheduler.clone();
        let inbound = answered(scheduler.session(outbound)).await?.into_inner();
        let dialled = answered(attach(inbound)).await??;
        self.met.store(dialled.incarnation, Ordering::Relaxed);
        Ok(dialled)
    }
}

/// A call, with a bound on the time that its answer takes.
pub(crate) async fn answered<T, E: Into<ClientError>>(
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, ClientError> {
    match timeout(ANSWER_TIME_MAX, call).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(ClientError::Unanswered {
            seconds: ANSWER_TIME_MAX.as_secs(),
        }),
    }
}

/// Reads until the scheduler has named the graph.
async fn attach(
    mut inbound: Streaming<wire::SessionBatch>,
) -> Result<Result<Dialled, ClientError>, tonic::Status> {
    let mut incarnation = None;
    while let Some(mut first) = inbound.message().await? {
        if incarnation.is_none() {
            match hello::check(first.hello.take()) {
                Ok(hello) => incarnation = Some(hello.incarnation),
                Err(error) => return Ok(Err(error.into())),
            }
        }
        if let Some(attached) = first.attached.pop() {
            return Ok(Ok(Dialled {
                inbound,
                incarnation: incarnation.unwrap_or_default(),
                first,
                attached,
            }));
        }
        // Only the graph that is being opened can be meant: there is no other in this session.
        if let Some(refused) = first.refused.pop() {
            let diagnostic = Diagnostic::from(refused.fault.unwrap_or_default());
            return Ok(Err(ClientError::Refused(Box::new(diagnostic))));
        }
    }
    Ok(Err(ClientError::Refused(Box::new(session_ended(None)))))
}

/// A graph that runs. Dropping it leaves the graph to the scheduler for a grace period, in which a
/// client may attach again by submitting under the same name.
#[derive(Debug)]
pub struct GraphRun {
    graph: u32,
    /// The first chunk that the scheduler has not got yet.
    next_chunk: u32,
    scheduler: SchedulerClient<Channel>,
    commands: Arc<Commands>,
    events: Arc<EventQueue>,
    standing: watch::Receiver<Standing>,
    reader: JoinHandle<()>,
}

impl GraphRun {
    /// The graph's number at the scheduler.
    pub fn graph(&self) -> u32 {
        self.graph
    }

    /// Sends the chunks of the graph, all of them and once, from where the scheduler has them. Their
    /// graph and their number are filled in here. While the connection is made again, this waits.
    pub async fn send(&self, chunks: impl Iterator<Item = wire::GraphChunk> + Send) {
        for (number, mut chunk) in (0..).zip(chunks).skip(self.next_chunk as usize) {
            chunk.graph = self.graph;
            chunk.number = number;
            if !self.commands.send_chunk(chunk).await {
                // The session is over; its last event says why.
                break;
            }
        }
    }

    /// The next event; waits for it. `None` after [`GraphEvent::Disconnected`]. May be dropped
    /// while it waits: nothing is lost.
    pub async fn next_event(&mut self) -> Option<GraphEvent> {
        self.events.next().await
    }

    /// The results of these tasks, in this order, each exactly once. Results are read as the stream
    /// is; a large one is put together in memory. When the connection breaks, what is missing is
    /// asked for again.
    pub fn fetch(&self, tasks: Vec<u32>) -> BoxStream<'static, (u32, Result<Payload, Diagnostic>)> {
        let (scheduler, standing) = (self.scheduler.clone(), self.standing.clone());
        Box::pin(results::fetch(scheduler, standing, self.graph, tasks))
    }

    /// These results are no longer wanted.
    pub fn release(&self, tasks: Vec<u32>) {
        self.commands.release(tasks);
    }

    /// Stops the graph. Results that are there stay until it is closed.
    pub fn cancel(&self) {
        self.commands.cancel();
    }

    /// Everything of the graph goes, and the session ends. Waits until the scheduler has heard it,
    /// but not for long.
    pub async fn close(mut self) {
        self.commands.close();
        let _ = timeout(CLOSE_TIME_MAX, &mut self.reader).await;
    }
}

impl Drop for GraphRun {
    fn drop(&mut self) {
        self.commands.end();
        self.reader.abort();
    }
}
