//! Recomputes everything that is kept incrementally and compares. Slow, for tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::backlog::{self, Work};
use crate::digest::Digest;
use crate::drain::{COPIES_FROM_MAX, COPIES_TO_MAX};
use crate::fleet::{Hold, Worker};
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
    held: Vec<TaskRef>,
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
            check_task(core, graph, task, consumers[task as usize])
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
    check_copies(core)?;
    check_retirements(core)?;
    check_backlog(core)?;
    check_classes(core)
}

/// The standing of the workers and the copies on their way.
fn check_copies(core: &Core) -> Result<(), Violation> {
    let workers = || core.fleet.iter().map(|(_, worker)| worker);
    let count = |is: fn(&Worker) -> bool| workers().filter(|worker| is(worker)).count();
    same("suspects", core.fleet.suspects, count(Worker::is_suspect))?;
    let slots = core.fleet.iter().map(|(_, worker)| u64::from(worker.slots));
    same("slots", core.fleet.slots, slots.sum())?;
    same("retiring", core.fleet.retiring, count(Worker::is_retiring))?;
    let mut traffic: BTreeMap<WorkerId, (u32, u32)> = BTreeMap::new();
    for (task, transfer) in core.fleet.copies.iter() {
        let is_there = core.state(task) == Some(TaskState::Finished);
        same(format_args!("copied {task} is there"), is_there, true)?;
        let heard = core.fleet.is_heard(transfer.to);
        same(format_args!("fetcher of {task} is heard"), heard, true)?;
        traffic.entry(transfer.to).or_default().0 += 1;
        traffic.entry(transfer.from).or_default().1 += 1;
    }
    let mut pools: BTreeMap<&str, u32> = BTreeMap::new();
    for worker in workers() {
        *pools.entry(&worker.group).or_default() += 1;
        let id = worker.id;
        let is_open = worker.is_safe() && !worker.is_paused;
        same(format_args!("worker {id} is open"), worker.is_open, is_open)?;
        let own = core.fleet.copies.traffic(worker.id);
        let expected = traffic.remove(&worker.id).unwrap_or_default();
        same(
            format_args!("worker {id}"),
            (own.incoming, own.outgoing),
            expected,
        )?;
        let is_bounded = own.incoming <= COPIES_TO_MAX && own.outgoing <= COPIES_FROM_MAX;
        same(
            format_args!("copies of worker {id} are few"),
            is_bounded,
            true,
        )?;
    }
    same("copies of workers that are gone", traffic.len(), 0)?;
    let kept = core.fleet.pools.iter().filter(|(_, pool)| pool.workers > 0);
    let kept: BTreeMap<&str, u32> = kept.map(|(name, pool)| (name, pool.workers)).collect();
    same("workers by group", kept, pools)
}

/// Whatever only workers hold that are about to go is seen to by one of them.
fn check_retirements(core: &Core) -> Result<(), Violation> {
    let workers = || core.fleet.iter().map(|(_, worker)| worker);
    let lists = workers().filter_map(|worker| worker.retirement.as_deref());
    let listed: BTreeSet<TaskRef> = lists
        .flat_map(|own| own.pending.iter().chain(&own.watched))
        .copied()
        .collect();
    for worker in workers().filter(|worker| worker.is_retiring()) {
        for task in &worker.held_log {
            let holders = core.holders(*task);
            let is_unsafe = holders.contains(&worker.id)
                && !holders.iter().any(|holder| core.fleet.is_safe(*holder));
            let is_seen_to = listed.contains(task) || core.fleet.copies.contains(*task);
            let what = format_args!("{task} of retiring worker {} is seen to", worker.id);
            same(what, is_seen_to || !is_unsafe, true)?;
        }
    }
    Ok(())
}

