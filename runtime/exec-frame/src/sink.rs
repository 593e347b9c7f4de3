//! Writes a table to a location.
//!
//! Owns what `COPY … TO` and the operation `write` do. A write has two steps: tasks write their
//! parts where nobody looks, and one commit shows the parts of the attempts that succeeded. One
//! task may do both. On this machine an output appears at once; in an object store its files appear
//! one after the other when all are whole, and only then an existing output is removed.
//! Invariants: a failed write leaves nothing; no attempt's output is seen twice.

mod local;
mod output;
mod part;
mod remote;

use std::io;
use std::path::Path;

use bytes::Bytes;
use datafusion::sql::parser::{CopyToStatement, CreateExternalTable};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName, Value};
use oxidask_exec::Body;
use oxidask_store::Payload;
use serde::{Deserialize, Serialize};

use crate::FrameError;
use crate::error::Stage;
use crate::join_fallback::let_joins_spill;
use crate::script;
use crate::session::Session;
use crate::source::{self, Options};
use crate::staging;
use crate::table::BatchDecoder;

use local::LocalCommit;
use output::Place;
pub(crate) use output::{Output, PlannedWrite, look, plan};
pub(crate) use part::{Writing, WrittenPart, write as write_part};

/// The table by which an output is looked at again.
const WRITTEN: &str = "oxidask_written";

/// Options of a format that tell how its files are to be read.
const READING_OPTIONS: [&str; 6] = [
    "compression",
    "has_header",
    "delimiter",
    "quote",
    "escape",
    "terminator",
];

/// The operation that shows the parts of a write.
pub(crate) const COMMIT: &str = "commit";

/// Its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitArguments {
    pub(crate) output: Output,
    /// The statement's place, for errors.
    pub(crate) place: String,
}

/// The body of the task that shows the parts of an output.
pub(crate) fn commit_body(output: &Output, place: &str) -> Result<Body, FrameError> {
    let arguments = CommitArguments {
        output: output.clone(),
        place: place.to_owned(),
    };
    match serde_json::to_value(arguments) {
        Ok(serde_json::Value::Object(args)) => Ok(Body {
            args,
            ..Body::new(COMMIT)
        }),
        _ => Err(FrameError::Argument {
            what: "the output cannot be put into a task".to_owned(),
        }),
    }
}

/// The given id of a write, or a new one.
pub(crate) fn id(given: Option<&str>) -> String {
    given.map_or_else(|| staging::new_id(false), str::to_owned)
}

/// Runs a `COPY` statement in this task alone and gives the number of rows. Only this attempt
/// knows its output again.
pub(crate) async fn copy(session: &mut Session, copy: CopyToStatement) -> Result<u64, FrameError> {
    let planned = plan(session, copy, id(None)).await?;
    run(session, planned).await
}

/// Runs a write in this task alone and gives the number of rows.
pub(crate) async fn run(session: &mut Session, planned: PlannedWrite) -> Result<u64, FrameError> {
    let PlannedWrite {
        output,
        statement,
        is_done,
    } = planned;
    if is_done {
        return rows_of(session, &output).await;
    }
    let physical = session.physical(statement, Stage::Plan).await?;
    let Some(query) = physical.children().first().copied().cloned() else {
        let what = "the statement has no rows to write".to_owned();
        return Err(FrameError::Argument { what });
    };
    let rows =
        let_joins_spill(query).and_then(|query| query.execute(0, session.context.task_ctx()));
    let rows = rows.map_err(|error| FrameError::engine(Stage::Write, error))?;
    let part = write_part(&Writing::of(session), &output, 0, rows).await;
    let part = session.blame(part).await?;
    commit(session, &output, vec![part]).await
}

