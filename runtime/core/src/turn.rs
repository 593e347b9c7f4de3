//! In which order tasks of one graph and one priority run.
//!
//! Depth first, so that what has begun is finished before much more is begun and few results are
//! held at a time. Except for tasks on a way that is so long that the graph could not end in time
//! if they waited: while what is left would keep all slots busy for fewer tasks than such a way
//! has, the longest way goes first (the list scheduling of Graham's and Hu's, with one unit of time
//! a task).
//!
//! Invariant: while no task has inputs, nothing is kept.

use crate::chunk::GraphChunk;
use crate::column::grow;

/// Consecutive tasks without inputs that take their turn together: few enough that the results of
/// large graphs do not pile up, enough that slots do not run dry at the end of small ones.
const TURN_TASKS: u32 = 32;
/// Turns of tasks on long ways come before all others.
const LONG_WAYS_END: u32 = u16::MAX as u32 + 1;

/// What decides about the turns of a graph's tasks; one entry a task in each column.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The latest task without inputs that each task needs, over [`TURN_TASKS`].
    root: Vec<u32>,
    /// Tasks on the longest way from each to an end, itself included. Ways that lead on through a
    /// later chunk count up to its first task only.
    height: Vec<u16>,
}

impl Turns {
    /// Learns about the tasks of a chunk, the first of which has this number, and how much further
    /// the ways lead from those that they read.
    pub(crate) fn enter(&mut self, first: u32, chunk: &GraphChunk) {
        if chunk.inputs.is_empty() && self.root.is_empty() {
            return;
        }
        let end = first.saturating_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        let missing = (end as usize).saturating_sub(self.root.len());
        grow(&mut self.root, missing);
        grow(&mut self.height, missing);
        let known = u32::try_from(self.root.len()).unwrap_or(u32::MAX);
        self.root.extend((known..end).map(|task| task / TURN_TASKS));
        self.height.resize(end as usize, 1);
        let mut inputs = chunk.inputs.as_slice();
        for (at, count) in (first as usize..).zip(&chunk.input_counts) {
            let (own, others) = inputs.split_at((*count as usize).min(inputs.len()));
            inputs = others;
            let latest = own.iter().map(|input| self.root[input.0 as usize]).max();
            self.root[at] = latest.unwrap_or(self.root[at]);
        }
        let mut inputs = chunk.inputs.as_slice();
        for (at, count) in chunk.input_counts.iter().enumerate().rev() {
            let (others, own) = inputs.split_at(inputs.len().saturating_sub(*count as usize));
            inputs = others;
            let height = self.height[first as usize + at].saturating_add(1);
            for input in own {
                let before = &mut self.height[input.0 as usize];
                *before = height.max(*before);
            }
        }
    }

    /// When it is the task's turn: smaller first, of equals the first to arrive. `left` tasks of the
    /// graph have not finished; there are `slots` for them.
    pub(crate) fn of(&self, task: u32, left: u64, slots: u64) -> u32 {
        let at = task as usize;
        let (Some(root), Some(height)) = (self.root.get(at), self.height.get(at)) else {
            return LONG_WAYS_END + task / TURN_TASKS;
        };
        if u64::from(*height) * slots >= left {
            return u32::from(u16::MAX - height);
        }
        LONG_WAYS_END.saturating_add(*root)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use crate::ids::TaskIndex;

    use super::*;

    /// Takes in the tasks of a chunk that read these.
    fn send(turns: &mut Turns, first: u32, tasks: &[Vec<u32>]) {
        let indices = |inputs: &Vec<u32>| inputs.iter().copied().map(TaskIndex).collect();
        let inputs: Vec<Vec<TaskIndex>> = tasks.iter().map(indices).collect();
        let chunk = GraphChunk {
            key_lengths: vec![0; tasks.len()],
            body: vec![0; tasks.len()],
            group: vec![0; tasks.len()],
            input_counts: tasks
                .iter()
                .map(|inputs| u32::try_from(inputs.len()).unwrap())
                .collect(),
            inputs: inputs.concat(),
            ..GraphChunk::default()
        };
        turns.enter(first, &chunk);
    }

    /// `chains` chains of `length` tasks, side by side.
    fn chains(chains: u32, length: u32) -> Turns {
        let mut turns = Turns::default();
        let tasks = 0..chains * length;
        let tasks: Vec<Vec<u32>> = tasks
            .map(|task| task.checked_sub(chains).into_iter().collect())
            .collect();
        send(&mut turns, 0, &tasks);
        turns
    }

    #[test]
    fn what_has_begun_goes_before_what_has_not() {
        let turns = chains(64, 3);
        let turn = |task| turns.of(task, 192, 8);
        assert!(
            turn(64) < turn(32),
            "the second of chain 0, and the first of chain 32"
        );
        assert_eq!(turn(64), turn(0), "as they arrive");
    }

    #[test]
    fn the_longest_way_goes_first_once_slots_would_wait_for_it() {
        let turns = chains(4, 10);
        assert!(
            turns.of(3, 40, 8) < turns.of(4, 40, 8),
            "of 10 and of 9 tasks"
        );
        assert!(
            turns.of(3, 40, 2) >= LONG_WAYS_END,
            "2 slots have enough to do"
        );
    }

    #[test]
    fn tasks_without_inputs_cost_nothing_and_go_in_order() {
        let mut turns = Turns::default();
        send(&mut turns, 0, &vec![Vec::new(); 100]);
        assert!(turns.root.is_empty() && turns.height.is_empty());
        assert!(turns.of(0, 100, 8) < turns.of(99, 100, 8));
        send(&mut turns, 100, &[vec![70]]);
        assert_eq!(turns.of(100, 101, 8), turns.of(70, 101, 8));
    }
}
