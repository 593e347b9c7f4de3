//! What goes wrong with tables. Owns the error enum of this crate and the one place that reads the
//! engine's errors: which code each has, which words users see, whether another attempt may help.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::TaskError;

use crate::freshness::FileFault;
use crate::remote_store::{Step, StoreFault};

/// What was being done when the engine failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A table or view was defined, or a statement planned.
    Plan,
    /// Rows were read and computed.
    Run,
    /// Rows were computed and written.
    Write,
}

/// An error of a table operation.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Something is not supported.
    #[error("{what}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What works instead.
        hint: Cow<'static, str>,
    },
    /// An argument or input of an operation does not fit.
    #[error("{what}")]
    Argument {
        /// Which, and why.
        what: String,
    },
    /// There is nothing to read.
    #[error("{what}")]
    Missing {
        /// What is not there.
        what: String,
    },
    /// A file's content does not fit its format.
    #[error("{what}")]
    Damaged {
        /// File, line and fault.
        what: String,
    },
    /// A file is not the one that was planned.
    #[error("{what}")]
    Changed {
        /// Which, and how.
        what: String,
    },
    /// The output is already there.
    #[error("the output `{location}` already exists")]
    OutputExists {
        /// Where.
        location: String,
    },
    /// An output is there and must not be replaced.
    #[error("the output `{location}` cannot be replaced: {reason}")]
    OutputKept {
        /// Where.
        location: String,
        /// Why.
        reason: String,
    },
    /// A part of an output is not where the committing task looks.
    #[error(
        "`{part}`, a part of the output `{location}`, is not on the storage that this worker sees"
    )]
    PartUnseen {
        /// The output.
        location: String,
        /// The part, by its temporary name.
        part: String,
    },
    /// The output cannot be written.
    #[error("cannot {operation} `{location}`")]
    Output {
        /// The step that failed.
        operation: &'static str,
        /// Where.
        location: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The engine failed.
    #[error("{}", if *code == Code::MemoryExceeded { NEEDS_MEMORY.to_owned() } else { engine_message(source) })]
    Engine {
        /// What was being done.
        code: Code,
        /// What the engine says.
        source: Box<DataFusionError>,
    },
    /// The result does not fit into the worker's memory.
    #[error("the result of the query does not fit into the worker's memory")]
    ResultTooLarge {
        /// Who holds the memory.
        source: Box<DataFusionError>,
    },
    /// A table's bytes cannot be read or written.
    #[error("the bytes of a table cannot be read or written")]
    Table(#[from] ArrowError),
    /// Already in its final form.
    #[error("{0}")]
    Told(Diagnostic),
    /// The attempt was cancelled.
    #[error("the attempt was cancelled")]
    Cancelled,
}

impl FrameError {
    /// An error of the engine at a stage.
    pub(crate) fn engine(stage: Stage, source: DataFusionError) -> Self {
        Self::Engine {
            code: engine_code(stage, &source),
            source: Box::new(source),
        }
    }

    /// Whether the engine stumbled over the content of a file.
    pub(crate) fn is_about_content(&self) -> bool {
        match self {
            Self::Engine { code, source } => {
                let is_of_content = *code == Code::DataUnreadable || is_cast(source.find_root());
                is_of_content && find::<StoreFault>(source.as_ref()).is_none()
            }
            _ => false,
        }
    }

    /// Whether another attempt may do better: only where the system failed, not the data.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Output { .. } => true,
            Self::Engine { source, .. } => {
                if find::<FileFault>(source.as_ref()).is_some() {
                    return false;
                }
                if let Some(fault) = find::<StoreFault>(source.as_ref()) {
                    return fault.is_transient;
                }
                let is_missing = matches!(
                    source.find_root(),
                    DataFusionError::ObjectStore(error)
                        if matches!(**error, object_store::Error::NotFound { .. })
                );
                !is_missing
                    && (io_error(source.as_ref()).is_some()
                        || matches!(source.find_root(), DataFusionError::ObjectStore(_)))
            }
            _ => false,
        }
    }

    /// The error as a task reports it, with the place of the statement in front.
    pub(crate) fn into_task_error(self, place: Option<&str>) -> TaskError {
        let is_retryable = self.is_retryable();
        let is_of_store = find::<StoreFault>(&self).is_some();
        let mut diagnostic = match self {
            Self::Told(diagnostic) => diagnostic,
            Self::Engine {
                code: Code::MemoryExceeded,
                source,
            } => Diagnostic::new(Code::MemoryExceeded, NEEDS_MEMORY)
                .with_hint(MEMORY_HINT)
                .with_cause(engine_message(&source)),
            error => Diagnostic::from_error(&error),
        };
        if is_of_store
            || matches!(
                diagnostic.code,
                Code::DataUnreadable | Code::DataChanged | Code::QueryFailed | Code::SqlPlan
            )
        {
            // The engine's words are in the message already.
            diagnostic.causes.clear();
        }
        if let Some(place) = place {
            let hint = diagnostic.hint.clone();
            let causes = std::mem::take(&mut diagnostic.causes);
            diagnostic =
                Diagnostic::new(diagnostic.code, format!("{place}: {}", diagnostic.message))
                    .with_hint(hint);
            diagnostic.causes = causes;
        }
        TaskError {
            is_retryable,
            ..TaskError::retryable(diagnostic)
        }
    }
}

