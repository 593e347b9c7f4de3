//! A cluster for scenarios: the core, a clock, and what was assigned; checks invariants after
//! every event.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "for tests only")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "reads better in a chain of calls"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use oxidask_core::{
    Attempt, ClientId, Core, CoreConfig, Effect, Event, GraphChunk, GraphId, Inventory,
    Requirement, TaskIndex, TaskRef, TaskReport, TaskState, Timestamp, WorkerId, WorkerInfo,
    WorkerLoss,
};
use oxidask_diagnostic::{Code, Diagnostic};

pub(crate) const CLIENT: ClientId = ClientId(1);

/// Slots of each worker.
pub(crate) fn slots(slots: u32) -> WorkerInfo {
    WorkerInfo {
        name: String::new(),
        group: "default".to_owned(),
        slots,
        resources: Vec::new(),
        memory_bytes: 1 << 30,
    }
}

/// A graph in the making: each call of `task` begins one, the others change the last.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) chunk: GraphChunk,
}

pub(crate) fn plan() -> Plan {
    let mut chunk = GraphChunk {
        is_last: true,
        new_bodies_count: 1,
        ..GraphChunk::default()
    };
    chunk.new_groups.push("group".to_owned());
    Plan { chunk }
}

/// A chunk that continues a graph.
pub(crate) fn next_plan() -> Plan {
    Plan {
        chunk: GraphChunk {
            is_last: true,
            ..GraphChunk::default()
        },
    }
}

impl Plan {
    pub(crate) fn task(mut self, key: &str) -> Self {
        self.chunk.keys.push_str(key);
        self.chunk
            .key_lengths
            .push(u32::try_from(key.len()).unwrap());
        self.chunk.body.push(0);
        self.chunk.group.push(0);
        self.chunk.requirement.push(0);
        self.chunk.priority.push(0);
        self.chunk.retries.push(0);
        self.chunk.input_counts.push(0);
        self
    }

    pub(crate) fn tasks(mut self, count: u32) -> Self {
        for number in 0..count {
            self = self.task(&format!("t-{number}"));
        }
        self
    }

    pub(crate) fn reads(mut self, inputs: &[u32]) -> Self {
        *self.chunk.input_counts.last_mut().unwrap() += u32::try_from(inputs.len()).unwrap();
        self.chunk
            .inputs
            .extend(inputs.iter().map(|input| TaskIndex(*input)));
        self
    }

    pub(crate) fn priority(mut self, priority: i32) -> Self {
        *self.chunk.priority.last_mut().unwrap() = priority;
        self
    }

    pub(crate) fn retries(mut self, retries: u32) -> Self {
        *self.chunk.retries.last_mut().unwrap() = retries;
        self
    }

    pub(crate) fn needs(mut self, requirement: Requirement) -> Self {
        self.chunk.new_requirements.push(requirement);
        let number = u32::try_from(self.chunk.new_requirements.len()).unwrap();
        *self.chunk.requirement.last_mut().unwrap() = number;
        self
    }

    pub(crate) fn wants(mut self, tasks: &[u32]) -> Self {
        self.chunk
            .wanted
            .extend(tasks.iter().map(|task| TaskIndex(*task)));
        self
    }

    pub(crate) fn unfinished(mut self) -> Self {
        self.chunk.is_last = false;
        self
    }
}

