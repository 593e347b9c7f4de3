//! One client's stream: hello, graphs, what the client no longer wants, end.
//!
//! Decodes on its own task. Never decides anything about tasks. A client may have
//! [`CHUNKS_WAITING_MAX`] chunks waiting for the main loop; then its stream is not read further and
//! HTTP/2 makes it wait, so that reports of workers never queue behind a whole graph.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{ClientId, Event, GraphId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::fault::{error_to_status, to_status};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::{hello, ids, wire};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::bodies::NewBodies;
use crate::grpc::{Cut, HELLO_TIME_MAX, Shared, shutting_down};
use crate::input::{ChunkInput, Input};
use crate::journal::CHUNK_BYTES_MAX;
use crate::links::ClientLink;
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};
use crate::parts::NewParts;

/// Chunks of one client that may wait for the main loop.
const CHUNKS_WAITING_MAX: usize = 4;

/// Bytes of the name of a graph.
const GRAPH_NAME_BYTES_MAX: usize = 1024;

type ClientOutbox = Outbox<wire::SessionBatch>;

/// Starts to serve a client.
pub(crate) fn open(
    shared: Arc<Shared>,
    cut: Cut,
    inbound: Streaming<wire::ClientBatch>,
) -> Arc<ClientOutbox> {
    let outbox = Outbox::new(OUTBOX_BYTES_MAX, &shared.shutdown);
    let client = Client {
        number: ClientId(shared.next_number()),
        shared,
        outbox: Arc::clone(&outbox),
        chunks: Arc::new(Semaphore::new(CHUNKS_WAITING_MAX)),
    };
    tokio::spawn(client.run(cut, inbound));
    outbox
}

struct Client {
    number: ClientId,
    shared: Arc<Shared>,
    outbox: Arc<ClientOutbox>,
    chunks: Arc<Semaphore>,
}

impl Client {
    async fn run(self, cut: Cut, mut inbound: Streaming<wire::ClientBatch>) {
        let end = match self.join(&mut inbound).await {
            Ok(first) => {
                let end = self.read(first, &mut inbound).await;
                let lost = Event::ClientLost {
                    client: self.number,
                };
                self.shared.inputs.events(vec![lost]).await;
                end
            }
            Err(status) => Err(status),
        };
        let was_closed = self.outbox.is_overflown();
        self.outbox.finish(end);
        if was_closed {
            cut.after_farewell().await;
        }
    }

    async fn join(
        &self,
        inbound: &mut Streaming<wire::ClientBatch>,
    ) -> Result<wire::ClientBatch, Status> {
        let mut first = match timeout(HELLO_TIME_MAX, inbound.message()).await {
            Ok(first) => first?.unwrap_or_default(),
            Err(_) => return Err(Status::deadline_exceeded("no hello came in time")),
        };
        hello::check(first.hello.take()).map_err(|error| error_to_status(&error))?;
        let link = ClientLink::new(Arc::clone(&self.outbox));
        let joined = Input::ClientJoined(self.number, Box::new(link));
        if self.shared.inputs.send(joined).await {
            Ok(first)
        } else {
            Err(shutting_down())
        }
    }

    async fn read(
        &self,
        first: wire::ClientBatch,
        inbound: &mut Streaming<wire::ClientBatch>,
    ) -> Result<(), Status> {
        let mut closed = pin!(self.outbox.closed().cancelled());
        let mut next = first;
        loop {
            self.take(next).await?;
            next = tokio::select! {
                biased;
                () = &mut closed => {
                    let is_shutdown = self.shared.shutdown.is_cancelled();
                    return if is_shutdown { Err(shutting_down()) } else { Ok(()) };
                }
                // An error means that the client is gone: there is nobody to tell.
                received = inbound.message() => match received {
                    Ok(Some(batch)) => batch,
                    Ok(None) | Err(_) => return Ok(()),
                },
            };
        }
    }

    async fn take(&self, batch: wire::ClientBatch) -> Result<(), Status> {
        let client = self.number;
        if let Some(open) = batch.open {
            check_graph_name(&open.name)?;
            let opened = Event::GraphOpened {
                client,
                name: Arc::from(open.name),
                is_open_ended: open.is_open_ended,
            };
            self.send(Input::Events(vec![opened])).await?;
        }
        for chunk in batch.chunks {
            self.take_chunk(chunk).await?;
        }
        let mut events = Vec::new();
        if !batch.released.is_empty() {
            events.push(Event::ResultsReleased {
                client,
                tasks: ids::tasks(batch.released),
            });
        }
        let graphs = batch.cancelled.into_iter().map(GraphId);
        events.extend(graphs.map(|graph| Event::GraphCancelled { client, graph }));
        let graphs = batch.closed.into_iter().map(GraphId);
        events.extend(graphs.map(|graph| Event::GraphClosed { client, graph }));
        if events.is_empty() {
            Ok(())
        } else {
            self.send(Input::Events(events)).await
        }
    }

    async fn take_chunk(&self, chunk: wire::GraphChunk) -> Result<(), Status> {
        let message = self.for_journal(&chunk)?;
        let mut placed = PlacedChunk::try_from(chunk).map_err(|error| error_to_status(&error))?;
        let received: Vec<Bytes> = std::mem::take(&mut placed.bodies);
        let bodies = NewBodies::new(&received, &placed.chunk.body);
        let parts = NewParts::new(placed.chunk.len(), placed.part, placed.streamed_inputs);
        let parts = parts.with_arguments(&placed.arguments);
        let permit = Arc::clone(&self.chunks).acquire_owned().await;
        let permit = permit.map_err(|_| shutting_down())?;
        let input = ChunkInput {
            client: self.number,
            graph: placed.graph,
            number: placed.number,
            chunk: Box::new(placed.chunk),
            bodies,
            parts,
            message,
            permit,
        };
        self.send(Input::Chunk(Box::new(input))).await
    }

    /// The chunk as the journal keeps it; nothing without a journal.
    fn for_journal(&self, chunk: &wire::GraphChunk) -> Result<Vec<u8>, Status> {
        if !self.shared.is_journalled {
            return Ok(Vec::new());
        }
        let message = chunk.encode_to_vec();
        if message.len() <= CHUNK_BYTES_MAX {
            return Ok(message);
        }
        let text = format!("a part of a graph has more than `{CHUNK_BYTES_MAX}` bytes");
        Err(to_status(&Diagnostic::new(Code::LimitPassed, text)))
    }

    async fn send(&self, input: Input) -> Result<(), Status> {
        if self.shared.inputs.send(input).await {
            Ok(())
        } else {
            Err(shutting_down())
        }
    }
}

fn check_graph_name(name: &str) -> Result<(), Status> {
    if !name.is_empty() && name.len() <= GRAPH_NAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "the name of a graph has `{}` bytes, not 1 to {GRAPH_NAME_BYTES_MAX}",
        name.len()
    );
    Err(to_status(&Diagnostic::new(Code::LimitPassed, message)))
}
