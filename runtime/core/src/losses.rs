//! Inputs that an attempt could not read from living workers, before it ran or while it did.
//!
//! Owns the rule how often that may happen. A lost input is made again and its reader runs again;
//! nobody is blamed and no retry is used up.
//!
//! Invariant: repetitions are bounded although the loss of many inputs may show one by one. A
//! result may be reported as lost `fetch_limit` times, and as many attempts may fail without news.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::effect::Effect;
use crate::ids::{TaskIndex, WorkerId};
use crate::scope::Scope;
use crate::transitions::TaskState;

impl Scope<'_> {
    /// Inputs of an attempt were not delivered by these workers, whether it had started or not. It
    /// runs again once they are there: this is no fault of the task.
    ///
    /// What counts against it are attempts that bring no news: everything named was there, or is
    /// lost each time it is made again.
    pub(crate) fn inputs_lost(&mut self, task: u32, lost: Vec<(TaskIndex, WorkerId)>) {
        let finishes_before = self.finishes_before(task);
        let mut is_news = false;
        for (input, holder) in lost {
            let is_outdated = self.graph.was_remade_since(input.0, finishes_before);
            // What was made again since is another result, which its holder may well have. The
            // holder of a lost one may have it but not answer: it must not keep it uncounted.
            let is_dropped = !is_outdated && self.lose_reported(input.0, holder);
            // Somebody who is not heard may come back with it: the task waits for that.
            let is_gone =
                self.state(input.0) != TaskState::Finished || self.graph.is_stranded(input.0);
            let is_hopeless = self.graph.loss_count(input.0) > self.config.fetch_limit;
            is_news |= (is_outdated || is_dropped || is_gone) && !is_hopeless;
        }
        if is_news {
            self.requeue(task);
        } else {
            self.fetch_failed(task);
        }
    }

    /// Somebody could not read a result from a worker that is there; false if it did not hold it,
    /// or if all who hold it are suspect: one of them may still come back with it.
    pub(crate) fn lose_reported(&mut self, task: u32, holder: WorkerId) -> bool {
        if self.graph.is_stranded(task) {
            return false;
        }
        let is_dropped = self.lose(task, holder);
        if is_dropped {
            self.graph.note_loss(task);
            self.effects.push(Effect::Release {
                worker: holder,
                task: self.graph.task_ref(task),
            });
        }
        is_dropped
    }

    /// How many tasks of the graph had finished when a placed task was handed over.
    fn finishes_before(&self, task: u32) -> u64 {
        let at = task as usize;
        let worker = WorkerId(self.graph.worker_or_failure[at]);
        let worker = self
            .fleet
            .place_of(worker)
            .and_then(|place| self.fleet.at(place));
        let entry = worker.and_then(|worker| worker.entry(self.graph.entry[at]));
        entry.map_or(0, |entry| entry.finishes_before)
    }

    /// Inputs of an attempt could not be fetched: again, unless this happens all the time.
    fn fetch_failed(&mut self, task: u32) {
        let at = task as usize;
        self.graph.fetch_failures[at] = self.graph.fetch_failures[at].saturating_add(1);
        let count = u32::from(self.graph.fetch_failures[at]);
        if count <= self.config.fetch_limit {
            self.requeue(task);
            return;
        }
        let key = self.graph.key(task);
        let message = format!("inputs of task `{key}` could not be fetched {count} times");
        self.fail(
            task,
            Arc::new(Diagnostic::new(Code::ResultUnavailable, message)),
        );
    }
}
