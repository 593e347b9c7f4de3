//! Why a worker ends.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use oxidask_comm::CommError;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_proto::ProtoError;
use oxidask_store::StoreError;
use thiserror::Error;

/// A diagnostic that a peer sent, as the cause of an error: its message and causes in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported(pub Box<Diagnostic>);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        self.0
            .causes
            .iter()
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Reported {}

/// Why a worker could not start or go on.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The folder for temporary files cannot be made.
    #[error("the folder `{path}` for temporary files cannot be made")]
    ScratchDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder for results that do not fit into memory cannot be used.
    #[error("results cannot be spilled")]
    SpillDir(#[source] Box<StoreError>),
    /// No connection to the scheduler.
    #[error("worker `{name}` cannot reach the scheduler at `{address}`")]
    Connect {
        /// The worker's name.
        name: String,
        /// The scheduler's address.
        address: String,
        /// Why.
        #[source]
        source: Box<CommError>,
    },
    /// The scheduler did not answer.
    #[error("the scheduler at `{address}` did not answer within `{seconds}` s")]
    NoAnswer {
        /// The scheduler's address.
        address: String,
        /// How long the worker waited.
        seconds: u64,
    },
    /// The scheduler does not want this worker.
    #[error("the scheduler refused worker `{name}`")]
    Refused {
        /// The worker's name.
        name: String,
        /// What the scheduler said.
        #[source]
        source: Reported,
    },
    /// The scheduler said something that cannot be understood.
    #[error("the scheduler sent a message that cannot be understood")]
    Message(#[source] ProtoError),
    /// An order of the scheduler contradicts itself.
    #[error("the scheduler sent an order whose `{field}` does not fit")]
    Order {
        /// The part that is missing or of the wrong length.
        field: &'static str,
    },
    /// The stream to the scheduler ended.
    #[error("the scheduler ended the connection")]
    SchedulerGone {
        /// What the transport said; none if the stream ended in good order.
        #[source]
        source: Option<Reported>,
    },
    /// No scheduler took this worker for too long.
    #[error("worker `{name}` has had no scheduler for `{seconds}` s")]
    NoScheduler {
        /// The worker's name.
        name: String,
        /// How long it tried.
        seconds: u64,
        /// What the last try met.
        #[source]
        source: Box<WorkerError>,
    },
    /// Results can no longer be read by others.
    #[error("the worker's data server ended")]
    DataServer(#[source] Box<CommError>),
    /// A part of the worker ended that never ends.
    #[error("the worker's `{part}` ended unexpectedly")]
    PartEnded {
        /// Which.
        part: &'static str,
    },
}

/// What may come of another try to work for a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// It may be there later.
    Passing,
    /// It may take this worker once it has noticed that an older one is gone.
    NameTaken,
    /// The same again.
    Final,
}

impl WorkerError {
    /// What another try may bring.
    pub(crate) fn prospect(&self) -> Prospect {
        match self {
            Self::Connect { source, .. } if source.may_pass() => Prospect::Passing,
            Self::NoAnswer { .. } | Self::SchedulerGone { source: None } => Prospect::Passing,
            Self::Refused { source, .. } => match source.0.code {
                Code::SchedulerUnreachable | Code::SchedulerEnded => Prospect::Passing,
                Code::WorkerRefused => Prospect::NameTaken,
                _ => Prospect::Final,
            },
            // Whoever was taken once is taken again, unless the two do not understand each other.
            Self::SchedulerGone {
                source: Some(source),
            } => match source.0.code {
                Code::ProtocolMismatch | Code::CallForbidden | Code::IdentityRejected => {
                    Prospect::Final
                }
                _ => Prospect::Passing,
            },
            _ => Prospect::Final,
        }
    }

    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ScratchDir { .. } => "scratch_dir",
            Self::SpillDir(_) => "spill_dir",
            Self::Connect { .. } => "connect",
            Self::NoAnswer { .. } => "no_answer",
            Self::Refused { .. } => "refused",
            Self::Message(_) => "message",
            Self::Order { .. } => "order",
            Self::SchedulerGone { .. } => "scheduler_gone",
            Self::NoScheduler { .. } => "no_scheduler",
            Self::DataServer(_) => "data_server",
            Self::PartEnded { .. } => "part_ended",
        }
    }
}

impl Coded for WorkerError {
    fn code(&self) -> Code {
        match self {
            Self::ScratchDir { .. } => Code::WorkerDisk,
            Self::SpillDir(source) => source.code(),
            Self::Connect { source, .. } | Self::DataServer(source) => source.code(),
            Self::NoAnswer { .. } => Code::SchedulerUnreachable,
            Self::Refused { source, .. } => source.0.code,
            Self::Message(source) => source.code(),
            Self::NoScheduler { source, .. } => source.code(),
            Self::Order { .. } => Code::ProtocolMismatch,
            Self::SchedulerGone { .. } | Self::PartEnded { .. } => Code::SchedulerEnded,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Connect { source, .. } | Self::DataServer(source) => source.hint(),
            Self::Refused { source, .. } => source.0.hint(),
            Self::Message(source) => source.hint(),
            Self::NoScheduler { source, .. } => source.hint(),
            _ => Cow::Borrowed(self.code().hint()),
        }
    }
}
