//! Why a task waits, why it is where it is, or why it failed: facts, and a sentence for each.
//!
//! Looks at one task, its inputs and all workers when it is asked; nothing is kept for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::fleet::Worker;
use crate::graph::{Graph, NONE};
use crate::ids::{TaskRef, WorkerId};
use crate::machine::Core;
use crate::place::Class;
use crate::transitions::TaskState;

/// Inputs, or holders, that are named; the others are counted.
const NAMED_MAX: usize = 8;

/// All that is known about why a task is as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The task.
    pub task: TaskRef,
    /// Its key.
    pub key: String,
    /// Where it is in its life.
    pub state: TaskState,
    /// How often it was handed to a worker.
    pub attempts: u32,
    /// How often a failed attempt may still be tried again.
    pub retries_left: u32,
    /// Workers that died while they ran it.
    pub crashes: u32,
    /// Attempts whose inputs could not be fetched.
    pub fetch_failures: u32,
    /// What it waits for, if it waits.
    pub waits: Vec<WaitFacts>,
    /// Where it, or its result, is.
    pub place: Option<PlaceFacts>,
    /// Why it failed, if it did.
    pub failure: Option<FailureFacts>,
}

/// An input that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFacts {
    /// The input.
    pub task: TaskRef,
    /// Its key.
    pub key: String,
    /// Where it is in its life; `Finished` if only suspects hold it.
    pub state: TaskState,
}

/// One thing that a task waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFacts {
    /// Inputs that have not finished.
    Inputs {
        /// How many, each counted once.
        count: usize,
        /// Some of them.
        some: Vec<InputFacts>,
    },
    /// Inputs that only workers hold that nobody hears of.
    Suspects {
        /// How many inputs.
        count: usize,
        /// The names of the workers.
        workers: Vec<String>,
    },
    /// There is no worker at all.
    NoWorkers,
    /// The workers or groups to which it is limited are not there.
    Limits {
        /// Their names.
        names: Vec<String>,
    },
    /// No worker to which it is limited offers a resource.
    Resources {
        /// The name of the resource.
        name: String,
        /// How much of it the task asks for.
        amount: u64,
        /// The most that a worker has.
        most: u64,
    },
    /// No one worker has everything.
    Combination,
    /// Workers could run it but take no new work.
    Closed {
        /// Workers without room.
        paused: usize,
        /// Workers that are asked to go.
        retiring: usize,
        /// Workers that nobody hears of.
        suspect: usize,
    },
    /// Workers could run it, and all of them have enough to do.
    Busy {
        /// How many workers could.
        workers: usize,
        /// Slots of those.
        slots: u64,
        /// Ready tasks that ask for the same, this one included.
        rivals: u64,
        /// The shortest expected wait.
        wait_micros: u64,
    },
    /// The worker that has it was asked to give it back.
    Retraction,
    /// It is behind others at its worker.
    Queue {
        /// The worker's name.
        worker: String,
        /// Tasks that run there.
        running: u32,
    },
}

/// Where a task is, or its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaceFacts {
    /// On a worker.
    Worker {
        /// Who.
        worker: WorkerId,
        /// Its name.
        name: String,
        /// Bytes of inputs that are there.
        local_bytes: u64,
        /// Bytes of all inputs.
        input_bytes: u64,
        /// Workers that could run it.
        eligible: usize,
    },
    /// Finished.
    Held {
        /// Size of the result.
        bytes: u64,
        /// How many workers hold it.
        count: usize,
        /// The names of some of them.
        workers: Vec<String>,
        /// The client wants it.
        is_wanted: bool,
        /// Tasks that still need it.
        consumers: u32,
    },
    /// Nobody needs its result, whether there ever was one or not.
    Released,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureFacts {
    /// The error.
    pub error: Arc<Diagnostic>,
    /// The key of the task that failed itself, if it is another; nothing if the whole graph did.
    pub origin: Option<String>,
    /// Whether this task itself failed.
    pub is_origin: bool,
}

/// What is to say about a task; nothing for an unknown one.
pub(crate) fn explain(core: &Core, task: TaskRef) -> Option<Explanation> {
    let graph = core.graphs.get(&task.graph)?;
    if !graph.has(task.task) {
        return None;
    }
    let index = task.task.0;
    let at = index as usize;
    let state = graph.state[at];
    let mut explanation = Explanation {
        task,
        key: graph.key(index).to_owned(),
        state,
        attempts: graph.attempt[at],
        retries_left: graph.retries[at],
        crashes: u32::from(graph.crashes[at]),
        fetch_failures: u32::from(graph.fetch_failures[at]),
        waits: Vec::new(),
        place: None,
        failure: None,
    };
    match state {
        TaskState::Waiting => explanation.waits = inputs(core, graph, index),
        TaskState::Ready => explanation.waits = workers(core, graph, index),
        TaskState::Assigned | TaskState::Retracting | TaskState::Running => {
            on_worker(core, graph, index, &mut explanation);
        }
        TaskState::Finished => explanation.place = Some(held(core, graph, index)),
        TaskState::Released => explanation.place = Some(PlaceFacts::Released),
        TaskState::Failed => explanation.failure = failure(graph, index),
    }
    Some(explanation)
}

