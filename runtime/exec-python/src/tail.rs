//! The last lines of a process.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Lines that are kept.
const LINES_MAX: usize = 20;

/// Bytes of each of the last lines in a message.
const TAIL_LINE_BYTES_MAX: usize = 400;

/// How much sooner a line of a pipe may be read than answers that were given before it was written:
/// they come another way.
const AHEAD_TIME_MAX: Duration = Duration::from_secs(1);

/// The last lines of a process, each with when it was read if it came by a pipe.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<(String, Option<Instant>)>);

impl Tail {
    /// A line that came with the answers.
    pub(crate) fn push(&mut self, line: &str) {
        self.push_read(line, None);
    }

    /// A line of a pipe, which keeps no order with the answers.
    pub(crate) fn push_from_pipe(&mut self, line: &str, now: Instant) {
        self.push_read(line, Some(now));
    }

    fn push_read(&mut self, line: &str, read_at: Option<Instant>) {
        if self.0.len() == LINES_MAX {
            self.0.pop_front();
        }
        let end = line.floor_char_boundary(TAIL_LINE_BYTES_MAX);
        self.0.push_back((line[..end].to_owned(), read_at));
    }

    /// An answer has come: lines are of what ran before it, but for those that may have overtaken it.
    pub(crate) fn clear(&mut self, now: Instant) {
        let is_ahead = |at: Instant| now.saturating_duration_since(at) < AHEAD_TIME_MAX;
        self.0.retain(|(_, read_at)| read_at.is_some_and(is_ahead));
    }

    /// As text, without what would command a terminal.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<&str> = self.0.iter().map(|(line, _)| line.as_str()).collect();
        let is_wanted = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        lines.join("\n").chars().filter(is_wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_clears_what_was_said_before_it_but_not_what_overtook_it() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut tail = Tail::default();
        tail.push("with the answers");
        tail.push_from_pipe("long ago", start);
        tail.push_from_pipe("just now", after(1_500));
        tail.clear(after(1_600));
        assert_eq!(tail.text(), "just now");
        tail.push("of the next run");
        assert_eq!(tail.text(), "just now\nof the next run");
        tail.clear(after(3_000));
        assert_eq!(tail.text(), "");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(&format!("{number}\x1b"));
        }
        let kept: Vec<String> = (80..100).map(|number| number.to_string()).collect();
        assert_eq!(tail.text(), kept.join("\n"));
    }
}
