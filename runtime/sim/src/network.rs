//! Links and messages. Each direction of a link is ordered; a link that ends loses its tail.

use std::sync::Arc;

use oxidask_core::{
    Attempt, Digest, GraphChunk, GraphId, Inventory, TaskRef, TaskReport, WorkerId, WorkerInfo,
};
use oxidask_store::{Payload, ResultKey};
use oxidask_worker_machine as machine;
use oxidask_worker_machine::{RequestId, RunId};

use crate::world::World;

/// A connection to the scheduler; also the number of its client there.
pub(crate) type Link = u32;
/// A worker process.
pub(crate) type Place = usize;

/// What a program takes between reading and answering where placement is measured.
const TURNAROUND_MICROS: u64 = 10;
/// Some messages take so many times longer.
const LATE_FACTOR: u64 = 20;
/// Longer than that is a fault: a late welcome, the time until the first beat and a late beat are not
/// yet the silence by which a worker becomes a suspect.
const LATE_MICROS_MAX: u64 = 700_000;

/// What happens at a moment of virtual time.
#[derive(Debug)]
pub(crate) enum Happening {
    Tick,
    Round,
    ToScheduler(Link, Up),
    SchedulerHearsEnd(Link),
    ToWorker(Link, WorkBatch),
    WorkerHearsEnd(Link),
    WorkerConnects(Place, u32),
    /// The scheduler finds out that the process of a worker is dead.
    WorkerIsDead(WorkerId),
    WorkerSends(Place, u32),
    WorkerBeats(Link),
    RunEnds(Place, u32, RunId),
    /// A run secedes, or is back.
    RunGivesSlots(Place, u32, RunId, bool),
    Ask(Asker, Place, Vec<ResultKey>),
    Answer(Asker, Place, u32, Option<Delivery>),
    ToClient(Link, Vec<Note>),
    ClientHearsEnd(Link),
    ClientConnects(usize),
    ClientSendsChunk(Link, usize, u32),
    ClientCancels(usize),
    ClientCloses(usize),
    Relay(Link, TaskRef, Option<WorkerId>),
    Fault(usize),
    Heal,
    SchedulerStarts,
    /// The journal has written what it was about, in this life of the scheduler.
    Written(u32),
    WorkerHasRoom(WorkerId),
    Scale,
}

impl Happening {
    /// Whether it happens again and again whatever else does.
    pub(crate) fn is_periodic(&self) -> bool {
        matches!(self, Self::Tick | Self::WorkerBeats(_) | Self::Scale)
    }
}

/// Objects that a peer was asked for; none where it does not have one.
pub(crate) type Delivery = Vec<(ResultKey, Option<Payload>)>;

/// Who asks a worker for results.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asker {
    Worker(Place, u32, RequestId),
    /// The scheduler, for a client.
    Relay(Link, TaskRef, WorkerId),
}

/// What the scheduler is told.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    /// With the number that it had, and of which scheduler.
    Hello(WorkerInfo, Option<(WorkerId, u64)>),
    Beat(Digest),
    Inventory(Box<Inventory>),
    /// It goes as it was told to.
    Left,
    Work {
        added: Vec<TaskRef>,
        failed: Vec<TaskRef>,
        reports: Vec<(TaskRef, Attempt, TaskReport)>,
        missing: Vec<(TaskRef, WorkerId)>,
    },
    /// The name, and whether the graph is open-ended.
    Open(Arc<str>, bool),
    Chunk(GraphId, u32, Box<GraphChunk>),
    Release(TaskRef),
    Cancel(GraphId),
    Close(GraphId),
    Fetch(TaskRef),
}

/// A message to a worker; taken in in this order.
#[derive(Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "parts of a message, each there or not"
)]
pub(crate) struct WorkBatch {
    /// Its number, of which scheduler, and whether it goes on with what it has.
    pub(crate) welcome: Option<(WorkerId, u64, bool)>,
    pub(crate) is_refused: bool,
    /// Peers with their processes; none when a peer is gone.
    pub(crate) peers: Vec<(WorkerId, Option<Place>)>,
    pub(crate) orders: Vec<machine::Event>,
    pub(crate) forgotten: Vec<GraphId>,
    pub(crate) is_inventory_wanted: bool,
    /// It is empty and may go.
    pub(crate) goes: bool,
}

impl WorkBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.welcome.is_none()
            && !self.is_inventory_wanted
            && !self.goes
            && !self.is_refused
            && self.peers.is_empty()
            && self.orders.is_empty()
            && self.forgotten.is_empty()
    }
}

