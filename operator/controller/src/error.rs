//! Everything that can go wrong in the operator, and what is done about each class.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::{fmt, io};

use oxidask_diagnostic::{Code, Coded};
use oxidask_pki::PkiError;

/// What is done after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It may go away by itself: try again, later each time.
    Transient,
    /// Somebody else was faster: try again at once.
    Conflict,
    /// It stays until somebody changes something: say it, and look again now and then.
    Rejected,
    /// It is refused now and may be taken soon: say it, and look again more often.
    Later,
    /// This process does not lead any more: the one that does goes on.
    Deposed,
    /// An object is not there: look again.
    Gone,
    /// The namespace is going away: nothing is left to do.
    Ending,
}

impl Class {
    /// Whether the API server has understood, and does not take the object as it is.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::Later)
    }
}

/// An error of the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    /// No API server is configured, or its configuration is broken.
    #[error("no way to reach an API server is configured")]
    Configuration {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The async runtime or a signal handler could not be started.
    #[error("the {what} could not be started")]
    Start {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The HTTP address is not free.
    #[error("`{address}` cannot be listened on")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Standard output is gone.
    #[error("standard output cannot be written")]
    Output {
        #[source]
        source: io::Error,
    },
    /// The API server said no because of missing rights.
    #[error("{what}: {message}")]
    Refused { what: String, message: String },
    /// The API server does not know a kind of ours.
    #[error("{what}: the API server does not know this kind")]
    KindMissing { what: String },
    /// The API server did not take the object as it is.
    #[error("{what}: {message}")]
    Rejected { what: String, message: String },
    /// The API server does not know a field.
    #[error("{what}: {message}")]
    Schema { what: String, message: String },
    /// A quota has no room for the object.
    #[error("{what}: {message}")]
    Quota { what: String, message: String },
    /// Another replica holds the lease.
    #[error("{what}: this process does not lead any more")]
    NotLeading { what: String },
    /// The definitions of our kinds are there, but not ours.
    #[error("{what}")]
    ForeignKinds { what: String },
    /// The object was changed, made or deleted by somebody else meanwhile.
    #[error("{what}: {message}")]
    Conflict { what: String, message: String },
    /// The object is not there.
    #[error("{what}: {message}")]
    Gone { what: String, message: String },
    /// The namespace is being deleted and takes nothing new.
    #[error("{what}: {message}")]
    NamespaceEnding { what: String, message: String },
    /// The API server answered that it cannot answer now.
    #[error("{what}: {message}")]
    Unavailable { what: String, message: String },
    /// The request failed on its way.
    #[error("{what}")]
    Request {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{what}: no answer within {seconds} s")]
    Timeout { what: String, seconds: u64 },
    /// A Secret of ours does not hold what it should.
    #[error("Secret `{namespace}/{name}` {problem}")]
    Secret {
        namespace: String,
        name: String,
        problem: &'static str,
        #[source]
        source: Option<PkiError>,
    },
    /// The source of random numbers failed.
    #[error("no random number can be had")]
    Random,
    /// A certificate could not be made.
    #[error("the certificates of cluster `{namespace}/{cluster}` cannot be made")]
    Certificates {
        namespace: String,
        cluster: String,
        #[source]
        source: PkiError,
    },
}

impl OperatorError {
    /// What to do about it.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Conflict { .. } => Class::Conflict,
            Self::Gone { .. } => Class::Gone,
            Self::NamespaceEnding { .. } => Class::Ending,
            Self::Quota { .. } | Self::Schema { .. } => Class::Later,
            Self::NotLeading { .. } => Class::Deposed,
            Self::Rejected { .. } | Self::Secret { .. } | Self::Certificates { .. } => {
                Class::Rejected
            }
            _ => Class::Transient,
        }
    }

    /// The API server's own words, if these are its words.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Rejected { message, .. }
            | Self::Schema { message, .. }
            | Self::Quota { message, .. } => message.clone(),
            _ => OneLine(self).to_string(),
        }
    }

    /// The label of metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Configuration { .. } | Self::Start { .. } | Self::Listen { .. } => "start",
            Self::Output { .. } => "output",
            Self::Refused { .. } => "refused",
            Self::KindMissing { .. } => "kind_missing",
            Self::Rejected { .. } | Self::Schema { .. } => "rejected",
            Self::Quota { .. } => "quota",
            Self::NotLeading { .. } => "not_leading",
            Self::ForeignKinds { .. } => "foreign_kinds",
            Self::Conflict { .. } => "conflict",
            Self::Gone { .. } => "gone",
            Self::NamespaceEnding { .. } => "namespace_ending",
            Self::Unavailable { .. } | Self::Request { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::Secret { .. } | Self::Certificates { .. } | Self::Random => "certificates",
        }
    }
}

impl Coded for OperatorError {
    fn code(&self) -> Code {
        match self {
            Self::Configuration { .. } | Self::Start { .. } | Self::Listen { .. } => {
                Code::OperatorConfiguration
            }
            Self::Output { .. } => Code::OutputFailed,
            Self::Refused { .. } => Code::OperatorRefused,
            Self::KindMissing { .. } => Code::CustomResourcesMissing,
            Self::Rejected { .. } | Self::Schema { .. } => Code::ObjectRejected,
            Self::Quota { .. } => Code::QuotaExceeded,
            Self::NotLeading { .. } => Code::NotLeading,
            Self::ForeignKinds { .. } => Code::ForeignDefinitions,
            Self::Conflict { .. }
            | Self::Gone { .. }
            | Self::NamespaceEnding { .. }
            | Self::Unavailable { .. }
            | Self::Request { .. }
            | Self::Timeout { .. } => Code::ApiServerUnreachable,
            Self::Secret { .. } | Self::Certificates { .. } | Self::Random => {
                Code::OperatorCertificates
            }
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Listen { .. } => "choose another address with `--http-bind`".into(),
            _ => self.code().hint().into(),
        }
    }
}

/// An error and its causes in one line, for logs and events.
pub(crate) struct OneLine<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CAUSES_MAX: usize = 8;
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        for _ in 0..CAUSES_MAX {
            let Some(error) = cause else { break };
            // Many wrappers repeat what they wrap.
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            cause = error.source();
        }
        Ok(())
    }
}
