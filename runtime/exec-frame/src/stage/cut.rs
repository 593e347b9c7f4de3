//! Where a plan is cut.
//!
//! Owns the walk from a plan that was made for the whole width to stages: every exchange ends one
//! stage and becomes a leaf of the next, with the same partitions, orderings and constants, so
//! nothing is planned again. Children come first: producers have smaller numbers than consumers.
//!
//! Invariants: only operators whose partition `n` depends on partition `n` of their inputs stay
//! inside a stage, and every other one is refused, which keeps the query in one task; each node of
//! a stage knows which of the stage's tasks it belongs to.

use std::ops::Range;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result, not_impl_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::equivalence::EquivalenceProperties;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode,
};
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::leaf::StageReadExec;
use super::rewrite::with_children;
use super::subquery::Scope;
use super::{Edge, EdgeMode, Stage, StageOutput, names, properties};

/// Stages of one query.
const STAGES_MAX: usize = 512;

/// Operators of which a partition depends on the same partition of each input only.
const STAYING: [&str; 17] = [
    "AggregateExec",
    "BoundedWindowAggExec",
    "CoalesceBatchesExec",
    "CooperativeExec",
    "EmptyExec",
    "FilterExec",
    "GlobalLimitExec",
    "HashJoinExec",
    "InterleaveExec",
    "LocalLimitExec",
    "PlaceholderRowExec",
    "ProjectionExec",
    "SortExec",
    "SortExec(TopK)",
    "SortMergeJoinExec",
    "UnnestExec",
    "WindowAggExec",
];