/// The work by class, by looking at every task.
fn check_backlog(core: &Core) -> Result<(), Violation> {
    let mut expected: BTreeMap<u32, Work> = BTreeMap::new();
    for graph in core.graphs.values() {
        for task in 0..graph.len() {
            let at = task as usize;
            let (micros, bytes) = backlog::expected(core, graph, graph.group[at] as usize);
            let work = expected.entry(graph.class_of(task)).or_default();
            match graph.state[at] {
                TaskState::Ready => work.ready += 1,
                TaskState::Waiting => work.waiting += 1,
                state if state.is_placed() => work.expected_bytes += bytes,
                _ => {}
            }
            if matches!(graph.state[at], TaskState::Ready | TaskState::Waiting) {
                work.waiting_micros += micros;
            }
        }
    }
    let mut kept = backlog::work(core);
    kept.retain(|_, work| *work != Work::default());
    expected.retain(|_, work| *work != Work::default());
    same("work by class", &kept, &expected)?;
    let backlog = core.backlog(1);
    let classes = backlog.groups.iter().flat_map(|group| &group.classes);
    let mut shared = Work::default();
    for class in classes.chain(&backlog.unplaceable) {
        shared.ready += class.ready_tasks;
        shared.waiting += class.waiting_tasks;
        shared.waiting_micros += class.waiting_micros;
        shared.expected_bytes += class.expected_bytes;
    }
    let total = expected.values().fold(Work::default(), |mut sum, work| {
        sum.ready += work.ready;
        sum.waiting += work.waiting;
        sum.waiting_micros += work.waiting_micros;
        sum.expected_bytes += work.expected_bytes;
        sum
    });
    same("work that is shared out", shared, total)
}

fn wrong(what: &str) -> Violation {
    Violation {
        what: what.to_owned(),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "most of them are numbers")]
fn same<T: PartialEq + fmt::Debug>(
    what: impl fmt::Display,
    kept: T,
    recomputed: T,
) -> Result<(), Violation> {
    if kept == recomputed {
        return Ok(());
    }
    Err(wrong(&format!(
        "{what} is kept as {kept:?}, should be {recomputed:?}"
    )))
}

fn check_counts(graph: &Graph) -> Result<(), Violation> {
    same("doubtful tasks", graph.doubtful.len(), 0)?;
    for task in graph.foreign_attempts() {
        let is_placed = graph.state[task as usize].is_placed();
        same(
            format_args!("{task} is at a foreign attempt"),
            true,
            is_placed,
        )?;
    }
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
            format_args!("counts of group `{}`", group.name),
            group.counts,
            states,
        )?;
        same(
            format_args!("bytes of group `{}`", group.name),
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

fn check_task(core: &Core, graph: &Graph, task: u32, consumers: u32) -> Result<(), Violation> {
    let at = task as usize;
    let state = graph.state[at];
    same("consumers_left", graph.consumers_left[at], consumers)?;
    let inputs = || graph.inputs(task).iter().map(|input| input.0);
    let state_of = |input: u32| graph.state[input as usize];
    let mut unfinished = 0;
    if state == TaskState::Waiting {
        let missing = inputs().filter(|input| !graph.is_available(*input));
        let missing = missing.count();
        unfinished = u32::try_from(missing).unwrap_or(NONE);
        same("waits for something", missing > 0, true)?;
        let is_hopeless = inputs()
            .any(|input| matches!(state_of(input), TaskState::Failed | TaskState::Released));
        same("waits for an input that will not come", is_hopeless, false)?;
    }
    same("unfinished", graph.unfinished[at], unfinished)?;
    if state == TaskState::Ready {
        let are_there = inputs().all(|input| graph.is_available(input));
        same("all inputs are there", are_there, true)?;
    }
    let holders = graph.holders(task);
    let is_held = !holders.is_empty();
    let is_heard = holders.iter().any(|holder| core.fleet.is_heard(*holder));
    let is_stranded = state == TaskState::Finished && !is_heard;
    same("stranded", graph.is_stranded(task), is_stranded)?;
    same("has a holder", is_held, state == TaskState::Finished)?;
    let is_unneeded = consumers == 0 && graph.is_unneeded(task);
    same("is kept for nobody", is_held && is_unneeded, false)?;
    let is_stale = consumers == 0 && graph.is_moot(task) && state.is_pending();
    same("is to run for nobody", is_stale, false)?;
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
        expected.held.push(reference);
    }
    if graph.state[at].is_placed() {
        let expected = workers
            .entry(WorkerId(graph.worker_or_failure[at]))
            .or_default();
        let is_running = graph.state[at] == TaskState::Running;
        expected
            .placed
            .insert(graph.entry[at], (reference, is_running));
        let worker = core.fleet.get(WorkerId(graph.worker_or_failure[at]));
        let entry = worker.and_then(|worker| worker.entry(graph.entry[at]));
        if entry.is_some_and(|entry| entry.hold == Hold::Given) {
            return;
        }
        let class = core.classes.get(graph.class_of(task));
        for (name, amount) in class.iter().flat_map(|class| &class.requirement.resources) {
            *expected.used.entry(name.clone()).or_default() += amount;
        }
    }
}

