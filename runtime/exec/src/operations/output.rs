//! What a program prints, kept within bounds.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

/// Bytes of standard output that become a result.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// Lines of standard error in a failure.
pub(super) const TAIL_LINES_MAX: usize = 20;

/// Bytes of standard error that are kept, its end.
const TAIL_BYTES_MAX: usize = 8 * 1024;

/// Read at once: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;

/// What was read so far. Readable at any time, also when the reader is given up.
#[derive(Debug, Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn with<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what was read.
    pub(super) fn take(&self) -> Vec<u8> {
        self.with(std::mem::take)
    }

    /// The last lines as text, without control characters.
    pub(super) fn tail(&self) -> String {
        let text = self.with(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES_MAX);
        let tail = lines[first..].join("\n");
        tail.chars()
            .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
            .collect()
    }
}

/// Reads to the end. Fires `overflowed` and stops when there is too much.
pub(super) async fn capture(
    mut from: impl AsyncRead + Unpin,
    into: Captured,
    overflowed: CancellationToken,
) {
    let mut block = vec![0; READ_BYTES];
    // A pipe that cannot be read has ended.
    while let Ok(count @ 1..) = from.read(&mut block).await {
        let is_full = into.with(|bytes| {
            if bytes.len() + count > OUTPUT_BYTES_MAX {
                return true;
            }
            bytes.extend_from_slice(&block[..count]);
            false
        });
        if is_full {
            overflowed.cancel();
            return;
        }
    }
}

/// Reads to the end and keeps the end.
pub(super) async fn capture_tail(mut from: impl AsyncRead + Unpin, into: Captured) {
    let mut block = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = from.read(&mut block).await {
        into.with(|bytes| {
            bytes.extend_from_slice(&block[..count]);
            if bytes.len() > TAIL_BYTES_MAX {
                bytes.drain(..bytes.len() - TAIL_BYTES_MAX);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_last_lines_without_escapes() {
        let captured = Captured::default();
        let lines: Vec<_> = (0..10_000)
            .map(|i| format!("line {i}\x1b[1m\r\n"))
            .collect();
        let text = lines.concat();
        capture_tail(text.as_bytes(), captured.clone()).await;
        let tail = captured.tail();
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert_eq!(tail.lines().last(), Some("line 9999[1m"));
        capture_tail(&b"caf\xff\n"[..], captured.clone()).await;
        assert_eq!(captured.tail().lines().last(), Some("caf\u{fffd}"));
        assert_eq!(Captured::default().tail(), "");
    }

    #[tokio::test]
    async fn stops_at_the_limit() {
        let overflowed = CancellationToken::new();
        let captured = Captured::default();
        capture(
            tokio::io::repeat(b'x'),
            captured.clone(),
            overflowed.clone(),
        )
        .await;
        assert!(overflowed.is_cancelled());
        assert!(captured.take().len() <= OUTPUT_BYTES_MAX);
        let overflowed = CancellationToken::new();
        let exactly = tokio::io::repeat(b'x').take(OUTPUT_BYTES_MAX as u64);
        capture(exactly, captured.clone(), overflowed.clone()).await;
        assert!(!overflowed.is_cancelled());
        assert_eq!(captured.take().len(), OUTPUT_BYTES_MAX);
    }
}
