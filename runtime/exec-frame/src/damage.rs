//! Finds the file and the line behind an error in a file's content.
//!
//! Owns the second look: when the engine says that some content is wrong, the files of the
//! statement's tables are read again, plainly and one after the other, until the fault is met.
//! Only local files; a fault that is not met again keeps the engine's words.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use tokio_util::sync::CancellationToken;

use crate::error::lowered;
use crate::location::Format;

/// The bytes at both ends of a Parquet file.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Longer JSON lines are not looked at.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The local files of one table.
#[derive(Debug, Clone)]
pub(crate) struct TableFiles {
    /// The table's name, for messages.
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) is_compressed: bool,
    pub(crate) csv: CsvForm,
    /// The columns that the files hold, once known.
    pub(crate) schema: Option<SchemaRef>,
}

/// How a CSV file is to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CsvForm {
    pub(crate) delimiter: u8,
    pub(crate) quote: u8,
    pub(crate) has_header: bool,
}

/// The first fault in the files, as `file:line: fault`. Blocks.
pub(crate) fn find(tables: &[TableFiles], cancelled: &CancellationToken) -> Option<String> {
    for table in tables
        .iter()
        .filter(|table| !table.is_compressed || table.format == Format::Parquet)
    {
        for file in &table.files {
            if cancelled.is_cancelled() {
                return None;
            }
            let fault = match table.format {
                Format::Parquet => parquet_fault(file),
                Format::Csv => csv_fault(file, table),
                Format::Json => json_fault(file),
            };
            if let Some(fault) = fault {
                return Some(fault);
            }
        }
    }
    None
}

fn parquet_fault(path: &Path) -> Option<String> {
    let ends = || -> io::Result<(u64, [u8; 4], [u8; 8])> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let (mut begin, mut end) = ([0; 4], [0; 8]);
        if length >= 12 {
            file.read_exact(&mut begin)?;
            file.seek(SeekFrom::End(-8))?;
            file.read_exact(&mut end)?;
        }
        Ok((length, begin, end))
    };
    let name = path.display();
    let (length, begin, end) = match ends() {
        Ok(ends) => ends,
        Err(error) => return Some(format!("`{name}` cannot be read: {error}")),
    };
    if length == 0 {
        return Some(format!("`{name}` is empty and no Parquet file"));
    }
    if begin != PARQUET_MAGIC {
        return Some(format!("`{name}` is not a Parquet file"));
    }
    let (size, magic) = end.split_at(4);
    let metadata_bytes = size.try_into().map_or(0, u32::from_le_bytes);
    if magic != PARQUET_MAGIC || u64::from(metadata_bytes) + 12 > length {
        return Some(format!(
            "`{name}` is not a whole Parquet file: its end is missing"
        ));
    }
    None
}

fn csv_fault(path: &Path, table: &TableFiles) -> Option<String> {
    let form = table.csv;
    let format = csv::reader::Format::default()
        .with_header(form.has_header)
        .with_delimiter(form.delimiter)
        .with_quote(form.quote);
    let name = path.display();
    let open = || {
        File::open(path)
            .map(BufReader::new)
            .map_err(ArrowError::from)
    };
    let read = |schema: SchemaRef| -> Result<(), ArrowError> {
        let builder = csv::ReaderBuilder::new(schema)
            .with_format(format.clone())
            .with_batch_size(1024);
        builder
            .build_buffered(open()?)?
            .try_for_each(|batch| batch.map(drop))
    };
    let first = open().and_then(|reader| format.infer_schema(reader, Some(1)));
    if let (Ok((schema, _)), true) = (&first, form.has_header)
        && let Some(column) = named_twice(schema)
    {
        return Some(format!(
            "{name}:1: the header names the column `{column}` twice"
        ));
    }
    // First the form alone, every value a text; then with the table's types.
    let texts = first
        .map(|(schema, _)| schema.fields().len())
        .and_then(|columns| {
            let field = |i| Field::new(format!("c{i}"), DataType::Utf8, true);
            read(Arc::new(Schema::new(
                (0..columns).map(field).collect::<Vec<_>>(),
            )))
        });
    let typed = || table.schema.clone().map_or(Ok(()), read);
    match texts.and_then(|()| typed()) {
        Ok(()) => None,
        Err(error) => Some(placed_csv(&name.to_string(), &error, form.has_header)),
    }
}

fn named_twice(schema: &Schema) -> Option<&str> {
    let mut names = HashSet::new();
    let mut fields = schema.fields().iter();
    fields
        .find(|field| !names.insert(field.name()))
        .map(|field| field.name().as_str())
}

/// `file:line: words`, where the words say a line.
fn placed_csv(name: &str, error: &ArrowError, has_header: bool) -> String {
    let (words, is_value) = match error {
        ArrowError::CsvError(words) => (words.clone(), false),
        ArrowError::ParseError(words) => (words.clone(), true),
        other => (other.to_string(), false),
    };
    // A row of data can be long and is shown by the editor.
    let words = words
        .split(" Row data: ")
        .next()
        .unwrap_or_default()
        .trim_end_matches(['.', ':']);
    let words = lowered(words);
    let Some((before, rest)) = words.split_once("line ") else {
        return format!("{name}: {words}");
    };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let Ok(line) = digits.parse::<u64>() else {
        return format!("{name}: {words}");
    };
    if !is_value {
        return format!("{name}:{line}: {words}");
    }
    // The reader counts the lines of values without the header.
    let line = line + u64::from(has_header);
    format!(
        "{name}:{line}: {}",
        before.trim_end().trim_end_matches(" at")
    )
}

fn json_fault(path: &Path) -> Option<String> {
    let name = path.display();
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) => return Some(format!("`{name}` cannot be read: {error}")),
    };
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        match reader
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(format!("{name}:{number}: {error}")),
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if let Err(error) = std::str::from_utf8(&line) {
            return Some(format!(
                "{name}:{number}: invalid UTF-8 at byte {}",
                error.valid_up_to() + 1
            ));
        }
        let parsed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&line);
        if let Err(error) = parsed {
            let words = error.to_string();
            let words = words.split(" at line ").next().unwrap_or_default();
            let column = match error.column() {
                0 => String::new(),
                column => format!(" (column {column})"),
            };
            return Some(format!(
                "{name}:{number}: the line is not one JSON object: {words}{column}"
            ));
        }
    }
    None
}
