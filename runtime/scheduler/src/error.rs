//! What can end the scheduler.

use std::io;

use oxidask_diagnostic::{Code, Coded};

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
        }
    }
}
