//! The order in which the tasks of a graph should run, so that few results are held at a time.
//!
//! Depth first from the tasks that nothing needs: a task's inputs run just before it, those first
//! whose own making holds most, and whatever has become possible meanwhile and frees its inputs runs
//! at once. Pure and without recursion, so a chain of millions is nothing special.

/// The tasks need each other in a circle, or an input does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CycleError {
    /// Some tasks wait for themselves.
    #[error("tasks of the graph need each other in a circle")]
    Cycle,
    /// The columns do not fit together.
    #[error("the inputs of the graph's tasks do not fit together")]
    Columns,
}

/// Rows of numbers in one column.
struct Rows {
    ends: Vec<usize>,
    values: Vec<u32>,
}

impl Rows {
    fn of(&self, row: u32) -> &[u32] {
        let row = row as usize;
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.values[start..self.ends[row]]
    }
}

/// For each task its place in the order, from 0. `input_counts` has an entry a task, `inputs` the
/// positions of their inputs one after the other.
pub fn order(input_counts: &[u32], inputs: &[u32]) -> Result<Vec<u32>, CycleError> {
    let count = u32::try_from(input_counts.len()).map_err(|_| CycleError::Columns)?;
    let inputs = rows(input_counts, inputs, count)?;
    let dependents = turned(&inputs, count);
    let sorted = sorted(&inputs, &dependents, count)?;
    let held = held(&inputs, &sorted, count);
    let mut walk = Walk {
        missing: (0..count).map(|task| inputs.of(task).len()).collect(),
        places: vec![u32::MAX; count as usize],
        placed: 0,
        inputs: &inputs,
        dependents: &dependents,
        held: &held,
        open: Vec::new(),
    };
    let ends = (0..count).filter(|task| dependents.of(*task).is_empty());
    for end in ends {
        walk.place_with_inputs(end);
    }
    Ok(walk.places)
}

fn rows(counts: &[u32], inputs: &[u32], count: u32) -> Result<Rows, CycleError> {
    let mut ends = Vec::with_capacity(counts.len());
    let mut end = 0_usize;
    for count in counts {
        end += *count as usize;
        ends.push(end);
    }
    if end != inputs.len() || inputs.iter().any(|input| *input >= count) {
        return Err(CycleError::Columns);
    }
    Ok(Rows {
        ends,
        values: inputs.to_vec(),
    })
}

/// Who needs each task.
fn turned(inputs: &Rows, count: u32) -> Rows {
    let mut ends = vec![0_usize; count as usize];
    for input in &inputs.values {
        ends[*input as usize] += 1;
    }
    let mut end = 0;
    for slot in &mut ends {
        end += *slot;
        *slot = end;
    }
    let mut next: Vec<usize> = ends.clone();
    let mut values = vec![0; inputs.values.len()];
    for task in (0..count).rev() {
        for input in inputs.of(task) {
            let slot = &mut next[*input as usize];
            *slot -= 1;
            values[*slot] = task;
        }
    }
    Rows { ends, values }
}

/// Some order in which inputs come first.
fn sorted(inputs: &Rows, dependents: &Rows, count: u32) -> Result<Vec<u32>, CycleError> {
    let mut missing: Vec<usize> = (0..count).map(|task| inputs.of(task).len()).collect();
    let mut sorted: Vec<u32> = (0..count)
        .filter(|task| missing[*task as usize] == 0)
        .collect();
    let mut looked_at = 0;
    while let Some(task) = sorted.get(looked_at).copied() {
        looked_at += 1;
        for dependent in dependents.of(task) {
            let missing = &mut missing[*dependent as usize];
            *missing -= 1;
            if *missing == 0 {
                sorted.push(*dependent);
            }
        }
    }
    if sorted.len() == count as usize {
        Ok(sorted)
    } else {
        Err(CycleError::Cycle)
    }
}

/// About how many results are held at a time while a task is being made from nothing, if all below
/// it is a tree.
fn held(inputs: &Rows, sorted: &[u32], count: u32) -> Vec<u32> {
    let mut held = vec![1_u32; count as usize];
    let mut below: Vec<u32> = Vec::new();
    for task in sorted {
        below.clear();
        below.extend(inputs.of(*task).iter().map(|input| held[*input as usize]));
        below.sort_unstable_by(|a, b| b.cmp(a));
        let most = (0..).zip(&below).map(|(before, held)| before + held).max();
        held[*task as usize] = most.unwrap_or(1).max(1);
    }
    held
}

