//! The way from the actor to the main loop: in order, and without keeping the actor waiting.
//!
//! The main loop, or a journal without room, may let chunks wait. The actor goes on meanwhile with
//! questions and what it hears; it takes no further commands when too much waits here.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{ClientId, Event};
use oxidask_futures::keys::NewChunk;
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::wire;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};

use crate::bodies::NewBodies;
use crate::grpc::Shared;
use crate::input::{ChunkInput, Input, Look, Question};
use crate::links::ClientLink;
use crate::parts::NewParts;

/// Items that may wait; the actor takes commands while half of it is free.
pub(super) const WAITING_MAX: usize = 1_024;

/// Chunks that may wait for the main loop.
const CHUNKS_WAITING_MAX: usize = 16;

/// Something for the main loop.
pub(super) enum Forward {
    Join(ClientId, Box<ClientLink>),
    Events(Vec<Event>),
    Chunk(ClientId, Box<NewChunk>),
    /// Only looks, at what was there when it was sent.
    Look(Look),
}

/// Starts to forward, until the sender is dropped or the main loop has ended.
pub(super) fn start(shared: Arc<Shared>) -> mpsc::Sender<Forward> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    tokio::spawn(forward(shared, receiver));
    sender
}

async fn forward(shared: Arc<Shared>, mut items: mpsc::Receiver<Forward>) {
    let chunks = Arc::new(Semaphore::new(CHUNKS_WAITING_MAX));
    while let Some(item) = items.recv().await {
        let input = match item {
            Forward::Join(client, link) => Input::ClientJoined(client, link),
            Forward::Events(events) => Input::Events(events),
            Forward::Look(look) => Input::Question(Question::Look(look)),
            Forward::Chunk(client, chunk) => {
                let message = for_journal(&shared, &chunk);
                let Ok(permit) = Arc::clone(&chunks).acquire_owned().await else {
                    return;
                };
                let new: Vec<Bytes> = chunk.body.into_iter().collect();
                let parts = NewParts::new(chunk.chunk.len(), Vec::new(), Vec::new());
                Input::Chunk(Box::new(ChunkInput {
                    client,
                    graph: chunk.graph,
                    number: chunk.number,
                    bodies: NewBodies::new(&new, &chunk.chunk.body),
                    parts: parts.with_arguments(&chunk.arguments),
                    chunk: Box::new(chunk.chunk),
                    message,
                    permit,
                }))
            }
        };
        if !shared.inputs.send(input).await {
            return;
        }
    }
}

/// The chunk as the journal keeps it; nothing without a journal.
fn for_journal(shared: &Shared, chunk: &NewChunk) -> Vec<u8> {
    if !shared.is_journalled {
        return Vec::new();
    }
    let placed = PlacedChunk {
        graph: chunk.graph,
        number: chunk.number,
        chunk: chunk.chunk.clone(),
        bodies: chunk.body.iter().cloned().collect(),
        part: Vec::new(),
        streamed_inputs: Vec::new(),
        arguments: chunk.arguments.clone(),
    };
    wire::GraphChunk::from(placed).encode_to_vec()
}
