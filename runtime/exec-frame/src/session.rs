//! One task's view of the engine: its tables, its memory and its temporary files.
//!
//! Owns the settings under which every statement runs and the way from a statement to rows.
//! Sessions share nothing but the list of functions. Invariants: memory is taken from a pool
//! bounded by the worker's limit; temporary files stay in the task's folder; a dropped session
//! leaves no work behind.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as Syntax;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use futures::StreamExt;
use oxidask_exec::TaskContext;
use oxidask_store::Payload;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::csv_check::CsvChecks;
use crate::damage::{self, TableFiles};
use crate::error::Stage;
use crate::freshness::ExpectedFiles;
use crate::join_fallback::let_joins_spill;
use crate::known_files::KnownFiles;
use crate::local_store::WriteFault;
use crate::memory::{self, TaskMemoryPool};
use crate::read_memory::ReadMemory;
use crate::remote_write::Writes;
use crate::stage::OxidaskOptions;
use crate::stores::Stores;
use crate::table::{BatchDecoder, BatchEncoder, EncodedBatches, assemble};
use crate::{FrameError, source};

/// The share of a worker's memory for what a task knows of files, as its divisor, and its bounds.
const KNOWN_SHARE: u64 = 16;
const KNOWN_BYTES_MIN: u64 = 20 * 1024 * 1024;
const KNOWN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Rows from which the types of text files are told.
pub(crate) const INFERRED_ROWS: usize = 10_000;

/// What all sessions of a worker share. Made with the first statement, not before.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    base: OnceLock<SessionState>,
    known_files: OnceLock<KnownFiles>,
    pub(crate) csv_checks: CsvChecks,
}

impl Shared {
    /// A state with all functions, rules and formats; cloning it is cheap.
    pub(crate) fn base(&self) -> SessionState {
        self.base
            .get_or_init(|| SessionStateBuilder::new().with_default_features().build())
            .clone()
    }

    /// What is known of files on a worker with this much memory.
    pub(crate) fn known_files(&self, memory_bytes: u64) -> &KnownFiles {
        self.known_files
            .get_or_init(|| KnownFiles::new(memory_bytes))
    }
}

/// The engine for one attempt of a task.
pub(crate) struct Session {
    pub(crate) context: SessionContext,
    pub(crate) shared: Arc<Shared>,
    pub(crate) base_dir: PathBuf,
    pub(crate) cancelled: CancellationToken,
    /// Files behind the tables, for messages.
    pub(crate) tables: Vec<TableFiles>,
    /// Why a write to a local file failed.
    pub(crate) write_fault: WriteFault,
    /// What was written to object stores.
    pub(crate) writes: Writes,
    /// The files of plans, as they were planned.
    pub(crate) expected: ExpectedFiles,
}

impl Session {
    /// An empty session with the means of the task.
    pub(crate) fn new(shared: Arc<Shared>, task: &TaskContext) -> Result<Self, FrameError> {
        let write_fault = WriteFault::default();
        let writes = Writes::default();
        let expected = ExpectedFiles::default();
        let memory = ReadMemory::new(Arc::clone(&task.memory));
        let stores = Stores::new(
            write_fault.clone(),
            writes.clone(),
            expected.clone(),
            memory,
        );
        // What is known of many small files must fit, or they are all opened again and again.
        let known_bytes = (task.memory_bytes / KNOWN_SHARE).clamp(KNOWN_BYTES_MIN, KNOWN_BYTES_MAX);
        let known_bytes = usize::try_from(known_bytes).unwrap_or(usize::MAX);
        let known = shared.known_files(task.memory_bytes).for_task(known_bytes);
        let runtime =
            runtime(task, stores, known).map_err(|error| FrameError::engine(Stage::Plan, error))?;
        let state = SessionStateBuilder::new_from_existing(shared.base())
            .with_session_id(task.key.to_string())
            .with_config(config(task))
            .with_runtime_env(runtime)
            .with_catalog_list(Arc::new(
                datafusion::catalog::MemoryCatalogProviderList::new(),
            ))
            .build();
        Ok(Self {
            context: SessionContext::new_with_state(state),
            shared,
            base_dir: task.base_dir.clone(),
            cancelled: task.cancelled.clone(),
            tables: Vec::new(),
            write_fault,
            writes,
            expected,
        })
    }

