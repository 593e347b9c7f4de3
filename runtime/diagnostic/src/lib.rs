//! Coded errors that teach.
//!
//! Owns the list of stable error codes and the one shape in which an error reaches a user: code,
//! message, causes and a hint. Never prints, never decides an exit status, never does I/O.
//!
//! Invariants: a code is never renumbered or reused; every code has a page
//! `docs/src/errors/OXnnn.md`; every diagnostic has a hint.

mod code;
mod nearest;

pub use code::Code;
pub use nearest::nearest;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Causes kept in one diagnostic; deeper chains are cut, so a message on the wire stays small.
pub const CAUSES_MAX: usize = 16;

/// Bytes kept of a message, a cause or a hint; longer texts are cut at a character boundary.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// A library error that can reach a user.
///
/// Implemented by the error enum of each crate; [`Diagnostic::from_error`] turns it into what the
/// user sees.
pub trait Coded: Error {
    /// The stable code of this error.
    fn code(&self) -> Code;

    /// What to do about it; the code's own hint unless the error knows better.
    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.code().hint())
    }
}

/// An error as a user sees it: on a terminal, in a status, in an event, or on the wire.
///
/// `Display` prints the form that the command line uses:
///
/// ```text
/// error[OX203]: task `b` reads `a`, which no line defines
///   caused by: …
///
/// hint: …
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The stable code.
    pub code: Code,
    /// One sentence, lower case, no full stop, values in backticks.
    pub message: String,
    /// From the nearest cause to the root cause.
    pub causes: Vec<String>,
    /// What the user can do.
    pub hint: String,
    /// Something that only the client understands: the exception of a Python task.
    pub attachment: Option<Arc<[u8]>>,
}

impl Diagnostic {
    /// A diagnostic with the code's own hint and no causes.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: bounded(message.into()),
            causes: Vec::new(),
            hint: code.hint().to_owned(),
            attachment: None,
        }
    }

    /// Replaces the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = bounded(hint.into());
        self
    }

    /// Appends a cause, unless [`CAUSES_MAX`] is reached or it only repeats the text before it.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.push_cause(bounded(cause.into()));
        self
    }

    /// The error, its `source` chain as causes, and its hint.
    pub fn from_error<E: Coded>(error: &E) -> Self {
        let mut diagnostic =
            Self::new(error.code(), error.to_string()).with_hint(error.hint().into_owned());
        let mut source = error.source();
        while let Some(cause) = source {
            diagnostic.push_cause(bounded(cause.to_string()));
            source = cause.source();
        }
        diagnostic
    }

    fn push_cause(&mut self, cause: String) {
        let last = self.causes.last().unwrap_or(&self.message);
        if self.causes.len() < CAUSES_MAX && !last.ends_with(&cause) {
            self.causes.push(cause);
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[{}]: {}", self.code, Printable(&self.message))?;
        for cause in &self.causes {
            writeln!(f, "  caused by: {}", Printable(cause))?;
        }
        write!(f, "\nhint: {}", Printable(&self.hint))
    }
}

/// A text that may come from anywhere: what would command the terminal is shown as an escape.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some((at, character)) = rest.char_indices().find(|(_, c)| is_command(*c)) {
            write!(f, "{}{}", &rest[..at], character.escape_default())?;
            rest = &rest[at + character.len_utf8()..];
        }
        f.write_str(rest)
    }
}

/// Control characters, and those that turn the direction of what follows.
fn is_command(character: char) -> bool {
    let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (character.is_control() && !matches!(character, '\n' | '\t'))
}

impl Error for Diagnostic {}

impl Coded for Diagnostic {
    fn code(&self) -> Code {
        self.code
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Owned(self.hint.clone())
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_message_causes_blank_line_and_hint() {
        let diagnostic = Diagnostic::new(Code::InputUndefined, "task `b` reads `a`")
            .with_cause("first")
            .with_cause("second")
            .with_hint("define `a`");
        assert_eq!(
            diagnostic.to_string(),
            "error[OX203]: task `b` reads `a`\n  caused by: first\n  caused by: second\n\n\
             hint: define `a`"
        );
    }

    #[test]
    fn shows_what_would_command_a_terminal_as_an_escape() {
        let diagnostic = Diagnostic::new(Code::TaskFailed, "a\u{1b}[31mä\0\r\n\tb\u{202e}c");
        assert_eq!(
            diagnostic.to_string().split("\n\nhint").next(),
            Some("error[OX208]: a\\u{1b}[31mä\\u{0}\\r\n\tb\\u{202e}c")
        );
    }

    #[test]
    fn cuts_long_texts_at_a_character_boundary() {
        let diagnostic = Diagnostic::new(Code::TaskFailed, "ä".repeat(TEXT_BYTES_MAX));
        assert!(diagnostic.message.len() <= TEXT_BYTES_MAX + '…'.len_utf8());
        assert!(diagnostic.message.ends_with('…'));
    }

    #[test]
    fn keeps_a_bounded_number_of_causes() {
        let mut diagnostic = Diagnostic::new(Code::TaskFailed, "m");
        for i in 0..100 {
            diagnostic = diagnostic.with_cause(format!("cause {i}"));
        }
        assert_eq!(diagnostic.causes.len(), CAUSES_MAX);
    }
}
