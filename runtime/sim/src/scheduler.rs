//! The scheduler: the real core, and around it what the scheduler's shell does: rounds, messages
//! that gather during one, which worker is told of which graph, the journal, a new life after a crash.

use std::collections::BTreeMap;

use oxidask_core::{
    Attempt, ClientId, Core, CoreConfig, Effect, Event, GraphId, TaskRef, Timestamp, WorkerId,
};
use oxidask_store::ResultKey;
use oxidask_worker_machine as machine;

use crate::config::Config;
use crate::network::{Happening, Link, Note, Peer, Up};
use crate::presence::{Hearing, WorkerLink};
use crate::world::World;

/// Longest time between something that arrives and the round that takes it in.
const ROUND_PAUSE_MAX: u64 = 1_500;
/// Other holders named for one input.
const ALTERNATES_MAX: usize = 3;
/// Numbers that a scheduler leaves out for each of its starts: more than one can have handed out
/// without a durable record. Times the epoch, or two short lives would give the same numbers.
const GAP: u32 = 1_000;

/// The scheduler's process.
#[derive(Debug)]
pub(crate) struct Scheduler {
    config: CoreConfig,
    pub(crate) is_up: bool,
    /// Counts its starts.
    pub(crate) epoch: u32,
    /// Of its journal.
    pub(crate) incarnation: u64,
    pub(crate) core: Core,
    pub(crate) workers: BTreeMap<WorkerId, WorkerLink>,
    /// The worker at the other end of each stream that counts.
    pub(crate) streams: BTreeMap<Link, WorkerId>,
    pub(crate) last_worker: u32,
    pub(crate) clients: BTreeMap<Link, Vec<(Note, bool)>>,
    inbox: Vec<Input>,
    is_round_due: bool,
}

/// Something that waits for the next round.
#[derive(Debug)]
pub(crate) enum Input {
    From(Link, Up),
    Ended(Link),
    Dead(WorkerId),
    Missing(WorkerId, TaskRef),
    Paused(WorkerId, bool),
    Retire(Vec<WorkerId>, u64),
    Stay(WorkerId),
    Tick,
}

impl Scheduler {
    pub(crate) fn new(config: &Config) -> Self {
        let config = CoreConfig {
            crash_limit: config.crash_limit,
            client_grace_micros: u64::from(config.grace_millis) * 1_000,
            suspect_grace_micros: u64::from(config.suspect_millis) * 1_000,
            suspect_rerun_micros: u64::from(config.rerun_millis) * 1_000,
            ..CoreConfig::default()
        };
        let mut core = Core::new(config.clone());
        core.keep_notes();
        Self {
            config,
            is_up: true,
            epoch: 1,
            incarnation: 7,
            core,
            workers: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_worker: 0,
            clients: BTreeMap::new(),
            inbox: Vec::new(),
            is_round_due: false,
        }
    }
}

impl World {
    // ---- its lives ----

    /// The scheduler's process ends; another one starts after a while.
    pub(crate) fn scheduler_dies(&mut self, starts_after: u64) {
        if !self.scheduler.is_up {
            return;
        }
        let kept = self.random.below(self.journal.in_flight() + 1);
        self.journal.crash(kept);
        let scheduler = &mut self.scheduler;
        scheduler.is_up = false;
        scheduler.workers.clear();
        scheduler.streams.clear();
        scheduler.clients.clear();
        scheduler.inbox.clear();
        let epoch = scheduler.epoch;
        let wires = self.wires.iter().filter(|(_, wire)| wire.epoch == epoch);
        let links: Vec<Link> = wires.map(|(link, _)| *link).collect();
        for link in links {
            self.cut(link);
        }
        self.at(self.now + 1_000 + starts_after, Happening::SchedulerStarts);
    }

