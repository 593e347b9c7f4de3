//! What scheduler and worker believe of each other, as two numbers that are cheap to compare.
//!
//! Both add up a hash of each attempt that the worker has and of each result that it holds, in any
//! order. When nothing is on its way and the sums differ, one of them is wrong, and the worker's
//! inventory settles it. Not a defence against anybody: the hash is fixed.
//!
//! Counted are attempts that wait or run and were not told to stop, and results that are kept, made
//! there or copied.

use crate::ids::{Attempt, TaskRef};

const HELD: u64 = 1;

/// What an attempt that a worker has does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum AttemptState {
    /// It waits.
    Queued = 2,
    /// It runs.
    Running = 3,
    /// It runs without its slots.
    Seceded = 4,
}

/// A sum of hashes and the number of things in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    /// The sum.
    pub sum: u64,
    /// The number.
    pub count: u64,
}

impl Digest {
    /// The worker holds a result.
    pub fn add_held(&mut self, task: TaskRef) {
        self.sum = self.sum.wrapping_add(hash(HELD, task));
        self.count += 1;
    }

    /// The worker no longer holds a result that was added.
    pub fn remove_held(&mut self, task: TaskRef) {
        self.sum = self.sum.wrapping_sub(hash(HELD, task));
        self.count = self.count.wrapping_sub(1);
    }

    /// The worker has an attempt.
    pub fn add_attempt(&mut self, task: TaskRef, attempt: Attempt, state: AttemptState) {
        let number = u64::from(attempt.epoch) << 32 | u64::from(attempt.number);
        self.sum = self
            .sum
            .wrapping_add(mix(hash(state as u64, task).wrapping_add(number)));
        self.count += 1;
    }
}

fn hash(state: u64, task: TaskRef) -> u64 {
    let place = u64::from(task.graph.0) << 32 | u64::from(task.task.0);
    mix(mix(state).wrapping_add(place))
}

/// Spreads a number over all bits (the finisher of splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::AttemptState::{Queued, Running, Seceded};
    use super::*;
    use crate::ids::{GraphId, TaskIndex};

    fn task(graph: u32, task: u32) -> TaskRef {
        TaskRef {
            graph: GraphId(graph),
            task: TaskIndex(task),
        }
    }

    fn attempt(number: u32) -> Attempt {
        Attempt { epoch: 1, number }
    }

    #[test]
    fn the_order_does_not_matter_and_what_is_removed_leaves_nothing() {
        let (mut one, mut other) = (Digest::default(), Digest::default());
        one.add_held(task(1, 2));
        one.add_attempt(task(1, 3), attempt(1), Running);
        other.add_held(task(7, 7));
        other.add_attempt(task(1, 3), attempt(1), Running);
        other.add_held(task(1, 2));
        assert_ne!(one, other);
        other.remove_held(task(7, 7));
        assert_eq!(one, other);
    }

    #[test]
    fn every_part_of_a_thing_counts() {
        let of = |task, number, state| {
            let mut digest = Digest::default();
            digest.add_attempt(task, attempt(number), state);
            digest.sum
        };
        let held = |task| {
            let mut digest = Digest::default();
            digest.add_held(task);
            digest.sum
        };
        let mut epoch = Digest::default();
        epoch.add_attempt(
            task(1, 2),
            Attempt {
                epoch: 2,
                number: 1,
            },
            Running,
        );
        let mut all = vec![
            of(task(1, 2), 1, Running),
            of(task(1, 2), 1, Queued),
            of(task(1, 2), 2, Running),
            of(task(2, 1), 1, Running),
            of(task(1, 3), 1, Running),
            of(task(1, 2), 1, Seceded),
            held(task(1, 2)),
            held(task(2, 1)),
            epoch.sum,
            0,
        ];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10);
    }
}
