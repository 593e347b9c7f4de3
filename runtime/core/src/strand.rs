//! Results and attempts while workers are suspect or retiring.
//!
//! A result is *stranded* while all who hold it are suspect: it is finished, may come back, and can
//! perhaps be read, but no task is handed out to read it. Owns the set of them in each graph.
//!
//! Invariant between events: `Graph::stranded` names exactly the finished tasks without a holder
//! that is heard; waiting consumers count them among their unfinished inputs.

use crate::fleet::Worker;
use crate::ids::{Attempt, WorkerId};
use crate::scope::Scope;
use crate::transitions::TaskState;

impl Scope<'_> {
    /// Whether all who hold the result are suspect.
    pub(crate) fn is_with_suspects_only(&self, task: u32) -> bool {
        let mut holders = self.graph.holders(task).iter();
        self.fleet.suspects > 0 && !holders.any(|holder| self.fleet.is_heard(*holder))
    }

    /// Holders of a finished result have gone, become suspect or are retiring: consumers may have to
    /// wait, and who is about to go may have to see to it that there is a copy.
    pub(crate) fn doubt_holders(&mut self, task: u32) {
        let is_calm = self.fleet.suspects == 0 && self.fleet.retiring == 0;
        if is_calm || self.state(task) != TaskState::Finished {
            return;
        }
        if !self.graph.is_stranded(task) && self.is_with_suspects_only(task) {
            self.graph.stranded.insert(task);
            self.block_consumers(task);
        }
        let holders = self.graph.holders(task);
        if self.fleet.retiring == 0 || holders.iter().any(|holder| self.fleet.is_safe(*holder)) {
            return;
        }
        let reference = self.graph.task_ref(task);
        for holder in holders {
            let worker = self.fleet.get_mut(*holder);
            if let Some(retirement) = worker.and_then(|worker| worker.retirement.as_mut()) {
                retirement.pending.push(reference);
            }
        }
    }

    /// A stranded result is held by somebody who is heard: whoever waits for it goes on.
    pub(crate) fn reach(&mut self, task: u32) {
        if self.graph.stranded.remove(&task) {
            self.wake_consumers(task);
        }
    }

    /// A result is no longer held by anybody; true if it was stranded.
    pub(crate) fn forget_whereabouts(&mut self, task: u32) -> bool {
        self.fleet.copies.drop_task(self.graph.task_ref(task));
        !self.graph.stranded.is_empty() && self.graph.stranded.remove(&task)
    }

    /// Whether the task is to run and no worker has it.
    pub(crate) fn is_idle(&self, task: u32) -> bool {
        matches!(self.state(task), TaskState::Waiting | TaskState::Ready)
    }

    /// Whether the worker has the task.
    pub(crate) fn is_at(&self, task: u32, worker: WorkerId) -> bool {
        self.state(task).is_placed() && self.graph.worker_or_failure[task as usize] == worker.0
    }

    /// A worker has the result of a task that is pending: it counts. Whoever is at the task was told
    /// to stop.
    pub(crate) fn adopt(&mut self, task: u32, place: u32, bytes: u64, rows: u64) {
        if self.state(task).is_placed() {
            self.detach(task);
        }
        let reference = self.graph.task_ref(task);
        if let Some(worker) = self.fleet.at_mut(place) {
            worker.rerun.retain(|other| *other != reference);
        }
        self.keep_result(task, place, bytes, rows);
    }

    /// A task turns out to be still with a worker that was lost of sight, or with which an earlier
    /// epoch left it; false if it cannot be there. What runs is preferred to what was begun elsewhere
    /// since; what waits is taken back only while the task is ready.
    pub(crate) fn take_back(
        &mut self,
        task: u32,
        place: u32,
        attempt: Attempt,
        is_running: bool,
    ) -> bool {
        let state = self.state(task);
        let is_last = self.graph.attempt[task as usize] == attempt.number;
        let is_older = attempt.epoch < self.config.epoch
            || (attempt.epoch == self.config.epoch
                && attempt.number < self.graph.attempt[task as usize]);
        let is_known = match state {
            TaskState::Ready if !is_running => {
                attempt.epoch < self.config.epoch || (attempt.epoch == self.config.epoch && is_last)
            }
            TaskState::Ready | TaskState::Waiting => {
                is_running && (is_older || (attempt.epoch == self.config.epoch && is_last))
            }
            _ => is_running && state.is_placed() && is_older,
        };
        if !is_known || !self.is_possible_at(task, place, is_running) {
            return false;
        }
        if state.is_placed() {
            self.cancel(task);
            self.detach(task);
            self.transition(task, TaskState::Waiting);
        }
        if state != TaskState::Ready {
            self.graph.unfinished.set(task as usize, 0);
            self.transition(task, TaskState::Ready);
        }
        if self.attach(task, place).is_none() {
            return false;
        }
        self.graph.set_attempt(task, attempt, self.config.epoch);
        self.transition(task, TaskState::Assigned);
        true
    }

    /// Whether the worker can run the task beside what it has; what runs there shows that it can.
    fn is_possible_at(&self, task: u32, place: u32, is_running: bool) -> bool {
        let class = self.classes.get(self.graph.class_of(task));
        let of_others =
            |worker: &Worker| worker.id.0 != self.graph.worker_or_failure[task as usize];
        class
            .zip(self.fleet.at(place))
            .is_some_and(|(class, worker)| {
                class.admits(worker)
                    && (is_running || worker.has_free(&class.requirement.resources))
                    && (of_others(worker) || !self.state(task).is_placed())
            })
    }
}