    /// A new process goes on from the journal.
    pub(crate) fn scheduler_starts(&mut self) {
        let scheduler = &mut self.scheduler;
        scheduler.is_up = true;
        scheduler.epoch += 1;
        scheduler.config.epoch = scheduler.epoch;
        let mut core = Core::new(scheduler.config.clone());
        // A snapshot may say what the log says again.
        let twice = if self.random.chance(200) {
            self.random.index(self.journal.durable.len() + 1)
        } else {
            0
        };
        let durable = &self.journal.durable;
        for record in durable[..twice].iter().chain(durable) {
            if let Err(error) = core.restore(record.clone()) {
                self.violation_at_start = Some(format!("{record:?} cannot be restored: {error}"));
            }
        }
        let (graph, worker) = self.journal.last_numbers();
        let mut effects = Vec::new();
        let gap = GAP * self.scheduler.epoch;
        core.begin_restored(Timestamp(self.now), GraphId(graph.0 + gap), &mut effects);
        core.keep_notes();
        self.scheduler.last_worker = worker.0 + gap;
        for summary in core.workers() {
            let Some((place, process)) = self.numbers.get(&summary.worker).copied() else {
                continue;
            };
            let link = WorkerLink::former(place, process);
            self.scheduler.workers.insert(summary.worker, link);
        }
        self.scheduler.core = core;
        let watched = self.watch.restarted(
            &self.scheduler.core,
            &self.plans,
            &self.journal.durable,
            self.now,
        );
        if let Some(violation) = self.violation_at_start.take() {
            self.violate(violation);
        }
        if !effects.is_empty() {
            self.violate(format!("a beginning wants {effects:?}"));
        }
        self.judge("a restart", watched);
    }

    // ---- what arrives ----

    pub(crate) fn scheduler_hears(&mut self, link: Link, message: Up) {
        if self.arrives(link) && self.is_of_now(link) {
            self.scheduler_takes(Input::From(link, message));
        }
    }

    pub(crate) fn scheduler_hears_end(&mut self, link: Link) {
        if self.is_of_now(link) {
            self.scheduler_takes(Input::Ended(link));
        }
    }

    pub(crate) fn tick(&mut self) {
        self.scheduler_takes(Input::Tick);
    }

    pub(crate) fn scheduler_takes(&mut self, input: Input) {
        if !self.scheduler.is_up {
            return;
        }
        self.scheduler.inbox.push(input);
        if !std::mem::replace(&mut self.scheduler.is_round_due, true) {
            let pause = self.pause(ROUND_PAUSE_MAX);
            self.at(self.now + pause, Happening::Round);
        }
    }

