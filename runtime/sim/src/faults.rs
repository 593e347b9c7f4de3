//! What goes wrong, decided by the seed before anything happens.

use oxidask_core::WorkerId;

use crate::config::Config;
use crate::network::{Happening, Peer, Place};
use crate::random::{Random, Stream};
use crate::scheduler::Input;
use crate::world::World;

/// Faults happen before this time.
const FAULTS_UNTIL: u64 = 3_000_000;
/// From then on everything works and there are workers for everything.
pub(crate) const HEAL_AT: u64 = 4_000_000;

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    kind: Kind,
    target: u64,
    length: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A process dies at once and may start again.
    Crash,
    /// A worker is asked to go, perhaps two.
    Retire,
    /// A worker that was asked to go is to stay.
    Stay,
    /// Nothing passes between a worker and the scheduler any more, and nobody is told.
    Silence,
    /// The scheduler's process dies and starts again.
    SchedulerCrash,
    /// The journal's disk is slow for a while.
    SlowDisk,
    /// The journal's disk is full for a while.
    FullDisk,
    /// Orders to a worker are lost though its stream holds.
    LoseOrders,
    /// Reports of a worker are lost though its stream holds.
    LoseReports,
    /// A worker has no room for a while.
    Pause,
    /// The connection of a worker to the scheduler ends.
    Break,
    /// Nothing passes between a worker and the scheduler for a while.
    Stall,
    /// Two workers cannot reach each other for a while.
    Partition,
    /// The scheduler cannot read results of a worker for a while.
    Unreadable,
    /// A worker more.
    Join,
    /// A worker runs slowly for a while.
    Slow,
    /// A client's connection ends, and it comes back.
    ClientLost,
}

/// The faults of a run.
pub(crate) fn faults(config: &Config) -> Vec<Fault> {
    let mut random = Random::new(config.seed, Stream::Faults);
    let is_burst = random.chance(300);
    let mut all = Vec::new();
    for number in 0..config.faults {
        let kind = match random.below(28) {
            0..4 => Kind::Crash,
            4 | 5 => Kind::Retire,
            8 => Kind::Stall,
            9 => Kind::Silence,
            10 | 11 => Kind::Partition,
            12 => Kind::Unreadable,
            13 | 14 => Kind::Join,
            15 => Kind::Slow,
            16 | 17 => Kind::ClientLost,
            18..21 => Kind::SchedulerCrash,
            21 => Kind::SlowDisk,
            22 => Kind::FullDisk,
            23 => Kind::LoseOrders,
            24 => Kind::LoseReports,
            25 => Kind::Pause,
            26 => Kind::Stay,
            // 6, 7 and 27.
            _ => Kind::Break,
        };
        let at = random.below(if is_burst {
            FAULTS_UNTIL / 10
        } else {
            FAULTS_UNTIL
        });
        let fault = Fault {
            at,
            kind,
            target: random.next(),
            length: random.skewed(1_500_000),
        };
        if !config.without.contains(&number) {
            all.push(fault);
        }
    }
    all
}

impl World {
    pub(crate) fn fault(&mut self, number: usize) {
        let Some(fault) = self.faults.get(number).copied() else {
            return;
        };
        self.record(|| format!("{fault:?}"));
        let up: Vec<Place> = (0..self.processes.len())
            .filter(|place| self.processes[*place].is_up)
            .collect();
        let until = self.now + fault.length;
        let pick = |number: u64| {
            let count = up.len() as u64;
            let position = number.checked_rem(count)?;
            up.get(usize::try_from(position).ok()?).copied()
        };
        match fault.kind {
            Kind::Join => self.add_process(false),
            Kind::ClientLost => self.lose_client(fault.target, fault.length),
            Kind::SchedulerCrash => self.scheduler_dies(fault.length),
            Kind::SlowDisk => self.journal.slow_until = until,
            Kind::FullDisk => self.journal.full_until = until,
            _ => {}
        }
        let Some(place) = pick(fault.target) else {
            return;
        };
        let other = pick(fault.target / 7);
        let link = self.processes[place].link;
        match fault.kind {
            Kind::Crash => {
                let restarts = !fault.target.is_multiple_of(5);
                self.kill(place, restarts.then_some(fault.length));
            }
            Kind::Break => {
                if let Some(link) = link {
                    self.cut(link);
                }
            }
            Kind::Stall => {
                if let Some(wire) = link.and_then(|link| self.wires.get_mut(&link)) {
                    wire.stalled_until = until;
                }
            }
            Kind::Silence => {
                if let Some(link) = link {
                    self.silence(link, 2_500_000 + fault.length);
                }
            }
            Kind::Partition => {
                if let Some(other) = other {
                    self.partitions.push((Some(place), other, until));
                }
            }
            Kind::Unreadable => self.partitions.push((None, place, until)),
            Kind::Slow => {
                self.processes[place].slowness = 2 + fault.target % 7;
            }
            Kind::LoseReports => self.processes[place].loses_reports = true,
            _ => self.fault_of_standing(fault, [Some(place), other]),
        }
    }

