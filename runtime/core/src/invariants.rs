//! Recomputes everything that is kept incrementally and compares. Slow, for tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::fleet::Worker;
use crate::graph::{Graph, NONE};
use crate::ids::{TaskIndex, TaskRef, WorkerId};
use crate::machine::Core;
use crate::transitions::TaskState;

/// Something that is kept incrementally differs from what it should be: a defect of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What differs, for a developer.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Violation {}

/// What the graphs say about one worker.
#[derive(Debug, Default)]
struct Expected {
    held_bytes: u64,
    held: BTreeSet<TaskRef>,
    /// Placed tasks by position in the worker's table, and whether they run.
    placed: BTreeMap<u32, (TaskRef, bool)>,
    used: BTreeMap<String, u64>,
}

/// Compares all that is kept twice.
pub(crate) fn check(core: &Core) -> Result<(), Violation> {
    let mut workers: BTreeMap<WorkerId, Expected> = BTreeMap::new();
    let mut retracting = 0;
    for graph in core.graphs.values() {
        same("name", core.names.get(&graph.name), Some(&graph.id))?;
        check_counts(graph)?;
        let consumers = pending_consumers(graph);
        for task in 0..graph.len() {
            let place = || format!("task {}", graph.task_ref(task));
            check_task(graph, task, consumers[task as usize])
                .map_err(|violation| wrong(&format!("{}: {}", place(), violation.what)))?;
            gather(core, graph, task, &mut workers);
        }
        retracting += graph.count(TaskState::Retracting);
    }
    same("names", core.names.len(), core.graphs.len())?;
    same("retracting", core.fleet.retracting as u64, retracting)?;
    for (_, worker) in core.fleet.iter() {
        let expected = workers.remove(&worker.id).unwrap_or_default();
        check_worker(core, worker, &expected)
            .map_err(|violation| wrong(&format!("worker {}: {}", worker.id, violation.what)))?;
    }
    if let Some(gone) = workers.keys().next() {
        return Err(wrong(&format!("worker {gone} is gone but named by a task")));
    }
    check_classes(core)
}

fn wrong(what: &str) -> Violation {
    Violation {
        what: what.to_owned(),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "most of them are numbers")]
fn same<T: PartialEq + fmt::Debug>(what: &str, kept: T, recomputed: T) -> Result<(), Violation> {
    if kept == recomputed {
        return Ok(());
    }
    Err(wrong(&format!(
        "{what} is kept as {kept:?}, should be {recomputed:?}"
    )))
}

fn check_counts(graph: &Graph) -> Result<(), Violation> {
    let mut counts = vec![([0_u32; TaskState::COUNT], 0_u64); graph.groups.len()];
    let mut wanted_pending = 0;
    for task in 0..graph.len() {
        let at = task as usize;
        let (states, bytes) = &mut counts[graph.group[at] as usize];
        states[graph.state[at].number()] += 1;
        if graph.state[at] == TaskState::Finished {
            *bytes += graph.bytes[at];
        }
        wanted_pending += u32::from(graph.is_wanted[at] && graph.state[at].is_pending());
    }
    for (group, (states, bytes)) in graph.groups.iter().zip(counts) {
        same(
            &format!("counts of group `{}`", group.name),
            group.counts,
            states,
        )?;
        same(
            &format!("bytes of group `{}`", group.name),
            group.bytes,
            bytes,
        )?;
    }
    same("wanted_pending", graph.wanted_pending, wanted_pending)?;
    same("is_done_told", graph.is_done_told, graph.is_done())
}

/// For each task the edges to consumers that are pending, by the lists of inputs.
fn pending_consumers(graph: &Graph) -> Vec<u32> {
    let mut consumers = vec![0; graph.state.len()];
    for task in (0..graph.len()).filter(|task| graph.state[*task as usize].is_pending()) {
        for input in graph.inputs(task) {
            consumers[input.0 as usize] += 1;
        }
    }
    consumers
}

