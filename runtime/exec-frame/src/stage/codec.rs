//! The bytes of a stage, which all its tasks share, and the way back to a plan for one of them.
//!
//! Owns the message [`StageBytes`] and both directions of its plan. Leaves, UNIONs and the files
//! of scans stand beside the engine's own bytes, so that a task makes only what its part runs:
//! one branch of a UNION, one group of files, one partition everywhere. Each task makes a plan of
//! its own; what cannot change while it runs (schemas, orderings) is made once per worker.
//!
//! Invariants: bytes of another build are refused; options travel with the plan, so a worker's own
//! defaults change nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::from_proto::parse_protobuf_partitioning;
use datafusion_proto::physical_plan::to_proto::{
    serialize_partitioning, serialize_physical_expr_with_converter,
};
use datafusion_proto::physical_plan::{
    DefaultPhysicalProtoConverter, PhysicalExtensionCodec, PhysicalPlanDecodeContext,
    PhysicalPlanNodeExt, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf;
use datafusion_proto::protobuf::physical_plan_node::PhysicalPlanType;

use super::functions::Functions;
use super::leaf::{RestampExec, StageReadExec};
use super::properties::{self, RowProperties};
use super::read::TaskReads;
use super::scans::{self, ScanFiles};
use super::{Edge, EdgeMode, Stage, StageOutput, settings};

/// Changes whenever the bytes of a stage do.
const FORM: u32 = 1;

/// What makes the bytes of a stage: plans and hashes of one build mean something else in another.
static BUILD: LazyLock<String> = LazyLock::new(|| {
    let (ours, engine) = (oxidask_proto::BUILD, datafusion::DATAFUSION_VERSION);
    format!("{ours}, DataFusion {engine}, form {FORM}")
});

/// The build that makes and reads bytes of stages here.
pub(super) fn build() -> &'static str {
    &BUILD
}

/// Bytes that are not what they should be.
pub(super) fn broken(what: &str) -> DataFusionError {
    internal_datafusion_err!("{what} is missing in the bytes of a stage")
}

/// A stage as all its tasks get it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StageBytes {
    #[prost(message, optional, tag = "1")]
    plan: Option<protobuf::PhysicalPlanNode>,
    /// Options that differ from the defaults, name and value.
    #[prost(message, repeated, tag = "2")]
    options: Vec<OptionBytes>,
    #[prost(message, repeated, tag = "3")]
    scans: Vec<ScanFiles>,
    #[prost(message, repeated, tag = "4")]
    leaves: Vec<LeafBytes>,
    #[prost(message, repeated, tag = "5")]
    unions: Vec<UnionBytes>,
    #[prost(message, repeated, tag = "6")]
    edges: Vec<EdgeBytes>,
    /// 0: buckets, 1: whole, 2: table, 3: parts of an output, 4: nothing.
    #[prost(uint32, tag = "7")]
    output: u32,
    #[prost(message, optional, tag = "8")]
    buckets: Option<protobuf::Partitioning>,
    /// The statement's place.
    #[prost(string, tag = "9")]
    pub(super) place: String,
    /// Tasks of the stage.
    #[prost(uint64, tag = "10")]
    tasks: u64,
    /// The columns of its rows.
    #[prost(message, optional, tag = "11")]
    schema: Option<protobuf::Schema>,
    /// The output whose parts are written, as JSON.
    #[prost(string, tag = "12")]
    parts: String,
}

