//! A part of a graph as it arrives: columns, one entry a task.

use crate::ids::TaskIndex;

/// Tasks that one graph may have.
pub const GRAPH_TASKS_MAX: u32 = 100_000_000;
/// Inputs that one task may have.
pub const TASK_INPUTS_MAX: u32 = 1_000_000;
/// Edges that one graph may have.
pub const GRAPH_EDGES_MAX: u32 = u32::MAX - 1;
/// Bytes of all keys of one graph.
pub const GRAPH_KEY_BYTES_MAX: usize = u32::MAX as usize;
/// Bytes of one key.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Groups of tasks (key prefixes) that one graph may have; the client folds the rest into one.
pub const GRAPH_GROUPS_MAX: usize = 1_024;
/// Different requirements that one graph may have.
pub const GRAPH_REQUIREMENTS_MAX: usize = 1_024;

/// Bytes of the name of a group of tasks, a resource, a worker or a worker group.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Resources, or workers, that one requirement may name.
pub const REQUIREMENT_NAMES_MAX: usize = 1_024;

/// What a task asks of a worker. Requirement 0 of every graph is [`Requirement::default`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// Slots taken while the task runs; more than a worker has means all that it has.
    pub slots: u32,
    /// Task resources by name with their amounts, all of which the worker must offer.
    pub resources: Vec<(String, u64)>,
    /// Names of workers or worker groups; the task runs only there. Empty: anywhere.
    pub workers: Vec<String>,
}

impl Default for Requirement {
    fn default() -> Self {
        Self {
            slots: 1,
            resources: Vec::new(),
            workers: Vec::new(),
        }
    }
}

/// The next tasks of a graph. Inputs of a task come before it, in the same chunk or in an earlier
/// one, so a cycle cannot arrive.
///
/// `body`, `group` and `key_lengths` have an entry for each task. The other columns may be empty,
/// which means the default for all: requirement 0, priority 0, no retries, no inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphChunk {
    /// All keys, one behind the other, UTF-8.
    pub keys: String,
    /// Bytes of each key in `keys`.
    pub key_lengths: Vec<u32>,
    /// The task's body: an index into the graph's bodies, which the core never sees.
    pub body: Vec<u32>,
    /// The task's group: an index into the graph's groups.
    pub group: Vec<u32>,
    /// The task's requirement: an index into the graph's requirements.
    pub requirement: Vec<u32>,
    /// Larger first.
    pub priority: Vec<i32>,
    /// How often a failed attempt is tried again.
    pub retries: Vec<u32>,
    /// Number of entries of `inputs` that belong to the task.
    pub input_counts: Vec<u32>,
    /// The inputs of all tasks, one behind the other.
    pub inputs: Vec<TaskIndex>,
    /// Tasks of this or earlier chunks whose results the client wants.
    pub wanted: Vec<TaskIndex>,
    /// Names of groups, appended to the graph's groups. Group 0 is named by the first chunk.
    pub new_groups: Vec<String>,
    /// Appended to the graph's requirements, the first of which is number 1.
    pub new_requirements: Vec<Requirement>,
    /// Bodies appended to the graph's bodies by this chunk.
    pub new_bodies_count: u32,
    /// Nothing follows: results without consumers and unwanted may go.
    pub is_last: bool,
}

impl GraphChunk {
    /// Number of tasks in this chunk.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether the chunk has no tasks.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }
}
