//! Cuts a plan into chunks of about the same encoded size.

use std::iter::FusedIterator;
use std::ops::Range;

use oxidask_core::{GraphChunk, GraphId, TaskIndex};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::{CHUNK_BYTES_TARGET, wire};

use super::GraphPlan;

/// Bytes that a task takes besides its key and its inputs: lengths and numbers of a few bytes.
const TASK_BYTES: usize = 12;

/// Bytes that a number of a task takes at most.
const INPUT_BYTES: usize = 5;

/// The chunks of a plan as messages, in the order in which they are sent; whoever sends them fills
/// in the graph. A chunk is closed as soon as it reaches [`CHUNK_BYTES_TARGET`]; a task is never
/// cut.
#[derive(Debug, Clone)]
pub struct Chunks<'a> {
    plan: &'a GraphPlan,
    wanted: Vec<u32>,
    number: u32,
    task: usize,
    wanted_sent: usize,
    bodies_sent: usize,
    groups_sent: usize,
    requirements_sent: usize,
    is_done: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(plan: &'a GraphPlan) -> Self {
        let mut wanted = plan.outputs.clone();
        wanted.sort_unstable();
        Self {
            plan,
            wanted,
            number: 0,
            task: 0,
            wanted_sent: 0,
            bodies_sent: 0,
            groups_sent: 0,
            // The default needs no sending.
            requirements_sent: 1,
            is_done: false,
        }
    }

    /// The tasks of the next chunk.
    fn next_range(&self) -> Range<usize> {
        let plan = self.plan;
        let (mut bytes, mut bodies_sent, mut end) = (0, self.bodies_sent, self.task);
        while end < plan.len() && bytes < CHUNK_BYTES_TARGET {
            let inputs_start = if end == 0 {
                0
            } else {
                plan.input_ends[end - 1]
            };
            bytes += TASK_BYTES
                + plan.names.range(plan.name[end]).len()
                + (plan.input_ends[end] - inputs_start) * INPUT_BYTES;
            let body = plan.body[end] as usize;
            if body == bodies_sent {
                bytes += plan.bodies[body].len();
                bodies_sent += 1;
            }
            end += 1;
        }
        self.task..end
    }

    fn chunk(&mut self, tasks: Range<usize>) -> PlacedChunk {
        let plan = self.plan;
        let inputs_start = if tasks.start == 0 {
            0
        } else {
            plan.input_ends[tasks.start - 1]
        };
        let inputs_end = if tasks.end == 0 {
            0
        } else {
            plan.input_ends[tasks.end - 1]
        };
        let mut chunk = GraphChunk {
            body: plan.body[tasks.clone()].to_vec(),
            group: plan.group[tasks.clone()].to_vec(),
            requirement: unless_default(&plan.requirement[tasks.clone()]),
            priority: unless_default(&plan.priority[tasks.clone()]),
            retries: unless_default(&plan.retries[tasks.clone()]),
            inputs: plan.inputs[inputs_start..inputs_end]
                .iter()
                .copied()
                .map(TaskIndex)
                .collect(),
            is_last: tasks.end == plan.len(),
            ..GraphChunk::default()
        };
        let mut start = inputs_start;
        for task in tasks.clone() {
            let key = plan.key(position(task));
            chunk.keys.push_str(key);
            chunk.key_lengths.push(position(key.len()));
            if !chunk.inputs.is_empty() {
                chunk
                    .input_counts
                    .push(position(plan.input_ends[task] - start));
                start = plan.input_ends[task];
            }
        }
        let wanted = &self.wanted[self.wanted_sent..];
        let wanted = &wanted[..wanted.partition_point(|task| (*task as usize) < tasks.end)];
        chunk.wanted = wanted.iter().copied().map(TaskIndex).collect();
        self.wanted_sent += wanted.len();
        chunk.new_groups = unsent(&plan.groups, &mut self.groups_sent, &chunk.group).to_vec();
        chunk.new_requirements = unsent(
            &plan.requirements,
            &mut self.requirements_sent,
            &chunk.requirement,
        )
        .to_vec();
        let bodies = unsent(&plan.bodies, &mut self.bodies_sent, &chunk.body).to_vec();
        chunk.new_bodies_count = position(bodies.len());
        let number = self.number;
        self.number += 1;
        PlacedChunk {
            graph: GraphId(0),
            number,
            chunk,
            bodies,
            part: Vec::new(),
            arguments: Vec::new(),
            streamed_inputs: Vec::new(),
        }
    }
}

/// Numbers within a chunk and a graph are below 2^32 by the limits on both.
fn position(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A column, or nothing if all of it is the default.
fn unless_default<T: Copy + Default + PartialEq>(column: &[T]) -> Vec<T> {
    if column.iter().all(|entry| *entry == T::default()) {
        Vec::new()
    } else {
        column.to_vec()
    }
}

/// What a column is the first to use. Numbers are in the order of first use.
fn unsent<'a, T>(all: &'a [T], sent: &mut usize, used: &[u32]) -> &'a [T] {
    let end = used
        .iter()
        .max()
        .map_or(*sent, |last| (*last as usize + 1).max(*sent));
    let new = &all[*sent..end];
    *sent = end;
    new
}

impl Iterator for Chunks<'_> {
    type Item = wire::GraphChunk;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let tasks = self.next_range();
        self.task = tasks.end;
        self.is_done = tasks.end == self.plan.len();
        Some(self.chunk(tasks).into())
    }
}

impl FusedIterator for Chunks<'_> {}
