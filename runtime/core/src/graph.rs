//! The tables of one graph: a column for each property of its tasks, one entry a task.
//!
//! About 45 bytes a task besides its key, 20 more where there are edges, and 12 bytes an edge; all of
//! it goes at once when the graph is closed. Edges are kept twice: as a flat list of each task's
//! inputs, and as linked lists of each task's consumers, because later chunks may consume earlier
//! tasks.
//! Never decides anything: the rules are in `scope`, `react` and `place`.

use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::chunk::GraphChunk;
use crate::column::{Column, grow};
use crate::group::Group;
use crate::ids::{
    Attempt, ClientId, GraphId, IdMap, IdSet, TaskIndex, TaskRef, Timestamp, WorkerId,
};
use crate::transitions::TaskState;
use crate::turn::Turns;

/// No entry, in columns of positions.
pub(crate) const NONE: u32 = u32::MAX;
/// Holders kept in the column itself.
const HOLDERS_INLINE: usize = 2;
/// In `holder_count`: the holders are in `holders_spilled`.
const SPILLED: u8 = u8::MAX;

/// A result that was reported as lost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Loss {
    /// How often.
    pub(crate) count: u32,
    /// How many tasks of the graph had finished when it was last made again; 0 before.
    remade_at: u64,
}

/// Why tasks failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Arc<Diagnostic>,
    /// The task that failed itself; [`NONE`] if the whole graph did.
    pub(crate) origin: u32,
}

/// One graph.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own, and most may hold with any other"
)]
pub(crate) struct Graph {
    pub(crate) id: GraphId,
    pub(crate) name: Arc<str>,
    pub(crate) client: Option<ClientId>,
    /// When the client went away; only meaningful without a client.
    pub(crate) orphaned_at: Timestamp,
    pub(crate) next_chunk: u32,
    pub(crate) bodies: u64,
    /// No task will follow: the last chunk was seen, or the graph was cancelled or refused.
    pub(crate) is_sealed: bool,
    /// What nobody needs goes at once, whatever may follow: see `needs`.
    pub(crate) is_open_ended: bool,
    /// Tasks of an open-ended graph that perhaps nobody needs any more; empty between events.
    pub(crate) doubtful: Vec<u32>,
    /// Why the graph was cancelled or refused: position in `failures`.
    pub(crate) ended: Option<u32>,
    /// `ended` because of a chunk that was refused.
    pub(crate) is_refused: bool,
    pub(crate) is_done_told: bool,
    /// Wanted tasks that are pending.
    pub(crate) wanted_pending: u32,
    pub(crate) groups: Vec<Group>,
    /// Tasks by state, for groups and requirements other than the default one: see `special_key`.
    pub(crate) special: IdMap<u32, [u32; TaskState::COUNT]>,
    /// Finished results whose holders are all suspect: their consumers wait.
    pub(crate) stranded: IdSet<u32>,
    /// Attempts that placed tasks are at, where it is not the one that was handed out last: of an
    /// earlier epoch, or one that came back while another was under way.
    pub(crate) foreign: IdMap<u32, Attempt>,
    /// The class of each requirement.
    pub(crate) classes: Vec<u32>,
    pub(crate) failures: Vec<Failure>,

    // Columns, one entry a task.
    pub(crate) state: Vec<TaskState>,
    pub(crate) is_wanted: Vec<bool>,
    /// Input edges whose task is not finished; counts only while the task is waiting, else 0.
    pub(crate) unfinished: Column<u32>,
    pub(crate) attempt: Vec<u32>,
    /// While placed: the worker. When failed: position in `failures`.
    pub(crate) worker_or_failure: Vec<u32>,
    /// While placed: position in the worker's table.
    pub(crate) entry: Vec<u32>,
    pub(crate) body: Vec<u32>,
    pub(crate) group: Vec<u16>,
    pub(crate) requirement: Column<u16>,
    pub(crate) priority: Column<i32>,
    turns: Turns,
    pub(crate) retries: Column<u32>,
    /// Workers that died while they ran the task.
    pub(crate) crashes: Column<u8>,
    /// Attempts whose inputs could not be fetched.
    pub(crate) fetch_failures: Column<u8>,
    pub(crate) bytes: Vec<u64>,
    /// Edges to consumers that are pending.
    pub(crate) consumers_left: Column<u32>,
    consumers_head: Column<u32>,
    holder_count: Vec<u8>,
    holders_inline: Vec<[WorkerId; HOLDERS_INLINE]>,
    holders_spilled: IdMap<u32, Vec<WorkerId>>,
    /// Results that somebody could not read although their holders live.
    losses: IdMap<u32, Loss>,
    /// Tasks that have finished, again and again.
    pub(crate) finishes: u64,
    keys: String,
    key_ends: Vec<u32>,
    /// Beyond its end: the number of edges.
    input_ends: Vec<u32>,

