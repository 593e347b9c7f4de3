//! Events of workers that nobody hears of: suspected, back again, given up.
//!
//! A suspect keeps what it holds, and for a short while what was handed to it: it goes on with that,
//! and begins what we believe to be waiting. After that while all of it runs elsewhere too; if the
//! suspect comes back with it, running or done, that counts. What cannot be had without the suspect
//! waits for its return or for the end of the grace period.

use std::collections::BTreeSet;

use crate::effect::Effect;
use crate::event::{Inventory, WorkerLoss};
use crate::ids::{Attempt, TaskRef, Timestamp, WorkerId};
use crate::machine::Core;
use crate::needs::conclude_all;
use crate::react::{retire, worker};
use crate::transitions::TaskState;

/// Nobody hears of a worker.
pub(super) fn suspected(
    core: &mut Core,
    worker: WorkerId,
    now: Timestamp,
    effects: &mut Vec<Effect>,
) {
    let Some(place) = core.fleet.place_of(worker) else {
        return;
    };
    let Some(record) = core.fleet.at(place).filter(|record| !record.is_suspect()) else {
        return;
    };
    let held = record.held_log.clone();
    core.restand(place, |record| record.suspect_since = Some(now));
    retire::fetcher_gone(core, worker);
    // Results first, so that the tasks that come back find out what they must wait for.
    for task in held {
        if let Some(mut scope) = core.scope(task.graph, effects)
            && scope.graph.holders(task.task.0).contains(&worker)
        {
            scope.doubt_holders(task.task.0);
        }
    }
}

/// A worker is heard again: its word settles what it holds and runs.
pub(super) fn returned(
    core: &mut Core,
    worker: WorkerId,
    inventory: &Inventory,
    effects: &mut Vec<Effect>,
) {
    let Some(place) = core.fleet.place_of(worker) else {
        return;
    };
    core.restand(place, |record| {
        record.suspect_since = None;
        record.rerun.clear();
    });
    let believed: Vec<TaskRef> = core.fleet.at(place).map_or_else(Vec::new, |record| {
        let entries = record.entries.iter().flatten().map(|entry| entry.task);
        record.held_log.iter().copied().chain(entries).collect()
    });
    settle_results(core, place, &inventory.held, effects);
    settle_attempts(core, place, inventory, effects);
    // Not before all is settled: what one of the results made needless another one that is missing
    // may need.
    let held = inventory.held.iter().map(|(task, _)| task);
    let attempts = inventory.running.iter().chain(&inventory.queued);
    let said = held.chain(attempts.map(|(task, _)| task));
    let graphs = said.chain(&believed).map(|task| task.graph).collect();
    conclude_all(core, graphs, effects);
    retire::look_again(core, place);
}

fn settle_results(core: &mut Core, place: u32, held: &[(TaskRef, u64)], effects: &mut Vec<Effect>) {
    let Some(record) = core.fleet.at(place) else {
        return;
    };
    let worker = record.id;
    let believed: BTreeSet<TaskRef> = record.held_log.iter().copied().collect();
    for (task, bytes) in held.iter().copied() {
        let scope = core
            .scope(task.graph, effects)
            .filter(|scope| scope.graph.has(task.task));
        let state = scope.as_ref().map(|scope| scope.state(task.task.0));
        match (scope, state) {
            (Some(mut scope), Some(TaskState::Finished)) => {
                scope.reach(task.task.0);
                if !scope.graph.holders(task.task.0).contains(&worker) {
                    scope.add_copy(task.task.0, place);
                }
            }
            (Some(mut scope), Some(state)) if state.is_pending() => {
                // Its own attempts are settled below.
                if state.is_placed() && !scope.is_at(task.task.0, worker) {
                    scope.cancel(task.task.0);
                }
                scope.adopt(task.task.0, place, bytes, 0);
            }
            _ => effects.push(Effect::Release { worker, task }),
        }
    }
    let held: BTreeSet<TaskRef> = held.iter().map(|(task, _)| *task).collect();
    for task in believed.difference(&held) {
        if let Some(mut scope) = core.scope(task.graph, effects) {
            scope.lose(task.task.0, worker);
        }
    }
}

