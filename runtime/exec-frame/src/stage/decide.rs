//! Whether a query is worth stages, and how wide they are.
//!
//! Owns the estimate of what a plan reads and exchanges, and the constants that were measured for
//! it. Estimates come from the sizes of files and from statistics; nothing is read for them.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};

use super::PlanRequest;

/// What one slot reads of compressed columns and computes on in a second: a rough guess that only
/// has to tell milliseconds from seconds.
const COLUMN_BYTES_PER_SECOND: u64 = 100_000_000;

/// The same for text.
const TEXT_BYTES_PER_SECOND: u64 = 60_000_000;

/// A query that one worker is expected to finish in this time stays in one task: stages cost
/// several trips between client, scheduler and workers.
const ONE_TASK_MICROS: u64 = 60_000;

/// Bytes that one task of a stage is to exchange.
const EXCHANGED_BYTES_TARGET: u64 = 64 * 1024 * 1024;

/// The share of a slot's memory that they may take, as its divisor: a task reads some and makes
/// some.
const EXCHANGED_SHARE: u64 = 8;

/// Rows in memory are this many times as large as compressed columns, where nobody counted them.
const EXPANSION: u64 = 3;

/// Tasks of a stage, unless somebody asks for more.
const WIDTH_AUTO_MAX: u64 = 1_024;

/// The share of a slot's memory that the build side of a join may take, as its divisor.
const BUILD_SHARE: u64 = 4;

/// The share of a worker's memory that the rows of a query in one task may take, as its divisor.
const ONE_TASK_SHARE: u64 = 4;

/// What a plan will take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Bytes of files that are read.
    read_bytes: u64,
    /// One slot's time.
    micros: u64,
    /// Rows of all scans in memory.
    memory_bytes: u64,
    /// The largest exchange.
    exchanged_bytes: u64,
    /// The largest side of a join that is kept in memory.
    build_bytes: u64,
}

