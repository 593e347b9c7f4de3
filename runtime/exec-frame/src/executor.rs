//! The operations `read`, `sql`, `write` and `statement`.
//!
//! Owns the way from a task's body to a run of the engine, and from its outcome to a result or a
//! message with the statement's place. A program holds no state between runs: an attempt starts
//! from nothing and may be repeated.

use std::sync::Arc;

use datafusion::sql::parser::{CopyToSource, CopyToStatement, CreateExternalTable};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName, Value};
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::catalogue::{
    self, OperationError, ReadArguments, STATEMENT, SqlArguments, WriteArguments,
};
use oxidask_exec::{Body, Executor, Program, TaskContext, TaskError};
use oxidask_store::{Payload, PayloadKind};
use serde::de::DeserializeOwned;

use crate::error::Stage;
use crate::explain::{self, ANALYZE, AnalyzeProgram};
use crate::location::by_name;
use crate::script::{self, PlacedText, StatementArguments};
use crate::session::{Session, Shared};
use crate::sink::{COMMIT, CommitArguments, WrittenPart};
use crate::stage::{
    Goal, LastTask, LastTaskInputs, PlanRequest, Planned, STAGE, StageProgram, plan_statement,
};
use crate::{FrameError, sink};
use datafusion::sql::parser::Statement as Syntax;

/// The table of the operations `read` and `write`.
const TABLE: &str = "input";

/// Runs SQL, table reads and table writes.
#[derive(Debug, Clone, Default)]
pub struct FrameExecutor {
    shared: Arc<Shared>,
}

impl FrameExecutor {
    /// Costs nothing: the engine is made with the first task.
    pub fn new() -> Self {
        Self::default()
    }

    fn operation(body: &Body) -> Result<Operation, OperationError> {
        let (op, args) = (body.op.as_str(), &body.args);
        Ok(match op {
            "read" => Operation::Read(catalogue::arguments(op, args)?),
            "sql" => Operation::Sql(catalogue::arguments(op, args)?),
            "write" => Operation::Write(catalogue::arguments(op, args)?),
            COMMIT => Operation::Commit(ours(body)?),
            _ => Operation::Statement(ours(body)?),
        })
    }
}

/// The arguments of an operation that only tasks of ours have.
fn ours<T: DeserializeOwned>(body: &Body) -> Result<T, OperationError> {
    let arguments = serde_json::Value::Object(body.args.clone());
    T::deserialize(arguments).map_err(|source| OperationError::Unreadable {
        op: body.op.clone(),
        source,
    })
}

impl Executor for FrameExecutor {
    fn operations(&self) -> &'static [&'static str] {
        &["read", "sql", "write", STATEMENT, STAGE, COMMIT, ANALYZE]
    }

    fn prepare(&self, body: &Body) -> Result<Arc<dyn Program>, TaskError> {
        if body.op == STAGE {
            return Ok(Arc::new(StageProgram::prepare(body, &self.shared)?));
        }
        if body.op == ANALYZE {
            return Ok(Arc::new(AnalyzeProgram::prepare(body)?));
        }
        let operation = Self::operation(body)
            .map_err(|error| TaskError::permanent(Diagnostic::from_error(&error)))?;
        Ok(Arc::new(FrameProgram {
            operation,
            shared: Arc::clone(&self.shared),
        }))
    }
}

enum Operation {
    Read(ReadArguments),
    Sql(SqlArguments),
    Write(WriteArguments),
    Statement(StatementArguments),
    Commit(CommitArguments),
}

struct FrameProgram {
    operation: Operation,
    shared: Arc<Shared>,
}

impl Program for FrameProgram {
    fn computes(&self) -> bool {
        true
    }

    fn reads_inputs(&self) -> bool {
        matches!(
            self.operation,
            Operation::Sql(_) | Operation::Write(_) | Operation::Commit(_)
        )
    }

    fn run(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            let cancelled = context.cancelled.clone();
            let work = async {
                match &self.operation {
                    Operation::Statement(arguments) => self.statement(arguments, &context).await,
                    Operation::Commit(arguments) => self.commit(arguments, &inputs, &context).await,
                    Operation::Read(arguments) => told(self.read(arguments, &context).await),
                    Operation::Sql(arguments) => told(self.sql(arguments, &inputs, &context).await),
                    Operation::Write(arguments) => {
                        told(self.write(arguments, &inputs, &context).await)
                    }
                }
            };
            // Dropping the work stops the engine's tasks and removes its files.
            tokio::select! {
                biased;
                () = cancelled.cancelled() => told(Err(FrameError::Cancelled)),
                outcome = work => outcome,
            }
        }
        .boxed()
    }
}

