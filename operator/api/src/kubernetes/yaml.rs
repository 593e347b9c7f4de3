//! JSON values as YAML text.
//!
//! Owns the writing: fields sorted, texts quoted whenever they could be read as anything else,
//! texts of several lines as blocks. The same value always gives the same text.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::document::Content;
use crate::scalar;

/// The value as a YAML document, without `---`.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => object(&mut out, fields, 0, true),
        Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
        other => {
            scalar_text(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

/// Fields on lines of their own; the first one continues a line when `starts_line` is false, as
/// after the dash of a list.
fn object(out: &mut String, fields: &Map<String, Value>, indent: usize, starts_line: bool) {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by_key(|(name, _)| name.as_str());
    for (index, (name, value)) in sorted.into_iter().enumerate() {
        if index > 0 || starts_line {
            pad(out, indent);
        }
        text(out, name);
        out.push(':');
        below(out, value, indent);
    }
}

/// The value of a field.
fn below(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            object(out, fields, indent + 2, true);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            list(out, items, indent);
        }
        other => {
            out.push(' ');
            scalar_text(out, other, indent + 2);
            out.push('\n');
        }
    }
}

fn list(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        pad(out, indent);
        match item {
            Value::Object(fields) if !fields.is_empty() => {
                out.push_str("- ");
                object(out, fields, indent + 2, false);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push_str("-\n");
                list(out, inner, indent + 2);
            }
            other => {
                out.push_str("- ");
                scalar_text(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A value on the rest of the line, or a block below it; empty lists and objects included.
fn scalar_text(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(content) if fits_block(content) => block(out, content, indent),
        Value::String(content) => text(out, content),
        // JSON is YAML: null, numbers, true, false, [] and {}.
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// Several lines of plain characters, ending in at most one line break, not starting with a space.
fn fits_block(content: &str) -> bool {
    let body = content.strip_suffix('\n').unwrap_or(content);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\n'])
        && content.chars().all(|c| c == '\n' || is_plain(c))
}

fn block(out: &mut String, content: &str, indent: usize) {
    out.push_str(if content.ends_with('\n') { "|" } else { "|-" });
    for line in content.strip_suffix('\n').unwrap_or(content).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

/// Characters that stand for themselves.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// A text on one line: bare, in single quotes, or in double quotes with escapes.
fn text(out: &mut String, content: &str) {
    if !content.chars().all(is_plain) {
        // The escapes of JSON are escapes of YAML.
        let _ = write!(out, "{}", Value::from(content));
        escape_rest(out, content);
    } else if is_bare(content) {
        out.push_str(content);
    } else {
        let _ = write!(out, "'{}'", content.replace('\'', "''"));
    }
}

/// JSON leaves a few characters as they are that YAML does not allow.
fn escape_rest(out: &mut String, content: &str) {
    let needs_more = |c: char| !is_plain(c) && u32::from(c) >= 0x7f;
    if !content.contains(needs_more) {
        return;
    }
    let start = out.len() - Value::from(content).to_string().len();
    let quoted = out.split_off(start);
    for c in quoted.chars() {
        if needs_more(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
}

/// Whether a text is read as that text without quotes, by readers of YAML 1.1 too.
fn is_bare(content: &str) -> bool {
    const OLD_WORDS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "<<", "="];
    let starts_well = content.starts_with(|c: char| c.is_alphabetic() || "_/$.^(".contains(c));
    let is_number_like = content.starts_with('.');
    let has_indicator = content.contains(": ")
        || content.contains(" #")
        || content.ends_with([':', ' '])
        || content.contains('\t');
    starts_well
        && !is_number_like
        && !has_indicator
        && !OLD_WORDS.contains(&content.to_lowercase().as_str())
        && matches!(scalar::resolve(content), Ok(Content::Text(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::{self, Node};

    fn read(node: &Node) -> Value {
        match &node.content {
            Content::Null => Value::Null,
            Content::Bool(value) => (*value).into(),
            Content::Signed(value) => (*value).into(),
            Content::Unsigned(value) => (*value).into(),
            Content::Float(value) => (*value).into(),
            Content::Text(value) => value.as_str().into(),
            Content::List(items) => items.iter().map(read).collect(),
            Content::Object(fields) => fields
                .iter()
                .map(|field| (field.name.clone(), read(&field.value)))
                .collect(),
        }
    }

    fn read_back(value: &Value) {
        let text = to_yaml(value);
        let documents = document::parse(&text, "text").unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(read(&documents[0]), *value, "{text}");
    }

    #[test]
    fn texts_of_every_kind_are_read_back_as_they_were() {
        let texts = [
            "",
            " ",
            "plain",
            "two words",
            "true",
            "no",
            "Yes",
            "~",
            "null",
            "1",
            "0x1f",
            "1e3",
            ".5",
            ".inf",
            "-",
            "- a",
            "a: b",
            "a:",
            "a #b",
            "#b",
            "'",
            "\"",
            "it's",
            "[a]",
            "{a}",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a`",
            ">",
            "|",
            "a\nb",
            "a\nb\n",
            "a\n\nb",
            "a\n b\n",
            "\na\nb",
            " a\nb",
            "a\nb\n\n",
            "tab\there",
            "a\tb\nc",
            "é",
            "\u{85}",
            "\u{2028}x",
            "\u{feff}",
            "\u{0}",
            "back\\slash",
            "a\r\nb",
            "^[a-z]$",
            "x\u{7f}",
            "? a",
            "a ",
            "---",
            "...",
            "--- a",
            "\n",
            "\n\n",
            "a\n---\nb",
        ];
        for text in texts {
            read_back(&json!({"field": text, "list": [text, [text]], "deep": {"er": text}}));
            read_back(&json!({text: {text: 1}}));
        }
    }

    #[test]
    fn fields_are_sorted_and_lists_stand_under_their_field() {
        let value = json!({"b": [{"z": 1, "a": []}, "x"], "a": {}, "c": null, "d": "l1\nl2\n"});
        let text = "a: {}\nb:\n- a: []\n  z: 1\n- x\nc: null\nd: |\n  l1\n  l2\n";
        assert_eq!(to_yaml(&value), text);
        read_back(&value);
    }
}
