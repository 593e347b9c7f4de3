//! What can go wrong with a journal, and what its user can do.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use oxidask_diagnostic::{Code, Coded};
use thiserror::Error;

use crate::format::{FORMAT, FORMAT_OLDEST, Incarnation};

/// Why the journal refused something. No error has removed or changed a durable record.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Another process has the folder.
    #[error("the journal `{}` is in use by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Bytes that were durable are not what they were.
    #[error("the journal is damaged: `{}` at byte `{offset}`: {damage}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        damage: Damage,
    },
    /// A segment that others follow or build upon is not there.
    #[error("a part of the journal is missing: `{}`", path.display())]
    Missing {
        /// The segment.
        path: PathBuf,
    },
    /// The segment's bytes are laid out in a way that this build does not know.
    #[error(
        "the journal `{}` has format `{found}`, this build reads `{FORMAT_OLDEST}` to `{FORMAT}`",
        path.display()
    )]
    Format {
        /// The segment.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The records are of a version that the caller does not read.
    #[error(
        "the journal `{}` has records of version `{found}`, this build reads `{oldest}` to `{current}`",
        path.display()
    )]
    Schema {
        /// The segment.
        path: PathBuf,
        /// Its records' version.
        found: u32,
        /// The oldest version that is read.
        oldest: u32,
        /// The newest version that is read.
        current: u32,
    },
    /// A segment of another incarnation is in the folder.
    #[error(
        "the journal `{}` is of incarnation `{found}`, and `{expected}` is expected",
        path.display()
    )]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// Its incarnation.
        found: Incarnation,
        /// The incarnation of the caller, or of the other segments.
        expected: Incarnation,
    },
    /// No space is left. What was durable stays so; the records wait for the next commit.
    #[error("the disk of the journal `{}` is full", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system failed in another way.
    #[error("the journal cannot {operation} `{}`", path.display())]
    Io {
        /// What was being done, as an infinitive.
        operation: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Too much waits to be written. Nothing was taken.
    #[error("the journal is behind: `{waiting}` bytes wait, and at most `{limit}` may")]
    Behind {
        /// Bytes that wait.
        waiting: usize,
        /// Bytes that may wait.
        limit: usize,
    },
    /// One record is too long.
    #[error("a record of the journal has `{bytes}` bytes, and at most `{limit}` are allowed")]
    RecordTooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is allowed.
        limit: usize,
    },
    /// A snapshot was to go on, but there is none: it was not begun, or given up after an error.
    #[error("no snapshot of the journal is being written")]
    NoSnapshot,
    /// The thread that writes has ended.
    #[error("the journal is closed")]
    Closed,
}

/// What does not fit in a damaged segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The header's checksum does not fit.
    Header,
    /// The header names another number than the file's name.
    Name,
    /// The bytes are not the beginning of a frame.
    FrameHead,
    /// The checksum of a frame does not fit.
    Checksum,
    /// The segment ends in the middle of a frame, or earlier than the segment after it says.
    Short,
    /// A mark names another place than its own, or another record than the next.
    Mark,
    /// A frame stands where none of its class may be.
    Misplaced,
    /// A snapshot has lost its end, and what came before it was removed.
    NoEnd,
    /// The segment holds records but is not linked with the others.
    Unlinked,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "the header's checksum does not fit",
            Self::Name => "the header does not fit the file's name",
            Self::FrameHead => "no record begins here",
            Self::Checksum => "the checksum of a record does not fit",
            Self::Short => "the segment is cut short",
            Self::Mark => "a commit mark does not fit its place",
            Self::Misplaced => "a record of this class may not be here",
            Self::NoEnd => "the end of the snapshot is gone",
            Self::Unlinked => "the segment is not linked with the others",
        })
    }
}

impl JournalError {
    pub(crate) fn io(operation: &'static str, path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::DiskFull { path, source },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    /// Whether the same call may succeed later, without anything being repaired by hand.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. } | Self::Io { .. } | Self::Behind { .. }
        )
    }

    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "locked",
            Self::Damaged { .. } => "damaged",
            Self::Missing { .. } => "missing",
            Self::Format { .. } => "format",
            Self::Schema { .. } => "schema",
            Self::Foreign { .. } => "foreign",
            Self::DiskFull { .. } => "disk_full",
            Self::Io { .. } => "io",
            Self::Behind { .. } => "behind",
            Self::RecordTooLarge { .. } => "record_too_large",
            Self::NoSnapshot => "no_snapshot",
            Self::Closed => "closed",
        }
    }
}

impl Coded for JournalError {
    fn code(&self) -> Code {
        match self {
            Self::Locked { .. } => Code::JournalLocked,
            Self::Damaged { .. } => Code::JournalDamaged,
            Self::Missing { .. } => Code::JournalMissing,
            Self::Format { .. } | Self::Schema { .. } => Code::JournalFormat,
            Self::Foreign { .. } => Code::JournalForeign,
            Self::DiskFull { .. } => Code::JournalDiskFull,
            Self::Io { .. } | Self::NoSnapshot | Self::Closed => Code::JournalUnusable,
            Self::Behind { .. } => Code::JournalBehind,
            Self::RecordTooLarge { .. } => Code::LimitPassed,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}
