//! Chunks of a graph: messages <-> the core's columns with their bodies beside them.
//!
//! Buffers are moved, not copied, in both directions. What a chunk says about itself is checked
//! here: columns fit each other, keys have their limits. What it says about earlier chunks (inputs,
//! wanted tasks, numbers of bodies, groups, requirements) only the core can check.

use bytes::Bytes;
use oxidask_core::{
    GRAPH_GROUPS_MAX, GRAPH_REQUIREMENTS_MAX, GRAPH_TASKS_MAX, GraphChunk, GraphId, KEY_BYTES_MAX,
    Requirement, TASK_INPUTS_MAX, TaskIndex,
};

use crate::error::ProtoError;
use crate::{ids, wire};

/// A chunk with its place in its graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedChunk {
    /// The graph's number.
    pub graph: GraphId,
    /// The chunk's position in the graph, from 0.
    pub number: u32,
    /// The tasks. `new_bodies_count` is the number of `bodies`.
    pub chunk: GraphChunk,
    /// The new bodies, which the core never sees.
    pub bodies: Vec<Bytes>,
    /// Which part of its body each task runs; empty: all run part 0. The core never sees it.
    pub part: Vec<u32>,
    /// How many of its inputs, the first ones, each task reads by itself; empty: none.
    pub streamed_inputs: Vec<u32>,
    /// What each task's body is given besides its inputs; empty: nothing. The core never sees it.
    pub arguments: Vec<Bytes>,
}

impl From<PlacedChunk> for wire::GraphChunk {
    fn from(placed: PlacedChunk) -> Self {
        let chunk = placed.chunk;
        Self {
            graph: placed.graph.0,
            number: placed.number,
            keys: chunk.keys,
            key_lengths: chunk.key_lengths,
            body: chunk.body,
            group: chunk.group,
            requirement: chunk.requirement,
            priority: chunk.priority,
            retries: chunk.retries,
            input_counts: chunk.input_counts,
            inputs: numbers(chunk.inputs),
            wanted: numbers(chunk.wanted),
            new_groups: chunk.new_groups,
            new_requirements: chunk.new_requirements.into_iter().map(Into::into).collect(),
            new_bodies: placed.bodies,
            is_last: chunk.is_last,
            part: placed.part,
            streamed_inputs: placed.streamed_inputs,
            arguments: placed.arguments,
        }
    }
}

impl TryFrom<wire::GraphChunk> for PlacedChunk {
    type Error = ProtoError;

    fn try_from(chunk: wire::GraphChunk) -> Result<Self, ProtoError> {
        check(&chunk)?;
        let new_bodies_count = u32::try_from(chunk.new_bodies.len()).unwrap_or(u32::MAX);
        let requirements = chunk.new_requirements.into_iter().map(TryInto::try_into);
        let columns = GraphChunk {
            keys: chunk.keys,
            key_lengths: chunk.key_lengths,
            body: chunk.body,
            group: chunk.group,
            requirement: chunk.requirement,
            priority: chunk.priority,
            retries: chunk.retries,
            input_counts: chunk.input_counts,
            inputs: indices(chunk.inputs),
            wanted: indices(chunk.wanted),
            new_groups: chunk.new_groups,
            new_requirements: requirements.collect::<Result<_, ProtoError>>()?,
            new_bodies_count,
            is_last: chunk.is_last,
        };
        Ok(Self {
            graph: GraphId(chunk.graph),
            number: chunk.number,
            chunk: columns,
            bodies: chunk.new_bodies,
            part: chunk.part,
            streamed_inputs: chunk.streamed_inputs,
            arguments: chunk.arguments,
        })
    }
}

impl From<Requirement> for wire::Requirement {
    fn from(requirement: Requirement) -> Self {
        Self {
            slots: requirement.slots,
            resources: ids::amounts_to_wire(requirement.resources),
            workers: requirement.workers,
        }
    }
}

impl TryFrom<wire::Requirement> for Requirement {
    type Error = ProtoError;

    fn try_from(requirement: wire::Requirement) -> Result<Self, ProtoError> {
        if requirement.slots == 0 {
            return Err(ProtoError::SlotsZero);
        }
        Ok(Self {
            slots: requirement.slots,
            resources: ids::amounts_from_wire(requirement.resources),
            workers: requirement.workers,
        })
    }
}

// Both collect in place: the allocation is kept.
fn numbers(indices: Vec<TaskIndex>) -> Vec<u32> {
    indices.into_iter().map(|index| index.0).collect()
}

fn indices(numbers: Vec<u32>) -> Vec<TaskIndex> {
    numbers.into_iter().map(TaskIndex).collect()
}

fn check(chunk: &wire::GraphChunk) -> Result<(), ProtoError> {
    let tasks = chunk.body.len();
    limit("tasks", tasks, u64::from(GRAPH_TASKS_MAX))?;
    limit(
        "new groups",
        chunk.new_groups.len(),
        GRAPH_GROUPS_MAX as u64,
    )?;
    limit(
        "new requirements",
        chunk.new_requirements.len(),
        GRAPH_REQUIREMENTS_MAX as u64,
    )?;
    column("key_lengths", chunk.key_lengths.len(), tasks)?;
    column("group", chunk.group.len(), tasks)?;
    for (name, length) in [
        ("requirement", chunk.requirement.len()),
        ("priority", chunk.priority.len()),
        ("retries", chunk.retries.len()),
        ("input_counts", chunk.input_counts.len()),
        ("part", chunk.part.len()),
        ("streamed_inputs", chunk.streamed_inputs.len()),
        ("arguments", chunk.arguments.len()),
    ] {
        if length != 0 {
            column(name, length, tasks)?;
        }
    }
    check_keys(&chunk.keys, &chunk.key_lengths)?;
    let mut inputs = 0;
    for &count in &chunk.input_counts {
        limit(
            "inputs of one task",
            count as usize,
            u64::from(TASK_INPUTS_MAX),
        )?;
        inputs += count as usize;
    }
    column("inputs", chunk.inputs.len(), inputs)?;
    check_streamed(chunk)
}

/// A task cannot read more of its inputs by itself than it has.
fn check_streamed(chunk: &wire::GraphChunk) -> Result<(), ProtoError> {
    let counts = chunk
        .input_counts
        .iter()
        .copied()
        .chain(std::iter::repeat(0));
    for (position, (&streamed, inputs)) in chunk.streamed_inputs.iter().zip(counts).enumerate() {
        if streamed > inputs {
            return Err(ProtoError::StreamedInputs {
                position,
                streamed,
                inputs,
            });
        }
    }
    Ok(())
}

fn check_keys(keys: &str, lengths: &[u32]) -> Result<(), ProtoError> {
    let mut end = 0;
    for (position, &length) in lengths.iter().enumerate() {
        if length == 0 {
            return Err(ProtoError::KeyEmpty { position });
        }
        limit("bytes of one key", length as usize, KEY_BYTES_MAX as u64)?;
        end += length as usize;
        if !keys.is_char_boundary(end) {
            return Err(ProtoError::KeyBoundary { position });
        }
    }
    column("keys", keys.len(), end)
}

fn column(column: &'static str, found: usize, expected: usize) -> Result<(), ProtoError> {
    if found == expected {
        return Ok(());
    }
    Err(ProtoError::ColumnLength {
        column,
        found: found as u64,
        expected: expected as u64,
    })
}

fn limit(what: &'static str, found: usize, limit: u64) -> Result<(), ProtoError> {
    let found = found as u64;
    if found <= limit {
        Ok(())
    } else {
        Err(ProtoError::LimitPassed { what, found, limit })
    }
}
