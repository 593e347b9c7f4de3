//! What the actor reads from the main loop: graphs that a journal has kept, failed tasks that are to
//! be made anew, and what depends on tasks. Only looks.

use std::collections::{BTreeSet, HashSet};

use oxidask_core::{Core, GraphId, TaskIndex, TaskRef, TaskState};
use oxidask_futures::keys::{GRAPH_NAME_PREFIX, Regrown, RegrownTask, RestoredGraph};

use crate::main_loop::MainLoop;

/// Tasks that one look follows at most.
const TASKS_FOLLOWED_MAX: usize = 1_000_000;

/// The graphs of Dask clients that are there, oldest first. Only the newest has its keys.
pub(super) fn restored(main_loop: &MainLoop) -> Vec<RestoredGraph> {
    let core = &main_loop.core;
    let graphs = core.graphs().into_iter();
    let of_futures = graphs.filter(|graph| graph.name.starts_with(GRAPH_NAME_PREFIX));
    of_futures
        .map(|graph| {
            let shape = core.shape(graph.graph).unwrap_or_default();
            let key = |task: &TaskIndex| {
                let key = core.key(of(graph.graph, *task)).unwrap_or_default();
                (key.to_owned(), *task)
            };
            RestoredGraph {
                graph: Some(graph.graph),
                name: graph.name,
                next_chunk: shape.next_chunk,
                tasks: shape.tasks,
                edges: shape.edges,
                key_bytes: shape.key_bytes,
                bodies: u32::try_from(shape.bodies).unwrap_or(u32::MAX),
                groups: shape.groups,
                requirements: shape.requirements,
                wanted: shape.wanted.iter().map(key).collect(),
            }
        })
        .collect()
}

/// What has failed of these tasks, what made it fail, and what failed with it.
pub(super) fn failed_around(main_loop: &MainLoop, asked: &[TaskRef]) -> Regrown {
    let core = &main_loop.core;
    let Some(graph) = asked.first().map(|task| task.graph) else {
        return Regrown::default();
    };
    let is_failed = |task: &TaskRef| core.state(*task) == Some(TaskState::Failed);
    let inputs = |task: TaskRef| core.inputs(task).to_vec();
    let asked = asked.iter().copied().filter(is_failed).collect();
    let origins = closure(core, asked, &inputs);
    let dependents = closure(core, origins.into_iter().collect(), &|task| {
        core.consumers(task)
    });
    let all: BTreeSet<TaskRef> = closure(core, dependents.into_iter().collect(), &inputs)
        .into_iter()
        .collect();
    let link = main_loop.graphs.get(&graph);
    let tasks = all.into_iter().map(|task| {
        let (group, requirement) = core.numbers(task).unwrap_or_default();
        let parts = link.map(|link| &link.parts);
        RegrownTask {
            task: task.task,
            key: core.key(task).unwrap_or_default().to_owned(),
            body: core.body(task).unwrap_or_default(),
            group,
            requirement,
            priority: core.priority(task),
            inputs: core.inputs(task).to_vec(),
            arguments: parts.map_or_else(bytes::Bytes::new, |p| p.arguments(task.task.0)),
        }
    });
    Regrown {
        graph: Some(graph),
        tasks: tasks.collect(),
    }
}

/// Failed tasks that are reached from these by failed ones.
fn closure(
    core: &Core,
    mut reached: Vec<TaskRef>,
    next: &dyn Fn(TaskRef) -> Vec<TaskIndex>,
) -> HashSet<TaskRef> {
    let mut found = HashSet::new();
    while let Some(task) = reached.pop() {
        if found.len() >= TASKS_FOLLOWED_MAX || !found.insert(task) {
            continue;
        }
        let failed = next(task).into_iter().map(|other| of(task.graph, other));
        reached.extend(failed.filter(|other| core.state(*other) == Some(TaskState::Failed)));
    }
    found
}

/// Pending tasks that depend on these.
pub(super) fn dependents(main_loop: &MainLoop, tasks: &[TaskRef]) -> Vec<TaskRef> {
    let core = &main_loop.core;
    let mut found = BTreeSet::new();
    let mut reached = tasks.to_vec();
    while let Some(task) = reached.pop() {
        for consumer in core.consumers(task) {
            let consumer = of(task.graph, consumer);
            let is_pending = core.state(consumer).is_some_and(TaskState::is_pending);
            if is_pending && found.len() < TASKS_FOLLOWED_MAX && found.insert(consumer) {
                reached.push(consumer);
            }
        }
    }
    found.into_iter().collect()
}

fn of(graph: GraphId, task: TaskIndex) -> TaskRef {
    TaskRef { graph, task }
}
