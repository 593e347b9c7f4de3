//! Tables as people and other programs read them.
//!
//! Owns the three forms of a table outside the cluster: JSON lines, aligned text, and CSV for
//! programs. Every form is written as it is decoded; nothing holds the whole table as text.
//!
//! In JSON: NULL, NaN and infinities are `null`; decimals are numbers; dates, times and timestamps
//! are ISO 8601 texts; binary is a hex text; lists are arrays, structs and maps objects. A column
//! name that occurs again gets `_1`, `_2`, … at its end.

mod json;
mod text;

use std::collections::HashSet;
use std::io::{self, Write};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv::WriterBuilder;
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::error::ArrowError;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_exec::TableToCsv;
use oxidask_store::Payload;

use crate::FrameError;
use crate::table::BatchDecoder;

pub use text::{TextForm, TextTable};

/// A table could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The table's bytes are not what they should be.
    #[error("the table cannot be decoded")]
    Decode(#[source] Box<FrameError>),
    /// The writer refused; a closed pipe is for the caller to tell.
    #[error("the table cannot be written")]
    Write(#[from] io::Error),
}

impl Coded for RenderError {
    fn code(&self) -> Code {
        match self {
            Self::Decode(_) => Code::ResultUnavailable,
            Self::Write(_) => Code::OutputFailed,
        }
    }
}

impl From<FrameError> for RenderError {
    fn from(error: FrameError) -> Self {
        Self::Decode(Box::new(error))
    }
}

impl From<ArrowError> for RenderError {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => Self::Write(error),
            error => Self::Decode(Box::new(error.into())),
        }
    }
}

/// Writes each row as one JSON object and a line end. Gives the number of rows.
pub fn json_lines(table: &Payload, to: &mut dyn Write) -> Result<u64, RenderError> {
    json_objects(table, to, b"", b"\n")
}

/// Writes all rows as one JSON array. Gives the number of rows.
pub fn json_array(table: &Payload, to: &mut dyn Write) -> Result<u64, RenderError> {
    to.write_all(b"[")?;
    let rows = json_objects(table, to, b",", b"")?;
    to.write_all(b"]")?;
    Ok(rows)
}

/// The number of rows. Nothing is written.
pub fn row_count(table: &Payload) -> Result<u64, RenderError> {
    let mut rows = 0;
    for batch in BatchDecoder::new(table)? {
        rows += batch?.num_rows() as u64;
    }
    Ok(rows)
}

/// Writes aligned columns for a terminal. Gives the number of rows of the table.
pub fn text(table: &Payload, form: TextForm, to: &mut dyn Write) -> Result<u64, RenderError> {
    text::write(table, form, to)
}

fn json_objects(
    table: &Payload,
    to: &mut dyn Write,
    between: &[u8],
    after: &[u8],
) -> Result<u64, RenderError> {
    let decoder = BatchDecoder::new(table)?;
    let names = json::encoded_names(&unique_names(&decoder.schema()));
    let mut rows = 0;
    let mut buffer = Vec::new();
    for batch in decoder {
        let batch = batch?;
        let encoders = json::encoders(&batch, json::Form::Json)?;
        for row in 0..batch.num_rows() {
            if rows > 0 {
                buffer.extend_from_slice(between);
            }
            json::object(&names, &encoders, row, &mut buffer);
            buffer.extend_from_slice(after);
            rows += 1;
        }
        to.write_all(&buffer)?;
        buffer.clear();
    }
    Ok(rows)
}

/// Column names, each once.
fn unique_names(schema: &Schema) -> Vec<String> {
    let mut seen: HashSet<String> = HashSet::new();
    let own: HashSet<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let mut names = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let mut name = field.name().clone();
        let mut count = 0_usize;
        while seen.contains(&name) || (count > 0 && own.contains(name.as_str())) {
            count += 1;
            name = format!("{}_{count}", field.name());
        }
        seen.insert(name.clone());
        names.push(name);
    }
    names
}

/// Writes tables for the programs of `exec` tasks.
#[derive(Debug, Clone, Copy, Default)]
pub struct CsvTables;

impl TableToCsv for CsvTables {
    fn write_csv(&self, table: &Payload, to: &mut dyn Write) -> Result<(), Diagnostic> {
        csv(table, to).map_err(|error| Diagnostic::from_error(&error))
    }
}

/// Writes a line of column names and a line for each row. NULL is the empty text; nested values
/// are JSON, binary is hex.
pub fn csv(table: &Payload, to: &mut dyn Write) -> Result<(), RenderError> {
    let decoder = BatchDecoder::new(table)?;
    let names = unique_names(&decoder.schema());
    let mut writer = WriterBuilder::new().with_header(true).build(to);
    let texts = |batch: Option<&RecordBatch>| json::texts(&names, batch);
    let mut is_empty = true;
    for batch in decoder {
        writer.write(&texts(Some(&batch?))?)?;
        is_empty = false;
    }
    if is_empty {
        // The names are written with the first batch.
        writer.write(&texts(None)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field};

    #[test]
    fn names_that_occur_again_are_told_apart() {
        let fields: Vec<_> = ["a", "b", "a", "a_1", "a"]
            .iter()
            .map(|name| Field::new(*name, DataType::Int64, true))
            .collect();
        assert_eq!(
            unique_names(&Schema::new(fields)),
            ["a", "b", "a_2", "a_1", "a_3"]
        );
    }
}
