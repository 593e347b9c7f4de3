//! Both sides of a join as pairs of files, by the hash of their keys.
//!
//! Rows that match have equal keys, so they are in the same pair, and each pair can be joined
//! alone. Invariant: the hash of a level differs from those of all others and from the one that
//! spreads rows over partitions, or all rows would be in one pair again.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{BatchCoalescer, take_record_batch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::joins::PartitionMode;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::stream::EmptyRecordBatchStream;
use datafusion::physical_plan::{ExecutionPlan, SpillManager};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::leaves::{LeafExec, adapted};
use super::{Level, Parts, Rows, SpillingJoinExec};

/// Pairs of files of one split.
const BUCKETS: usize = 16;

/// Rows that are gathered for a file before they are written.
const GATHERED_ROWS: usize = 2048;

/// Added to the level for the seed of its hash.
const FIRST_SEED: u64 = 0x6F78_6964_6173_6B00;

/// A bucket with more than this share of all rows' bytes, in percent, shows that splitting does not
/// help.
const SKEW_PERCENT: usize = 75;

/// Buckets that partitions of the output share.
#[derive(Debug, Default)]
pub(super) struct SharedBuckets {
    build: OnceCell<Vec<BucketFile>>,
    probe: OnceCell<Vec<BucketFile>>,
}

/// The rows of one side of one pair.
#[derive(Clone)]
pub(super) struct BucketFile {
    manager: SpillManager,
    /// None without rows.
    file: Option<Arc<dyn SpillFile>>,
    bytes: usize,
}

impl std::fmt::Debug for BucketFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketFile")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl BucketFile {
    /// All rows, any number of times.
    pub(super) fn read(&self) -> Result<SendableRecordBatchStream> {
        if let Some(file) = &self.file {
            return self.manager.read_spill_as_stream(Arc::clone(file), None);
        }
        let schema = Arc::clone(self.manager.schema());
        Ok(Box::pin(EmptyRecordBatchStream::new(schema)))
    }
}

/// Splits both sides and joins the pairs.
pub(super) fn join(
    parts: &Arc<Parts>,
    partition: usize,
    context: &Arc<TaskContext>,
    metrics: &ExecutionPlanMetricsSet,
) -> Rows {
    let (parts, context) = (Arc::clone(parts), Arc::clone(context));
    let metrics = SpillMetrics::new(metrics, partition);
    let pairs = stream::once(async move {
        let pairs = pairs(&parts, partition, &context, &metrics).await?;
        let total: usize = pairs.iter().map(|(build, _)| build.bytes).sum();
        let joined = stream::iter(pairs).map(move |(build, probe)| {
            let level = Level {
                splits: parts.level.splits + 1,
                is_skewed: build.bytes / SKEW_PERCENT > total / 100,
            };
            join_pair(&parts, build, probe, level, &context)
        });
        Ok::<_, DataFusionError>(joined.try_flatten())
    });
    pairs.try_flatten().boxed()
}

type Pair = (BucketFile, BucketFile);

/// The pairs of files that one partition of the output is made of.
async fn pairs(
    parts: &Arc<Parts>,
    partition: usize,
    context: &Arc<TaskContext>,
    metrics: &SpillMetrics,
) -> Result<Vec<Pair>> {
    let split_build = || split_build(parts, parts.build_partition(partition), context, metrics);
    if !parts.shares_build() {
        let build = split_build().await?;
        let probe = split_probe(parts, &[partition], context, metrics).await?;
        return Ok(build.into_iter().zip(probe).collect());
    }
    let build = parts
        .shared
        .build
        .get_or_try_init(split_build)
        .await?
        .clone();
    if !parts.emits_build() {
        let probe = split_probe(parts, &[partition], context, metrics).await?;
        return Ok(build.into_iter().zip(probe).collect());
    }
    // A row of the build side must meet all rows that it may match before it comes out: whoever is
    // first splits the probe sides of all partitions, and each partition joins some of the pairs.
    let all: Vec<_> = (0..parts.partitions()).collect();
    let split_all = || split_probe(parts, &all, context, metrics);
    let probe = parts.shared.probe.get_or_try_init(split_all).await?.clone();
    let pairs = build.into_iter().zip(probe).enumerate();
    let own = pairs.filter(|(bucket, _)| bucket % parts.partitions() == partition);
    Ok(own.map(|(_, pair)| pair).collect())
}

fn join_pair(
    parts: &Parts,
    build: BucketFile,
    probe: BucketFile,
    level: Level,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let inputs: Vec<Arc<dyn ExecutionPlan>> = vec![
        Arc::new(LeafExec::file(parts.join.left().schema(), build)),
        Arc::new(LeafExec::file(parts.join.right().schema(), probe)),
    ];
    let join = parts
        .join
        .builder()
        .reset_state()
        .with_new_children(inputs)?
        .with_partition_mode(PartitionMode::CollectLeft)
        .with_fetch(None)
        .build()?;
    SpillingJoinExec::new(&join, level)?.execute(0, Arc::clone(context))
}