/// One option.
#[derive(Clone, PartialEq, prost::Message)]
struct OptionBytes {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// One leaf.
#[derive(Clone, PartialEq, prost::Message)]
struct LeafBytes {
    #[prost(uint64, tag = "1")]
    edge: u64,
    #[prost(message, optional, tag = "2")]
    schema: Option<protobuf::Schema>,
    #[prost(message, optional, tag = "3")]
    rows: Option<RowProperties>,
    /// By which expressions its rows were spread, if by their hash.
    #[prost(message, repeated, tag = "4")]
    hashed: Vec<protobuf::PhysicalExprNode>,
}

/// One UNION.
#[derive(Clone, PartialEq, prost::Message)]
struct UnionBytes {
    #[prost(message, optional, tag = "1")]
    schema: Option<protobuf::Schema>,
    /// Partitions of each branch.
    #[prost(uint64, repeated, tag = "2")]
    partitions: Vec<u64>,
}

/// One edge.
#[derive(Clone, PartialEq, prost::Message)]
struct EdgeBytes {
    /// 0: shuffle, 1: merge, 2: broadcast, 3: gather.
    #[prost(uint32, tag = "1")]
    mode: u32,
    #[prost(uint64, tag = "2")]
    producers: u64,
    #[prost(uint64, tag = "3")]
    parts_start: u64,
    #[prost(uint64, tag = "4")]
    parts_end: u64,
}

/// Both directions of expressions.
pub(super) trait Expressions {
    /// As bytes.
    fn encode(&self, expression: &Arc<dyn PhysicalExpr>) -> Result<protobuf::PhysicalExprNode>;
    /// From bytes, over rows of this schema.
    fn decode(
        &self,
        bytes: &protobuf::PhysicalExprNode,
        schema: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>>;
}

struct PlainExpressions<'a> {
    functions: &'a Functions,
    context: &'a TaskContext,
}

impl Expressions for PlainExpressions<'_> {
    fn encode(&self, expression: &Arc<dyn PhysicalExpr>) -> Result<protobuf::PhysicalExprNode> {
        let converter = DefaultPhysicalProtoConverter {};
        serialize_physical_expr_with_converter(expression, self.functions, &converter)
    }

    fn decode(
        &self,
        bytes: &protobuf::PhysicalExprNode,
        schema: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let context = PhysicalPlanDecodeContext::new(self.context, self.functions);
        DefaultPhysicalProtoConverter {}.proto_to_physical_expr(bytes, schema, &context)
    }
}

/// What stands in the engine's bytes for our own nodes: a letter and a number.
fn own_node(letter: char, number: usize) -> Vec<u8> {
    let mut text = String::new();
    let written = write!(text, "{letter}{number}");
    debug_assert!(written.is_ok(), "writing into memory cannot fail");
    text.into_bytes()
}

fn read_own_node(bytes: &[u8]) -> Result<(char, usize)> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let mut letters = text.chars();
    let number = letters.clone().skip(1).collect::<String>().parse();
    match (letters.next(), number) {
        (Some(letter), Ok(number)) => Ok((letter, number)),
        _ => Err(broken("one of our operators")),
    }
}

/// Writes the plan of a stage.
struct PlanWriter<'a> {
    expressions: PlainExpressions<'a>,
    scans: RefCell<Vec<ScanFiles>>,
    leaves: RefCell<Vec<LeafBytes>>,
    unions: RefCell<Vec<UnionBytes>>,
}

impl PlanWriter<'_> {
    fn leaf(&self, leaf: &StageReadExec) -> Result<protobuf::PhysicalPlanNode> {
        let rows = properties::encode(leaf.rows(), &self.expressions)?;
        let hashed = match leaf.partitioning() {
            Partitioning::Hash(by, _) => by
                .iter()
                .map(|expression| self.expressions.encode(expression))
                .collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let mut leaves = self.leaves.borrow_mut();
        leaves.push(LeafBytes {
            edge: leaf.edge as u64,
            schema: Some(leaf.schema().as_ref().try_into()?),
            rows: Some(rows),
            hashed,
        });
        Ok(extension(own_node('l', leaves.len() - 1), Vec::new()))
    }

    fn union(&self, union: &UnionExec) -> Result<protobuf::PhysicalPlanNode> {
        let functions = self.expressions.functions;
        let branches = union.inputs().iter();
        let branches = branches.map(|branch| self.execution_plan_to_proto(branch, functions));
        let branches = branches.collect::<Result<Vec<_>>>()?;
        let partitions = union.inputs().iter();
        let partitions =
            partitions.map(|branch| branch.output_partitioning().partition_count() as u64);
        let mut unions = self.unions.borrow_mut();
        unions.push(UnionBytes {
            schema: Some(union.schema().as_ref().try_into()?),
            partitions: partitions.collect(),
        });
        Ok(extension(own_node('u', unions.len() - 1), branches))
    }
}