fn settle_attempts(core: &mut Core, place: u32, inventory: &Inventory, effects: &mut Vec<Effect>) {
    let Some(worker) = core.fleet.at(place).map(|record| record.id) else {
        return;
    };
    let mut present = BTreeSet::new();
    let seceded: BTreeSet<(TaskRef, Attempt)> = inventory.seceded.iter().copied().collect();
    let running = inventory.running.iter().map(|attempt| (attempt, true));
    let queued = inventory.queued.iter().map(|attempt| (attempt, false));
    for ((task, attempt), is_running) in running.chain(queued) {
        if settle_attempt(core, place, (*task, *attempt), is_running, effects) {
            present.insert(*task);
            if let Some(mut scope) = core.scope(task.graph, effects).filter(|_| is_running) {
                scope.give_slots(task.task.0, seceded.contains(&(*task, *attempt)));
            }
        } else {
            effects.push(Effect::Cancel {
                worker,
                task: *task,
                attempt: *attempt,
            });
        }
    }
    let entries = core.fleet.at(place).map(|record| record.entries.as_slice());
    let entries = entries.unwrap_or_default().iter().flatten();
    let absent: Vec<TaskRef> = entries
        .map(|entry| entry.task)
        .filter(|task| !present.contains(task))
        .collect();
    for task in absent {
        if let Some(mut scope) = core.scope(task.graph, effects)
            && scope.is_at(task.task.0, worker)
        {
            scope.requeue(task.task.0);
        }
    }
}

/// Whether the attempt is one that the worker goes on with.
fn settle_attempt(
    core: &mut Core,
    place: u32,
    (task, attempt): (TaskRef, Attempt),
    is_running: bool,
    effects: &mut Vec<Effect>,
) -> bool {
    let (worker, is_retiring) = match core.fleet.at(place) {
        Some(record) => (record.id, record.is_retiring()),
        None => return false,
    };
    let scope = core
        .scope(task.graph, effects)
        .filter(|scope| scope.graph.has(task.task));
    let Some(mut scope) = scope else {
        return false;
    };
    let is_its_own = scope.is_current(task.task.0, attempt, worker)
        || ((is_running || !is_retiring)
            && scope.take_back(task.task.0, place, attempt, is_running));
    if is_its_own && is_running {
        scope.start(task.task.0);
    }
    is_its_own
}

/// Lets what was handed to a suspect run elsewhere too, if it has been silent for long enough.
fn rerun(core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) {
    let patience = core.config.suspect_rerun_micros;
    let is_late =
        |since: Option<Timestamp>| since.is_some_and(|at| now.micros_since(at) >= patience);
    let late = core.fleet.iter();
    let mut late: Vec<(WorkerId, u32)> = late
        .filter(|(_, worker)| is_late(worker.suspect_since) && worker.placed() > 0)
        .map(|(place, worker)| (worker.id, place))
        .collect();
    late.sort_unstable();
    for (worker, place) in late {
        let Some(record) = core.fleet.at_mut(place) else {
            continue;
        };
        let mut tasks = Vec::new();
        for entry in record.entries.iter().flatten() {
            tasks.push(entry.task);
            // Only what has begun is blamed later.
            if entry.is_started {
                record.rerun.push(entry.task);
            }
        }
        for task in tasks {
            if let Some(mut scope) = core.scope(task.graph, effects)
                && scope.is_at(task.task.0, worker)
            {
                scope.requeue(task.task.0);
                if let Some(client) = scope.graph.client {
                    scope.effects.push(Effect::TaskRescheduled { client, task });
                }
                scope.conclude();
            }
        }
    }
}

/// Gives up the suspects whose time is over.
pub(super) fn tick(core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) {
    if core.fleet.suspects == 0 {
        return;
    }
    rerun(core, now, effects);
    let grace = core.config.suspect_grace_micros;
    let is_over = |since: Option<Timestamp>| since.is_some_and(|at| now.micros_since(at) >= grace);
    let mut expired: Vec<WorkerId> = core
        .fleet
        .iter()
        .filter(|(_, worker)| is_over(worker.suspect_since))
        .map(|(_, worker)| worker.id)
        .collect();
    expired.sort_unstable();
    for worker in expired {
        let reason = format!("it was not heard of for {} s", grace / 1_000_000);
        give_up(core, worker, reason, effects);
    }
}

/// A suspect is lost for good.
pub(super) fn give_up(
    core: &mut Core,
    worker: WorkerId,
    reason: String,
    effects: &mut Vec<Effect>,
) {
    effects.push(Effect::WorkerGivenUp {
        worker,
        reason: reason.clone(),
    });
    worker::lost(core, worker, &WorkerLoss::Died(reason), effects);
}
