//! Scalar subqueries in stages.
//!
//! Owns the way of a subquery's one value to the stages that use it: the subquery is a stage of
//! its own, and each stage that holds an expression with its value reads it and makes it known to
//! its own expressions. A value never leaves the plan of a task in another way.

use std::ops::Range;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, not_impl_err};
use datafusion::logical_expr::physical_planning_context::ScalarSubqueryResults;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_plan::scalar_subquery::{ScalarSubqueryExec, ScalarSubqueryLink};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::cut::{Closed, Cutter, Open};
use super::{EdgeMode, StageOutput, properties};

/// The subqueries of one level of a query.
pub(super) struct Scope {
    results: ScalarSubqueryResults,
    subqueries: Vec<Subquery>,
}

/// A subquery that became a stage.
struct Subquery {
    link: ScalarSubqueryLink,
    closed: Closed,
}

impl Cutter {
    /// Cuts the subqueries off, and the plan that may use them.
    pub(super) fn scalar_subqueries(
        &mut self,
        node: &ScalarSubqueryExec,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // Subqueries have levels of their own and see none around them.
        let around = std::mem::take(&mut self.scopes);
        let subqueries = node.subqueries().iter().map(|link| {
            let closed = self.close(&link.plan, StageOutput::Whole)?;
            let link = link.clone();
            Ok(Subquery { link, closed })
        });
        let subqueries = subqueries.collect::<Result<Vec<_>>>()?;
        self.scopes = around;
        self.scopes.push(Scope {
            results: node.results().clone(),
            subqueries,
        });
        let input = self.node(node.input(), open, at);
        let input = input.and_then(|input| self.with_subqueries(input, open, at));
        self.scopes.pop();
        input
    }

    /// Gives a plan of a stage the values that its expressions read.
    pub(super) fn with_subqueries(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        open: &mut Open,
        at: &Range<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut needed = Vec::new();
        for scope in &self.scopes {
            if reads(&plan, &scope.results)? {
                needed.push(scope);
            }
        }
        let scope = match needed.as_slice() {
            [] => return Ok(plan),
            [scope] => scope,
            _ => return not_impl_err!("subqueries of two levels in one stage stay in one task"),
        };
        let links = scope.subqueries.iter().map(|subquery| {
            let source = &subquery.link.plan;
            let rows = properties::portable(source.equivalence_properties(), &source.schema())?;
            let leaf = open.leaf(
                &subquery.closed,
                EdgeMode::Broadcast,
                at,
                rows,
                Partitioning::UnknownPartitioning(1),
            );
            Ok(ScalarSubqueryLink {
                plan: leaf,
                index: subquery.link.index,
            })
        });
        let links = links.collect::<Result<Vec<_>>>()?;
        let results = scope.results.clone();
        Ok(Arc::new(ScalarSubqueryExec::new(plan, links, results)))
    }
}

/// Whether the plan of a stage reads values of these subqueries that it was not given yet.
fn reads(plan: &Arc<dyn ExecutionPlan>, results: &ScalarSubqueryResults) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        let given = node.downcast_ref::<ScalarSubqueryExec>();
        if given.is_some_and(|given| given.results() == results) {
            return Ok(TreeNodeRecursion::Jump);
        }
        node.apply_expressions(&mut |root| {
            root.apply(|expression| {
                let value = expression.downcast_ref::<ScalarSubqueryExpr>();
                found |= value.is_some_and(|value| value.results() == results);
                Ok(if found {
                    TreeNodeRecursion::Stop
                } else {
                    TreeNodeRecursion::Continue
                })
            })
        })?;
        Ok(if found {
            TreeNodeRecursion::Stop
        } else {
            TreeNodeRecursion::Continue
        })
    })?;
    Ok(found)
}