fn extension(node: Vec<u8>, inputs: Vec<protobuf::PhysicalPlanNode>) -> protobuf::PhysicalPlanNode {
    let extension = protobuf::PhysicalExtensionNode { node, inputs };
    protobuf::PhysicalPlanNode {
        physical_plan_type: Some(PhysicalPlanType::Extension(extension)),
    }
}

impl PhysicalProtoConverterExtension for PlanWriter<'_> {
    fn proto_to_execution_plan(
        &self,
        _: &protobuf::PhysicalPlanNode,
        _: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Err(broken("the way back"))
    }

    fn execution_plan_to_proto(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        codec: &dyn PhysicalExtensionCodec,
    ) -> Result<protobuf::PhysicalPlanNode> {
        if let Some(leaf) = plan.downcast_ref::<StageReadExec>() {
            return self.leaf(leaf);
        }
        if let Some(union) = plan.downcast_ref::<UnionExec>() {
            return self.union(union);
        }
        let write = |plan: Arc<dyn ExecutionPlan>| {
            protobuf::PhysicalPlanNode::try_from_physical_plan_with_converter(plan, codec, self)
        };
        let Some((scan, files)) = scans::split(plan)? else {
            return write(Arc::clone(plan));
        };
        let mut node = write(scan)?;
        let mut scans = self.scans.borrow_mut();
        scans::number(&mut node, scans.len())?;
        scans.push(files);
        Ok(node)
    }

    fn proto_to_physical_expr(
        &self,
        _: &protobuf::PhysicalExprNode,
        _: &Schema,
        _: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Err(broken("the way back"))
    }

    fn physical_expr_to_proto(
        &self,
        expression: &Arc<dyn PhysicalExpr>,
        codec: &dyn PhysicalExtensionCodec,
    ) -> Result<protobuf::PhysicalExprNode> {
        serialize_physical_expr_with_converter(expression, codec, self)
    }
}

/// Writes a stage. Fails for what stays in one task.
pub(super) fn encode(
    stage: &Stage,
    options: &Arc<ConfigOptions>,
    place: &str,
    state: &SessionState,
) -> Result<StageBytes> {
    let functions = Functions::new(state.clone(), Arc::clone(options));
    let context = TaskContext::default();
    let writer = PlanWriter {
        expressions: PlainExpressions {
            functions: &functions,
            context: &context,
        },
        scans: RefCell::default(),
        leaves: RefCell::default(),
        unions: RefCell::default(),
    };
    let plan = writer.execution_plan_to_proto(&stage.plan, &functions)?;
    let (output, buckets) = match &stage.output {
        StageOutput::Buckets(buckets) => (
            0,
            Some(serialize_partitioning(buckets, &functions, &writer)?),
        ),
        StageOutput::Whole => (1, None),
        StageOutput::Table => (2, None),
        StageOutput::Parts(_) => (3, None),
        StageOutput::Nothing => (4, None),
    };
    let parts = match &stage.output {
        StageOutput::Parts(output) => serde_json::to_string(output)
            .map_err(|error| DataFusionError::External(Box::new(error)))?,
        _ => String::new(),
    };
    let options = settings::travelling(options)?.into_iter();
    let edges = stage.edges.iter().map(|edge| EdgeBytes {
        mode: match edge.mode {
            EdgeMode::Shuffle => 0,
            EdgeMode::Merge => 1,
            EdgeMode::Broadcast => 2,
            EdgeMode::Gather => 3,
        },
        producers: edge.producers as u64,
        parts_start: edge.parts.start as u64,
        parts_end: edge.parts.end as u64,
    });
    Ok(StageBytes {
        plan: Some(plan),
        options: options
            .map(|(name, value)| OptionBytes { name, value })
            .collect(),
        scans: writer.scans.into_inner(),
        leaves: writer.leaves.into_inner(),
        unions: writer.unions.into_inner(),
        edges: edges.collect(),
        output,
        buckets,
        place: place.to_owned(),
        tasks: stage.tasks as u64,
        schema: Some(stage.plan.schema().as_ref().try_into()?),
        parts,
    })
}