/// The core with everything around it.
pub(crate) struct Cluster {
    pub(crate) core: Core,
    pub(crate) now: Timestamp,
    pub(crate) assigned: BTreeMap<u32, (WorkerId, Attempt)>,
    pub(crate) graph: GraphId,
    last_worker: u32,
    chunks: u32,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::with(CoreConfig::default())
    }

    pub(crate) fn with(config: CoreConfig) -> Self {
        Self {
            core: Core::new(config),
            now: Timestamp(1_000_000),
            assigned: BTreeMap::new(),
            graph: GraphId(1),
            last_worker: 0,
            chunks: 0,
        }
    }

    pub(crate) fn workers(mut self, count: u32, info: WorkerInfo) -> Self {
        for _ in 0..count {
            self.join(info.clone());
        }
        self
    }

    /// A worker joins; without a name it is called by its number.
    pub(crate) fn join(&mut self, mut info: WorkerInfo) -> WorkerId {
        self.last_worker += 1;
        if info.name.is_empty() {
            info.name = format!("w{}", self.last_worker);
        }
        let worker = WorkerId(self.last_worker);
        self.react(Event::WorkerJoined { worker, info });
        worker
    }

    /// Opens the graph and sends all of it.
    pub(crate) fn submit(mut self, plan: Plan) -> Self {
        self.react(Event::GraphOpened {
            client: CLIENT,
            name: "g".into(),
            is_open_ended: false,
        });
        self.send(plan);
        self
    }

    /// Sends the next chunk.
    pub(crate) fn send(&mut self, plan: Plan) -> Vec<Effect> {
        let number = self.chunks;
        self.chunks += 1;
        let chunk = Box::new(plan.chunk);
        self.react(Event::ChunkArrived {
            client: CLIENT,
            graph: self.graph,
            number,
            chunk,
        })
    }

    pub(crate) fn react(&mut self, event: Event) -> Vec<Effect> {
        let shown = format!("{event:?}");
        let mut effects = Vec::new();
        self.core.react(event, self.now, &mut effects);
        if let Err(violation) = self.core.invariants() {
            panic!("after {shown}: {violation}");
        }
        effects
    }

    /// Lets ten milliseconds pass and places.
    pub(crate) fn place(&mut self) -> Vec<Effect> {
        self.now = self.now.plus_micros(10_000);
        let mut effects = Vec::new();
        while self.core.place(self.now, &mut effects) {}
        self.core.invariants().unwrap();
        for effect in &effects {
            if let Effect::Assign {
                worker,
                task,
                attempt,
                ..
            } = effect
            {
                self.assigned.insert(task.task.0, (*worker, *attempt));
            }
        }
        effects
    }

    /// Places and returns the tasks assigned by that, in order.
    pub(crate) fn place_tasks(&mut self) -> Vec<u32> {
        let effects = self.place();
        let tasks = effects.iter().filter_map(|effect| match effect {
            Effect::Assign { task, .. } => Some(task.task.0),
            _ => None,
        });
        tasks.collect()
    }

    pub(crate) fn at(&self, task: u32) -> TaskRef {
        TaskRef {
            graph: self.graph,
            task: TaskIndex(task),
        }
    }

    pub(crate) fn state(&self, task: u32) -> TaskState {
        self.core.state(self.at(task)).unwrap()
    }

    pub(crate) fn worker_of(&self, task: u32) -> WorkerId {
        self.assigned[&task].0
    }

    pub(crate) fn report(&mut self, task: u32, report: TaskReport) -> Vec<Effect> {
        let (worker, attempt) = self.assigned[&task];
        let reports = vec![(self.at(task), attempt, report)];
        self.react(Event::TaskReported { worker, reports })
    }

    pub(crate) fn start(&mut self, task: u32) -> Vec<Effect> {
        self.report(task, TaskReport::Started)
    }

    pub(crate) fn finish(&mut self, task: u32) -> Vec<Effect> {
        self.finish_with(task, 8, 1_000)
    }

    pub(crate) fn finish_with(
        &mut self,
        task: u32,
        bytes: u64,
        duration_micros: u64,
    ) -> Vec<Effect> {
        self.report(
            task,
            TaskReport::Finished {
                bytes,
                duration_micros,
                rows: 0,
            },
        )
    }

    pub(crate) fn fail(&mut self, task: u32, is_retryable: bool) -> Vec<Effect> {
        let error = Arc::new(Diagnostic::new(
            Code::TaskFailed,
            format!("task {task} failed"),
        ));
        self.report(
            task,
            TaskReport::Failed {
                error,
                is_retryable,
            },
        )
    }

    pub(crate) fn die(&mut self, worker: WorkerId) -> Vec<Effect> {
        let loss = WorkerLoss::Died("killed by signal 9".to_owned());
        self.react(Event::WorkerLost { worker, loss })
    }

    pub(crate) fn suspect(&mut self, worker: WorkerId) -> Vec<Effect> {
        self.react(Event::WorkerSuspected { worker })
    }

    /// A suspect returns with these results of 8 bytes and the attempts it had last.
    pub(crate) fn come_back(
        &mut self,
        worker: WorkerId,
        held: &[u32],
        running: &[u32],
        queued: &[u32],
    ) -> Vec<Effect> {
        let attempts = |tasks: &[u32]| {
            let attempts = tasks.iter();
            attempts
                .map(|task| (self.at(*task), self.assigned[task].1))
                .collect()
        };
        let inventory = Box::new(Inventory {
            held: held.iter().map(|task| (self.at(*task), 8)).collect(),
            running: attempts(running),
            queued: attempts(queued),
            seceded: Vec::new(),
        });
        self.react(Event::WorkerReturned { worker, inventory })
    }

    pub(crate) fn retire(&mut self, workers: &[WorkerId], deadline_micros: u64) -> Vec<Effect> {
        let workers = workers.to_vec();
        self.react(Event::WorkersRetiring {
            workers,
            deadline_micros,
        })
    }

    /// Lets time pass and looks at deadlines.
    pub(crate) fn pass(&mut self, micros: u64) -> Vec<Effect> {
        self.now = self.now.plus_micros(micros);
        self.react(Event::Tick)
    }

    /// The worker has fetched what it was asked to.
    pub(crate) fn copied(&mut self, worker: WorkerId, tasks: &[u32]) -> Vec<Effect> {
        let tasks = tasks.iter().map(|task| self.at(*task)).collect();
        self.react(Event::CopiesAdded { worker, tasks })
    }

    /// Places and finishes until nothing is assigned any more; returns the order of assignment.
    pub(crate) fn run(&mut self) -> Vec<u32> {
        let mut order = Vec::new();
        loop {
            let tasks = self.place_tasks();
            if tasks.is_empty() {
                return order;
            }
            for task in &tasks {
                self.finish(*task);
            }
            order.extend(tasks);
        }
    }
}

