//! What a worker does, as a pure state machine.
//!
//! Owns the attempts that were assigned, the slots, and the picture of what is held, wanted and in
//! flight. `react(event)` changes state, `advance` starts runs and fetches once per batch of
//! events; both append [`Effect`]s to the caller's buffer. Never waits, never touches a payload,
//! never reads a clock.
//!
//! Every try to run a task has a [`RunId`] of its own, so a run that was cancelled may take its
//! time to end while a newer attempt of the same task is under way: nothing is ever resumed.
//!
//! Invariants: see [`Machine::invariants`].

mod attempts;
mod event;
mod invariants;
mod objects;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use oxidask_core::{Attempt, GraphId, TaskIndex, TaskRef, WorkerId};
use oxidask_store::{IdMap, KeyMap, ResultKey};

pub use event::{
    Assignment, BodyRef, Effect, Event, Finished, Input, Refusal, RequestId, Run, RunFailure,
    RunId, RunOutcome,
};
pub use invariants::Violation;

/// Requests that may be under way to one peer: one is read while the next is on its way.
pub const REQUESTS_PER_PEER_MAX: u32 = 2;
/// Bytes that one request asks for; a larger object is asked for alone.
pub const REQUEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Objects that one request asks for.
pub const REQUEST_OBJECTS_MAX: usize = 4_096;
/// Bytes in flight from all peers at which no further request is made.
pub const IN_FLIGHT_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// The state machine of one worker.
#[derive(Debug)]
pub struct Machine {
    own: WorkerId,
    slots: u32,
    free_slots: u32,
    running: u32,
    attempts: IdMap<RunId, Record>,
    /// The attempt of a task that counts; those that are ending are not here.
    current: KeyMap<RunId>,
    /// Larger priority first, then the order of arrival. May hold attempts that are gone.
    ready: BinaryHeap<(i32, Reverse<RunId>)>,
    objects: KeyMap<Object>,
    peers: IdMap<WorkerId, Peer>,
    /// Peers that have something queued and may be asked, each once, in turn.
    askable: VecDeque<WorkerId>,
    requests: IdMap<RequestId, Request>,
    in_flight_bytes: u64,
    pressure: Pressure,
    /// Bytes that may be fetched. What is in flight counts against it.
    free_bytes: u64,
    next_run: u64,
    next_request: u64,
}

/// Whether runs start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressure {
    Free,
    /// None starts: room is being made.
    Easing,
    /// None starts beside another. A first one does, since nothing else would ever make room.
    Tight,
}

/// One attempt.
#[derive(Debug)]
struct Record {
    task: ResultKey,
    attempt: Attempt,
    priority: i32,
    slots: u32,
    state: State,
    key: Arc<str>,
    /// Moved out when the attempt starts.
    body: BodyRef,
    part: u32,
    /// Moved out when the attempt starts. Never looked at: they may be held here or not.
    streamed: Vec<Input>,
    inputs: Vec<ResultKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Some inputs are not here yet.
    Waiting { missing: usize },
    /// Waits for slots.
    Ready,
    /// Runs, and its outcome counts.
    Running,
    /// Runs, was cancelled, and its outcome will be dropped.
    Ending,
}

/// A result that is here, or that is wanted here.
#[derive(Debug)]
enum Object {
    /// In the store. `made_by` is the attempt that made it; none for a copy.
    Held {
        made_by: Option<Attempt>,
    },
    Wanted(Box<Wanted>),
}

#[derive(Debug)]
struct Wanted {
    bytes: u64,
    priority: i32,
    source: Source,
    /// Holders that may be asked next.
    untried: Vec<WorkerId>,
    /// Holders that did not deliver.
    tried: Vec<WorkerId>,
    /// Attempts that wait for it, each once. Those that are gone stay until it is looked at.
    waiters: Vec<RunId>,
    /// Released while in flight: dropped on arrival unless somebody wants it again.
    is_released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Queued(WorkerId),
    InFlight(RequestId),
}

/// What is to be asked of one peer.
#[derive(Debug, Default)]
struct Peer {
    queue: BinaryHeap<QueuedFetch>,
    /// Bytes of all entries of `queue`, stale ones included.
    queued_bytes: u64,
    outstanding: u32,
    /// Whether it is in `askable`.
    is_listed: bool,
}

/// Ordered by priority, then by who wanted it first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct QueuedFetch {
    priority: i32,
    first_waiter: Reverse<RunId>,
    key: Reverse<ResultKey>,
    bytes: u64,
}

#[derive(Debug)]
struct Request {
    peer: WorkerId,
    keys: Vec<ResultKey>,
    bytes: u64,
}

