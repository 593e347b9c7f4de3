//! Deaths of workers that tasks ran on.
//!
//! Owns the rule how many a task may see: only those of workers that ran it count, also if it runs
//! elsewhere by then. No retry is used up.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::effect::Effect;
use crate::scope::Scope;

impl Scope<'_> {
    /// The worker that ran the task has died: again, unless too many did.
    pub(crate) fn crashed(&mut self, task: u32, worker: &str, reason: &str) {
        if !self.blame(task) {
            self.fail_crashed(task, worker, reason);
            return;
        }
        self.requeue(task);
        if let Some(client) = self.graph.client {
            let task = self.graph.task_ref(task);
            self.effects.push(Effect::TaskRescheduled { client, task });
        }
    }

    /// The worker on which the task ran when it was lost of sight has died. The task runs elsewhere
    /// since; it goes on unless too many died.
    pub(crate) fn crashed_before(&mut self, task: u32, worker: &str, reason: &str) {
        if !self.state(task).is_pending() || self.blame(task) {
            return;
        }
        if self.state(task).is_placed() {
            self.cancel(task);
        }
        self.fail_crashed(task, worker, reason);
    }

    /// Counts a death of a worker against the task; whether it may still go on.
    fn blame(&mut self, task: u32) -> bool {
        let at = task as usize;
        self.graph.crashes[at] = self.graph.crashes[at].saturating_add(1);
        u32::from(self.graph.crashes[at]) <= self.config.crash_limit
    }

    fn fail_crashed(&mut self, task: u32, worker: &str, reason: &str) {
        let count = self.graph.crashes[task as usize];
        let key = self.graph.key(task);
        let message = format!(
            "task `{key}` was running each of the {count} times that a worker died, the last was \
             `{worker}`"
        );
        let error = Diagnostic::new(Code::TaskKilledWorkers, message).with_cause(reason);
        self.fail(task, Arc::new(error));
    }
}
