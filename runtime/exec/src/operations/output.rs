//! What a program prints, kept within bounds.

use std::sync::{Arc, Mutex, PoisonError};

use oxidask_logbook::{LINE_BYTES_MAX, Level, Line, Logbook, now_micros};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use crate::programs::TaskName;

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

/// Where the lines of a program's standard error go, besides its task's failure.
pub(super) struct LineLog {
    logbook: Arc<Logbook>,
    task: TaskName,
    program: String,
    /// The line that has not ended yet, as far as it is kept.
    unfinished: Vec<u8>,
}

impl LineLog {
    pub(super) fn new(logbook: Arc<Logbook>, task: TaskName, program: String) -> Self {
        Self {
            logbook,
            task,
            program,
            unfinished: Vec::new(),
        }
    }

    /// Takes in what was read. A carriage return ends a line too: bars of progress use it.
    fn add(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (line, is_whole) = match piece {
                [line @ .., b'\n' | b'\r'] => (line, true),
                line => (line, false),
            };
            // One more byte than fits tells the logbook that something is missing.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(self.unfinished.len());
            self.unfinished
                .extend_from_slice(&line[..line.len().min(room)]);
            if is_whole {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.unfinished)
            .trim_end()
            .to_owned();
        self.unfinished.clear();
        if !text.is_empty() {
            self.logbook.add(Line {
                time_micros: now_micros(),
                level: Level::Err,
                target: self.program.clone(),
                text,
                graph: self.task.graph.to_string(),
                key: self.task.key.to_string(),
                attempt: self.task.attempt,
            });
        }
    }
}

impl Drop for LineLog {
    fn drop(&mut self) {
        self.end_line();
    }
}

/// Reads to the end, keeps the end, and logs each line.
pub(super) async fn capture_tail(
    mut from: impl AsyncRead + Unpin,
    into: Captured,
    mut log: LineLog,
) {
    let mut block = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = from.read(&mut block).await {
        log.add(&block[..count]);
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
    use oxidask_logbook::{Bounds, Cursor};

    use super::*;

    fn log(logbook: &Arc<Logbook>) -> LineLog {
        let task = TaskName {
            graph: 7,
            key: "a".into(),
            attempt: 2,
        };
        LineLog::new(Arc::clone(logbook), task, "sort".to_owned())
    }

    #[tokio::test]
    async fn lines_are_logged_with_their_task() {
        let logbook = Arc::default();
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let text = format!("one\r\n\n 50 %\r100 %\n{long}\nno end");
        capture_tail(text.as_bytes(), Captured::default(), log(&logbook)).await;
        let bounds = Bounds {
            items_max: 100,
            bytes_max: 100_000,
        };
        let lines = logbook.take(&mut Cursor::default(), bounds).lines;
        let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts[..3], ["one", " 50 %", "100 %"]);
        assert!(texts[3].starts_with("xxx") && texts[3].ends_with('…'));
        assert_eq!(texts[4..], ["no end"]);
        let first = &lines[0];
        assert_eq!((first.graph.as_str(), first.key.as_str()), ("7", "a"));
        assert_eq!((first.attempt, first.target.as_str()), (2, "sort"));
        assert_eq!(first.level, Level::Err);
    }

    #[tokio::test]
    async fn keeps_the_last_lines_without_escapes() {
        let (captured, logbook) = (Captured::default(), Arc::default());
        let lines: Vec<_> = (0..10_000)
            .map(|i| format!("line {i}\x1b[1m\r\n"))
            .collect();
        let text = lines.concat();
        capture_tail(text.as_bytes(), captured.clone(), log(&logbook)).await;
        let tail = captured.tail();
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert_eq!(tail.lines().last(), Some("line 9999[1m"));
        capture_tail(&b"caf\xff\n"[..], captured.clone(), log(&logbook)).await;
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
