//! A client's connection, and the session in which one graph runs.
//!
//! Owns opening and attaching, sending chunks with back-pressure, and the task that reads what the
//! scheduler says. Each graph has a session of its own on the shared connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use oxidask_comm::Credentials;
use oxidask_diagnostic::Diagnostic;
use oxidask_identity::Role;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use oxidask_store::Payload;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::commands::Commands;
use crate::error::{ClientError, session_ended};
use crate::events::{EventQueue, GraphEvent};
use crate::graph_file::GraphPlan;
use crate::results;

/// Time in which a scheduler must answer a call.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Time in which a session that was closed must end.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection to a scheduler.
#[derive(Debug, Clone)]
pub struct Client {
    scheduler: SchedulerClient<Channel>,
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
        Ok(Self { scheduler })
    }

    /// The state of the cluster.
    pub fn status(&self) -> BoxFuture<'_, Result<wire::StatusReply, ClientError>> {
        let mut scheduler = self.scheduler.clone();
        Box::pin(async move {
            let reply = answered(scheduler.status(wire::StatusRequest {})).await?;
            Ok(reply.into_inner())
        })
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
        let commands = Commands::new(wire::ClientBatch {
            hello: Some(hello::hello()),
            open: Some(wire::OpenGraph {
                name: name.to_owned(),
            }),
            ..wire::ClientBatch::default()
        });
        let mut scheduler = self.scheduler.clone();
        let outbound = Arc::clone(&commands).into_stream();
        let mut inbound = answered(scheduler.session(outbound)).await?.into_inner();
        let (first, attached) = answered(attach(&mut inbound)).await??;
        let events = Arc::new(EventQueue::default());
        events.push(attached.graph, first);
        let reading = read(
            attached.graph,
            inbound,
            Arc::clone(&events),
            Arc::clone(&commands),
        );
        Ok(GraphRun {
            graph: attached.graph,
            next_chunk: attached.next_chunk,
            scheduler,
            commands,
            events,
            reader: tokio::spawn(reading),
        })
    }
}

async fn answered<T, E: Into<ClientError>>(
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
    inbound: &mut Streaming<wire::SessionBatch>,
) -> Result<Result<(wire::SessionBatch, wire::GraphAttached), ClientError>, tonic::Status> {
    let mut is_greeted = false;
    while let Some(mut batch) = inbound.message().await? {
        if !is_greeted {
            if let Err(error) = hello::check(batch.hello.take()) {
                return Ok(Err(error.into()));
            }
            is_greeted = true;
        }
        if let Some(attached) = batch.attached.pop() {
            return Ok(Ok((batch, attached)));
        }
    }
    Ok(Err(ClientError::Refused(Box::new(session_ended(None)))))
}

async fn read(
    graph: u32,
    mut inbound: Streaming<wire::SessionBatch>,
    events: Arc<EventQueue>,
    commands: Arc<Commands>,
) {
    let reason = loop {
        events.space().await;
        match inbound.message().await {
            Ok(Some(batch)) => events.push(graph, batch),
            Ok(None) => break session_ended(None),
            Err(status) => break session_ended(Some(&status)),
        }
    };
    let was_ended_by_us = commands.is_ended();
    events.end((!was_ended_by_us).then_some(reason));
    commands.end();
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
    reader: JoinHandle<()>,
}

impl GraphRun {
    /// The graph's number at the scheduler.
    pub fn graph(&self) -> u32 {
        self.graph
    }

    /// Sends the chunks of the graph, all of them and once, from where the scheduler has them. Their
    /// graph and their number are filled in here.
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
    /// is; a large one is put together in memory.
    pub fn fetch(&self, tasks: Vec<u32>) -> BoxStream<'static, (u32, Result<Payload, Diagnostic>)> {
        Box::pin(results::fetch(self.scheduler.clone(), self.graph, tasks))
    }

    /// These results are no longer wanted.
    pub fn release(&self, tasks: Vec<u32>) {
        self.commands.release(self.graph, tasks);
    }

    /// Stops the graph. Results that are there stay until it is closed.
    pub fn cancel(&self) {
        self.commands.cancel(self.graph);
    }

    /// Everything of the graph goes, and the session ends. Waits until the scheduler has heard it,
    /// but not for long.
    pub async fn close(mut self) {
        self.commands.close(self.graph);
        let _ = timeout(CLOSE_TIME_MAX, &mut self.reader).await;
    }
}

impl Drop for GraphRun {
    fn drop(&mut self) {
        self.commands.end();
        self.reader.abort();
    }
}
