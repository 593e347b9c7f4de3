//! What a cluster's scheduler says, as the planners see it.
//!
//! Owns plain values. The controller fills them from the scheduler's telemetry stream, or, for the
//! runtime `Dask`, from the routes of Dask's HTTP server. Knows nothing about either.
//!
//! Invariant: an absent signal means that nobody knows. It never means that there is nothing to do.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Timestamp;

/// What a scheduler said last, while its stream stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// When it said so.
    pub heard_at: Timestamp,
    /// Graphs that are not done.
    pub graphs: u32,
    /// Clients that are connected.
    pub clients: u32,
    /// Tasks that wait or run.
    pub unfinished_tasks: u64,
    /// How long nothing has been to do; `None` while there is something to do.
    pub idle: Option<Duration>,
    /// By the short name of the group (`default`). Every group of which a worker or work is known.
    pub groups: BTreeMap<String, GroupSignal>,
    /// Work that no worker can do.
    pub unplaced: Vec<UnplacedWork>,
    /// By the worker's name, which is its pod's (runtime `Rust`) or its Deployment's (`Dask`).
    pub workers: BTreeMap<String, WorkerSignal>,
    /// The certificates that the scheduler has loaded; `None` if it does not say.
    pub loaded: Option<Loaded>,
    /// The certificates that each connected client has loaded, where it says so.
    pub clients_loaded: Vec<Loaded>,
}

impl Signal {
    /// A scheduler that has nothing and knows nobody.
    pub fn silent(heard_at: Timestamp) -> Self {
        Self {
            heard_at,
            graphs: 0,
            clients: 0,
            unfinished_tasks: 0,
            idle: None,
            groups: BTreeMap::new(),
            unplaced: Vec::new(),
            workers: BTreeMap::new(),
            loaded: None,
            clients_loaded: Vec::new(),
        }
    }
}

/// Tasks that ask for the same, and for which there is no worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnplacedWork {
    /// Slots of a worker that each of them takes.
    pub slots: u32,
    /// What a worker must offer.
    pub resources: BTreeMap<String, u64>,
    /// The workers or groups that may do it; empty if all may.
    pub workers: Vec<String>,
    /// How many tasks.
    pub tasks: u64,
    /// How long they would run, one after the other.
    pub waiting: Duration,
}

/// What a group's work needs.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSignal {
    /// Workers that would do the waiting work in the target time, whatever the bounds.
    pub workers_wanted: u64,
    /// Seconds of work that waits for a slot.
    pub waiting: Duration,
    /// How long all workers of the group have had nothing to do; zero if one is busy.
    pub idle: Duration,
    /// Why so many, in words.
    pub reason: String,
}

/// What the scheduler thinks of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSignal {
    /// The short name of its group.
    pub group: String,
    /// The UID of its pod; empty if it has none.
    pub pod_uid: String,
    /// The address of its pod, for workers that chose a name of their own; empty if unknown.
    pub host: String,
    /// How the scheduler regards it.
    pub standing: Standing,
    /// Tasks that run on it.
    pub running: u32,
    /// Bytes of results that it holds.
    pub held_bytes: u64,
    /// How long it has had nothing to do; zero while it is busy.
    pub idle: Duration,
    /// The certificates that it has loaded; `None` if it does not say.
    pub loaded: Option<Loaded>,
}

/// How a scheduler regards a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It works.
    Active,
    /// It has no room for new work.
    Paused,
    /// It is being drained.
    Retiring,
    /// It is drained: its pod may go.
    Empty,
    /// Nobody hears of it.
    Suspect,
}

/// Which certificates a process uses: digests, never contents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loaded {
    /// Of the bundle of authorities that it trusts; see `oxidask_identity::bundle_digest`.
    pub bundle: String,
    /// Of its own certificate; see `oxidask_identity::certificate_digest`.
    pub certificate: String,
}
