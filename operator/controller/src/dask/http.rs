//! The routes `/api/v1` of a Dask scheduler, where they are switched on.
//!
//! Owns one request and its answer, by HTTP/1.0 so that every answer ends with its connection.
//! Plain text, as the routes are served inside of a cluster.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ask::AskError;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Asks with GET, or with POST if there is a body.
pub(super) async fn ask(
    host: &str,
    port: u16,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, AskError> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n"),
        Some(body) => {
            let body = body.to_string();
            format!(
                "POST {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
    };
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    parsed(&answer)
}

fn parsed(answer: &[u8]) -> Result<Value, AskError> {
    const END: &[u8] = b"\r\n\r\n";
    let broken = AskError::Protocol("its answer is not HTTP");
    let end = answer.windows(END.len()).position(|window| window == END);
    let Some(end) = end else { return Err(broken) };
    let (head, body) = answer.split_at(end);
    let head = std::str::from_utf8(head).unwrap_or_default();
    let status = head.split_whitespace().nth(1);
    let status: Option<u16> = status.and_then(|status| status.parse().ok());
    match status {
        Some(200) => {
            let body = body.get(END.len()..).unwrap_or_default();
            let value = serde_json::from_slice(body);
            value.map_err(|_| AskError::Protocol("its answer is not JSON"))
        }
        Some(status) => Err(AskError::Status(status)),
        None => Err(broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let ok = parsed(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{\"workers\": 1}").unwrap();
        assert_eq!(ok["workers"], 1);
        for (answer, status) in [("404 Not Found", 404), ("500 Error", 500)] {
            let text = format!("HTTP/1.1 {answer}\r\n\r\n{{}}");
            let found = parsed(text.as_bytes());
            assert!(
                matches!(found, Err(AskError::Status(it)) if it == status),
                "{found:?}"
            );
        }
        assert!(parsed(b"SSH-2.0").is_err());
        assert!(parsed(b"HTTP/1.1 200 OK\r\n\r\n<html>").is_err());
    }
}
