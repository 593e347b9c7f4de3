//! From a statement's logical plan to a plan for one task or for many.
//!
//! Owns the order of the steps: a plan for one task, the decision, a plan for the whole width, the
//! cut, and the check that each stage can be read again. Whatever cannot be cut runs in one task.

use std::sync::Arc;

use datafusion::catalog::MemoryCatalogProviderList;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::listing::ListingTable;
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use oxidask_exec::NoStreams;
use prost::Message;

use super::codec::StageBytes;
use super::read::TaskReads;
use super::rewrite::SpreadBuildSides;
use super::settings::StagesOption;
use super::{OxidaskOptions, StageOutput, StagePlan, codec, cut, decide, rewrite, settings};
use crate::FrameError;
use crate::error::Stage as Doing;
use crate::script::ClusterSize;
use crate::session::{Session, cooperative};
use crate::sink::Output;

/// Plans may be made again for another width this many times.
const WIDTHS_TRIED_MAX: usize = 2;

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanRequest<'a> {
    /// The query's key, with which the keys of its tasks begin.
    pub(crate) name: &'a str,
    /// The statement's place, for errors.
    pub(crate) place: &'a str,
    /// The cluster.
    pub(crate) cluster: ClusterSize,
    /// Slots of this worker.
    pub(crate) slots: u32,
    /// Bytes of memory of a worker.
    pub(crate) memory_bytes: u64,
    /// What the rows are for.
    pub(crate) goal: Goal<'a>,
}

/// What becomes of the rows of a query.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal<'a> {
    /// They are the result.
    Rows,
    /// They are written.
    Write(&'a Output),
    /// Nothing: only the times of the run are wanted.
    Times,
}

impl Goal<'_> {
    /// Whether many tasks are better even for a small query.
    fn wants_stages(self) -> bool {
        matches!(self, Self::Write(output) if output.is_remote())
    }

    fn output(self) -> StageOutput {
        match self {
            Self::Rows => StageOutput::Table,
            Self::Write(output) => StageOutput::Parts(Box::new(output.clone())),
            Self::Times => StageOutput::Nothing,
        }
    }
}

/// How a query will run.
#[derive(Debug)]
pub(crate) enum Planned {
    /// Here, now.
    OneTask {
        /// What it runs.
        plan: Arc<dyn ExecutionPlan>,
        /// Why it is one task, for people.
        reason: String,
    },
    /// As many tasks.
    Stages(Box<StagePlan>),
}

/// Plans a query and decides how it runs.
pub(crate) async fn plan_statement(
    session: &Session,
    logical: LogicalPlan,
    request: &PlanRequest<'_>,
) -> Result<Planned, FrameError> {
    let state = session.context.state();
    let ours = OxidaskOptions::of(state.config_options());
    let optimized = state.optimize(&logical);
    let optimized = optimized.map_err(|error| FrameError::engine(Doing::Plan, error))?;
    let mut one = None;
    let is_always = ours.stages == StagesOption::Always
        || (ours.stages == StagesOption::Auto && request.goal.wants_stages());
    if !is_always {
        let plan = session.physical_of(&optimized, Doing::Plan).await?;
        let estimate = decide::estimate(&plan);
        if ours.stages == StagesOption::Never {
            let reason = "`oxidask.stages` is `never`".to_owned();
            return Ok(Planned::OneTask { plan, reason });
        }
        if let Some(reason) = estimate.small_because(request) {
            return Ok(Planned::OneTask { plan, reason });
        }
        one = Some(plan);
    }
    match stages(session, &optimized, request).await {
        Ok(plan) => {
            for stage in &plan.stages {
                session.expected.note(&stage.plan);
            }
            Ok(Planned::Stages(Box::new(plan)))
        }
        Err(reason) => {
            tracing::debug!(query = request.name, %reason, "stays in one task");
            let plan = match one {
                Some(plan) => plan,
                None => session.physical_of(&optimized, Doing::Plan).await?,
            };
            let reason = reason.strip_backtrace();
            Ok(Planned::OneTask { plan, reason })
        }
    }
}