    /// Makes a payload known as a table.
    pub(crate) fn register(&self, name: &str, payload: &Payload) -> Result<(), FrameError> {
        let decoder = BatchDecoder::new(payload)?;
        let schema = decoder.schema();
        let partitions = self.context.copied_config().target_partitions().max(1);
        let batches = decoder.collect::<Result<Vec<_>, _>>()?;
        let share = batches.len().div_ceil(partitions).max(1);
        let mut parts: Vec<_> = batches.chunks(share).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let plan = |error| FrameError::engine(Stage::Plan, error);
        let table = MemTable::try_new(schema, parts).map_err(plan)?;
        // In quotes, so that the name is taken as it is written.
        let reference = datafusion::common::TableReference::bare(name);
        self.context
            .register_table(reference, Arc::new(table))
            .map_err(plan)?;
        Ok(())
    }

    /// Runs a definition: a table, a view, an option.
    pub(crate) async fn define(&mut self, statement: Syntax) -> Result<(), FrameError> {
        if let Syntax::CreateExternalTable(table) = statement {
            return source::create(self, table).await;
        }
        let plan = self.plan(statement).await?;
        let done = Box::pin(self.context.execute_logical_plan(plan)).await;
        done.map(drop)
            .map_err(|error| FrameError::engine(Stage::Plan, error))
    }

    /// Runs a query and gives its rows as a table.
    pub(crate) async fn query(&self, statement: Syntax) -> Result<Payload, FrameError> {
        let plan = self.plan_query(statement).await?;
        let physical = self.physical(plan, Stage::Plan).await?;
        self.run(physical).await
    }

    /// Runs a plan and gives its rows as a table.
    pub(crate) async fn run(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Payload, FrameError> {
        let collected = self.collect(plan).await;
        self.blame(collected).await
    }

    /// The logical plan of a query, and of nothing else.
    pub(crate) async fn plan_query(&self, statement: Syntax) -> Result<LogicalPlan, FrameError> {
        let plan = self.plan(statement).await?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|error| FrameError::engine(Stage::Plan, error))?;
        Ok(plan)
    }

    /// The logical plan of a statement.
    pub(crate) async fn plan(&self, statement: Syntax) -> Result<LogicalPlan, FrameError> {
        let state = self.context.state();
        let planned = Box::pin(state.statement_to_plan(statement)).await;
        planned.map_err(|error| FrameError::engine(Stage::Plan, error))
    }

    /// The physical plan of a statement. Its files must be the same when they are read.
    pub(crate) async fn physical(
        &self,
        plan: LogicalPlan,
        stage: Stage,
    ) -> Result<Arc<dyn ExecutionPlan>, FrameError> {
        let optimized = self.context.state().optimize(&plan);
        let optimized = optimized.map_err(|error| FrameError::engine(stage, error))?;
        self.physical_of(&optimized, stage).await
    }

    /// The physical plan of an optimized logical plan.
    pub(crate) async fn physical_of(
        &self,
        optimized: &LogicalPlan,
        stage: Stage,
    ) -> Result<Arc<dyn ExecutionPlan>, FrameError> {
        let state = self.context.state();
        let planner = state.query_planner();
        let planned = Box::pin(planner.create_physical_plan(optimized, &state))
            .await
            .and_then(cooperative);
        let planned = planned.map_err(|error| FrameError::engine(stage, error));
        let planned = self.blame(planned).await?;
        self.expected.note(&planned);
        Ok(planned)
    }

