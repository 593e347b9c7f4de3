//! Rows as the slices of a result.
//!
//! Owns which bucket a row goes to and how buckets become bytes. Rows of a bucket are gathered to
//! batches of some size before they are encoded, and what strings refer to is copied if less than
//! most of it is theirs: otherwise every bucket would drag along the text of all of them.
//!
//! Invariants: an empty bucket has no bytes; the types of columns are kept, views and dictionaries
//! included; bytes that are kept are counted in the task's memory.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::datatypes::{ByteViewType, DataType, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::common::Result;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::BatchPartitioner;
use oxidask_exec::Memory;

use crate::memory::Taken;

/// A part of a slice is closed before it has more bytes than this, unless one batch has. With what
/// the allocator adds it stays below the size from which buffers are mapped one by one.
const PART_BYTES_MAX: usize = 896 * 1024;

/// The share of a part's room that may stay empty, as its divisor.
const CLOSED_SPARE_SHARE: usize = 8;

/// Rows that are encoded together.
const ROWS_TARGET: usize = 8192;

/// The least rows that are encoded together, where there are many buckets.
const ROWS_MIN: usize = 32;

/// Bytes that the buckets of a task may keep before anything is encoded.
const GATHERED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The share of the worker's memory that these bytes may take, as its divisor.
const GATHERED_SHARE: u64 = 32;

/// Takes the rows of one task.
pub(super) struct SliceWriter {
    partitioner: Option<BatchPartitioner>,
    buckets: Vec<Bucket>,
    /// The begin of every slice.
    header: Bytes,
    taken: Taken,
    rows: u64,
}

/// The slices of a task.
pub(super) struct Written {
    pub(super) slices: Vec<Vec<Bytes>>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Given back when the worker has taken the result.
    pub(super) taken: Taken,
}

#[derive(Default)]
struct Bucket {
    gathered: Option<BatchCoalescer>,
    writer: Option<StreamWriter<Vec<u8>>>,
    parts: Vec<Bytes>,
}

impl SliceWriter {
    /// For rows of this schema, all of which go into one slice.
    pub(super) fn whole(schema: &SchemaRef, memory: Arc<dyn Memory>) -> Result<Self> {
        Self::new(schema, None, 1, memory)
    }

    /// For rows that go into buckets.
    pub(super) fn buckets(
        schema: &SchemaRef,
        partitioning: &Partitioning,
        memory: Arc<dyn Memory>,
    ) -> Result<Self> {
        let count = partitioning.partition_count();
        let partitioner = if count == 1 {
            None
        } else {
            let timer = Time::new();
            Some(BatchPartitioner::try_new(
                partitioning.clone(),
                timer,
                0,
                1,
            )?)
        };
        Self::new(schema, partitioner, count, memory)
    }

    fn new(
        schema: &SchemaRef,
        partitioner: Option<BatchPartitioner>,
        count: usize,
        memory: Arc<dyn Memory>,
    ) -> Result<Self> {
        let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
        let header = std::mem::take(writer.get_mut()).into();
        Ok(Self {
            partitioner,
            buckets: std::iter::repeat_with(Bucket::default)
                .take(count)
                .collect(),
            header,
            taken: Taken::new(memory),
            rows: 0,
        })
    }

    /// Takes rows.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.rows += batch.num_rows() as u64;
        let gathered_bytes = GATHERED_BYTES_MAX.min(self.taken.limit_bytes() / GATHERED_SHARE);
        let rows_target = rows_target(&batch, self.buckets.len(), gathered_bytes);
        let mut grown = 0;
        match &mut self.partitioner {
            None => grown += self.buckets[0].push(batch, rows_target)?,
            Some(partitioner) => {
                for piece in partitioner.partition_iter(batch)? {
                    let (bucket, rows) = piece?;
                    grown += self.buckets[bucket].push(rows, rows_target)?;
                }
            }
        }
        self.taken.grow(grown);
        Ok(())
    }

    /// The slices.
    pub(super) fn finish(mut self) -> Result<Written> {
        let mut slices = Vec::with_capacity(self.buckets.len() + 1);
        let mut bytes = 0;
        for mut bucket in std::mem::take(&mut self.buckets) {
            let grown = bucket.flush()?;
            self.taken.grow(grown);
            let slice = bucket.finish(&self.header)?;
            bytes += slice.iter().map(|part| part.len() as u64).sum::<u64>();
            slices.push(slice);
        }
        Ok(Written {
            slices,
            rows: self.rows,
            bytes,
            taken: self.taken,
        })
    }
}

