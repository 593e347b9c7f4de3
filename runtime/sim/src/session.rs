//! What a worker's shell does with its stream: it says hello with what it was before, goes on with it
//! or begins anew, says what has gathered while a message was on its way, beats, and says all that it
//! has when it is asked.

use std::collections::{BTreeMap, BTreeSet};

use oxidask_core::{Attempt, TaskRef, TaskReport, WorkerId, WorkerInfo};
use oxidask_worker_machine::{Event, Machine, RunId};

use crate::network::{Happening, Link, Peer, Place, Up, WorkBatch};
use crate::process::Underway;
use crate::world::World;

/// Longest pause before a worker that was refused or cut off tries again.
const RECONNECT_MICROS_MAX: u64 = 800_000;
/// Time between two beats.
const BEAT_MICROS: u64 = 1_000_000;
/// Longest time for which a worker gathers what it has to say.
const SEND_PAUSE_MAX: u64 = 600;

/// What a worker has from when a scheduler takes it on until it begins anew: with its stream or
/// without.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) number: u32,
    /// What the scheduler calls it.
    pub(crate) own: WorkerId,
    /// The incarnation of that scheduler's journal.
    scheduler: u64,
    pub(crate) machine: Machine,
    pub(crate) peers: BTreeMap<WorkerId, Place>,
    pub(crate) runs: BTreeMap<RunId, Underway>,
    pub(crate) started: BTreeSet<(TaskRef, Attempt)>,
    pub(crate) reports: Vec<(TaskRef, Attempt, TaskReport)>,
    pub(crate) added: Vec<TaskRef>,
    pub(crate) failed: Vec<TaskRef>,
    pub(crate) missing: Vec<(TaskRef, WorkerId)>,
    is_sending: bool,
}

impl Life {
    fn new(number: u32, own: WorkerId, scheduler: u64, slots: u32) -> Self {
        Self {
            number,
            own,
            scheduler,
            machine: Machine::new(own, slots),
            peers: BTreeMap::new(),
            runs: BTreeMap::new(),
            started: BTreeSet::new(),
            reports: Vec::new(),
            added: Vec::new(),
            failed: Vec::new(),
            missing: Vec::new(),
            is_sending: false,
        }
    }

    fn has_news(&self) -> bool {
        !self.started.is_empty()
            || !self.reports.is_empty()
            || !self.added.is_empty()
            || !self.failed.is_empty()
            || !self.missing.is_empty()
    }
}

impl World {
    pub(crate) fn worker_connects(&mut self, place: Place, incarnation: u32) {
        let process = &self.processes[place];
        if process.incarnation != incarnation || !process.is_up || process.link.is_some() {
            return;
        }
        if !self.scheduler.is_up {
            self.worker_tries_later(place);
            return;
        }
        let info = WorkerInfo {
            name: process.name.clone(),
            group: process.group.clone(),
            slots: process.slots,
            resources: process.resources.clone(),
            memory_bytes: process.memory_bytes,
        };
        let former = process.life.as_ref().map(|life| (life.own, life.scheduler));
        let link = self.connect(Peer::Worker(place));
        let process = &mut self.processes[place];
        process.link = Some(link);
        process.is_welcome = false;
        self.send_up(link, Up::Hello(info, former));
    }

    fn worker_tries_later(&mut self, place: Place) {
        let incarnation = self.processes[place].incarnation;
        let pause = self.random.between(1_000, RECONNECT_MICROS_MAX);
        self.at(
            self.now + pause,
            Happening::WorkerConnects(place, incarnation),
        );
    }

    /// The stream is over. What is held stays, what runs goes on.
    pub(crate) fn worker_hears_end(&mut self, link: Link) {
        let Some(place) = self.place_of(link) else {
            return;
        };
        if self.processes[place].link == Some(link) {
            self.processes[place].link = None;
            self.processes[place].is_welcome = false;
            self.worker_tries_later(place);
        }
    }

    pub(crate) fn worker_hears(&mut self, link: Link, batch: WorkBatch) {
        let Some(place) = self.place_of(link).filter(|_| self.arrives(link)) else {
            return;
        };
        if self.processes[place].link != Some(link) {
            return;
        }
        if batch.is_refused {
            let process = &mut self.processes[place];
            process.end_life();
            process.link = None;
            self.worker_tries_later(place);
            return;
        }
        if let Some(welcome) = batch.welcome {
            self.worker_is_welcome(place, link, welcome);
        }
        let mut effects = Vec::new();
        let Some(life) = self.processes[place].life.as_mut() else {
            return;
        };
        let number = life.number;
        if batch.welcome.is_some() {
            let listed: BTreeSet<WorkerId> = batch.peers.iter().map(|(peer, _)| *peer).collect();
            let gone: Vec<WorkerId> = life
                .peers
                .keys()
                .copied()
                .filter(|peer| !listed.contains(peer))
                .collect();
            for peer in gone {
                life.peers.remove(&peer);
                life.machine.react(Event::PeerGone { peer }, &mut effects);
            }
        }
        for (peer, address) in batch.peers {
            let event = if let Some(address) = address {
                life.peers.insert(peer, address);
                Event::PeerAdded { peer }
            } else {
                life.peers.remove(&peer);
                Event::PeerGone { peer }
            };
            life.machine.react(event, &mut effects);
        }
        for order in batch.orders {
            life.machine.react(order, &mut effects);
        }
        for graph in batch.forgotten {
            let event = Event::GraphForgotten { graph: graph.0 };
            life.machine.react(event, &mut effects);
        }
        self.settle(place, number, effects);
        let is_resumed = batch.welcome.is_some_and(|(_, _, is_resumed)| is_resumed);
        if is_resumed || batch.is_inventory_wanted {
            self.worker_says_all(place, link);
        }
        if batch.goes {
            self.worker_goes(place, link);
        }
    }