    /// Runs all partitions beside each other; the rows come in order of the partitions.
    async fn collect(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Payload, FrameError> {
        let run = |error| FrameError::engine(Stage::Run, error);
        let plan = let_joins_spill(plan).map_err(run)?;
        let schema = plan.schema();
        let streams = execute_stream_partitioned(plan, self.context.task_ctx()).map_err(run)?;
        let pool = Arc::clone(&self.context.runtime_env().memory_pool);
        let mut done: Vec<Option<EncodedBatches>> = streams.iter().map(|_| None).collect();
        let mut running = JoinSet::new();
        for (index, mut stream) in streams.into_iter().enumerate() {
            let reservation = MemoryConsumer::new("the query's result").register(&pool);
            running.spawn(async move {
                let mut encoder = BatchEncoder::new(&stream.schema())?;
                while let Some(batch) = stream.next().await {
                    let bytes = encoder.push(&batch.map_err(run)?)?;
                    reservation
                        .try_grow(bytes)
                        .map_err(|error| FrameError::ResultTooLarge {
                            source: Box::new(error),
                        })?;
                }
                Ok::<_, FrameError>((index, encoder.finish(), reservation))
            });
        }
        // Held until the table is whole.
        let mut reservations = Vec::new();
        while let Some(joined) = running.join_next().await {
            let (index, batches, reservation) = match joined {
                Ok(result) => result?,
                Err(error) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic());
                }
                Err(_) => return Err(FrameError::Cancelled),
            };
            reservations.push(reservation);
            if let Some(slot) = done.get_mut(index) {
                *slot = Some(batches);
            }
        }
        Ok(assemble(&schema, done.into_iter().flatten().collect())?)
    }

    /// Names file and line where the content of a file is to blame.
    pub(crate) async fn blame<T>(&self, result: Result<T, FrameError>) -> Result<T, FrameError> {
        let result = result.map_err(|error| self.expected.explain(error));
        let error = match result {
            Err(error) if error.is_about_content() && !self.tables.is_empty() => error,
            other => return other,
        };
        let (tables, cancelled) = (self.tables.clone(), self.cancelled.clone());
        let found = tokio::task::spawn_blocking(move || damage::find(&tables, &cancelled)).await;
        match found {
            Ok(Some(what)) => Err(FrameError::Damaged { what }),
            _ => Err(self.name_tables(error)),
        }
    }

    /// The fault was not found again: at least the tables can be named.
    fn name_tables(&self, error: FrameError) -> FrameError {
        match self.tables.as_slice() {
            [table] if !table.name.is_empty() => FrameError::Damaged {
                what: match table.files.as_slice() {
                    [file] => format!("`{}`: {error}", file.display()),
                    _ => format!("table `{}`: {error}", table.name),
                },
            },
            _ => error,
        }
    }

    /// Whether a statement is a plain query, which gives rows.
    pub(crate) fn is_query(statement: &Syntax) -> bool {
        match statement {
            Syntax::Explain(_) => true,
            Syntax::Statement(sql) => {
                !matches!(**sql, Sql::CreateView(_) | Sql::Set(_) | Sql::Drop { .. })
            }
            _ => false,
        }
    }
}

/// Operators that make many rows out of few never wait for their input, so nothing above them would
/// ever let go of the thread. With this they do, and a cancelled query ends at once.
pub(crate) fn cooperative(
    plan: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    const MULTIPLIERS: [&str; 6] = [
        "CrossJoinExec",
        "NestedLoopJoinExec",
        "HashJoinExec",
        "SortMergeJoinExec",
        "PiecewiseMergeJoinExec",
        "UnnestExec",
    ];
    plan.transform_up(|node| {
        Ok(if MULTIPLIERS.contains(&node.name()) {
            Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>)
        } else {
            Transformed::no(node)
        })
    })
    .data()
}

fn config(task: &TaskContext) -> SessionConfig {
    let slots = usize::try_from(task.slots).unwrap_or(1).max(1);
    let mut config = SessionConfig::new()
        .with_target_partitions(slots)
        .with_information_schema(true)
        .with_option_extension(OxidaskOptions::default());
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::Generic;
    options.execution.time_zone = Some("+00:00".to_owned());
    // The same query gives the same order and the same last digit of a sum, as far as it can be:
    // rows move between partitions by their values only, not by who is idle.
    options.optimizer.enable_round_robin_repartition = false;
    options.execution.enable_file_stream_work_stealing = false;
    let _ = config
        .options_mut()
        .set("datafusion.execution.minimum_parallel_output_files", "1");
    config
}

/// The means of a task as the engine takes them.
pub(crate) fn runtime(
    task: &TaskContext,
    stores: Stores,
    caches: CacheManagerConfig,
) -> Result<Arc<RuntimeEnv>, DataFusionError> {
    RuntimeEnvBuilder::new()
        .with_cache_manager(caches)
        .with_memory_pool(Arc::new(TaskMemoryPool::new(Arc::clone(&task.memory))))
        .with_disk_manager_builder(memory::temporary_files(&task.scratch_dir, None))
        .with_object_store_registry(Arc::new(stores))
        .build_arc()
}
