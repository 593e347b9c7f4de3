//! Random graphs on a simulated fleet: messages are delayed, workers join, die, lose results, are
//! lost of sight and return, pause and retire, clients come back. After every event the invariants
//! hold, the backlog by counters among them; a worker that is told to be empty has nothing that is
//! not elsewhere too; at the end every wanted result is
//! there or failed, exactly as running the tasks one after the other says, and no worker keeps a
//! result that the core does not know of.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use oxidask_core::{
    Attempt, ClientId, Core, CoreConfig, Effect, Event, GraphChunk, GraphId, Inventory,
    Requirement, TaskIndex, TaskRef, TaskReport, TaskState, Timestamp, WorkerId, WorkerInfo,
    WorkerLoss,
};
use oxidask_diagnostic::{Code, Diagnostic};
use proptest::prelude::*;

const GRAPH: GraphId = GraphId(1);
const ROUNDS_MAX: usize = 3_000;

/// One task of the model.
#[derive(Debug, Clone)]
struct Task {
    inputs: Vec<u32>,
    priority: i32,
    retries: u32,
    /// How many attempts fail before one does not.
    failures: u32,
    is_retryable: bool,
    requirement: u32,
    is_wanted: bool,
}

/// What happens next; numbers choose among what is there.
#[derive(Debug, Clone, Copy)]
enum Step {
    SendChunk,
    Place,
    Deliver(u8),
    Start(u8, bool),
    Finish(u8),
    Report(u8),
    Join(u8),
    Die(u8, bool),
    Lose(u8),
    NoticeLoss(u8),
    Reattach,
    Wait(u16),
    Tick,
    Suspect(u8),
    Return(u8),
    Pause(u8, bool),
    Retire(u8, u16),
    Stay(u8),
    Leave,
}

fn requirements() -> Vec<Requirement> {
    let requirement = |slots, resources: &[(&str, u64)], workers: &[&str]| Requirement {
        slots,
        resources: resources
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), *amount))
            .collect(),
        workers: workers.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![
        requirement(u32::MAX, &[], &[]),
        requirement(2, &[("gpu", 1)], &[]),
        requirement(1, &[], &["special"]),
        requirement(0, &[("gpu", 1), ("gpu", 1)], &["special", "default"]),
    ]
}

/// Inputs of a task with the holders that were named.
type Sources = Vec<(TaskRef, Vec<WorkerId>)>;

/// A task on a simulated worker.
#[derive(Debug, Clone)]
struct Job {
    task: TaskRef,
    attempt: Attempt,
    inputs: Sources,
    is_started: bool,
}

impl Job {
    /// Every third task reads its inputs while it runs.
    fn is_streaming(&self) -> bool {
        self.task.task.0.is_multiple_of(3)
    }
}

#[derive(Debug, Clone)]
enum Message {
    Report(TaskRef, Attempt, TaskReport),
    Added(TaskRef),
    NotAdded(TaskRef),
    /// A copy that was kept is gone.
    Dropped(TaskRef),
}

#[derive(Debug, Default)]
struct SimWorker {
    inbox: VecDeque<(Effect, Sources)>,
    outbox: VecDeque<Message>,
    jobs: Vec<Job>,
    /// Results, with the attempt that made them; nothing for copies.
    held: BTreeMap<TaskRef, Option<Attempt>>,
    /// Its stream is broken.
    is_suspect: bool,
}

impl SimWorker {
    /// An attempt ends without a result: a copy of an earlier one goes too, as the core counts on.
    fn disown_copy(&mut self, task: TaskRef) {
        if self.held.get(&task) == Some(&None) {
            self.held.remove(&task);
            self.outbox.push_back(Message::Dropped(task));
        }
    }
}

struct Simulation {
    core: Core,
    now: Timestamp,
    tasks: Vec<Task>,
    chunks: VecDeque<GraphChunk>,
    next_chunk: u32,
    client: ClientId,
    workers: BTreeMap<WorkerId, SimWorker>,
    last_worker: u32,
    /// Failed attempts that the core has heard of.
    failures: BTreeMap<u32, u32>,
    /// Results that vanished from a worker unnoticed.
    vanished: BTreeSet<(WorkerId, TaskRef)>,
    /// Workers that were told to be empty.
    leaving: BTreeSet<WorkerId>,
    told: BTreeMap<u32, bool>,
    is_done: bool,
}