/// Cuts a plan. Fails if it has to run as a whole.
pub(super) fn cut(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<Stage>> {
    let mut cutter = Cutter::default();
    cutter.close(plan, StageOutput::Table)?;
    Ok(cutter.stages)
}

#[derive(Default)]
pub(super) struct Cutter {
    pub(super) stages: Vec<Stage>,
    /// Scalar subqueries whose values the plan below may read.
    pub(super) scopes: Vec<Scope>,
}

/// A stage that is being made.
#[derive(Default)]
pub(super) struct Open {
    pub(super) edges: Vec<Edge>,
}

/// A stage that has been made.
pub(super) struct Closed {
    stage: usize,
    tasks: usize,
    name: Arc<str>,
}

/// Partitions of a plan.
pub(super) fn partitions(plan: &Arc<dyn ExecutionPlan>) -> usize {
    plan.output_partitioning().partition_count()
}

fn refused(plan: &Arc<dyn ExecutionPlan>, why: &str) -> DataFusionError {
    DataFusionError::NotImplemented(format!("`{}` stays in one task: {why}", plan.name()))
}

impl Cutter {
    /// Makes a stage of a plan.
    pub(super) fn close(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        output: StageOutput,
    ) -> Result<Closed> {
        let tasks = partitions(plan);
        if tasks == 0 || self.stages.len() >= STAGES_MAX {
            return Err(refused(plan, "no partitions, or too many stages"));
        }
        let mut open = Open::default();
        let body = self.node(plan, &mut open, &(0..tasks))?;
        let body = self.with_subqueries(body, &mut open, &(0..tasks))?;
        if partitions(&body) != tasks {
            return Err(refused(plan, "its partitions changed"));
        }
        let name = self.unique(names::of(&body));
        let stage = self.stages.len();
        self.stages.push(Stage {
            name: name.clone(),
            plan: body,
            tasks,
            edges: open.edges,
            output,
        });
        Ok(Closed {
            stage,
            tasks,
            name: name.into(),
        })
    }

    /// Stages of one query have different names.
    fn unique(&self, name: String) -> String {
        let is_taken = |name: &str| self.stages.iter().any(|stage| stage.name == name);
        if !is_taken(&name) {
            return name;
        }
        let numbered = (2..=STAGES_MAX).map(|number| format!("{name} ({number})"));
        numbered
            .filter(|name| !is_taken(name))
            .min_by_key(String::len)
            .unwrap_or(name)
    }

    /// The node as it stands in its stage. Its partitions are the stage's tasks `at`.
    pub(super) fn node(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if partitions(plan) != at.len() {
            return Err(refused(plan, "its partitions are not those of its stage"));
        }
        if let Some(exchange) = plan.downcast_ref::<RepartitionExec>() {
            return self.exchange(plan, exchange, open, at);
        }
        if let Some(gather) = plan.downcast_ref::<CoalescePartitionsExec>() {
            return self.gather(plan, gather.input(), open, at);
        }
        if let Some(merge) = plan.downcast_ref::<SortPreservingMergeExec>() {
            return self.gather(plan, merge.input(), open, at);
        }
        if let Some(subqueries) = plan.downcast_ref::<ScalarSubqueryExec>() {
            return self.scalar_subqueries(subqueries, open, at);
        }
        if plan.downcast_ref::<UnionExec>().is_some() {
            return self.union(plan, open, at);
        }
        if collects_left(plan) && at.len() > 1 {
            return self.collected(plan, open, at);
        }
        let is_collecting = plan.downcast_ref::<CrossJoinExec>().is_some()
            || plan.downcast_ref::<NestedLoopJoinExec>().is_some();
        if is_scan(plan, at)? || is_collecting || STAYING.contains(&plan.name()) {
            return self.staying(plan, open, at);
        }
        Err(refused(plan, "its partitions may depend on each other"))
    }

    /// A node whose partitions depend on the same partition of each input.
    fn staying(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let children = plan.children();
        if children.is_empty() {
            return Ok(Arc::clone(plan));
        }
        let children = children.into_iter().map(|child| self.node(child, open, at));
        let children = children.collect::<Result<Vec<_>>>()?;
        rebuilt(plan, children)
    }

    /// Rows are spread over the tasks of the consumer.
    fn exchange(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        exchange: &RepartitionExec,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let by = exchange.partitioning();
        let reads_subquery = match by {
            Partitioning::Hash(by, _) => by.iter().any(properties::reads_subquery),
            Partitioning::Range(range) => {
                let mut by = range.ordering().iter();
                by.any(|sort| properties::reads_subquery(&sort.expr))
            }
            _ if partitions(exchange.input()) == 1 && at.len() == 1 => {
                return self.node(exchange.input(), open, at);
            }
            _ => return Err(refused(plan, "it deals rows out in turn")),
        };
        if reads_subquery {
            return Err(refused(plan, "it spreads rows by the value of a subquery"));
        }
        let closed = self.close(exchange.input(), StageOutput::Buckets(by.clone()))?;
        let mut rows = properties::portable(plan.equivalence_properties(), &plan.schema())?;
        let ordering = plan.output_ordering().filter(|_| exchange.preserve_order());
        if ordering.is_some() {
            rows.clear_orderings();
        }
        let leaf = open.leaf(&closed, EdgeMode::Shuffle, at, rows, by.clone());
        Ok(match ordering {
            // Slices come one after the other, so what was merged has to be sorted.
            Some(ordering) => {
                let sort = SortExec::new(ordering.clone(), leaf);
                Arc::new(sort.with_preserve_partitioning(true))
            }
            None => leaf,
        })
    }

    /// All partitions become one, in any order or merged.
    fn gather(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        input: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if partitions(input) == 1 {
            return self.staying(plan, open, at);
        }
        // The limit stays where the rows come together, and no task makes more than that.
        let limited: Arc<dyn ExecutionPlan> = match plan.fetch() {
            Some(fetch) if input.fetch().is_none_or(|own| own > fetch) => {
                Arc::new(LocalLimitExec::new(Arc::clone(input), fetch))
            }
            _ => Arc::clone(input),
        };
        let closed = self.close(&limited, StageOutput::Whole)?;
        if plan.downcast_ref::<CoalescePartitionsExec>().is_some() {
            let rows = properties::portable(plan.equivalence_properties(), &plan.schema())?;
            let one = Partitioning::UnknownPartitioning(1);
            let leaf = open.leaf(&closed, EdgeMode::Gather, at, rows, one);
            return match plan.fetch() {
                Some(_) => rebuilt(plan, vec![leaf]),
                None => Ok(leaf),
            };
        }
        let rows = properties::portable(input.equivalence_properties(), &input.schema())?;
        let unknown = Partitioning::UnknownPartitioning(closed.tasks);
        let leaf = open.leaf(&closed, EdgeMode::Merge, at, rows, unknown);
        rebuilt(plan, vec![leaf])
    }

    /// A join of which every task reads the whole left side.
    fn collected(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let children: Vec<_> = plan.children().into_iter().cloned().collect();
        let [left, right] = children.as_slice() else {
            return Err(refused(plan, "it has not two inputs"));
        };
        let left = self.broadcast(left, open, at)?;
        let right = self.node(right, open, at)?;
        rebuilt(plan, vec![left, right])
    }

    /// A leaf that reads all rows of a plan in each of the tasks.
    pub(super) fn broadcast(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let gather = plan.downcast_ref::<CoalescePartitionsExec>();
        let source = gather.filter(|gather| gather.fetch().is_none());
        let source = source.map_or(plan, CoalescePartitionsExec::input);
        let closed = self.close(source, StageOutput::Whole)?;
        let rows = properties::portable(plan.equivalence_properties(), &plan.schema())?;
        let one = Partitioning::UnknownPartitioning(1);
        Ok(open.leaf(&closed, EdgeMode::Broadcast, at, rows, one))
    }

    fn union(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut start = at.start;
        let mut branches = Vec::new();
        for branch in plan.children() {
            let end = start + partitions(branch);
            branches.push(self.node(branch, open, &(start..end))?);
            start = end;
        }
        rebuilt(plan, branches)
    }
}

impl Open {
    /// A leaf over the results of a stage.
    pub(super) fn leaf(
        &mut self,
        closed: &Closed,
        mode: EdgeMode,
        at: &Range<usize>,
        rows: EquivalenceProperties,
        partitioning: Partitioning,
    ) -> Arc<dyn ExecutionPlan> {
        self.edges.push(Edge {
            producer: closed.stage,
            producers: closed.tasks,
            mode,
            parts: at.clone(),
        });
        let leaf = StageReadExec::new((self.edges.len() - 1, mode), rows, partitioning);
        Arc::new(leaf.with_label(Arc::clone(&closed.name)))
    }
}

/// Whether a node is a leaf with the files or rows of its own partitions.
fn is_scan(plan: &Arc<dyn ExecutionPlan>, at: &Range<usize>) -> Result<bool> {
    if plan.name() == "LazyMemoryExec" {
        // Series have one column; the engine's bytes forget that it is not wanted.
        return Ok(at.len() == 1 && plan.schema().fields().len() == 1);
    }
    let Some(scan) = plan.downcast_ref::<DataSourceExec>() else {
        return Ok(false);
    };
    match scan.data_source().downcast_ref::<FileScanConfig>() {
        Some(files) if files.file_groups.len() == at.len() => Ok(true),
        Some(_) => Err(refused(plan, "its groups of files are not its partitions")),
        // Rows in memory travel with the plan, so there is one copy of them only.
        None if at.len() == 1 => Ok(true),
        None => not_impl_err!("rows in memory of many partitions stay in one task"),
    }
}

/// Whether every partition of a join reads all of the left side.
fn collects_left(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return *join.partition_mode() == PartitionMode::CollectLeft;
    }
    plan.downcast_ref::<CrossJoinExec>().is_some()
        || plan.downcast_ref::<NestedLoopJoinExec>().is_some()
}

