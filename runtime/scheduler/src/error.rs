//! What can end the scheduler.

use std::io;

use oxidask_diagnostic::{Code, Coded};
use oxidask_journal::JournalError;

/// The scheduler cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The thread of the main loop cannot be started.
    #[error("the scheduler's main loop cannot be started")]
    StartLoop {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The main loop ended although nobody asked it to: a defect.
    #[error("the scheduler's main loop ended")]
    LoopEnded,
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record of the journal is not what it must be.
    #[error("record {sequence} of the journal does not fit: {reason}")]
    JournalRecord {
        /// Its place.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The gRPC port cannot be served.
    #[error("the scheduler cannot serve its gRPC port")]
    Grpc {
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
    /// The HTTP port cannot be served.
    #[error("the scheduler cannot serve its HTTP port")]
    Http {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Coded for SchedulerError {
    fn code(&self) -> Code {
        match self {
            Self::StartLoop { .. } | Self::Grpc { .. } | Self::Http { .. } => Code::ClusterStart,
            Self::LoopEnded => Code::SchedulerEnded,
            Self::Journal(error) => error.code(),
            Self::JournalRecord { .. } => Code::JournalDamaged,
        }
    }
}