async fn split_build(
    parts: &Parts,
    partition: usize,
    context: &Arc<TaskContext>,
    metrics: &SpillMetrics,
) -> Result<Vec<BucketFile>> {
    let keys = parts.join.on().iter().map(|(build, _)| Arc::clone(build));
    let schema = parts.join.left().schema();
    let mut split = Split::new(keys.collect(), schema, parts.level, context, metrics);
    let remains = parts.build.take(partition)?;
    for batch in remains.batches {
        split.push(&batch)?;
    }
    drop(remains.reservation);
    if let Some(mut rest) = remains.rest {
        while let Some(batch) = rest.try_next().await? {
            split.push(&batch)?;
        }
    }
    split.finish()
}

async fn split_probe(
    parts: &Parts,
    partitions: &[usize],
    context: &Arc<TaskContext>,
    metrics: &SpillMetrics,
) -> Result<Vec<BucketFile>> {
    let keys = parts.join.on().iter().map(|(_, probe)| Arc::clone(probe));
    let probe = parts.join.right();
    let mut split = Split::new(
        keys.collect(),
        probe.schema(),
        parts.level,
        context,
        metrics,
    );
    let begin = |partition: &usize| probe.execute(*partition, Arc::clone(context));
    let all: Result<Vec<_>> = partitions.iter().map(begin).collect();
    // Together, not one after the other: they may come from one exchange.
    let mut rows = adapted(probe.schema(), stream::select_all(all?));
    while let Some(batch) = rows.try_next().await? {
        split.push(&batch)?;
    }
    split.finish()
}

/// One side of a join on its way to files.
struct Split {
    keys: Vec<PhysicalExprRef>,
    seed: RandomState,
    manager: SpillManager,
    buckets: Vec<Bucket>,
    hashes: Vec<u64>,
}

struct Bucket {
    gathered: BatchCoalescer,
    file: Option<FileWriter>,
    bytes: usize,
    rows: Vec<u32>,
}

/// What is done with a file while it is written.
enum Write<'a> {
    Append(&'a RecordBatch),
    Finish,
}

/// What a write comes to: the bytes of a batch, or the whole file.
enum Written {
    Bytes(usize),
    File(Option<Arc<dyn SpillFile>>),
}

/// A file that is being written. The engine keeps the name of its type to itself.
type FileWriter = Box<dyn FnMut(Write<'_>) -> Result<Written> + Send>;

fn create(manager: &SpillManager) -> Result<FileWriter> {
    let mut file = manager.create_in_progress_file("a side of a join")?;
    Ok(Box::new(move |write| match write {
        Write::Append(batch) => file.append_batch(batch).map(Written::Bytes),
        Write::Finish => file.finish().map(Written::File),
    }))
}

impl Split {
    fn new(
        keys: Vec<PhysicalExprRef>,
        schema: SchemaRef,
        level: Level,
        context: &Arc<TaskContext>,
        metrics: &SpillMetrics,
    ) -> Self {
        let bucket = || Bucket {
            gathered: BatchCoalescer::new(Arc::clone(&schema), GATHERED_ROWS),
            file: None,
            bytes: 0,
            rows: Vec::new(),
        };
        Self {
            keys,
            seed: RandomState::with_seed(FIRST_SEED + u64::from(level.splits)),
            buckets: (0..BUCKETS).map(|_| bucket()).collect(),
            manager: SpillManager::new(context.runtime_env(), metrics.clone(), schema),
            hashes: Vec::new(),
        }
    }

    fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows();
        let key = |key: &PhysicalExprRef| key.evaluate(batch)?.into_array(rows);
        let keys: Vec<ArrayRef> = self.keys.iter().map(key).collect::<Result<_>>()?;
        self.hashes.clear();
        self.hashes.resize(rows, 0);
        create_hashes(&keys, &self.seed, &mut self.hashes)?;
        for bucket in &mut self.buckets {
            bucket.rows.clear();
        }
        for (row, hash) in (0_u32..).zip(&self.hashes) {
            let at = usize::try_from(*hash % BUCKETS as u64).unwrap_or_default();
            if let Some(bucket) = self.buckets.get_mut(at) {
                bucket.rows.push(row);
            }
        }
        for bucket in self
            .buckets
            .iter_mut()
            .filter(|bucket| !bucket.rows.is_empty())
        {
            let rows = UInt32Array::from(std::mem::take(&mut bucket.rows));
            bucket
                .gathered
                .push_batch(take_record_batch(batch, &rows)?)?;
            bucket.write(&self.manager)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<BucketFile>> {
        let mut files = Vec::with_capacity(BUCKETS);
        for bucket in &mut self.buckets {
            bucket.gathered.finish_buffered_batch()?;
            bucket.write(&self.manager)?;
            let written = bucket.file.take().map(|mut file| file(Write::Finish));
            let file = match written.transpose()? {
                Some(Written::File(file)) => file,
                Some(Written::Bytes(_)) | None => None,
            };
            files.push(BucketFile {
                manager: self.manager.clone(),
                file,
                bytes: bucket.bytes,
            });
        }
        Ok(files)
    }
}

impl Bucket {
    fn write(&mut self, manager: &SpillManager) -> Result<()> {
        while let Some(batch) = self.gathered.next_completed_batch() {
            let file = match &mut self.file {
                Some(file) => file,
                empty => empty.insert(create(manager)?),
            };
            if let Written::Bytes(bytes) = file(Write::Append(&batch))? {
                self.bytes += bytes;
            }
        }
        Ok(())
    }
}
