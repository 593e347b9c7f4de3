//! What happens to keys, and what follows from it.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{GraphChunk, GraphId, Requirement, TaskIndex, TaskRef};
use oxidask_diagnostic::Diagnostic;

/// One stream of a client, numbered by the shell; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection(pub u32);

/// An input of the state machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// A client has said hello. One that comes back says all that it wants; another connection of
    /// the same name ends.
    Joined {
        /// Its stream.
        connection: Connection,
        /// Its name, chosen by itself.
        name: String,
        /// Whether it was here before.
        is_back: bool,
        /// All that it wants.
        wanted: Vec<String>,
    },
    /// A client says something. What was said before, by its number, is acknowledged again and
    /// otherwise ignored.
    Said {
        /// Its stream.
        connection: Connection,
        /// From 1, growing.
        number: u64,
        /// What.
        command: Command,
    },
    /// The stream of a client is over. If the client has ended it, its keys go at once, otherwise
    /// after a grace time.
    Left {
        /// The stream.
        connection: Connection,
        /// Whether the client has ended it.
        is_clean: bool,
    },
    /// A new graph for tasks, as [`super::Futures::needs_graph`] asks for.
    GraphOpened {
        /// Its number.
        graph: GraphId,
        /// Its name.
        name: Arc<str>,
    },
    /// A graph could not be opened: submissions fail while there is none.
    GraphUnavailable {
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// A graph that was there before this process began; comes before any client.
    Restored(Box<RestoredGraph>),
    /// The core has a chunk; with a journal, it is durable.
    ChunkAccepted {
        /// Its graph.
        graph: GraphId,
        /// Its position.
        number: u32,
    },
    /// The core has ended a graph.
    GraphRefused {
        /// The graph.
        graph: GraphId,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// A wanted result is there.
    TaskReady {
        /// Its task.
        task: TaskRef,
        /// Its size.
        bytes: u64,
        /// Itself, if it is small and at hand. It is passed on and not kept.
        value: Option<SmallValue>,
    },
    /// A wanted task has failed.
    TaskFailed {
        /// The task.
        task: TaskRef,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// A client puts a value: a task that is outside of the order of its commands.
    Placed {
        /// The client's name.
        client: String,
        /// One task.
        submission: Box<Submission>,
    },
    /// What clients coordinate by names a key from now on, or no longer: it is wanted like by a client
    /// of its own that never goes.
    Named {
        /// The key.
        key: String,
        /// Whether it is named.
        is_named: bool,
    },
    /// A client asks for all keys to be dropped.
    Restarted,
    /// Time has passed.
    Tick,
}

/// What a client may say.
#[derive(Debug, Clone)]
pub enum Command {
    /// New tasks.
    Submit(Box<Submission>),
    /// It wants these.
    Want(Vec<String>),
    /// It no longer wants these.
    Release(Vec<String>),
    /// These are to stop, with what depends on them.
    Cancel(Box<Cancel>),
    /// Failed ones are to be tried again.
    Retry(Box<Regrown>),
    /// The shell could not understand it; this is why.
    Refused(Arc<Diagnostic>),
}

/// Keys that are to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    /// The keys.
    pub keys: Vec<String>,
    /// Also for other clients that want them.
    pub is_forced: bool,
    /// For those whose keys they are.
    pub reason: String,
    /// The same in words.
    pub message: String,
    /// Pending tasks that depend on those of the keys, as the core knows.
    pub dependents: Vec<TaskRef>,
}

/// Failed tasks as the core knows them, to be made anew: what failed by itself and all that failed
/// with it. Nothing is kept of tasks here, so whoever wants to retry looks into the core.
#[derive(Debug, Clone, Default)]
pub struct Regrown {
    /// Their graph; nothing if there is nothing to retry.
    pub graph: Option<GraphId>,
    /// In order of their numbers, so that inputs come first.
    pub tasks: Vec<RegrownTask>,
}

/// A failed task.
#[derive(Debug, Clone)]
pub struct RegrownTask {
    /// Its number.
    pub task: TaskIndex,
    /// Its key.
    pub key: String,
    /// Its body's number.
    pub body: u32,
    /// Its group's number.
    pub group: u32,
    /// Its requirement's number.
    pub requirement: u32,
    /// Its priority.
    pub priority: i32,
    /// Its inputs, failed or not.
    pub inputs: Vec<TaskIndex>,
    /// What its body is given besides.
    pub arguments: Bytes,
}

/// New tasks as columns, one entry a task; an empty column means its default for all.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// All keys, one behind the other.
    pub keys: String,
    /// Bytes of each.
    pub key_lengths: Vec<u32>,
    /// Of all of the tasks.
    pub body: Bytes,
    /// Of each.
    pub arguments: Vec<Bytes>,
    /// Into `groups`.
    pub group: Vec<u32>,
    /// Names of groups.
    pub groups: Vec<String>,
    /// Larger first.
    pub priority: Vec<i32>,
    /// How often a failed attempt is tried again.
    pub retries: Vec<u32>,
    /// 0: none; else 1 + position in `requirements`.
    pub requirement: Vec<u32>,
    /// What tasks ask of workers.
    pub requirements: Vec<Requirement>,
    /// Entries of `inputs` of each.
    pub input_counts: Vec<u32>,
    /// Positions: first those of `external`, then the tasks in order.
    pub inputs: Vec<u32>,
    /// Keys that are there already.
    pub external: Vec<String>,
    /// Positions among the tasks, from 0, of those that the client wants.
    pub wanted: Vec<u32>,
}