    /// What has to do with how the scheduler regards workers.
    fn fault_of_standing(&mut self, fault: Fault, places: [Option<Place>; 2]) {
        let number = |place: Place| self.processes[place].life.as_ref().map(|life| life.own);
        let workers: Vec<WorkerId> = places.into_iter().flatten().filter_map(number).collect();
        let Some(first) = workers.first().copied() else {
            return;
        };
        match fault.kind {
            Kind::Retire => {
                let few = if fault.target.is_multiple_of(3) { 2 } else { 1 };
                let workers = workers.into_iter().take(few).collect();
                self.scheduler_takes(Input::Retire(workers, fault.length));
            }
            Kind::Stay => self.scheduler_takes(Input::Stay(first)),
            Kind::Pause => self.pause_worker(first, fault.length),
            Kind::LoseOrders => {
                if let Some(link) = self.scheduler.workers.get_mut(&first) {
                    link.loses_orders = true;
                }
            }
            _ => {}
        }
    }

    fn lose_client(&mut self, target: u64, length: u64) {
        let client = usize::try_from(target % self.clients.len().max(1) as u64).unwrap_or(0);
        if let Some(link) = self.clients.get(client).and_then(|client| client.link) {
            self.clients[client].away_micros = length;
            self.cut(link);
        }
    }

    /// Whether one cannot reach the other; the scheduler has no place.
    pub(crate) fn is_parted(&self, one: Option<Place>, other: Place) -> bool {
        self.partitions.iter().any(|(a, b, until)| {
            let is_pair = (*a == one && *b == other) || (*a == Some(other) && one == Some(*b));
            is_pair && self.now < *until
        })
    }

    /// Everything works from now on, and there is a worker for everything.
    pub(crate) fn heal(&mut self) {
        self.partitions.clear();
        (self.journal.slow_until, self.journal.full_until) = (0, 0);
        for worker in self.scheduler.workers.values_mut() {
            worker.loses_orders = false;
        }
        for wire in self.wires.values_mut() {
            wire.stalled_until = 0;
        }
        for place in 0..self.processes.len() {
            self.processes[place].slowness = 1;
            self.processes[place].loses_reports = false;
        }
        self.add_process(true);
        self.add_process(false);
        self.is_healed = true;
    }

    /// A process ends without a word; it may start again.
    pub(crate) fn kill(&mut self, place: Place, restarts_after: Option<u64>) {
        let process = &mut self.processes[place];
        process.is_up = restarts_after.is_some();
        process.incarnation += 1;
        process.end_life();
        process.is_welcome = false;
        let incarnation = process.incarnation;
        if let Some(link) = process.link.take() {
            self.cut(link);
        }
        if let Some(after) = restarts_after {
            self.at(
                self.now + 1_000 + after,
                Happening::WorkerConnects(place, incarnation),
            );
        }
    }

    /// Where a connection leads, if it is a worker's.
    pub(crate) fn place_of(&self, link: crate::network::Link) -> Option<Place> {
        match self.wires.get(&link)?.peer {
            Peer::Worker(place) => Some(place),
            Peer::Client(_) => None,
        }
    }
}
