//! Tables as bytes: an Arrow IPC stream in parts.
//!
//! Owns how batches become a payload and a payload becomes batches again. Invariants: a table holds
//! no views, dictionaries or runs, so its bytes hold exactly its rows and nothing of the files they
//! came from; reading shares the payload's memory where it can.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::reader::StreamDecoder;
use datafusion::arrow::ipc::writer::StreamWriter;
use oxidask_store::{Payload, PayloadKind};

use crate::FrameError;

/// A part is closed when it has this many bytes.
const PART_BYTES_TARGET: usize = 4 * 1024 * 1024;

/// The batches of one stream, encoded as they come.
pub(crate) struct BatchEncoder {
    schema: SchemaRef,
    writer: StreamWriter<Vec<u8>>,
    parts: Vec<Bytes>,
}

/// Encoded batches without the stream's begin and end.
pub(crate) struct EncodedBatches(Vec<Bytes>);

impl BatchEncoder {
    /// For batches of this schema.
    pub(crate) fn new(schema: &Schema) -> Result<Self, ArrowError> {
        let schema = SchemaRef::new(plain_schema(schema));
        let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
        writer.get_mut().clear();
        Ok(Self {
            schema,
            writer,
            parts: Vec::new(),
        })
    }

    /// Appends a batch. Returns how many bytes it takes.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<usize, ArrowError> {
        if batch.num_rows() == 0 {
            return Ok(0);
        }
        let columns = self.schema.fields().iter().zip(batch.columns());
        let columns: Result<Vec<_>, _> = columns
            .map(|(field, column)| {
                if field.data_type() == column.data_type() {
                    Ok(Arc::clone(column))
                } else {
                    cast(column, field.data_type())
                }
            })
            .collect();
        let options = datafusion::arrow::array::RecordBatchOptions::new()
            .with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns?, &options)?;
        let before = self.writer.get_ref().len();
        self.writer.write(&batch)?;
        let buffer = self.writer.get_mut();
        let grown = buffer.len() - before;
        if buffer.len() >= PART_BYTES_TARGET {
            self.parts.push(std::mem::take(buffer).into());
        }
        Ok(grown)
    }

    /// What has been encoded.
    pub(crate) fn finish(mut self) -> EncodedBatches {
        let rest = std::mem::take(self.writer.get_mut());
        if !rest.is_empty() {
            self.parts.push(rest.into());
        }
        EncodedBatches(self.parts)
    }
}

/// A whole table from the encoded batches of its streams, in order.
pub(crate) fn assemble(
    schema: &Schema,
    streams: Vec<EncodedBatches>,
) -> Result<Payload, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &plain_schema(schema))?;
    let header: Bytes = std::mem::take(writer.get_mut()).into();
    writer.finish()?;
    let end: Bytes = std::mem::take(writer.get_mut()).into();
    let parts: Vec<Bytes> = std::iter::once(header)
        .chain(streams.into_iter().flat_map(|stream| stream.0))
        .chain(std::iter::once(end))
        .collect();
    let payload = Payload {
        kind: PayloadKind::Table,
        parts,
    };
    let is_small = usize::try_from(payload.len()).is_ok_and(|bytes| bytes < PART_BYTES_TARGET);
    Ok(if is_small {
        Payload::new(PayloadKind::Table, payload.parts.concat())
    } else {
        payload
    })
}

/// The batches of a table payload, one after the other.
pub(crate) struct BatchDecoder<'a> {
    decoder: StreamDecoder,
    parts: std::slice::Iter<'a, Bytes>,
    current: Buffer,
    first: Option<RecordBatch>,
    schema: SchemaRef,
}

impl<'a> BatchDecoder<'a> {
    /// Reads the schema. Fails if the payload is no table.
    pub(crate) fn new(payload: &'a Payload) -> Result<Self, FrameError> {
        if payload.kind != PayloadKind::Table {
            let what = "a table is expected, but the input is none".to_owned();
            return Err(FrameError::Argument { what });
        }
        let mut this = Self {
            decoder: StreamDecoder::new(),
            parts: payload.parts.iter(),
            current: Buffer::from(Vec::<u8>::new()),
            first: None,
            schema: SchemaRef::new(Schema::empty()),
        };
        this.first = this.decode()?;
        let Some(schema) = this.decoder.schema() else {
            let words = "the table's bytes end before its schema".to_owned();
            return Err(ArrowError::IpcError(words).into());
        };
        this.schema = schema;
        Ok(this)
    }

