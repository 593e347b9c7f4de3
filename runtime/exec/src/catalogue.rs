//! Every public operation, its arguments and their types.
//!
//! Owns the table that graph files are checked against, and the typed arguments that executors
//! read. Runs nothing. Invariant: arguments that pass [`check`] can be read as the typed struct.

mod typed;

use std::borrow::Cow;

use oxidask_diagnostic::{Code, Coded, nearest};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use typed::{
    BytesArguments, ExecArguments, FailArguments, ReadArguments, SecondsArguments, SqlArguments,
    ValueArguments, WriteArguments,
};

/// Seconds that an operation may be told to take, or to allow: ten years.
pub const SECONDS_MAX: f64 = 315_360_000.0;

/// Formats of `read` and `write`, in any case.
pub const FORMATS: &[&str] = &["parquet", "csv", "json"];

/// The slots of an operation that takes all slots of its worker.
pub const ALL_SLOTS: u32 = u32::MAX;

/// Characters of a wrong value that a message shows.
const SHOWN_CHARS_MAX: usize = 60;

/// An operation as users may write it.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Its name in `op`.
    pub name: &'static str,
    /// What it takes.
    pub arguments: &'static [Argument],
    /// Whether it may keep every slot of its worker busy.
    pub takes_all_slots: bool,
}

/// One argument of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Its name in `args`.
    pub name: &'static str,
    /// Whether it may not be left out.
    pub is_required: bool,
    /// What it must be.
    pub kind: ArgumentKind,
}

/// What the value of an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentKind {
    /// Any JSON value.
    Any,
    /// An integer from 0 on.
    Count,
    /// An integer from 0 on, below 2^32.
    SmallCount,
    /// Seconds from 0 to [`SECONDS_MAX`].
    Seconds,
    /// Seconds above 0, up to [`SECONDS_MAX`].
    Timeout,
    /// A text.
    Text,
    /// A text that is not empty.
    Name,
    /// A list of texts, none of them empty.
    Names,
    /// One of [`FORMATS`].
    Format,
    /// A list of texts of which the first names a program.
    Command,
    /// An object of texts: environment variables.
    Environment,
    /// An object of texts, numbers and booleans.
    Options,
}

const fn required(name: &'static str, kind: ArgumentKind) -> Argument {
    Argument {
        name,
        is_required: true,
        kind,
    }
}

const fn optional(name: &'static str, kind: ArgumentKind) -> Argument {
    Argument {
        name,
        is_required: false,
        kind,
    }
}

const fn operation(name: &'static str, arguments: &'static [Argument]) -> Operation {
    Operation {
        name,
        arguments,
        takes_all_slots: false,
    }
}

const fn frame_operation(name: &'static str, arguments: &'static [Argument]) -> Operation {
    Operation {
        name,
        arguments,
        takes_all_slots: true,
    }
}

/// All public operations.
pub const OPERATIONS: &[Operation] = &[
    operation("noop", &[]),
    operation("value", &[required("value", ArgumentKind::Any)]),
    operation("sum", &[]),
    operation("min", &[]),
    operation("max", &[]),
    operation("count", &[]),
    operation("concat", &[]),
    operation(
        "bytes",
        &[
            required("len", ArgumentKind::Count),
            optional("seed", ArgumentKind::Count),
        ],
    ),
    operation("sha256", &[]),
    operation("sleep", &[required("seconds", ArgumentKind::Seconds)]),
    operation("spin", &[required("seconds", ArgumentKind::Seconds)]),
    operation(
        "fail",
        &[
            optional("message", ArgumentKind::Text),
            optional("attempts", ArgumentKind::SmallCount),
        ],
    ),
    operation(
        "exec",
        &[
            required("command", ArgumentKind::Command),
            optional("env", ArgumentKind::Environment),
            optional("timeoutSeconds", ArgumentKind::Timeout),
        ],
    ),
    frame_operation(
        "read",
        &[
            required("location", ArgumentKind::Name),
            optional("format", ArgumentKind::Format),
            optional("options", ArgumentKind::Options),
        ],
    ),
    frame_operation(
        "sql",
        &[
            required("query", ArgumentKind::Name),
            optional("as", ArgumentKind::Names),
        ],
    ),
    frame_operation(
        "write",
        &[
            required("location", ArgumentKind::Name),
            optional("format", ArgumentKind::Format),
            optional("partitionBy", ArgumentKind::Names),
        ],
    ),
];