    // Columns, one entry an edge.
    inputs: Vec<TaskIndex>,
    edge_consumer: Vec<u32>,
    edge_next: Vec<u32>,
}

/// A task about to be appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewTask<'a> {
    pub(crate) key: &'a str,
    pub(crate) inputs: &'a [TaskIndex],
    pub(crate) body: u32,
    pub(crate) group: u16,
    pub(crate) requirement: u16,
    pub(crate) priority: i32,
    pub(crate) retries: u32,
}

impl Graph {
    pub(crate) fn new(id: GraphId, name: Arc<str>, client: ClientId, default_class: u32) -> Self {
        Self {
            id,
            name,
            client: Some(client),
            orphaned_at: Timestamp::default(),
            next_chunk: 0,
            bodies: 0,
            is_sealed: false,
            is_open_ended: false,
            doubtful: Vec::new(),
            ended: None,
            is_refused: false,
            is_done_told: false,
            wanted_pending: 0,
            groups: Vec::new(),
            special: IdMap::default(),
            stranded: IdSet::default(),
            foreign: IdMap::default(),
            classes: vec![default_class],
            failures: Vec::new(),
            state: Vec::new(),
            is_wanted: Vec::new(),
            unfinished: Column::new(0),
            attempt: Vec::new(),
            worker_or_failure: Vec::new(),
            entry: Vec::new(),
            body: Vec::new(),
            group: Vec::new(),
            requirement: Column::new(0),
            priority: Column::new(0),
            turns: Turns::default(),
            retries: Column::new(0),
            crashes: Column::new(0),
            fetch_failures: Column::new(0),
            bytes: Vec::new(),
            consumers_left: Column::new(0),
            consumers_head: Column::new(NONE),
            holder_count: Vec::new(),
            holders_inline: Vec::new(),
            holders_spilled: IdMap::default(),
            losses: IdMap::default(),
            finishes: 0,
            keys: String::new(),
            key_ends: Vec::new(),
            input_ends: Vec::new(),
            inputs: Vec::new(),
            edge_consumer: Vec::new(),
            edge_next: Vec::new(),
        }
    }