/// A graph that a journal has kept.
#[derive(Debug, Clone, Default)]
pub struct RestoredGraph {
    /// Its number.
    pub graph: Option<GraphId>,
    /// Its name.
    pub name: Arc<str>,
    /// The chunk that is expected next.
    pub next_chunk: u32,
    /// Its tasks.
    pub tasks: u32,
    /// Its edges.
    pub edges: u64,
    /// Bytes of its keys.
    pub key_bytes: u64,
    /// Its bodies.
    pub bodies: u32,
    /// Names of its groups, in order.
    pub groups: Vec<Arc<str>>,
    /// Its requirements in order; the first is the default one.
    pub requirements: Vec<Requirement>,
    /// Keys with tasks that somebody wanted, in order of the tasks.
    pub wanted: Vec<(String, TaskIndex)>,
}

/// An output of the state machine.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Tasks for the core.
    Chunk(Box<NewChunk>),
    /// Nobody wants these any more.
    Release {
        /// Their tasks.
        tasks: Vec<TaskRef>,
    },
    /// A graph is not needed any more.
    CloseGraph {
        /// The graph.
        graph: GraphId,
    },
    /// A client is told of a key.
    Tell {
        /// The client's stream.
        connection: Connection,
        /// The key.
        key: Arc<str>,
        /// What.
        event: KeyEvent,
    },
    /// Commands up to this number are taken.
    Acknowledge {
        /// The client's stream.
        connection: Connection,
        /// The number.
        number: u64,
    },
    /// A client will not come back.
    ClientGone {
        /// Its name.
        name: Arc<str>,
    },
    /// All keys were dropped.
    TellRestarted {
        /// The client's stream.
        connection: Connection,
    },
    /// The stream ends: another one of the same client took its place, or the client may not come.
    HangUp {
        /// The stream.
        connection: Connection,
        /// Why.
        error: Arc<Diagnostic>,
    },
}

/// A chunk with its place.
#[derive(Debug, Clone)]
pub struct NewChunk {
    /// Its graph.
    pub graph: GraphId,
    /// Its position in it.
    pub number: u32,
    /// Its tasks.
    pub chunk: GraphChunk,
    /// Its new body, if it has one.
    pub body: Option<Bytes>,
    /// Of each task; empty: none has any.
    pub arguments: Vec<Bytes>,
}

/// A small result beside the news that it is there. Not looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallValue {
    /// The payload's kind.
    pub kind: u32,
    /// Its bytes.
    pub data: Bytes,
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyEvent {
    /// Its result is there.
    Ready {
        /// Its task.
        task: TaskRef,
        /// The result's size.
        bytes: u64,
        /// The result, if it was at hand.
        value: Option<SmallValue>,
    },
    /// It failed.
    Failed(Arc<Diagnostic>),
    /// It is not there, and cannot be made again.
    Lost,
    /// It was cancelled, or what it depends on is not there.
    Cancelled {
        /// In one word or two.
        reason: Arc<str>,
        /// In words.
        message: Arc<str>,
    },
    /// It is tried again.
    Retried,
}