fn name_of(core: &Core, worker: WorkerId) -> String {
    let record = core.fleet.get(worker);
    record.map_or_else(|| worker.to_string(), |record| record.name.clone())
}

fn inputs(core: &Core, graph: &Graph, task: u32) -> Vec<WaitFacts> {
    let mut missing: BTreeMap<u32, TaskState> = BTreeMap::new();
    let mut stranded: BTreeSet<u32> = BTreeSet::new();
    for input in graph.inputs(task) {
        if graph.is_stranded(input.0) {
            stranded.insert(input.0);
        } else if !graph.is_available(input.0) {
            missing.insert(input.0, graph.state[input.0 as usize]);
        }
    }
    let mut waits = Vec::new();
    if !missing.is_empty() {
        let facts = |(input, state): (&u32, &TaskState)| InputFacts {
            task: graph.task_ref(*input),
            key: graph.key(*input).to_owned(),
            state: *state,
        };
        waits.push(WaitFacts::Inputs {
            count: missing.len(),
            some: missing.iter().take(NAMED_MAX).map(facts).collect(),
        });
    }
    if !stranded.is_empty() {
        let holders = stranded.iter().flat_map(|input| graph.holders(*input));
        let mut holders: Vec<WorkerId> = holders.copied().take(NAMED_MAX * NAMED_MAX).collect();
        holders.sort_unstable();
        holders.dedup();
        let names = holders.into_iter().take(NAMED_MAX);
        waits.push(WaitFacts::Suspects {
            count: stranded.len(),
            workers: names.map(|holder| name_of(core, holder)).collect(),
        });
    }
    waits
}

/// Why no worker has a ready task.
fn workers(core: &Core, graph: &Graph, task: u32) -> Vec<WaitFacts> {
    let Some(class) = core.classes.get(graph.class_of(task)) else {
        return Vec::new();
    };
    let able: Vec<&Worker> = core
        .fleet
        .iter()
        .map(|(_, worker)| worker)
        .filter(|worker| class.admits(worker))
        .collect();
    if able.is_empty() {
        return vec![unable(core, class)];
    }
    let open = || able.iter().filter(|worker| worker.is_open);
    let count = |is: fn(&Worker) -> bool| able.iter().filter(|worker| is(worker)).count();
    let mut waits = Vec::new();
    if open().count() < able.len() {
        waits.push(WaitFacts::Closed {
            paused: count(|worker| worker.is_paused),
            retiring: count(Worker::is_retiring),
            suspect: count(Worker::is_suspect),
        });
    }
    if open().count() > 0 {
        let slots = class.requirement.slots;
        let wait = open().map(|worker| worker.wait_micros(worker.slots_taken(slots)));
        waits.push(WaitFacts::Busy {
            workers: open().count(),
            slots: open().map(|worker| u64::from(worker.slots)).sum(),
            rivals: class.ready,
            wait_micros: wait.min().unwrap_or(0),
        });
    }
    waits
}

/// Why no worker that is there could ever run a class.
pub(crate) fn unable(core: &Core, class: &Class) -> WaitFacts {
    if core.fleet.len() == 0 {
        return WaitFacts::NoWorkers;
    }
    let names = &class.requirement.workers;
    let named: Vec<&Worker> = core
        .fleet
        .iter()
        .map(|(_, worker)| worker)
        .filter(|worker| {
            names.is_empty() || names.contains(&worker.name) || names.contains(&worker.group)
        })
        .collect();
    if named.is_empty() {
        let names = names.clone();
        return WaitFacts::Limits { names };
    }
    for (name, amount) in &class.requirement.resources {
        let offers = named.iter().flat_map(|worker| &worker.offers);
        let totals = offers
            .filter(|offer| offer.name == *name)
            .map(|offer| offer.total);
        let most = totals.max().unwrap_or(0);
        if most < *amount {
            return WaitFacts::Resources {
                name: name.clone(),
                amount: *amount,
                most,
            };
        }
    }
    WaitFacts::Combination
}

fn on_worker(core: &Core, graph: &Graph, task: u32, explanation: &mut Explanation) {
    let worker = WorkerId(graph.worker_or_failure[task as usize]);
    let name = name_of(core, worker);
    match explanation.state {
        TaskState::Assigned => explanation.waits.push(WaitFacts::Queue {
            worker: name.clone(),
            running: core.fleet.get(worker).map_or(0, |record| record.started),
        }),
        TaskState::Retracting => explanation.waits.push(WaitFacts::Retraction),
        _ => {}
    }
    let (mut local_bytes, mut input_bytes) = (0_u64, 0_u64);
    for input in graph.inputs(task) {
        let bytes = graph.bytes[input.0 as usize];
        input_bytes = input_bytes.saturating_add(bytes);
        if graph.holders(input.0).contains(&worker) {
            local_bytes = local_bytes.saturating_add(bytes);
        }
    }
    let class = core.classes.get(graph.class_of(task));
    explanation.place = Some(PlaceFacts::Worker {
        worker,
        name,
        local_bytes,
        input_bytes,
        eligible: class.map_or(0, |class| class.eligible.len()),
    });
}

