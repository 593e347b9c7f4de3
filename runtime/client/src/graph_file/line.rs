//! One line: its fields, read fast when they are right, explained when they are not.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use oxidask_diagnostic::nearest;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::{Map, Value};

use super::error::{GraphFileError, Place, shown};

/// The fields of a task.
pub(super) const FIELDS: [&str; 8] = [
    "key",
    "op",
    "inputs",
    "args",
    "priority",
    "retries",
    "resources",
    "workers",
];

const OUTPUTS: &str = "outputs";

/// What a line may say.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) key: Option<Text<'a>>,
    pub(super) op: Option<Text<'a>>,
    pub(super) inputs: Option<Vec<Text<'a>>>,
    pub(super) args: Option<Map<String, Value>>,
    pub(super) priority: Option<i32>,
    pub(super) retries: Option<u32>,
    pub(super) resources: Option<BTreeMap<String, u64>>,
    pub(super) workers: Option<Vec<String>>,
    pub(super) outputs: Option<Vec<Text<'a>>>,
}

impl Line<'_> {
    /// Whether it names outputs and nothing else.
    pub(super) fn has_only_outputs(&self) -> bool {
        self.key.is_none()
            && self.op.is_none()
            && self.inputs.is_none()
            && self.args.is_none()
            && self.priority.is_none()
            && self.retries.is_none()
            && self.resources.is_none()
            && self.workers.is_none()
    }
}

/// A text that is borrowed from the line where it has no escapes.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// Reads a line of text.
pub(super) fn parse(
    text: &str,
    place: impl Fn(Option<usize>) -> Place,
) -> Result<Line<'_>, GraphFileError> {
    // A list would be taken for the fields in their order.
    let line = if text.trim_ascii_start().starts_with('{') {
        serde_json::from_str(text)
    } else {
        Err(serde::de::Error::custom("not an object"))
    };
    line.map_err(|error| match serde_json::from_str::<Value>(text) {
        Ok(value) => explain(&value, place(None), &error),
        Err(error) => GraphFileError::NotJson {
            place: place(Some(column(text, &error))),
            problem: problem(&error),
        },
    })
}

/// Reads an object that is JSON already.
pub(super) fn from_value(
    value: &Value,
    place: impl Fn() -> Place,
) -> Result<Line<'_>, GraphFileError> {
    if !value.is_object() {
        return Err(GraphFileError::NotAnObject {
            place: place(),
            found: kind(value),
        });
    }
    Line::deserialize(value).map_err(|error| explain(value, place(), &error))
}

/// From 1: what is missing at the end of a line is missing behind its last character.
fn column(text: &str, error: &serde_json::Error) -> usize {
    let is_behind = error.line() > 1;
    let column = if is_behind {
        text.trim_ascii_end().len()
    } else {
        error.column()
    };
    column.max(1)
}

/// The reader's message without its place, which is told in our own way.
fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Why an object is not a line.
fn explain(value: &Value, place: Place, error: &serde_json::Error) -> GraphFileError {
    let Some(fields) = value.as_object() else {
        return GraphFileError::NotAnObject {
            place,
            found: kind(value),
        };
    };
    for (name, value) in fields {
        let Some(field) = FIELDS
            .into_iter()
            .chain([OUTPUTS])
            .find(|field| *field == name.as_str())
        else {
            let nearest = nearest(name, FIELDS.into_iter().chain([OUTPUTS]));
            return GraphFileError::UnknownField {
                place,
                field: shown(name),
                nearest,
            };
        };
        let expected = expected(field);
        if !value.is_null() && !accepts(field, value) {
            return GraphFileError::WrongField {
                place,
                field,
                expected,
                found: shown(&value.to_string()),
            };
        }
    }
    GraphFileError::WrongLine {
        place,
        problem: problem(error),
    }
}

fn expected(field: &str) -> &'static str {
    match field {
        "key" | "op" => "a string",
        "inputs" | OUTPUTS => "a list of keys",
        "args" => "an object",
        "priority" => "an integer from -2147483648 to 2147483647",
        "retries" => "an integer from 0 to 4294967295",
        "resources" => "an object of integers from 0 on",
        _ => "a list of names",
    }
}

fn accepts(field: &str, value: &Value) -> bool {
    match field {
        "key" | "op" => value.is_string(),
        "args" => value.is_object(),
        "priority" => value
            .as_i64()
            .is_some_and(|number| i32::try_from(number).is_ok()),
        "retries" => value
            .as_u64()
            .is_some_and(|number| u32::try_from(number).is_ok()),
        "resources" => value
            .as_object()
            .is_some_and(|map| map.values().all(Value::is_u64)),
        _ => value
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
