//! Questions that are not allowed.

use std::borrow::Cow;

use oxidask_diagnostic::{Code, Coded};

/// Why a question gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoordinationError {
    /// It is not one of the questions.
    #[error("a question of a client cannot be read: {0}")]
    Unreadable(String),
    /// It brings another number of values than it says.
    #[error("a question of a client brings {found} values instead of {expected}")]
    Values {
        /// That many should be there.
        expected: usize,
        /// That many are there.
        found: usize,
    },
    /// It goes beyond a bound.
    #[error("{what} would be more than {limit}")]
    Full {
        /// What there would be too many of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

impl Coded for CoordinationError {
    fn code(&self) -> Code {
        match self {
            CoordinationError::Unreadable(_) | CoordinationError::Values { .. } => {
                Code::CoordinationUnreadable
            }
            CoordinationError::Full { .. } => Code::CoordinationFull,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}
