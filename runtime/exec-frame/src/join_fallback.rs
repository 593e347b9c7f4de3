//! Hash joins whose build side does not fit.
//!
//! Owns [`SpillingJoinExec`], which takes the place of a hash join. It tries the join in memory and
//! keeps what it read. If memory is refused before the first row came out, both sides go to files
//! by the hash of their keys ([`buckets`]), and each pair of files is joined in the same way, with
//! another hash. Where that does not help, because one key has most of the rows or files were split
//! often enough, the build side is joined piece by piece ([`pieces`]).
//!
//! Invariants: the rows are those of the join in memory, whatever its type, filter and idea of
//! nulls; an order that the join had is made again by sorting; a partition of the output holds the
//! rows of the same partition of the probe side.

mod buckets;
mod leaves;
mod pieces;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use buckets::SharedBuckets;
use leaves::{KeptExec, LeafExec, PendingExec};

/// How often rows are split by another hash before they are joined piece by piece.
const SPLITS_MAX: u32 = 3;

/// Rows of one partition of the output.
type Rows = BoxStream<'static, Result<datafusion::arrow::array::RecordBatch>>;

/// Puts [`SpillingJoinExec`] in the place of every hash join that can work on the disk. The plan
/// must be about to run: what comes out of this cannot be sent to another process.
pub(crate) fn let_joins_spill(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(join) = node.downcast_ref::<HashJoinExec>() else {
            return Ok(Transformed::no(node));
        };
        if *join.partition_mode() == PartitionMode::Auto || is_null_aware(join) {
            return Ok(Transformed::no(node));
        }
        let join = SpillingJoinExec::new(join, Level::default())?;
        Ok(Transformed::yes(Arc::new(join) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// `NOT IN` looks at all rows of both sides at once: splitting them would change its answer.
fn is_null_aware(join: &HashJoinExec) -> bool {
    join.null_aware
}

/// How far the splitting has come.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    splits: u32,
    /// The last split did not help: most rows have the same key.
    is_skewed: bool,
}

impl Level {
    fn is_last(self) -> bool {
        self.is_skewed || self.splits >= SPLITS_MAX
    }
}

/// A hash join that works on the disk if it must.
#[derive(Debug)]
pub(crate) struct SpillingJoinExec {
    parts: Arc<Parts>,
    metrics: ExecutionPlanMetricsSet,
}

/// What the partitions of the output share.
#[derive(Debug)]
struct Parts {
    /// The join as it was planned.
    join: HashJoinExec,
    /// The same join over inputs that can be taken away from it.
    attempt: Arc<dyn ExecutionPlan>,
    build: Arc<KeptExec>,
    probe: Arc<PendingExec>,
    level: Level,
    shared: SharedBuckets,
}

impl SpillingJoinExec {
    fn new(join: &HashJoinExec, level: Level) -> Result<Self> {
        let build = Arc::new(KeptExec::new(Arc::clone(join.left())));
        let probe = PendingExec::new(Arc::clone(join.right()), Arc::clone(&build));
        let probe = Arc::new(probe);
        let mut attempt = join.builder();
        let partitions = join.properties().output_partitioning().partition_count();
        // Partitions wait for each other's filters: one that goes to the disk would never send its.
        if partitions > 1 && !join.dynamic_expressions_produced().is_empty() {
            attempt = attempt.reset_state();
        }
        let inputs: Vec<Arc<dyn ExecutionPlan>> =
            vec![Arc::clone(&build) as _, Arc::clone(&probe) as _];
        let attempt = attempt.with_new_children(inputs)?.build_exec()?;
        Ok(Self {
            parts: Arc::new(Parts {
                join: join.builder().build()?,
                attempt,
                build,
                probe,
                level,
                shared: SharedBuckets::default(),
            }),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

impl Parts {
    fn schema(&self) -> SchemaRef {
        self.join.schema()
    }

    /// Partitions of the probe side.
    fn partitions(&self) -> usize {
        self.probe
            .properties()
            .output_partitioning()
            .partition_count()
    }

    /// The build side's partition that goes with one of the output.
    fn build_partition(&self, partition: usize) -> usize {
        match self.join.partition_mode() {
            PartitionMode::Partitioned => partition,
            PartitionMode::CollectLeft | PartitionMode::Auto => 0,
        }
    }

    /// Whether all partitions of the output read the same build side.
    fn shares_build(&self) -> bool {
        *self.join.partition_mode() == PartitionMode::CollectLeft && self.partitions() > 1
    }

    /// Whether rows of the build side come out by themselves, with or without a match.
    fn emits_build(&self) -> bool {
        matches!(
            self.join.join_type(),
            JoinType::Left
                | JoinType::Full
                | JoinType::LeftSemi
                | JoinType::LeftAnti
                | JoinType::LeftMark
        )
    }

    /// Joins on the disk, in the order and up to the number of rows of the join as it was planned.
    fn spilled(
        self: &Arc<Self>,
        partition: usize,
        context: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let rows = if self.level.is_last() {
            pieces::join(self, partition, context)?
        } else {
            buckets::join(self, partition, context, metrics)
        };
        let rows = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
        let mut plan: Arc<dyn ExecutionPlan> = Arc::new(LeafExec::stream(schema, rows));
        let fetch = self.join.fetch();
        if let Some(order) = self.join.properties().output_ordering() {
            plan = Arc::new(SortExec::new(order.clone(), plan).with_fetch(fetch));
        } else if fetch.is_some() {
            plan = Arc::new(GlobalLimitExec::new(plan, 0, fetch));
        }
        plan.execute(0, Arc::clone(context))
    }
}

/// Whether an operator did not get the memory that it asked for.
fn is_refusal(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(words)
        if !words.contains("disk space"))
}

impl DisplayAs for SpillingJoinExec {
    fn fmt_as(&self, form: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        self.parts.join.fmt_as(form, f)
    }
}

impl ExecutionPlan for SpillingJoinExec {
    // For people, and for rules that go by names, it is the join that it stands for.
    fn name(&self) -> &'static str {
        "HashJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.parts.join.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.parts.join.children()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        ExecutionPlan::maintains_input_order(&self.parts.join)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let join = self.parts.join.builder().reset_state();
        let join = join.with_new_children(children)?.build()?;
        Ok(Arc::new(Self::new(&join, self.parts.level)?))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        self.replace_children(children, recompute)
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let join = self.parts.join.builder().reset_state().build()?;
        Ok(Arc::new(Self::new(&join, self.parts.level)?))
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.parts.join.apply_expressions(visit)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition >= self.parts.partitions() {
            return internal_err!("a join has no partition {partition}");
        }
        let (parts, metrics) = (Arc::clone(&self.parts), self.metrics.clone());
        let mut attempt = parts.attempt.execute(partition, Arc::clone(&context))?;
        let schema = parts.schema();
        let rows = stream::once(async move {
            let first = attempt.next().await;
            match first {
                Some(Err(error)) if is_refusal(&error) && !parts.probe.has_begun(partition) => {
                    drop(attempt);
                    tracing::debug!(%error, "a join goes to the disk");
                    let spilled = parts.spilled(partition, &context, &metrics)?;
                    let counted = BaselineMetrics::new(&metrics, partition);
                    let rows = spilled.inspect_ok(move |batch| {
                        counted.record_output(batch.num_rows());
                    });
                    Ok::<Rows, DataFusionError>(rows.boxed())
                }
                Some(first) => Ok(stream::iter([first]).chain(attempt).boxed()),
                None => Ok(stream::empty().boxed()),
            }
        });
        let rows = rows.try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        let mut all = self.parts.attempt.metrics().unwrap_or_default();
        for metric in self.metrics.clone_inner().iter() {
            all.push(Arc::clone(metric));
        }
        Some(all)
    }
}
