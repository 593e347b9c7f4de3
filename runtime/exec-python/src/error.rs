//! What can go wrong around a task, and how it reads.

use std::borrow::Cow;
use std::fmt;
use std::io;

use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::{MemoryEnd, TaskError};

/// What goes wrong around tasks of Python; what they raise themselves is not here.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// The process that ran the task has ended.
    #[error("the process that ran the task ended with {status}")]
    Died {
        /// How it ended.
        status: String,
        /// The last lines that it printed.
        tail: String,
    },
    /// It was ended because of its memory.
    #[error("the process that ran the task was ended because memory ran out: it used {} of the worker's {}",
        Size(.0.program_bytes), Size(.0.limit_bytes))]
    EndedForMemory(MemoryEnd),
    /// The system has ended it.
    #[error("the system ended the process that ran the task with {status} because memory ran out")]
    OutOfMemory {
        /// How it ended.
        status: String,
        /// The last lines that it printed.
        tail: String,
    },
    /// Python does not start.
    #[error("Python cannot be started: `{program}` {reason}")]
    Start {
        /// The program.
        program: String,
        /// What happened.
        reason: String,
        /// What it said.
        tail: String,
    },
    /// A value cannot be handed to a process.
    #[error("the inputs of the task cannot be handed to its process")]
    Input(#[source] io::Error),
    /// The result of a process cannot be read.
    #[error("the result of the task cannot be taken over from its process")]
    Output(#[source] io::Error),
    /// Too many children have died under their tasks before this one could begin.
    #[error("the task was handed to {0} processes that ended before it began")]
    NeverBegun(u32),
    /// A body without content.
    #[error("the task has no functions")]
    NoTable,
    /// The run was cancelled.
    #[error("the attempt was cancelled")]
    Cancelled,
    /// A command was not answered.
    #[error("a command was not carried out within {0} s")]
    CommandTimeout(u64),
}

impl Coded for PythonError {
    fn code(&self) -> Code {
        match self {
            Self::Died { .. } | Self::NeverBegun(_) => Code::PythonDied,
            Self::EndedForMemory(_) | Self::OutOfMemory { .. } => Code::MemoryRanOut,
            Self::Start { .. } => Code::PythonStart,
            Self::Input(_) | Self::Output(_) => Code::WorkerDisk,
            Self::NoTable => Code::TaskFailed,
            Self::Cancelled => Code::GraphCancelled,
            Self::CommandTimeout(_) => Code::TaskTimeout,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::NoTable => "use a client and a worker of the same version".into(),
            Self::CommandTimeout(_) => "make the command shorter, or run it as a task".into(),
            _ => self.code().hint().into(),
        }
    }
}

impl PythonError {
    /// With what was printed.
    pub(crate) fn diagnostic(&self) -> Diagnostic {
        let diagnostic = Diagnostic::from_error(self);
        match self {
            Self::Died { tail, .. } | Self::OutOfMemory { tail, .. } | Self::Start { tail, .. }
                if !tail.is_empty() =>
            {
                let tail = tail.replace('\n', "\n    ");
                diagnostic.with_cause(format!("the last lines that it printed:\n    {tail}"))
            }
            Self::Died { .. } | Self::OutOfMemory { .. } | Self::Start { .. } => {
                diagnostic.with_cause("it printed nothing")
            }
            _ => diagnostic,
        }
    }

    /// Another worker, or another time, may do better, but for a body that is wrong.
    pub(crate) fn into_task_error(self) -> TaskError {
        let diagnostic = self.diagnostic();
        match self {
            Self::NoTable => TaskError::permanent(diagnostic),
            _ => TaskError::retryable(diagnostic),
        }
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEBI: u64 = 1 << 20;
        if self.0 >= MEBI << 10 {
            write!(f, "{:.1} GiB", self.0 as f64 / (MEBI << 10) as f64)
        } else {
            write!(f, "{:.1} MiB", self.0 as f64 / MEBI as f64)
        }
    }
}
