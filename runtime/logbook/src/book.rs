//! The lines of a process.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::line::Line;
use crate::ring::{Bounds, Ring};
use crate::secrets::Secrets;

/// What a process keeps unless it is told otherwise.
const LINES_MAX: usize = 4_000;
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// The newest lines of a process. Shared by whoever writes and whoever reads.
#[derive(Debug)]
pub struct Logbook {
    lines: Mutex<Ring<Line>>,
    secrets: Secrets,
}

/// How far somebody has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    next: u64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// Oldest first.
    pub lines: Vec<Line>,
    /// Lines before them that are forgotten, or did not fit.
    pub dropped: u64,
}

impl Logbook {
    /// An empty one.
    pub fn new(bounds: Bounds, secrets: Secrets) -> Self {
        Self {
            lines: Mutex::new(Ring::new(bounds)),
            secrets,
        }
    }

    /// One of the usual size that hides these.
    pub fn hiding(secrets: Secrets) -> Self {
        Self {
            secrets,
            ..Self::default()
        }
    }

    /// Adds a line: cut, without control characters, without secrets.
    pub fn add(&self, mut line: Line) {
        // Before it is cut, so that no half of a secret is left at its end.
        if let Cow::Owned(hidden) = self.secrets.hide(&line.text) {
            line.text = hidden;
        }
        line.tidy();
        let bytes = line.bytes();
        self.lock().push(line, bytes);
    }

    /// What has come since the last time: the newest lines within these bounds.
    pub fn take(&self, cursor: &mut Cursor, bounds: Bounds) -> Taken {
        let lines = self.lock();
        let start = lines.newest(cursor.next, bounds);
        let taken = Taken {
            lines: lines.from(start).map(|(_, line)| line.clone()).collect(),
            dropped: start.saturating_sub(cursor.next),
        };
        cursor.next = lines.next();
        taken
    }

    /// Whether something has come since the last time.
    pub fn has_more(&self, cursor: Cursor) -> bool {
        self.lock().next() > cursor.next
    }

    fn lock(&self) -> MutexGuard<'_, Ring<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Logbook {
    fn default() -> Self {
        let bounds = Bounds {
            items_max: LINES_MAX,
            bytes_max: BYTES_MAX,
        };
        Self::new(bounds, Secrets::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::line;

    const BEAT: Bounds = Bounds {
        items_max: 3,
        bytes_max: 1_000,
    };

    fn texts(taken: &Taken) -> Vec<&str> {
        taken.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn only_what_is_new_is_taken_and_what_does_not_fit_is_counted() {
        let book = Logbook::default();
        let mut cursor = Cursor::default();
        assert_eq!(book.take(&mut cursor, BEAT), Taken::default());
        for text in ["1", "2"] {
            book.add(line(text));
        }
        assert!(book.has_more(cursor));
        assert_eq!(texts(&book.take(&mut cursor, BEAT)), ["1", "2"]);
        assert!(!book.has_more(cursor));
        for text in ["3", "4", "5", "6", "7"] {
            book.add(line(text));
        }
        let taken = book.take(&mut cursor, BEAT);
        assert_eq!((texts(&taken), taken.dropped), (vec!["5", "6", "7"], 2));
        assert_eq!(book.take(&mut cursor, BEAT), Taken::default());
    }

    #[test]
    fn secrets_are_hidden_also_where_a_line_is_cut() {
        let variables = [("A_TOKEN".to_owned(), "0123456789abcdef".to_owned())];
        let bounds = Bounds {
            items_max: 10,
            bytes_max: 100_000,
        };
        let book = Logbook::new(bounds, Secrets::of(variables));
        let padding = "x".repeat(crate::LINE_BYTES_MAX - 10);
        book.add(line(&format!("{padding}0123456789abcdef")));
        let taken = book.take(&mut Cursor::default(), bounds);
        assert!(!taken.lines[0].text.contains("0123"));
        assert!(taken.lines[0].text.contains("***"));
    }

    proptest! {
        #[test]
        fn every_line_is_taken_or_counted(
            steps in proptest::collection::vec((0_usize..12, 0_usize..300), 0..60),
        ) {
            let bounds = Bounds { items_max: 8, bytes_max: 900 };
            let book = Logbook::new(bounds, Secrets::default());
            let (mut cursor, mut added, mut seen) = (Cursor::default(), 0_u64, 0_u64);
            for (count, length) in steps {
                for _ in 0..count {
                    book.add(line(&"x".repeat(length)));
                    added += 1;
                }
                let taken = book.take(&mut cursor, BEAT);
                prop_assert!(taken.lines.len() <= BEAT.items_max);
                prop_assert!(taken.lines.iter().map(Line::bytes).sum::<usize>() <= BEAT.bytes_max);
                seen += taken.lines.len() as u64 + taken.dropped;
                prop_assert_eq!(seen, added);
            }
        }
    }
}
