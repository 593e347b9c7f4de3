//! Stages as the graph that the client submits.
//!
//! Owns keys, groups, priorities and inputs of the tasks, and the size of the chunks. All tasks of
//! a stage share one body; later stages go first where they can, since they free what earlier ones
//! hold.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use datafusion::execution::SessionState;
use oxidask_exec::Body;
use oxidask_proto::{CHUNK_BYTES_TARGET, wire};
use oxidask_store::{Payload, PayloadKind};
use prost::Message;

use super::task::STAGE;
use super::{Stage, StagePlan, codec};
use crate::FrameError;
use crate::error::Stage as Doing;

/// Further attempts of a task: its inputs are still there, and what it reads may be back.
const RETRIES: u32 = 2;

/// A task behind the stages of a query, whose result is the statement's.
#[derive(Debug, Clone)]
pub(crate) struct LastTask {
    /// What it does, for people and in its key: `commit`.
    pub(crate) name: &'static str,
    pub(crate) body: Body,
    pub(crate) inputs: LastTaskInputs,
}

/// Which results the last task gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastTaskInputs {
    /// Those of the last stage, before it runs.
    LastStage,
    /// Those of all stages in order, of which it reads what it wants while it runs.
    AllStages,
}

/// Bytes of one stage as a body.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Inputs of all tasks of one query.
const INPUTS_MAX: usize = 50_000_000;

/// Bytes that an input takes in a chunk at most.
const INPUT_BYTES: usize = 5;

/// Bytes that a task takes in a chunk besides its key and its inputs.
const TASK_BYTES: usize = 24;

impl StagePlan {
    /// The graph as a result of the planning task. `None` if it would pass a limit.
    pub(crate) fn to_payload(&self, state: &SessionState) -> Result<Option<Payload>, FrameError> {
        let Some(bodies) = self.bodies(state)? else {
            return Ok(None);
        };
        let inputs = self.stages.iter().flat_map(|stage| {
            stage
                .edges
                .iter()
                .map(|edge| edge.parts.len().saturating_mul(edge.producers))
        });
        if inputs.fold(0, usize::saturating_add) > INPUTS_MAX {
            return Ok(None);
        }
        let graph = self.to_graph(bodies);
        let bytes = graph.encode_to_vec();
        Ok(Some(Payload::new(PayloadKind::Graph, bytes)))
    }

    /// One body a stage.
    fn bodies(&self, state: &SessionState) -> Result<Option<Vec<Bytes>>, FrameError> {
        let mut bodies = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let bytes = codec::encode(stage, &self.options, &self.place, state)
                .map_err(|error| FrameError::engine(Doing::Plan, error))?;
            let body = Body::new(STAGE)
                .with("build", codec::build())
                .with("stage", STANDARD.encode(bytes.encode_to_vec()));
            let body = body.encode();
            if body.len() > BODY_BYTES_MAX {
                return Ok(None);
            }
            bodies.push(body);
        }
        Ok(Some(bodies))
    }

    /// The graph, given the stages' bodies.
    fn to_graph(&self, bodies: Vec<Bytes>) -> wire::PlannedGraph {
        let mut writer = GraphWriter::default();
        let mut firsts = Vec::with_capacity(self.stages.len());
        for (number, (stage, body)) in self.stages.iter().zip(bodies).enumerate() {
            firsts.push(writer.tasks);
            writer.stage(self, number, stage, body, &firsts);
        }
        let last = self.stages.last().map_or(0, |stage| stage.tasks);
        if let Some(task) = &self.last_task {
            let first = match task.inputs {
                LastTaskInputs::LastStage => writer.tasks - number_of(last),
                LastTaskInputs::AllStages => 0,
            };
            writer.last_task(self, task, first);
            let outputs = vec![writer.tasks - 1];
            return writer.finish(outputs);
        }
        let first_output = writer.tasks - number_of(last);
        let outputs = (first_output..writer.tasks).collect();
        writer.finish(outputs)
    }
}

/// Numbers of tasks are below 2^32: their inputs are bounded.
fn number_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[derive(Default)]
struct GraphWriter {
    chunks: Vec<wire::GraphChunk>,
    current: wire::GraphChunk,
    bytes: usize,
    tasks: u32,
}

impl GraphWriter {
    fn stage(
        &mut self,
        plan: &StagePlan,
        number: usize,
        stage: &Stage,
        body: Bytes,
        firsts: &[u32],
    ) {
        self.bytes += body.len();
        self.current.new_bodies.push(body);
        self.current
            .new_groups
            .push(format!("{}: {}", plan.name, stage.name));
        for part in 0..stage.tasks {
            let key = format!("{}.{}.{}", plan.name, number + 1, part);
            let inputs = stage.edges.iter().filter(|edge| edge.parts.contains(&part));
            let inputs: Vec<u32> = inputs
                .flat_map(|edge| {
                    let first = firsts[edge.producer];
                    first..first + number_of(edge.producers)
                })
                .collect();
            let chunk = &mut self.current;
            chunk.keys.push_str(&key);
            chunk.key_lengths.push(number_of(key.len()));
            chunk.body.push(number_of(number));
            chunk.group.push(number_of(number));
            chunk
                .priority
                .push(i32::try_from(number).unwrap_or(i32::MAX));
            chunk.retries.push(RETRIES);
            chunk.input_counts.push(number_of(inputs.len()));
            chunk.part.push(number_of(part));
            chunk.streamed_inputs.push(number_of(inputs.len()));
            self.bytes += TASK_BYTES + key.len() + inputs.len() * INPUT_BYTES;
            chunk.inputs.extend(inputs);
            self.tasks += 1;
            if self.bytes >= CHUNK_BYTES_TARGET {
                self.close();
            }
        }
    }

    /// The task behind the stages, with the results of the tasks from `first` on.
    fn last_task(&mut self, plan: &StagePlan, task: &LastTask, first: u32) {
        let key = format!("{}.{}", plan.name, task.name);
        let number = number_of(plan.stages.len());
        let inputs: Vec<u32> = (first..self.tasks).collect();
        let streamed = match task.inputs {
            LastTaskInputs::LastStage => 0,
            LastTaskInputs::AllStages => inputs.len(),
        };
        let chunk = &mut self.current;
        chunk.new_bodies.push(task.body.encode());
        chunk
            .new_groups
            .push(format!("{}: {}", plan.name, task.name));
        chunk.keys.push_str(&key);
        chunk.key_lengths.push(number_of(key.len()));
        chunk.body.push(number);
        chunk.group.push(number);
        chunk
            .priority
            .push(i32::try_from(number).unwrap_or(i32::MAX));
        chunk.retries.push(RETRIES);
        chunk.input_counts.push(number_of(inputs.len()));
        chunk.part.push(0);
        chunk.streamed_inputs.push(number_of(streamed));
        chunk.inputs.extend(inputs);
        self.tasks += 1;
    }

    fn close(&mut self) {
        let mut chunk = std::mem::take(&mut self.current);
        chunk.number = number_of(self.chunks.len());
        self.chunks.push(chunk);
        self.bytes = 0;
    }

    fn finish(mut self, outputs: Vec<u32>) -> wire::PlannedGraph {
        // Tasks that are wanted may be named in any later chunk.
        self.current.wanted.clone_from(&outputs);
        self.current.is_last = true;
        self.close();
        wire::PlannedGraph {
            chunks: self.chunks,
            outputs,
        }
    }
}
