//! Which workers are there: they come, fall silent, come back, differ from what is believed, die, go.
//!
//! Follows the scheduler's shell: what is ordered of a worker that is not heard is dropped, and the
//! inventory that it sends when it is back settles that.

use std::collections::BTreeSet;

use oxidask_core::{
    Digest, Event, GraphId, Inventory, TaskState, WorkerId, WorkerInfo, WorkerLoss,
};
use oxidask_worker_machine as machine;

use crate::network::{Happening, Link, Place, Up, WorkBatch};
use crate::scheduler::Input;
use crate::world::World;

/// A worker that has said nothing for so long is not heard.
const SILENCE_MICROS: u64 = 2_500_000;
/// Beats without anything else on its way, after which worker and scheduler must agree; the slowest
/// message of a run takes less.
const QUIET_BEATS: u32 = 4;

/// Whether a worker is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearing {
    Heard,
    /// Its stream is there, but it says nothing.
    Silent,
    /// It is to say all that it has.
    Asked,
    /// It has no stream.
    Away,
}

/// What is kept of a worker besides what the core knows.
#[derive(Debug)]
pub(crate) struct WorkerLink {
    pub(crate) place: Place,
    process: u32,
    pub(crate) link: Option<Link>,
    pub(crate) hearing: Hearing,
    pub(crate) pending: WorkBatch,
    /// Graphs of which it got something.
    pub(crate) graphs: BTreeSet<GraphId>,
    heard_at: u64,
    pub(crate) quiet_beats: u32,
    /// The next orders are lost on their way.
    pub(crate) loses_orders: bool,
    /// It was told to go.
    goes: bool,
}

impl WorkerLink {
    fn new(place: Place, process: u32, link: Link, now: u64) -> Self {
        Self {
            place,
            process,
            link: Some(link),
            hearing: Hearing::Heard,
            pending: WorkBatch::default(),
            graphs: BTreeSet::new(),
            heard_at: now,
            quiet_beats: 0,
            loses_orders: false,
            goes: false,
        }
    }

    /// A worker of which the journal knows.
    pub(crate) fn former(place: Place, process: u32) -> Self {
        Self {
            link: None,
            hearing: Hearing::Away,
            ..Self::new(place, process, 0, 0)
        }
    }
}

impl WorkBatch {
    /// What the digest has to find out.
    pub(crate) fn lose_orders(&mut self) {
        self.orders
            .retain(|order| matches!(order, machine::Event::CopyOrdered { .. }));
    }
}

impl World {
    // ---- what a worker says ----

    pub(crate) fn hear_worker(&mut self, link: Link, place: Place, message: Up) {
        if let Up::Hello(info, former) = message {
            self.admit(link, place, info, former);
            return;
        }
        let Some(worker) = self.scheduler.streams.get(&link).copied() else {
            return;
        };
        if let Some(record) = self.scheduler.workers.get_mut(&worker) {
            record.heard_at = self.now;
        }
        match message {
            Up::Beat(digest) => self.beat(worker, digest),
            Up::Inventory(inventory) => self.take_back(worker, inventory),
            Up::Left => self.worker_left(worker),
            Up::Work {
                added,
                failed,
                reports,
                missing,
            } => {
                if let Some(record) = self.scheduler.workers.get_mut(&worker) {
                    record.quiet_beats = 0;
                }
                let tasks = added;
                if !tasks.is_empty() {
                    self.react(&Event::CopiesAdded { worker, tasks });
                }
                if !failed.is_empty() {
                    let tasks = failed;
                    self.react(&Event::CopiesFailed { worker, tasks });
                }
                if !reports.is_empty() {
                    self.react(&Event::TaskReported { worker, reports });
                }
                for (task, worker) in missing {
                    let tasks = vec![task];
                    self.react(&Event::CopiesMissing { worker, tasks });
                }
            }
            _ => {}
        }
        let hearing = self.scheduler.workers.get(&worker).map(|link| link.hearing);
        if hearing == Some(Hearing::Silent) {
            self.ask_for_all(worker);
        }
    }

