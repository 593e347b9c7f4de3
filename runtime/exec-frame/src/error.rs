//! What goes wrong with tables, and how the engine's errors become the product's.
//!
//! Owns the error enum of this crate and the one place that reads the engine's errors: which code
//! each has, which words a user sees, and whether another attempt may do better.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::TaskError;

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
    #[error("{}", engine_message(source))]
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
                *code == Code::DataUnreadable || is_cast(source.find_root())
            }
            _ => false,
        }
    }

    /// Whether another attempt may do better: only where the system failed, not the data.
    fn is_retryable(&self) -> bool {
        match self {
            Self::Output { .. } => true,
            Self::Engine { source, .. } => {
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
        let mut diagnostic = match self {
            Self::Told(diagnostic) => diagnostic,
            error => Diagnostic::from_error(&error),
        };
        if matches!(
            diagnostic.code,
            Code::DataUnreadable | Code::QueryFailed | Code::SqlPlan
        ) {
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
            diagnostic,
            is_retryable,
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
            Self::OutputExists { .. } | Self::OutputKept { .. } | Self::Output { .. } => {
                Code::DataUnwritable
            }
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
            Self::OutputKept { .. } => "choose another location, or remove it yourself".into(),
            Self::Output { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space, or choose a location on another disk".into()
            }
            Self::Engine {
                code: Code::DataUnreadable,
                source,
            } if is_cast(source.find_root()) => CAST_HINT.into(),
            Self::Damaged { what } if what.contains("parsing value") => CAST_HINT.into(),
            Self::Told(diagnostic) => diagnostic.hint.clone().into(),
            other => other.code().hint().into(),
        }
    }
}

const CAST_HINT: &str = "name the columns and their types in CREATE EXTERNAL TABLE, or name the \
    text that stands for a missing value: OPTIONS ('null_value' 'NA')";

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
    let root = error.find_root();
    let words = match root {
        DataFusionError::ArrowError(error, _) => arrow_message(error),
        DataFusionError::Collection(errors) => errors
            .first()
            .map_or_else(|| root.message().into_owned(), engine_message),
        _ => root.message().into_owned(),
    };
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
    fn finds_the_io_error_inside_others() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = DataFusionError::External(Box::new(io::Error::other(full))).context("c");
        assert_eq!(
            io_error(&wrapped).unwrap().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
