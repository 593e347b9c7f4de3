//! Joins as isolated tasks can run them.
//!
//! Owns what becomes of joins whose tasks would have to know of each other. A join that emits rows
//! of a build side that all its tasks share would emit them once a task or never: it is made to
//! spread both sides, or its sides are swapped. What is left (a full join by a condition, NOT IN
//! with its one answer to "was there a NULL?") is computed by one task of the stage.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::JoinType;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
};

/// Whether a join emits rows of its left side by itself, after the right one was read.
fn emits_left(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Left
            | JoinType::Full
            | JoinType::LeftSemi
            | JoinType::LeftAnti
            | JoinType::LeftMark
    )
}

/// Runs before exchanges are planned.
#[derive(Debug, Default)]
pub(super) struct SpreadBuildSides;

impl PhysicalOptimizerRule for SpreadBuildSides {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if config.execution.target_partitions <= 1 {
            return Ok(plan);
        }
        plan.transform_up(|node| {
            if let Some(join) = node.downcast_ref::<HashJoinExec>()
                && *join.partition_mode() == PartitionMode::CollectLeft
                && emits_left(*join.join_type())
                && !join.null_aware
            {
                let spread = join
                    .builder()
                    .with_partition_mode(PartitionMode::Partitioned)
                    .recompute_properties();
                return Ok(Transformed::yes(spread.build_exec()?));
            }
            if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
                && emits_left(*join.join_type())
                && *join.join_type() != JoinType::Full
            {
                return Ok(Transformed::yes(join.swap_inputs()?));
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "spread_build_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Gives the joins that are left a right side of one partition, so that one task computes them.
pub(super) fn gather(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let needs_one = if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            *join.partition_mode() == PartitionMode::CollectLeft
                && (emits_left(*join.join_type()) || join.null_aware)
        } else if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
            emits_left(*join.join_type())
        } else {
            false
        };
        let children: Vec<_> = node.children().into_iter().cloned().collect();
        let [left, right] = children.as_slice() else {
            return Ok(Transformed::no(node));
        };
        if !needs_one || right.output_partitioning().partition_count() <= 1 {
            return Ok(Transformed::no(node));
        }
        let gathered = Arc::new(CoalescePartitionsExec::new(Arc::clone(right)));
        let children = vec![Arc::clone(left), gathered as Arc<dyn ExecutionPlan>];
        Ok(Transformed::yes(with_children(node, children)?))
    })
    .data()
}

/// The node over other children, its properties told anew.
pub(super) fn with_children(
    node: Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    node.replace_children(children, recompute)
}
