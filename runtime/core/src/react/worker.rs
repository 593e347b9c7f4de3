//! Events of workers: joined, lost; and since when they have nothing to do.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::effect::Effect;
use crate::event::{WorkerInfo, WorkerLoss};
use crate::fleet::Worker;
use crate::ids::{Timestamp, WorkerId};
use crate::machine::Core;
use crate::needs::conclude_all;
use crate::react::{retire, suspect};
use crate::restore::Restored;
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
    let namesake = core
        .fleet
        .iter()
        .find(|(_, other)| other.name == info.name)
        .map(|(_, other)| (other.id, other.is_suspect()));
    if let Some((other, true)) = namesake {
        let reason = "another worker has taken its name".to_owned();
        suspect::give_up(core, other, reason, effects);
    } else if namesake.is_some() {
        let message = format!(
            "a worker with the name `{}` is connected already",
            info.name
        );
        let error = Arc::new(Diagnostic::new(Code::WorkerRefused, message));
        effects.push(Effect::WorkerRefused { worker, error });
        return;
    }
    core.notes.note(|| Restored::WorkerJoined {
        worker,
        info: info.clone(),
    });
    let place = core.fleet.add(worker, info);
    if let Some(record) = core.fleet.at(place) {
        core.classes.worker_changed(place, record);
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
    core.notes.note(|| Restored::WorkerGone { worker });
    core.classes.worker_lost(place);
    core.fleet.pools.worker_left(&record);
    retire::fetcher_gone(core, worker);
    core.fleet.copies.drop_source(worker);
    // Results first, so that the tasks that come back find out what they must wait for.
    for held in &record.held_log {
        if let Some(mut scope) = core.scope(held.graph, effects) {
            scope.lose(held.task.0, worker);
        }
    }
    for entry in record.entries.iter().flatten() {
        let task = entry.task.task.0;
        // What happened to the others may have stopped it.
        let scope = core.scope(entry.task.graph, effects);
        let Some(mut scope) = scope.filter(|scope| scope.is_at(task, worker)) else {
            continue;
        };
        match loss {
            WorkerLoss::Died(reason) if scope.state(task) == TaskState::Running => {
                scope.crashed(task, &record.name, reason);
            }
            WorkerLoss::Died(_) | WorkerLoss::Retired => scope.requeue(task),
        }
    }
    blame_rerun(core, &record, loss, effects);
    // Only when all are blamed: what nobody needs any more because another one has failed may be
    // needed again, and must not have forgotten then that a worker died of it.
    let entries = record.entries.iter().flatten().map(|entry| &entry.task);
    let touched = record.held_log.iter().chain(entries).chain(&record.rerun);
    let graphs = touched.map(|task| task.graph).collect();
    conclude_all(core, graphs, effects);
}

/// What ran on a worker when it was lost of sight runs elsewhere since. Now that it is known to have
/// died, that counts as a death like any other.
fn blame_rerun(core: &mut Core, record: &Worker, loss: &WorkerLoss, effects: &mut Vec<Effect>) {
    let WorkerLoss::Died(reason) = loss else {
        return;
    };
    for task in &record.rerun {
        if let Some(mut scope) = core.scope(task.graph, effects) {
            scope.crashed_before(task.task.0, &record.name, reason);
        }
    }
}

/// Notes which workers have had nothing to do since the last tick.
pub(super) fn tick(core: &mut Core, now: Timestamp) {
    for worker in core.fleet.iter_mut() {
        let is_busy = worker.placed() > 0 || worker.was_busy;
        worker.was_busy = worker.placed() > 0;
        worker.idle_since = match (is_busy, worker.idle_since) {
            (true, _) => None,
            (false, None) => Some(now),
            (false, since) => since,
        };
    }
}
