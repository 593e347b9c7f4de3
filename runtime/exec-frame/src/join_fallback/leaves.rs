//! Inputs of a join that it does not notice: one keeps what went through it, one begins late, and
//! one stands for rows that are there already.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::equivalence::EquivalenceProperties;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::stream;
use futures::{Stream, StreamExt};

use super::buckets::BucketFile;

/// The parts of [`ExecutionPlan`] that all leaves have in common.
macro_rules! leaf {
    ($name:ident, $text:literal) => {
        impl DisplayAs for $name {
            fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, $text)
            }
        }

        impl ExecutionPlan for $name {
            fn name(&self) -> &'static str {
                $text
            }

            fn properties(&self) -> &Arc<PlanProperties> {
                &self.properties
            }

            fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
                Vec::new()
            }

            fn replace_children(
                self: Arc<Self>,
                _: Vec<Arc<dyn ExecutionPlan>>,
                _: ReplaceChildrenOptions,
            ) -> Result<Arc<dyn ExecutionPlan>> {
                Ok(self)
            }

            fn with_new_children(
                self: Arc<Self>,
                _: Vec<Arc<dyn ExecutionPlan>>,
            ) -> Result<Arc<dyn ExecutionPlan>> {
                Ok(self)
            }

            fn apply_expressions(
                &self,
                _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
            ) -> Result<TreeNodeRecursion> {
                Ok(TreeNodeRecursion::Continue)
            }

            fn execute(
                &self,
                partition: usize,
                context: Arc<TaskContext>,
            ) -> Result<SendableRecordBatchStream> {
                self.rows(partition, context)
            }
        }
    };
}

/// What a build side has given so far.
#[derive(Default)]
struct Kept {
    batches: Vec<RecordBatch>,
    rest: Option<SendableRecordBatchStream>,
    counter: RecordBatchMemoryCounter,
    /// The join puts all batches into one when it has them all: for that moment there are two of
    /// each, and the join accounts for one.
    second: Option<MemoryReservation>,
}

type Slot = Arc<Mutex<Kept>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Kept> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was read of a build side before memory ran out.
pub(super) struct Remains {
    /// What went through already.
    pub(super) batches: Vec<RecordBatch>,
    /// What did not.
    pub(super) rest: Option<SendableRecordBatchStream>,
    /// Held until the batches are on the disk.
    pub(super) reservation: Option<MemoryReservation>,
}

/// A build side that keeps what went through it, until the probe side begins.
pub(super) struct KeptExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    slots: Vec<Slot>,
}

impl fmt::Debug for KeptExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptExec").finish_non_exhaustive()
    }
}

