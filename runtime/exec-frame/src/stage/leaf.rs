//! The leaves and the small operators that a cut puts into plans.
//!
//! Owns [`StageReadExec`], the leaf that stands for the rows of another stage, and [`RestampExec`],
//! which gives a branch of a UNION the columns of the UNION. At planning time a leaf has the
//! partitions of the whole stage and cannot run; in a task it has those that the task reads.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::equivalence::EquivalenceProperties;
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, PlanProperties, SchedulingType,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
};
use futures::TryStreamExt;

use super::EdgeMode;
use super::read::TaskReads;

/// Rows that another stage made.
#[derive(Debug, Clone)]
pub(crate) struct StageReadExec {
    /// The index among the edges of its stage.
    pub(crate) edge: usize,
    /// Which slices it reads.
    pub(crate) mode: EdgeMode,
    /// For people: the stage it reads.
    pub(crate) label: Arc<str>,
    properties: Arc<PlanProperties>,
    /// Only in a task.
    reads: Option<Arc<TaskReads>>,
    metrics: ExecutionPlanMetricsSet,
}

impl StageReadExec {
    /// A leaf with these properties of its rows.
    pub(super) fn new(
        (edge, mode): (usize, EdgeMode),
        rows: EquivalenceProperties,
        partitioning: Partitioning,
    ) -> Self {
        let properties = PlanProperties::new(
            rows,
            partitioning,
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self {
            edge,
            mode,
            label: "".into(),
            properties: Arc::new(properties),
            reads: None,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// What is known of its rows.
    pub(super) fn rows(&self) -> &EquivalenceProperties {
        &self.properties.eq_properties
    }

    /// How its rows are spread.
    pub(super) fn partitioning(&self) -> &Partitioning {
        &self.properties.partitioning
    }

    pub(super) fn with_label(mut self, label: Arc<str>) -> Self {
        self.label = label;
        self
    }

    /// A leaf of its own for a task.
    pub(super) fn for_task(&self, reads: Arc<TaskReads>) -> Self {
        Self {
            reads: Some(reads),
            metrics: ExecutionPlanMetricsSet::new(),
            ..self.clone()
        }
    }
}

impl DisplayAs for StageReadExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let mode = match self.mode {
            EdgeMode::Shuffle => "shuffle",
            EdgeMode::Merge => "merge",
            EdgeMode::Broadcast => "broadcast",
            EdgeMode::Gather => "gather",
        };
        let partitions = self.partitioning();
        write!(f, "StageRead: {mode} of {}, {partitions}", self.label)
    }
}

impl ExecutionPlan for StageReadExec {
    fn name(&self) -> &'static str {
        "StageReadExec"
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

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(reads) = &self.reads else {
            return internal_err!("a cut plan runs in tasks only");
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let stream = reads.stream(self.edge, partition, self.schema(), metrics)?;
        Ok(make_cooperative(stream))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The rows of its input under other names, metadata and nullability, with the same types.
#[derive(Debug)]
pub(super) struct RestampExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl RestampExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Result<Self> {
        let rows = input.equivalence_properties().clone();
        let properties = PlanProperties::new(
            rows.with_new_schema(Arc::clone(schema))?,
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Ok(Self {
            input,
            properties: Arc::new(properties),
        })
    }
}

impl DisplayAs for RestampExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "UnionBranch")
    }
}

impl ExecutionPlan for RestampExec {
    fn name(&self) -> &'static str {
        "RestampExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let Some(child) = children.pop() else {
            return internal_err!("a branch of a UNION has one input");
        };
        Ok(Arc::new(Self::new(child, &schema)?))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let keep = datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
        self.replace_children(children, ReplaceChildrenOptions::new(keep))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let stamped = Arc::clone(&schema);
        let rows = self.input.execute(partition, context)?;
        let rows = rows.and_then(move |batch| {
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let columns = batch.columns().to_vec();
            let batch = RecordBatch::try_new_with_options(stamped.clone(), columns, &options);
            std::future::ready(batch.map_err(Into::into))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
