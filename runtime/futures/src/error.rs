//! What can go wrong with futures.

use std::borrow::Cow;

use oxidask_diagnostic::{Code, Coded};

/// Why something that a client said is not done.
#[derive(Debug, thiserror::Error)]
pub enum FuturesError {
    /// A submission contradicts itself.
    #[error("a submission of tasks is not valid: {0}")]
    Submission(String),
    /// A submission passes a limit.
    #[error("a submission of tasks has {count} {what}, at most {limit} are allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        count: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// Tasks ask for too many different things.
    #[error("tasks of Dask clients have more than {limit} different requirements")]
    Requirements {
        /// How many are allowed.
        limit: usize,
    },
    /// The text of a question is not one.
    #[error("the question `{operation}` cannot be read: {source}")]
    Question {
        /// What was asked; empty if it does not say.
        operation: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// There is no such question.
    #[error("`{operation}` is nothing that the scheduler answers")]
    UnknownQuestion {
        /// What was asked.
        operation: String,
    },
    /// The answer took too long.
    #[error("`{operation}` was not answered within {seconds} s")]
    TimedOut {
        /// What was asked.
        operation: String,
        /// The time that was given.
        seconds: f64,
    },
}

impl Coded for FuturesError {
    fn code(&self) -> Code {
        match self {
            Self::Submission(_) | Self::Limit { .. } => Code::SubmissionRefused,
            Self::Requirements { .. } => Code::RequirementsExhausted,
            Self::Question { .. } | Self::UnknownQuestion { .. } => Code::QuestionRefused,
            Self::TimedOut { .. } => Code::QuestionTimedOut,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}
