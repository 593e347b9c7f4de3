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

mod ahead;
mod attempts;
mod belief;
mod event;
mod invariants;
mod objects;
mod urgency;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{Attempt, Digest, GraphId, TaskIndex, TaskRef, WorkerId};
use oxidask_store::{IdMap, KeyMap, ResultKey};

use crate::ahead::Line;
use crate::urgency::Urgency;

pub use ahead::{LINE_BYTES_MAX, LINE_MICROS_MAX, LINE_RUNS_MAX};
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

/// Runs that may have seceded at a time; further ones keep their slots.
pub const SECEDED_MAX: u32 = 4_096;

/// The state machine of one worker.
#[derive(Debug)]
pub struct Machine {
    own: WorkerId,
    slots: u32,
    /// Of runs that have not seceded. May be more than there are, when one that had seceded is back.
    taken_slots: u32,
    running: u32,
    /// Those of them that have seceded.
    seceded: u32,
    line: Line,
    attempts: IdMap<RunId, Record>,
    /// The attempt of a task that counts; those that are ending are not here.
    current: KeyMap<RunId>,
    /// The most urgent first, then the order of arrival. May hold attempts that are gone.
    ready: BinaryHeap<(Urgency, Reverse<RunId>)>,
    objects: KeyMap<Object>,
    /// Of everything that is held.
    held_digest: Digest,
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
    urgency: Urgency,
    slots: u32,
    state: State,
    /// Runs without its slots.
    has_seceded: bool,
    /// May be handed over before there is a slot for it.
    may_wait_in_line: bool,
    /// The scheduler has asked for it while it was in line.
    is_wanted_back: bool,
    key: Arc<str>,
    /// Moved out when the attempt starts, like all from here on; copied if it waits in line.
    body: BodyRef,
    part: u32,
    arguments: Bytes,
    /// Never looked at: they may be held here or not.
    streamed: Vec<Input>,
    inputs: Vec<ResultKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Some inputs are not here yet.
    Waiting { missing: usize },
    /// Waits for slots.
    Ready,
    /// Was handed over, has no slot, and has not begun.
    Ahead,
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
        bytes: u64,
    },
    Wanted(Box<Wanted>),
}

#[derive(Debug)]
struct Wanted {
    bytes: u64,
    urgency: Urgency,
    source: Source,
    /// Holders that may be asked next.
    untried: Vec<WorkerId>,
    /// Holders that did not deliver.
    tried: Vec<WorkerId>,
    /// Attempts that wait for it, each once. Those that are gone stay until it is looked at.
    waiters: Vec<RunId>,
    /// The scheduler wants it kept here, whoever waits for it.
    is_ordered: bool,
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

/// Ordered by urgency, then by who wanted it first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct QueuedFetch {
    urgency: Urgency,
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
            taken_slots: 0,
            running: 0,
            seceded: 0,
            line: Line::default(),
            attempts: IdMap::default(),
            current: KeyMap::default(),
            ready: BinaryHeap::new(),
            objects: KeyMap::default(),
            held_digest: Digest::default(),
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
            Event::Begun { run } => self.begin_in_turn(run, effects),
            Event::Seceded { run } => self.give_slots(run, true, effects),
            Event::Rejoined { run } => self.give_slots(run, false, effects),
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
            Event::CopyOrdered { key, bytes, from } => {
                self.copy_ordered(key, bytes, from, effects);
            }
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
            .is_some_and(|record| matches!(record.state, State::Running | State::Ahead))
    }

    /// Whether something that has been fetched is worth keeping.
    pub fn wants_copy(&self, key: ResultKey) -> bool {
        match self.objects.get(key) {
            Some(Object::Wanted(wanted)) => !wanted.is_released && self.is_waited_for(wanted),
            Some(Object::Held { .. }) | None => false,
        }
    }

    /// Whether something that has been fetched is to be kept like an own result: the scheduler
    /// has ordered the copy, and may rely on it alone.
    pub fn is_ordered(&self, key: ResultKey) -> bool {
        matches!(self.objects.get(key), Some(Object::Wanted(wanted)) if wanted.is_ordered)
    }

    /// Whether nothing may start, whatever slots are free.
    fn is_held_back(&self) -> bool {
        match self.pressure {
            Pressure::Free => false,
            Pressure::Easing => true,
            // What has seceded waits for what is to start.
            Pressure::Tight => self.running > self.seceded,
        }
    }

    /// Whether this is held as a copy of what another worker made.
    pub fn is_copy(&self, key: ResultKey) -> bool {
        let object = self.objects.get(key);
        matches!(object, Some(Object::Held { made_by: None, .. }))
    }

    /// What attempts that have not started will be given. Costs a look at all of them.
    pub fn awaited(&self) -> KeyMap<()> {
        let mut awaited = KeyMap::default();
        for record in self.attempts.values() {
            if !matches!(record.state, State::Running | State::Ending) {
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

    /// Everything that it takes to be in the store.
    pub fn held(&self) -> impl Iterator<Item = ResultKey> {
        let is_held = |object: &Object| matches!(object, Object::Held { .. });
        let objects = self.objects.iter();
        objects.filter_map(move |(key, object)| is_held(object).then_some(key))
    }

    fn is_waiting(&self, run: RunId) -> bool {
        is_waiting(&self.attempts, run)
    }

    fn is_waited_for(&self, wanted: &Wanted) -> bool {
        wanted.is_ordered || wanted.waiters.iter().any(|run| self.is_waiting(*run))
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