impl Simulation {
    fn new(tasks: Vec<Task>, chunk_size: usize) -> Self {
        let config = CoreConfig {
            crash_limit: 1_000,
            fetch_limit: 1_000,
            suspect_grace_micros: 100_000,
            suspect_rerun_micros: 30_000,
            ..CoreConfig::default()
        };
        let mut simulation = Self {
            core: Core::new(config),
            now: Timestamp(0),
            chunks: chunks(&tasks, chunk_size),
            tasks,
            next_chunk: 0,
            client: ClientId(1),
            workers: BTreeMap::new(),
            last_worker: 0,
            failures: BTreeMap::new(),
            vanished: BTreeSet::new(),
            leaving: BTreeSet::new(),
            told: BTreeMap::new(),
            is_done: false,
        };
        simulation.react(Event::GraphOpened {
            client: ClientId(1),
            name: "g".into(),
            is_open_ended: false,
        });
        simulation
    }

    fn react(&mut self, event: Event) {
        let shown = format!("{event:?}");
        let mut effects = Vec::new();
        self.core.react(event, self.now, &mut effects);
        if let Err(violation) = self.core.invariants() {
            panic!("after {shown}: {violation}");
        }
        self.carry_out(effects);
    }

    fn place(&mut self) {
        let mut effects = Vec::new();
        while self.core.place(self.now, &mut effects) {}
        self.core.invariants().unwrap();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let mut inputs = Vec::new();
            let worker = match &effect {
                Effect::Assign { worker, task, .. } => {
                    for input in self.core.inputs(*task) {
                        let input = TaskRef {
                            graph: task.graph,
                            task: *input,
                        };
                        inputs.push((input, self.core.holders(input).to_vec()));
                    }
                    *worker
                }
                Effect::Retract { worker, .. }
                | Effect::Cancel { worker, .. }
                | Effect::Copy { worker, .. }
                | Effect::Release { worker, .. } => *worker,
                Effect::WorkerEmpty { worker } => {
                    self.check_empty(*worker);
                    self.leaving.insert(*worker);
                    continue;
                }
                Effect::WorkerGivenUp { worker, .. } => {
                    self.workers.remove(worker);
                    continue;
                }
                Effect::ResultReady { task, client, .. } => {
                    assert_eq!(*client, self.client);
                    self.told.insert(task.task.0, true);
                    continue;
                }
                Effect::TaskFailed { task, .. } => {
                    self.told.insert(task.task.0, false);
                    continue;
                }
                Effect::GraphDone { .. } => {
                    self.is_done = true;
                    continue;
                }
                Effect::GraphRefused { error, .. } => panic!("{error}"),
                _ => continue,
            };
            if let Some(worker) = self.workers.get_mut(&worker)
                && !worker.is_suspect
            {
                worker.inbox.push_back((effect, inputs));
            }
        }
    }

    fn check_empty(&self, id: WorkerId) {
        for task in self.workers[&id].held.keys() {
            let holders = self.core.holders(*task);
            let is_needed = self.core.state(*task) == Some(TaskState::Finished);
            let is_elsewhere = holders.iter().any(|holder| *holder != id);
            assert!(!is_needed || is_elsewhere, "only {id} has {task}");
        }
    }

    fn pick(&self, number: u8) -> Option<WorkerId> {
        let count = self.workers.len();
        self.workers
            .keys()
            .nth(usize::from(number) % count.max(1))
            .copied()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::SendChunk => self.send_chunk(),
            Step::Place => self.place(),
            Step::Deliver(number) => self.deliver(number),
            Step::Start(number, is_kept) => self.start(number, is_kept),
            Step::Finish(number) => self.finish(number),
            Step::Report(number) => self.report(number),
            Step::Join(kind) => self.join(kind),
            Step::Die(number, is_retired) => self.die(number, is_retired),
            Step::Lose(number) => self.lose(number),
            Step::NoticeLoss(number) => self.notice_loss(number),
            Step::Reattach => self.reattach(),
            Step::Wait(micros) => self.now = self.now.plus_micros(u64::from(micros)),
            Step::Tick => self.react(Event::Tick),
            Step::Suspect(number) => self.suspect(number),
            Step::Return(number) => self.come_back(number),
            Step::Leave => self.leave(),
            Step::Pause(number, is_paused) => {
                if let Some(worker) = self.pick(number) {
                    self.react(Event::WorkerPaused { worker, is_paused });
                }
            }
            Step::Retire(number, micros) => {
                let workers = self.pick(number).into_iter();
                let workers = workers.chain(self.pick(number / 2)).collect();
                self.react(Event::WorkersRetiring {
                    workers,
                    deadline_micros: u64::from(micros),
                });
            }
            Step::Stay(number) => {
                let workers: Vec<WorkerId> = self.pick(number).into_iter().collect();
                for worker in &workers {
                    self.leaving.remove(worker);
                }
                self.react(Event::RetirementCancelled { workers });
            }
        }
    }

    /// The stream of a worker breaks: what is on its way to it is lost.
    fn suspect(&mut self, number: u8) {
        let Some(worker) = self.pick(number) else {
            return;
        };
        let state = self.workers.get_mut(&worker).unwrap();
        state.is_suspect = true;
        state.inbox.clear();
        self.react(Event::WorkerSuspected { worker });
    }

    /// A worker makes its stream again and says what it has.
    fn come_back(&mut self, number: u8) {
        let suspects = self.workers.iter().filter(|(_, worker)| worker.is_suspect);
        let suspects: Vec<WorkerId> = suspects.map(|(id, _)| *id).collect();
        let Some(id) = suspects.get(usize::from(number) % suspects.len().max(1)) else {
            return;
        };
        let worker = self.workers.get_mut(id).unwrap();
        worker
            .outbox
            .retain(|message| matches!(message, Message::Report(..)));
        self.report_of(*id);
        let worker = self.workers.get_mut(id).unwrap();
        worker.is_suspect = false;
        let attempts = |is_running: bool| {
            let jobs = worker
                .jobs
                .iter()
                .filter(|job| job.is_started == is_running);
            jobs.map(|job| (job.task, job.attempt)).collect()
        };
        let held = worker.held.iter();
        let inventory = Box::new(Inventory {
            held: held
                .map(|(task, _)| (*task, bytes_of(task.task.0)))
                .collect(),
            running: attempts(true),
            queued: attempts(false),
            seceded: Vec::new(),
        });
        self.react(Event::WorkerReturned {
            worker: *id,
            inventory,
        });
    }

    /// A worker that was told to be empty goes.
    fn leave(&mut self) {
        if let Some(worker) = self.leaving.pop_first()
            && self.workers.remove(&worker).is_some()
        {
            let loss = WorkerLoss::Retired;
            self.react(Event::WorkerLost { worker, loss });
        }
    }

    fn send_chunk(&mut self) {
        if let Some(chunk) = self.chunks.pop_front() {
            let (client, number) = (self.client, self.next_chunk);
            self.next_chunk += 1;
            let chunk = Box::new(chunk);
            self.react(Event::ChunkArrived {
                client,
                graph: GRAPH,
                number,
                chunk,
            });
        }
    }

    fn join(&mut self, kind: u8) {
        self.last_worker += 1;
        let worker = WorkerId(self.last_worker);
        self.workers.insert(worker, SimWorker::default());
        let group = if kind.is_multiple_of(3) {
            "special"
        } else {
            "default"
        };
        let resources = match kind % 4 {
            0 => vec![("gpu".to_owned(), 2)],
            1 => vec![("gpu".to_owned(), 1)],
            _ => Vec::new(),
        };
        let info = WorkerInfo {
            name: format!("w{}", worker.0),
            group: group.to_owned(),
            slots: u32::from(kind % 5),
            resources,
            memory_bytes: if kind % 7 == 6 { 3_000_000 } else { 1 << 30 },
        };
        self.react(Event::WorkerJoined { worker, info });
    }

    fn die(&mut self, number: u8, is_retired: bool) {
        let Some(worker) = self.pick(number) else {
            return;
        };
        self.workers.remove(&worker);
        let loss = if is_retired {
            WorkerLoss::Retired
        } else {
            WorkerLoss::Died("gone".to_owned())
        };
        self.react(Event::WorkerLost { worker, loss });
    }

    /// The worker reads one order.
    fn deliver(&mut self, number: u8) {
        let Some(id) = self.pick(number) else { return };
        let worker = self.workers.get_mut(&id).unwrap();
        let Some((effect, inputs)) = worker.inbox.pop_front() else {
            return;
        };
        if let Effect::Copy { task, from, .. } = effect {
            let is_there = worker.held.contains_key(&task) || self.reads(from, task);
            let worker = self.workers.get_mut(&id).unwrap();
            worker.outbox.push_back(if is_there {
                worker.held.entry(task).or_default();
                Message::Added(task)
            } else {
                Message::NotAdded(task)
            });
            return;
        }
        match effect {
            Effect::Assign { task, attempt, .. } => {
                worker.jobs.retain(|job| job.task != task);
                if worker.held.get(&task).is_some_and(Option::is_some) {
                    worker.held.remove(&task);
                }
                worker.jobs.push(Job {
                    task,
                    attempt,
                    inputs,
                    is_started: false,
                });
            }
            Effect::Retract { task, attempt, .. } => {
                let is_queued =
                    |job: &Job| job.task == task && job.attempt == attempt && !job.is_started;
                if worker.jobs.iter().any(is_queued) {
                    worker.jobs.retain(|job| !is_queued(job));
                    let report = TaskReport::Retracted;
                    worker
                        .outbox
                        .push_back(Message::Report(task, attempt, report));
                    worker.disown_copy(task);
                }
            }
            Effect::Cancel { task, attempt, .. } => {
                let before = worker.jobs.len();
                worker
                    .jobs
                    .retain(|job| job.task != task || job.attempt != attempt);
                if worker.jobs.len() < before {
                    worker.disown_copy(task);
                }
                if worker.held.get(&task) == Some(&Some(attempt)) {
                    worker.held.remove(&task);
                }
            }
            Effect::Release { task, .. } => {
                worker.held.remove(&task);
            }
            _ => unreachable!(),
        }
    }

    /// Whether a result can be read from a worker; some suspects still answer their peers.
    fn reads(&self, from: WorkerId, task: TaskRef) -> bool {
        self.workers.get(&from).is_some_and(|worker| {
            worker.held.contains_key(&task) && (!worker.is_suspect || from.0.is_multiple_of(2))
        })
    }

    /// The worker fetches the inputs of its first queued task and starts it.
    fn start(&mut self, number: u8, is_kept: bool) {
        let Some(id) = self.pick(number) else { return };
        let jobs = &self.workers[&id].jobs;
        let Some(at) = jobs.iter().position(|job| !job.is_started) else {
            return;
        };
        let job = jobs[at].clone();
        if job.is_streaming() {
            self.start_streaming(id, at, is_kept);
            return;
        }
        let mut lost = Vec::new();
        let mut fetched = Vec::new();
        for (input, holders) in &job.inputs {
            if self.workers[&id].held.contains_key(input) {
                continue;
            }
            if holders.iter().any(|holder| self.reads(*holder, *input)) {
                fetched.push(*input);
            } else {
                lost.extend(holders.iter().map(|holder| (*input, *holder)));
                lost.push((*input, id));
            }
        }
        let worker = self.workers.get_mut(&id).unwrap();
        if !lost.is_empty() {
            worker.jobs.remove(at);
            let report = TaskReport::InputsLost { lost };
            worker
                .outbox
                .push_back(Message::Report(job.task, job.attempt, report));
            worker.disown_copy(job.task);
            return;
        }
        if is_kept {
            for input in fetched {
                if worker.held.insert(input, None).is_none() {
                    worker.outbox.push_back(Message::Added(input));
                }
            }
            worker
                .outbox
                .push_back(Message::Report(job.task, job.attempt, TaskReport::Started));
        }
        worker.jobs[at].is_started = true;
    }

    /// A task that reads its inputs while it runs starts whatever is there.
    fn start_streaming(&mut self, id: WorkerId, at: usize, is_told: bool) {
        let worker = self.workers.get_mut(&id).unwrap();
        let job = &mut worker.jobs[at];
        job.is_started = true;
        if is_told {
            let message = Message::Report(job.task, job.attempt, TaskReport::Started);
            worker.outbox.push_back(message);
        }
    }

    /// What a task that reads its inputs while it runs cannot read.
    fn missed(&self, job: &Job) -> Vec<(TaskRef, WorkerId)> {
        let is_held = |input: TaskRef, holder: &WorkerId| {
            let worker = self.workers.get(holder);
            worker.is_some_and(|worker| worker.held.contains_key(&input))
        };
        let missed = job.inputs.iter().filter(|(input, holders)| {
            job.is_streaming() && !holders.iter().any(|holder| is_held(*input, holder))
        });
        let named =
            missed.flat_map(|(input, holders)| holders.iter().map(|holder| (*input, *holder)));
        named.collect()
    }

    /// The worker ends its first started task.
    fn finish(&mut self, number: u8) {
        let Some(id) = self.pick(number) else { return };
        let worker = self.workers.get_mut(&id).unwrap();
        let Some(at) = worker.jobs.iter().position(|job| job.is_started) else {
            return;
        };
        let job = worker.jobs.remove(at);
        let lost = self.missed(&job);
        let worker = self.workers.get_mut(&id).unwrap();
        if !lost.is_empty() {
            let report = TaskReport::InputsLost { lost };
            let message = Message::Report(job.task, job.attempt, report);
            worker.outbox.push_back(message);
            worker.disown_copy(job.task);
            return;
        }
        let index = job.task.task.0;
        let task = &self.tasks[index as usize];
        let failed = self.failures.get(&index).copied().unwrap_or(0);
        let report = if failed < task.failures {
            let error = Arc::new(Diagnostic::new(Code::TaskFailed, "failed"));
            TaskReport::Failed {
                error,
                is_retryable: task.is_retryable,
            }
        } else {
            worker.held.insert(job.task, Some(job.attempt));
            self.vanished.remove(&(id, job.task));
            let duration_micros = u64::from(index % 7) * 3_000;
            TaskReport::Finished {
                bytes: bytes_of(index),
                duration_micros,
                rows: u64::from(index),
            }
        };
        worker
            .outbox
            .push_back(Message::Report(job.task, job.attempt, report));
        worker.disown_copy(job.task);
    }

    /// The core hears all that a worker had to say.
    fn report(&mut self, number: u8) {
        let Some(id) = self.pick(number) else { return };
        if !self.workers[&id].is_suspect {
            self.report_of(id);
        }
    }

    fn report_of(&mut self, id: WorkerId) {
        let outbox = std::mem::take(&mut self.workers.get_mut(&id).unwrap().outbox);
        for message in outbox {
            match message {
                Message::Report(task, attempt, report) => {
                    let is_current = self.core.attempt(task) == Some((id, attempt));
                    if is_current && matches!(report, TaskReport::Failed { .. }) {
                        *self.failures.entry(task.task.0).or_default() += 1;
                    }
                    let reports = vec![(task, attempt, report)];
                    self.react(Event::TaskReported {
                        worker: id,
                        reports,
                    });
                }
                Message::Added(task) => {
                    self.react(Event::CopiesAdded {
                        worker: id,
                        tasks: vec![task],
                    });
                }
                Message::Dropped(task) => {
                    self.react(Event::CopiesMissing {
                        worker: id,
                        tasks: vec![task],
                    });
                }
                Message::NotAdded(task) => {
                    self.react(Event::CopiesFailed {
                        worker: id,
                        tasks: vec![task],
                    });
                }
            }
        }
    }

    /// A result vanishes from a worker.
    fn lose(&mut self, number: u8) {
        let Some(id) = self.pick(number) else { return };
        if let Some((task, _)) = self.workers.get_mut(&id).unwrap().held.pop_first() {
            self.vanished.insert((id, task));
        }
    }

    /// Somebody tries to read a result that vanished.
    fn notice_loss(&mut self, number: u8) {
        let count = self.vanished.len();
        let nth = usize::from(number) % count.max(1);
        if let Some((worker, task)) = self.vanished.iter().nth(nth).copied() {
            self.vanished.remove(&(worker, task));
            self.react(Event::CopiesMissing {
                worker,
                tasks: vec![task],
            });
        }
    }

    fn reattach(&mut self) {
        self.react(Event::ClientLost {
            client: self.client,
        });
        self.client = ClientId(self.client.0 + 1);
        self.told.clear();
        self.is_done = false;
        self.react(Event::GraphOpened {
            client: self.client,
            name: "g".into(),
            is_open_ended: false,
        });
    }

    /// No more accidents: everything is carried to its end.
    fn settle(&mut self) {
        while !self.chunks.is_empty() {
            self.send_chunk();
        }
        while self.workers.values().any(|worker| worker.is_suspect) {
            self.come_back(0);
        }
        while !self.leaving.is_empty() {
            self.leave();
        }
        while !self.vanished.is_empty() {
            self.notice_loss(0);
        }
        // One that runs everything that special tasks ask for, one plain.
        self.join(24);
        self.join(2);
        for _ in 0..ROUNDS_MAX {
            self.now = self.now.plus_micros(3_000);
            self.place();
            let mut is_idle = true;
            for number in 0..u8::try_from(self.workers.len()).unwrap() {
                let id = self.pick(number).unwrap();
                while !self.workers[&id].inbox.is_empty() {
                    is_idle = false;
                    self.deliver(number);
                }
                while !self.workers[&id].jobs.is_empty() {
                    is_idle = false;
                    self.start(number, number % 2 == 0);
                    self.finish(number);
                }
                is_idle &= self.workers[&id].outbox.is_empty();
                self.report(number);
            }
            if is_idle && self.is_done {
                return;
            }
        }
        panic!("not done: {:?}", self.core.cluster());
    }

    /// What running the tasks one after the other gives.
    fn check_outcome(&self) {
        let mut is_ok = Vec::new();
        for (index, task) in (0..).zip(&self.tasks) {
            let allowed = if task.is_retryable { task.retries } else { 0 };
            let own = task.failures <= allowed;
            is_ok.push(own && task.inputs.iter().all(|input| is_ok[*input as usize]));
            let state = self
                .core
                .state(TaskRef {
                    graph: GRAPH,
                    task: TaskIndex(index),
                })
                .unwrap();
            let expected = match (is_ok[index as usize], task.is_wanted) {
                (true, true) => state == TaskState::Finished,
                (true, false) => state == TaskState::Released,
                (false, true) => state == TaskState::Failed,
                // It may not have come to that: all who read it had failed before by something else.
                (false, false) => {
                    let is_read = self.tasks.iter().any(|other| other.inputs.contains(&index));
                    state == TaskState::Failed || (is_read && state == TaskState::Released)
                }
            };
            assert!(expected, "task {index} is {state:?}, {task:?}");
            if task.is_wanted {
                assert_eq!(
                    self.told.get(&index),
                    Some(&is_ok[index as usize]),
                    "task {index}"
                );
            }
        }
        for (id, worker) in &self.workers {
            for task in worker.held.keys() {
                assert!(
                    self.core.holders(*task).contains(id),
                    "worker {id} keeps {task}"
                );
            }
        }
    }
}