/// The node over its cut inputs. What was planned for it must hold still.
pub(super) fn rebuilt(
    plan: &Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rebuilt = with_children(Arc::clone(plan), children)?;
    if partitions(&rebuilt) != partitions(plan) {
        return Err(refused(plan, "its partitions changed"));
    }
    keeps_order(plan, &rebuilt)?;
    Ok(rebuilt)
}

/// Fails if an operator would work in another order than planned.
pub(super) fn keeps_order(
    planned: &Arc<dyn ExecutionPlan>,
    made: &Arc<dyn ExecutionPlan>,
) -> Result<()> {
    if let (Some(planned), Some(made)) = (
        planned.downcast_ref::<AggregateExec>(),
        made.downcast_ref::<AggregateExec>(),
    ) && planned.input_order_mode() != made.input_order_mode()
    {
        return not_impl_err!("an aggregate would work in another order");
    }
    let Some(ordering) = planned.output_ordering() else {
        return Ok(());
    };
    if ordering.iter().any(|sort| reads_subquery(&sort.expr)) {
        return Ok(());
    }
    if made
        .equivalence_properties()
        .ordering_satisfy(ordering.clone())?
    {
        return Ok(());
    }
    Err(refused(planned, "the order of its rows would be lost"))
}

fn reads_subquery(expression: &Arc<dyn PhysicalExpr>) -> bool {
    properties::reads_subquery(expression)
}