    /// The table's columns.
    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decode(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            if let Some(batch) = self.decoder.decode(&mut self.current)? {
                return Ok(Some(batch));
            }
            let Some(part) = self.parts.next() else {
                self.decoder.finish()?;
                return Ok(None);
            };
            self.current = Buffer::from(part.clone());
        }
    }
}

impl Iterator for BatchDecoder<'_> {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.first.take() {
            Some(batch) => Some(Ok(batch)),
            None => self.decode().transpose(),
        }
    }
}

/// The schema of a table: names kept, types plain, every column may hold nulls.
fn plain_schema(schema: &Schema) -> Schema {
    let fields = schema.fields().iter();
    Schema::new(
        fields
            .map(|field| Field::new(field.name(), plain_type(field.data_type()), true))
            .collect::<Vec<_>>(),
    )
}

fn plain_field(field: &FieldRef) -> FieldRef {
    FieldRef::new(
        field
            .as_ref()
            .clone()
            .with_data_type(plain_type(field.data_type())),
    )
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => plain_type(value),
        DataType::RunEndEncoded(_, values) => plain_type(values.data_type()),
        DataType::List(field) | DataType::ListView(field) => DataType::List(plain_field(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => {
            DataType::LargeList(plain_field(field))
        }
        DataType::FixedSizeList(field, length) => {
            DataType::FixedSizeList(plain_field(field), *length)
        }
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Map(field, is_sorted) => DataType::Map(plain_field(field), *is_sorted),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use datafusion::arrow::array::{
        ArrayRef, DictionaryArray, Int64Array, StringViewArray, cast::AsArray,
    };
    use datafusion::arrow::datatypes::Int32Type;

    fn table(batches: &[RecordBatch]) -> Payload {
        let schema = batches[0].schema();
        let mut encoder = BatchEncoder::new(&schema).unwrap();
        let mut bytes = 0;
        for batch in batches {
            bytes += encoder.push(batch).unwrap();
        }
        let payload = assemble(&schema, vec![encoder.finish()]).unwrap();
        let empty = assemble(&schema, Vec::new()).unwrap();
        assert_eq!(
            payload.len(),
            empty.len() + bytes as u64,
            "accounting is exact"
        );
        payload
    }

    #[test]
    fn views_drag_no_foreign_bytes_along() {
        let long = "x".repeat(1_000_000);
        let views = StringViewArray::from(vec![long.as_str(), "a value of some length", "b"]);
        let column: ArrayRef = Arc::new(views.slice(1, 2));
        let words: DictionaryArray<Int32Type> = ["p", "q"].into_iter().collect();
        let batch = RecordBatch::try_from_iter([
            ("s", column),
            ("d", Arc::new(words) as ArrayRef),
            ("i", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
        ])
        .unwrap();
        let payload = table(&[batch]);
        assert!(payload.len() < 2000, "{}", payload.len());
        let batches: Vec<_> = BatchDecoder::new(&payload)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(
            batches[0].column(0).as_string::<i32>().value(0),
            "a value of some length"
        );
        assert_eq!(batches[0].column(1).as_string::<i32>().value(1), "q");
    }

    #[test]
    fn a_table_may_arrive_in_any_parts() {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let batch = RecordBatch::try_from_iter([("i", column)]).unwrap();
        let payload = table(&[batch.clone(), batch]);
        let whole = payload.parts.concat();
        for size in [1, 7, 100, whole.len()] {
            let parts = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let payload = Payload {
                kind: PayloadKind::Table,
                parts,
            };
            let rows: usize = BatchDecoder::new(&payload)
                .unwrap()
                .map(|batch| batch.unwrap().num_rows())
                .sum();
            assert_eq!(rows, 2000);
        }
        let cut = Payload::new(
            PayloadKind::Table,
            Bytes::copy_from_slice(&whole[..whole.len() / 2]),
        );
        let read = BatchDecoder::new(&cut).map(|mut batches| batches.all(|batch| batch.is_ok()));
        assert!(!matches!(read, Ok(true)));
        assert!(BatchDecoder::new(&Payload::null()).is_err());
        let none = Payload::new(PayloadKind::Table, Bytes::new());
        assert!(BatchDecoder::new(&none).is_err());
    }
}
