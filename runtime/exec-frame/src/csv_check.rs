//! Looks at the quotes of a CSV file before it is read.
//!
//! Owns the answer to two questions that the CSV reader does not ask: is every quoted value closed
//! (an open one would swallow the rest of the file as one value), and do quoted values hold line
//! breaks (such a file must not be read in parts). One pass over the file at the speed of memory;
//! a file that has not changed is not looked at again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use memchr::{memchr, memchr_iter};
use tokio_util::sync::CancellationToken;

use crate::FrameError;

/// Bytes read at once.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Files remembered; then all are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// What is special in a CSV file's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Dialect {
    pub(crate) delimiter: u8,
    pub(crate) quote: u8,
}

/// A file as it was when it was looked at.
type Seen = (u64, SystemTime, Dialect);

/// Results of earlier looks.
#[derive(Debug, Default)]
pub(crate) struct CsvChecks {
    seen: Mutex<HashMap<PathBuf, (Seen, bool)>>,
}

impl CsvChecks {
    /// Whether quoted values of the file hold line breaks; an error if a quote is broken. Blocks.
    pub(crate) fn has_quoted_line_breaks(
        &self,
        path: &Path,
        dialect: Dialect,
        cancelled: &CancellationToken,
    ) -> Result<bool, FrameError> {
        let unreadable = |source: io::Error| FrameError::Missing {
            what: format!("the file `{}` cannot be read: {source}", path.display()),
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let seen = (
            metadata.len(),
            metadata.modified().map_err(unreadable)?,
            dialect,
        );
        let lock = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, answer)) = lock().get(path)
            && *known == seen
        {
            return Ok(*answer);
        }
        let mut scan = QuoteScan::new(dialect);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            if cancelled.is_cancelled() {
                return Err(FrameError::Cancelled);
            }
            let length = match file.read(&mut block) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            if scan.block(&block[..length]).is_err() {
                break;
            }
        }
        if let Some((offset, fault)) = scan.fault() {
            let line = line_at(path, offset).map_err(unreadable)?;
            let what = format!("{}:{line}: {fault}", path.display());
            return Err(FrameError::Damaged { what });
        }
        let mut remembered = lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(path.to_owned(), (seen, scan.has_line_break));
        Ok(scan.has_line_break)
    }
}

/// The line, from 1, that holds the byte at `offset`.
fn line_at(path: &Path, offset: u64) -> io::Result<u64> {
    let mut reader = File::open(path)?.take(offset);
    let mut block = vec![0; BLOCK_BYTES];
    let mut line = 1;
    loop {
        match reader.read(&mut block)? {
            0 => return Ok(line),
            length => line += memchr_iter(b'\n', &block[..length]).count() as u64,
        }
    }
}

/// Where in a value the scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Quoted,
    /// A quote was met inside a quoted value: its end, or the first of two.
    QuoteInQuoted,
    Broken,
}

struct QuoteScan {
    dialect: Dialect,
    state: State,
    /// Bytes in the blocks before.
    offset: u64,
    previous: u8,
    opened_at: u64,
    has_line_break: bool,
}

impl QuoteScan {
    fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            state: State::Plain,
            offset: 0,
            previous: b'\n',
            opened_at: 0,
            has_line_break: false,
        }
    }

    fn is_value_end(&self, byte: u8) -> bool {
        byte == self.dialect.delimiter || byte == b'\n' || byte == b'\r'
    }

    /// `Err` when the fault is certain.
    fn block(&mut self, block: &[u8]) -> Result<(), ()> {
        let quote = self.dialect.quote;
        let mut at = 0;
        while let Some(&byte) = block.get(at) {
            let rest = &block[at..];
            match self.state {
                State::Plain => {
                    let Some(next) = memchr(quote, rest) else {
                        break;
                    };
                    let before = match (at + next).checked_sub(1) {
                        Some(before) => block[before],
                        None => self.previous,
                    };
                    if self.is_value_end(before) {
                        self.state = State::Quoted;
                        self.opened_at = self.offset + (at + next) as u64;
                    }
                    at += next + 1;
                }
                State::Quoted => {
                    let next = memchr(quote, rest);
                    let value = &rest[..next.unwrap_or(rest.len())];
                    self.has_line_break = self.has_line_break || memchr(b'\n', value).is_some();
                    let Some(next) = next else { break };
                    self.state = State::QuoteInQuoted;
                    at += next + 1;
                }
                State::QuoteInQuoted if byte == quote => {
                    self.state = State::Quoted;
                    at += 1;
                }
                State::QuoteInQuoted if self.is_value_end(byte) => {
                    self.state = State::Plain;
                    at += 1;
                }
                State::QuoteInQuoted | State::Broken => {
                    self.state = State::Broken;
                    return Err(());
                }
            }
        }
        self.previous = block.last().copied().unwrap_or(self.previous);
        self.offset += block.len() as u64;
        Ok(())
    }

    /// After the last block: where and what the fault is.
    fn fault(&self) -> Option<(u64, &'static str)> {
        match self.state {
            State::Plain | State::QuoteInQuoted => None,
            State::Quoted => Some((
                self.opened_at,
                "a quoted value begins here and is never closed",
            )),
            State::Broken => Some((
                self.opened_at,
                "a quoted value begins here, and text follows its closing quote",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans in blocks of every size: (offset of the fault, whether line breaks are quoted).
    fn scan(text: &str) -> (Option<u64>, bool) {
        let mut answers: Vec<_> = (1..=text.len().max(1))
            .map(|size| {
                let mut scan = QuoteScan::new(Dialect {
                    delimiter: b',',
                    quote: b'"',
                });
                let _ = text
                    .as_bytes()
                    .chunks(size)
                    .try_for_each(|block| scan.block(block));
                (scan.fault().map(|fault| fault.0), scan.has_line_break)
            })
            .collect();
        answers.dedup();
        assert_eq!(answers.len(), 1, "{text:?}: the blocks' size matters");
        answers[0]
    }

    #[test]
    fn sound_quotes_pass() {
        assert_eq!(scan("a,b\n\"1\",\"x,y\"\r\n2,\"\"\n"), (None, false));
        assert_eq!(scan("\"say \"\"hi\"\"\",2\n\"\"\"\",3"), (None, false));
        assert_eq!(scan("a,\"two\nlines\"\n"), (None, true));
        assert_eq!(scan("5\" pipe,6\" pipe\n"), (None, false));
        assert_eq!(scan(""), (None, false));
        assert_eq!(scan("a,\"b\""), (None, false));
    }

    #[test]
    fn broken_quotes_are_found() {
        assert_eq!(scan("a,b\n1,\"open\n2,3\n"), (Some(6), true));
        assert_eq!(scan("a,b\n\"x\"y,3\n"), (Some(4), false));
        assert_eq!(scan("\""), (Some(0), false));
    }
}