/// The operation that SQL texts become; not for graph files.
pub const STATEMENT: &str = "statement";

/// An operation or its arguments are wrong.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// There is no such operation.
    #[error("operation `{op}` is unknown")]
    UnknownOperation {
        /// As it was written.
        op: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// The operation has no such argument.
    #[error("operation `{op}` has no argument `{argument}`")]
    UnknownArgument {
        /// The operation.
        op: &'static str,
        /// As it was written.
        argument: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// An argument is missing.
    #[error("operation `{op}` needs the argument `{argument}`, {expected}")]
    MissingArgument {
        /// The operation.
        op: &'static str,
        /// The argument that is not there.
        argument: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// An argument has a value of the wrong type or out of range.
    #[error("argument `{argument}` of operation `{op}` must be {expected}, not `{found}`")]
    WrongArgument {
        /// The operation.
        op: &'static str,
        /// The argument.
        argument: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is, shortened.
        found: String,
    },
    /// The arguments do not fit for another reason.
    #[error("the arguments of operation `{op}` cannot be read")]
    Unreadable {
        /// The operation.
        op: String,
        /// What the reader says.
        #[source]
        source: serde_json::Error,
    },
}

impl Coded for OperationError {
    fn code(&self) -> Code {
        Code::OperationUnknown
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownOperation {
                nearest: Some(name),
                ..
            }
            | Self::UnknownArgument {
                nearest: Some(name),
                ..
            } => format!("did you mean `{name}`?").into(),
            Self::UnknownOperation { .. } => format!(
                "there are {}",
                listed(OPERATIONS.iter().map(|operation| operation.name))
            )
            .into(),
            Self::UnknownArgument { op, .. } => match find(op) {
                Some(operation) if !operation.arguments.is_empty() => format!(
                    "`{op}` takes {}",
                    listed(operation.arguments.iter().map(|argument| argument.name))
                )
                .into(),
                _ => format!("`{op}` takes no arguments").into(),
            },
            _ => self.code().hint().into(),
        }
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The operation of this name.
pub fn find(op: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.name == op)
}

/// Slots that a task of this operation takes: 1, or [`ALL_SLOTS`].
pub fn slots(op: &str) -> u32 {
    let takes_all = op == STATEMENT || find(op).is_some_and(|operation| operation.takes_all_slots);
    if takes_all { ALL_SLOTS } else { 1 }
}

/// Whether a public operation is named and its arguments fit.
pub fn check(op: &str, args: &Map<String, Value>) -> Result<(), OperationError> {
    let operation = find(op).ok_or_else(|| OperationError::UnknownOperation {
        op: op.to_owned(),
        nearest: nearest(op, OPERATIONS.iter().map(|operation| operation.name)),
    })?;
    for name in args.keys() {
        if !operation
            .arguments
            .iter()
            .any(|argument| argument.name == name)
        {
            return Err(OperationError::UnknownArgument {
                op: operation.name,
                argument: name.clone(),
                nearest: nearest(
                    name,
                    operation.arguments.iter().map(|argument| argument.name),
                ),
            });
        }
    }
    for argument in operation.arguments {
        match args.get(argument.name) {
            None if argument.is_required => {
                return Err(OperationError::MissingArgument {
                    op: operation.name,
                    argument: argument.name,
                    expected: argument.kind.expected(),
                });
            }
            None => {}
            Some(value) if argument.kind.accepts(value) => {}
            Some(value) => {
                return Err(OperationError::WrongArgument {
                    op: operation.name,
                    argument: argument.name,
                    expected: argument.kind.expected(),
                    found: shown(value),
                });
            }
        }
    }
    Ok(())
}

/// The checked arguments as a typed struct.
pub fn arguments<T: DeserializeOwned>(
    op: &str,
    args: &Map<String, Value>,
) -> Result<T, OperationError> {
    check(op, args)?;
    T::deserialize(Value::Object(args.clone())).map_err(|source| OperationError::Unreadable {
        op: op.to_owned(),
        source,
    })
}

impl ArgumentKind {
    /// What it must be, in words that follow "must be".
    pub fn expected(self) -> &'static str {
        match self {
            Self::Any => "any JSON value",
            Self::Count => "an integer from 0 on",
            Self::SmallCount => "an integer from 0 to 4294967295",
            Self::Seconds => "a number of seconds from 0 to 315360000",
            Self::Timeout => "a number of seconds above 0, up to 315360000",
            Self::Text => "a string",
            Self::Name => "a string that is not empty",
            Self::Names => "a list of strings",
            Self::Format => "one of parquet, csv and json",
            Self::Command => "a list of strings that begins with the program",
            Self::Environment => "an object of strings, the names without `=`",
            Self::Options => "an object of strings, numbers and booleans",
        }
    }

    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Count => value.is_u64(),
            Self::SmallCount => value
                .as_u64()
                .is_some_and(|count| u32::try_from(count).is_ok()),
            Self::Seconds => seconds(value).is_some_and(|seconds| seconds >= 0.0),
            Self::Timeout => seconds(value).is_some_and(|seconds| seconds > 0.0),
            Self::Text => value.is_string(),
            Self::Name => is_name(value),
            Self::Names => value
                .as_array()
                .is_some_and(|names| names.iter().all(is_name)),
            Self::Format => value
                .as_str()
                .is_some_and(|name| FORMATS.iter().any(|known| known.eq_ignore_ascii_case(name))),
            Self::Command => value.as_array().is_some_and(|words| is_command(words)),
            Self::Environment => value.as_object().is_some_and(is_environment),
            Self::Options => value.as_object().is_some_and(|options| {
                options
                    .values()
                    .all(|o| !o.is_array() && !o.is_object() && !o.is_null())
            }),
        }
    }
}

