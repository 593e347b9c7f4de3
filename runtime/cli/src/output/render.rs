//! One result as text: a JSON object a line, or for people.

use std::io::{self, Write};

use oxidask_exec_frame::render::{self, RenderError as TableError, TextForm, TextTable};
use oxidask_store::{Payload, PayloadKind};
use sha2::{Digest, Sha256};

use super::{Item, Label};
use crate::arguments::OutputForm;
use crate::progress::bytes as size;

/// Lines before the rows of a table for people.
const NAMES_AND_RULE: u32 = 2;

/// Why a result cannot be printed.
#[derive(Debug)]
pub(crate) enum RenderError {
    /// Nobody reads, or the disk is full.
    Write(io::Error),
    /// The result is not what it says.
    Table(TableError),
}

impl From<io::Error> for RenderError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<TableError> for RenderError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Write(error) => Self::Write(error),
            TableError::Decode(_) => Self::Table(error),
        }
    }
}

/// As JSON: objects, one a line.
pub(crate) fn json(item: &Item, out: &mut impl Write) -> Result<(), RenderError> {
    let Item { label, payload, .. } = item;
    let Label::Key(key) = label else {
        render::json_lines(payload, out)?;
        return Ok(());
    };
    out.write_all(b"{\"key\":")?;
    json_text(key, out)?;
    match payload.kind {
        PayloadKind::Value => {
            out.write_all(b",\"value\":")?;
            for part in &payload.parts {
                out.write_all(part)?;
            }
        }
        PayloadKind::Bytes => {
            write!(
                out,
                ",\"bytes\":{},\"sha256\":\"{}\"",
                payload.len(),
                digest(payload)
            )?;
        }
        PayloadKind::Table => {
            out.write_all(b",\"rows\":")?;
            render::json_array(payload, out)?;
        }
        // Never an output.
        PayloadKind::Slices | PayloadKind::Graph | PayloadKind::Python => {
            out.write_all(b",\"value\":null")?;
        }
    }
    out.write_all(b"}\n")?;
    Ok(())
}

/// For people: tables with borders, values with their key.
pub(crate) fn table(item: &Item, is_first: bool, out: &mut impl Write) -> Result<(), RenderError> {
    let Item { label, payload, .. } = item;
    let is_table = payload.kind == PayloadKind::Table;
    if is_table && !is_first {
        out.write_all(b"\n")?;
    }
    if let Label::Key(key) = label {
        let key: String = key
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        write!(out, "{key}:{}", if is_table { "\n" } else { " " })?;
    }
    match payload.kind {
        PayloadKind::Value => {
            for part in &payload.parts {
                out.write_all(part)?;
            }
            out.write_all(b"\n")?;
        }
        PayloadKind::Bytes => {
            writeln!(out, "{}, sha256 {}", size(payload.len()), digest(payload))?;
        }
        PayloadKind::Table => {
            render::text(payload, text_form(), out)?;
        }
        // Never an output.
        PayloadKind::Slices | PayloadKind::Graph | PayloadKind::Python => {
            out.write_all(b"null\n")?;
        }
    }
    Ok(())
}

/// The rows of a query for people, which may come in parts.
pub(crate) fn begin_rows(is_first: bool, out: &mut impl Write) -> io::Result<TextTable> {
    if !is_first {
        out.write_all(b"\n")?;
    }
    Ok(TextTable::new(text_form()))
}

fn text_form() -> TextForm {
    TextForm {
        width: terminal_columns(),
        rows_max: None,
    }
}

/// Lines that stand before the first row of what [`table`] writes.
pub(crate) fn heading_lines(item: &Item, is_first: bool) -> u32 {
    if item.payload.kind != PayloadKind::Table {
        return 0;
    }
    let is_named = matches!(item.label, Label::Key(_));
    NAMES_AND_RULE + u32::from(!is_first) + u32::from(is_named)
}

/// Rows of a result as they are printed: those of a table, else one.
pub(crate) fn rows(item: &Item, form: OutputForm) -> Result<u64, RenderError> {
    let has_rows = item.label == Label::Rows || form == OutputForm::Table;
    if has_rows && item.payload.kind == PayloadKind::Table {
        Ok(render::row_count(&item.payload)?)
    } else {
        Ok(1)
    }
}

fn json_text(text: &str, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

fn digest(payload: &Payload) -> String {
    let mut hasher = Sha256::new();
    for part in &payload.parts {
        hasher.update(part);
    }
    let mut text = String::with_capacity(2 * Sha256::output_size());
    for byte in hasher.finalize() {
        // Writing into a text cannot fail.
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
    }
    text
}

/// Columns of the terminal, if the data goes to one.
fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, kind: PayloadKind, text: &'static str) -> Item {
        Item::whole(Label::Key(key.to_owned()), Payload::new(kind, text))
    }

    #[test]
    fn json_escapes_keys_and_keeps_values_as_they_are() {
        let mut out = Vec::new();
        json(&item("a\"\n", PayloadKind::Value, "{\"x\":1.50}"), &mut out).unwrap();
        json(&item("b", PayloadKind::Bytes, "abc"), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"key\":\"a\\\"\\n\",\"value\":{\"x\":1.50}}\n\
             {\"key\":\"b\",\"bytes\":3,\"sha256\":\
             \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"}\n"
        );
    }

    #[test]
    fn people_see_no_control_characters_of_a_key() {
        let mut out = Vec::new();
        table(
            &item("a\u{1b}[2J", PayloadKind::Value, "null"),
            true,
            &mut out,
        )
        .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a?[2J: null\n");
    }
}