struct Walk<'a> {
    inputs: &'a Rows,
    dependents: &'a Rows,
    held: &'a [u32],
    missing: Vec<usize>,
    places: Vec<u32>,
    placed: u32,
    /// Tasks to be placed, the next last.
    open: Vec<u32>,
}

impl Walk<'_> {
    fn place_with_inputs(&mut self, end: u32) {
        self.open.push(end);
        while let Some(task) = self.open.last().copied() {
            if self.is_placed(task) {
                self.open.pop();
                continue;
            }
            if self.missing[task as usize] == 0 {
                self.open.pop();
                self.place(task);
                continue;
            }
            let start = self.open.len();
            let inputs = self.inputs.of(task).iter().copied();
            let open: Vec<u32> = inputs.filter(|input| !self.is_placed(*input)).collect();
            self.open.extend(open);
            // The last is the next: the one that holds most, of equal ones the first.
            let held = self.held;
            self.open[start..].reverse();
            self.open[start..].sort_by_key(|input| held[*input as usize]);
        }
    }

    fn is_placed(&self, task: u32) -> bool {
        self.places[task as usize] != u32::MAX
    }

    fn place(&mut self, task: u32) {
        self.places[task as usize] = self.placed;
        self.placed += 1;
        let start = self.open.len();
        for dependent in self.dependents.of(task) {
            let missing = &mut self.missing[*dependent as usize];
            *missing -= 1;
            if *missing == 0 {
                self.open.push(*dependent);
            }
        }
        self.open[start..].reverse();
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests have small graphs")]
mod tests {
    use super::*;

    fn placed(graph: &[&[u32]]) -> Vec<u32> {
        let counts: Vec<u32> = graph.iter().map(|inputs| inputs.len() as u32).collect();
        let places = order(&counts, &graph.concat()).unwrap();
        for (task, inputs) in graph.iter().enumerate() {
            let is_behind = |input: &u32| places[*input as usize] < places[task];
            assert!(inputs.iter().all(is_behind), "{task} in {places:?}");
        }
        let mut tasks: Vec<u32> = (0..graph.len() as u32).collect();
        tasks.sort_by_key(|task| places[*task as usize]);
        tasks
    }

    #[test]
    fn a_tree_is_reduced_from_one_side() {
        // Four leaves, two sums, one sum.
        let graph: &[&[u32]] = &[&[], &[], &[], &[], &[0, 1], &[2, 3], &[4, 5]];
        assert_eq!(placed(graph), [0, 1, 4, 2, 3, 5, 6]);
    }

    #[test]
    fn what_frees_its_input_runs_at_once() {
        // Two loads, each cut in two; the pieces are joined crosswise.
        let graph: &[&[u32]] = &[&[], &[], &[0], &[0], &[1], &[1], &[2, 4], &[3, 5]];
        assert_eq!(placed(graph), [0, 2, 3, 1, 4, 6, 5, 7]);
    }

    #[test]
    fn what_holds_most_is_made_first() {
        // The second input of the last needs three results at a time, the first only itself.
        let graph: &[&[u32]] = &[&[], &[], &[], &[], &[1, 2, 3], &[0, 4]];
        assert_eq!(placed(graph), [1, 2, 3, 4, 0, 5]);
    }

    #[test]
    fn an_input_may_be_named_twice() {
        assert_eq!(placed(&[&[], &[0, 0], &[1, 0]]), [0, 1, 2]);
    }

    #[test]
    fn circles_and_nonsense_are_refused() {
        assert_eq!(order(&[1, 1], &[1, 0]), Err(CycleError::Cycle));
        assert_eq!(order(&[1], &[0]), Err(CycleError::Cycle));
        assert_eq!(order(&[1], &[7]), Err(CycleError::Columns));
        assert_eq!(order(&[2], &[0]), Err(CycleError::Columns));
        assert_eq!(order(&[], &[]), Ok(vec![]));
    }

    #[test]
    fn a_chain_of_a_million_is_nothing_special() {
        let count = 1_000_000_u32;
        let counts: Vec<u32> = (0..count).map(|task| u32::from(task + 1 < count)).collect();
        let inputs: Vec<u32> = (1..count).collect();
        let places = order(&counts, &inputs).unwrap();
        assert_eq!((places[0], places[999_999]), (999_999, 0));
    }
}
