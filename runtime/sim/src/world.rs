//! The world: virtual time, what is to happen, and how a run goes.
//!
//! Invariant: the same config gives the same steps; nothing depends on addresses or on the order
//! of hash maps.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use oxidask_core::WorkerId;

use crate::client::{Client, GraphRun};
use crate::config::Config;
use crate::faults::{Fault, HEAL_AT, faults};
use crate::graphs::{Plan, plans};
use crate::journal::Journal;
use crate::network::{Happening, Link, Place, Wire};
use crate::process::Process;
use crate::random::{Random, Stream};
use crate::scheduler::{Input, Scheduler};
use crate::watch::Watch;
use crate::wave::Scaling;

/// Time between two looks of the scheduler at its deadlines.
const TICK_MICROS: u64 = 100_000;
/// Messages that are shown of a run that failed.
const LOG_MAX: usize = 200;
/// Of each of them.
const LINE_CHARS_MAX: usize = 600;
/// After this time without work nothing is on its way any more.
const SETTLE_MICROS: u64 = 12_000_000;
/// Virtual time that any run may take beyond its tasks' own.
const PATIENCE_MICROS: u64 = 180_000_000;
/// Steps that any run may take.
const STEPS_MAX: u64 = 3_000_000;

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Things that happened.
    pub steps: u64,
    /// Virtual time.
    pub micros: u64,
    /// Tasks of all graphs.
    pub tasks: u64,
    /// Results that were made.
    pub results: u64,
    /// Tasks that had to run again, with their causes.
    pub again: u64,
    /// Times that the scheduler began anew.
    pub restarts: u64,
    /// Differences between a worker and the scheduler that were found and mended.
    pub repairs: u64,
    /// A number that any difference between two runs changes.
    pub fingerprint: u64,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} (step {step}, {micros} us, {config})")]
pub struct Failure {
    /// The run.
    pub config: Box<Config>,
    /// The number of the step.
    pub step: u64,
    /// Virtual time.
    pub micros: u64,
    /// What is wrong.
    pub what: String,
    /// The last things that happened; empty unless asked for.
    pub log: Vec<String>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    /// All is done: nothing should be on its way after this time.
    Settling(u64),
    /// All is closed: nothing should be left after this time.
    Closing(u64),
    Over,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    last_number: u64,
    pub(crate) random: Random,
    /// All messages take this long, if it is set.
    pub(crate) network_delay: Option<u64>,
    pub(crate) wires: BTreeMap<Link, Wire>,
    pub(crate) last_link: Link,
    pub(crate) scheduler: Scheduler,
    pub(crate) processes: Vec<Process>,
    pub(crate) clients: Vec<Client>,
    pub(crate) runs: Vec<GraphRun>,
    pub(crate) plans: Vec<Plan>,
    pub(crate) faults: Vec<Fault>,
    /// Who cannot reach whom until when; the scheduler has no place.
    pub(crate) partitions: Vec<(Option<Place>, Place, u64)>,
    pub(crate) is_healed: bool,
    pub(crate) watch: Watch,
    pub(crate) journal: Journal,
    /// The process behind each number that a scheduler has given.
    pub(crate) numbers: BTreeMap<WorkerId, (Place, u32)>,
    /// Differences between a worker and the scheduler that were found and mended.
    pub(crate) repairs: u64,
    pub(crate) violation_at_start: Option<String>,
    /// Entries of the calendar that come again and again.
    periodic: usize,
    /// Decides about the number of workers, if anybody does.
    pub(crate) scaling: Option<Scaling>,
    violation: Option<String>,
    log: Option<VecDeque<String>>,
    stage: Stage,
    step: u64,
    fingerprint: u64,
}

/// One run.
pub fn run(config: &Config) -> Result<Summary, Failure> {
    guarded(config, World::new(config))
}

/// One run that remembers what happened last.
pub fn run_with_log(config: &Config) -> Result<Summary, Failure> {
    let mut world = World::new(config);
    world.log = Some(VecDeque::new());
    guarded(config, world)
}

/// A panic, which is a broken assertion of the code under test, is a failure like any other.
fn guarded(config: &Config, world: World) -> Result<Summary, Failure> {
    catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure {
            config: Box::new(config.clone()),
            step: 0,
            micros: 0,
            what: format!("a panic: {}", text.unwrap_or("without a text")),
            log: Vec::new(),
        })
    })
}

