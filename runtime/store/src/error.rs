//! What can go wrong when something is to be kept.

use std::borrow::Cow;

use oxidask_diagnostic::{Code, Coded};
use thiserror::Error;

use crate::key::ResultKey;

/// Why the store refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Keeping it would pass the limit. Nothing has changed.
    #[error("it needs `{needed}` bytes, and `{held}` of `{limit}` bytes are taken")]
    MemoryExceeded {
        /// What was to be kept.
        key: ResultKey,
        /// Its size in bytes.
        needed: u64,
        /// Bytes that are held by others.
        held: u64,
        /// Bytes that may be held.
        limit: u64,
    },
}

impl StoreError {
    /// Whether there can be room for it later: not if it alone passes the limit.
    ///
    /// The worker uses this to say whether another attempt of the task may do better. A task whose
    /// result is larger than a whole worker is not worth its user's retries.
    pub fn may_fit_later(&self) -> bool {
        match self {
            Self::MemoryExceeded { needed, limit, .. } => needed <= limit,
        }
    }

    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MemoryExceeded { .. } => "memory_exceeded",
        }
    }
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::MemoryExceeded { .. } => Code::MemoryExceeded,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}
