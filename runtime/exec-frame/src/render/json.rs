//! Single values as JSON and as plain text.
//!
//! Owns one function per type, made once per column and batch.

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType,
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, PrimitiveArray, RecordBatch, StringBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

/// Appends the value in a row.
pub(super) type Encoder<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

/// In which form a value is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Everything is JSON.
    Json,
    /// Texts stand without quotes, floats that are no numbers as words; nested values are JSON.
    Plain,
}

const FORMAT: FormatOptions<'static> = FormatOptions::new()
    .with_display_error(true)
    .with_timestamp_format(None)
    .with_timestamp_tz_format(None);

/// One encoder for each column.
pub(super) fn encoders(batch: &RecordBatch, form: Form) -> Result<Vec<Encoder<'_>>, ArrowError> {
    batch
        .columns()
        .iter()
        .map(|column| encoder(column.as_ref(), form))
        .collect()
}

/// Names as they stand in every object: `"name":`.
pub(super) fn encoded_names(names: &[String]) -> Vec<Vec<u8>> {
    let encode = |name: &String| {
        let mut bytes = Vec::new();
        push_text(name, &mut bytes);
        bytes.push(b':');
        bytes
    };
    names.iter().map(encode).collect()
}

/// One row as an object.
pub(super) fn object(names: &[Vec<u8>], encoders: &[Encoder<'_>], row: usize, to: &mut Vec<u8>) {
    to.push(b'{');
    for (index, (name, encoder)) in names.iter().zip(encoders).enumerate() {
        if index > 0 {
            to.push(b',');
        }
        to.extend_from_slice(name);
        encoder(row, to);
    }
    to.push(b'}');
}

/// The batch with every value as a plain text; without a batch, only the columns.
pub(super) fn texts(
    names: &[String],
    batch: Option<&RecordBatch>,
) -> Result<RecordBatch, ArrowError> {
    let fields: Vec<_> = names
        .iter()
        .map(|n| Field::new(n, DataType::Utf8, true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let Some(batch) = batch else {
        return Ok(RecordBatch::new_empty(schema));
    };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(names.len());
    let mut bytes = Vec::new();
    for column in batch.columns() {
        let encode = encoder(column.as_ref(), Form::Plain)?;
        let mut builder = StringBuilder::new();
        for row in 0..column.len() {
            if column.is_null(row) {
                builder.append_null();
                continue;
            }
            bytes.clear();
            encode(row, &mut bytes);
            builder.append_value(String::from_utf8_lossy(&bytes));
        }
        columns.push(Arc::new(builder.finish()));
    }
    RecordBatch::try_new(schema, columns)
}

/// A JSON text with its quotes.
pub(super) fn push_text(text: &str, to: &mut Vec<u8>) {
    to.push(b'"');
    for c in text.chars() {
        match c {
            '"' => to.extend_from_slice(b"\\\""),
            '\\' => to.extend_from_slice(b"\\\\"),
            '\n' => to.extend_from_slice(b"\\n"),
            '\r' => to.extend_from_slice(b"\\r"),
            '\t' => to.extend_from_slice(b"\\t"),
            c if c < ' ' => to.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            c => to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    to.push(b'"');
}

fn push_float(value: f64, is_number: bool, form: Form, to: &mut Vec<u8>, short: &str) {
    match (is_number, form) {
        (true, _) => to.extend_from_slice(short.as_bytes()),
        (false, Form::Json) => to.extend_from_slice(b"null"),
        (false, Form::Plain) => to.extend_from_slice(value.to_string().as_bytes()),
    }
}

/// The encoder of an array. Nulls are `null` in JSON and nothing in plain form.
pub(super) fn encoder(array: &dyn Array, form: Form) -> Result<Encoder<'_>, ArrowError> {
    let value = value_encoder(array, form)?;
    if array.logical_null_count() == 0 {
        return Ok(value);
    }
    let nulls = array.logical_nulls();
    Ok(Box::new(move |row, to| {
        if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            if form == Form::Json {
                to.extend_from_slice(b"null");
            }
        } else {
            value(row, to);
        }
    }))
}

fn value_encoder(array: &dyn Array, form: Form) -> Result<Encoder<'_>, ArrowError> {
    Ok(match array.data_type() {
        DataType::Null => Box::new(move |_, to: &mut Vec<u8>| {
            if form == Form::Json {
                to.extend_from_slice(b"null");
            }
        }),
        DataType::Boolean => {
            let array = array.as_boolean();
            Box::new(|row, to| {
                let word: &[u8] = if array.value(row) { b"true" } else { b"false" };
                to.extend_from_slice(word);
            })
        }
        DataType::Int8 => integer::<Int8Type>(array),
        DataType::Int16 => integer::<Int16Type>(array),
        DataType::Int32 => integer::<Int32Type>(array),
        DataType::Int64 => integer::<Int64Type>(array),
        DataType::UInt8 => integer::<UInt8Type>(array),
        DataType::UInt16 => integer::<UInt16Type>(array),
        DataType::UInt32 => integer::<UInt32Type>(array),
        DataType::UInt64 => integer::<UInt64Type>(array),
        DataType::Float16 => {
            let array = array.as_primitive::<Float16Type>();
            Box::new(move |row, to| single(array.value(row).to_f32(), form, to))
        }
        DataType::Float32 => {
            let array = array.as_primitive::<Float32Type>();
            Box::new(move |row, to| single(array.value(row), form, to))
        }
        DataType::Float64 => {
            let array = array.as_primitive::<Float64Type>();
            Box::new(move |row, to| {
                let value = array.value(row);
                let short = serde_json::Value::from(value).to_string();
                push_float(value, value.is_finite(), form, to, &short);
            })
        }
        DataType::Decimal32(..) => decimal::<Decimal32Type>(array),
        DataType::Decimal64(..) => decimal::<Decimal64Type>(array),
        DataType::Decimal128(..) => decimal::<Decimal128Type>(array),
        DataType::Decimal256(..) => decimal::<Decimal256Type>(array),
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            Box::new(move |row, to| text(array.value(row), form, to))
        }
        DataType::LargeUtf8 => {
            let array = array.as_string::<i64>();
            Box::new(move |row, to| text(array.value(row), form, to))
        }
        DataType::Utf8View => {
            let array = array.as_string_view();
            Box::new(move |row, to| text(array.value(row), form, to))
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            Box::new(move |row, to| text(&hex(array.value(row)), form, to))
        }
        DataType::LargeBinary => {
            let array = array.as_binary::<i64>();
            Box::new(move |row, to| text(&hex(array.value(row)), form, to))
        }
        DataType::FixedSizeBinary(_) => match array.as_any().downcast_ref::<FixedSizeBinaryArray>()
        {
            Some(array) => Box::new(move |row, to| text(&hex(array.value(row)), form, to)),
            None => formatted(array, form)?,
        },
        _ => nested(array, form)?,
    })
}

/// Lists, structs, maps and dictionaries; everything else as the engine's own text.
fn nested(array: &dyn Array, form: Form) -> Result<Encoder<'_>, ArrowError> {
    Ok(match array.data_type() {
        DataType::List(_) => {
            let array = array.as_list::<i32>();
            let values = encoder(array.values().as_ref(), Form::Json)?;
            Box::new(move |row, to| {
                let offsets = array.value_offsets();
                let (from, end) = (offsets[row].unsigned_abs(), offsets[row + 1].unsigned_abs());
                list(&values, from as usize..end as usize, to);
            })
        }
        DataType::LargeList(_) => {
            let array = array.as_list::<i64>();
            let values = encoder(array.values().as_ref(), Form::Json)?;
            Box::new(move |row, to| {
                let offsets = array.value_offsets();
                let index = |at: usize| usize::try_from(offsets[at]).unwrap_or_default();
                list(&values, index(row)..index(row + 1), to);
            })
        }
        DataType::FixedSizeList(..) => {
            let array = array.as_fixed_size_list();
            let values = encoder(array.values().as_ref(), Form::Json)?;
            let length = usize::try_from(array.value_length()).unwrap_or_default();
            let first = usize::try_from(array.value_offset(0)).unwrap_or_default();
            Box::new(move |row, to| {
                let from = first + row * length;
                list(&values, from..from + length, to);
            })
        }
        DataType::Struct(fields) => {
            let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
            let names = encoded_names(&names);
            let columns = array.as_struct().columns().iter();
            let encoders: Result<Vec<_>, _> = columns
                .map(|column| encoder(column.as_ref(), Form::Json))
                .collect();
            let encoders = encoders?;
            Box::new(move |row, to| object(&names, &encoders, row, to))
        }
        DataType::Map(..) => {
            let array = array.as_map();
            let keys = encoder(array.keys().as_ref(), Form::Plain)?;
            let values = encoder(array.values().as_ref(), Form::Json)?;
            Box::new(move |row, to| {
                let offsets = array.value_offsets();
                let index = |at: usize| usize::try_from(offsets[at]).unwrap_or_default();
                to.push(b'{');
                for (position, entry) in (index(row)..index(row + 1)).enumerate() {
                    if position > 0 {
                        to.push(b',');
                    }
                    let mut key = Vec::new();
                    keys(entry, &mut key);
                    push_text(&String::from_utf8_lossy(&key), to);
                    to.push(b':');
                    values(entry, to);
                }
                to.push(b'}');
            })
        }
        DataType::Dictionary(..) => {
            let array = array.as_any_dictionary();
            let values = encoder(array.values().as_ref(), form)?;
            let keys = array.normalized_keys();
            Box::new(move |row, to| values(keys[row], to))
        }
        _ => formatted(array, form)?,
    })
}