fn chunks(tasks: &[Task], size: usize) -> VecDeque<GraphChunk> {
    let mut all = VecDeque::new();
    let mut start = 0;
    for part in tasks.chunks(size) {
        let mut chunk = GraphChunk::default();
        if start == 0 {
            chunk.new_groups = vec!["even".to_owned(), "odd".to_owned()];
            chunk.new_requirements = requirements();
            chunk.new_bodies_count = 1;
        }
        for (offset, task) in (0_u32..).zip(part) {
            chunk.keys.push_str("key");
            chunk.key_lengths.push(3);
            chunk.body.push(0);
            chunk.group.push(offset % 2);
            chunk.requirement.push(task.requirement);
            chunk.priority.push(task.priority);
            chunk.retries.push(task.retries);
            chunk
                .input_counts
                .push(u32::try_from(task.inputs.len()).unwrap());
            chunk
                .inputs
                .extend(task.inputs.iter().map(|input| TaskIndex(*input)));
            if task.is_wanted {
                chunk.wanted.push(TaskIndex(start + offset));
            }
        }
        start += u32::try_from(part.len()).unwrap();
        all.push_back(chunk);
    }
    if let Some(last) = all.back_mut() {
        last.is_last = true;
    }
    all
}

/// Size of the result of a task.
fn bytes_of(task: u32) -> u64 {
    u64::from(task) * 50_000
}

