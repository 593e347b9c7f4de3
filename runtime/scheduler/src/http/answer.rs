//! What goes back: JSON, also when something is wrong.

use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use oxidask_diagnostic::{Code, Diagnostic};
use serde_json::{Value, json};

/// Bytes of a text of the caller that is said back.
const EXCERPT_BYTES_MAX: usize = 200;

/// The answer of a route.
pub(crate) type Answer = Result<Json, Refusal>;

/// JSON that nobody keeps: it is out of date at once.
pub(crate) struct Json(pub(crate) Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let headers = [
            (CONTENT_TYPE, "application/json"),
            (CACHE_CONTROL, "no-store"),
        ];
        (headers, self.0.to_string()).into_response()
    }
}

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: Option<Code>,
    message: String,
    hint: String,
}

impl Refusal {
    /// Without a code and a hint.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            code: None,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// The request is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// An error of ours, with its code and its hint.
    pub(crate) fn coded(status: StatusCode, diagnostic: Diagnostic) -> Self {
        Self {
            status,
            code: Some(diagnostic.code),
            message: diagnostic.message,
            hint: diagnostic.hint,
        }
    }

    /// What to do.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.message});
        if let Some(code) = self.code {
            body["code"] = code.to_string().into();
        }
        if !self.hint.is_empty() {
            body["hint"] = self.hint.into();
        }
        let mut response = Json(body).into_response();
        *response.status_mut() = self.status;
        if self.status == StatusCode::UNAUTHORIZED {
            let how = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, how);
        }
        response
    }
}

/// The beginning of a text that came from outside.
pub(crate) fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(EXCERPT_BYTES_MAX)]
}
