//! The states of a task and the one table of legal changes between them.
//!
//! ```text
//! Waiting ─> Ready ─> Assigned ─> Running ─> Finished ─> Released
//!    ^         │         │  └> Retracting ┘       │          │
//!    └─────────┴─────────┴───────┴────────────────┴──────────┘   lost, given back, needed again
//! ```
//!
//! In an open-ended graph every pending task becomes `Released` when nobody needs it any more.
//! A worker that comes back may bring the result of any pending task, which is finished by that.
//! Every state that is not done may become `Failed`, which is final. A task that no present worker
//! can run is `Ready`; it is parked as long as its class of requirement has no eligible worker.
//! Every change goes through [`Graph::change`], which keeps the counters of the task's group.

use std::fmt;

use crate::graph::{Graph, special_key};

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TaskState {
    /// Some input is not in memory.
    Waiting,
    /// All inputs are in memory; in the ready queue of its class.
    Ready,
    /// Handed to a worker, not known to run.
    Assigned,
    /// Handed to a worker and asked back; it may still start there.
    Retracting,
    /// The worker said that it runs.
    Running,
    /// The result is in the memory of at least one worker.
    Finished,
    /// Nobody needs the result and nobody holds it; in an open-ended graph there may never have been
    /// one.
    Released,
    /// Failed for good, or one of its inputs did.
    Failed,
}

use TaskState::{Assigned, Failed, Finished, Ready, Released, Retracting, Running, Waiting};

impl TaskState {
    /// Number of states.
    pub(crate) const COUNT: usize = 8;
    /// All states, in order.
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Waiting, Ready, Assigned, Retracting, Running, Finished, Released, Failed,
    ];

    /// Position in [`Self::ALL`].
    pub(crate) fn number(self) -> usize {
        self as usize
    }

    /// Neither done nor failed: the task still needs its inputs.
    pub fn is_pending(self) -> bool {
        self <= Running
    }

    /// On a worker.
    pub fn is_placed(self) -> bool {
        matches!(self, Assigned | Retracting | Running)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waiting => "waiting",
            Ready => "ready",
            Assigned => "assigned",
            Retracting => "retracting",
            Running => "running",
            Finished => "finished",
            Released => "released",
            Failed => "failed",
        })
    }
}

/// For each state the states that may follow, one bit each.
const FOLLOWERS: [u8; TaskState::COUNT] = [
    set(&[Ready, Finished, Released, Failed]),
    set(&[Waiting, Assigned, Finished, Released, Failed]),
    set(&[Waiting, Retracting, Running, Finished, Released, Failed]),
    set(&[Waiting, Running, Finished, Released, Failed]),
    set(&[Waiting, Finished, Released, Failed]),
    set(&[Waiting, Released]),
    set(&[Waiting]),
    set(&[]),
];

const fn set(states: &[TaskState]) -> u8 {
    let mut bits = 0;
    let mut i = 0;
    while i < states.len() {
        bits |= 1 << states[i] as u8;
        i += 1;
    }
    bits
}

/// Whether a task may go from one state to the other.
pub(crate) fn is_legal(from: TaskState, to: TaskState) -> bool {
    FOLLOWERS[from.number()] & (1 << to.number()) != 0
}

impl Graph {
    /// Changes the state of a task and the counters of its group; returns the state before.
    pub(crate) fn change(&mut self, task: u32, to: TaskState) -> TaskState {
        let at = task as usize;
        let from = self.state[at];
        debug_assert!(is_legal(from, to), "task {task}: {from:?} -> {to:?}");
        self.state[at] = to;
        let counts = &mut self.groups[self.group[at] as usize].counts;
        counts[from.number()] -= 1;
        counts[to.number()] += 1;
        if self.requirement[at] != 0 {
            self.change_special(at, from, to);
        }
        from
    }

    /// Counts tasks that ask for something special by requirement too.
    fn change_special(&mut self, at: usize, from: TaskState, to: TaskState) {
        let key = special_key(self.group[at], self.requirement[at]);
        let counts = self.special.entry(key).or_default();
        counts[from.number()] -= 1;
        counts[to.number()] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_is_final_and_only_waiting_tasks_become_ready() {
        for from in TaskState::ALL {
            assert!(!is_legal(Failed, from));
            assert!(!is_legal(from, from));
            assert_eq!(is_legal(from, Ready), from == Waiting);
            assert_eq!(is_legal(from, Assigned), from == Ready);
            assert_eq!(is_legal(from, Failed), from.is_pending());
            assert_eq!(is_legal(from, Finished), from.is_pending());
            assert_eq!(
                is_legal(from, Released),
                from.is_pending() || from == Finished
            );
        }
    }
}
