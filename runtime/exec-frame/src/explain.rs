//! `EXPLAIN` and `EXPLAIN ANALYZE`.
//!
//! Owns what a person reads about a query: its stages with what they read, do and send, and after
//! a run their times, rows, bytes and skew. The table has one column, `plan`, and one row a line.
//! Plans nothing by itself: what is shown is what would run.

mod analyze;
mod outline;
mod statistics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::common::format::ExplainStatementOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream_partitioned};
use datafusion::sql::parser::Statement as Syntax;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::{Body, TaskContext};
use oxidask_store::Payload;
use tokio::task::JoinSet;

use crate::error::Stage as Doing;
use crate::script::{self, ClusterSize, Statement, StatementKind};
use crate::session::{Session, Shared};
use crate::sink;
use crate::stage::{
    Goal, LastTask, LastTaskInputs, PlanRequest, Planned, StagePlan, plan_statement,
};
use crate::table::{BatchEncoder, assemble};
use crate::{FrameError, staging};

pub(crate) use analyze::{ANALYZE, AnalyzeProgram};
use analyze::{AnalyzeArguments, analyzed, timed};
use outline::{Outline, counted};
pub(crate) use statistics::TaskStatistics;

/// The only column of the table.
const COLUMN: &str = "plan";

/// Runs an `EXPLAIN` statement in this task, or gives the tasks that run it.
pub(crate) async fn run(
    session: &Session,
    statement: Syntax,
    options: &ExplainStatementOptions,
    request: &PlanRequest<'_>,
) -> Result<Payload, FrameError> {
    let logical = match statement {
        Syntax::CopyTo(copy) => {
            let (output, query) = sink::look(session, copy).await?;
            let request = PlanRequest {
                goal: Goal::Write(&output),
                ..*request
            };
            let sends = format!("writes `{}`", output.name());
            let lines = described(session, query, (&request, &sends), options.verbose).await?;
            return table_of(&lines);
        }
        query => session.plan_query(query).await?,
    };
    if !options.analyze {
        let target = (request, "gives the result");
        let lines = described(session, logical, target, options.verbose).await?;
        return table_of(&lines);
    }
    let request = PlanRequest {
        goal: Goal::Times,
        ..*request
    };
    match plan_statement(session, logical.clone(), &request).await? {
        Planned::OneTask { plan, reason } => measured(session, &plan, &reason).await,
        Planned::Stages(mut plan) => {
            plan.last_task = Some(last_task(&plan)?);
            if let Some(graph) = plan.to_payload(&session.context.state())? {
                return Ok(graph);
            }
            let plan = session.physical(logical, Doing::Plan).await?;
            measured(session, &plan, "the stages are too large to be handed out").await
        }
    }
}

