//! Reading the results of other stages while a task runs.
//!
//! Owns the order in which slices are read and how much of them is in memory: pages of many small
//! slices or of one large one, the next page on its way while one is decoded. Rows come in order
//! of the producers, so a task that is tried again sees the same rows in the same order. Batches
//! share the memory of the pages they came in.
//!
//! Invariants: a reader that gives one producer as a partition never mixes it with others; a slice
//! is reported as consumed when it has been read to its end, never before.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::reader::StreamDecoder;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err, internal_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, RecordOutput};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use oxidask_exec::{Piece, PieceRequest, StreamedInputs, TaskError};
use tokio_util::task::AbortOnDropHandle;

use super::{Edge, EdgeMode};

/// Bytes of one page. One is decoded while the next is on its way.
const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of the pages of all readers of one leaf, where one leaf has many.
const LEAF_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The least that is asked of a slice; smaller ones come whole.
const ASKED_BYTES_MIN: u64 = 4 * 1024;

/// Pieces of one page.
const PIECES_PER_PAGE_MAX: usize = 1024;

/// An input could not be read. The task's error is that of the read, unchanged.
#[derive(Debug)]
pub(crate) struct InputFault(pub(crate) TaskError);

impl fmt::Display for InputFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.diagnostic.message)
    }
}

impl std::error::Error for InputFault {}

/// What one task reads.
#[derive(Debug)]
pub(crate) struct TaskReads {
    streams: Arc<dyn StreamedInputs>,
    /// By number of the edge; `None` if another branch of a UNION reads it.
    edges: Vec<Option<TaskEdge>>,
}

/// What one leaf of a task reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TaskEdge {
    mode: EdgeMode,
    first_input: u32,
    producers: u32,
    slice: u32,
    /// Slices that a producer's result has, roughly.
    slices: u64,
}

impl TaskReads {
    /// For one part of a stage. The part's inputs are those of the edges that it reads, in order.
    pub(super) fn new(edges: &[Edge], part: usize, streams: Arc<dyn StreamedInputs>) -> Self {
        let mut first_input = 0;
        let edges = edges.iter().map(|edge| {
            edge.parts.contains(&part).then(|| {
                let (slice, slices) = match edge.mode {
                    EdgeMode::Shuffle => (part - edge.parts.start, edge.parts.len()),
                    EdgeMode::Merge | EdgeMode::Broadcast | EdgeMode::Gather => (0, 1),
                };
                let producers = small(edge.producers);
                let task_edge = TaskEdge {
                    mode: edge.mode,
                    first_input,
                    producers,
                    slice: small(slice),
                    slices: slices.max(1) as u64,
                };
                first_input += producers;
                task_edge
            })
        });
        Self {
            edges: edges.collect(),
            streams,
        }
    }

    /// How many inputs the task must have.
    pub(super) fn inputs(&self) -> u32 {
        let used = self.edges.iter().flatten();
        used.map(|edge| edge.producers).sum()
    }

