//! What can be wrong with a graph file, and where.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;

use oxidask_diagnostic::{Code, Coded};
use oxidask_exec::catalogue::OperationError;

/// Characters of a key or a value that a message shows.
const SHOWN_CHARS_MAX: usize = 100;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a text.
    Line {
        /// The file, or where else the text is from.
        origin: Arc<str>,
        /// From 1.
        line: u32,
        /// From 1, in bytes, where it is known.
        column: Option<usize>,
    },
    /// An item of a list.
    Item {
        /// The list.
        origin: Arc<str>,
        /// From 0.
        index: u32,
    },
    /// As a whole.
    Whole {
        /// The file, or what else.
        origin: Arc<str>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line {
                origin,
                line,
                column: None,
            } => write!(f, "{origin}:{line}"),
            Self::Line {
                origin,
                line,
                column: Some(column),
            } => {
                write!(f, "{origin}:{line}:{column}")
            }
            Self::Item { origin, index } => write!(f, "{origin}[{index}]"),
            Self::Whole { origin } => f.write_str(origin),
        }
    }
}

/// A graph file is refused.
#[derive(Debug, thiserror::Error)]
pub enum GraphFileError {
    /// The file cannot be read.
    #[error("`{origin}` cannot be read")]
    Unreadable {
        /// The file.
        origin: Arc<str>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file begins with a byte-order mark.
    #[error("{place}: the text begins with a byte-order mark")]
    ByteOrderMark {
        /// Where.
        place: Place,
    },
    /// A line is not UTF-8.
    #[error("{place}: the line is not valid UTF-8")]
    NotUtf8 {
        /// Where.
        place: Place,
    },
    /// A line is not JSON.
    #[error("{place}: not valid JSON: {problem}")]
    NotJson {
        /// Where.
        place: Place,
        /// What the JSON reader says.
        problem: String,
    },
    /// A line is JSON, but not an object.
    #[error("{place}: a task is an object, not {found}")]
    NotAnObject {
        /// Where.
        place: Place,
        /// What it is.
        found: &'static str,
    },
    /// A task has a field that there is not.
    #[error("{place}: unknown field `{field}`")]
    UnknownField {
        /// Where.
        place: Place,
        /// As it was written, shortened.
        field: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// A task lacks a field.
    #[error("{place}: a task needs the field `{field}`")]
    MissingField {
        /// Where.
        place: Place,
        /// The field.
        field: &'static str,
    },
    /// A field has a value that is not allowed.
    #[error("{place}: `{field}` must be {expected}, not `{found}`")]
    WrongField {
        /// Where.
        place: Place,
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is, shortened.
        found: String,
    },
    /// Wrong in another way.
    #[error("{place}: {problem}")]
    WrongLine {
        /// Where.
        place: Place,
        /// In which way.
        problem: String,
    },
    /// A key is defined a second time.
    #[error("{place}: key `{key}` is already defined at {first}")]
    DuplicateKey {
        /// Where the second definition is.
        place: Place,
        /// The key, shortened.
        key: String,
        /// Where the first definition is.
        first: Place,
    },
    /// An input is not defined.
    #[error("{place}: task `{key}` reads `{input}`, which is not defined")]
    UndefinedInput {
        /// Where.
        place: Place,
        /// The task, shortened.
        key: String,
        /// The input, shortened.
        input: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A wanted result is not defined.
    #[error("{place}: the output `{output}` is not defined")]
    UndefinedOutput {
        /// Where.
        place: Place,
        /// The output, shortened.
        output: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// Tasks wait for each other.
    #[error("{place}: tasks wait for each other: {path}")]
    Cycle {
        /// Where one of them is.
        place: Place,
        /// Each reads the next.
        path: String,
    },
    /// An operation or its arguments are wrong.
    #[error("{place}: {source}")]
    Operation {
        /// Where.
        place: Place,
        /// What is wrong.
        #[source]
        source: OperationError,
    },
    /// A limit is passed.
    #[error("{place}: more than {limit} {what}")]
    Limit {
        /// Where.
        place: Place,
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
}

impl Coded for GraphFileError {
    fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. } => Code::ManifestUnreadable,
            Self::ByteOrderMark { .. }
            | Self::NotUtf8 { .. }
            | Self::NotJson { .. }
            | Self::NotAnObject { .. }
            | Self::UnknownField { .. }
            | Self::MissingField { .. }
            | Self::WrongField { .. }
            | Self::WrongLine { .. } => Code::GraphSyntax,
            Self::DuplicateKey { .. } => Code::KeyDuplicate,
            Self::UndefinedInput { .. } | Self::UndefinedOutput { .. } => Code::InputUndefined,
            Self::Cycle { .. } => Code::GraphCycle,
            Self::Operation { source, .. } => source.code(),
            Self::Limit { .. } => Code::LimitPassed,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownField {
                nearest: Some(name),
                ..
            } => did_you_mean(name),
            Self::UndefinedInput {
                nearest: Some(name),
                ..
            }
            | Self::UndefinedOutput {
                nearest: Some(name),
                ..
            } => did_you_mean(name),
            Self::UnknownField { .. } => {
                format!("a task has the fields {}", super::line::FIELDS.join(", ")).into()
            }
            Self::ByteOrderMark { .. } => "save the file as UTF-8 without a byte-order mark".into(),
            Self::NotJson { .. } => "each line is one whole JSON object; a list of tasks or an \
                 object over several lines is not read"
                .into(),
            Self::NotAnObject {
                found: "a list", ..
            } => "put each task on a line of its own, without the list around them".into(),
            Self::Limit { what, .. } if what.contains("a key") => "use shorter keys".into(),
            Self::Limit { what, .. } if what.contains("in a line") => "is this a graph file? It \
                 has one task a line; large data belongs into files that tasks read"
                .into(),
            Self::Limit { what, .. } if what.contains("inputs") => "combine the inputs in steps: \
                 first groups of them, then the results of the groups"
                .into(),
            Self::UndefinedOutput { .. } => "name the keys of tasks".into(),
            Self::Operation { source, .. } => source.hint(),
            _ => self.code().hint().into(),
        }
    }
}

fn did_you_mean(name: &str) -> Cow<'static, str> {
    format!("did you mean `{name}`?").into()
}

/// A key, a name or a value as a message shows it: short, and on one line.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_keys_short_and_on_one_line() {
        assert_eq!(shown("a\nb\u{1b}ä`"), "a\\nb\\u{1b}ä`");
        assert_eq!(
            shown(&"x".repeat(1024)),
            format!("{}…", "x".repeat(SHOWN_CHARS_MAX))
        );
        assert_eq!(shown(""), "");
    }
}
