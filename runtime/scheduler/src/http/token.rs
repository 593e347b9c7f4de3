//! Bearer tokens.
//!
//! Owns the comparison of what a caller sends with what the token files hold. Files are read with
//! each request, so a token that is changed on the disk counts at once. Invariants: without a token
//! file nobody passes; comparing takes the same time wherever two tokens differ.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use oxidask_diagnostic::{Code, Diagnostic};
use subtle::ConstantTimeEq;
use tokio::io::AsyncReadExt;

use super::Site;
use super::answer::Refusal;

/// Bytes of a token.
const TOKEN_BYTES_MAX: u64 = 4 * 1024;

/// Files with the tokens of the HTTP port. Without a file nobody has the right that it gives.
#[derive(Debug, Clone, Default)]
pub struct HttpTokens {
    /// The token of those who may read.
    pub reader: Option<PathBuf>,
    /// The token of those who may also change something.
    pub operator: Option<PathBuf>,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    Read,
    Change,
}

impl HttpTokens {
    async fn right_of(&self, given: &[u8]) -> Option<Right> {
        let operator = is_token(self.operator.as_deref(), given).await;
        let reader = is_token(self.reader.as_deref(), given).await;
        match (operator, reader) {
            (true, _) => Some(Right::Change),
            (false, true) => Some(Right::Read),
            (false, false) => None,
        }
    }

    async fn check(&self, headers: &HeaderMap, needed: Right) -> Result<(), Refusal> {
        let is_there = match needed {
            Right::Read => self.reader.is_some() || self.operator.is_some(),
            Right::Change => self.operator.is_some(),
        };
        if !is_there {
            let hint = match needed {
                Right::Read => "start the scheduler with --http-token-file FILE",
                Right::Change => "start the scheduler with --http-operator-token-file FILE",
            };
            return Err(refusal("this scheduler has no token for that", hint));
        }
        let Some(given) = bearer(headers) else {
            let hint = "send the header `Authorization: Bearer TOKEN`; `oxidask up` prints the \
                        token behind the `#` of its URL, others have it in the file of \
                        --http-token-file";
            return Err(refusal("this needs a token", hint));
        };
        match self.right_of(given).await {
            Some(right) if right >= needed => Ok(()),
            Some(_) => {
                let message = "this token may read, but this changes something";
                let diagnostic = Diagnostic::new(Code::TokenRejected, message);
                let diagnostic = diagnostic.with_hint("use the operator's token");
                Err(Refusal::coded(StatusCode::FORBIDDEN, diagnostic))
            }
            None => {
                let hint = "it is not, or no longer, the token of this cluster";
                Err(refusal("the token is wrong", hint))
            }
        }
    }
}

fn refusal(message: &str, hint: &str) -> Refusal {
    let diagnostic = Diagnostic::new(Code::TokenRejected, message).with_hint(hint);
    Refusal::coded(StatusCode::UNAUTHORIZED, diagnostic)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// A file that cannot be read, or is empty, lets nobody in.
async fn is_token(file: Option<&Path>, given: &[u8]) -> bool {
    let Some(file) = file else {
        return false;
    };
    match read(file).await {
        Ok(token) => {
            let token = token.trim_ascii();
            !token.is_empty() && bool::from(token.ct_eq(given))
        }
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "a token file cannot be read");
            false
        }
    }
}

async fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(file).await?;
    let mut token = Vec::new();
    file.take(TOKEN_BYTES_MAX).read_to_end(&mut token).await?;
    Ok(token)
}

/// Lets those pass who may read.
pub(crate) async fn may_read(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Response {
    pass(&site, Right::Read, request, next).await
}

/// Lets those pass who may change something.
pub(crate) async fn may_change(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Response {
    pass(&site, Right::Change, request, next).await
}

async fn pass(site: &Site, needed: Right, request: Request, next: Next) -> Response {
    match site.tokens.check(request.headers(), needed).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_its_scheme() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("Bear"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
