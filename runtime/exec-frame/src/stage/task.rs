//! The operation `stage`: one partition of one stage.
//!
//! Owns the run of a task: its plan, made fresh, the rows it makes, where they go, and what is
//! told about them afterwards. An input that cannot be read ends the run with the error of the
//! read, unchanged: the worker knows what it means.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::TaskContext as EngineContext;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, Memory, Program, TaskContext, TaskError};
use oxidask_store::{Payload, PayloadKind};
use prost::Message;
use serde_json::Value;

use super::StageOutput;
use super::blame;
use super::codec::{self, PreparedStage, StageBytes};
use super::read::{InputFault, TaskReads};
use super::write::SliceWriter;
use crate::FrameError;
use crate::error::{Stage as Doing, find};
use crate::explain::TaskStatistics;
use crate::freshness::ExpectedFiles;
use crate::join_fallback::let_joins_spill;
use crate::local_store::WriteFault;
use crate::memory::Taken;
use crate::read_memory::ReadMemory;
use crate::remote_write::Writes;
use crate::session::{Shared, runtime};
use crate::sink::{self, Output, Writing, write_part};
use crate::stores::Stores;
use crate::table::{BatchEncoder, assemble};

/// The operation's name.
pub(crate) const STAGE: &str = "stage";

/// Bytes of the footers of files elsewhere that the tasks of a stage share on a worker.
const FOOTERS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A stage that has been understood.
pub(crate) struct StageProgram {
    stage: PreparedStage,
    shared: Arc<Shared>,
    known_files: OnceLock<CacheManagerConfig>,
}

impl StageProgram {
    /// Understands a body.
    pub(crate) fn prepare(body: &Body, shared: &Arc<Shared>) -> Result<Self, TaskError> {
        let text = |name: &str| {
            body.args
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (ours, theirs) = (codec::build(), text("build"));
        if theirs != ours {
            let message = format!(
                "the stage was planned by another build (`{theirs}`) than that of this worker \
                 (`{ours}`)"
            );
            let diagnostic = Diagnostic::new(Code::ProtocolMismatch, message).with_hint(
                "run the job again when all workers have the same version: it is planned anew",
            );
            return Err(TaskError::retryable(diagnostic));
        }
        let unreadable = |why: String| {
            let message = format!("the bytes of a stage cannot be read: {why}");
            TaskError::permanent(Diagnostic::new(Code::OperationUnknown, message))
        };
        let bytes = STANDARD
            .decode(text("stage"))
            .map_err(|error| unreadable(error.to_string()))?;
        let bytes = StageBytes::decode(Bytes::from(bytes))
            .map_err(|error| unreadable(error.to_string()))?;
        let stage =
            codec::prepare(bytes, &shared.base()).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self {
            stage,
            shared: Arc::clone(shared),
            known_files: OnceLock::new(),
        })
    }

    /// One partition: its result, or why there is none.
    async fn part(&self, context: &TaskContext) -> Result<Payload, TaskError> {
        let expected = ExpectedFiles::default();
        let made = self.rows(context, &expected).await;
        made.map_err(|error| match find::<InputFault>(&error) {
            Some(fault) => fault.0.clone(),
            None => expected
                .explain(error)
                .into_task_error(Some(&self.stage.place)),
        })
    }

    async fn rows(
        &self,
        context: &TaskContext,
        expected: &ExpectedFiles,
    ) -> Result<Payload, FrameError> {
        let started = Instant::now();
        let run = |error| FrameError::engine(Doing::Run, error);
        let stage = &self.stage;
        let part = usize::try_from(context.part).unwrap_or(usize::MAX);
        let reads = TaskReads::new(&stage.edges, part, Arc::clone(&context.streams));
        if part >= stage.tasks || reads.inputs() != context.streams.count() {
            let what = format!(
                "part {part} of a stage of {} tasks has {} inputs and needs {}",
                stage.tasks,
                context.streams.count(),
                reads.inputs()
            );
            return Err(FrameError::Argument { what });
        }
        let (fault, writes) = (WriteFault::default(), Writes::default());
        let reads_memory = ReadMemory::new(Arc::clone(&context.memory));
        let stores = Stores::new(
            fault.clone(),
            writes.clone(),
            expected.clone(),
            reads_memory,
        );
        let known_files = self.known_files.get_or_init(|| {
            let known = self.shared.known_files(context.memory_bytes);
            known.for_stage(FOOTERS_BYTES_MAX)
        });
        let runtime = runtime(context, stores, known_files.clone()).map_err(run)?;
        let engine = Arc::new(codec::empty_context(&stage.config, runtime));
        let plan = stage.plan(part, &engine, Arc::new(reads)).map_err(run)?;
        expected.note(&plan);
        let plan = let_joins_spill(plan).map_err(run)?;
        let made = self
            .drive(context, &plan, engine, (fault, writes), started)
            .await;
        match made {
            Err(error) if error.is_about_content() => {
                Err(blame::blamed(error, &plan, &context.cancelled).await)
            }
            other => other,
        }
    }