/// Rows that a bucket gathers: as many as fit into its share of `gathered_bytes`, if they are like
/// those of this batch.
fn rows_target(batch: &RecordBatch, buckets: usize, gathered_bytes: u64) -> usize {
    let bytes: usize = batch.columns().iter().map(column_bytes).sum();
    let row_bytes = (bytes / batch.num_rows().max(1)).max(1);
    let gathered_bytes = usize::try_from(gathered_bytes).unwrap_or(usize::MAX);
    (gathered_bytes / buckets.max(1) / row_bytes).clamp(ROWS_MIN, ROWS_TARGET)
}

/// What the rows of a column take by themselves.
fn column_bytes(column: &ArrayRef) -> usize {
    let views = column.len() * size_of::<u128>();
    match column.data_type() {
        DataType::Utf8View => views + column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => views + column.as_binary_view().total_buffer_bytes_used(),
        _ => {
            let data = column.to_data();
            let own = data.get_slice_memory_size();
            own.unwrap_or_else(|_| column.get_array_memory_size())
        }
    }
}

impl Bucket {
    /// Returns how many bytes were encoded.
    fn push(&mut self, rows: RecordBatch, rows_target: usize) -> Result<u64> {
        let gathered = self.gathered.get_or_insert_with(|| {
            BatchCoalescer::new(rows.schema(), rows_target)
                .with_biggest_coalesce_batch_size(Some(rows_target / 2))
        });
        gathered.push_batch(rows)?;
        self.encode_completed()
    }

    fn encode_completed(&mut self) -> Result<u64> {
        let mut grown = 0;
        while let Some(batch) = self
            .gathered
            .as_mut()
            .and_then(BatchCoalescer::next_completed_batch)
        {
            let batch = compacted(batch)?;
            let mut writer = if let Some(writer) = self.writer.take() {
                writer
            } else {
                let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
                // All slices share one header.
                writer.get_mut().clear();
                writer
            };
            let before = writer.get_ref().len();
            writer.write(&batch)?;
            let buffer = writer.get_mut();
            let batch_bytes = buffer.len() - before;
            grown += batch_bytes as u64;
            // The next batch will be about as large.
            if buffer.len() + batch_bytes > PART_BYTES_MAX {
                // A bucket that has filled one part will likely fill another.
                let next = Vec::with_capacity(PART_BYTES_MAX.max(batch_bytes));
                self.parts.push(closed(std::mem::replace(buffer, next)));
            }
            self.writer = Some(writer);
        }
        Ok(grown)
    }

    fn flush(&mut self) -> Result<u64> {
        if let Some(gathered) = &mut self.gathered {
            gathered.finish_buffered_batch()?;
        }
        let grown = self.encode_completed()?;
        self.gathered = None;
        Ok(grown)
    }

    fn finish(self, header: &Bytes) -> Result<Vec<Bytes>> {
        let Some(mut writer) = self.writer else {
            return Ok(Vec::new());
        };
        writer.finish()?;
        let rest = std::mem::take(writer.get_mut());
        let mut slice = Vec::with_capacity(self.parts.len() + 2);
        slice.push(header.clone());
        slice.extend(self.parts);
        slice.push(closed(rest));
        Ok(slice)
    }
}

/// Bytes that take little more room than they have.
fn closed(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() - buffer.len() <= buffer.capacity() / CLOSED_SPARE_SHARE {
        return buffer.into();
    }
    // Shrinking would leave the buffer where it is, with all of its room.
    Bytes::copy_from_slice(&buffer)
}