fn task() -> impl Strategy<Value = Task> {
    let kind = prop_oneof![6 => Just(0_u32), 1 => 1_u32..=4];
    let failing = prop_oneof![8 => Just(0_u32), 1 => 1_u32..3];
    (
        prop::collection::vec(any::<u32>(), 0..4),
        -1..2_i32,
        0..3_u32,
        failing,
        prop::bool::weighted(0.9),
        kind,
        prop::bool::weighted(0.3),
    )
        .prop_map(
            |(inputs, priority, retries, failures, is_retryable, requirement, is_wanted)| Task {
                inputs,
                priority,
                retries,
                failures,
                is_retryable,
                requirement,
                is_wanted,
            },
        )
}

fn graph() -> impl Strategy<Value = Vec<Task>> {
    prop::collection::vec(task(), 1..40).prop_map(|mut tasks| {
        for (index, task) in (0_u32..).zip(&mut tasks) {
            if index == 0 {
                task.inputs.clear();
            }
            for input in &mut task.inputs {
                // Near ones mostly, so that there are long paths.
                let back = if *input % 4 == 0 {
                    *input / 4 % index
                } else {
                    *input % 3 % index
                };
                *input = index - 1 - back;
            }
        }
        tasks
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::SendChunk),
        6 => Just(Step::Place),
        12 => any::<u8>().prop_map(Step::Deliver),
        10 => any::<(u8, bool)>().prop_map(|(number, is_kept)| Step::Start(number, is_kept)),
        10 => any::<u8>().prop_map(Step::Finish),
        8 => any::<u8>().prop_map(Step::Report),
        3 => any::<u8>().prop_map(Step::Join),
        1 => any::<(u8, bool)>().prop_map(|(number, retired)| Step::Die(number, retired)),
        1 => any::<u8>().prop_map(Step::Lose),
        1 => any::<u8>().prop_map(Step::NoticeLoss),
        1 => Just(Step::Reattach),
        4 => any::<u16>().prop_map(Step::Wait),
        2 => Just(Step::Tick),
        1 => any::<u8>().prop_map(Step::Suspect),
        2 => any::<u8>().prop_map(Step::Return),
        1 => any::<(u8, bool)>().prop_map(|(number, is_paused)| Step::Pause(number, is_paused)),
        1 => any::<(u8, u16)>().prop_map(|(number, micros)| Step::Retire(number, micros)),
        1 => any::<u8>().prop_map(Step::Stay),
        1 => Just(Step::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_order_of_events_ends_as_running_one_after_the_other(
        tasks in graph(),
        chunk_size in 1..20_usize,
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut simulation = Simulation::new(tasks, chunk_size);
        for step in steps {
            simulation.step(step);
        }
        simulation.settle();
        simulation.check_outcome();
        let client = simulation.client;
        simulation.react(Event::GraphClosed { client, graph: GRAPH });
        let cluster = simulation.core.cluster();
        prop_assert_eq!((cluster.running, cluster.ready, cluster.held_bytes), (0, 0, 0));
    }
}
