//! What reaches the main loop, and the bounded way there.
//!
//! Owns the channel between the edges and the loop. Edges wait when it is full; nothing is dropped.
//! Questions carry the sender of their answer.

use oxidask_core::{ClientId, Event, GraphChunk, GraphId, TaskRef, WorkerId};
use oxidask_proto::wire;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Status;

use crate::bodies::NewBodies;
use crate::links::{ClientLink, WorkerLink};
use crate::parts::NewParts;

/// Inputs that wait for the loop; whoever has more waits.
pub(crate) const INPUTS_MAX: usize = 1024;

/// A chunk of a graph, decoded.
pub(crate) struct ChunkInput {
    /// Who sends it.
    pub(crate) client: ClientId,
    /// The graph.
    pub(crate) graph: GraphId,
    /// Its position.
    pub(crate) number: u32,
    /// Its tasks.
    pub(crate) chunk: Box<GraphChunk>,
    /// Its bodies.
    pub(crate) bodies: NewBodies,
    /// What its tasks say besides.
    pub(crate) parts: NewParts,
    /// Bounds the chunks of one client that wait; freed when the loop has taken the chunk.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Where a result is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// A worker holds it.
    Held {
        /// The worker.
        worker: WorkerId,
        /// Its data plane.
        address: Arc<str>,
        /// The result's size.
        bytes: u64,
    },
    /// Nobody holds it now; it is computed or computed again.
    Pending,
    /// It is not there and will not come.
    Gone,
}

/// What the edges ask.
pub(crate) enum Question {
    /// Where results are, in the order of the tasks.
    Whereabouts(Vec<TaskRef>, oneshot::Sender<Vec<Whereabouts>>),
    /// Workers and graphs; the asker fills in hello and uptime.
    Status(oneshot::Sender<wire::StatusReply>),
    /// Backlog and workers.
    Telemetry(oneshot::Sender<wire::TelemetryReply>),
}

/// What the loop takes.
pub(crate) enum Input {
    /// A worker has said hello.
    WorkerJoined(WorkerId, Box<WorkerLink>),
    /// A client has said hello.
    ClientJoined(ClientId, Box<ClientLink>),
    /// What happened, in order.
    Events(Vec<Event>),
    /// A part of a graph.
    Chunk(Box<ChunkInput>),
    /// A question.
    Question(Question),
    /// Time has passed.
    Wake,
    /// The end.
    Stop,
}

/// The edges' end of the channel.
#[derive(Clone)]
pub(crate) struct Inputs(mpsc::Sender<Input>);

impl Inputs {
    /// A bounded channel.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Input>) {
        let (sender, receiver) = mpsc::channel(INPUTS_MAX);
        (Self(sender), receiver)
    }

    /// Hands over, waiting if the loop is busy. False if the loop has ended.
    pub(crate) async fn send(&self, input: Input) -> bool {
        self.0.send(input).await.is_ok()
    }

    /// Hands events over; no events, no message.
    pub(crate) async fn events(&self, events: Vec<Event>) -> bool {
        events.is_empty() || self.send(Input::Events(events)).await
    }

    /// Wakes the loop, unless it has enough to do.
    pub(crate) fn wake(&self) {
        let _ = self.0.try_send(Input::Wake);
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask<A>(
        &self,
        question: impl FnOnce(oneshot::Sender<A>) -> Question,
    ) -> Result<A, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Question(question(reply))).await;
        answer
            .await
            .map_err(|_| Status::unavailable("the scheduler is shutting down"))
    }
}