impl From<Diagnostic> for FrameError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Told(diagnostic)
    }
}

impl Coded for FrameError {
    fn code(&self) -> Code {
        match self {
            Self::Unsupported { .. } => Code::SqlUnsupported,
            Self::Argument { .. } => Code::OperationUnknown,
            Self::Missing { .. } | Self::Damaged { .. } | Self::Table(_) => Code::DataUnreadable,
            Self::Changed { .. } => Code::DataChanged,
            Self::OutputExists { .. }
            | Self::OutputKept { .. }
            | Self::PartUnseen { .. }
            | Self::Output { .. } => Code::DataUnwritable,
            Self::Engine { code, .. } => *code,
            Self::ResultTooLarge { .. } => Code::MemoryExceeded,
            Self::Told(diagnostic) => diagnostic.code,
            Self::Cancelled => Code::GraphCancelled,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::OutputExists { .. } => "remove it, choose another location, or let COPY replace \
                it with `OPTIONS ('overwrite' 'true')`"
                .into(),
            Self::PartUnseen { .. } => "write to an object store, or mount one volume at the same \
                path in all workers; nothing was put in place"
                .into(),
            Self::OutputKept { .. } => "choose another location, or remove it yourself".into(),
            Self::Output { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space, or choose a location on another disk".into()
            }
            Self::Engine { source, .. } if find::<StoreFault>(source.as_ref()).is_some() => {
                find::<StoreFault>(source.as_ref())
                    .map_or("", |fault| fault.hint)
                    .into()
            }
            Self::Engine {
                code: Code::DataUnreadable,
                source,
            } if is_cast(source.find_root()) => CAST_HINT.into(),
            Self::Damaged { what } if what.contains("parsing value") => CAST_HINT.into(),
            Self::Engine {
                code: Code::SqlPlan,
                source,
            } => column_hint(source),
            Self::Told(diagnostic) => diagnostic.hint.clone().into(),
            other => other.code().hint().into(),
        }
    }
}

const CAST_HINT: &str = "name the columns and their types in CREATE EXTERNAL TABLE, or name the \
    text that stands for a missing value: OPTIONS ('null_value' 'NA')";

const NEEDS_MEMORY: &str = "the query needs more memory than the worker may give it";

const MEMORY_HINT: &str = "raise the worker's memory limit, or read and keep less: fewer columns, \
    a filter, an aggregate before a sort or a join";

/// Columns that a message names.
const COLUMNS_SHOWN_MAX: usize = 20;

/// The column that no table has, and those that there are.
fn unknown_column(error: &DataFusionError) -> Option<(&Column, &[Column])> {
    let DataFusionError::SchemaError(error, _) = error.find_root() else {
        return None;
    };
    match &**error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => Some((field, valid_fields)),
        _ => None,
    }
}

/// As a person writes it, without the catalog.
fn column_name(column: &Column, is_qualified: bool) -> String {
    match &column.relation {
        Some(relation) if is_qualified => format!("{}.{}", relation.table(), column.name),
        _ => column.name.clone(),
    }
}

fn column_message(unknown: &Column, known: &[Column]) -> String {
    // With the right name but the wrong table, the tables are what matters.
    let is_qualified = known.iter().any(|column| column.name == unknown.name);
    let mut names: Vec<String> = Vec::new();
    for column in known {
        let name = format!("`{}`", column_name(column, is_qualified));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > COLUMNS_SHOWN_MAX {
        names.truncate(COLUMNS_SHOWN_MAX);
        names.push("…".to_owned());
    }
    let unknown = column_name(unknown, true);
    if names.is_empty() {
        return format!("no column named `{unknown}`; there are no columns here");
    }
    format!(
        "no column named `{unknown}`; there are {}",
        names.join(", ")
    )
}

fn column_hint(error: &DataFusionError) -> Cow<'static, str> {
    let nearest = unknown_column(error).and_then(|(unknown, known)| {
        oxidask_diagnostic::nearest(
            &unknown.name,
            known.iter().map(|column| column.name.as_str()),
        )
    });
    match nearest {
        Some(name) if name.chars().any(char::is_uppercase) => {
            format!("did you mean `\"{name}\"`? Names with capitals stand in double quotes").into()
        }
        Some(name) => format!("did you mean `{name}`?").into(),
        None => Code::SqlPlan.hint().into(),
    }
}