/// The lines about a query.
async fn described(
    session: &Session,
    logical: LogicalPlan,
    (request, sends): (&PlanRequest<'_>, &str),
    is_verbose: bool,
) -> Result<Vec<String>, FrameError> {
    let mut lines;
    let plans: Vec<Arc<dyn ExecutionPlan>>;
    match plan_statement(session, logical.clone(), request).await? {
        Planned::OneTask { plan, reason } => {
            lines = Outline::of_one(&plan, headline_of_one(&reason), sends).lines();
            plans = vec![plan];
        }
        Planned::Stages(plan) => {
            lines = Outline::of_stages(&plan, headline(&plan)).lines();
            plans = plan
                .stages
                .iter()
                .map(|stage| Arc::clone(&stage.plan))
                .collect();
        }
    }
    if is_verbose {
        let optimized = session.context.state().optimize(&logical);
        let optimized = optimized.map_err(|error| FrameError::engine(Doing::Plan, error))?;
        lines.push("the engine's logical plan:".to_owned());
        let text = optimized.display_indent().to_string();
        lines.extend(text.lines().map(|line| format!("  {line}")));
        for (number, plan) in plans.iter().enumerate() {
            lines.push(format!("the engine's plan of stage {}:", number + 1));
            let text = displayable(plan.as_ref()).indent(true).to_string();
            lines.extend(text.lines().map(|line| format!("  {line}")));
        }
    }
    Ok(lines)
}

fn headline(plan: &StagePlan) -> String {
    let (stages, tasks) = (plan.stages.len(), plan.task_count());
    format!(
        "{}, {}, up to {} beside each other: about {} of work for one slot",
        counted(stages, "stage"),
        counted(tasks, "task"),
        plan.width,
        timed(plan.micros)
    )
}

fn headline_of_one(reason: &str) -> String {
    format!("one task with all slots of its worker: {reason}")
}

/// The task that reads what all others counted.
fn last_task(plan: &StagePlan) -> Result<LastTask, FrameError> {
    let slices = plan.stages.iter().map(|stage| {
        let slice = stage.output.buckets().unwrap_or_default();
        u32::try_from(slice).unwrap_or(u32::MAX)
    });
    let arguments = AnalyzeArguments {
        outline: Outline::of_stages(plan, headline(plan)),
        slices: slices.collect(),
    };
    match serde_json::to_value(arguments) {
        Ok(serde_json::Value::Object(args)) => Ok(LastTask {
            name: ANALYZE,
            body: Body {
                args,
                ..Body::new(ANALYZE)
            },
            inputs: LastTaskInputs::AllStages,
        }),
        _ => Err(FrameError::Argument {
            what: "the plan cannot be put in words".to_owned(),
        }),
    }
}

/// Runs a plan in this task, drops its rows and tells how it went.
async fn measured(
    session: &Session,
    plan: &Arc<dyn ExecutionPlan>,
    reason: &str,
) -> Result<Payload, FrameError> {
    let started = Instant::now();
    let failed = |error| FrameError::engine(Doing::Run, error);
    let streams = execute_stream_partitioned(Arc::clone(plan), session.context.task_ctx());
    let mut running = JoinSet::new();
    for mut stream in streams.map_err(failed)? {
        running.spawn(async move {
            let mut rows = 0;
            while let Some(batch) = stream.next().await {
                rows += batch?.num_rows() as u64;
            }
            Ok::<_, datafusion::error::DataFusionError>(rows)
        });
    }
    let mut rows = 0;
    while let Some(joined) = running.join_next().await {
        let counted = match joined {
            Ok(counted) => counted.map_err(failed),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(FrameError::Cancelled),
        };
        rows += session.blame(counted).await?;
    }
    let statistics = TaskStatistics::of(plan, started, rows, 0);
    let outline = Outline::of_one(
        plan,
        headline_of_one(reason),
        "gives the result, which is not kept",
    );
    table_of(&analyzed(&outline, &[vec![statistics]]))
}

/// Lines as a table.
fn table_of(lines: &[String]) -> Result<Payload, FrameError> {
    let column = Arc::new(StringArray::from_iter_values(lines)) as _;
    let batch = RecordBatch::try_from_iter([(COLUMN, column)])?;
    let mut encoder = BatchEncoder::new(&batch.schema())?;
    encoder.push(&batch)?;
    Ok(assemble(&batch.schema(), vec![encoder.finish()])?)
}

/// How the queries and writes of a SQL text would run on a cluster, in words. `origin` names the
/// text in messages; relative locations start at `base_dir`. Runs nothing and writes nothing.
pub fn explain(
    text: String,
    origin: String,
    base_dir: PathBuf,
    cluster: ClusterSize,
) -> BoxFuture<'static, Result<String, Diagnostic>> {
    async move {
        let statements = script::parse(&text, &origin)?;
        let scratch = format!("oxidask-explain-{}", staging::new_id(false));
        let scratch_dir = std::env::temp_dir().join(scratch);
        let task = TaskContext {
            slots: cluster.slots.div_ceil(cluster.workers.max(1)).max(1),
            ..TaskContext::alone(cluster.memory_bytes, base_dir, scratch_dir.clone())
        };
        let told = all_explained(&statements, &origin, (cluster, &task)).await;
        // The engine makes it, whether it needs it or not.
        staging::remove(&scratch_dir);
        Ok(told?.join("\n\n"))
    }
    .boxed()
}

async fn all_explained(
    statements: &[Statement],
    origin: &str,
    (cluster, task): (ClusterSize, &TaskContext),
) -> Result<Vec<String>, Diagnostic> {
    let mut session = Session::new(Arc::new(Shared::default()), task)
        .map_err(|error| error.into_task_error(None).diagnostic)?;
    let (mut told, mut has_write) = (Vec::new(), false);
    for statement in statements {
        let place = format!(
            "statement {} ({origin}:{})",
            statement.number, statement.line
        );
        let lines = explained(&mut session, statement, &place, (cluster, task.slots)).await;
        let lines = match lines {
            // It may need what a statement above will have written by then.
            Err(error) if has_write && is_about_names(&error) => {
                vec![format!(
                    "not to be told before a COPY above has run: {error}"
                )]
            }
            lines => lines.map_err(|error| error.into_task_error(Some(&place)).diagnostic)?,
        };
        has_write |= statement.kind == StatementKind::Write;
        if !lines.is_empty() {
            told.push(format!("{place}: {}", lines.join("\n")));
        }
    }
    Ok(told)
}

/// Whether something is not there that a statement names.
fn is_about_names(error: &FrameError) -> bool {
    matches!(error.code(), Code::DataUnreadable | Code::SqlPlan)
}

/// The lines about one statement; none for a definition.
async fn explained(
    session: &mut Session,
    statement: &Statement,
    place: &str,
    (cluster, slots): (ClusterSize, u32),
) -> Result<Vec<String>, FrameError> {
    let syntax = script::parse_one(&statement.text)?;
    if statement.kind == StatementKind::Define {
        session.define(syntax).await?;
        return Ok(Vec::new());
    }
    let syntax = match syntax {
        Syntax::Explain(explain) => *explain.statement,
        syntax => syntax,
    };
    let request = PlanRequest {
        name: "query",
        place,
        cluster,
        slots,
        memory_bytes: cluster.memory_bytes,
        goal: Goal::Rows,
    };
    if let Syntax::CopyTo(copy) = syntax {
        let (output, query) = sink::look(session, copy).await?;
        let request = PlanRequest {
            goal: Goal::Write(&output),
            ..request
        };
        let sends = format!("writes `{}`", output.name());
        return described(session, query, (&request, &sends), false).await;
    }
    let logical = session.plan_query(syntax).await?;
    described(session, logical, (&request, "gives the result"), false).await
}