    fn admit(
        &mut self,
        link: Link,
        place: Place,
        info: WorkerInfo,
        former: Option<(WorkerId, u64)>,
    ) {
        let process = self.processes[place].incarnation;
        let known = former.filter(|(worker, scheduler)| {
            let record = self.scheduler.workers.get(worker);
            *scheduler == self.scheduler.incarnation
                && record.is_some_and(|record| record.place == place && record.process == process)
        });
        if let Some((worker, _)) = known {
            self.suspect(worker, Hearing::Away);
            if let Some(record) = self.scheduler.workers.get_mut(&worker) {
                record.link = Some(link);
                record.hearing = Hearing::Asked;
                record.heard_at = self.now;
                record.pending = WorkBatch::default();
            }
            self.scheduler.streams.insert(link, worker);
            self.welcome(worker, true);
            return;
        }
        // A process that connects anew has no other stream.
        let is_same = |record: &WorkerLink| record.place == place && record.process == process;
        let workers = self.scheduler.workers.iter();
        let others: Vec<WorkerId> = workers
            .filter(|(_, record)| is_same(record))
            .map(|(worker, _)| *worker)
            .collect();
        for other in others {
            self.suspect(other, Hearing::Away);
        }
        self.scheduler.last_worker += 1;
        let worker = WorkerId(self.scheduler.last_worker);
        let record = WorkerLink::new(place, process, link, self.now);
        self.scheduler.workers.insert(worker, record);
        self.scheduler.streams.insert(link, worker);
        self.numbers.insert(worker, (place, process));
        self.react(&Event::WorkerJoined { worker, info });
    }

    /// A worker learns its number and all others, and they learn of it.
    pub(crate) fn welcome(&mut self, worker: WorkerId, is_resumed: bool) {
        let others = self.scheduler.workers.iter();
        let peers: Vec<_> = others
            .filter(|(other, _)| **other != worker)
            .map(|(other, record)| (*other, Some(record.place)))
            .collect();
        let incarnation = self.scheduler.incarnation;
        let Some(record) = self.scheduler.workers.get_mut(&worker) else {
            return;
        };
        record.pending.welcome = Some((worker, incarnation, is_resumed));
        record.pending.peers = peers;
        let place = record.place;
        for (other, record) in &mut self.scheduler.workers {
            if *other != worker && !is_resumed {
                record.pending.peers.push((worker, Some(place)));
            }
        }
    }

    pub(crate) fn turn_away(&mut self, worker: WorkerId) {
        let record = self.scheduler.workers.remove(&worker);
        if let Some(link) = record.and_then(|record| record.link) {
            self.scheduler.streams.remove(&link);
            let batch = WorkBatch {
                is_refused: true,
                ..WorkBatch::default()
            };
            self.send_down(link, |link| Happening::ToWorker(link, batch));
        }
    }

    /// Compares what a worker believes with what the core does, if nothing is on its way.
    fn beat(&mut self, worker: WorkerId, said: Digest) {
        let Some(record) = self.scheduler.workers.get_mut(&worker) else {
            return;
        };
        record.quiet_beats += 1;
        let is_quiet = record.quiet_beats >= QUIET_BEATS && record.pending.is_empty();
        if record.hearing != Hearing::Heard || !is_quiet {
            return;
        }
        if self.scheduler.core.digest(worker) == Some(said) {
            return;
        }
        self.repairs += 1;
        if self.config.is_calm() {
            self.violate(format!("worker {worker} differs though nothing is wrong"));
        }
        self.ask_for_all(worker);
    }

    fn ask_for_all(&mut self, worker: WorkerId) {
        self.suspect(worker, Hearing::Asked);
        if let Some(record) = self.scheduler.workers.get_mut(&worker)
            && record.link.is_some()
        {
            record.hearing = Hearing::Asked;
            record.pending.is_inventory_wanted = true;
        }
    }

    fn take_back(&mut self, worker: WorkerId, inventory: Box<Inventory>) {
        let core = &self.scheduler.core;
        let graphs: BTreeSet<GraphId> = core.graphs().iter().map(|graph| graph.graph).collect();
        let Some(record) = self.scheduler.workers.get_mut(&worker) else {
            return;
        };
        if record.hearing != Hearing::Asked {
            return;
        }
        record.hearing = Hearing::Heard;
        let held = inventory.held.iter().map(|(task, _)| task.graph);
        record.graphs.extend(held);
        let gone = record.graphs.iter().filter(|graph| !graphs.contains(graph));
        let gone: Vec<GraphId> = gone.copied().collect();
        record.graphs.retain(|graph| graphs.contains(graph));
        record.pending.forgotten.extend(gone);
        self.react(&Event::WorkerReturned { worker, inventory });
    }