/// The engine lists every attempt to fit the arguments; what was called and what there is suffices.
fn function_message(words: &str) -> Option<String> {
    let (_, rest) = words.split_once("No function matches the given name and argument types '")?;
    let (call, rest) = rest.split_once('\'')?;
    let candidates = rest.split_once("Candidate functions:").map(|(_, list)| {
        let candidates = list.lines().map(str::trim).filter(|line| !line.is_empty());
        candidates
            .map(|line| format!("`{line}`"))
            .collect::<Vec<_>>()
    });
    let candidates = candidates.unwrap_or_default().join(", ");
    Some(if candidates.is_empty() {
        format!("no function fits the call `{call}`")
    } else {
        format!("no function fits the call `{call}`; there are {candidates}")
    })
}

/// An error of some type among the causes of another.
pub(crate) fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        if let Some(DataFusionError::Collection(errors)) = error.downcast_ref() {
            return errors.iter().find_map(|error| find(error));
        }
        // The source of an I/O error is not what it wraps, but that one's source.
        if let Some(inner) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            return find(inner);
        }
        next = error.source();
    }
    None
}

/// The I/O error at the bottom of an error, if there is one.
pub(crate) fn io_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            // An I/O error may only wrap another one.
            let inner = io_error.get_ref().and_then(|inner| io_error_inside(inner));
            return inner.or(Some(io_error));
        }
        if let Some(DataFusionError::Collection(errors)) = error.downcast_ref() {
            return errors.iter().find_map(|error| io_error(error));
        }
        next = error.source();
    }
    None
}

fn io_error_inside<'a>(error: &'a (dyn StdError + Send + Sync + 'static)) -> Option<&'a io::Error> {
    io_error(error as &(dyn StdError + 'static))
}

/// Whether a value's text does not fit the column's type.
fn is_cast(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ArrowError(error, _) => {
            matches!(&**error, ArrowError::ParseError(words) if words.contains("parsing value"))
        }
        _ => false,
    }
}

fn engine_code(stage: Stage, error: &DataFusionError) -> Code {
    let default = match stage {
        Stage::Plan => Code::SqlPlan,
        Stage::Run | Stage::Write => Code::QueryFailed,
    };
    if find::<FileFault>(error).is_some() {
        return Code::DataChanged;
    }
    if let Some(fault) = find::<StoreFault>(error) {
        return match fault.step {
            Step::Write | Step::Remove => Code::DataUnwritable,
            Step::Open | Step::Look if stage == Stage::Write => Code::DataUnwritable,
            Step::Open | Step::Look | Step::Read => Code::DataUnreadable,
        };
    }
    match error.find_root() {
        DataFusionError::ResourcesExhausted(words) if words.contains("disk space") => {
            Code::WorkerDisk
        }
        DataFusionError::ResourcesExhausted(_) => Code::MemoryExceeded,
        DataFusionError::SQL(..) => Code::SqlSyntax,
        DataFusionError::NotImplemented(_) => Code::SqlUnsupported,
        DataFusionError::Plan(words) if words.contains("not supported: ") => Code::SqlUnsupported,
        DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::Configuration(_) => Code::SqlPlan,
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) if stage == Stage::Write => {
            Code::DataUnwritable
        }
        DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_)
        | DataFusionError::ParquetError(_) => Code::DataUnreadable,
        error @ DataFusionError::ArrowError(arrow, _) => match &**arrow {
            ArrowError::CsvError(_)
            | ArrowError::JsonError(_)
            | ArrowError::ParquetError(_)
            | ArrowError::IpcError(_)
            | ArrowError::IoError(..) => Code::DataUnreadable,
            _ if is_cast(error) => Code::DataUnreadable,
            ArrowError::MemoryError(_) => Code::MemoryExceeded,
            ArrowError::NotYetImplemented(_) => Code::SqlUnsupported,
            ArrowError::SchemaError(_) => default,
            _ => Code::QueryFailed,
        },
        DataFusionError::Execution(words) if words.contains("whilst inferring schema") => {
            Code::DataUnreadable
        }
        error if io_error(error).is_some() => Code::DataUnreadable,
        _ => default,
    }
}

