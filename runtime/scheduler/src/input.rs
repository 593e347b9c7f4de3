//! What reaches the main loop, and the bounded way there.
//!
//! Owns the channel between the edges and the loop. Edges wait when it is full; nothing is dropped.
//! Questions carry the sender of their answer. Each input knows since when it waits.

use oxidask_core::{ClientId, Digest, Event, GraphChunk, GraphId, Inventory, TaskRef, WorkerId};
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Status;

use crate::bodies::NewBodies;
use crate::commands::CommandInput;
use crate::links::ClientLink;
use crate::main_loop::MainLoop;
use crate::outbox::Outbox;
use crate::parts::NewParts;
use crate::values::ReportedValues;
use crate::vitals::Vitals;

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
    /// The message for the journal; empty if none is kept.
    pub(crate) message: Vec<u8>,
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
        /// Nobody hears of the worker, and nobody else holds it.
        is_suspect: bool,
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
    /// Workers are to go, or to stay after all.
    Retire(
        Box<wire::RetireRequest>,
        oneshot::Sender<Result<wire::RetireReply, Box<Diagnostic>>>,
    ),
    /// The process of a worker has ended. Answered with whether it was known.
    WorkerEnded(Box<wire::WorkerEndedRequest>, oneshot::Sender<bool>),
    /// Workers and graphs; the asker fills in hello and uptime.
    Status(oneshot::Sender<wire::StatusReply>),
    /// Anything that only looks: it runs on the loop's thread, and so must be short.
    Look(Look),
}

/// Reads from the loop's state, and sends what it read to whoever asked.
pub(crate) type Look = Box<dyn FnOnce(&mut MainLoop) + Send>;

/// A worker that has said hello on a new stream.
pub(crate) struct Arrival {
    /// The stream's number; also the worker's, unless it has one that is known.
    pub(crate) number: u32,
    /// What it says of itself.
    pub(crate) hello: wire::WorkerHello,
    /// Its heartbeats.
    pub(crate) vitals: Arc<Vitals>,
    /// The way to it.
    pub(crate) outbox: Arc<Outbox<wire::WorkBatch>>,
    /// Tells the stream as which worker it speaks.
    pub(crate) admitted: oneshot::Sender<WorkerId>,
}

/// What the stream of a worker brings.
pub(crate) enum Said {
    /// Something for the core.
    Event(Event),
    /// Ends of tasks, with small results.
    Reported(Event, ReportedValues),
    /// A heartbeat: what the worker believes.
    Beat(Digest),
    /// It wants to go, and asks to be drained within this time.
    Leaving {
        /// The time.
        deadline_micros: u64,
    },
    /// All that it has.
    Inventory(Box<Inventory>),
    /// It has not said anything for a while.
    Silent,
    /// What became of commands.
    CommandResults(Vec<wire::CommandResult>),
    /// It says something again.
    Heard,
    /// The stream is over.
    Broken {
        /// Why, in few words.
        reason: &'static str,
        /// Whether the worker has ended it.
        is_clean: bool,
    },
    /// It sends what it must not.
    Nonsense {
        /// What.
        reason: String,
    },
}

/// What the loop takes.
pub(crate) enum Input {
    /// A worker has said hello.
    WorkerArrived(Box<Arrival>),
    /// What a stream of a worker has brought, in order.
    WorkerSaid(WorkerId, u32, Vec<Said>),
    /// A worker that nobody hears of does not run any more.
    WorkerDead(WorkerId),
    /// A client has said hello.
    ClientJoined(ClientId, Box<ClientLink>),
    /// What happened elsewhere than on the stream of a worker, in order.
    Events(Vec<Event>),
    /// A part of a graph.
    Chunk(Box<ChunkInput>),
    /// A question.
    Question(Question),
    /// Something to do for workers beside tasks.
    #[allow(dead_code, reason = "the service for futures asks")]
    Command(Box<CommandInput>),
    /// Time has passed.
    Wake,
    /// The end.
    Stop,
}

/// An input on its way.
pub(crate) struct Queued {
    /// Since when it waits for the loop.
    pub(crate) since: Instant,
    /// The input.
    pub(crate) input: Input,
}

impl From<Input> for Queued {
    fn from(input: Input) -> Self {
        let since = Instant::now();
        Self { since, input }
    }
}

/// The edges' end of the channel.
#[derive(Clone)]
pub(crate) struct Inputs(mpsc::Sender<Queued>);

impl Inputs {
    /// A bounded channel.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Queued>) {
        let (sender, receiver) = mpsc::channel(INPUTS_MAX);
        (Self(sender), receiver)
    }

    /// Hands over, waiting if the loop is busy. False if the loop has ended.
    pub(crate) async fn send(&self, input: Input) -> bool {
        self.0.send(input.into()).await.is_ok()
    }

    /// Hands over what a worker says; nothing said, no message.
    pub(crate) async fn said(&self, worker: WorkerId, stream: u32, said: Vec<Said>) -> bool {
        said.is_empty() || self.send(Input::WorkerSaid(worker, stream, said)).await
    }

    /// Hands events over; no events, no message.
    pub(crate) async fn events(&self, events: Vec<Event>) -> bool {
        events.is_empty() || self.send(Input::Events(events)).await
    }

    /// Wakes the loop, unless it has enough to do.
    pub(crate) fn wake(&self) {
        let _ = self.0.try_send(Input::Wake.into());
    }

    /// Wakes the loop like [`Self::wake`], and does not keep it from ending.
    pub(crate) fn waker(&self) -> impl Fn() + Send + use<> {
        let sender = self.0.downgrade();
        move || {
            if let Some(sender) = sender.upgrade() {
                let _ = sender.try_send(Input::Wake.into());
            }
        }
    }

    /// Inputs that wait for the loop now.
    pub(crate) fn waiting(&self) -> usize {
        self.0.max_capacity() - self.0.capacity()
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

    /// Runs a function that only looks on the loop's thread.
    pub(crate) async fn look<A: Send + 'static>(
        &self,
        look: impl FnOnce(&mut MainLoop) -> A + Send + 'static,
    ) -> Result<A, Status> {
        self.ask(|reply| {
            Question::Look(Box::new(move |main_loop| {
                // An asker that has gone away needs no answer.
                let _ = reply.send(look(main_loop));
            }))
        })
        .await
    }
}