    async fn drive(
        &self,
        context: &TaskContext,
        plan: &Arc<dyn ExecutionPlan>,
        engine: Arc<EngineContext>,
        (fault, writes): (WriteFault, Writes),
        started: Instant,
    ) -> Result<Payload, FrameError> {
        let run = |error| FrameError::engine(Doing::Run, error);
        let stage = &self.stage;
        if let StageOutput::Parts(output) = &stage.output {
            let state = SessionStateBuilder::new_from_existing(self.shared.base())
                .with_config(stage.config.clone())
                .with_runtime_env(Arc::clone(&engine.runtime_env()))
                .build();
            let means = Writing {
                state,
                context: Arc::clone(&engine),
                fault,
                writes,
            };
            let rows = plan.execute(0, engine).map_err(run)?;
            return write_files(context, &means, output, rows).await;
        }
        let memory = Arc::clone(&context.memory);
        let mut sink = Sink::new(&stage.output, plan.schema(), memory).map_err(run)?;
        let mut rows = plan.execute(0, engine).map_err(run)?;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(run)?;
            context.progress.add_rows(batch.num_rows() as u64);
            sink.push(batch)?;
        }
        drop(rows);
        sink.finish(plan, started)
    }
}

impl Program for StageProgram {
    fn computes(&self) -> bool {
        true
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            let cancelled = context.cancelled.clone();
            // Dropping the work stops the engine and removes its files.
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {
                    Err(FrameError::Cancelled.into_task_error(None))
                }
                outcome = self.part(&context) => outcome,
            }
        }
        .boxed()
    }
}

/// Writes the rows of a task as files that a later task shows.
async fn write_files(
    context: &TaskContext,
    means: &Writing,
    output: &Output,
    rows: SendableRecordBatchStream,
) -> Result<Payload, FrameError> {
    let (schema, progress) = (rows.schema(), Arc::clone(&context.progress));
    let counted = rows.inspect(move |batch| {
        if let Ok(batch) = batch {
            progress.add_rows(batch.num_rows() as u64);
        }
    });
    let rows = Box::pin(RecordBatchStreamAdapter::new(schema, counted));
    let written = write_part(means, output, context.part, rows).await;
    match written {
        Ok(part) => {
            let text = serde_json::to_string(&part).map_err(|error| FrameError::Argument {
                what: format!("the files of a part cannot be told: {error}"),
            })?;
            Ok(Payload::new(PayloadKind::Value, text))
        }
        Err(error) => {
            if !error.is_retryable() {
                // Nobody will write the rest.
                sink::give_up(output);
            }
            Err(error)
        }
    }
}

/// Where the rows of a task go.
enum Sink {
    Slices(Box<SliceWriter>),
    Table(Box<TableWriter>),
    Nothing { rows: u64 },
}

struct TableWriter {
    encoder: BatchEncoder,
    schema: SchemaRef,
    taken: Taken,
}

impl Sink {
    fn new(
        output: &StageOutput,
        schema: SchemaRef,
        memory: Arc<dyn Memory>,
    ) -> datafusion::common::Result<Self> {
        Ok(match output {
            StageOutput::Buckets(buckets) => {
                Self::Slices(Box::new(SliceWriter::buckets(&schema, buckets, memory)?))
            }
            StageOutput::Whole => Self::Slices(Box::new(SliceWriter::whole(&schema, memory)?)),
            StageOutput::Nothing | StageOutput::Parts(_) => Self::Nothing { rows: 0 },
            StageOutput::Table => Self::Table(Box::new(TableWriter {
                encoder: BatchEncoder::new(&schema)?,
                schema,
                taken: Taken::new(memory),
            })),
        })
    }

    fn push(&mut self, batch: RecordBatch) -> Result<(), FrameError> {
        match self {
            Self::Slices(writer) => writer
                .push(batch)
                .map_err(|error| FrameError::engine(Doing::Run, error)),
            Self::Nothing { rows } => {
                *rows += batch.num_rows() as u64;
                Ok(())
            }
            Self::Table(table) => {
                let bytes = table.encoder.push(&batch)?;
                table.taken.grow(bytes as u64);
                Ok(())
            }
        }
    }

    fn finish(
        self,
        plan: &Arc<dyn ExecutionPlan>,
        started: Instant,
    ) -> Result<Payload, FrameError> {
        match self {
            Self::Slices(writer) => {
                let written = writer
                    .finish()
                    .map_err(|error| FrameError::engine(Doing::Run, error))?;
                let (rows, bytes) = (written.rows, written.bytes);
                let statistics = TaskStatistics::of(plan, started, rows, bytes);
                let mut slices = written.slices;
                slices.push(vec![statistics.to_bytes()]);
                drop(written.taken);
                Ok(Payload::from_slices(slices))
            }
            Self::Nothing { rows } => {
                let statistics = TaskStatistics::of(plan, started, rows, 0);
                Ok(Payload::from_slices(vec![vec![statistics.to_bytes()]]))
            }
            Self::Table(table) => Ok(assemble(&table.schema, vec![table.encoder.finish()])?),
        }
    }
}
