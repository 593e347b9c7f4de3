//! Ships the newest log lines of this process to the scheduler.
//!
//! Invariant: a message carries a bounded number of lines and bytes; what does not fit is counted,
//! and the newest lines are those that go.

use std::sync::Arc;

use oxidask_logbook::{Bounds, Cursor, Line, Logbook};
use oxidask_proto::wire;

/// Lines and bytes of one message.
const BEAT: Bounds = Bounds {
    items_max: 200,
    bytes_max: 64 * 1024,
};

/// How far the scheduler has been told.
#[derive(Debug)]
pub(crate) struct LogShipper {
    book: Arc<Logbook>,
    cursor: Cursor,
}

impl LogShipper {
    pub(crate) fn new(book: Arc<Logbook>) -> Self {
        Self {
            book,
            cursor: Cursor::default(),
        }
    }

    /// Puts what is new into a message that carries a heartbeat.
    pub(crate) fn fill(&mut self, batch: &mut wire::WorkerBatch) {
        let taken = self.book.take(&mut self.cursor, BEAT);
        batch.log_lines = taken.lines.into_iter().map(to_wire).collect();
        batch.log_lines_dropped = taken.dropped;
    }
}

fn to_wire(line: Line) -> wire::LogLine {
    wire::LogLine {
        time_micros: line.time_micros,
        level: line.level.name().to_owned(),
        target: line.target,
        text: line.text,
        graph: line.graph,
        key: line.key,
        attempt: line.attempt,
        worker: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use oxidask_logbook::Level;

    use super::*;

    fn add(book: &Logbook, text: String) {
        book.add(Line {
            time_micros: 5,
            level: Level::Err,
            target: "sort".to_owned(),
            text,
            graph: "7".to_owned(),
            key: "a".to_owned(),
            attempt: 2,
        });
    }

    #[test]
    fn messages_are_bounded_and_what_does_not_fit_is_counted() {
        let book = Arc::new(Logbook::default());
        let mut shipper = LogShipper::new(Arc::clone(&book));
        let mut batch = wire::WorkerBatch::default();
        shipper.fill(&mut batch);
        assert_eq!(batch, wire::WorkerBatch::default());
        add(&book, "first".to_owned());
        shipper.fill(&mut batch);
        let line = &batch.log_lines[0];
        assert_eq!((line.text.as_str(), line.level.as_str()), ("first", "ERR"));
        assert_eq!(
            (line.graph.as_str(), line.key.as_str(), line.attempt),
            ("7", "a", 2)
        );
        for number in 0..500 {
            add(&book, format!("line {number}"));
        }
        shipper.fill(&mut batch);
        assert_eq!((batch.log_lines.len(), batch.log_lines_dropped), (200, 300));
        assert_eq!(batch.log_lines[199].text, "line 499");
        for _ in 0..100 {
            add(&book, "x".repeat(4_000));
        }
        shipper.fill(&mut batch);
        assert!((10..17).contains(&batch.log_lines.len()));
        assert_eq!(batch.log_lines.len() as u64 + batch.log_lines_dropped, 100);
    }
}
