//! Lines for people: what happened that they should know, in one sentence each.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::vitals::Vitals;

/// Bytes of what somebody says about the end of a process.
const REASON_BYTES_MAX: usize = 1024;

/// Bytes of a line of a dead worker's log.
const LINE_BYTES_MAX: usize = 256;

/// A worker died while a graph runs.
pub(crate) fn worker_died(name: &str, reason: &str, tasks: u64) -> String {
    match tasks {
        0 => format!("worker {name} died ({reason})"),
        1 => format!("worker {name} died ({reason}); 1 task is tried again"),
        _ => format!("worker {name} died ({reason}); {tasks} tasks are tried again"),
    }
}

/// Names of workers in one line.
const NAMES_MAX: usize = 3;

/// Tasks that run on workers that nobody hears of are tried elsewhere.
pub(crate) fn workers_silent(names: &[String], tasks: u64) -> String {
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    let more = match names.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (worker, is) = match names.len() {
        1 => ("worker", "is"),
        _ => ("workers", "are"),
    };
    let tasks = match tasks {
        1 => "1 task is".to_owned(),
        _ => format!("{tasks} tasks are"),
    };
    format!("{worker} {shown}{more} {is} silent; {tasks} tried elsewhere")
}

/// How a worker died, for whoever had a task there: how its process ended, its memory at the last
/// beat, the last lines that it logged.
pub(crate) fn death(reason: &str, vitals: &Vitals, lines: &[String]) -> String {
    let mut text = reason.to_owned();
    let resident = vitals.resident_bytes.load(Ordering::Relaxed);
    let limit = vitals.limit_bytes.load(Ordering::Relaxed);
    if resident > 0 {
        let _ = write!(text, "; at its last beat it used {}", mebibytes(resident));
        if limit > 0 {
            let _ = write!(text, " of {}", mebibytes(limit));
        }
        text.push_str(" of memory");
    }
    if !lines.is_empty() {
        text.push_str("; its last lines were:");
        for line in lines {
            let _ = write!(text, "\n    {}", shortened(line, LINE_BYTES_MAX));
        }
    }
    text
}

/// What somebody says about the end of a process, of bounded length and on one line.
pub(crate) fn cut(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.trim() {
        "" => "its process ended".to_owned(),
        line => shortened(line, REASON_BYTES_MAX),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn shortened(text: &str, bytes_max: usize) -> String {
    match text.char_indices().find(|(at, _)| *at >= bytes_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Why a stream ended, in few words. The transport's texts differ by platform and timing.
pub(crate) fn stream_ended(status: &tonic::Status) -> &'static str {
    let mut text = status.message().to_ascii_lowercase();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text.push_str(&cause.to_string().to_ascii_lowercase());
        source = cause.source();
    }
    if text.contains("reset") {
        "connection reset"
    } else if text.contains("timed out") || text.contains("timeout") || text.contains("keep") {
        "connection timed out"
    } else {
        "connection lost"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_counted_in_words_that_fit() {
        let line = |tasks| worker_died("default-1", "connection reset", tasks);
        assert_eq!(line(0), "worker default-1 died (connection reset)");
        assert!(line(1).ends_with("; 1 task is tried again"));
        assert!(line(3).ends_with("; 3 tasks are tried again"));
    }

    #[test]
    fn the_silent_are_named_and_the_others_counted() {
        let names: Vec<String> = (1..=5).map(|number| format!("w-{number}")).collect();
        assert_eq!(
            workers_silent(&names[..1], 1),
            "worker w-1 is silent; 1 task is tried elsewhere"
        );
        assert_eq!(
            workers_silent(&names, 2),
            "workers w-1, w-2, w-3 and 2 more are silent; 2 tasks are tried elsewhere"
        );
    }

    #[test]
    fn a_death_tells_memory_and_last_lines_if_they_are_known() {
        let vitals = Vitals::default();
        assert_eq!(death("killed", &vitals, &[]), "killed");
        vitals
            .resident_bytes
            .store((3 << 20) - 1, Ordering::Relaxed);
        let text = death("killed", &vitals, &[]);
        assert_eq!(text, "killed; at its last beat it used 3 MiB of memory");
        vitals.limit_bytes.store(4 << 20, Ordering::Relaxed);
        let lines = ["ERROR one".to_owned(), "ä".repeat(LINE_BYTES_MAX)];
        let text = death("killed", &vitals, &lines);
        assert!(text.contains("3 MiB of 4 MiB of memory; its last lines were:\n    ERROR one\n"));
        assert!(text.ends_with('…') && text.len() < 600);
    }

    #[test]
    fn what_others_say_of_an_end_is_one_bounded_line() {
        assert_eq!(cut(" \n"), "its process ended");
        assert_eq!(cut("signal 9\nmore"), "signal 9");
        assert!(cut(&"x".repeat(9999)).len() < 1100);
    }
}
