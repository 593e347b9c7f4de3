//! What can go wrong, and how an API server says so.

use std::io;

use hyper::StatusCode;
use serde_json::{Value, json};

/// The fake itself does not work.
#[derive(Debug, thiserror::Error)]
pub enum FakeError {
    /// No port could be had.
    #[error("the API server cannot listen on `{address}`")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A call from Rust was refused as one over HTTP would be.
    #[error("{code}: {message}")]
    Refused {
        /// The status code.
        code: u16,
        /// The words.
        message: String,
    },
    /// The operator made no certificate for a scheduler.
    #[error("the Secret `{secret}` holds no certificate")]
    Certificate {
        /// Where it was looked for.
        secret: String,
    },
    /// No such kind.
    #[error("the kind `{kind}` is not known")]
    Kind {
        /// As it was named.
        kind: String,
    },
}

/// An answer that says no.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) code: StatusCode,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) causes: Vec<(&'static str, String)>,
    pub(crate) retry_after_seconds: Option<u32>,
}

impl Refused {
    pub(crate) fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason(code),
            message: message.into(),
            causes: Vec::new(),
            retry_after_seconds: None,
        }
    }

    pub(crate) fn not_found(plural: &str, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("{plural} \"{name}\" not found"),
        )
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn expired() -> Self {
        Self::new(StatusCode::GONE, "too old resource version")
    }

    /// The body.
    pub(crate) fn status(&self) -> Value {
        let causes = self.causes.iter();
        let causes: Vec<Value> = causes
            .map(|(reason, message)| json!({"reason": reason, "message": message}))
            .collect();
        let mut details = json!({"causes": causes});
        if let Some(seconds) = self.retry_after_seconds {
            details["retryAfterSeconds"] = json!(seconds);
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
            "details": details,
        })
    }
}

impl From<Refused> for FakeError {
    fn from(refused: Refused) -> Self {
        Self::Refused {
            code: refused.code.as_u16(),
            message: refused.message,
        }
    }
}

/// The reason that goes with a code unless something says more.
pub(crate) fn reason(code: StatusCode) -> &'static str {
    match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}
