//! What a scheduler says on its standard output once it listens.

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::watch;

/// Bytes of the ready line.
const READY_BYTES_MAX: u64 = 4 * 1024;

/// The ready line.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    /// Where it serves HTTP.
    pub(crate) http: Option<String>,
}

impl Ready {
    /// The port of HTTP.
    pub(super) fn http_port(&self) -> Option<u16> {
        self.http.as_deref()?.rsplit_once(':')?.1.parse().ok()
    }
}

/// Reads the line; a process that ends before it has said anything is started again by others.
pub(super) async fn read(stdout: ChildStdout, ready: watch::Sender<Option<Result<Ready, String>>>) {
    let mut line = String::new();
    let mut reader = BufReader::new(stdout).take(READY_BYTES_MAX);
    let outcome = match reader.read_line(&mut line).await {
        Ok(0) => return,
        Ok(_) => serde_json::from_str(&line).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    ready.send_replace(Some(outcome));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_the_address() {
        let ready = |http: &str| Ready {
            http: Some(http.to_owned()),
        };
        assert_eq!(ready("http://127.0.0.1:8787").http_port(), Some(8787));
        assert_eq!(ready("http://[::1]:80").http_port(), Some(80));
        assert_eq!(ready("nowhere").http_port(), None);
        assert_eq!(Ready { http: None }.http_port(), None);
    }
}