/// Adds up what the nodes of a plan take.
pub(super) fn estimate(plan: &Arc<dyn ExecutionPlan>) -> Estimate {
    let mut estimate = Estimate::default();
    let statistics = StatisticsContext::new();
    let walked = plan.apply(|node| {
        add(node, &statistics, &mut estimate);
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "statistics that are not known are left out");
    estimate
}

fn add(node: &Arc<dyn ExecutionPlan>, statistics: &StatisticsContext, estimate: &mut Estimate) {
    if let Some(scan) = node.downcast_ref::<DataSourceExec>() {
        if let Some(scan) = scan.data_source().downcast_ref::<FileScanConfig>() {
            add_scan(scan, estimate);
        }
        return;
    }
    if let Some(exchange) = node.downcast_ref::<RepartitionExec>()
        && !matches!(exchange.partitioning(), Partitioning::RoundRobinBatch(_))
    {
        let bytes = bytes_of(exchange.input(), statistics).unwrap_or_default();
        estimate.exchanged_bytes = estimate.exchanged_bytes.max(bytes);
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && *join.partition_mode() == PartitionMode::Partitioned
    {
        let bytes = bytes_of(join.left(), statistics).unwrap_or_default();
        estimate.build_bytes = estimate.build_bytes.max(bytes);
    }
}

fn add_scan(scan: &FileScanConfig, estimate: &mut Estimate) {
    let (read, rate) = read_bytes(scan);
    estimate.read_bytes += read;
    estimate.micros += read.saturating_mul(1_000_000) / rate;
    estimate.memory_bytes += read.saturating_mul(EXPANSION);
}

/// Bytes of files that a scan reads, and how many of them a slot reads in a second.
fn read_bytes(scan: &FileScanConfig) -> (u64, u64) {
    let files = scan.file_groups.iter().flat_map(FileGroup::iter);
    let sizes = files.map(|file| match &file.range {
        Some(range) => u64::try_from(range.end - range.start).unwrap_or_default(),
        None => file.object_meta.size,
    });
    let bytes: u64 = sizes.sum();
    if scan.file_source().downcast_ref::<ParquetSource>().is_none() {
        return (bytes, TEXT_BYTES_PER_SECOND);
    }
    // A part of a part of the bytes: no rounding matters here.
    let read = u128::from(bytes) * u128::from(read_part(scan)) / u128::from(PART_OF);
    let read = u64::try_from(read).unwrap_or(bytes);
    (read, COLUMN_BYTES_PER_SECOND)
}

const PART_OF: u64 = 1_000;

/// Which part of the columns is read, by their likely widths.
fn read_part(scan: &FileScanConfig) -> u64 {
    let source = scan.file_source();
    let schema = source.table_schema().table_schema();
    let Some(projection) = source.projection() else {
        return PART_OF;
    };
    let mut columns = std::collections::HashSet::new();
    for output in projection {
        columns.extend(
            collect_columns(&output.expr)
                .into_iter()
                .map(|column| column.index()),
        );
    }
    if let Some(filter) = source.filter() {
        columns.extend(
            collect_columns(&filter)
                .into_iter()
                .map(|column| column.index()),
        );
    }
    let all: u64 = (0..schema.fields().len())
        .map(|column| width(schema, column))
        .sum();
    let read: u64 = columns
        .into_iter()
        .map(|column| width(schema, column))
        .sum();
    (read.saturating_mul(PART_OF) / all.max(1)).clamp(1, PART_OF)
}

fn width(schema: &Schema, column: usize) -> u64 {
    let data_type = schema.fields().get(column).map(|field| field.data_type());
    match data_type {
        // Compressed, decimals take about what numbers take.
        Some(DataType::Decimal128(..) | DataType::Decimal256(..)) => 8,
        Some(data_type) => data_type.primitive_width().map_or(16, |width| width as u64),
        None => 0,
    }
}

/// Bytes of a plan's rows, if its statistics tell how many there are.
fn bytes_of(plan: &Arc<dyn ExecutionPlan>, statistics: &StatisticsContext) -> Option<u64> {
    let told = statistics
        .compute(plan.as_ref(), &StatisticsArgs::new())
        .ok()?;
    let known = |precision: &Precision<usize>| precision.get_value().map(|value| *value as u64);
    let rows = known(&told.num_rows);
    let schema = plan.schema();
    let fields = || schema.fields().iter().enumerate();
    let mut row: u64 = fields().map(|(column, _)| width(&schema, column)).sum();
    if fields().any(|(_, field)| field.data_type().primitive_width().is_none()) {
        // Nobody says how long texts are, but the files do.
        row = row.max(scanned_row_bytes(plan, statistics));
    }
    let by_rows = rows.and_then(|rows| rows.checked_mul(row));
    known(&told.total_byte_size).max(by_rows)
}

/// What a row of each scan below takes in its files, added up.
fn scanned_row_bytes(plan: &Arc<dyn ExecutionPlan>, statistics: &StatisticsContext) -> u64 {
    let mut bytes = 0;
    let walked = plan.apply(|node| {
        let scan = node.downcast_ref::<DataSourceExec>();
        let files = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
        if let Some(files) = files
            && let Ok(told) = statistics.compute(node.as_ref(), &StatisticsArgs::new())
            && let Some(rows) = told.num_rows.get_value()
        {
            bytes += read_bytes(files).0 / (*rows as u64).max(1);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "statistics that are not known are left out");
    bytes
}

impl Estimate {
    /// Why one task is as good as many, for people; `None` if it is not.
    pub(super) fn small_because(&self, request: &PlanRequest<'_>) -> Option<String> {
        let slots = u64::from(request.slots.max(1));
        let micros = self.micros / slots;
        if micros < ONE_TASK_MICROS {
            return Some(format!(
                "about {} ms of work for one worker, and stages pay from {} ms on",
                micros.div_ceil(1_000),
                ONE_TASK_MICROS / 1_000
            ));
        }
        let is_whole_cluster = request.cluster.slots <= request.slots;
        let is_small = self.memory_bytes < request.memory_bytes / ONE_TASK_SHARE;
        (is_whole_cluster && is_small)
            .then(|| "one worker has all slots of the cluster, and room in its memory".to_owned())
    }

    /// One slot's time for the whole query.
    pub(super) fn micros(&self) -> u64 {
        self.micros
    }

    /// Tasks of a stage.
    pub(super) fn width(&self, request: &PlanRequest<'_>) -> usize {
        let slots = u64::from(request.cluster.slots.max(1));
        let workers = u64::from(request.cluster.workers.max(1));
        let slots_per_worker = slots.div_ceil(workers).max(1);
        let slot_bytes = request.memory_bytes / slots_per_worker;
        let target = EXCHANGED_BYTES_TARGET.min(slot_bytes / EXCHANGED_SHARE);
        let by_bytes = self.exchanged_bytes.div_ceil(target.max(1));
        let by_build = self.build_bytes.div_ceil((slot_bytes / BUILD_SHARE).max(1));
        let width = by_bytes.max(by_build).min(WIDTH_AUTO_MAX).max(slots);
        usize::try_from(width).unwrap_or(usize::MAX)
    }
}
