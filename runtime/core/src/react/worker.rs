//! Events of workers: joined, lost.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::effect::Effect;
use crate::event::{WorkerInfo, WorkerLoss};
use crate::ids::WorkerId;
use crate::machine::Core;
use crate::transitions::TaskState;

/// A worker has connected. Work for it is found by the next placement.
pub(super) fn joined(
    core: &mut Core,
    worker: WorkerId,
    info: WorkerInfo,
    effects: &mut Vec<Effect>,
) {
    if core.fleet.place_of(worker).is_some() {
        return;
    }
    if core.fleet.iter().any(|(_, other)| other.name == info.name) {
        let message = format!(
            "a worker with the name `{}` is connected already",
            info.name
        );
        let error = Arc::new(Diagnostic::new(Code::WorkerRefused, message));
        effects.push(Effect::WorkerRefused { worker, error });
        return;
    }
    let place = core.fleet.add(worker, info);
    if let Some(record) = core.fleet.at(place) {
        core.classes.worker_joined(place, record);
    }
    effects.push(Effect::WorkerAccepted { worker });
}

/// A worker is gone: with it the results it held and the tasks it had.
pub(super) fn lost(
    core: &mut Core,
    worker: WorkerId,
    loss: &WorkerLoss,
    effects: &mut Vec<Effect>,
) {
    let Some((place, record)) = core.fleet.remove(worker) else {
        return;
    };
    core.classes.worker_lost(place);
    // Results first, so that the tasks that come back find out what they must wait for.
    for held in &record.held_log {
        if let Some(mut scope) = core.scope(held.graph, effects) {
            scope.lose(held.task.0, worker);
            scope.tell_done();
        }
    }
    for entry in record.entries.iter().flatten() {
        let task = entry.task.task.0;
        let Some(mut scope) = core.scope(entry.task.graph, effects) else {
            continue;
        };
        match loss {
            WorkerLoss::Died(reason) if scope.state(task) == TaskState::Running => {
                scope.crashed(task, &record.name, reason);
            }
            WorkerLoss::Died(_) | WorkerLoss::Retired => scope.requeue(task),
        }
        scope.tell_done();
    }
}
