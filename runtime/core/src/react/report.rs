//! Events of attempts and results: reports, copies that came and went.

use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::effect::Effect;
use crate::event::TaskReport;
use crate::ids::{Attempt, TaskRef, WorkerId};
use crate::machine::Core;
use crate::scope::{Made, Scope};
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
            scope.conclude();
        } else if let TaskReport::Finished { bytes, rows, .. } = report
            && scope.is_idle(task.task.0)
            && !scope.fleet.is_heard(worker)
        {
            // It was taken off a suspect, but nobody has begun it again.
            scope.adopt(task.task.0, place, bytes, rows);
            scope.conclude();
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
            let made = Made {
                bytes,
                rows,
                duration_micros,
            };
            scope.finish(index, place, made);
        }
        TaskReport::Failed {
            error,
            is_retryable,
        } => {
            scope.attempt_failed(index, error, is_retryable);
        }
        TaskReport::Retracted => scope.requeue(index),
        TaskReport::Seceded | TaskReport::Rejoined => {
            // Its start may have been left out.
            scope.start(index);
            scope.give_slots(index, report == TaskReport::Seceded);
        }
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
    scope.graph.holders(task).contains(&worker) || scope.is_at(task, worker)
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
        core.fleet.copies.end(*task, worker);
        let scope = core
            .scope(task.graph, effects)
            .filter(|scope| scope.graph.has(task.task));
        match scope {
            Some(mut scope) if scope.state(task.task.0) == TaskState::Finished => {
                scope.add_copy(task.task.0, place);
            }
            // It makes the result again itself, and a release would come after that. If it does
            // not, it says that it has dropped the copy.
            Some(scope) if scope.is_at(task.task.0, worker) => {}
            _ => effects.push(Effect::Release {
                worker,
                task: *task,
            }),
        }
    }
    clean_log(core, place);
}

/// Nothing can make the result of a task any more: it fails if it has not ended.
pub(super) fn hopeless(
    core: &mut Core,
    task: TaskRef,
    error: Arc<Diagnostic>,
    effects: &mut Vec<Effect>,
) {
    let scope = core
        .scope(task.graph, effects)
        .filter(|scope| scope.graph.has(task.task));
    let Some(mut scope) = scope else {
        return;
    };
    let task = task.task.0;
    if !scope.state(task).is_pending() {
        return;
    }
    if scope.state(task).is_placed() {
        scope.cancel(task);
    }
    scope.fail(task, error);
    scope.conclude();
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
            scope.conclude();
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