fn held(core: &Core, graph: &Graph, task: u32) -> PlaceFacts {
    let holders = graph.holders(task);
    let names = holders.iter().take(NAMED_MAX);
    PlaceFacts::Held {
        bytes: graph.bytes[task as usize],
        count: holders.len(),
        workers: names.map(|holder| name_of(core, *holder)).collect(),
        is_wanted: graph.is_wanted[task as usize],
        consumers: graph.consumers_left[task as usize],
    }
}

fn failure(graph: &Graph, task: u32) -> Option<FailureFacts> {
    let failure = graph.failure(task)?;
    let is_origin = failure.origin == task;
    let is_other = !is_origin && failure.origin != NONE;
    Some(FailureFacts {
        error: Arc::clone(&failure.error),
        origin: is_other.then(|| graph.key(failure.origin).to_owned()),
        is_origin,
    })
}

// ---- sentences ----

impl fmt::Display for WaitFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inputs { count, some } => {
                let names: Vec<String> = some
                    .iter()
                    .map(|input| format!("`{}` ({})", input.key, input.state))
                    .collect();
                let names = names.join(", ");
                write!(f, "waits for {}: {names}", counted(*count, "input"))
            }
            Self::Suspects { count, workers } => write!(
                f,
                "waits for {} that only workers hold that are not heard: `{}`; they may return",
                counted(*count, "input"),
                workers.join("`, `")
            ),
            Self::NoWorkers => f.write_str("waits for a worker, none is connected"),
            Self::Limits { names } => write!(
                f,
                "is limited to the workers or groups `{}`, none of which is connected",
                names.join("`, `")
            ),
            Self::Resources { name, amount, most } => match most {
                0 => write!(
                    f,
                    "needs {amount} of resource `{name}`, which no worker offers"
                ),
                _ => write!(
                    f,
                    "needs {amount} of resource `{name}`, no worker has more than {most}"
                ),
            },
            Self::Combination => f.write_str("needs more resources than any one worker offers"),
            Self::Closed {
                paused,
                retiring,
                suspect,
            } => write!(
                f,
                "some workers that could run it take no new work: {paused} without room, \
                 {retiring} retiring, {suspect} not heard"
            ),
            Self::Busy {
                workers,
                slots,
                rivals,
                wait_micros,
            } => write!(
                f,
                "waits for one of {slots} slots of {} that could run it, as do {} that ask \
                 for the same; the first is free in about {} ms",
                counted(*workers, "worker"),
                counted(usize::try_from(rivals - 1).unwrap_or(0), "other task"),
                wait_micros / 1_000
            ),
            Self::Retraction => {
                f.write_str("its worker was asked to give it back, so that it runs elsewhere")
            }
            Self::Queue { worker, running } => write!(
                f,
                "waits at worker `{worker}`, which runs {}",
                counted(*running as usize, "task")
            ),
        }
    }
}

impl fmt::Display for PlaceFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker {
                name,
                input_bytes: 0,
                eligible,
                ..
            } => write!(
                f,
                "is at worker `{name}`, which had the least to do of {}",
                counted(*eligible, "worker")
            ),
            Self::Worker {
                name,
                local_bytes,
                input_bytes,
                eligible,
                ..
            } => write!(
                f,
                "is at worker `{name}`, which has {local_bytes} of its {input_bytes} bytes of \
                 inputs; {} could run it",
                counted(*eligible, "worker")
            ),
            Self::Held {
                bytes,
                workers,
                count,
                is_wanted,
                consumers,
            } => {
                let more = count.saturating_sub(workers.len());
                let names = workers.join("`, `");
                write!(f, "its result of {bytes} bytes is at `{names}`")?;
                if more > 0 {
                    write!(f, " and {}", counted(more, "other worker"))?;
                }
                match (is_wanted, consumers) {
                    (true, _) => f.write_str("; the client wants it"),
                    (false, 0) => f.write_str("; later tasks of its graph may need it"),
                    (false, uses) => {
                        write!(f, "; {} to come", counted(*uses as usize, "use"))
                    }
                }
            }
            Self::Released => f.write_str("nobody needs its result, so it is not kept"),
        }
    }
}

impl fmt::Display for FailureFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = &self.error.message;
        match &self.origin {
            Some(origin) => write!(f, "cannot run because `{origin}` failed: {message}"),
            None if self.is_origin => write!(f, "failed: {message}"),
            None => write!(f, "ended with its graph: {message}"),
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {what}{end}")
}