fn check_worker(core: &Core, worker: &Worker, expected: &Expected) -> Result<(), Violation> {
    same("held_bytes", worker.held_bytes, expected.held_bytes)?;
    same("held_count", worker.held_count, expected.held.len())?;
    let mut digest = Digest::default();
    expected.held.iter().for_each(|task| digest.add_held(*task));
    same("held_digest", worker.held_digest, digest)?;
    let mut log = worker.held_log.clone();
    log.sort_unstable();
    let is_logged = |task: &TaskRef| log.binary_search(task).is_ok();
    let are_logged = expected.held.iter().all(is_logged);
    same("all held results are in the log", are_logged, true)?;
    let (mut load, mut occupancy, mut started, mut placed) = (0, 0, 0, BTreeMap::new());
    let mut may_be_over = false;
    for (position, entry) in (0..).zip(&worker.entries) {
        let Some(entry) = entry else { continue };
        let slots = core.slots(entry.task).clamp(1, worker.slots);
        same("slots of an entry", entry.slots, slots)?;
        if entry.hold == Hold::Given {
            same("only what runs secedes", entry.is_started, true)?;
        } else {
            load += u64::from(slots);
            occupancy += u64::from(slots) * u64::from(entry.expected_micros);
        }
        may_be_over |= entry.hold == Hold::TakenBack;
        let is_begun = entry.begun_at.is_some() || !entry.is_started;
        same("what runs has begun", is_begun, true)?;
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
        same(format_args!("use of `{}`", offer.name), offer.used, used)?;
        same(
            format_args!("`{}` is within its bound", offer.name),
            used <= offer.total || may_be_over,
            true,
        )?;
    }
    Ok(())
}

fn check_classes(core: &Core) -> Result<(), Violation> {
    let mut ready: BTreeMap<u32, Vec<TaskRef>> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for graph in core.graphs.values() {
        used.extend(graph.classes.iter().copied());
        for task in (0..graph.len()).filter(|task| graph.state[*task as usize] == TaskState::Ready)
        {
            ready
                .entry(graph.class_of(task))
                .or_default()
                .push(graph.task_ref(task));
        }
    }
    for (index, class) in core.classes.iter() {
        same(
            format_args!("class {index} is used"),
            used.remove(&index),
            true,
        )?;
        let expected = ready.remove(&index).unwrap_or_default();
        same(
            format_args!("ready tasks of class {index}"),
            class.ready,
            expected.len() as u64,
        )?;
        let queued = class.queue.iter().map(|(graph, task)| TaskRef {
            graph,
            task: TaskIndex(task),
        });
        let mut queued: Vec<TaskRef> = queued.collect();
        queued.sort_unstable();
        let is_queued = |task: &TaskRef| queued.binary_search(task).is_ok();
        same(
            format_args!("ready tasks of class {index} are queued"),
            expected.iter().all(is_queued),
            true,
        )?;
        let mut eligible = class.eligible.clone();
        eligible.sort_unstable();
        let admits = |worker: &Worker| worker.is_open && class.admits(worker);
        let admitted = core.fleet.iter().filter(|(_, worker)| admits(worker));
        let admitted: Vec<u32> = admitted.map(|(place, _)| place).collect();
        same(
            format_args!("eligible workers of class {index}"),
            eligible,
            admitted,
        )?;
    }
    same("classes without a record", used.len(), 0)
}
