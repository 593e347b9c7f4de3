//! A graph that a task has planned, checked before anybody submits it.
//!
//! Owns the way from a result of kind graph to chunks for the wire. A worker may be of another
//! build, or its bytes damaged: whatever they say is checked, and nothing here panics. What only
//! the scheduler can check (limits of a whole graph) it refuses itself.

use std::collections::HashSet;

use bytes::Bytes;
use oxidask_diagnostic::{Code, Coded};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::{MESSAGE_BYTES_MAX, ProtoError, wire};
use oxidask_store::{Payload, PayloadKind};
use prost::Message;

/// A planned graph that cannot be submitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlannedGraphError {
    /// The result is something else.
    #[error("the result is no plan")]
    Kind,
    /// The bytes are not those of the message.
    #[error("the plan cannot be decoded")]
    Decode {
        /// Where decoding stopped.
        #[source]
        source: prost::DecodeError,
    },
    /// A chunk contradicts itself.
    #[error("chunk `{chunk}` of the plan cannot be used")]
    Chunk {
        /// Its position.
        chunk: usize,
        /// What is wrong.
        #[source]
        source: ProtoError,
    },
    /// A chunk is too large for one message.
    #[error("chunk `{chunk}` of the plan has `{bytes}` bytes, more than `{MESSAGE_BYTES_MAX}`")]
    ChunkSize {
        /// Its position.
        chunk: usize,
        /// Its size.
        bytes: usize,
    },
    /// The last chunk is not marked as the last, or an earlier one is.
    #[error("the plan does not end with its last chunk")]
    End,
    /// A task names something that is not there.
    #[error("chunk `{chunk}` of the plan names {what} `{number}`, which is not there")]
    Reference {
        /// The chunk's position.
        chunk: usize,
        /// What is named.
        what: &'static str,
        /// Its number.
        number: u32,
    },
    /// There is nothing to wait for.
    #[error("the plan has no output")]
    NoOutput,
    /// An output is no task of the graph, or is not kept for the client.
    #[error("output `{task}` of the plan is not among its wanted tasks")]
    Output {
        /// The task.
        task: u32,
    },
}

impl Coded for PlannedGraphError {
    fn code(&self) -> Code {
        match self {
            Self::Chunk { source, .. } => source.code(),
            Self::ChunkSize { .. } => Code::LimitPassed,
            _ => Code::ProtocolMismatch,
        }
    }
}

/// A graph that is ready to be submitted with [`crate::Client::submit_chunks`].
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedGraph {
    chunks: Vec<wire::GraphChunk>,
    outputs: Vec<u32>,
    tasks: u32,
}

impl PlannedGraph {
    /// Reads the result of a task that plans.
    pub fn from_payload(payload: &Payload) -> Result<Self, PlannedGraphError> {
        if payload.kind != PayloadKind::Graph {
            return Err(PlannedGraphError::Kind);
        }
        let content = match payload.parts.as_slice() {
            [part] => part.clone(),
            parts => Bytes::from(parts.concat()),
        };
        let planned = wire::PlannedGraph::decode(content)
            .map_err(|source| PlannedGraphError::Decode { source })?;
        Self::check(planned)
    }

    /// Checks a graph that was planned here.
    pub fn check(planned: wire::PlannedGraph) -> Result<Self, PlannedGraphError> {
        let last = planned.chunks.len().checked_sub(1);
        let mut known = Known::default();
        let mut chunks = Vec::with_capacity(planned.chunks.len());
        for (number, chunk) in planned.chunks.into_iter().enumerate() {
            if chunk.is_last != (Some(number) == last) {
                return Err(PlannedGraphError::End);
            }
            let bytes = chunk.encoded_len();
            if bytes > MESSAGE_BYTES_MAX {
                return Err(PlannedGraphError::ChunkSize {
                    chunk: number,
                    bytes,
                });
            }
            let placed = PlacedChunk::try_from(chunk).map_err(|source| {
                let chunk = number;
                PlannedGraphError::Chunk { chunk, source }
            })?;
            known.take(number, &placed)?;
            chunks.push(placed.into());
        }
        if last.is_none() {
            return Err(PlannedGraphError::End);
        }
        if planned.outputs.is_empty() {
            return Err(PlannedGraphError::NoOutput);
        }
        if let Some(task) = planned
            .outputs
            .iter()
            .find(|task| !known.wanted.contains(*task))
        {
            return Err(PlannedGraphError::Output { task: *task });
        }
        Ok(Self {
            chunks,
            outputs: planned.outputs,
            tasks: known.tasks,
        })
    }

    /// Number of tasks.
    pub fn len(&self) -> u32 {
        self.tasks
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tasks == 0
    }

    /// Tasks whose results are, one after the other, the result of the statement.
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// What its tasks run.
    pub fn bodies(&self) -> Vec<Bytes> {
        let bodies = self.chunks.iter().flat_map(|chunk| &chunk.new_bodies);
        bodies.cloned().collect()
    }

    /// The chunks in order; whoever sends them fills in the graph.
    pub fn into_chunks(self) -> impl Iterator<Item = wire::GraphChunk> + Send + 'static {
        self.chunks.into_iter()
    }
}

/// What the chunks so far have brought.
#[derive(Default)]
struct Known {
    tasks: u32,
    bodies: u32,
    groups: u32,
    /// Besides the default.
    requirements: u32,
    wanted: HashSet<u32>,
}

impl Known {
    fn take(&mut self, number: usize, placed: &PlacedChunk) -> Result<(), PlannedGraphError> {
        let chunk = &placed.chunk;
        let before = self.tasks;
        self.tasks = self.tasks.saturating_add(count(chunk.len()));
        self.bodies = self.bodies.saturating_add(chunk.new_bodies_count);
        self.groups = self.groups.saturating_add(count(chunk.new_groups.len()));
        self.requirements = self
            .requirements
            .saturating_add(count(chunk.new_requirements.len()));
        let mut inputs = chunk.inputs.iter();
        for (task, inputs_count) in (before..).zip(&chunk.input_counts) {
            for input in inputs.by_ref().take(*inputs_count as usize) {
                within(number, "input", input.0, task)?;
            }
        }
        let columns = [
            ("body", &chunk.body, self.bodies),
            ("group", &chunk.group, self.groups),
            (
                "requirement",
                &chunk.requirement,
                self.requirements.saturating_add(1),
            ),
        ];
        for (what, column, end) in columns {
            for entry in column {
                within(number, what, *entry, end)?;
            }
        }
        for task in &chunk.wanted {
            within(number, "wanted task", task.0, self.tasks)?;
            self.wanted.insert(task.0);
        }
        Ok(())
    }
}

fn within(
    chunk: usize,
    what: &'static str,
    number: u32,
    end: u32,
) -> Result<(), PlannedGraphError> {
    if number < end {
        return Ok(());
    }
    Err(PlannedGraphError::Reference {
        chunk,
        what,
        number,
    })
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