    /// The rows of a partition of a leaf.
    pub(super) fn stream(
        &self,
        edge: usize,
        partition: usize,
        schema: SchemaRef,
        metrics: BaselineMetrics,
    ) -> Result<SendableRecordBatchStream> {
        let Some(Some(edge)) = self.edges.get(edge) else {
            return internal_err!("a task has no inputs for the leaf {edge}");
        };
        let (inputs, readers) = match edge.mode {
            EdgeMode::Merge => {
                let input = edge.first_input + small(partition);
                (input..input + 1, u64::from(edge.producers))
            }
            EdgeMode::Shuffle | EdgeMode::Broadcast | EdgeMode::Gather => {
                (edge.first_input..edge.first_input + edge.producers, 1)
            }
        };
        let slices = inputs.map(|input| Slice {
            input,
            expected: self.streams.input_bytes(input) / edge.slices,
            ..Slice::default()
        });
        let rows = SliceRows {
            streams: Arc::clone(&self.streams),
            number: edge.slice,
            // What every task reads is read again.
            is_consumed: edge.mode != EdgeMode::Broadcast,
            page_bytes: (LEAF_BYTES_MAX / readers.max(1)).clamp(ASKED_BYTES_MIN, PAGE_BYTES_MAX),
            slices: slices.collect(),
            page: None,
            schema: Arc::clone(&schema),
        };
        let rows = futures::stream::try_unfold((rows, metrics), |(mut rows, metrics)| async move {
            let batch = rows.next().await?;
            Ok(batch.map(|batch| (batch.record_output(&metrics), (rows, metrics))))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Numbers of tasks are below 2^32 by the limits of a graph.
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A slice that is being read.
#[derive(Default)]
struct Slice {
    input: u32,
    /// A guess of its length.
    expected: u64,
    /// Its length, once known.
    length: Option<u64>,
    /// Bytes that were read.
    read: u64,
    /// What was read and not decoded.
    parts: VecDeque<Bytes>,
    current: Option<Buffer>,
    decoder: StreamDecoder,
}

impl Slice {
    fn is_read(&self) -> bool {
        self.length.is_some_and(|length| self.read >= length)
    }

    fn left(&self) -> u64 {
        match self.length {
            Some(length) => length.saturating_sub(self.read),
            // Twice the guess: most slices then come whole.
            None => self.expected.saturating_mul(2),
        }
    }

    /// The next batch of what is here.
    fn decode(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(current) = &mut self.current
                && let Some(batch) = self.decoder.decode(current)?
            {
                return Ok(Some(batch));
            }
            match self.parts.pop_front() {
                Some(part) => self.current = Some(Buffer::from(part)),
                None => return Ok(None),
            }
        }
    }
}

type Pieces = Result<Vec<Piece>, TaskError>;

/// A page that was asked for.
enum Page {
    /// It was at hand.
    Here(Pieces),
    /// It is read while the rows before it are worked on.
    Coming(AbortOnDropHandle<Pieces>),
}

/// The rows of one slice of several producers, one after the other.
struct SliceRows {
    streams: Arc<dyn StreamedInputs>,
    number: u32,
    is_consumed: bool,
    page_bytes: u64,
    /// Those that are not at their end.
    slices: VecDeque<Slice>,
    /// The page on its way, and how many of the slices that are not read it is for.
    page: Option<(usize, Page)>,
    schema: SchemaRef,
}

impl SliceRows {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            while let Some(slice) = self.slices.front_mut() {
                if let Some(batch) = slice.decode()? {
                    return self.stamped(&batch).map(Some);
                }
                if !slice.is_read() {
                    break;
                }
                slice.decoder.finish()?;
                if self.is_consumed {
                    self.streams.consumed(slice.input, self.number);
                }
                self.slices.pop_front();
            }
            if self.slices.is_empty() {
                return Ok(None);
            }
            if self.page.is_none() {
                self.ask().await;
            }
            let Some((count, page)) = self.page.take() else {
                return internal_err!("slices are left and nothing is asked for");
            };
            let pieces = match page {
                Page::Here(pieces) => pieces,
                Page::Coming(page) => page.await.map_err(|error| {
                    internal_datafusion_err!("reading a page of an input ended early: {error}")
                })?,
            };
            let pieces =
                pieces.map_err(|error| DataFusionError::External(Box::new(InputFault(error))))?;
            self.take(count, pieces)?;
            // The next page travels while this one is decoded.
            self.ask().await;
        }
    }

    /// Asks for the next page, if anything is left.
    async fn ask(&mut self) {
        let mut requests = Vec::new();
        let mut bytes = 0;
        for slice in self.slices.iter().filter(|slice| !slice.is_read()) {
            if bytes >= self.page_bytes || requests.len() >= PIECES_PER_PAGE_MAX {
                break;
            }
            let asked = slice.left().clamp(ASKED_BYTES_MIN, self.page_bytes);
            bytes += asked;
            requests.push(PieceRequest {
                input: slice.input,
                slice: self.number,
                offset: slice.read,
                bytes_max: asked,
            });
        }
        if requests.is_empty() {
            return;
        }
        let (count, streams) = (requests.len(), Arc::clone(&self.streams));
        let mut page = Box::pin(async move { streams.read(requests).await });
        // What is at hand needs no task of its own, which would cost more than the reading.
        let page = match futures::poll!(page.as_mut()) {
            Poll::Ready(pieces) => Page::Here(pieces),
            Poll::Pending => Page::Coming(AbortOnDropHandle::new(tokio::spawn(page))),
        };
        self.page = Some((count, page));
    }

    fn take(&mut self, count: usize, pieces: Vec<Piece>) -> Result<()> {
        if pieces.len() != count {
            return internal_err!("{count} pieces were asked for, {} came", pieces.len());
        }
        let waiting = self.slices.iter_mut().filter(|slice| !slice.is_read());
        for (slice, piece) in waiting.zip(pieces) {
            slice.length = Some(piece.slice_bytes);
            for part in piece.parts {
                slice.read += part.len() as u64;
                slice.parts.push_back(part);
            }
        }
        Ok(())
    }

    /// The batch with exactly the columns that the plan expects.
    fn stamped(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let columns = batch.columns().to_vec();
        let schema = Arc::clone(&self.schema);
        Ok(RecordBatch::try_new_with_options(
            schema, columns, &options,
        )?)
    }
}
