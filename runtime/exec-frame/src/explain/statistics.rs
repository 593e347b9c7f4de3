//! What one task counted while it ran.
//!
//! Owns the form in which this travels: JSON behind the slices of the task's result. Times of
//! operators are those that the engine measures: what an operator computed, without its waiting.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricsSet;
use serde::{Deserialize, Serialize};

/// Operators that the statistics of a task name.
const OPERATORS_MAX: usize = 512;

/// What a task counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskStatistics {
    /// Rows that it made.
    pub(crate) rows: u64,
    /// Bytes of them, encoded; 0 if they are not kept.
    pub(crate) bytes: u64,
    /// From begin to end.
    pub(crate) micros: u64,
    /// From the last one down.
    pub(crate) operators: Vec<OperatorStatistics>,
}

/// What an operator counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorStatistics {
    pub(crate) name: String,
    /// Whether it has no inputs: what it makes, the task has read.
    pub(crate) is_leaf: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nanos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spilled_bytes: Option<u64>,
    /// Bytes of files that it read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_bytes: Option<u64>,
}

impl TaskStatistics {
    /// After a run of the plan.
    pub(crate) fn of(
        plan: &Arc<dyn ExecutionPlan>,
        started: Instant,
        rows: u64,
        bytes: u64,
    ) -> Self {
        let mut operators = Vec::new();
        walk(plan, &mut operators);
        Self {
            rows,
            bytes,
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            operators,
        }
    }

    /// As it travels.
    pub(crate) fn to_bytes(&self) -> Bytes {
        // Numbers and names can always be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Rows that came from files and other stages.
    pub(crate) fn read_rows(&self) -> u64 {
        let leaves = self.operators.iter().filter(|operator| operator.is_leaf);
        leaves.filter_map(|operator| operator.rows).sum()
    }

    pub(crate) fn read_bytes(&self) -> u64 {
        self.operators
            .iter()
            .filter_map(|operator| operator.read_bytes)
            .sum()
    }

    pub(crate) fn spilled_bytes(&self) -> u64 {
        self.operators
            .iter()
            .filter_map(|operator| operator.spilled_bytes)
            .sum()
    }
}

fn walk(plan: &Arc<dyn ExecutionPlan>, found: &mut Vec<OperatorStatistics>) {
    if found.len() >= OPERATORS_MAX {
        return;
    }
    let metrics = plan.metrics().unwrap_or_default();
    let number = |count: Option<usize>| count.map(|count| count as u64);
    found.push(OperatorStatistics {
        name: plan.name().to_owned(),
        is_leaf: plan.children().is_empty(),
        rows: number(metrics.output_rows()),
        nanos: nanos(plan, &metrics),
        spilled_bytes: number(metrics.spilled_bytes()),
        read_bytes: counted(&metrics, "bytes_scanned"),
    });
    for child in plan.children() {
        walk(child, found);
    }
}

/// Scans count their time under another name.
fn nanos(plan: &Arc<dyn ExecutionPlan>, metrics: &MetricsSet) -> Option<u64> {
    let computed = metrics.elapsed_compute().map(|nanos| nanos as u64);
    if plan.name() == "DataSourceExec" {
        return counted(metrics, "time_elapsed_processing").or(computed);
    }
    computed
}

fn counted(metrics: &MetricsSet, name: &str) -> Option<u64> {
    metrics
        .sum_by_name(name)
        .map(|value| value.as_usize() as u64)
}
