//! Which attempt of a task counts.
//!
//! Mostly the one that was handed out last. A worker that comes back may still be at an earlier one,
//! or at one of an earlier epoch: such attempts are kept by task while the task is placed, which
//! costs nothing as long as there are none.

use crate::graph::Graph;
use crate::ids::Attempt;

impl Graph {
    /// The attempt that the task is at, or was at last.
    pub(crate) fn current_attempt(&self, task: u32, epoch: u32) -> Attempt {
        if !self.foreign.is_empty()
            && let Some(attempt) = self.foreign.get(&task)
        {
            return *attempt;
        }
        Attempt {
            epoch,
            number: self.attempt[task as usize],
        }
    }

    /// The task is at this attempt, whatever was handed out last.
    pub(crate) fn set_attempt(&mut self, task: u32, attempt: Attempt, epoch: u32) {
        let handed_out = self.attempt[task as usize];
        if attempt.epoch != epoch || attempt.number != handed_out {
            self.foreign.insert(task, attempt);
        }
    }

    /// The task is on no worker any more.
    pub(crate) fn clear_attempt(&mut self, task: u32) {
        if !self.foreign.is_empty() {
            self.foreign.remove(&task);
        }
    }

    /// The tasks that are at another attempt than the one that was handed out last.
    pub(crate) fn foreign_attempts(&self) -> impl Iterator<Item = u32> {
        self.foreign.keys().copied()
    }
}