pub(crate) fn needs(slots: u32, resources: &[(&str, u64)], workers: &[&str]) -> Requirement {
    Requirement {
        slots,
        resources: resources
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), *amount))
            .collect(),
        workers: workers.iter().map(|name| (*name).to_owned()).collect(),
    }
}

pub(crate) fn is_failed(effects: &[Effect], index: u32, code: Code, origin: bool) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::TaskFailed { task, error, is_origin, .. }
            if task.task.0 == index && error.code == code && *is_origin == origin)
    })
}

pub(crate) fn is_done(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::GraphDone { .. }))
}

pub(crate) fn ready(effects: &[Effect]) -> Vec<u32> {
    let tasks = effects.iter().filter_map(|effect| match effect {
        Effect::ResultReady { task, .. } => Some(task.task.0),
        _ => None,
    });
    tasks.collect()
}

pub(crate) fn released(effects: &[Effect]) -> Vec<(u32, u32)> {
    let pairs = effects.iter().filter_map(|effect| match effect {
        Effect::Release { worker, task } => Some((worker.0, task.task.0)),
        _ => None,
    });
    pairs.collect()
}

pub(crate) fn retracted(effects: &[Effect]) -> Vec<(u32, u32)> {
    let pairs = effects.iter().filter_map(|effect| match effect {
        Effect::Retract { worker, task, .. } => Some((worker.0, task.task.0)),
        _ => None,
    });
    pairs.collect()
}

/// Copies that were ordered: who fetches, which task, from whom.
pub(crate) fn copies(effects: &[Effect]) -> Vec<(u32, u32, u32)> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::Copy { worker, task, from } => Some((worker.0, task.task.0, from.0)),
        _ => None,
    });
    all.collect()
}

pub(crate) fn emptied(effects: &[Effect]) -> Vec<u32> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::WorkerEmpty { worker } => Some(worker.0),
        _ => None,
    });
    all.collect()
}

pub(crate) fn refused(effects: &[Effect]) -> Vec<(u32, String)> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::RetireRefused { worker, reason } => Some((worker.0, reason.clone())),
        _ => None,
    });
    all.collect()
}

pub(crate) fn cancelled(effects: &[Effect]) -> Vec<(u32, u32)> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::Cancel { worker, task, .. } => Some((worker.0, task.task.0)),
        _ => None,
    });
    all.collect()
}

/// Workers that were given up.
pub(crate) fn given_up(effects: &[Effect]) -> Vec<u32> {
    let all = effects.iter().filter_map(|effect| match effect {
        Effect::WorkerGivenUp { worker, .. } => Some(worker.0),
        _ => None,
    });
    all.collect()
}