fn told(outcome: Result<Payload, FrameError>) -> Result<Payload, TaskError> {
    outcome.map_err(|error| error.into_task_error(None))
}

fn row_count(rows: u64) -> Payload {
    Payload::new(PayloadKind::Value, rows.to_string())
}

impl FrameProgram {
    async fn statement(
        &self,
        arguments: &StatementArguments,
        context: &TaskContext,
    ) -> Result<Payload, TaskError> {
        let mut session = Session::new(Arc::clone(&self.shared), context)
            .map_err(|error| error.into_task_error(None))?;
        let texts = arguments.preamble.iter().chain(&arguments.statement);
        let mut result = Payload::null();
        for text in texts {
            let place = format!(
                "statement {} ({}:{})",
                text.number, arguments.origin, text.line
            );
            let request = PlanRequest {
                name: &context.key,
                place: &place,
                cluster: arguments.cluster,
                slots: context.slots,
                memory_bytes: context.memory_bytes,
                goal: Goal::Rows,
            };
            let write = arguments.write.as_deref();
            let outcome = run_statement(&mut session, text, write, &request).await;
            let outcome = outcome.map_err(|error| known_tables(error, &session));
            result = outcome.map_err(|error| error.into_task_error(Some(&place)))?;
        }
        Ok(result)
    }

    /// Shows the parts of a write. What fails here has been tried often enough.
    async fn commit(
        &self,
        arguments: &CommitArguments,
        inputs: &[Payload],
        context: &TaskContext,
    ) -> Result<Payload, TaskError> {
        let place = Some(arguments.place.as_str());
        let told = |error: FrameError| TaskError {
            is_retryable: false,
            ..error.into_task_error(place)
        };
        let parts = inputs.iter().map(|input| {
            serde_json::from_slice::<WrittenPart>(&input.parts.concat()).map_err(|error| {
                let what = format!("a part of the output cannot be read: {error}");
                FrameError::Argument { what }
            })
        });
        let parts = parts.collect::<Result<Vec<_>, _>>().map_err(told)?;
        let mut session = Session::new(Arc::clone(&self.shared), context).map_err(told)?;
        let rows = sink::commit(&mut session, &arguments.output, parts).await;
        rows.map(row_count).map_err(told)
    }

    async fn read(
        &self,
        arguments: &ReadArguments,
        context: &TaskContext,
    ) -> Result<Payload, FrameError> {
        let mut session = Session::new(Arc::clone(&self.shared), context)?;
        let format = format_name(arguments.format.as_deref(), &arguments.location)?;
        let options = arguments.options.iter().map(|(key, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            (option_key(key), Value::SingleQuotedString(text))
        });
        let table = CreateExternalTable {
            name: table_name(TABLE),
            columns: Vec::new(),
            file_type: format,
            locations: vec![arguments.location.clone()],
            table_partition_cols: Vec::new(),
            order_exprs: Vec::new(),
            if_not_exists: false,
            or_replace: false,
            temporary: false,
            unbounded: false,
            options: options.collect(),
            constraints: Vec::new(),
        };
        session.define(Syntax::CreateExternalTable(table)).await?;
        session
            .query(script::parse_one(&format!("SELECT * FROM {TABLE}"))?)
            .await
    }

    async fn sql(
        &self,
        arguments: &SqlArguments,
        inputs: &[Payload],
        context: &TaskContext,
    ) -> Result<Payload, FrameError> {
        let names = &arguments.names;
        if names.len() != inputs.len() {
            let what = format!(
                "the query has {} inputs, but `as` names {}",
                inputs.len(),
                names.len()
            );
            return Err(FrameError::Argument { what });
        }
        let query = script::parse_query(&arguments.query)?;
        let session = Session::new(Arc::clone(&self.shared), context)?;
        for (name, input) in names.iter().zip(inputs) {
            session.register(name, input).map_err(|error| match error {
                FrameError::Argument { .. } => FrameError::Argument {
                    what: format!("the input `{name}` is not a table"),
                },
                error => error,
            })?;
        }
        let outcome = session.query(query).await;
        outcome.map_err(|error| known_tables(error, &session))
    }

    async fn write(
        &self,
        arguments: &WriteArguments,
        inputs: &[Payload],
        context: &TaskContext,
    ) -> Result<Payload, FrameError> {
        let [input] = inputs else {
            let what = format!("`write` takes one input, not {}", inputs.len());
            return Err(FrameError::Argument { what });
        };
        let mut session = Session::new(Arc::clone(&self.shared), context)?;
        session.register(TABLE, input)?;
        let stored_as = match &arguments.format {
            Some(format) => Some(format_name(Some(format), &arguments.location)?),
            None => None,
        };
        let copy = CopyToStatement {
            source: CopyToSource::Relation(table_name(TABLE)),
            target: arguments.location.clone(),
            partitioned_by: arguments.partition_by.clone(),
            stored_as,
            options: Vec::new(),
        };
        Ok(row_count(sink::copy(&mut session, copy).await?))
    }
}

