//! What can go wrong between a client and its scheduler.

use std::borrow::Cow;

use oxidask_comm::CommError;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_proto::ProtoError;
use oxidask_proto::fault::from_status;
use tonic::Status;

/// A call of the client library failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to the scheduler.
    #[error("cannot connect to the scheduler at `{address}`")]
    Connect {
        /// The address that was given.
        address: String,
        /// Why.
        #[source]
        source: CommError,
    },
    /// The scheduler said no, or the connection broke during the call.
    #[error("{}", .0.message)]
    Refused(Box<Diagnostic>),
    /// The scheduler took the connection but did not answer.
    #[error("the scheduler did not answer within `{seconds}` s")]
    Unanswered {
        /// How long was waited.
        seconds: u64,
    },
    /// The scheduler is not the one that took the graph: it began anew.
    #[error("the scheduler has lost its journal and does not know the graph `{graph}` any more")]
    JournalLost {
        /// The graph's name.
        graph: String,
    },
    /// The scheduler is the same, but it has closed the graph meanwhile.
    #[error("the scheduler has dropped the graph `{graph}`, whose client was away for too long")]
    GraphForgotten {
        /// The graph's name.
        graph: String,
    },
    /// The scheduler answered something that this program does not understand.
    #[error("the scheduler's answer cannot be understood")]
    Protocol {
        /// What is wrong with it.
        #[from]
        source: ProtoError,
    },
}

impl ClientError {
    /// Whether the same call may succeed later: the scheduler is not there yet, or just going.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.may_pass(),
            Self::Unanswered { .. } => true,
            Self::Refused(diagnostic) => may_pass(diagnostic),
            Self::JournalLost { .. } | Self::GraphForgotten { .. } | Self::Protocol { .. } => false,
        }
    }

    /// What a user reads: for a refusal the scheduler's own words.
    pub fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Refused(diagnostic) => (**diagnostic).clone(),
            other => Diagnostic::from_error(other),
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(said(&status)))
    }
}

/// Whether the same call may succeed later, although nobody changes anything.
pub(crate) fn may_pass(diagnostic: &Diagnostic) -> bool {
    matches!(
        diagnostic.code,
        Code::SchedulerUnreachable
            | Code::SchedulerEnded
            | Code::JournalDiskFull
            | Code::JournalBehind
    )
}

/// What a status says; if a connection could not be made for it, and cannot be made later, why not.
fn said(status: &Status) -> Diagnostic {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        match error.downcast_ref::<CommError>() {
            Some(error) if !error.may_pass() => return Diagnostic::from_error(error),
            _ => source = error.source(),
        }
    }
    from_status(status)
}

impl Coded for ClientError {
    fn code(&self) -> Code {
        match self {
            Self::Connect { source, .. } => source.code(),
            Self::Refused(diagnostic) => diagnostic.code,
            Self::Unanswered { .. } => Code::SchedulerUnreachable,
            Self::JournalLost { .. } | Self::GraphForgotten { .. } => Code::GraphForgotten,
            Self::Protocol { source } => source.code(),
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Connect { source, .. } => source.hint(),
            Self::Refused(diagnostic) => Cow::Owned(diagnostic.hint.clone()),
            Self::Unanswered { .. } | Self::JournalLost { .. } | Self::GraphForgotten { .. } => {
                Cow::Borrowed(self.code().hint())
            }
            Self::Protocol { source } => source.hint(),
        }
    }
}

/// What a broken session means: the words of the scheduler if it said any, else that it is gone.
pub(crate) fn session_ended(status: Option<&Status>) -> Diagnostic {
    let Some(status) = status else {
        return Diagnostic::new(Code::SchedulerEnded, "the scheduler ended the session");
    };
    let diagnostic = said(status);
    let text = format!("{} {}", diagnostic.message, diagnostic.causes.join(" "));
    let text = text.to_ascii_lowercase();
    if diagnostic.code != Code::SchedulerUnreachable {
        return diagnostic;
    }
    if text.contains("timed out") || text.contains("timeout") || text.contains("keep") {
        let message = "the scheduler does not answer any more";
        return Diagnostic::new(Code::SchedulerUnreachable, message).with_cause(diagnostic.message);
    }
    let ended = Diagnostic::new(
        Code::SchedulerEnded,
        "the connection to the scheduler ended",
    );
    diagnostic
        .causes
        .iter()
        .fold(ended, |ended, cause| ended.with_cause(cause.as_str()))
}