impl World {
    pub(crate) fn new(config: &Config) -> Self {
        let mut world = Self::empty(config, plans(config));
        let mut random = Random::new(config.seed, Stream::Fleet);
        for _ in 0..config.workers {
            let after = if random.chance(500) {
                0
            } else {
                random.below(500_000)
            };
            world.add_process_after(false, after);
        }
        let mut starts = Random::new(config.seed, Stream::Clients);
        for client in 0..world.clients.len() {
            let at = starts.below(400_000);
            world.at(at, Happening::ClientConnects(client));
        }
        for number in 0..world.faults.len() {
            let at = world.faults[number].at;
            world.at(at, Happening::Fault(number));
        }
        for (number, plan) in world.plans.clone().iter().enumerate() {
            if let Some(at) = plan.cancels_at {
                world.at(at, Happening::ClientCancels(number));
            }
            if let Some(at) = plan.closes_at {
                world.at(at, Happening::ClientCloses(number));
            }
        }
        world.at(
            if config.faults == 0 { 0 } else { HEAL_AT },
            Happening::Heal,
        );
        world
    }

    /// A world in which nothing happens.
    pub(crate) fn empty(config: &Config, plans: Vec<Plan>) -> Self {
        let clients = plans.iter().map(|plan| plan.client + 1).max().unwrap_or(1);
        let mut world = Self {
            config: config.clone(),
            now: 0,
            queue: BTreeMap::new(),
            last_number: 0,
            random: Random::new(config.seed, Stream::Network),
            network_delay: None,
            wires: BTreeMap::new(),
            last_link: 0,
            scheduler: Scheduler::new(config),
            processes: Vec::new(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            runs: plans.iter().map(GraphRun::new).collect(),
            plans,
            faults: faults(config),
            partitions: Vec::new(),
            is_healed: false,
            watch: Watch::new(config),
            journal: Journal::default(),
            numbers: BTreeMap::new(),
            repairs: 0,
            violation_at_start: None,
            periodic: 0,
            scaling: None,
            violation: None,
            log: None,
            stage: Stage::Working,
            step: 0,
            fingerprint: 0,
        };
        world.at(TICK_MICROS, Happening::Tick);
        world
    }

    /// Puts something on the calendar.
    pub(crate) fn at(&mut self, time: u64, happening: Happening) {
        self.last_number += 1;
        self.periodic += usize::from(happening.is_periodic());
        self.queue
            .insert((time.max(self.now), self.last_number), happening);
    }

    /// A rule was broken; the first one counts.
    pub(crate) fn violate(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    pub(crate) fn record(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            if log.len() == LOG_MAX {
                log.pop_front();
            }
            let mut line = format!("{:>9} {}", self.now, what());
            if let Some((end, _)) = line.char_indices().nth(LINE_CHARS_MAX) {
                line.truncate(end);
                line.push('…');
            }
            log.push_back(line);
        }
    }

    pub(crate) fn run(mut self) -> Result<Summary, Failure> {
        let own: u64 = self
            .plans
            .iter()
            .flat_map(|plan| &plan.tasks)
            .map(|t| 4 * t.micros)
            .sum();
        let patience = PATIENCE_MICROS + 8 * own;
        while self.stage != Stage::Over {
            self.step();
            self.turn_stage();
            if self.violation.is_none() && (self.now > patience || self.step > STEPS_MAX) {
                let what = self.what_waits();
                self.violate(what);
            }
            if let Some(what) = self.violation.take() {
                return Err(self.failure(what));
            }
        }
        Ok(Summary {
            steps: self.step,
            micros: self.now,
            tasks: self.plans.iter().map(|plan| plan.tasks.len() as u64).sum(),
            results: self.watch.results,
            again: self.watch.again,
            restarts: u64::from(self.scheduler.epoch) - 1,
            repairs: self.repairs,
            fingerprint: self.fingerprint,
        })
    }

    /// Lets things happen until something is so.
    pub(crate) fn run_until(&mut self, is_so: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        while !is_so(self) {
            self.step();
            if self.violation.is_none() && self.step > STEPS_MAX {
                let what = self.what_waits();
                self.violate(what);
            }
            if let Some(what) = self.violation.take() {
                return Err(self.failure(what));
            }
        }
        Ok(())
    }

    fn failure(&mut self, what: String) -> Failure {
        Failure {
            config: Box::new(self.config.clone()),
            step: self.step,
            micros: self.now,
            what,
            log: self.log.take().into_iter().flatten().collect(),
        }
    }

    /// The next thing happens.
    pub(crate) fn step(&mut self) {
        let Some(((time, number), happening)) = self.queue.pop_first() else {
            self.violate("nothing will ever happen again");
            return;
        };
        self.now = time;
        self.step += 1;
        self.periodic -= usize::from(happening.is_periodic());
        self.fingerprint = crate::random::mix(self.fingerprint ^ time ^ (number << 32));
        if self.log.is_some() && !happening.is_periodic() && !matches!(happening, Happening::Round)
        {
            self.record(|| format!("{happening:?}"));
        }
        self.happen(happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick => {
                self.tick();
                self.at(self.now + TICK_MICROS, Happening::Tick);
            }
            Happening::Round => self.round(),
            Happening::ToScheduler(link, message) => self.scheduler_hears(link, message),
            Happening::SchedulerHearsEnd(link) => self.scheduler_hears_end(link),
            Happening::ToWorker(link, batch) => self.worker_hears(link, batch),
            Happening::WorkerHearsEnd(link) => self.worker_hears_end(link),
            Happening::WorkerConnects(place, incarnation) => {
                self.worker_connects(place, incarnation);
            }
            Happening::WorkerSends(place, life) => self.worker_sends(place, life),
            Happening::WorkerBeats(link) => self.worker_beats(link),
            Happening::WorkerIsDead(worker) => self.scheduler_takes(Input::Dead(worker)),
            Happening::WorkerHasRoom(worker) => {
                self.scheduler_takes(Input::Paused(worker, false));
            }
            Happening::RunEnds(place, life, run) => self.run_ends(place, life, run),
            Happening::RunGivesSlots(place, life, run, is_given) => {
                self.run_gives_slots(place, life, run, is_given);
            }
            Happening::Ask(asker, place, keys) => self.peer_is_asked(asker, place, &keys),
            Happening::Answer(asker, place, incarnation, delivery) => {
                self.peer_answers(asker, place, incarnation, delivery);
            }
            other => self.happen_elsewhere(other),
        }
    }

    fn happen_elsewhere(&mut self, happening: Happening) {
        match happening {
            Happening::ToClient(link, notes) => self.client_hears(link, notes),
            Happening::ClientHearsEnd(link) => self.client_hears_end(link),
            Happening::ClientConnects(client) => self.client_connects(client),
            Happening::ClientSendsChunk(link, run, number) => {
                self.client_sends_chunk(link, run, number);
            }
            Happening::ClientCancels(run) => self.client_cancels(run),
            Happening::ClientCloses(run) => self.client_closes(run),
            Happening::Relay(link, task, unreachable) => self.relay(link, task, unreachable),
            Happening::Fault(number) => self.fault(number),
            Happening::Heal => self.heal(),
            Happening::SchedulerStarts => self.scheduler_starts(),
            Happening::Written(life) => self.journal_has_written(life),
            Happening::Scale => self.scale(),
            _ => {}
        }
    }

    fn turn_stage(&mut self) {
        match self.stage {
            Stage::Working if self.is_healed && self.is_all_done() => {
                self.stage = Stage::Settling(self.now + SETTLE_MICROS);
            }
            // Somebody was given up meanwhile, and with him a result that is wanted.
            Stage::Settling(_) if !self.is_all_done() => self.stage = Stage::Working,
            Stage::Settling(until) if self.now >= until => {
                self.check_rest();
                for run in 0..self.runs.len() {
                    self.client_closes(run);
                }
                let grace = u64::from(self.config.grace_millis) * 1_000;
                self.stage = Stage::Closing(self.now + grace + SETTLE_MICROS);
            }
            // Nothing that is on its way may change anything any more.
            Stage::Closing(until)
                if self.now >= until
                    || (self.queue.len() <= self.periodic && self.is_all_gone()) =>
            {
                self.check_end();
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }
}