fn check_task(graph: &Graph, task: u32, consumers: u32) -> Result<(), Violation> {
    let at = task as usize;
    let state = graph.state[at];
    same("consumers_left", graph.consumers_left[at], consumers)?;
    let inputs = || {
        graph
            .inputs(task)
            .iter()
            .map(|input| graph.state[input.0 as usize])
    };
    let mut unfinished = 0;
    if state == TaskState::Waiting {
        let missing = inputs()
            .filter(|input| *input != TaskState::Finished)
            .count();
        unfinished = u32::try_from(missing).unwrap_or(NONE);
        same("waits for something", missing > 0, true)?;
        let is_hopeless =
            inputs().any(|input| matches!(input, TaskState::Failed | TaskState::Released));
        same("waits for an input that will not come", is_hopeless, false)?;
    }
    same("unfinished", graph.unfinished[at], unfinished)?;
    if state == TaskState::Ready {
        same(
            "all inputs are there",
            inputs().all(|input| input == TaskState::Finished),
            true,
        )?;
    }
    let is_held = !graph.holders(task).is_empty();
    same("has a holder", is_held, state == TaskState::Finished)?;
    let is_needed = consumers > 0 || graph.is_wanted[at] || !graph.is_sealed;
    same("is kept for nobody", is_held && !is_needed, false)?;
    same(
        "has a failure",
        graph.failure(task).is_some(),
        state == TaskState::Failed,
    )?;
    let is_entered = graph.entry[at] != NONE;
    same("has an entry", is_entered, state.is_placed())?;
    same(
        "pending in an ended graph",
        graph.ended.is_some() && state.is_pending(),
        false,
    )
}

fn gather(core: &Core, graph: &Graph, task: u32, workers: &mut BTreeMap<WorkerId, Expected>) {
    let at = task as usize;
    let reference = graph.task_ref(task);
    for holder in graph.holders(task) {
        let expected = workers.entry(*holder).or_default();
        expected.held_bytes += graph.bytes[at];
        expected.held.insert(reference);
    }
    if graph.state[at].is_placed() {
        let expected = workers
            .entry(WorkerId(graph.worker_or_failure[at]))
            .or_default();
        let is_running = graph.state[at] == TaskState::Running;
        expected
            .placed
            .insert(graph.entry[at], (reference, is_running));
        let class = core.classes.get(graph.class_of(task));
        for (name, amount) in class.iter().flat_map(|class| &class.requirement.resources) {
            *expected.used.entry(name.clone()).or_default() += amount;
        }
    }
}

fn check_worker(core: &Core, worker: &Worker, expected: &Expected) -> Result<(), Violation> {
    same("held_bytes", worker.held_bytes, expected.held_bytes)?;
    same("held_count", worker.held_count, expected.held.len())?;
    let log: BTreeSet<TaskRef> = worker.held_log.iter().copied().collect();
    same(
        "all held results are in the log",
        expected.held.is_subset(&log),
        true,
    )?;
    let (mut load, mut occupancy, mut started, mut placed) = (0, 0, 0, BTreeMap::new());
    for (position, entry) in (0..).zip(&worker.entries) {
        let Some(entry) = entry else { continue };
        let slots = core.slots(entry.task).clamp(1, worker.slots);
        same("slots of an entry", entry.slots, slots)?;
        load += u64::from(slots);
        occupancy += u64::from(slots) * u64::from(entry.expected_micros);
        started += u32::from(entry.is_started);
        placed.insert(position, (entry.task, entry.is_started));
    }
    same("placed", worker.placed(), placed.len())?;
    same("entries", &placed, &expected.placed)?;
    same("load", worker.load, load)?;
    same("occupancy", worker.occupancy, occupancy)?;
    same("started", worker.started, started)?;
    for offer in &worker.offers {
        let used = expected.used.get(&offer.name).copied().unwrap_or(0);
        same(&format!("use of `{}`", offer.name), offer.used, used)?;
        same(
            &format!("`{}` is within its bound", offer.name),
            used <= offer.total,
            true,
        )?;
    }
    Ok(())
}

fn check_classes(core: &Core) -> Result<(), Violation> {
    let mut ready: BTreeMap<u32, BTreeSet<TaskRef>> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for graph in core.graphs.values() {
        used.extend(graph.classes.iter().copied());
        for task in (0..graph.len()).filter(|task| graph.state[*task as usize] == TaskState::Ready)
        {
            ready
                .entry(graph.class_of(task))
                .or_default()
                .insert(graph.task_ref(task));
        }
    }
    for (index, class) in core.classes.iter() {
        same(&format!("class {index} is used"), used.remove(&index), true)?;
        let expected = ready.remove(&index).unwrap_or_default();
        same(
            &format!("ready tasks of class {index}"),
            class.ready,
            expected.len() as u64,
        )?;
        let queued: BTreeSet<TaskRef> = class
            .queue
            .iter()
            .map(|(graph, task)| TaskRef {
                graph,
                task: TaskIndex(task),
            })
            .collect();
        same(
            &format!("ready tasks of class {index} are queued"),
            expected.is_subset(&queued),
            true,
        )?;
        let mut eligible = class.eligible.clone();
        eligible.sort_unstable();
        let admitted = core.fleet.iter().filter(|(_, worker)| class.admits(worker));
        let admitted: Vec<u32> = admitted.map(|(place, _)| place).collect();
        same(
            &format!("eligible workers of class {index}"),
            eligible,
            admitted,
        )?;
    }
    same("classes without a record", used.len(), 0)
}