impl KeptExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self {
            properties: Arc::clone(input.properties()),
            input,
            slots: (0..partitions).map(|_| Slot::default()).collect(),
        }
    }

    fn slot(&self, partition: usize) -> Result<&Slot> {
        if let Some(slot) = self.slots.get(partition) {
            return Ok(slot);
        }
        internal_err!("a build side has no partition {partition}")
    }

    /// The join has all it needs.
    fn release(&self, partition: usize) {
        if let Some(slot) = self.slots.get(partition) {
            let kept = std::mem::take(&mut *lock(slot));
            drop(kept);
        }
    }

    /// How many bytes went through before memory ran out.
    pub(super) fn kept_bytes(&self, partition: usize) -> usize {
        let slot = self.slots.get(partition);
        slot.map_or(0, |slot| lock(slot).counter.memory_usage())
    }

    /// Takes everything away from the join.
    pub(super) fn take(&self, partition: usize) -> Result<Remains> {
        let kept = std::mem::take(&mut *lock(self.slot(partition)?));
        Ok(Remains {
            batches: kept.batches,
            rest: kept.rest,
            reservation: kept.second,
        })
    }

    fn rows(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let slot = Arc::clone(self.slot(partition)?);
        let consumer = MemoryConsumer::new("HashJoinBuild");
        {
            let mut kept = lock(&slot);
            kept.second = Some(consumer.register(context.memory_pool()));
            kept.rest = Some(self.input.execute(partition, context)?);
        }
        let rows = stream::poll_fn(move |waker| {
            let mut kept = lock(&slot);
            let Some(rest) = &mut kept.rest else {
                return std::task::Poll::Ready(None);
            };
            let polled = std::task::ready!(rest.poll_next_unpin(waker));
            std::task::Poll::Ready(polled.map(|batch| keep(&mut kept, batch?)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// What is refused is kept as well: nothing is lost.
fn keep(kept: &mut Kept, batch: RecordBatch) -> Result<RecordBatch> {
    let bytes = kept.counter.count_batch(&batch);
    kept.batches.push(batch.clone());
    if let Some(reservation) = &kept.second {
        reservation.try_grow(bytes)?;
    }
    Ok(batch)
}

leaf!(KeptExec, "KeptExec");

/// A probe side that is not begun before the join asks for its first row.
#[derive(Debug)]
pub(super) struct PendingExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    has_begun: Vec<Arc<AtomicBool>>,
    build: Arc<KeptExec>,
}

impl PendingExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, build: Arc<KeptExec>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self {
            properties: Arc::clone(input.properties()),
            input,
            has_begun: (0..partitions).map(|_| Arc::default()).collect(),
            build,
        }
    }

    /// Whether rows of a partition were asked for.
    pub(super) fn has_begun(&self, partition: usize) -> bool {
        let begun = self.has_begun.get(partition);
        begun.is_none_or(|begun| begun.load(Ordering::Acquire))
    }

    fn rows(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(begun) = self.has_begun.get(partition).map(Arc::clone) else {
            return internal_err!("a probe side has no partition {partition}");
        };
        let (input, build) = (Arc::clone(&self.input), Arc::clone(&self.build));
        let mut rows: Option<SendableRecordBatchStream> = None;
        let late = stream::poll_fn(move |waker| {
            if rows.is_none() {
                begun.store(true, Ordering::Release);
                // A build side that all share has one partition.
                build.release(partition.min(build.slots.len().saturating_sub(1)));
                match input.execute(partition, Arc::clone(&context)) {
                    Ok(begun) => rows = Some(begun),
                    Err(error) => return std::task::Poll::Ready(Some(Err(error))),
                }
            }
            match &mut rows {
                Some(rows) => rows.poll_next_unpin(waker),
                None => std::task::Poll::Ready(None),
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), late)))
    }
}

leaf!(PendingExec, "PendingExec");

/// Rows that are there already, as one partition.
pub(super) struct LeafExec {
    source: Source,
    properties: Arc<PlanProperties>,
}

enum Source {
    File(BucketFile),
    Batches(Vec<RecordBatch>),
    /// Can be read once.
    Stream(Mutex<Option<SendableRecordBatchStream>>),
}

impl fmt::Debug for LeafExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafExec").finish_non_exhaustive()
    }
}

impl LeafExec {
    pub(super) fn file(schema: SchemaRef, file: BucketFile) -> Self {
        Self::new(schema, Source::File(file))
    }

    pub(super) fn batches(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self::new(schema, Source::Batches(batches))
    }

    pub(super) fn stream(schema: SchemaRef, rows: SendableRecordBatchStream) -> Self {
        Self::new(schema, Source::Stream(Mutex::new(Some(rows))))
    }

    fn new(schema: SchemaRef, source: Source) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            source,
            properties: Arc::new(properties),
        }
    }

    fn rows(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition > 0 {
            return internal_err!("these rows have one partition");
        }
        match &self.source {
            Source::File(file) => file.read(),
            Source::Batches(batches) => {
                let rows = stream::iter(batches.clone().into_iter().map(Ok));
                Ok(adapted(self.schema(), rows))
            }
            Source::Stream(rows) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(rows) = rows.take() {
                    return Ok(rows);
                }
                internal_err!("these rows can be read once")
            }
        }
    }
}

leaf!(LeafExec, "LeafExec");

/// A stream with its columns.
pub(super) fn adapted(
    schema: SchemaRef,
    rows: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}
