//! The one error of the command line.
//!
//! Owns what a failed command leaves behind: a diagnostic for the user and the exit status. Errors
//! of all other crates end up here; nothing else decides an exit status.

use oxidask_diagnostic::{Code, Coded, Diagnostic};

/// The job failed, or something it needs did.
pub(crate) const STATUS_FAILED: u8 = 1;
/// The command line, a file or the syntax of a SQL text is wrong; nothing was started.
pub(crate) const STATUS_USAGE: u8 = 2;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) struct CliError {
    /// What is printed; nothing for a reader that went away.
    pub(crate) diagnostic: Option<Box<Diagnostic>>,
    /// The exit status.
    pub(crate) status: u8,
}

impl CliError {
    /// The job failed.
    pub(crate) fn failed(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic: Some(Box::new(diagnostic)),
            status: STATUS_FAILED,
        }
    }

    /// What was given is wrong.
    pub(crate) fn usage(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic: Some(Box::new(diagnostic)),
            status: STATUS_USAGE,
        }
    }

    /// A signal ended the run; `status` is 128 and the signal's number.
    pub(crate) fn interrupted(status: u8) -> Self {
        let signal = match status {
            129 => "SIGHUP",
            143 => "SIGTERM",
            _ => "Ctrl-C",
        };
        let message = format!("interrupted by {signal}");
        let diagnostic = Diagnostic::new(Code::Interrupted, message);
        Self {
            diagnostic: Some(Box::new(diagnostic)),
            status,
        }
    }

    /// Whether a signal ended the run, and not the work itself.
    pub(crate) fn is_interruption(&self) -> bool {
        let code = self.diagnostic.as_ref().map(|diagnostic| diagnostic.code);
        code == Some(Code::Interrupted)
    }

    /// A signal ended what only a signal ends: nothing to say.
    pub(crate) fn quiet(status: u8) -> Self {
        Self {
            diagnostic: None,
            status,
        }
    }

    /// The reader of the output went away: the end, quietly.
    pub(crate) fn reader_gone() -> Self {
        Self {
            diagnostic: None,
            status: 0,
        }
    }

    /// An error of a library, met while the work was done.
    pub(crate) fn from_failure<E: Coded>(error: &E) -> Self {
        Self::failed(Diagnostic::from_error(error))
    }

    /// An error of a library, met while the files that the user named were read.
    pub(crate) fn from_file<E: Coded>(error: &E) -> Self {
        Self::usage(Diagnostic::from_error(error))
    }

    /// The local cluster could not be started.
    pub(crate) fn start(what: &str, cause: &dyn std::error::Error) -> Self {
        let diagnostic = Diagnostic::new(Code::ClusterStart, what).with_cause(cause.to_string());
        Self::failed(diagnostic)
    }
}
