//! What the scheduler wants done. The shell carries effects out in order.

use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::ids::{Attempt, ClientId, GraphId, TaskRef, WorkerId};

/// An output of the state machine.
///
/// Effects carry ids only; the shell reads what else a message needs (inputs, holders, keys) from
/// the core at once, before the next event.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answer to `GraphOpened`.
    GraphAttached {
        /// Who asked.
        client: ClientId,
        /// The name that it asked for.
        name: Arc<str>,
        /// The graph's number from now on.
        graph: GraphId,
        /// The chunk that the scheduler expects next: 0 for a new graph.
        next_chunk: u32,
    },
    /// The chunk is accepted; it need not be sent again.
    ChunkAccepted {
        /// Who sent it.
        client: ClientId,
        /// The graph.
        graph: GraphId,
        /// Its position.
        number: u32,
    },
    /// The chunk is refused and the graph has failed with it.
    GraphRefused {
        /// Who sent it.
        client: ClientId,
        /// The graph.
        graph: GraphId,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// A wanted result is there. Said again after a lost result was computed again.
    ResultReady {
        /// Whoever is attached to the graph.
        client: ClientId,
        /// The task.
        task: TaskRef,
        /// Its size.
        bytes: u64,
    },
    /// A task has failed for good, or cannot run because one of its inputs has.
    TaskFailed {
        /// Whoever is attached to the graph.
        client: ClientId,
        /// The task.
        task: TaskRef,
        /// Why; for a dependent the error of the input that failed.
        error: Arc<Diagnostic>,
        /// Whether this task itself failed, and not one of its inputs.
        is_origin: bool,
    },
    /// Every wanted task is done or failed, and the last chunk was seen. Said again if a wanted
    /// result was lost afterwards and is there again. Follows `GraphRefused` and a cancellation.
    GraphDone {
        /// Whoever is attached to the graph.
        client: ClientId,
        /// The graph.
        graph: GraphId,
    },
    /// A task of a worker that died, or has been silent for long, is tried again; for one line to the
    /// user.
    TaskRescheduled {
        /// Whoever is attached to the graph.
        client: ClientId,
        /// The task.
        task: TaskRef,
    },
    /// The worker may begin.
    WorkerAccepted {
        /// Who.
        worker: WorkerId,
    },
    /// The worker may not join.
    WorkerRefused {
        /// Who.
        worker: WorkerId,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// A suspect is given up: it did not come back in time, or another worker took its name. It is
    /// no worker any more; no `WorkerLost` need follow.
    WorkerGivenUp {
        /// Who.
        worker: WorkerId,
        /// Why, in words.
        reason: String,
    },
    /// Fetch a copy of a result and keep it; answered by `CopiesAdded` or `CopiesFailed`.
    Copy {
        /// Who fetches.
        worker: WorkerId,
        /// The result.
        task: TaskRef,
        /// Who has it.
        from: WorkerId,
    },
    /// A retiring worker runs nothing, and all it holds is elsewhere too: it may go. Its going is
    /// then `WorkerLost` with `Retired`.
    WorkerEmpty {
        /// Who.
        worker: WorkerId,
    },
    /// A worker cannot retire; it goes on as before.
    RetireRefused {
        /// Who.
        worker: WorkerId,
        /// Why, in words.
        reason: String,
    },
    /// Run this attempt. Inputs and holders: `Core::inputs`, `Core::holders`.
    Assign {
        /// Where.
        worker: WorkerId,
        /// The task.
        task: TaskRef,
        /// The attempt.
        attempt: Attempt,
        /// When it is the task's turn among those of its graph with the same priority: smaller first,
        /// of equals the first to arrive.
        turn: u32,
    },
    /// Give the attempt back if it has not started; answered by `Retracted`, or by its end.
    Retract {
        /// Where.
        worker: WorkerId,
        /// The task.
        task: TaskRef,
        /// The attempt.
        attempt: Attempt,
    },
    /// Stop the attempt, running or not. There is no answer.
    Cancel {
        /// Where.
        worker: WorkerId,
        /// The task.
        task: TaskRef,
        /// The attempt.
        attempt: Attempt,
    },
    /// Forget the result.
    Release {
        /// Where.
        worker: WorkerId,
        /// The task.
        task: TaskRef,
    },
    /// Everything of the graph is gone; forget its bodies. Workers are told, and drop all results
    /// of the graph without a `Release` for each. Its attempts were cancelled before.
    GraphForgotten {
        /// The graph.
        graph: GraphId,
    },
}
