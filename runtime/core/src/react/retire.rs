//! Events of workers that take no new work: paused, retiring, staying after all; and of copies.
//!
//! What waits on such a worker is asked back, never ordered elsewhere before it answers.

use crate::drain::{self, Retirement};
use crate::effect::Effect;
use crate::ids::{TaskRef, Timestamp, WorkerId};
use crate::machine::Core;
use crate::transitions::TaskState;

/// A worker has no room for new work, or has room again.
pub(super) fn paused(
    core: &mut Core,
    worker: WorkerId,
    is_paused: bool,
    effects: &mut Vec<Effect>,
) {
    let Some(place) = core.fleet.place_of(worker) else {
        return;
    };
    core.restand(place, |record| record.is_paused = is_paused);
    if is_paused {
        retract_queued(core, place, effects);
    }
}

/// Workers are to go.
pub(super) fn retiring(
    core: &mut Core,
    workers: &[WorkerId],
    deadline: Timestamp,
    effects: &mut Vec<Effect>,
) {
    let mut places = Vec::new();
    for worker in workers.iter().copied() {
        let Some(place) = core.fleet.place_of(worker) else {
            let reason = "it is not connected".to_owned();
            effects.push(Effect::RetireRefused { worker, reason });
            continue;
        };
        let mut is_new = false;
        core.restand(place, |record| {
            if let Some(own) = &mut record.retirement {
                own.deadline = deadline;
            } else {
                is_new = true;
                record.retirement = Some(Box::new(Retirement::new(deadline, Vec::new())));
            }
        });
        if is_new {
            look_again(core, place);
            places.push(place);
        }
    }
    // What cannot work is refused before anything is moved.
    let open = core.fleet.iter().filter(|(_, worker)| worker.is_open);
    let mut room = open.fold(0_u64, |sum, (_, worker)| {
        sum.saturating_add(drain::room(&core.fleet, worker))
    });
    for place in places {
        let bytes = drain::unsafe_bytes(core, place);
        if bytes > room {
            let reason = format!(
                "it alone holds {bytes} bytes of results, the other workers have room for {room}"
            );
            drain::refuse(core, place, reason, effects);
            continue;
        }
        room -= bytes;
        retract_queued(core, place, effects);
    }
}

/// Workers are to stay after all. What is on its way arrives.
pub(super) fn cancelled(core: &mut Core, workers: &[WorkerId]) {
    for worker in workers {
        if let Some(place) = core.fleet.place_of(*worker) {
            core.restand(place, |record| record.retirement = None);
        }
    }
}

/// A worker could not fetch results that it was asked to.
pub(super) fn copies_failed(core: &mut Core, worker: WorkerId, tasks: &[TaskRef]) {
    for task in tasks {
        let Some(transfer) = core.fleet.copies.end(*task, worker) else {
            continue;
        };
        if let Some(own) = retirement(core, transfer.from) {
            own.failures.entry(*task).or_default().push(worker);
            own.pending.push(*task);
        }
    }
}

/// A worker is gone or not heard: copies on their way to it are planned anew.
pub(super) fn fetcher_gone(core: &mut Core, worker: WorkerId) {
    for (task, transfer) in core.fleet.copies.drop_fetcher(worker) {
        if let Some(own) = retirement(core, transfer.from) {
            own.pending.push(task);
        }
    }
}

fn retirement(core: &mut Core, worker: WorkerId) -> Option<&mut Retirement> {
    core.fleet.get_mut(worker)?.retirement.as_deref_mut()
}

/// A retiring worker looks at all that it holds.
pub(super) fn look_again(core: &mut Core, place: u32) {
    if let Some(record) = core.fleet.at_mut(place)
        && let Some(own) = &mut record.retirement
    {
        own.pending.clone_from(&record.held_log);
        own.pending.sort_unstable();
        own.pending.dedup();
    }
}

/// Asks all tasks back that wait on a worker.
fn retract_queued(core: &mut Core, place: u32, effects: &mut Vec<Effect>) {
    let Some(record) = core.fleet.at(place).filter(|record| !record.is_suspect()) else {
        return;
    };
    let worker = record.id;
    let entries = record.entries.iter().flatten();
    let queued: Vec<TaskRef> = entries
        .filter(|entry| !entry.is_started)
        .map(|entry| entry.task)
        .collect();
    for task in queued {
        let Some(mut scope) = core.scope(task.graph, effects) else {
            continue;
        };
        let index = task.task.0;
        if scope.state(index) == TaskState::Assigned {
            scope.transition(index, TaskState::Retracting);
            let attempt = scope.current_attempt(index);
            scope.effects.push(Effect::Retract {
                worker,
                task,
                attempt,
            });
        }
    }
}
