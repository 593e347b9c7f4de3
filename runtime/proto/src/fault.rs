//! Diagnostics on the wire: as a `Fault` in a message, and inside a gRPC status.
//!
//! Invariant: a status stays small enough for HTTP/2 headers, so what a status carries is cut; a
//! `Fault` in a message is not.

use oxidask_diagnostic::{Code, Coded, Diagnostic};
use prost::Message;
use tonic::{Code as StatusCode, Status};

use crate::wire;

/// Bytes of a message, a cause or a hint inside a status; headers allow 16 KiB in all.
const STATUS_TEXT_BYTES_MAX: usize = 1024;
/// Causes kept inside a status.
const STATUS_CAUSES_MAX: usize = 3;

impl From<Diagnostic> for wire::Fault {
    fn from(diagnostic: Diagnostic) -> Self {
        Self {
            code: diagnostic.code.to_string(),
            message: diagnostic.message,
            causes: diagnostic.causes,
            hint: diagnostic.hint,
            attachment: diagnostic
                .attachment
                .map_or_else(Vec::new, |bytes| bytes.to_vec())
                .into(),
        }
    }
}

impl From<&Diagnostic> for wire::Fault {
    fn from(diagnostic: &Diagnostic) -> Self {
        diagnostic.clone().into()
    }
}

impl From<wire::Fault> for Diagnostic {
    /// A code that this program does not know comes from a newer peer: it is kept as text.
    fn from(fault: wire::Fault) -> Self {
        let code = fault.code.parse();
        let mut diagnostic = Diagnostic::new(code.unwrap_or(Code::ProtocolMismatch), fault.message);
        for cause in fault.causes {
            diagnostic = diagnostic.with_cause(cause);
        }
        if code.is_err() {
            let note = format!(
                "the peer gave the code `{}`",
                crate::error::excerpt(&fault.code)
            );
            diagnostic = diagnostic.with_cause(note);
        }
        if !fault.attachment.is_empty() {
            diagnostic.attachment = Some(fault.attachment.as_ref().into());
        }
        if fault.hint.is_empty() {
            diagnostic
        } else {
            diagnostic.with_hint(fault.hint)
        }
    }
}

/// A status that carries the diagnostic.
pub fn to_status(diagnostic: &Diagnostic) -> Status {
    let fault = wire::Fault {
        code: diagnostic.code.to_string(),
        message: cut(&diagnostic.message),
        causes: diagnostic
            .causes
            .iter()
            .take(STATUS_CAUSES_MAX)
            .map(|cause| cut(cause))
            .collect(),
        hint: cut(&diagnostic.hint),
        ..wire::Fault::default()
    };
    let message = format!("error[{}]: {}", fault.code, fault.message);
    let details = fault.encode_to_vec().into();
    Status::with_details(status_code(diagnostic.code), message, details)
}

/// A status that carries the error.
pub fn error_to_status<E: Coded>(error: &E) -> Status {
    to_status(&Diagnostic::from_error(error))
}

/// What a status says: the diagnostic it carries, or the nearest one if the transport made it.
pub fn from_status(status: &Status) -> Diagnostic {
    let fault = wire::Fault::decode(status.details()).unwrap_or_default();
    if !fault.code.is_empty() {
        return fault.into();
    }
    let code = match status.code() {
        StatusCode::Unauthenticated => Code::IdentityRejected,
        StatusCode::PermissionDenied => Code::CallForbidden,
        StatusCode::Unimplemented | StatusCode::InvalidArgument => Code::ProtocolMismatch,
        StatusCode::ResourceExhausted | StatusCode::OutOfRange => Code::LimitPassed,
        _ => Code::SchedulerUnreachable,
    };
    let message = match status.message() {
        "" => format!("the call failed: {}", status.code().description()),
        message => format!("the call failed: {message}"),
    };
    let mut diagnostic = Diagnostic::new(code, message);
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        diagnostic = diagnostic.with_cause(cause.to_string());
        source = cause.source();
    }
    diagnostic
}

fn status_code(code: Code) -> StatusCode {
    match code {
        Code::CallForbidden => StatusCode::PermissionDenied,
        Code::IdentityRejected | Code::CertificateRejected => StatusCode::Unauthenticated,
        Code::LimitPassed => StatusCode::ResourceExhausted,
        Code::ResultUnavailable => StatusCode::NotFound,
        Code::GraphCancelled | Code::Interrupted => StatusCode::Cancelled,
        Code::ProtocolMismatch => StatusCode::InvalidArgument,
        Code::SchedulerUnreachable | Code::SchedulerEnded => StatusCode::Unavailable,
        _ => StatusCode::FailedPrecondition,
    }
}

fn cut(text: &str) -> String {
    match text
        .char_indices()
        .find(|(at, _)| *at >= STATUS_TEXT_BYTES_MAX)
    {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_comes_back_from_a_fault_and_from_a_status() {
        for code in Code::ALL {
            let diagnostic = Diagnostic::new(*code, "no `ä`")
                .with_cause("first")
                .with_cause("second")
                .with_hint("do something");
            assert_eq!(Diagnostic::from(wire::Fault::from(&diagnostic)), diagnostic);
            let status = to_status(&diagnostic);
            assert_eq!(from_status(&status), diagnostic);
            assert!(status.message().starts_with(&format!("error[{code}]: no")));
        }
    }

    #[test]
    fn a_status_stays_small() {
        let mut diagnostic = Diagnostic::new(Code::TaskFailed, "ä".repeat(10_000));
        for i in 0..16 {
            diagnostic = diagnostic.with_cause(format!("{i}{}", "x".repeat(10_000)));
        }
        let status = to_status(&diagnostic);
        assert!(
            status.details().len() < 6 * 1024,
            "{}",
            status.details().len()
        );
        assert!(status.message().len() < 1100);
        assert_eq!(from_status(&status).code, Code::TaskFailed);
    }

    #[test]
    fn a_newer_code_and_a_bare_status_still_say_something() {
        let fault = wire::Fault {
            code: "OX999".into(),
            message: "new".into(),
            ..Default::default()
        };
        let diagnostic = Diagnostic::from(fault);
        assert_eq!(diagnostic.message, "new");
        assert!(diagnostic.to_string().contains("OX999") && !diagnostic.hint.is_empty());

        let lost = from_status(&Status::unavailable("connection reset"));
        assert_eq!(lost.code, Code::SchedulerUnreachable);
        assert!(lost.message.contains("connection reset"));
        let noise = Status::with_details(StatusCode::PermissionDenied, "", vec![0xff; 9].into());
        assert_eq!(from_status(&noise).code, Code::CallForbidden);
    }
}
