//! Ready tasks by class: tasks that ask for the same of a worker share a queue and a list of the
//! workers that can run them.
//!
//! Invariants: every ready task is in the queue of its class at least once; other entries are
//! stale and dropped when they come up. `eligible` names exactly the present workers that could
//! run the class and take new work.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::chunk::Requirement;
use crate::fleet::{Fleet, Worker};
use crate::ids::GraphId;

/// A task with its turn within its graph: see `Graph::turn`.
type Turn = (u32, u32);

/// The order in which tasks are placed: larger priority, older graph, earlier turn, earlier task.
pub(crate) type Rank = (Reverse<i32>, GraphId, Turn);

/// Sorted runs that are kept of the tasks of one priority and graph.
const RUNS: usize = 4;

/// Tasks of one priority and graph. Tasks mostly become ready in a few interleaved orders, which
/// costs no sorting: each is a run; what fits into none goes to a heap.
#[derive(Debug, Default)]
struct Bucket {
    runs: [Run; RUNS],
    late: BinaryHeap<Reverse<Turn>>,
    /// Tasks that are not in the first run.
    others: usize,
}

/// Tasks in order. Neighbours of the same turn, as tasks without inputs mostly are, are one entry.
#[derive(Debug, Default)]
struct Run(VecDeque<Neighbours>);

#[derive(Debug, Clone, Copy)]
struct Neighbours {
    turn: u32,
    first: u32,
    count: u32,
}

impl Run {
    /// Takes the task if it comes after all others.
    fn push(&mut self, (turn, task): Turn) -> bool {
        let Some(last) = self.0.back_mut() else {
            self.start((turn, task));
            return true;
        };
        let next = last.first.saturating_add(last.count);
        if last.turn == turn && next == task {
            last.count += 1;
            return true;
        }
        let is_later = (last.turn, next) <= (turn, task);
        if is_later {
            self.start((turn, task));
        }
        is_later
    }

    fn start(&mut self, (turn, first): Turn) {
        let count = 1;
        self.0.push_back(Neighbours { turn, first, count });
    }

    fn first(&self) -> Option<Turn> {
        let first = self.0.front()?;
        Some((first.turn, first.first))
    }

    fn pop(&mut self) {
        if let Some(front) = self.0.front_mut() {
            if front.count > 1 {
                front.first += 1;
                front.count -= 1;
            } else {
                self.0.pop_front();
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let tasks = |entry: &Neighbours| entry.first..entry.first + entry.count;
        self.0.iter().flat_map(tasks)
    }
}

impl Bucket {
    fn push(&mut self, task: Turn) {
        let [main, others @ ..] = &mut self.runs;
        if main.push(task) {
            return;
        }
        self.others += 1;
        if !others.iter_mut().any(|run| run.push(task)) {
            self.late.push(Reverse(task));
        }
    }

    /// The first task, and its run; the heap is the one after the last.
    fn first(&self) -> Option<(Turn, usize)> {
        let late = self.late.peek().map(|Reverse(task)| (*task, RUNS));
        let fronts = self.runs.iter().zip(0..);
        fronts
            .filter_map(|(run, at)| Some((run.first()?, at)))
            .chain(late)
            .min()
    }

    fn peek(&self) -> Option<Turn> {
        if self.others == 0 {
            return self.runs[0].first();
        }
        self.first().map(|(task, _)| task)
    }

    fn pop(&mut self) {
        let at = match self.others {
            0 => 0,
            _ => self.first().map_or(0, |(_, at)| at),
        };
        self.others -= usize::from(at > 0);
        if at < RUNS {
            self.runs[at].pop();
        } else {
            self.late.pop();
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let late = self.late.iter().map(|Reverse((_, task))| *task);
        self.runs.iter().flat_map(Run::iter).chain(late)
    }
}

/// Tasks in the order of their [`Rank`].
#[derive(Debug, Default)]
pub(crate) struct ReadyQueue {
    buckets: BTreeMap<(Reverse<i32>, GraphId), Bucket>,
}

impl ReadyQueue {
    pub(crate) fn push(&mut self, (priority, graph, task): Rank) {
        self.buckets
            .entry((priority, graph))
            .or_default()
            .push(task);
    }

    /// The first task.
    pub(crate) fn peek(&mut self) -> Option<Rank> {
        while let Some(bucket) = self.buckets.first_entry() {
            if let Some(task) = bucket.get().peek() {
                let (priority, graph) = *bucket.key();
                return Some((priority, graph, task));
            }
            bucket.remove();
        }
        None
    }

    /// Drops the first task.
    pub(crate) fn pop(&mut self) {
        if let Some(mut bucket) = self.buckets.first_entry() {
            bucket.get_mut().pop();
        }
    }

    /// Drops all tasks of a graph.
    pub(crate) fn forget(&mut self, graph: GraphId) {
        self.buckets.retain(|(_, owner), _| *owner != graph);
    }

    /// All entries, in no particular order within a graph.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (GraphId, u32)> {
        self.buckets
            .iter()
            .flat_map(|((_, graph), bucket)| bucket.iter().map(|task| (*graph, task)))
    }
}

/// Tasks that ask for the same.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) requirement: Requirement,
    pub(crate) queue: ReadyQueue,
    /// Tasks in state `Ready`.
    pub(crate) ready: u64,
    /// Places of the workers that can run it.
    pub(crate) eligible: Vec<u32>,
    /// Workers by load, as far as known; rebuilt for each placement.
    pub(crate) loads: BinaryHeap<Reverse<(u64, u32)>>,
    pub(crate) is_loads_built: bool,
    /// Requirements of graphs that refer to it.
    users: usize,
}

impl Class {
    /// Whether the worker could ever run a task of this class.
    pub(crate) fn admits(&self, worker: &Worker) -> bool {
        let names = &self.requirement.workers;
        let is_named = names.is_empty()
            || names
                .iter()
                .any(|name| *name == worker.name || *name == worker.group);
        is_named && worker.offers_all(&self.requirement.resources)
    }