    /// Number of tasks.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.state.len()).unwrap_or(NONE)
    }

    /// Number of edges.
    pub(crate) fn edges(&self) -> usize {
        self.inputs.len()
    }

    /// Bytes of all keys.
    pub(crate) fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    /// Makes room for the tasks of a chunk, which are about to be appended.
    pub(crate) fn expect(&mut self, chunk: &GraphChunk) {
        let (tasks, edges) = (chunk.len(), chunk.inputs.len());
        self.turns.enter(self.len(), chunk);
        grow(&mut self.state, tasks);
        grow(&mut self.is_wanted, tasks);
        grow(&mut self.attempt, tasks);
        grow(&mut self.worker_or_failure, tasks);
        grow(&mut self.entry, tasks);
        grow(&mut self.body, tasks);
        grow(&mut self.group, tasks);
        grow(&mut self.bytes, tasks);
        grow(&mut self.holder_count, tasks);
        grow(&mut self.holders_inline, tasks);
        grow(&mut self.key_ends, tasks);
        if edges > 0 || !self.input_ends.is_empty() {
            grow(&mut self.input_ends, tasks);
        }
        grow(&mut self.inputs, edges);
        grow(&mut self.edge_consumer, edges);
        grow(&mut self.edge_next, edges);
        if self.keys.capacity() - self.keys.len() < chunk.keys.len() {
            self.keys
                .reserve_exact(chunk.keys.len().max(self.keys.len() / 2));
        }
    }

    /// Appends a waiting task and links it to its inputs, which must be there already; what it waits
    /// for is counted by the caller. The limits were checked: all positions fit.
    pub(crate) fn push(&mut self, task: NewTask<'_>) -> u32 {
        let index = self.len();
        self.state.push(TaskState::Waiting);
        self.groups[task.group as usize].counts[TaskState::Waiting.number()] += 1;
        if task.requirement != 0 {
            let key = special_key(task.group, task.requirement);
            self.special.entry(key).or_default()[TaskState::Waiting.number()] += 1;
        }
        self.is_wanted.push(false);
        self.attempt.push(0);
        self.worker_or_failure.push(NONE);
        self.entry.push(NONE);
        self.body.push(task.body);
        self.group.push(task.group);
        self.requirement.set(index as usize, task.requirement);
        self.priority.set(index as usize, task.priority);
        self.retries.set(index as usize, task.retries);
        self.bytes.push(0);
        self.holder_count.push(0);
        self.holders_inline.push([WorkerId(NONE); HOLDERS_INLINE]);
        self.keys.push_str(task.key);
        self.key_ends.push(position(self.keys.len()));
        let edges_before = position(self.inputs.len());
        for input in task.inputs {
            let at = input.0 as usize;
            let edge = position(self.inputs.len());
            self.inputs.push(*input);
            self.edge_consumer.push(index);
            self.edge_next.push(self.consumers_head[at]);
            self.consumers_head[at] = edge;
            self.consumers_left[at] += 1;
        }
        if !task.inputs.is_empty() {
            self.input_ends.resize(index as usize, edges_before);
            self.input_ends.push(position(self.inputs.len()));
        }
        index
    }

    /// The task as others name it.
    pub(crate) fn task_ref(&self, task: u32) -> TaskRef {
        TaskRef {
            graph: self.id,
            task: TaskIndex(task),
        }
    }

    /// Whether there is such a task.
    pub(crate) fn has(&self, task: TaskIndex) -> bool {
        (task.0 as usize) < self.state.len()
    }

    /// The task's key.
    pub(crate) fn key(&self, task: u32) -> &str {
        let at = task as usize;
        let start = if at == 0 {
            0
        } else {
            self.key_ends[at - 1] as usize
        };
        &self.keys[start..self.key_ends[at] as usize]
    }

    /// Positions of the task's inputs among the edges.
    pub(crate) fn input_edges(&self, task: u32) -> std::ops::Range<usize> {
        let end = |at: usize| {
            let end = self.input_ends.get(at);
            end.map_or(self.inputs.len(), |end| *end as usize)
        };
        let at = task as usize;
        let start = if at == 0 { 0 } else { end(at - 1) };
        start..end(at)
    }

    /// The task's inputs in order, with repetitions.
    pub(crate) fn inputs(&self, task: u32) -> &[TaskIndex] {
        &self.inputs[self.input_edges(task)]
    }

    /// The input at the end of an edge.
    pub(crate) fn input(&self, edge: usize) -> u32 {
        self.inputs[edge].0
    }

    /// The first edge to a consumer of the task, or [`NONE`].
    pub(crate) fn first_consumer(&self, task: u32) -> u32 {
        self.consumers_head[task as usize]
    }

    /// The consumer at the end of an edge, and the next edge.
    pub(crate) fn consumer(&self, edge: u32) -> (u32, u32) {
        (
            self.edge_consumer[edge as usize],
            self.edge_next[edge as usize],
        )
    }

    /// When it is the task's turn among those of the same priority, if there are so many slots; of
    /// equals the first to arrive.
    pub(crate) fn turn(&self, task: u32, slots: u64) -> u32 {
        let left = u64::from(self.len()).saturating_sub(self.finishes);
        self.turns.of(task, left, slots)
    }

    /// The group of the task.
    pub(crate) fn group_of(&self, task: u32) -> &Group {
        &self.groups[self.group[task as usize] as usize]
    }

    /// The group of the task.
    pub(crate) fn group_of_mut(&mut self, task: u32) -> &mut Group {
        &mut self.groups[self.group[task as usize] as usize]
    }

    /// The class of the task's requirement.
    pub(crate) fn class_of(&self, task: u32) -> u32 {
        self.classes[self.requirement[task as usize] as usize]
    }

    /// Whether the result is finished but all who hold it are suspect.
    pub(crate) fn is_stranded(&self, task: u32) -> bool {
        !self.stranded.is_empty() && self.stranded.contains(&task)
    }

    /// Whether the result can be read now.
    pub(crate) fn is_available(&self, task: u32) -> bool {
        self.state[task as usize] == TaskState::Finished && !self.is_stranded(task)
    }

    /// Tasks in a state, over all groups.
    pub(crate) fn count(&self, state: TaskState) -> u64 {
        self.groups
            .iter()
            .map(|group| u64::from(group.counts[state.number()]))
            .sum()
    }

    /// Why a failed task failed.
    pub(crate) fn failure(&self, task: u32) -> Option<&Failure> {
        if self.state[task as usize] != TaskState::Failed {
            return None;
        }
        self.failures
            .get(self.worker_or_failure[task as usize] as usize)
    }

    /// Why the graph was cancelled or refused.
    pub(crate) fn ended_error(&self) -> Option<Arc<Diagnostic>> {
        let failure = self.failures.get(self.ended? as usize)?;
        Some(Arc::clone(&failure.error))
    }

    /// Workers that hold the task's result.
    pub(crate) fn holders(&self, task: u32) -> &[WorkerId] {
        let at = task as usize;
        match self.holder_count[at] {
            SPILLED => self.holders_spilled.get(&task).map_or(&[], Vec::as_slice),
            count => &self.holders_inline[at][..count as usize],
        }
    }

    /// Adds a holder; false if it was one.
    pub(crate) fn add_holder(&mut self, task: u32, worker: WorkerId) -> bool {
        if self.holders(task).contains(&worker) {
            return false;
        }
        let at = task as usize;
        match self.holder_count[at] {
            SPILLED => self.holders_spilled.entry(task).or_default().push(worker),
            count if (count as usize) < HOLDERS_INLINE => {
                self.holders_inline[at][count as usize] = worker;
                self.holder_count[at] += 1;
            }
            _ => {
                let mut all = self.holders_inline[at].to_vec();
                all.push(worker);
                self.holders_spilled.insert(task, all);
                self.holder_count[at] = SPILLED;
            }
        }
        true
    }

    /// A result was reported as lost.
    pub(crate) fn note_loss(&mut self, task: u32) {
        let loss = self.losses.entry(task).or_default();
        loss.count = loss.count.saturating_add(1);
    }

    /// How often a result was reported as lost.
    pub(crate) fn loss_count(&self, task: u32) -> u32 {
        self.losses.get(&task).map_or(0, |loss| loss.count)
    }

    /// A task has finished, perhaps not for the first time.
    pub(crate) fn note_finish(&mut self, task: u32) {
        self.finishes += 1;
        if let Some(loss) = self.losses.get_mut(&task) {
            loss.remade_at = self.finishes;
        }
    }

    /// Whether a result was lost and made again since so many tasks had finished.
    pub(crate) fn was_remade_since(&self, task: u32, finishes: u64) -> bool {
        self.losses
            .get(&task)
            .is_some_and(|loss| loss.remade_at > finishes)
    }

    /// Removes all holders.
    pub(crate) fn clear_holders(&mut self, task: u32) {
        if self.holder_count[task as usize] == SPILLED {
            self.holders_spilled.remove(&task);
        }
        self.holder_count[task as usize] = 0;
    }

    /// Removes a holder; false if it was none.
    pub(crate) fn remove_holder(&mut self, task: u32, worker: WorkerId) -> bool {
        let Some(found) = self
            .holders(task)
            .iter()
            .position(|holder| *holder == worker)
        else {
            return false;
        };
        let at = task as usize;
        if self.holder_count[at] == SPILLED {
            let rest = self.holders_spilled.entry(task).or_default();
            rest.swap_remove(found);
            if let [first, second] = rest[..] {
                self.holders_inline[at] = [first, second];
                self.holder_count[at] = 2;
                self.holders_spilled.remove(&task);
            }
        } else {
            let last = self.holder_count[at] - 1;
            self.holders_inline[at][found] = self.holders_inline[at][last as usize];
            self.holder_count[at] = last;
        }
        true
    }
}