fn seconds(value: &Value) -> Option<f64> {
    value.as_f64().filter(|seconds| *seconds <= SECONDS_MAX)
}

fn is_name(value: &Value) -> bool {
    value.as_str().is_some_and(|name| !name.is_empty())
}

/// The kernel takes no zero bytes in a command.
fn is_command(words: &[Value]) -> bool {
    words.first().is_some_and(is_name)
        && words
            .iter()
            .all(|word| word.as_str().is_some_and(|word| !word.contains('\0')))
}

fn is_environment(variables: &Map<String, Value>) -> bool {
    variables.iter().all(|(name, value)| {
        !name.is_empty()
            && !name.contains(['=', '\0'])
            && value.as_str().is_some_and(|value| !value.contains('\0'))
    })
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn refusal(op: &str, value: &Value) -> (String, String) {
        let error = check(op, &args(value)).unwrap_err();
        assert_eq!(error.code(), Code::OperationUnknown);
        (error.to_string(), error.hint().into_owned())
    }

    #[test]
    fn accepts_what_the_documentation_shows() {
        for (op, value) in [
            ("noop", json!({})),
            ("value", json!({"value": null})),
            ("value", json!({"value": {"a": [1, 2.5]}})),
            ("bytes", json!({"len": 0})),
            ("bytes", json!({"len": 1, "seed": u64::MAX})),
            ("sleep", json!({"seconds": 0})),
            ("spin", json!({"seconds": 0.25})),
            ("fail", json!({})),
            ("fail", json!({"message": "no", "attempts": 2})),
            (
                "exec",
                json!({"command": ["sh", "-c", ""], "env": {"A": ""}, "timeoutSeconds": 1}),
            ),
            (
                "read",
                json!({"location": "a/*.csv", "format": "CSV", "options": {"has_header": true}}),
            ),
            ("sql", json!({"query": "SELECT 1", "as": ["a", "b"]})),
            (
                "write",
                json!({"location": "out/", "format": "parquet", "partitionBy": ["day"]}),
            ),
        ] {
            assert!(check(op, &args(&value)).is_ok(), "{op} {value}");
        }
    }

    #[test]
    fn names_the_operation_that_was_meant() {
        assert_eq!(
            refusal("cuont", &json!({})),
            (
                "operation `cuont` is unknown".to_owned(),
                "did you mean `count`?".to_owned()
            )
        );
        let (_, hint) = refusal("frobnicate", &json!({}));
        assert!(hint.starts_with("there are `noop`, `value`, "), "{hint}");
        let (message, _) = refusal(STATEMENT, &json!({}));
        assert_eq!(message, "operation `statement` is unknown");
    }

    #[test]
    fn names_the_argument_that_was_meant() {
        assert_eq!(
            refusal("write", &json!({"location": "a", "partition_by": []})),
            (
                "operation `write` has no argument `partition_by`".to_owned(),
                "did you mean `partitionBy`?".to_owned()
            )
        );
        assert_eq!(
            refusal("sum", &json!({"axis": 1})).1,
            "`sum` takes no arguments"
        );
        assert_eq!(
            refusal("bytes", &json!({"x": 1})).1,
            "`bytes` takes `len`, `seed`"
        );
        assert_eq!(
            refusal("value", &json!({})).0,
            "operation `value` needs the argument `value`, any JSON value"
        );
    }

    #[test]
    fn refuses_values_of_the_wrong_type_and_out_of_range() {
        for (op, value, argument) in [
            ("bytes", json!({"len": -1}), "len"),
            ("bytes", json!({"len": 1.5}), "len"),
            ("bytes", json!({"len": "1"}), "len"),
            ("bytes", json!({"len": 1, "seed": null}), "seed"),
            ("sleep", json!({"seconds": -0.1}), "seconds"),
            ("sleep", json!({"seconds": 1e300}), "seconds"),
            ("spin", json!({"seconds": "1"}), "seconds"),
            ("fail", json!({"attempts": 1_u64 << 32}), "attempts"),
            ("fail", json!({"message": 7}), "message"),
            ("exec", json!({"command": "ls -l"}), "command"),
            ("exec", json!({"command": []}), "command"),
            ("exec", json!({"command": [""]}), "command"),
            ("exec", json!({"command": ["a", 1]}), "command"),
            ("exec", json!({"command": ["a\u{0}b"]}), "command"),
            (
                "exec",
                json!({"command": ["a"], "env": {"A=B": "c"}}),
                "env",
            ),
            ("exec", json!({"command": ["a"], "env": {"A": 1}}), "env"),
            (
                "exec",
                json!({"command": ["a"], "timeoutSeconds": 0}),
                "timeoutSeconds",
            ),
            ("read", json!({"location": ""}), "location"),
            ("read", json!({"location": "a", "format": "xlsx"}), "format"),
            (
                "read",
                json!({"location": "a", "options": {"x": []}}),
                "options",
            ),
            ("sql", json!({"query": "", "as": []}), "query"),
            ("sql", json!({"query": "SELECT 1", "as": [""]}), "as"),
            (
                "write",
                json!({"location": "a", "partitionBy": "day"}),
                "partitionBy",
            ),
        ] {
            let (message, _) = refusal(op, &value);
            let start = format!("argument `{argument}` of operation `{op}` must be ");
            assert!(message.starts_with(&start), "{message}");
        }
    }

    #[test]
    fn shortens_what_it_shows() {
        let (message, _) = refusal("sleep", &json!({"seconds": "ä".repeat(1000)}));
        assert!(message.chars().count() < 200, "{message}");
        assert!(message.ends_with("…`"), "{message}");
    }

    #[test]
    fn typed_arguments_take_everything_that_is_checked() {
        let read: ReadArguments = arguments(
            "read",
            &args(&json!({"location": "a", "options": {"x": 1}})),
        )
        .unwrap();
        assert_eq!(read.options["x"], 1);
        let exec: ExecArguments = arguments(
            "exec",
            &args(&json!({"command": ["a"], "env": {"B": "c"}, "timeoutSeconds": 2})),
        )
        .unwrap();
        assert_eq!(
            (exec.env["B"].as_str(), exec.timeout_seconds),
            ("c", Some(2.0))
        );
        let bytes: BytesArguments = arguments("bytes", &args(&json!({"len": 3}))).unwrap();
        assert_eq!(bytes, BytesArguments { len: 3, seed: 0 });
        let sql: SqlArguments =
            arguments("sql", &args(&json!({"query": "q", "as": ["a"]}))).unwrap();
        assert_eq!(sql.names, ["a"]);
    }

    #[test]
    fn frame_operations_take_all_slots() {
        for op in ["read", "sql", "write", STATEMENT] {
            assert_eq!(slots(op), ALL_SLOTS);
        }
        for op in ["noop", "exec", "spin", "no such operation"] {
            assert_eq!(slots(op), 1);
        }
    }
}
