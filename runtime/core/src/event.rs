//! What happens to the scheduler.

use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::chunk::GraphChunk;
use crate::ids::{Attempt, ClientId, GraphId, TaskRef, WorkerId};

/// What a worker says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Unique among the workers that are alive.
    pub name: String,
    /// The worker group.
    pub group: String,
    /// Tasks of one slot that it runs at a time, at least 1.
    pub slots: u32,
    /// Task resources it offers, by name.
    pub resources: Vec<(String, u64)>,
    /// Bytes of results it may hold.
    pub memory_bytes: u64,
}

/// All that a worker has, as it says when it comes back. What it had to report about attempts that
/// have ended was reported before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Results it holds, with their sizes.
    pub held: Vec<(TaskRef, u64)>,
    /// Attempts that run.
    pub running: Vec<(TaskRef, Attempt)>,
    /// Those of them that run without their slots and resources.
    pub seceded: Vec<(TaskRef, Attempt)>,
    /// Attempts that wait there.
    pub queued: Vec<(TaskRef, Attempt)>,
}

/// Why a worker is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerLoss {
    /// Its process or its connection ended: tasks that ran there are blamed.
    Died(String),
    /// It was asked to go and had nothing left to do: nobody is blamed.
    Retired,
}

/// A report about one attempt. The core ignores it unless the attempt is the current one; but a
/// result that a suspect has counts if no worker is at the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskReport {
    /// It runs now. Left out when a task starts and ends between two batches.
    Started,
    /// It is done and its result is kept by the worker.
    Finished {
        /// Size of the result as the worker's store counts it.
        bytes: u64,
        /// Time between start and end of the run, without fetching.
        duration_micros: u64,
        /// Rows of the result, if it is a table.
        rows: u64,
    },
    /// The run failed.
    Failed {
        /// What the user will read.
        error: Arc<Diagnostic>,
        /// Whether another attempt may do better; false for a body that cannot be understood.
        is_retryable: bool,
    },
    /// Inputs could not be fetched before the run, or were not delivered to it while it ran: there
    /// is no result, and the task is not to blame.
    InputsLost {
        /// Each input with the worker that did not deliver it.
        lost: Vec<(TaskRef, WorkerId)>,
    },
    /// The answer to a retraction that came in time: the task did not start and is forgotten.
    Retracted,
    /// It runs on without its slots and resources, which are free for others: it waits for them.
    Seceded,
    /// It has its slots and resources again, even if that is more than the worker has.
    Rejoined,
}

/// An input of the state machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A client opens a graph by name, or attaches to one that is there. The last one to attach
    /// has the graph: a runner that was restarted takes it over from its dead connection.
    GraphOpened {
        /// Who asks.
        client: ClientId,
        /// The graph's name space; unique in the cluster.
        name: Arc<str>,
        /// For a new graph: chunks come as long as the client is there. A result goes, and a pending
        /// task stops, as soon as it is not wanted and no pending task reads it. A later chunk may
        /// want or read it all the same: then it is computed, perhaps again.
        is_open_ended: bool,
    },
    /// The next part of a graph. A chunk that was accepted before is acknowledged again and
    /// otherwise ignored.
    ChunkArrived {
        /// Who sends.
        client: ClientId,
        /// The graph.
        graph: GraphId,
        /// Position of the chunk in its graph, from 0.
        number: u32,
        /// The tasks.
        chunk: Box<GraphChunk>,
    },
    /// The client no longer wants these results.
    ResultsReleased {
        /// Who says so; ignored unless it is attached to the graph.
        client: ClientId,
        /// The client's tasks.
        tasks: Vec<TaskRef>,
    },
    /// The graph is to stop; its results stay until it is closed.
    GraphCancelled {
        /// Who says so; ignored unless it is attached to the graph.
        client: ClientId,
        /// The graph.
        graph: GraphId,
    },
    /// The client is done with the graph: everything of it goes.
    GraphClosed {
        /// Who says so; ignored unless it is attached to the graph.
        client: ClientId,
        /// The graph.
        graph: GraphId,
    },
    /// A client's connection ended. Its graphs go on for a grace period.
    ClientLost {
        /// Who.
        client: ClientId,
    },
    /// A worker has connected.
    WorkerJoined {
        /// Its number, chosen by the shell, growing.
        worker: WorkerId,
        /// What it says of itself.
        info: WorkerInfo,
    },
    /// A worker is gone.
    WorkerLost {
        /// Who.
        worker: WorkerId,
        /// Why.
        loss: WorkerLoss,
    },
    /// Nobody hears of a worker: its stream broke, or it missed beats. It gets no new work; what it
    /// holds stays readable and counts as held; what runs there is waited for, what is queued there
    /// goes elsewhere. It returns, or is lost when the grace period is over. What effects order of
    /// it until it returns must not reach it, not even later.
    WorkerSuspected {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is heard again, or has just joined with what it had before: its word on what it
    /// holds and runs settles every difference. Comes before anything else is sent to it.
    WorkerReturned {
        /// Who: the number it had when it was lost of sight, or its new one, just joined.
        worker: WorkerId,
        /// All that it has.
        inventory: Box<Inventory>,
    },
    /// A worker has no room for new work, or has room again. What is queued there is asked back.
    WorkerPaused {
        /// Who.
        worker: WorkerId,
        /// Whether it has no room.
        is_paused: bool,
    },
    /// These workers are to go. Answered for each by `WorkerEmpty` or by `RetireRefused`, at any
    /// time until then.
    WorkersRetiring {
        /// Who.
        workers: Vec<WorkerId>,
        /// Time from now after which tasks that still run there are stopped and run elsewhere.
        deadline_micros: u64,
    },
    /// These workers are to stay after all.
    RetirementCancelled {
        /// Who.
        workers: Vec<WorkerId>,
    },
    /// A worker could not fetch these results, which it was asked to by `Copy`.
    CopiesFailed {
        /// Who should have fetched them.
        worker: WorkerId,
        /// The results.
        tasks: Vec<TaskRef>,
    },
    /// A worker reports about attempts, in the order in which things happened there.
    TaskReported {
        /// Who.
        worker: WorkerId,
        /// Task, attempt, report.
        reports: Vec<(TaskRef, Attempt, TaskReport)>,
    },
    /// A worker has fetched copies of results and keeps them.
    CopiesAdded {
        /// Who.
        worker: WorkerId,
        /// The results.
        tasks: Vec<TaskRef>,
    },
    /// Somebody could not read these results from this worker; it does not have them.
    CopiesMissing {
        /// Who does not have them.
        worker: WorkerId,
        /// The results.
        tasks: Vec<TaskRef>,
    },
    /// Whatever the core does, nothing can make this result any more: a task that has not ended
    /// fails. Nothing happens to any other.
    TaskHopeless {
        /// The task.
        task: TaskRef,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// Time has passed; deadlines are looked at. Comes about ten times a second.
    Tick,
}