/// A group and a requirement as the key of `Graph::special`.
pub(crate) fn special_key(group: u16, requirement: u16) -> u32 {
    u32::from(group) << 16 | u32::from(requirement)
}

/// A length as a position; the graph's limits keep it below [`NONE`].
fn position(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_with_one_task() -> Graph {
        let mut graph = Graph::new(GraphId(1), "g".into(), ClientId(1), 0);
        graph.groups.push(Group::new("t".into()));
        graph.push(NewTask {
            key: "ä-1",
            inputs: &[],
            body: 0,
            group: 0,
            requirement: 0,
            priority: 0,
            retries: 0,
        });
        graph
    }

    #[test]
    fn holders_spill_and_come_back() {
        let mut graph = graph_with_one_task();
        for number in 0..5 {
            assert!(graph.add_holder(0, WorkerId(number)));
            assert!(!graph.add_holder(0, WorkerId(number)));
            assert_eq!(graph.holders(0).len(), number as usize + 1);
        }
        for number in 0..5 {
            assert!(graph.remove_holder(0, WorkerId(number)));
            assert!(!graph.remove_holder(0, WorkerId(number)));
            assert_eq!(graph.holders(0).len(), 4 - number as usize);
        }
        assert!(graph.holders_spilled.is_empty());
    }

    #[test]
    fn average_duration_follows_and_is_never_zero() {
        let mut group = Group::new("t".into());
        assert_eq!(group.expected_micros(), None);
        group.observe(0, 3);
        assert_eq!(group.expected_bytes(), 3);
        assert_eq!(group.expected_micros(), Some(1));
        for _ in 0..100 {
            group.observe(1_000, 0);
        }
        assert!((950..=1_000).contains(&group.expected_micros().unwrap()));
        for _ in 0..1_000 {
            group.observe(u64::MAX, u64::MAX);
        }
        assert!(group.expected_micros().unwrap() > u32::MAX / 2);
    }

    #[test]
    fn a_task_costs_less_than_a_hundred_bytes() {
        let columns = size_of::<TaskState>()
            + size_of::<bool>()
            + 2 * size_of::<u16>()
            + 3 * size_of::<u8>()
            + 11 * size_of::<u32>()
            + size_of::<u64>()
            + size_of::<[WorkerId; HOLDERS_INLINE]>();
        assert!(columns <= 72, "{columns}");
        assert_eq!(graph_with_one_task().key(0), "ä-1");
    }
}