/// The query as stages. An error says why not.
async fn stages(
    session: &Session,
    optimized: &LogicalPlan,
    request: &PlanRequest<'_>,
) -> Result<StagePlan> {
    let state = session.context.state();
    if has_json_arrays(&state).await {
        let what = "files of JSON arrays are read by one task".to_owned();
        return Err(DataFusionError::NotImplemented(what));
    }
    let ours = OxidaskOptions::of(state.config_options());
    let mut width = match ours.width {
        0 => usize::try_from(request.cluster.slots).unwrap_or(1).max(1),
        width => width,
    };
    let mut tried = 0;
    let (plan, state) = loop {
        let wide = state_for_width(&state, width);
        let planner = wide.query_planner();
        let plan = Box::pin(planner.create_physical_plan(optimized, &wide)).await?;
        let wanted = decide::estimate(&plan).width(request);
        tried += 1;
        if ours.width != 0 || wanted <= width || tried >= WIDTHS_TRIED_MAX {
            break (plan, wide);
        }
        width = wanted;
    };
    let plan = rewrite::gather(plan)?;
    let plan: Arc<dyn ExecutionPlan> = match request.goal {
        // One file has one writer.
        Goal::Write(output) if !output.is_folder && cut::partitions(&plan) > 1 => {
            Arc::new(CoalescePartitionsExec::new(plan))
        }
        _ => plan,
    };
    let micros = decide::estimate(&plan).micros();
    let plan = cooperative(plan)?;
    let mut stages = cut::cut(&plan)?;
    if let Some(last) = stages.last_mut() {
        last.output = request.goal.output();
    }
    let planned = StagePlan {
        name: request.name.to_owned(),
        stages,
        width,
        micros,
        options: settings::shared(state.config()),
        place: request.place.to_owned(),
        last_task: None,
    };
    check(&planned, &state)?;
    Ok(planned)
}

fn state_for_width(state: &SessionState, width: usize) -> SessionState {
    let config = settings::for_width(state.config(), width);
    let mut rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> = Vec::new();
    for rule in state.physical_optimizers() {
        rules.push(Arc::clone(rule));
        // Sides are chosen there, and exchanges planned after it.
        if rule.name() == "join_selection" {
            rules.push(Arc::new(SpreadBuildSides));
        }
    }
    SessionStateBuilder::new_from_existing(state.clone())
        .with_config(config)
        // Building puts an empty catalog into the list, which is shared with the session.
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
        .with_physical_optimizer_rules(rules)
        .build()
}

/// Whether a table of the session has JSON arrays instead of lines: the engine's bytes of a scan
/// do not tell.
async fn has_json_arrays(state: &SessionState) -> bool {
    let catalogs = state.catalog_list();
    let catalog = catalogs.catalog("datafusion");
    let Some(schema) = catalog.and_then(|catalog| catalog.schema("public")) else {
        return false;
    };
    for name in schema.table_names() {
        let table = schema.table(&name).await.ok().flatten();
        let is_array = table.as_ref().is_some_and(|table| {
            let listing = table.downcast_ref::<ListingTable>();
            let format = listing.map(|listing| listing.options().format.as_ref());
            let format = format.and_then(|format| format.downcast_ref::<JsonFormat>());
            format.is_some_and(|format| !format.is_newline_delimited())
        });
        if is_array {
            return true;
        }
    }
    false
}

/// Reads every stage again, as its tasks will. What comes back must be what was planned.
fn check(plan: &StagePlan, state: &SessionState) -> Result<()> {
    for stage in &plan.stages {
        let bytes = codec::encode(stage, &plan.options, &plan.place, state)?;
        // The reader of bytes bears fewer levels than the engine.
        let bytes = StageBytes::decode(bytes.encode_to_vec().as_slice()).map_err(|error| {
            DataFusionError::NotImplemented(format!("the plan is nested too deeply: {error}"))
        })?;
        let prepared = codec::prepare(bytes, state)?;
        let context = codec::empty_context(&prepared.config, Arc::clone(state.runtime_env()));
        let streams = Arc::new(NoStreams);
        let reads = Arc::new(TaskReads::new(&prepared.edges, 0, streams));
        let made = prepared.plan(0, &context, reads)?;
        cut::keeps_order(&stage.plan, &made)?;
        let (planned, made) = (shape(&stage.plan)?, shape(&made)?);
        // Below a UNION a task has one branch only.
        if planned.len() == made.len() && planned != made {
            let what = "a part of the plan would come back as another one".to_owned();
            return Err(DataFusionError::NotImplemented(what));
        }
    }
    Ok(())
}

/// The operators of a plan, the types of their columns, and in which order aggregates work.
fn shape(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<String>> {
    let mut nodes = Vec::new();
    plan.apply(|node| {
        let schema = node.schema();
        let types: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| field.data_type())
            .collect();
        let aggregate = node.downcast_ref::<AggregateExec>();
        let order = aggregate.map(AggregateExec::input_order_mode);
        nodes.push(format!("{} {types:?} {order:?}", node.name()));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(nodes)
}