    /// The worker goes on as what it was, or begins anew.
    fn worker_is_welcome(
        &mut self,
        place: Place,
        link: Link,
        (own, scheduler, is_resumed): (WorkerId, u64, bool),
    ) {
        let process = &mut self.processes[place];
        process.is_welcome = true;
        let life = process.life.as_ref();
        if is_resumed && life.is_none_or(|life| life.own != own) {
            self.violate(format!("process {place} is taken for {own}"));
        } else if !is_resumed {
            process.end_life();
            process.lives += 1;
            process.life = Some(Life::new(process.lives, own, scheduler, process.slots));
        }
        self.at(self.now + BEAT_MICROS, Happening::WorkerBeats(link));
    }

    /// First what is outstanding, then everything.
    fn worker_says_all(&mut self, place: Place, link: Link) {
        self.worker_sends_now(place, link);
        if let Some(life) = &self.processes[place].life {
            let inventory = Box::new(life.machine.inventory());
            self.send_up(link, Up::Inventory(inventory));
        }
    }

    fn worker_goes(&mut self, place: Place, link: Link) {
        if let Some(life) = &self.processes[place].life {
            let all = life.machine.inventory();
            // An order to stop may have been lost: such an attempt runs for nobody.
            let counts = |(task, attempt): &(TaskRef, Attempt)| {
                self.scheduler.core.attempt(*task) == Some((life.own, *attempt))
            };
            if all.running.iter().chain(&all.queued).any(counts) {
                self.violate(format!("process {place} is told to go while it is busy"));
            }
        }
        self.send_up(link, Up::Left);
        let process = &mut self.processes[place];
        process.is_up = false;
        process.incarnation += 1;
        process.end_life();
        process.link = None;
    }

    // ---- what the worker says ----

    /// Something may have to be said: soon, with what gathers until then.
    pub(crate) fn worker_has_news(&mut self, place: Place, number: u32) {
        let process = &mut self.processes[place];
        let is_heard = process.link.is_some() && process.is_welcome;
        let Some(life) = process.life.as_mut().filter(|_| is_heard) else {
            return;
        };
        if life.number == number
            && life.has_news()
            && !std::mem::replace(&mut life.is_sending, true)
        {
            let pause = self.pause(SEND_PAUSE_MAX);
            self.at(self.now + pause, Happening::WorkerSends(place, number));
        }
    }

    pub(crate) fn worker_sends(&mut self, place: Place, number: u32) {
        let process = &mut self.processes[place];
        let link = process.link.filter(|_| process.is_welcome);
        let Some(life) = process.life.as_mut().filter(|life| life.number == number) else {
            return;
        };
        life.is_sending = false;
        if let Some(link) = link {
            self.worker_sends_now(place, link);
        }
    }

    fn worker_sends_now(&mut self, place: Place, link: Link) {
        let Some(life) = self.processes[place].life.as_mut() else {
            return;
        };
        if !life.has_news() {
            return;
        }
        let mut reports = std::mem::take(&mut life.reports);
        let started = std::mem::take(&mut life.started);
        reports.extend(
            started
                .into_iter()
                .map(|(task, attempt)| (task, attempt, TaskReport::Started)),
        );
        let message = Up::Work {
            added: std::mem::take(&mut life.added),
            failed: std::mem::take(&mut life.failed),
            reports,
            missing: std::mem::take(&mut life.missing),
        };
        if std::mem::take(&mut self.processes[place].loses_reports) {
            self.record(|| format!("lost: {message:?}"));
        } else {
            self.send_up(link, message);
        }
    }

    /// The worker says what it believes, behind what it had to report.
    pub(crate) fn worker_beats(&mut self, link: Link) {
        let Some(place) = self.place_of(link) else {
            return;
        };
        let process = &self.processes[place];
        let Some(life) = process.life.as_ref().filter(|_| process.link == Some(link)) else {
            return;
        };
        let digest = life.machine.digest();
        self.worker_sends_now(place, link);
        self.send_up(link, Up::Beat(digest));
        self.at(self.now + BEAT_MICROS, Happening::WorkerBeats(link));
    }
}
