//! What tasks of a graph say besides their body: which part of it they run, how many of their inputs
//! they read while they run, and what else the body is given.
//!
//! Owns these columns from the arrival of a chunk until the core forgets the graph: nothing for a
//! graph that says none of it.

use bytes::{Bytes, BytesMut};

/// What a chunk says of its tasks.
#[derive(Debug, Default)]
pub(crate) struct NewParts {
    tasks: usize,
    part: Vec<u32>,
    streamed_inputs: Vec<u32>,
    arguments: Vec<Bytes>,
}

impl NewParts {
    /// The columns of a chunk with so many tasks; each is empty or has an entry for every task.
    pub(crate) fn new(tasks: usize, part: Vec<u32>, streamed_inputs: Vec<u32>) -> Self {
        Self {
            tasks,
            part,
            streamed_inputs,
            arguments: Vec::new(),
        }
    }

    /// With what each task's body is given, copied out of the message, so that it does not keep all
    /// of that in memory.
    #[must_use]
    pub(crate) fn with_arguments(mut self, received: &[Bytes]) -> Self {
        let mut all = BytesMut::with_capacity(received.iter().map(Bytes::len).sum());
        for arguments in received {
            all.extend_from_slice(arguments);
        }
        let mut all = all.freeze();
        let cut = |arguments: &Bytes| all.split_to(arguments.len());
        self.arguments = received.iter().map(cut).collect();
        self
    }
}

/// The columns of a graph.
#[derive(Debug, Default)]
pub(crate) struct GraphParts {
    tasks: usize,
    part: Vec<u32>,
    streamed_inputs: Vec<u32>,
    arguments: Vec<Bytes>,
}

impl GraphParts {
    /// Appends what an accepted chunk says.
    pub(crate) fn append(&mut self, new: NewParts) {
        append(&mut self.part, self.tasks, new.part);
        append(&mut self.streamed_inputs, self.tasks, new.streamed_inputs);
        if !new.arguments.is_empty() {
            self.arguments.resize(self.tasks, Bytes::new());
            self.arguments.extend(new.arguments);
        }
        self.tasks += new.tasks;
    }

    /// How many tasks there are.
    pub(crate) fn tasks(&self) -> u32 {
        u32::try_from(self.tasks).unwrap_or(u32::MAX)
    }

    /// Which part of its body the task runs.
    pub(crate) fn part(&self, task: u32) -> u32 {
        self.part.get(task as usize).copied().unwrap_or(0)
    }

    /// What the task's body is given besides its inputs.
    pub(crate) fn arguments(&self, task: u32) -> Bytes {
        let known = self.arguments.get(task as usize);
        known.cloned().unwrap_or_default()
    }

    /// How many of its inputs, the first ones, the task reads while it runs.
    pub(crate) fn streamed_inputs(&self, task: u32) -> u32 {
        let known = self.streamed_inputs.get(task as usize);
        known.copied().unwrap_or(0)
    }
}

/// A column stays as short as its last entry that is not 0 allows.
fn append(column: &mut Vec<u32>, tasks_before: usize, new: Vec<u32>) {
    if new.iter().any(|entry| *entry != 0) {
        column.resize(tasks_before, 0);
        column.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_start_with_the_first_task_that_says_something() {
        let mut parts = GraphParts::default();
        parts.append(NewParts::new(2, Vec::new(), vec![0, 0]));
        assert_eq!(
            (parts.part.capacity(), parts.streamed_inputs.capacity()),
            (0, 0)
        );
        parts.append(NewParts::new(2, vec![0, 7], Vec::new()));
        parts.append(NewParts::new(1, Vec::new(), Vec::new()));
        parts.append(NewParts::new(1, vec![3], vec![2]));
        let parts_of = (0..8).map(|task| parts.part(task));
        assert_eq!(parts_of.collect::<Vec<_>>(), [0, 0, 0, 7, 0, 3, 0, 0]);
        let streamed = (0..7).map(|task| parts.streamed_inputs(task));
        assert_eq!(streamed.collect::<Vec<_>>(), [0, 0, 0, 0, 0, 2, 0]);
    }
}