    /// Whether any worker will do.
    pub(crate) fn is_free(&self) -> bool {
        self.requirement.workers.is_empty() && self.requirement.resources.is_empty()
    }
}

/// All classes in use.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    all: Vec<Option<Class>>,
    free: Vec<u32>,
    by_requirement: BTreeMap<Requirement, u32>,
}

impl Classes {
    /// The class of a requirement, made if there is none; counts one more user.
    pub(crate) fn enter(&mut self, requirement: &Requirement, fleet: &Fleet) -> u32 {
        if let Some(index) = self.by_requirement.get(requirement).copied() {
            if let Some(class) = self.get_mut(index) {
                class.users += 1;
            }
            return index;
        }
        let mut class = Class {
            requirement: requirement.clone(),
            queue: ReadyQueue::default(),
            ready: 0,
            eligible: Vec::new(),
            loads: BinaryHeap::new(),
            is_loads_built: false,
            users: 1,
        };
        class.eligible = fleet
            .iter()
            .filter(|(_, worker)| worker.is_open && class.admits(worker))
            .map(|(place, _)| place)
            .collect();
        let index = if let Some(index) = self.free.pop() {
            self.all[index as usize] = Some(class);
            index
        } else {
            self.all.push(Some(class));
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_requirement.insert(requirement.clone(), index);
        index
    }

    /// One user of the class, a graph, is gone with its tasks.
    pub(crate) fn leave(&mut self, index: u32, graph: GraphId) {
        let Some(class) = self.get_mut(index) else {
            return;
        };
        class.users -= 1;
        class.queue.forget(graph);
        if class.users > 0 {
            return;
        }
        if let Some(class) = self.all[index as usize].take() {
            self.by_requirement.remove(&class.requirement);
            self.free.push(index);
        }
    }

    /// Number of places of classes, used or not.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Class> {
        self.all.get(index as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Class> {
        self.all.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Class)> {
        (0..)
            .zip(&self.all)
            .filter_map(|(index, class)| Some((index, class.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Class)> {
        (0..)
            .zip(&mut self.all)
            .filter_map(|(index, class)| Some((index, class.as_mut()?)))
    }

    /// A worker is there, or takes new work again, or no more.
    pub(crate) fn worker_changed(&mut self, place: u32, worker: &Worker) {
        self.worker_lost(place);
        for (_, class) in self.iter_mut() {
            if worker.is_open && class.admits(worker) {
                class.eligible.push(place);
            }
        }
    }

    /// A worker is gone.
    pub(crate) fn worker_lost(&mut self, place: u32) {
        for (_, class) in self.iter_mut() {
            class.eligible.retain(|eligible| *eligible != place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_by_priority_then_graph_then_index_whatever_the_order_of_arrival() {
        let mut queue = ReadyQueue::default();
        for (priority, graph, task) in [
            (0, 2, 5),
            (0, 1, 9),
            (0, 1, 3),
            (7, 2, 8),
            (0, 1, 4),
            (7, 2, 1),
            (-1, 1, 0),
        ] {
            queue.push((Reverse(priority), GraphId(graph), (task, task)));
        }
        let mut order = Vec::new();
        while let Some((Reverse(priority), graph, (_, task))) = queue.peek() {
            queue.pop();
            order.push((priority, graph.0, task));
        }
        assert_eq!(
            order,
            [
                (7, 2, 1),
                (7, 2, 8),
                (0, 1, 3),
                (0, 1, 4),
                (0, 1, 9),
                (0, 2, 5),
                (-1, 1, 0)
            ]
        );
    }
}