async fn run_statement(
    session: &mut Session,
    text: &PlacedText,
    write: Option<&str>,
    request: &PlanRequest<'_>,
) -> Result<Payload, FrameError> {
    match script::parse_one(&text.sql)? {
        Syntax::CopyTo(copy) => run_copy(session, copy, write, request).await,
        Syntax::Explain(explain) if explain.options.format.is_none() => {
            explain::run(session, *explain.statement, &explain.options, request).await
        }
        query if Session::is_query(&query) => run_query(session, query, request).await,
        definition => session.define(definition).await.map(|()| Payload::null()),
    }
}

/// The rows of a query, or the tasks that make them.
async fn run_query(
    session: &Session,
    query: Syntax,
    request: &PlanRequest<'_>,
) -> Result<Payload, FrameError> {
    let logical = session.plan_query(query).await?;
    let plan = match plan_statement(session, logical.clone(), request).await? {
        Planned::OneTask { plan, .. } => plan,
        Planned::Stages(plan) => match plan.to_payload(&session.context.state())? {
            Some(graph) => return Ok(graph),
            // Too large to be handed out.
            None => session.physical(logical, Stage::Plan).await?,
        },
    };
    session.run(plan).await
}

/// The number of rows that were written, or the tasks that write them.
async fn run_copy(
    session: &mut Session,
    copy: CopyToStatement,
    id: Option<&str>,
    request: &PlanRequest<'_>,
) -> Result<Payload, FrameError> {
    let planned = sink::plan(session, copy, sink::id(id)).await?;
    if !planned.is_done {
        let output = planned.output.for_many_tasks();
        let request = PlanRequest {
            goal: Goal::Write(&output),
            ..*request
        };
        if let Planned::Stages(mut stages) =
            plan_statement(session, planned.query(), &request).await?
        {
            stages.last_task = Some(LastTask {
                name: COMMIT,
                body: sink::commit_body(&output, request.place)?,
                inputs: LastTaskInputs::LastStage,
            });
            if let Some(graph) = stages.to_payload(&session.context.state())? {
                return Ok(graph);
            }
        }
    }
    Ok(row_count(sink::run(session, planned).await?))
}

fn table_name(name: &str) -> ObjectName {
    ObjectName::from(vec![Ident::new(name)])
}

/// Short names that Dask and pandas users know, besides the engine's own.
fn option_key(key: &str) -> String {
    match key.to_lowercase().as_str() {
        "header" => "format.has_header".to_owned(),
        "sep" => "format.delimiter".to_owned(),
        "nulls" | "na_values" => "format.null_value".to_owned(),
        key if key.contains('.') => key.to_owned(),
        key => format!("format.{key}"),
    }
}

fn format_name(given: Option<&str>, location: &str) -> Result<String, FrameError> {
    if let Some(name) = given {
        return Ok(crate::location::Format::parse(name)?.name().to_owned());
    }
    by_name(location.trim_end_matches('/'))
        .0
        .map(|format| format.name().to_owned())
        .ok_or_else(|| FrameError::Argument {
            what: format!("the format of `{location}` is not told; add `format`"),
        })
}

/// A message about an unknown table also says which there are.
fn known_tables(error: FrameError, session: &Session) -> FrameError {
    let words = error.to_string();
    let is_unknown = error.code() == Code::SqlPlan
        && words.starts_with("table '")
        && words.ends_with("not found");
    if !is_unknown {
        return error;
    }
    let unknown = words.split('\'').nth(1).unwrap_or_default();
    let catalog = session.context.catalog("datafusion");
    let schema = catalog.and_then(|catalog| catalog.schema("public"));
    let mut names = schema
        .map(|schema| schema.table_names())
        .unwrap_or_default();
    names.sort_unstable();
    let nearest = oxidask_diagnostic::nearest(unknown, names.iter().map(String::as_str));
    let hint = match (nearest, names.as_slice()) {
        (Some(name), _) => format!("did you mean `{name}`?"),
        (None, []) => "define the table with CREATE EXTERNAL TABLE first".to_owned(),
        (None, names) => format!("the tables are `{}`", names.join("`, `")),
    };
    FrameError::Told(Diagnostic::new(Code::SqlPlan, words).with_hint(hint))
}
