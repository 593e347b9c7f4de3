//! One child process: its start, its log lines, its end.
//!
//! Owns the process from its start until it is reaped. The child has a process group of its own,
//! so a terminal's Ctrl-C reaches only the parent; it ends with its parent, whatever ends that.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::terminal::Terminal;

/// Time that a process has for a tidy end.
const TIDY_END: Duration = Duration::from_secs(1);
/// Time to read what a process that has ended wrote last.
const LOG_END: Duration = Duration::from_millis(100);
/// Lines that wait to be shown; with more, the oldest is shown early.
const HELD_MAX: usize = 1_000;
/// Log lines of a process that are kept for an error message.
const LINES_KEPT: usize = 5;
/// Bytes of one log line; the rest of a longer one is dropped.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// The last log lines of a process.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// From the oldest to the newest.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect()
    }
}

/// Where the log lines of a process go.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// Stands before each line.
    pub(crate) label: String,
    /// Keeps the last ones.
    pub(crate) lines: LastLines,
    /// Shows them.
    pub(crate) terminal: Terminal,
    /// How long lines wait: they are dropped if `hush` fires meanwhile.
    pub(crate) hold: Duration,
    /// Fires when what the process says is no news any more: at the end of the run.
    pub(crate) hush: CancellationToken,
}

/// How a process is brought to its end.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    /// Fires when it is time.
    pub(crate) stop: CancellationToken,
    /// Asks for a tidy end; without it there is none.
    pub(crate) signal: Option<Signal>,
}

/// Starts a process.
pub(crate) fn start(mut command: Command) -> io::Result<Child> {
    command
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Passes on the log lines of a process and waits for its end, which `ending` brings about.
pub(crate) async fn watch(mut child: Child, log: Log, ending: Ending) -> io::Result<ExitStatus> {
    let stderr = child.stderr.take();
    let mut forward = pin!(async {
        match stderr {
            Some(stderr) => forward(stderr, &log).await,
            None => Ok(()),
        }
    });
    let mut ended = pin!(async {
        tokio::select! {
            status = child.wait() => status,
            () = ending.stop.cancelled() => end(&mut child, ending.signal).await,
        }
    });
    tokio::select! {
        status = &mut ended => {
            // Something that the process started may keep the pipe open.
            let patience = if log.hush.is_cancelled() { LOG_END } else { LOG_END + log.hold };
            let _ = tokio::time::timeout(patience, forward).await;
            status
        }
        _ = &mut forward => ended.await,
    }
}

async fn end(child: &mut Child, signal: Option<Signal>) -> io::Result<ExitStatus> {
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let (Some(id), Some(signal)) = (id, signal) {
        // Fails only if it has ended already.
        let _ = kill_process(id, signal);
        if let Ok(status) = tokio::time::timeout(TIDY_END, child.wait()).await {
            return status;
        }
    }
    child.start_kill()?;
    child.wait().await
}

/// Passes log lines on, with the name of the process before each.
async fn forward(mut stream: impl AsyncRead + Unpin, log: &Log) -> io::Result<()> {
    let mut held: VecDeque<(Instant, String)> = VecDeque::new();
    let mut line = Line::default();
    let mut chunk = [0; 1024];
    let mut is_at_end = false;
    loop {
        let is_hushed = log.hush.is_cancelled();
        if is_hushed {
            held.clear();
        }
        let now = Instant::now();
        while let Some((due, _)) = held.front()
            && (*due <= now || held.len() > HELD_MAX)
            && let Some((_, text)) = held.pop_front()
        {
            log.terminal.line(&labelled(&log.label, &text));
            log.lines.push(text);
        }
        if is_at_end && held.is_empty() {
            return Ok(());
        }
        let due = held.front().map_or(now, |(due, _)| *due);
        tokio::select! {
            count = stream.read(&mut chunk), if !is_at_end => {
                let count = count?;
                let due = Instant::now() + log.hold;
                let hold = |text| held.push_back((due, text));
                is_at_end = count == 0;
                if is_at_end { line.end(hold) } else { line.take(&chunk[..count], hold) }
            }
            () = tokio::time::sleep_until(due), if !held.is_empty() => {}
            () = log.hush.cancelled(), if !is_hushed => {}
        }
    }
}

/// A log line with the name of its process: before it, or as a field if it is a JSON object.
fn labelled(label: &str, text: &str) -> String {
    match text.strip_prefix("{\"") {
        Some(rest) if text.ends_with('}') => format!("{{\"process\":\"{label}\",\"{rest}"),
        _ => format!("{label} | {text}"),
    }
}

/// A log line of which not all has come yet.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    fn take(&mut self, bytes: &[u8], mut show: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.0.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            self.0.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end(&mut show);
            }
        }
    }

    fn end(&mut self, mut show: impl FnMut(String)) {
        let text = String::from_utf8_lossy(&self.0).trim_end().to_owned();
        self.0.clear();
        if !text.is_empty() {
            show(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_name_their_process() {
        assert_eq!(labelled("scheduler", "INFO up"), "scheduler | INFO up");
        assert_eq!(
            labelled("scheduler", r#"{"a":1}"#),
            r#"{"process":"scheduler","a":1}"#
        );
    }

    #[test]
    fn log_lines_are_bounded_and_the_last_are_kept() {
        let lines = LastLines::default();
        let mut line = Line::default();
        for number in 0..20 {
            line.take(b"li", |text| lines.push(text));
            line.take(format!("ne {number}\n\n").as_bytes(), |text| {
                lines.push(text);
            });
        }
        line.take(&b"x".repeat(3 * LINE_BYTES_MAX), |text| lines.push(text));
        line.end(|text| lines.push(text));
        let kept = lines.take();
        assert_eq!(kept.len(), LINES_KEPT);
        assert_eq!(kept[0], "line 16");
        assert_eq!(kept[4].len(), LINE_BYTES_MAX);
    }
}