/// A part of a message to a client.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    Attached(Arc<str>, GraphId, u32),
    Accepted(GraphId, u32),
    Refused(GraphId, String),
    Ready(TaskRef),
    Failed(TaskRef),
    Done(GraphId),
    Value(TaskRef, Option<u64>),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Worker(Place),
    Client(usize),
}

/// The state of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) peer: Peer,
    /// The life of the scheduler that it leads to.
    pub(crate) epoch: u32,
    /// Arrival of the last message in each direction.
    up_last: u64,
    down_last: u64,
    /// What would arrive later is lost.
    cut_at: Option<u64>,
    /// Nothing arrives before.
    pub(crate) stalled_until: u64,
}

impl World {
    pub(crate) fn connect(&mut self, peer: Peer) -> Link {
        self.last_link += 1;
        let wire = Wire {
            peer,
            epoch: self.scheduler.epoch,
            up_last: 0,
            down_last: 0,
            cut_at: None,
            stalled_until: 0,
        };
        self.wires.insert(self.last_link, wire);
        self.last_link
    }

    /// The way of a message now.
    pub(crate) fn delay(&mut self) -> u64 {
        let usual = u64::from(self.config.delay_micros);
        let most = if self.random.chance(50) {
            (LATE_FACTOR * usual).min(LATE_MICROS_MAX)
        } else {
            usual
        };
        1 + self
            .network_delay
            .unwrap_or_else(|| self.random.below(most))
    }

    /// How long somebody who has read a message takes before the answer leaves.
    pub(crate) fn pause(&mut self, most: u64) -> u64 {
        match self.network_delay {
            // Nobody waits for more where placement is measured, and no program does.
            Some(_) => TURNAROUND_MICROS,
            None => self.random.below(most),
        }
    }

    pub(crate) fn send_up(&mut self, link: Link, message: Up) {
        let delay = self.delay();
        let earliest = self.now + delay;
        let Some(wire) = self.wires.get_mut(&link) else {
            return;
        };
        wire.up_last = earliest.max(wire.up_last + 1).max(wire.stalled_until);
        let at = wire.up_last;
        self.at(at, Happening::ToScheduler(link, message));
    }

    pub(crate) fn send_down(&mut self, link: Link, make: impl FnOnce(Link) -> Happening) {
        let delay = self.delay();
        let earliest = self.now + delay;
        let Some(wire) = self.wires.get_mut(&link) else {
            return;
        };
        wire.down_last = earliest.max(wire.down_last + 1).max(wire.stalled_until);
        let at = wire.down_last;
        self.at(at, make(link));
    }

    /// Whether a message that arrives now still does.
    pub(crate) fn arrives(&self, link: Link) -> bool {
        self.wires
            .get(&link)
            .is_some_and(|wire| wire.cut_at.is_none_or(|cut| self.now <= cut))
    }

    /// Whether the scheduler that a connection leads to is still there.
    pub(crate) fn is_of_now(&self, link: Link) -> bool {
        let wire = self.wires.get(&link);
        self.scheduler.is_up && wire.is_some_and(|wire| wire.epoch == self.scheduler.epoch)
    }

    /// Ends a connection: a part of what is on its way still arrives, then both ends hear of it,
    /// each at its own time.
    pub(crate) fn cut(&mut self, link: Link) {
        // A peer that is silent is noticed late.
        let late = |world: &mut Self| match world.random.below(3) {
            0 => world.random.below(1_500_000),
            _ => world.random.below(10_000),
        };
        let slack = self.delay();
        let (here, there) = (late(self), late(self));
        if let Some((at, end)) = self.end(link, slack) {
            self.at(at + 1 + here, Happening::SchedulerHearsEnd(link));
            self.at(at + 1 + there, end);
        }
    }

    /// A connection goes silent: nothing arrives any more, and only the other end's own patience
    /// shows that.
    pub(crate) fn silence(&mut self, link: Link, patience: u64) {
        if let Some((at, end)) = self.end(link, 0) {
            self.at(at + patience, end);
        }
    }

    fn end(&mut self, link: Link, slack: u64) -> Option<(u64, Happening)> {
        let now = self.now;
        let wire = self
            .wires
            .get_mut(&link)
            .filter(|wire| wire.cut_at.is_none())?;
        wire.cut_at = Some(now + slack);
        let end = match wire.peer {
            Peer::Worker(_) => Happening::WorkerHearsEnd(link),
            Peer::Client(_) => Happening::ClientHearsEnd(link),
        };
        Some((now + slack, end))
    }
}