/// Shows the parts of a write, once, and gives the number of rows. May be done again after it was
/// killed at any step. After an error nothing of the write is left.
pub(crate) async fn commit(
    session: &mut Session,
    output: &Output,
    parts: Vec<WrittenPart>,
) -> Result<u64, FrameError> {
    let is_done = parts.iter().any(|part| part.is_done);
    let rows = parts.iter().map(|part| part.rows).sum();
    let has_rows = rows > 0;
    let is_empty = |part: &WrittenPart| has_rows && part.rows == 0;
    // A file without rows is there only for the columns of an output without any.
    let (surplus, parts): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_empty);
    match output.place() {
        Place::Local(target) => {
            let commit = LocalCommit {
                is_folder: output.is_folder,
                may_replace: output.may_replace,
                id: output.id.clone(),
                files: parts.into_iter().flat_map(|part| part.files).collect(),
                target,
            };
            let done = tokio::task::spawn_blocking(move || {
                if is_done && !staging::is_own(&commit.target, &commit.id) {
                    return Err(FrameError::PartUnseen {
                        location: commit.target.display().to_string(),
                        part: commit.target.display().to_string(),
                    });
                }
                let done = commit.run(&mut |_| {});
                if done.is_err() {
                    commit.give_up();
                }
                done
            });
            done.await.map_err(|_| FrameError::Cancelled)??;
        }
        Place::Remote(_) => {
            let surplus: Vec<_> = surplus.into_iter().flat_map(|part| part.uploads).collect();
            let uploads: Vec<_> = parts.into_iter().flat_map(|part| part.uploads).collect();
            let done = remote::commit(session, output, &uploads).await;
            if done.is_err() {
                remote::give_up(session, output, &uploads).await;
            }
            remote::abort(session, output, &surplus).await;
            done?;
        }
    }
    if is_done {
        return rows_of(session, output).await;
    }
    Ok(rows)
}

/// Removes what a write that failed for good has made on storage that is seen from here.
pub(crate) fn give_up(output: &Output) {
    if let Place::Local(target) = output.place()
        && let Ok(folder) = staging::folder_of(&target, &output.id)
    {
        staging::remove(&folder);
    }
}

/// Removes what the tasks of a graph with these bodies have written and not shown, as far as it can
/// be seen from here: for graphs that failed or were cancelled. A graph without a write has nothing.
pub fn discard(bodies: &[Bytes]) {
    for body in bodies.iter().filter_map(|body| Body::decode(body).ok()) {
        if body.op != COMMIT {
            continue;
        }
        let arguments = CommitArguments::deserialize(serde_json::Value::Object(body.args));
        if let Ok(arguments) = arguments {
            give_up(&arguments.output);
        }
    }
}

fn output_error(path: &Path, source: io::Error) -> FrameError {
    let location = path.display().to_string();
    let operation = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "find room on the disk for",
        _ => "write",
    };
    FrameError::Output {
        operation,
        location,
        source,
    }
}

/// The rows of an output that an attempt before this one has put in place.
async fn rows_of(session: &mut Session, output: &Output) -> Result<u64, FrameError> {
    let options = READING_OPTIONS.iter().filter_map(|name| {
        let value = output.options.get(&format!("format.{name}"))?;
        let value = Value::SingleQuotedString(value.clone());
        Some((format!("format.{name}"), value))
    });
    let options: Options = if output.format == "PARQUET" {
        Vec::new()
    } else {
        options.collect()
    };
    let table = CreateExternalTable {
        name: ObjectName::from(vec![Ident::new(WRITTEN)]),
        columns: Vec::new(),
        file_type: output.format.clone(),
        locations: vec![output.location.clone()],
        table_partition_cols: Vec::new(),
        order_exprs: Vec::new(),
        if_not_exists: false,
        or_replace: true,
        temporary: false,
        unbounded: false,
        options,
        constraints: Vec::new(),
    };
    source::create(session, table).await?;
    let count = script::parse_one(&format!("SELECT count(*) FROM {WRITTEN}"))?;
    first_number(&session.query(count).await?)
}

fn first_number(table: &Payload) -> Result<u64, FrameError> {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::Int64Type;
    let mut number = 0;
    for batch in BatchDecoder::new(table)? {
        let batch = batch?;
        let column = batch.columns().first();
        let values = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
        if let Some(value) = values.and_then(|values| values.values().first()) {
            number = u64::try_from(*value).unwrap_or_default();
        }
    }
    Ok(number)
}
