//! What becomes of each statement of a SQL text, and of a graph, until it is printed.
//!
//! Owns the order: statements are submitted when all that they wait for is computed, results are
//! printed in the order of the statements. Pure: submits, fetches and prints nothing.
//!
//! Invariant: everything before `front` is printed; a graph is a single entry.

use std::borrow::Cow;

use oxidask_client::PlannedGraph;
use oxidask_exec_frame::script::GraphTask;
use oxidask_store::Payload;

/// The outputs of a graph, which are one result, or one each.
#[derive(Debug)]
pub(super) struct Outputs<'a> {
    /// The graph.
    pub(super) graph: usize,
    /// Its tasks.
    pub(super) tasks: Cow<'a, [u32]>,
    /// Position of the next one to fetch.
    pub(super) next: usize,
}

impl<'a> Outputs<'a> {
    pub(super) fn new(graph: usize, tasks: impl Into<Cow<'a, [u32]>>) -> Self {
        Self {
            graph,
            tasks: tasks.into(),
            next: 0,
        }
    }
}

/// Where a statement is.
#[derive(Debug)]
pub(super) enum State<'a> {
    /// It waits for others.
    Waiting,
    /// It is about to be submitted.
    Submitted,
    /// A task of this graph.
    Planned { graph: usize, task: u32 },
    /// Its result has come before its turn.
    Held(Payload),
    /// It became a graph of its own, of so many bytes, which is not submitted yet.
    Staged(Box<PlannedGraph>, u64),
    /// The outputs of a graph are its result.
    Running(Outputs<'a>),
    /// Over, or given up.
    Printed,
}

struct Entry<'a> {
    state: State<'a>,
    is_computed: bool,
    /// Entries that it waits for.
    waits: usize,
    followers: Vec<usize>,
}

/// All results of a job.
pub(super) struct Results<'a> {
    entries: Vec<Entry<'a>>,
    front: usize,
    /// Entries that wait for nothing any more.
    unblocked: Vec<usize>,
}

impl<'a> Results<'a> {
    /// Of a graph, which is submitted already.
    pub(super) fn of_graph(outputs: &'a [u32]) -> Self {
        let entry = Entry {
            state: State::Running(Outputs::new(0, outputs)),
            is_computed: false,
            waits: 0,
            followers: Vec::new(),
        };
        Self {
            entries: vec![entry],
            front: 0,
            unblocked: Vec::new(),
        }
    }

    /// Of a SQL text, nothing of which is submitted yet.
    pub(super) fn of_script(tasks: &[GraphTask]) -> Self {
        let entry = |task: &GraphTask| Entry {
            state: State::Waiting,
            is_computed: false,
            waits: task.inputs.len(),
            followers: Vec::new(),
        };
        let mut entries: Vec<Entry<'a>> = tasks.iter().map(entry).collect();
        let mut unblocked = Vec::new();
        for (number, task) in tasks.iter().enumerate() {
            for input in &task.inputs {
                entries[*input].followers.push(number);
            }
            if task.inputs.is_empty() {
                unblocked.push(number);
            }
        }
        Self {
            entries,
            front: 0,
            unblocked,
        }
    }

    /// The entries that can be submitted now, each once.
    pub(super) fn next_wave(&mut self) -> Vec<usize> {
        let mut wave = std::mem::take(&mut self.unblocked);
        wave.sort_unstable();
        for number in &wave {
            self.set(*number, State::Submitted);
        }
        wave
    }

    /// The first entry that is not printed.
    pub(super) fn front(&self) -> Option<usize> {
        (self.front < self.entries.len()).then_some(self.front)
    }

    pub(super) fn state(&self, number: usize) -> Option<&State<'a>> {
        self.entries.get(number).map(|entry| &entry.state)
    }

    pub(super) fn state_mut(&mut self, number: usize) -> Option<&mut State<'a>> {
        self.entries.get_mut(number).map(|entry| &mut entry.state)
    }

    pub(super) fn set(&mut self, number: usize, state: State<'a>) {
        if let Some(entry) = self.entries.get_mut(number) {
            entry.state = state;
        }
        self.skip_printed();
    }

    /// Takes the state of an entry that is over with that.
    pub(super) fn finish(&mut self, number: usize) -> Option<State<'a>> {
        let entry = self.entries.get_mut(number)?;
        let state = std::mem::replace(&mut entry.state, State::Printed);
        self.skip_printed();
        Some(state)
    }

    /// The entry's result is there, somewhere: what waits for it may go on.
    pub(super) fn computed(&mut self, number: usize) {
        let Some(entry) = self
            .entries
            .get_mut(number)
            .filter(|entry| !entry.is_computed)
        else {
            return;
        };
        entry.is_computed = true;
        for follower in std::mem::take(&mut entry.followers) {
            let follower_entry = &mut self.entries[follower];
            follower_entry.waits -= 1;
            if follower_entry.waits == 0 {
                self.unblocked.push(follower);
            }
        }
    }

    /// Nothing more is printed.
    pub(super) fn give_up(&mut self) {
        for entry in &mut self.entries[self.front..] {
            entry.state = State::Printed;
        }
        self.skip_printed();
    }

    fn skip_printed(&mut self) {
        while let Some(State::Printed) = self.state(self.front) {
            self.front += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxidask_exec::Body;

    fn task(inputs: &[usize]) -> GraphTask {
        GraphTask {
            key: "query-1".to_owned(),
            body: Body::new("statement"),
            inputs: inputs.to_vec(),
            is_table: true,
            statement: 1,
        }
    }

    #[test]
    fn a_wave_is_what_waits_for_nothing_any_more() {
        // Two queries, a write after them, a query after that.
        let tasks = [task(&[]), task(&[]), task(&[0, 1]), task(&[2])];
        let mut results = Results::of_script(&tasks);
        assert_eq!(results.next_wave(), [0, 1]);
        assert!(results.next_wave().is_empty(), "each is submitted once");
        results.computed(1);
        results.computed(1);
        assert!(results.next_wave().is_empty());
        results.computed(0);
        assert_eq!(results.next_wave(), [2]);
        results.computed(2);
        assert_eq!(results.next_wave(), [3]);
    }

    #[test]
    fn the_front_follows_the_order_of_the_statements() {
        let tasks = [task(&[]), task(&[]), task(&[])];
        let mut results = Results::of_script(&tasks);
        results.set(1, State::Printed);
        assert_eq!(results.front(), Some(0));
        assert!(matches!(results.finish(0), Some(State::Waiting)));
        assert_eq!(results.front(), Some(2));
        results.give_up();
        assert_eq!(results.front(), None);
    }
}
