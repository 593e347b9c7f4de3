//! What others may see of the scheduler: plain values, copied out.

use std::sync::Arc;

use crate::explain;
use crate::fleet::Worker;
use crate::graph::Graph;
use crate::ids::{ClientId, GraphId, TaskIndex, TaskRef, Timestamp, WorkerId};
use crate::machine::Core;
use crate::place::Class;
use crate::transitions::TaskState;

/// How far a graph is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphProgress {
    /// In order of the graph's groups.
    pub groups: Vec<GroupProgress>,
}

/// How far one group of tasks is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupProgress {
    /// The group's name.
    pub name: Arc<str>,
    /// Tasks that have arrived.
    pub total: u64,
    /// Tasks that have a result, or need none any more: it was released, or they were stopped.
    pub done: u64,
    /// Tasks that run now.
    pub running: u64,
    /// Tasks that failed, or whose inputs did.
    pub failed: u64,
    /// Bytes of the results that are held, each counted once.
    pub bytes: u64,
    /// Rows of all results so far, also those that are gone; results computed again count again.
    pub rows: u64,
    /// Bytes of all results so far, likewise.
    pub made_bytes: u64,
}

/// One graph in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphSummary {
    /// The graph.
    pub graph: GraphId,
    /// Its name space.
    pub name: Arc<str>,
    /// Who is attached.
    pub client: Option<ClientId>,
    /// Tasks that have arrived.
    pub total: u64,
    /// Tasks that have a result, or need none any more: it was released, or they were stopped.
    pub done: u64,
    /// Tasks that run now.
    pub running: u64,
    /// Tasks that failed, or whose inputs did.
    pub failed: u64,
    /// Whether all wanted tasks are done or failed and the last chunk was seen.
    pub is_done: bool,
}

/// One worker in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSummary {
    /// The worker.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Its slots.
    pub slots: u32,
    /// Tasks that it said it runs.
    pub running: u32,
    /// Tasks that were handed to it and do not run yet.
    pub queued: u32,
    /// Bytes of the results and copies it holds.
    pub held_bytes: u64,
    /// Bytes it may hold.
    pub memory_bytes: u64,
    /// How the scheduler regards it.
    pub standing: WorkerStanding,
    /// Since when it has nothing to do, as far as ticks can tell.
    pub idle_since: Option<Timestamp>,
}

/// How the scheduler regards a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkerStanding {
    /// It takes new work.
    Active,
    /// It said that it has no room.
    Paused,
    /// It is asked to go.
    Retiring,
    /// Nobody hears of it; it may come back.
    Suspect,
}