/// A stage as a worker keeps it.
#[derive(Debug)]
pub(super) struct PreparedStage {
    plan: protobuf::PhysicalPlanNode,
    scans: Vec<ScanFiles>,
    leaves: Vec<StageReadExec>,
    unions: Vec<(SchemaRef, Vec<usize>)>,
    functions: Functions,
    pub(super) edges: Vec<Edge>,
    pub(super) output: StageOutput,
    pub(super) config: SessionConfig,
    pub(super) place: String,
    pub(super) tasks: usize,
}

/// Understands the bytes of a stage.
pub(super) fn prepare(bytes: StageBytes, state: &SessionState) -> Result<PreparedStage> {
    let options = bytes.options.iter();
    let options = options.map(|option| (option.name.as_str(), option.value.as_str()));
    let config = settings::of_stage(options)?;
    let functions = Functions::new(state.clone(), Arc::clone(config.options()));
    let context = empty_context(&config, Arc::new(RuntimeEnv::default()));
    let expressions = PlainExpressions {
        functions: &functions,
        context: &context,
    };
    let edges = bytes.edges.iter().map(edge).collect::<Result<Vec<_>>>()?;
    let leaves = bytes.leaves.iter();
    let leaves = leaves.map(|leaf| prepare_leaf(leaf, &edges, &expressions));
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let unions = bytes.unions.iter().map(|union| {
        let partitions = union.partitions.iter().map(|count| index(*count));
        Ok((
            schema(union.schema.as_ref())?,
            partitions.collect::<Result<_>>()?,
        ))
    });
    let unions = unions.collect::<Result<Vec<_>>>()?;
    let output = match bytes.output {
        0 => {
            let context = PhysicalPlanDecodeContext::new(&context, &functions);
            let schema = schema(bytes.schema.as_ref())?;
            let converter = DefaultPhysicalProtoConverter {};
            let buckets = bytes.buckets.as_ref();
            let buckets = parse_protobuf_partitioning(buckets, &context, &schema, &converter)?;
            StageOutput::Buckets(buckets.ok_or_else(|| broken("the buckets"))?)
        }
        1 => StageOutput::Whole,
        3 => {
            let output = serde_json::from_str(&bytes.parts);
            StageOutput::Parts(output.map_err(|_| broken("the output"))?)
        }
        4 => StageOutput::Nothing,
        _ => StageOutput::Table,
    };
    Ok(PreparedStage {
        plan: bytes.plan.ok_or_else(|| broken("the plan"))?,
        scans: bytes.scans,
        leaves,
        unions,
        edges,
        output,
        config,
        place: bytes.place,
        tasks: index(bytes.tasks)?,
        functions: functions.clone(),
    })
}

fn index(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| broken("a number"))
}

fn schema(bytes: Option<&protobuf::Schema>) -> Result<SchemaRef> {
    let bytes = bytes.ok_or_else(|| broken("a schema"))?;
    Ok(Arc::new(Schema::try_from(bytes)?))
}

fn edge(bytes: &EdgeBytes) -> Result<Edge> {
    Ok(Edge {
        // A task knows its inputs, not whose they are.
        producer: 0,
        producers: index(bytes.producers)?,
        mode: match bytes.mode {
            0 => EdgeMode::Shuffle,
            1 => EdgeMode::Merge,
            2 => EdgeMode::Broadcast,
            _ => EdgeMode::Gather,
        },
        parts: index(bytes.parts_start)?..index(bytes.parts_end)?,
    })
}