impl Machine {
    /// A machine with nothing to do. `own` is the number that the scheduler gave this worker.
    pub fn new(own: WorkerId, slots: u32) -> Self {
        let slots = slots.max(1);
        Self {
            own,
            slots,
            free_slots: slots,
            running: 0,
            attempts: IdMap::default(),
            current: KeyMap::default(),
            ready: BinaryHeap::new(),
            objects: KeyMap::default(),
            peers: IdMap::default(),
            askable: VecDeque::new(),
            requests: IdMap::default(),
            in_flight_bytes: 0,
            pressure: Pressure::Free,
            free_bytes: u64::MAX,
            next_run: 1,
            next_request: 1,
        }
    }

    /// Takes in one event.
    pub fn react(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Assigned(assignment) => self.assign(assignment, effects),
            Event::Retracted { task, attempt } => self.retract(task, attempt, effects),
            Event::Cancelled { task, attempt } => self.cancel(task, attempt, effects),
            Event::Released { task } => self.release(task, effects),
            Event::GraphForgotten { graph } => self.forget_graph(graph, effects),
            Event::FetchDone {
                request,
                kept,
                missing,
                refused,
            } => {
                self.fetch_done(request, &kept, &missing, refused, effects);
            }
            Event::FetchFailed { request } => self.fetch_failed(request, effects),
            Event::RunEnded { run, outcome } => self.run_ended(run, outcome, effects),
            Event::PressureChanged {
                is_paused,
                is_easing,
                free_bytes,
            } => {
                self.free_bytes = free_bytes;
                self.pressure = match (is_paused, is_easing) {
                    (false, _) => Pressure::Free,
                    (true, true) => Pressure::Easing,
                    (true, false) => Pressure::Tight,
                };
            }
            Event::ObjectGone { key } => self.object_gone(key, effects),
            Event::PeerAdded { peer } => {
                self.peers.entry(peer).or_default();
            }
            Event::PeerGone { peer } => self.peer_gone(peer, effects),
        }
    }

    /// Starts what can start and asks peers for what is wanted. Called once per batch of events.
    pub fn advance(&mut self, effects: &mut Vec<Effect>) {
        self.start_ready(effects);
        self.ask_peers(effects);
    }

    /// Whether the outcome of this run still counts; if not, what it made is thrown away.
    pub fn is_current(&self, run: RunId) -> bool {
        self.attempts
            .get(&run)
            .is_some_and(|record| record.state == State::Running)
    }

    /// Whether something that has been fetched is worth keeping.
    pub fn wants_copy(&self, key: ResultKey) -> bool {
        match self.objects.get(key) {
            Some(Object::Wanted(wanted)) => !wanted.is_released && self.is_waited_for(wanted),
            Some(Object::Held { .. }) | None => false,
        }
    }

    /// Whether nothing may start, whatever slots are free.
    fn is_held_back(&self) -> bool {
        match self.pressure {
            Pressure::Free => false,
            Pressure::Easing => true,
            Pressure::Tight => self.running > 0,
        }
    }

    /// Whether this is held as a copy of what another worker made.
    pub fn is_copy(&self, key: ResultKey) -> bool {
        matches!(self.objects.get(key), Some(Object::Held { made_by: None }))
    }

    /// What attempts that have not started will be given. Costs a look at all of them.
    pub fn awaited(&self) -> KeyMap<()> {
        let mut awaited = KeyMap::default();
        for record in self.attempts.values() {
            if matches!(record.state, State::Waiting { .. } | State::Ready) {
                for key in &record.inputs {
                    awaited.insert(*key, ());
                }
            }
        }
        awaited
    }

    /// Attempts that run, including those that were cancelled and have not ended yet.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Attempts that have not started.
    pub fn queued(&self) -> usize {
        self.attempts.len().saturating_sub(self.running as usize)
    }

    /// Whether there is nothing to run, to fetch or to wait for.
    pub fn is_idle(&self) -> bool {
        self.attempts.is_empty() && self.requests.is_empty()
    }

    fn is_waiting(&self, run: RunId) -> bool {
        is_waiting(&self.attempts, run)
    }

    fn is_waited_for(&self, wanted: &Wanted) -> bool {
        wanted.waiters.iter().any(|run| self.is_waiting(*run))
    }
}

fn is_waiting(attempts: &IdMap<RunId, Record>, run: RunId) -> bool {
    let state = attempts.get(&run).map(|record| record.state);
    matches!(state, Some(State::Waiting { .. }))
}

fn task_ref(key: ResultKey) -> TaskRef {
    TaskRef {
        graph: GraphId(key.graph()),
        task: TaskIndex(key.task()),
    }
}