fn list(values: &Encoder<'_>, range: std::ops::Range<usize>, to: &mut Vec<u8>) {
    let from = range.start;
    to.push(b'[');
    for index in range {
        if index > from {
            to.push(b',');
        }
        values(index, to);
    }
    to.push(b']');
}

fn integer<T>(array: &dyn Array) -> Encoder<'_>
where
    T: ArrowPrimitiveType,
    T::Native: std::fmt::Display,
{
    let array: &PrimitiveArray<T> = array.as_primitive();
    Box::new(move |row, to| {
        let mut digits = String::new();
        let _ = write!(digits, "{}", array.value(row));
        to.extend_from_slice(digits.as_bytes());
    })
}

fn decimal<T: DecimalType>(array: &dyn Array) -> Encoder<'_> {
    let array: &PrimitiveArray<T> = array.as_primitive();
    Box::new(move |row, to| to.extend_from_slice(array.value_as_string(row).as_bytes()))
}

/// A single-precision float keeps its own few digits.
fn single(value: f32, form: Form, to: &mut Vec<u8>) {
    let short = serde_json::to_string(&value).unwrap_or_default();
    push_float(f64::from(value), value.is_finite(), form, to, &short);
}

fn text(value: &str, form: Form, to: &mut Vec<u8>) {
    match form {
        Form::Json => push_text(value, to),
        Form::Plain => to.extend_from_slice(value.as_bytes()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Dates, times, timestamps, durations, intervals and whatever is rare.
fn formatted(array: &dyn Array, form: Form) -> Result<Encoder<'_>, ArrowError> {
    let formatter = ArrayFormatter::try_new(array, &FORMAT)?;
    Ok(Box::new(move |row, to| {
        let shown = formatter.value(row).to_string();
        text(&shown, form, to);
    }))
}