/// A leaf as tasks see it: one partition, or one for each producer that is merged.
fn prepare_leaf(
    bytes: &LeafBytes,
    edges: &[Edge],
    expressions: &PlainExpressions<'_>,
) -> Result<StageReadExec> {
    let number = index(bytes.edge)?;
    let edge = edges.get(number).ok_or_else(|| broken("an edge"))?;
    let schema = schema(bytes.schema.as_ref())?;
    let rows = bytes.rows.as_ref().ok_or_else(|| broken("properties"))?;
    let rows = properties::decode(rows, &schema, expressions)?;
    let hashed = bytes.hashed.iter();
    let hashed = hashed.map(|by| expressions.decode(by, &schema));
    let hashed = hashed.collect::<Result<Vec<_>>>()?;
    let partitioning = match (edge.mode, hashed.is_empty()) {
        (EdgeMode::Merge, _) => Partitioning::UnknownPartitioning(edge.producers),
        (_, true) => Partitioning::UnknownPartitioning(1),
        (_, false) => Partitioning::Hash(hashed, 1),
    };
    Ok(StageReadExec::new((number, edge.mode), rows, partitioning))
}

/// A context without functions: those are looked up by [`Functions`].
pub(super) fn empty_context(config: &SessionConfig, runtime: Arc<RuntimeEnv>) -> TaskContext {
    TaskContext::new(
        None,
        String::new(),
        config.clone(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        runtime,
    )
}

impl PreparedStage {
    /// A fresh plan for one part of the stage. Its first partition is the part.
    pub(super) fn plan(
        &self,
        part: usize,
        context: &TaskContext,
        reads: Arc<TaskReads>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let reader = PlanReader {
            stage: self,
            part: Cell::new(part),
            reads,
        };
        let context = PhysicalPlanDecodeContext::new(context, &self.functions);
        reader.proto_to_execution_plan(&self.plan, &context)
    }
}

/// Makes the plan of one part.
struct PlanReader<'a> {
    stage: &'a PreparedStage,
    /// The part of the node that is being made.
    part: Cell<usize>,
    reads: Arc<TaskReads>,
}

impl PlanReader<'_> {
    fn own(
        &self,
        node: &protobuf::PhysicalExtensionNode,
        context: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (letter, number) = read_own_node(&node.node)?;
        if letter == 'l' {
            let leaf = self.stage.leaves.get(number);
            let leaf = leaf.ok_or_else(|| broken("a leaf"))?;
            return Ok(Arc::new(leaf.for_task(Arc::clone(&self.reads))));
        }
        let union = self.stage.unions.get(number);
        let (schema, partitions) = union.ok_or_else(|| broken("a UNION"))?;
        let outer = self.part.get();
        let mut part = outer;
        for (count, branch) in partitions.iter().zip(&node.inputs) {
            if part >= *count {
                part -= count;
                continue;
            }
            self.part.set(part);
            let made = self.proto_to_execution_plan(branch, context);
            self.part.set(outer);
            let made = made?;
            return if made.schema() == *schema {
                Ok(made)
            } else {
                Ok(Arc::new(RestampExec::new(made, schema)?))
            };
        }
        Err(broken("the branch of a UNION"))
    }
}

impl PhysicalProtoConverterExtension for PlanReader<'_> {
    fn proto_to_execution_plan(
        &self,
        node: &protobuf::PhysicalPlanNode,
        context: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(PhysicalPlanType::Extension(own)) = &node.physical_plan_type {
            return self.own(own, context);
        }
        if scans::is_scan(node) {
            let scans = &self.stage.scans;
            let (node, number) = scans::for_part(node, scans, self.part.get())?;
            let scan = self.default_proto_to_execution_plan(&node, context)?;
            return scans::completed(scan, &scans[number]);
        }
        self.default_proto_to_execution_plan(node, context)
    }

    fn execution_plan_to_proto(
        &self,
        _: &Arc<dyn ExecutionPlan>,
        _: &dyn PhysicalExtensionCodec,
    ) -> Result<protobuf::PhysicalPlanNode> {
        Err(broken("the way there"))
    }

    fn proto_to_physical_expr(
        &self,
        expression: &protobuf::PhysicalExprNode,
        schema: &Schema,
        context: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        self.default_proto_to_physical_expr(expression, schema, context)
    }

    fn physical_expr_to_proto(
        &self,
        _: &Arc<dyn PhysicalExpr>,
        _: &dyn PhysicalExtensionCodec,
    ) -> Result<protobuf::PhysicalExprNode> {
        Err(broken("the way there"))
    }
}