/// The batch without text that its rows do not use.
fn compacted(batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let has_views = |field: &DataType| matches!(field, DataType::Utf8View | DataType::BinaryView);
    let schema = batch.schema();
    if !schema
        .fields()
        .iter()
        .any(|field| has_views(field.data_type()))
    {
        return Ok(batch);
    }
    let columns = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8View => compacted_views(column.as_string_view(), column),
            DataType::BinaryView => compacted_views(column.as_binary_view(), column),
            _ => Arc::clone(column),
        });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns.collect(), &options)
}

fn compacted_views<T: ByteViewType + ?Sized>(
    views: &datafusion::arrow::array::GenericByteViewArray<T>,
    column: &ArrayRef,
) -> ArrayRef {
    let held: usize = views.data_buffers().iter().map(Buffer::len).sum();
    if held == 0 {
        return Arc::clone(column);
    }
    let used = views.total_buffer_bytes_used();
    // Copying a little less than all would cost more than it saves.
    if held <= used + used / 4 {
        return Arc::clone(column);
    }
    Arc::new(views.gc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use datafusion::arrow::ipc::reader::StreamDecoder;
    use datafusion::physical_expr::expressions::Column;
    use oxidask_exec::OwnMemory;

    fn batch(rows: i64) -> RecordBatch {
        let texts = (0..rows).map(|row| format!("a text that is long enough for a buffer, {row}"));
        let texts = StringViewArray::from_iter_values(texts);
        RecordBatch::try_from_iter([
            (
                "k",
                Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef,
            ),
            ("s", Arc::new(texts) as ArrayRef),
        ])
        .unwrap()
    }

    fn by_key(buckets: usize) -> Partitioning {
        Partitioning::Hash(vec![Arc::new(Column::new("k", 0))], buckets)
    }

    fn read(slice: &[Bytes]) -> usize {
        let mut decoder = StreamDecoder::new();
        let (mut rows, mut bytes) = (0, Buffer::from(Bytes::from(slice.concat())));
        while let Some(batch) = decoder.decode(&mut bytes).unwrap() {
            rows += batch.num_rows();
        }
        decoder.finish().unwrap();
        rows
    }

    #[test]
    fn trap_4_buckets_do_not_drag_foreign_text_along() {
        let memory = Arc::new(OwnMemory::new(1 << 30));
        let batch = batch(8_000);
        let text_bytes = batch.column(1).as_string_view().total_buffer_bytes_used() as u64;
        for buckets in [1, 2, 3, 16, 200] {
            let shared = Arc::clone(&memory) as Arc<dyn Memory>;
            let mut writer =
                SliceWriter::buckets(&batch.schema(), &by_key(buckets), shared).unwrap();
            for start in (0..8_000).step_by(1_000) {
                writer.push(batch.slice(start, 1_000)).unwrap();
            }
            let written = writer.finish().unwrap();
            assert_eq!(written.slices.len(), buckets);
            let rows: usize = written.slices.iter().map(|slice| read(slice)).sum();
            assert_eq!((rows, written.rows), (8_000, 8_000));
            let plain = text_bytes + 8_000 * 24;
            let frames = buckets as u64 * 4_096;
            assert!(
                written.bytes < plain * 3 / 2 + frames,
                "{buckets}: {}",
                written.bytes
            );
            assert!(memory.taken_bytes() > 0);
            drop(written);
            assert_eq!(memory.taken_bytes(), 0);
        }
    }

    #[test]
    fn empty_buckets_have_no_bytes_and_many_buckets_take_little_room() {
        let memory: Arc<dyn Memory> = Arc::new(OwnMemory::new(1 << 30));
        let batch = batch(10);
        let schema = batch.schema();
        let mut writer =
            SliceWriter::buckets(&schema, &by_key(10_000), Arc::clone(&memory)).unwrap();
        writer.push(batch).unwrap();
        let written = writer.finish().unwrap();
        let full = written
            .slices
            .iter()
            .filter(|slice| !slice.is_empty())
            .count();
        assert!(full <= 10, "{full}");
        let none = SliceWriter::whole(&schema, memory)
            .unwrap()
            .finish()
            .unwrap();
        assert!(none.slices[0].is_empty());
        assert_eq!((none.rows, none.bytes), (0, 0));
    }
}