/// The engine's words in the form of the product's messages.
fn engine_message(error: &DataFusionError) -> String {
    if let Some(fault) = find::<FileFault>(error) {
        return fault.to_string();
    }
    if let Some(fault) = find::<StoreFault>(error) {
        return fault.to_string();
    }
    let root = error.find_root();
    let words = match root {
        DataFusionError::ArrowError(error, _) => arrow_message(error),
        DataFusionError::Collection(errors) => errors
            .first()
            .map_or_else(|| root.message().into_owned(), engine_message),
        _ => root.message().into_owned(),
    };
    if let Some((unknown, known)) = unknown_column(root) {
        return column_message(unknown, known);
    }
    if let Some(message) = function_message(&words) {
        return message;
    }
    // The engine asks to report a defect to its own authors.
    let words = words
        .split("\nThis issue was likely caused")
        .next()
        .unwrap_or_default();
    let words = words.replace("datafusion.public.", "");
    let words = words.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    lowered(words.trim().trim_end_matches('.'))
}

/// With a small first letter, as all messages have; a word in capitals keeps them.
pub(crate) fn lowered(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|first| match letters.clone().next() {
        Some(second) if second.is_uppercase() => first.to_string(),
        _ => first.to_lowercase().to_string(),
    });
    first.unwrap_or_default() + letters.as_str()
}

fn arrow_message(error: &ArrowError) -> String {
    match error {
        ArrowError::CsvError(words)
        | ArrowError::JsonError(words)
        | ArrowError::ParquetError(words)
        | ArrowError::ParseError(words)
        | ArrowError::CastError(words)
        | ArrowError::ComputeError(words)
        | ArrowError::ArithmeticOverflow(words)
        | ArrowError::InvalidArgumentError(words) => words.clone(),
        ArrowError::DivideByZero => "division by zero".to_owned(),
        ArrowError::ExternalError(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(stage: Stage, error: DataFusionError) -> Code {
        FrameError::engine(stage, error).code()
    }

    #[test]
    fn errors_of_the_engine_get_the_code_of_their_root() {
        let arrow = |error: ArrowError| DataFusionError::ArrowError(Box::new(error), None);
        let wrapped = arrow(ArrowError::DivideByZero).context("while it ran");
        assert_eq!(code(Stage::Run, wrapped), Code::QueryFailed);
        assert_eq!(
            code(Stage::Run, arrow(ArrowError::CsvError("x".into()))),
            Code::DataUnreadable
        );
        assert_eq!(
            code(Stage::Plan, DataFusionError::Plan("x".into())),
            Code::SqlPlan
        );
        let memory = DataFusionError::ResourcesExhausted("no more".into());
        assert_eq!(code(Stage::Run, memory), Code::MemoryExceeded);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(
            code(Stage::Write, DataFusionError::IoError(full)),
            Code::DataUnwritable
        );
    }

    #[test]
    fn words_start_small_and_name_no_catalog() {
        let error = DataFusionError::Plan("Table 'datafusion.public.x' not found.".to_owned());
        assert_eq!(engine_message(&error), "table 'x' not found");
        let error = DataFusionError::Plan("SUM takes numbers".to_owned());
        assert_eq!(engine_message(&error), "SUM takes numbers");
    }

    #[test]
    fn an_unknown_column_is_told_with_those_that_there_are() {
        let unknown = |name: &str, known: &[&str]| {
            let error = SchemaError::FieldNotFound {
                field: Box::new(Column::from_qualified_name(name)),
                valid_fields: known
                    .iter()
                    .map(|name| Column::from_qualified_name(*name))
                    .collect(),
            };
            let error = DataFusionError::SchemaError(Box::new(error), Box::new(None));
            let error = FrameError::engine(Stage::Plan, error);
            (error.to_string(), error.hint().into_owned())
        };
        let (message, hint) = unknown("nmae", &["t.name", "t.n", "u.n"]);
        assert_eq!(message, "no column named `nmae`; there are `name`, `n`");
        assert_eq!(hint, "did you mean `name`?");
        let (message, _) = unknown("x.name", &["t.name", "t.n"]);
        assert_eq!(
            message,
            "no column named `x.name`; there are `t.name`, `t.n`"
        );
    }

    #[test]
    fn a_call_that_fits_no_function_is_told_shortly() {
        let words = "Function 'f' failed.\nThis issue was likely caused by a bug. No function \
                     matches the given name and argument types 'f(Utf8)'. You might need to add \
                     explicit type casts.\n\tCandidate functions:\n\tf(Int64)\n\tf(Float64)";
        assert_eq!(
            engine_message(&DataFusionError::Plan(words.to_owned())),
            "no function fits the call `f(Utf8)`; there are `f(Int64)`, `f(Float64)`"
        );
    }

    #[test]
    fn finds_the_io_error_inside_others() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = DataFusionError::External(Box::new(io::Error::other(full))).context("c");
        assert_eq!(
            io_error(&wrapped).unwrap().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
