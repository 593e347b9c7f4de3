//! What tasks of a graph say besides their body: which part of it they run, and how many of their
//! inputs they read while they run.
//!
//! Owns two columns from the arrival of a chunk until the core forgets the graph: nothing for a
//! graph that says neither, else 8 bytes a task.

/// What a chunk says of its tasks.
#[derive(Debug, Default)]
pub(crate) struct NewParts {
    tasks: usize,
    part: Vec<u32>,
    streamed_inputs: Vec<u32>,
}

impl NewParts {
    /// The columns of a chunk with so many tasks; each is empty or has an entry for every task.
    pub(crate) fn new(tasks: usize, part: Vec<u32>, streamed_inputs: Vec<u32>) -> Self {
        Self {
            tasks,
            part,
            streamed_inputs,
        }
    }
}

/// The columns of a graph.
#[derive(Debug, Default)]
pub(crate) struct GraphParts {
    tasks: usize,
    part: Vec<u32>,
    streamed_inputs: Vec<u32>,
}

impl GraphParts {
    /// Appends what an accepted chunk says.
    pub(crate) fn append(&mut self, new: NewParts) {
        append(&mut self.part, self.tasks, new.part);
        append(&mut self.streamed_inputs, self.tasks, new.streamed_inputs);
        self.tasks += new.tasks;
    }

    /// Which part of its body the task runs.
    pub(crate) fn part(&self, task: u32) -> u32 {
        self.part.get(task as usize).copied().unwrap_or(0)
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