/// How the scheduler regards a worker: the gravest of what holds.
pub(crate) fn standing(worker: &Worker) -> WorkerStanding {
    if worker.is_suspect() {
        WorkerStanding::Suspect
    } else if worker.is_retiring() {
        WorkerStanding::Retiring
    } else if worker.is_paused {
        WorkerStanding::Paused
    } else {
        WorkerStanding::Active
    }
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterSummary {
    /// Workers that are connected.
    pub workers: u32,
    /// Their slots.
    pub slots: u32,
    /// Tasks that run now.
    pub running: u64,
    /// Tasks that could run now: waiting for a slot, here or on a worker.
    pub ready: u64,
    /// Tasks that could run, but on none of the workers that are there.
    pub parked: u64,
    /// Why one of them is parked.
    pub parked_reason: Option<String>,
    /// Bytes of results and copies that the workers hold.
    pub held_bytes: u64,
    /// Bytes that the workers may hold.
    pub memory_bytes: u64,
    /// Expected run time of all known unfinished tasks, one after the other.
    pub backlog_micros: u64,
}

/// How far a graph is.
pub(crate) fn progress(graph: &Graph) -> GraphProgress {
    let groups = graph.groups.iter().map(|group| {
        let count = |state: TaskState| u64::from(group.counts[state.number()]);
        GroupProgress {
            name: Arc::clone(&group.name),
            total: group.counts.iter().copied().map(u64::from).sum(),
            done: count(TaskState::Finished) + count(TaskState::Released),
            running: count(TaskState::Running),
            failed: count(TaskState::Failed),
            bytes: group.bytes,
            rows: group.rows,
            made_bytes: group.made_bytes,
        }
    });
    GraphProgress {
        groups: groups.collect(),
    }
}

/// All graphs, oldest first.
pub(crate) fn graphs(core: &Core) -> Vec<GraphSummary> {
    let mut all: Vec<GraphSummary> = core
        .graphs
        .values()
        .map(|graph| GraphSummary {
            graph: graph.id,
            name: Arc::clone(&graph.name),
            client: graph.client,
            total: u64::from(graph.len()),
            done: graph.count(TaskState::Finished) + graph.count(TaskState::Released),
            running: graph.count(TaskState::Running),
            failed: graph.count(TaskState::Failed),
            is_done: graph.is_done(),
        })
        .collect();
    all.sort_unstable_by_key(|graph| graph.graph);
    all
}

/// All workers, in order of joining.
pub(crate) fn workers(core: &Core) -> Vec<WorkerSummary> {
    let mut all: Vec<WorkerSummary> = core
        .fleet
        .iter()
        .map(|(_, worker)| {
            let placed = u32::try_from(worker.placed()).unwrap_or(u32::MAX);
            WorkerSummary {
                worker: worker.id,
                name: worker.name.clone(),
                group: worker.group.clone(),
                slots: worker.slots,
                running: worker.started,
                queued: placed - worker.started,
                held_bytes: worker.held_bytes,
                memory_bytes: worker.memory_bytes,
                standing: standing(worker),
                idle_since: worker.idle_since,
            }
        })
        .collect();
    all.sort_unstable_by_key(|worker| worker.worker);
    all
}

/// The cluster as a whole.
pub(crate) fn cluster(core: &Core) -> ClusterSummary {
    let mut summary = ClusterSummary::default();
    for (_, worker) in core.fleet.iter() {
        summary.workers += 1;
        summary.slots = summary.slots.saturating_add(worker.slots);
        summary.held_bytes = summary.held_bytes.saturating_add(worker.held_bytes);
        summary.memory_bytes = summary.memory_bytes.saturating_add(worker.memory_bytes);
    }
    for graph in core.graphs.values() {
        summary.running += graph.count(TaskState::Running);
        summary.ready += graph.count(TaskState::Assigned) + graph.count(TaskState::Retracting);
        for group in &graph.groups {
            let guess = core.config.unknown_duration_micros;
            let expected = group.expected_micros().map_or(guess, u64::from);
            let pending = TaskState::ALL
                .into_iter()
                .filter(|state| state.is_pending());
            let count: u64 = pending
                .map(|state| u64::from(group.counts[state.number()]))
                .sum();
            let backlog = count.saturating_mul(expected);
            summary.backlog_micros = summary.backlog_micros.saturating_add(backlog);
        }
    }
    for (_, class) in core.classes.iter().filter(|(_, class)| class.ready > 0) {
        if is_runnable(core, class) {
            summary.ready += class.ready;
            continue;
        }
        summary.parked += class.ready;
        if summary.parked_reason.is_none() {
            summary.parked_reason = parked_reason(core, class);
        }
    }
    summary
}

/// Whether a worker that is there could run the class, though it may take nothing now.
fn is_runnable(core: &Core, class: &Class) -> bool {
    !class.eligible.is_empty() || core.fleet.iter().any(|(_, worker)| class.admits(worker))
}

/// Why no worker can run the tasks of a class, by the example of one of them.
fn parked_reason(core: &Core, class: &Class) -> Option<String> {
    let is_ready = |(graph, task): &(GraphId, u32)| {
        let task = TaskRef {
            graph: *graph,
            task: TaskIndex(*task),
        };
        core.state(task) == Some(TaskState::Ready)
    };
    let (graph, task) = class.queue.iter().find(is_ready)?;
    let key = core.key(TaskRef {
        graph,
        task: TaskIndex(task),
    })?;
    let wait = explain::unable(core, class);
    Some(format!("task `{key}` {wait}"))
}