    // ---- silence and death ----

    /// Nobody hears of a worker; nothing reaches it until it is heard again.
    fn suspect(&mut self, worker: WorkerId, hearing: Hearing) {
        let Some(record) = self.scheduler.workers.get_mut(&worker) else {
            return;
        };
        let was_heard = record.hearing == Hearing::Heard;
        record.pending.orders.clear();
        if hearing == Hearing::Away {
            record.hearing = Hearing::Away;
            record.pending = WorkBatch::default();
            if let Some(link) = record.link.take() {
                self.scheduler.streams.remove(&link);
                self.cut(link);
            }
        } else if was_heard {
            record.hearing = hearing;
        }
        if was_heard {
            self.react(&Event::WorkerSuspected { worker });
        }
    }

    pub(crate) fn look_for_silence(&mut self) {
        let workers = self.scheduler.workers.iter();
        let silent: Vec<WorkerId> = workers
            .filter(|(_, record)| record.hearing == Hearing::Heard)
            .filter(|(_, record)| self.now - record.heard_at > SILENCE_MICROS)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in silent {
            self.suspect(worker, Hearing::Silent);
        }
    }

    pub(crate) fn stream_ended(&mut self, link: Link) {
        let Some(worker) = self.scheduler.streams.get(&link).copied() else {
            return;
        };
        self.suspect(worker, Hearing::Away);
        let Some(record) = self.scheduler.workers.get(&worker) else {
            return;
        };
        let process = &self.processes[record.place];
        let is_dead = !process.is_up || process.incarnation != record.process;
        // Its machine may be gone with it: then nobody refuses the connection.
        if is_dead && self.random.chance(750) {
            let at = self.now + self.delay();
            self.at(at, Happening::WorkerIsDead(worker));
        }
    }

    pub(crate) fn bury(&mut self, worker: WorkerId) {
        let record = self.scheduler.workers.get(&worker);
        if record.is_some_and(|record| record.hearing == Hearing::Away) {
            self.forget_worker(worker);
            let loss = WorkerLoss::Died("its process ended".to_owned());
            self.react(&Event::WorkerLost { worker, loss });
        }
    }

    pub(crate) fn give_up(&mut self, worker: WorkerId) {
        self.forget_worker(worker);
    }

    fn forget_worker(&mut self, worker: WorkerId) {
        let Some(record) = self.scheduler.workers.remove(&worker) else {
            return;
        };
        if let Some(link) = record.link {
            self.scheduler.streams.remove(&link);
            self.cut(link);
        }
        if self.config.tells_gone {
            for other in self.scheduler.workers.values_mut() {
                other.pending.peers.push((worker, None));
            }
        }
    }

    // ---- going ----

    /// A retiring worker has nothing left.
    pub(crate) fn let_go(&mut self, worker: WorkerId) {
        let core = &self.scheduler.core;
        for (graph, watch) in &self.watch.graphs {
            for index in 0..watch.tasks.len() {
                let task = Self::task_ref(*graph, index);
                let is_only = core.holders(task) == [worker];
                if is_only && core.state(task) == Some(TaskState::Finished) {
                    self.violate(format!("{worker} is empty but holds {task}"));
                    return;
                }
            }
        }
        if let Some(record) = self.scheduler.workers.get_mut(&worker) {
            record.goes = true;
            record.pending.goes = true;
        }
    }

    pub(crate) fn stay(&mut self, worker: WorkerId) {
        let record = self.scheduler.workers.get(&worker);
        if record.is_some_and(|record| !record.goes) {
            let workers = vec![worker];
            self.react(&Event::RetirementCancelled { workers });
        }
    }

    fn worker_left(&mut self, worker: WorkerId) {
        self.forget_worker(worker);
        let loss = WorkerLoss::Retired;
        self.react(&Event::WorkerLost { worker, loss });
    }

    /// The worker has no room for a while.
    pub(crate) fn pause_worker(&mut self, worker: WorkerId, micros: u64) {
        self.scheduler_takes(Input::Paused(worker, true));
        self.at(self.now + micros, Happening::WorkerHasRoom(worker));
    }
}
