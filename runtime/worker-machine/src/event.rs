//! What happens to a worker, and what it wants done.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{Attempt, TaskReport, WorkerId};
use oxidask_diagnostic::Diagnostic;
use oxidask_store::ResultKey;

/// One run of one attempt; never reused, grows in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// One request to a peer; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Where the body of a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyRef {
    /// One of the graph's shared bodies, which came before.
    Shared(u32),
    /// Here.
    Inline(Bytes),
}

/// One input of an assigned task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The result that is read.
    pub key: ResultKey,
    /// Its size.
    pub bytes: u64,
    /// A worker that holds it.
    pub holder: WorkerId,
    /// Others that hold it too.
    pub alternates: Vec<WorkerId>,
}

/// A task to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The task.
    pub task: ResultKey,
    /// The attempt.
    pub attempt: Attempt,
    /// Larger first.
    pub priority: i32,
    /// Among those of the same priority and graph: smaller first, of equals the first to arrive.
    pub turn: u32,
    /// Slots it takes; more than the worker has means all that it has.
    pub slots: u32,
    /// Whoever runs it can keep it in line behind others.
    pub may_wait_in_line: bool,
    /// The task's name, for messages.
    pub key: Arc<str>,
    /// What to run.
    pub body: BodyRef,
    /// Which part of the body.
    pub part: u32,
    /// What the body is given besides its inputs.
    pub arguments: Bytes,
    /// What it reads while it runs: nothing of it is fetched before.
    pub streamed: Vec<Input>,
    /// What it is given, in order; may repeat.
    pub inputs: Vec<Input>,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailure {
    /// What the user will read.
    pub error: Arc<Diagnostic>,
    /// Whether another attempt may do better.
    pub is_retryable: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunOutcome {
    /// It has made a result, which is in the store.
    Finished(Finished),
    /// It failed.
    Failed(RunFailure),
    /// Nobody delivered some of its streamed inputs: which, and who did not, each once.
    InputsLost(Vec<(ResultKey, WorkerId)>),
    /// It was in line and did not begin. With what to say if it had begun after all.
    GivenBack(RunFailure),
}

/// A fetched object that could not be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The object.
    pub key: ResultKey,
    /// Why; the failure of each task that waits for it.
    pub failure: RunFailure,
}

/// An input of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The scheduler wants a task run.
    Assigned(Assignment),
    /// The scheduler wants an attempt back, unless it has started.
    Retracted {
        /// The task.
        task: ResultKey,
        /// The attempt.
        attempt: Attempt,
    },
    /// The scheduler no longer wants an attempt, started or not.
    Cancelled {
        /// The task.
        task: ResultKey,
        /// The attempt.
        attempt: Attempt,
    },
    /// Nobody needs this result any more.
    Released {
        /// The task that made it.
        task: ResultKey,
    },
    /// Everything of a graph is gone.
    GraphForgotten {
        /// The graph.
        graph: u32,
    },
    /// A peer has answered. What is in neither list is treated as not delivered.
    FetchDone {
        /// The request.
        request: RequestId,
        /// In the store now.
        kept: Vec<ResultKey>,
        /// The peer does not have them.
        missing: Vec<ResultKey>,
        /// The store has no room for them.
        refused: Vec<Refusal>,
    },
    /// A peer has not answered.
    FetchFailed {
        /// The request.
        request: RequestId,
    },
    /// A run is over, whether it was cancelled or not.
    RunEnded {
        /// Which.
        run: RunId,
        /// How.
        outcome: RunOutcome,
    },
    /// A run that was handed over before there was a slot for it has begun.
    Begun {
        /// Which.
        run: RunId,
    },
    /// A run goes on without its slots, which are free for others.
    Seceded {
        /// Which.
        run: RunId,
    },
    /// A run has its slots again, even if that is more than there are.
    Rejoined {
        /// Which.
        run: RunId,
    },
    /// How tight the memory is now.
    PressureChanged {
        /// Whether runs are to wait.
        is_paused: bool,
        /// Whether room is being made, so that waiting helps although nothing runs.
        is_easing: bool,
        /// Bytes that may be fetched.
        free_bytes: u64,
    },
    /// Something that was in the store has gone from it, and nobody ordered that.
    ObjectGone {
        /// Which.
        key: ResultKey,
    },
    /// The scheduler wants a copy of a result kept here. Answered by `CopyAdded` or `CopyFailed`,
    /// unless the result is released before.
    CopyOrdered {
        /// Which.
        key: ResultKey,
        /// Its size.
        bytes: u64,
        /// A worker that holds it.
        from: WorkerId,
    },
    /// Another worker can be asked from now on.
    PeerAdded {
        /// Who.
        peer: WorkerId,
    },
    /// Another worker is gone.
    PeerGone {
        /// Who.
        peer: WorkerId,
    },
}

/// A run that has made a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Size of the result.
    pub bytes: u64,
    /// Time between start and end of the run.
    pub duration_micros: u64,
    /// Rows of the result, if it is a table.
    pub rows: u64,
}

/// What a run needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The run.
    pub run: RunId,
    /// The task.
    pub task: ResultKey,
    /// The attempt.
    pub attempt: Attempt,
    /// Slots that it holds.
    pub slots: u32,
    /// There is no slot for it yet: it waits in line, and says when it begins.
    pub is_ahead: bool,
    /// The task's name.
    pub key: Arc<str>,
    /// What to run.
    pub body: BodyRef,
    /// Which part of the body.
    pub part: u32,
    /// What the body is given besides its inputs.
    pub arguments: Bytes,
    /// What it reads while it runs.
    pub streamed: Vec<Input>,
    /// What it is given, all of it held.
    pub inputs: Vec<ResultKey>,
}

/// An output of the state machine, to be carried out in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask a peer for objects; answered by `FetchDone` or `FetchFailed`.
    Fetch {
        /// The request.
        request: RequestId,
        /// Whom to ask.
        peer: WorkerId,
        /// What for.
        keys: Vec<ResultKey>,
    },
    /// Run a task; answered by `RunEnded`.
    Run(Run),
    /// Make a run end soon; still answered by `RunEnded`.
    CancelRun {
        /// Which.
        run: RunId,
    },
    /// Drop an object from the store.
    Drop {
        /// Which.
        key: ResultKey,
    },
    /// Drop all objects and bodies of a graph.
    DropGraph {
        /// Which.
        graph: u32,
    },
    /// Tell the scheduler about an attempt.
    Report {
        /// The task.
        task: ResultKey,
        /// The attempt.
        attempt: Attempt,
        /// What.
        report: TaskReport,
    },
    /// Tell the scheduler that a copy is held here now.
    CopyAdded {
        /// Of which result.
        key: ResultKey,
    },
    /// Tell the scheduler that a copy that it ordered cannot be had.
    CopyFailed {
        /// Of which result.
        key: ResultKey,
    },
    /// Tell the scheduler that a peer does not have a result.
    CopyMissing {
        /// Which result.
        key: ResultKey,
        /// Who does not have it.
        peer: WorkerId,
    },
}
