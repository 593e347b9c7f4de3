//! How much of the results is printed.
//!
//! Owns the count of rows and bytes. Every row is one line here, and a line passes whole or not at
//! all; the first that does not pass ends the output, so what is printed is always its beginning.
//! Memory is bounded by the limit of bytes.

use std::io::{self, Write};

use crate::progress::{bytes as size, counted};

/// The most that is printed; everything by default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Rows of queries and outputs of graphs.
    pub(crate) rows_max: Option<u64>,
    /// Bytes.
    pub(crate) bytes_max: Option<u64>,
}

/// Passes on lines until a limit is reached.
#[derive(Debug)]
pub(super) struct Limited<W> {
    inner: W,
    limits: Limits,
    /// What has come of the line that is not whole yet.
    line: Vec<u8>,
    /// Lines that come next and are no rows.
    heading_lines: u32,
    printed_rows: u64,
    printed_bytes: u64,
    left_out_rows: u64,
    is_full: bool,
}

impl<W: Write> Limited<W> {
    pub(super) fn new(inner: W, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            line: Vec::new(),
            heading_lines: 0,
            printed_rows: 0,
            printed_bytes: 0,
            left_out_rows: 0,
            is_full: false,
        }
    }

    /// Whether nothing more is printed.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// So many lines that come next are no rows.
    pub(super) fn expect_heading(&mut self, lines: u32) {
        self.heading_lines = lines;
    }

    /// Counts rows that are not even written here.
    pub(super) fn leave_out(&mut self, rows: u64) {
        self.left_out_rows += rows;
    }

    /// What to tell a person at the end, if anything was left out.
    pub(super) fn left_out_line(&self) -> Option<String> {
        if self.left_out_rows == 0 {
            return None;
        }
        Some(format!(
            "printed {} ({}) and left out {}: write large results to storage with `COPY … TO` or \
             the operation `write`",
            counted(self.printed_rows, "row"),
            size(self.printed_bytes),
            counted(self.left_out_rows, "row"),
        ))
    }

    fn is_unlimited(&self) -> bool {
        self.limits.rows_max.is_none() && self.limits.bytes_max.is_none()
    }

    /// Keeps a piece of a line, unless the line becomes too long to be printed.
    fn take(&mut self, piece: &[u8]) {
        if self.is_full {
            return;
        }
        let bytes = (self.line.len() + piece.len()) as u64;
        let has_room = |max: u64| self.printed_bytes.saturating_add(bytes) <= max;
        if self.limits.bytes_max.is_none_or(has_room) {
            self.line.extend_from_slice(piece);
        } else {
            self.is_full = true;
            self.line = Vec::new();
        }
    }

    fn end_line(&mut self) -> io::Result<()> {
        let is_row = self.heading_lines == 0;
        self.heading_lines = self.heading_lines.saturating_sub(1);
        // Nor are there names without rows below them.
        let is_enough = |max: u64| self.printed_rows >= max;
        self.is_full |= self.limits.rows_max.is_some_and(is_enough);
        if self.is_full {
            self.left_out_rows += u64::from(is_row);
            self.line.clear();
            return Ok(());
        }
        self.inner.write_all(&self.line)?;
        self.printed_bytes += self.line.len() as u64;
        self.printed_rows += u64::from(is_row);
        self.line.clear();
        Ok(())
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_unlimited() {
            return self.inner.write(bytes);
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.take(piece);
            if piece.ends_with(b"\n") {
                self.end_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(rows_max: Option<u64>, bytes_max: Option<u64>) -> Limited<Vec<u8>> {
        Limited::new(
            Vec::new(),
            Limits {
                rows_max,
                bytes_max,
            },
        )
    }

    #[test]
    fn without_limits_everything_passes_at_once() {
        let mut output = limited(None, None);
        output.write_all(b"no line end").unwrap();
        assert_eq!(output.inner, b"no line end");
        assert_eq!(output.left_out_line(), None);
    }

    #[test]
    fn rows_are_counted_and_the_rest_is_left_out() {
        let mut output = limited(Some(2), None);
        output.write_all(b"1\n2").unwrap();
        output.write_all(b"\n").unwrap();
        assert!(!output.is_full());
        output.write_all(b"3\n4\n").unwrap();
        assert!(output.is_full());
        output.leave_out(1_000);
        assert_eq!(output.inner, b"1\n2\n");
        let line = output.left_out_line().unwrap();
        assert!(
            line.starts_with("printed 2 rows (4 B) and left out 1,002 rows: "),
            "{line}"
        );
    }

    #[test]
    fn a_row_that_does_not_fit_ends_the_output() {
        let mut output = limited(None, Some(6));
        output.write_all(b"12\n").unwrap();
        for _ in 0..1_000 {
            output.write_all(b"long").unwrap();
        }
        assert!(output.line.capacity() < 64, "{}", output.line.capacity());
        output.write_all(b"\n3\n").unwrap();
        assert_eq!(output.inner, b"12\n");
        assert_eq!(output.left_out_rows, 2);
    }

    #[test]
    fn exactly_as_much_as_is_allowed_is_not_too_much() {
        let mut output = limited(Some(2), Some(4));
        output.write_all(b"1\n2\n").unwrap();
        assert_eq!(output.left_out_line(), None);
    }

    #[test]
    fn headings_are_no_rows_and_never_stand_alone() {
        let mut output = limited(Some(1), None);
        output.expect_heading(2);
        output.write_all(b"name\n----\n1\n").unwrap();
        output.expect_heading(2);
        output.write_all(b"name\n----\n2\n3\n").unwrap();
        assert_eq!(output.inner, b"name\n----\n1\n");
        assert_eq!(output.left_out_rows, 2);
    }
}
