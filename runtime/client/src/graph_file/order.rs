//! The order of tasks: each behind its inputs, otherwise as in the file.
//!
//! Pure and without recursion, so a chain of millions is nothing special.

use std::fmt::Write as _;

/// Tasks of a cycle that a message shows.
const CYCLE_SHOWN_MAX: usize = 12;

/// The inputs of all tasks, in columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) ends: &'a [usize],
    pub(super) tasks: &'a [u32],
}

impl<'a> Inputs<'a> {
    pub(super) fn of(self, task: u32) -> &'a [u32] {
        let task = task as usize;
        let start = if task == 0 { 0 } else { self.ends[task - 1] };
        &self.tasks[start..self.ends[task]]
    }

    fn count(self) -> u32 {
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

/// All tasks in order, or the tasks of a cycle, each of which reads the next, the last the first.
pub(super) fn sort(inputs: Inputs<'_>) -> Result<Vec<u32>, Vec<u32>> {
    let count = inputs.count();
    if (0..count).all(|task| inputs.of(task).iter().all(|input| *input < task)) {
        return Ok((0..count).collect());
    }
    let mut visits = vec![Visit::New; count as usize];
    let mut order = Vec::with_capacity(count as usize);
    // Tasks that wait for the one above them, with the number of inputs that were looked at.
    let mut open: Vec<(u32, usize)> = Vec::new();
    for root in 0..count {
        if visits[root as usize] != Visit::New {
            continue;
        }
        visits[root as usize] = Visit::Open;
        open.push((root, 0));
        while let Some((task, looked_at)) = open.last_mut() {
            let Some(input) = inputs.of(*task).get(*looked_at).copied() else {
                visits[*task as usize] = Visit::Done;
                order.push(*task);
                open.pop();
                continue;
            };
            *looked_at += 1;
            match visits[input as usize] {
                Visit::Done => {}
                Visit::New => {
                    visits[input as usize] = Visit::Open;
                    open.push((input, 0));
                }
                Visit::Open => {
                    let start = open
                        .iter()
                        .position(|(task, _)| *task == input)
                        .unwrap_or(0);
                    return Err(open[start..].iter().map(|(task, _)| *task).collect());
                }
            }
        }
    }
    Ok(order)
}

/// The tasks of an order that the outputs need.
pub(super) fn needed(mut order: Vec<u32>, inputs: Inputs<'_>, outputs: &[u32]) -> Vec<u32> {
    let mut is_needed = vec![false; inputs.count() as usize];
    for output in outputs {
        is_needed[*output as usize] = true;
    }
    for task in order.iter().rev() {
        if is_needed[*task as usize] {
            for input in inputs.of(*task) {
                is_needed[*input as usize] = true;
            }
        }
    }
    order.retain(|task| is_needed[*task as usize]);
    order
}

/// A cycle as a message shows it, closed, and cut in its middle if it is long.
pub(super) fn path_text(cycle: &[u32], key: impl Fn(u32) -> String) -> String {
    let left_out = cycle.len().saturating_sub(CYCLE_SHOWN_MAX);
    let mut text = String::new();
    for (position, task) in cycle.iter().chain(cycle.first()).enumerate() {
        if left_out > 0 && (CYCLE_SHOWN_MAX - 1..cycle.len() - 1).contains(&position) {
            if position == CYCLE_SHOWN_MAX - 1 {
                // Writing into a string cannot fail.
                let _ = write!(text, " -> … {left_out} more …");
            }
            continue;
        }
        if position > 0 {
            text.push_str(" -> ");
        }
        let _ = write!(text, "`{}`", key(*task));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Graph {
        ends: Vec<usize>,
        tasks: Vec<u32>,
    }

    impl Graph {
        fn new(inputs: &[&[u32]]) -> Self {
            let mut graph = Self {
                ends: vec![],
                tasks: vec![],
            };
            for inputs in inputs {
                graph.tasks.extend_from_slice(inputs);
                graph.ends.push(graph.tasks.len());
            }
            graph
        }

        fn inputs(&self) -> Inputs<'_> {
            Inputs {
                ends: &self.ends,
                tasks: &self.tasks,
            }
        }
    }

    #[test]
    fn keeps_an_order_that_is_one() {
        let graph = Graph::new(&[&[], &[], &[0, 1, 0], &[], &[2]]);
        assert_eq!(sort(graph.inputs()), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(sort(Graph::new(&[]).inputs()), Ok(vec![]));
    }

    #[test]
    fn puts_inputs_first_and_changes_no_more() {
        let graph = Graph::new(&[&[], &[4, 3, 4], &[0], &[], &[3]]);
        assert_eq!(sort(graph.inputs()), Ok(vec![0, 3, 4, 1, 2]));
    }

    #[test]
    fn finds_cycles() {
        assert_eq!(sort(Graph::new(&[&[0]]).inputs()), Err(vec![0]));
        let graph = Graph::new(&[&[1], &[2], &[3], &[1, 0]]);
        assert_eq!(sort(graph.inputs()), Err(vec![1, 2, 3]));
    }

    #[test]
    fn chains_of_a_million_are_nothing_special() {
        let count = 1_000_000_u32;
        let backwards = Graph {
            ends: (1..=count)
                .map(|task| (task.min(count - 1)) as usize)
                .collect(),
            tasks: (1..count).collect(),
        };
        let order = sort(backwards.inputs()).unwrap();
        assert_eq!((order[0], order[999_999]), (count - 1, 0));
        let cycle = Graph {
            ends: (1..=count as usize).collect(),
            tasks: (1..count).chain([0]).collect(),
        };
        assert_eq!(sort(cycle.inputs()).unwrap_err().len(), 1_000_000);
    }

    #[test]
    fn keeps_what_is_needed() {
        let graph = Graph::new(&[&[], &[0], &[0], &[2], &[]]);
        let order = sort(graph.inputs()).unwrap();
        assert_eq!(needed(order.clone(), graph.inputs(), &[3]), [0, 2, 3]);
        assert_eq!(needed(order.clone(), graph.inputs(), &[]), [] as [u32; 0]);
        assert_eq!(needed(order, graph.inputs(), &[4, 1]), [0, 1, 4]);
    }

    #[test]
    fn cuts_long_cycles_in_their_middle() {
        let text = |count: u32| path_text(&(0..count).collect::<Vec<_>>(), |task| task.to_string());
        assert_eq!(text(1), "`0` -> `0`");
        assert_eq!(text(2), "`0` -> `1` -> `0`");
        assert!(text(12).ends_with("`10` -> `11` -> `0`"));
        let long = text(1000);
        assert_eq!(
            long,
            "`0` -> `1` -> `2` -> `3` -> `4` -> `5` -> `6` -> `7` -> `8` -> `9` -> `10` \
             -> … 988 more … -> `999` -> `0`"
        );
    }
}
