//! What must hold when a scheduler begins anew and when a worker is back.
//!
//! Invariant: what a journal keeps, with a worker that may return, is not to be made again; what a
//! worker that is back still runs is not begun again.

use std::collections::{BTreeMap, BTreeSet};

use oxidask_core::{Attempt, Core, Inventory, Restored, TaskRef, TaskState, WorkerId};

use crate::graphs::Plan;
use crate::watch::{Before, Causes, TaskWatch, Watch};
use crate::world::World;

impl Watch {
    /// What a worker does not name when it is back, it does not have.
    pub(crate) fn take_inventory(
        &mut self,
        before: &Before,
        worker: WorkerId,
        inventory: &Inventory,
        causes: &mut Causes,
    ) {
        self.forget_worker(worker);
        let held: BTreeSet<TaskRef> = inventory.held.iter().map(|(task, _)| *task).collect();
        for (task, holders) in &before.holders {
            if holders.contains(&worker) && !held.contains(task) {
                causes.lost.insert((*task, worker));
            }
        }
        let present = inventory.running.iter().chain(&inventory.queued);
        let present: BTreeSet<(TaskRef, Attempt)> = present.copied().collect();
        for (task, (at, attempt)) in &before.attempts {
            if *at == worker && !present.contains(&(*task, *attempt)) {
                causes.ended.insert(*task);
            }
        }
    }

    /// What runs on a worker that is back is not begun again.
    pub(crate) fn check_taken_back(
        core: &Core,
        before: &Before,
        worker: WorkerId,
        inventory: &Inventory,
    ) -> Result<(), String> {
        for (task, attempt) in &inventory.running {
            let was_placed = before.attempts.contains_key(task);
            let is_pending = core.state(*task).is_some_and(TaskState::is_pending);
            if !was_placed && is_pending && core.attempt(*task) != Some((worker, *attempt)) {
                return Err(format!("{task} runs on {worker} and is to be begun again"));
            }
        }
        Ok(())
    }

    /// A scheduler has begun with what the journal keeps: it believes nothing else, and what was
    /// durable is not to be made again.
    pub(crate) fn restarted(
        &mut self,
        core: &Core,
        plans: &[Plan],
        durable: &[Restored],
        now: u64,
    ) -> Result<(), String> {
        let workers = core.workers();
        self.suspects = workers.iter().map(|worker| (worker.worker, now)).collect();
        self.reruns.clear();
        let survivors = survivors(durable);
        for (graph, watch) in &mut self.graphs {
            watch.is_cancelled = durable.contains(&Restored::Cancelled { graph: *graph });
            // Of a graph whose end was not durable nothing is known any more.
            for index in watch.tasks.len()..plans[watch.plan].tasks.len() {
                if let Some(state) = core.state(World::task_ref(*graph, index)) {
                    let has_excuse = state == TaskState::Failed;
                    watch.tasks.push(TaskWatch {
                        has_excuse,
                        ..TaskWatch::new(state)
                    });
                }
            }
            for (index, known) in watch.tasks.iter_mut().enumerate() {
                let task = World::task_ref(*graph, index);
                let state = core.state(task);
                let is_pending = state.is_none_or(TaskState::is_pending);
                if state.is_some_and(TaskState::is_pending) && survivors.contains(&task) {
                    return Err(format!("{task} survives and is {state:?}"));
                }
                // What was not durable may run once more.
                known.causes += u32::from(is_pending);
                known.is_there = state.is_some();
                known.state = state.unwrap_or(TaskState::Waiting);
                known.is_told = false;
                known.current = None;
                (known.deaths, known.deaths_most) = (0, 0);
                (known.failed_reports, known.lost_fetches) = (0, 0);
            }
        }
        for (graph, watch) in &self.graphs {
            let tasks = &plans[watch.plan].tasks;
            // A result that was lost may need what has failed since, also by way of tasks that nobody
            // else needs any more.
            let mut doomed = vec![false; tasks.len()];
            for (index, known) in watch.tasks.iter().enumerate() {
                let is_failed = known.is_there && known.state == TaskState::Failed;
                let mut inputs = tasks[index].inputs.iter();
                let is_inherited = inputs.any(|input| doomed[*input as usize]);
                doomed[index] = is_failed || (is_inherited && known.state != TaskState::Finished);
                if is_failed && !known.has_excuse && !is_inherited && !watch.is_cancelled {
                    let task = World::task_ref(*graph, index);
                    return Err(format!("{task} failed by a restart"));
                }
            }
        }
        Ok(())
    }
}

/// Results that a journal knows with a worker that was not gone, and did not fail later.
fn survivors(durable: &[Restored]) -> BTreeSet<TaskRef> {
    let mut holders: BTreeMap<TaskRef, BTreeSet<WorkerId>> = BTreeMap::new();
    let mut present = BTreeSet::new();
    for record in durable {
        match record {
            Restored::WorkerJoined { worker, .. } => {
                present.insert(*worker);
            }
            Restored::WorkerGone { worker } => {
                present.remove(worker);
                for holders in holders.values_mut() {
                    holders.remove(worker);
                }
            }
            Restored::Finished { worker, results } if present.contains(worker) => {
                for (task, ..) in results {
                    holders.entry(*task).or_default().insert(*worker);
                }
            }
            _ => {}
        }
    }
    let held = holders
        .into_iter()
        .filter(|(_, holders)| !holders.is_empty());
    held.map(|(task, _)| task).collect()
}
