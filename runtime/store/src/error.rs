//! What can go wrong when something is to be kept or read.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use oxidask_diagnostic::{Code, Coded};
use thiserror::Error;

use crate::key::ResultKey;

/// Why the store refused something.
///
/// Errors of the disk are shared, because several tasks may have waited for the same read.
#[derive(Debug, Clone, Error)]
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
    /// Keeping it would pass the limit, and the disk takes nothing more. Nothing has changed.
    #[error(
        "it needs `{needed}` bytes, `{held}` of `{limit}` bytes are taken, and the disk below \
         `{folder}` takes nothing more"
    )]
    DiskFull {
        /// What was to be kept.
        key: ResultKey,
        /// Its size in bytes.
        needed: u64,
        /// Bytes that are held by others.
        held: u64,
        /// Bytes that may be held.
        limit: u64,
        /// Where spilled results go.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: Arc<io::Error>,
    },
    /// It is not here.
    #[error("result `{key}` is not held here any more")]
    Missing {
        /// What was to be read.
        key: ResultKey,
    },
    /// Its file does not hold what was written. The result is gone.
    #[error("the spilled result `{key}` is damaged: {damage} in `{path}`")]
    Damaged {
        /// What was to be read.
        key: ResultKey,
        /// Its file.
        path: PathBuf,
        /// What is wrong with the file.
        damage: Damage,
    },
    /// Its file cannot be read. The result is gone.
    #[error("the spilled result `{key}` cannot be read from `{path}`")]
    Read {
        /// What was to be read.
        key: ResultKey,
        /// Its file.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The folder for spilled results cannot be made.
    #[error("the folder `{folder}` for spilled results cannot be used")]
    OpenFolder {
        /// The folder.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Too many reads wait for the disk.
    #[error("`{reads_max}` reads wait for the disk already")]
    ReadsQueued {
        /// How many may wait.
        reads_max: usize,
    },
    /// The store ended while something was read.
    #[error("the store has ended")]
    Ended,
}

/// What is wrong with a spill file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Damage {
    /// It does not begin as it should.
    #[error("the header is not the one that was written")]
    Header,
    /// It ends too early.
    #[error("the file ends too early")]
    Length,
    /// Its content has another checksum.
    #[error("the checksum is wrong at byte `{offset}` of the result")]
    Checksum {
        /// Where the damaged part begins.
        offset: u64,
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
            _ => true,
        }
    }

    /// Whether the result is not here or not whole, so that it must be had from elsewhere.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Damaged { .. } | Self::Read { .. }
        )
    }

    /// The result that this is about.
    pub fn key(&self) -> Option<ResultKey> {
        match self {
            Self::MemoryExceeded { key, .. }
            | Self::DiskFull { key, .. }
            | Self::Missing { key }
            | Self::Damaged { key, .. }
            | Self::Read { key, .. } => Some(*key),
            Self::OpenFolder { .. } | Self::ReadsQueued { .. } | Self::Ended => None,
        }
    }

    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MemoryExceeded { .. } => "memory_exceeded",
            Self::DiskFull { .. } => "disk_full",
            Self::Missing { .. } => "missing",
            Self::Damaged { .. } => "damaged",
            Self::Read { .. } => "read",
            Self::OpenFolder { .. } => "open_folder",
            Self::ReadsQueued { .. } => "reads_queued",
            Self::Ended => "ended",
        }
    }
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::MemoryExceeded { .. } => Code::MemoryExceeded,
            Self::DiskFull { .. } | Self::OpenFolder { .. } => Code::WorkerDisk,
            Self::Damaged { .. } | Self::Read { .. } => Code::SpillDamaged,
            Self::Missing { .. } | Self::ReadsQueued { .. } | Self::Ended => {
                Code::ResultUnavailable
            }
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}

/// A result that cannot be had from memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Absent {
    /// It is not here at all, or not whole any more.
    #[error("{0}")]
    Missing(ResultKey),
    /// It lies on the disk: load it.
    #[error("{0}")]
    OnDisk(ResultKey),
}