    /// Takes in what has arrived, places, and hands each peer one message.
    pub(crate) fn round(&mut self) {
        self.scheduler.is_round_due = false;
        if !self.scheduler.is_up {
            return;
        }
        for input in std::mem::take(&mut self.scheduler.inbox) {
            self.take(input);
        }
        let mut effects = Vec::new();
        let now = Timestamp(self.now);
        while self.scheduler.core.place(now, &mut effects) {}
        let verdict = self
            .watch
            .placed(&self.scheduler.core, &self.plans, &effects);
        self.judge("placing", verdict);
        for effect in effects {
            self.perform(effect);
        }
        self.flush();
        self.write_notes();
        self.journal_writes();
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::From(link, message) => match self.wires.get(&link).map(|wire| wire.peer) {
                Some(Peer::Worker(place)) => self.hear_worker(link, place, message),
                _ => self.take_message(link, message),
            },
            Input::Tick => {
                self.look_for_silence();
                self.react(&Event::Tick);
            }
            Input::Missing(worker, task) => {
                self.react(&Event::CopiesMissing {
                    worker,
                    tasks: vec![task],
                });
            }
            Input::Dead(worker) => self.bury(worker),
            Input::Paused(worker, is_paused) => {
                self.react(&Event::WorkerPaused { worker, is_paused });
            }
            Input::Retire(workers, deadline_micros) => self.react(&Event::WorkersRetiring {
                workers,
                deadline_micros,
            }),
            Input::Stay(worker) => self.stay(worker),
            Input::Ended(link) => match self.wires.get(&link).map(|wire| wire.peer) {
                Some(Peer::Worker(_)) => self.stream_ended(link),
                Some(Peer::Client(_)) => {
                    self.scheduler.clients.remove(&link);
                    self.react(&Event::ClientLost {
                        client: ClientId(link),
                    });
                }
                None => {}
            },
        }
    }

    /// What a client says.
    fn take_message(&mut self, link: Link, message: Up) {
        let client = ClientId(link);
        match message {
            Up::Open(name, is_open_ended) => {
                self.scheduler.clients.entry(link).or_default();
                self.react(&Event::GraphOpened {
                    client,
                    name,
                    is_open_ended,
                });
            }
            Up::Chunk(graph, number, chunk) => {
                self.react(&Event::ChunkArrived {
                    client,
                    graph,
                    number,
                    chunk,
                });
            }
            Up::Release(task) => self.react(&Event::ResultsReleased {
                client,
                tasks: vec![task],
            }),
            Up::Cancel(graph) => self.react(&Event::GraphCancelled { client, graph }),
            Up::Close(graph) => self.react(&Event::GraphClosed { client, graph }),
            Up::Fetch(task) => self.relay(link, task, None),
            _ => {}
        }
    }

    pub(crate) fn react(&mut self, event: &Event) {
        let before = self.watch.before(&self.scheduler.core, event);
        let mut effects = Vec::new();
        self.scheduler
            .core
            .react(event.clone(), Timestamp(self.now), &mut effects);
        self.name_new_graphs(&effects);
        let is_accepted = |effect: &Effect| matches!(effect, Effect::ChunkAccepted { .. });
        if let Event::ChunkArrived {
            graph,
            number,
            chunk,
            ..
        } = event
            && effects.iter().any(is_accepted)
        {
            self.journal.write_chunk(*graph, *number, chunk);
        }
        self.write_notes();
        let core = &self.scheduler.core;
        let verdict = self
            .watch
            .after(core, &self.plans, &before, (event, &effects), self.now);
        if verdict.is_err() {
            self.record(|| format!("{event:?} gave {effects:?}"));
        }
        self.judge("an event", verdict);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn name_new_graphs(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::GraphAttached { name, graph, .. } = effect
                && let Some(plan) = self.plans.iter().position(|plan| plan.name == *name)
            {
                self.watch.name(*graph, plan);
            }
        }
    }

    fn write_notes(&mut self) {
        for note in std::mem::take(self.scheduler.core.notes()) {
            self.journal.write(note);
        }
    }

    pub(crate) fn judge(&mut self, what: &str, verdict: Result<(), String>) {
        let invariants = self
            .scheduler
            .core
            .invariants()
            .map_err(|broken| broken.to_string());
        if let Err(broken) = verdict.and(invariants) {
            self.violate(format!("after {what}: {broken}"));
        }
    }

    // ---- effects ----

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Assign {
                worker,
                task,
                attempt,
                turn,
            } => self.assign(worker, task, (attempt, turn)),
            Effect::Retract {
                worker,
                task,
                attempt,
            } => {
                self.order(
                    worker,
                    machine::Event::Retracted {
                        task: key(task),
                        attempt,
                    },
                );
            }
            Effect::Cancel {
                worker,
                task,
                attempt,
            } => {
                self.order(
                    worker,
                    machine::Event::Cancelled {
                        task: key(task),
                        attempt,
                    },
                );
            }
            Effect::Release { worker, task } => {
                self.order(worker, machine::Event::Released { task: key(task) });
            }
            Effect::Copy { worker, task, from } => {
                let bytes = self.scheduler.core.bytes(task);
                let key = key(task);
                self.order(worker, machine::Event::CopyOrdered { key, bytes, from });
                if let Some(link) = self.scheduler.workers.get_mut(&worker) {
                    link.graphs.insert(task.graph);
                }
            }
            Effect::WorkerAccepted { worker } => self.welcome(worker, false),
            Effect::WorkerRefused { worker, .. } => self.turn_away(worker),
            Effect::WorkerGivenUp { worker, .. } => self.give_up(worker),
            Effect::WorkerEmpty { worker } => self.let_go(worker),
            other => self.perform_for_client(other),
        }
    }

    fn perform_for_client(&mut self, effect: Effect) {
        match effect {
            Effect::GraphForgotten { graph } => {
                for worker in self.scheduler.workers.values_mut() {
                    if worker.hearing == Hearing::Heard && worker.graphs.remove(&graph) {
                        worker.pending.forgotten.push(graph);
                    }
                }
            }
            Effect::GraphAttached {
                client,
                name,
                graph,
                next_chunk,
            } => {
                self.promise(client, Note::Attached(name, graph, next_chunk));
            }
            Effect::ChunkAccepted {
                client,
                graph,
                number,
            } => self.promise(client, Note::Accepted(graph, number)),
            Effect::GraphRefused {
                client,
                graph,
                error,
            } => {
                self.tell(client, Note::Refused(graph, error.message.clone()));
            }
            Effect::ResultReady { client, task, .. } => self.tell(client, Note::Ready(task)),
            Effect::TaskFailed { client, task, .. } => self.tell(client, Note::Failed(task)),
            Effect::GraphDone { client, graph } => self.tell(client, Note::Done(graph)),
            _ => {}
        }
    }

    pub(crate) fn order(&mut self, worker: WorkerId, order: machine::Event) {
        if let Some(link) = self.scheduler.workers.get_mut(&worker)
            && link.hearing == Hearing::Heard
        {
            link.pending.orders.push(order);
        }
    }

    fn tell(&mut self, client: ClientId, note: Note) {
        if let Some(pending) = self.scheduler.clients.get_mut(&client.0) {
            pending.push((note, false));
        }
    }

    /// Says something that must be true after a crash too.
    fn promise(&mut self, client: ClientId, note: Note) {
        if let Some(pending) = self.scheduler.clients.get_mut(&client.0) {
            pending.push((note, true));
        }
    }

    fn assign(&mut self, worker: WorkerId, task: TaskRef, (attempt, turn): (Attempt, u32)) {
        let Some((plan, _)) = self.watch.plan_of(task.graph) else {
            return;
        };
        let is_blind = self.plans[plan].tasks[task.task.0 as usize].is_blind;
        let core = &self.scheduler.core;
        let inputs = core.inputs(task).iter().filter(|_| !is_blind).map(|input| {
            let input = TaskRef {
                graph: task.graph,
                task: *input,
            };
            let holders = core.holders(input);
            let chosen = choose_holder(holders, worker, task.task.0);
            let has_alternates = chosen != worker;
            let others = holders.iter().copied().filter(|other| *other != chosen);
            machine::Input {
                key: key(input),
                bytes: core.bytes(input),
                holder: chosen,
                alternates: others
                    .take(ALTERNATES_MAX)
                    .filter(|_| has_alternates)
                    .collect(),
            }
        });
        let assignment = machine::Assignment {
            task: key(task),
            attempt,
            priority: core.priority(task),
            turn,
            slots: core.slots(task),
            may_wait_in_line: false,
            key: core.key(task).unwrap_or_default().into(),
            body: Self::body(),
            part: 0,
            arguments: bytes::Bytes::new(),
            streamed: Vec::new(),
            inputs: inputs.collect(),
        };
        if let Some(link) = self.scheduler.workers.get_mut(&worker) {
            if link.hearing != Hearing::Heard {
                self.violate(format!(
                    "{task} is assigned to {worker}, which is not heard"
                ));
                return;
            }
            link.graphs.insert(task.graph);
        }
        self.order(worker, machine::Event::Assigned(assignment));
    }

    fn flush(&mut self) {
        let mut batches = Vec::new();
        for worker in self.scheduler.workers.values_mut() {
            let Some(link) = worker.link.filter(|_| !worker.pending.is_empty()) else {
                continue;
            };
            worker.quiet_beats = 0;
            let mut batch = std::mem::take(&mut worker.pending);
            // What is lost is found by the digest, but not of a worker that has gone.
            let is_order = batch.welcome.is_none() && !batch.is_inventory_wanted && !batch.goes;
            if is_order && std::mem::take(&mut worker.loses_orders) {
                batch.lose_orders();
            }
            batches.push((link, batch));
        }
        for (link, batch) in batches {
            self.send_down(link, |link| Happening::ToWorker(link, batch));
        }
        // What was promised must be written before it is said.
        self.write_notes();
        let mut notes = Vec::new();
        for (link, pending) in &mut self.scheduler.clients {
            let mut said = Vec::new();
            for (note, is_promise) in std::mem::take(pending) {
                said.extend(if is_promise {
                    self.journal.promise(*link, note)
                } else {
                    self.journal.follow(*link, note)
                });
            }
            if !said.is_empty() {
                notes.push((*link, said));
            }
        }
        for (link, notes) in notes {
            self.send_down(link, |link| Happening::ToClient(link, notes));
        }
    }
}

pub(crate) fn key(task: TaskRef) -> ResultKey {
    ResultKey::new(task.graph.0, task.task.0)
}

/// The worker itself if it holds the input; otherwise consumers spread over the holders.
fn choose_holder(holders: &[WorkerId], worker: WorkerId, spread: u32) -> WorkerId {
    if holders.contains(&worker) {
        return worker;
    }
    let position = spread as usize % holders.len().max(1);
    holders.get(position).copied().unwrap_or(WorkerId(0))
}
