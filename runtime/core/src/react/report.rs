//! Events of attempts and results: reports, copies that came and went.

use crate::effect::Effect;
use crate::event::TaskReport;
use crate::ids::{Attempt, TaskRef, WorkerId};
use crate::machine::Core;
use crate::scope::Scope;
use crate::transitions::TaskState;

/// A worker reports about attempts. What is not about the current attempt is ignored, but a result
/// that nobody expects is dropped.
pub(super) fn reported(
    core: &mut Core,
    worker: WorkerId,
    reports: Vec<(TaskRef, Attempt, TaskReport)>,
    effects: &mut Vec<Effect>,
) {
    let Some(place) = core.fleet.place_of(worker) else {
        return;
    };
    for (task, attempt, report) in reports {
        let is_result = matches!(report, TaskReport::Finished { .. });
        let scope = core
            .scope(task.graph, effects)
            .filter(|scope| scope.graph.has(task.task));
        let Some(mut scope) = scope else {
            if is_result {
                effects.push(Effect::Release { worker, task });
            }
            continue;
        };
        if scope.is_current(task.task.0, attempt, worker) {
            apply(&mut scope, task, place, report);
            scope.tell_done();
        } else if is_result && !is_expected_from(&scope, task.task.0, worker) {
            scope.effects.push(Effect::Release { worker, task });
        }
    }
    clean_log(core, place);
}

fn apply(scope: &mut Scope<'_>, task: TaskRef, place: u32, report: TaskReport) {
    let index = task.task.0;
    match report {
        TaskReport::Started => scope.start(index),
        TaskReport::Finished {
            bytes,
            duration_micros,
            rows,
        } => {
            scope.graph.group_of_mut(index).made(bytes, rows);
            scope.finish(index, place, bytes, duration_micros);
        }
        TaskReport::Failed {
            error,
            is_retryable,
        } => {
            scope.attempt_failed(index, error, is_retryable);
        }
        TaskReport::Retracted => scope.requeue(index),
        TaskReport::InputsLost { lost } => {
            let is_known = |(input, _): &(TaskRef, WorkerId)| {
                input.graph == task.graph && scope.graph.has(input.task)
            };
            let known = lost.into_iter().filter(is_known);
            let lost = known.map(|(input, holder)| (input.task, holder)).collect();
            scope.inputs_lost(index, lost);
        }
    }
}

/// Whether the worker holds the task's result by right, or is about to.
fn is_expected_from(scope: &Scope<'_>, task: u32, worker: WorkerId) -> bool {
    scope.graph.holders(task).contains(&worker)
        || (scope.state(task).is_placed()
            && scope.graph.worker_or_failure[task as usize] == worker.0)
}

/// A worker keeps copies of results.
pub(super) fn copies_added(
    core: &mut Core,
    worker: WorkerId,
    tasks: &[TaskRef],
    effects: &mut Vec<Effect>,
) {
    let Some(place) = core.fleet.place_of(worker) else {
        return;
    };
    for task in tasks {
        let scope = core
            .scope(task.graph, effects)
            .filter(|scope| scope.graph.has(task.task));
        match scope {
            Some(mut scope) if scope.state(task.task.0) == TaskState::Finished => {
                scope.add_holder(task.task.0, place);
            }
            _ => effects.push(Effect::Release {
                worker,
                task: *task,
            }),
        }
    }
    clean_log(core, place);
}

/// A worker does not have these results. It may have fetched them again just now, so it is told to
/// drop what is no longer counted.
pub(super) fn copies_missing(
    core: &mut Core,
    worker: WorkerId,
    tasks: &[TaskRef],
    effects: &mut Vec<Effect>,
) {
    for task in tasks {
        let scope = core
            .scope(task.graph, effects)
            .filter(|scope| scope.graph.has(task.task));
        if let Some(mut scope) = scope {
            scope.lose_reported(task.task.0, worker);
            scope.tell_done();
        }
    }
}

/// Drops what a worker no longer holds from its log, once most of it is that.
fn clean_log(core: &mut Core, place: u32) {
    let Some(worker) = core.fleet.at_mut(place) else {
        return;
    };
    if worker.is_log_stale() {
        let id = worker.id;
        let graphs = &core.graphs;
        worker.held_log.sort_unstable();
        worker.held_log.dedup();
        worker.held_log.retain(|held| {
            graphs
                .get(&held.graph)
                .is_some_and(|graph| graph.holders(held.task.0).contains(&id))
        });
    }
}
