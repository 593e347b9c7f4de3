//! Joins whose build side is several times the memory, against the same joins with enough of it.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Int64Array, RecordBatch, StringViewArray};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::common::{JoinSide, NullEquality};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, col};
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalSortExpr};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::joins::utils::{ColumnIndex, JoinFilter};
use datafusion::physical_plan::joins::{HashJoinExecBuilder, JoinOn};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::prelude::SessionConfig;
use oxidask_exec::{Memory, OwnMemory};
use tempfile::TempDir;

use super::*;
use crate::memory::{TaskMemoryPool, temporary_files};

const JOIN_TYPES: [JoinType; 10] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::RightSemi,
    JoinType::LeftAnti,
    JoinType::RightAnti,
    JoinType::LeftMark,
    JoinType::RightMark,
];

/// The build sides of these tests have four times as much.
const MEMORY_BYTES: u64 = 2 << 20;
const BUILD_ROWS: i64 = 60_000;
const PROBE_ROWS: i64 = 20_000;

fn schema(side: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(format!("{side}_key"), DataType::Int64, true),
        Field::new(format!("{side}_number"), DataType::Int64, false),
        Field::new(format!("{side}_text"), DataType::Utf8View, true),
    ]))
}

/// Rows whose keys repeat, with nulls, and texts that make them large.
fn batches(side: &str, rows: i64, key: impl Fn(i64) -> Option<i64>) -> Vec<RecordBatch> {
    let all: Vec<i64> = (0..rows).collect();
    let text = |row: &i64| (row % 13 != 0).then(|| format!("{row:0>100}"));
    all.chunks(3_000)
        .map(|rows| {
            let keys: Int64Array = rows.iter().map(|row| key(*row)).collect();
            let numbers: Int64Array = rows.iter().copied().map(Some).collect();
            let texts: StringViewArray = rows.iter().map(text).collect();
            let columns: Vec<datafusion::arrow::array::ArrayRef> =
                vec![Arc::new(keys), Arc::new(numbers), Arc::new(texts)];
            RecordBatch::try_new(schema(side), columns).unwrap()
        })
        .collect()
}

fn spread(modulus: i64) -> impl Fn(i64) -> Option<i64> {
    move |row| (row % 17 != 0).then(|| row * 7_919 % modulus)
}

fn table(side: &str, batches: &[RecordBatch], partitions: usize) -> Arc<dyn ExecutionPlan> {
    let share = batches.len().div_ceil(partitions).max(1);
    let mut parts: Vec<_> = batches.chunks(share).map(<[_]>::to_vec).collect();
    parts.resize(partitions, Vec::new());
    MemorySourceConfig::try_new_exec(&parts, schema(side), None).unwrap()
}

#[derive(Clone, Copy)]
struct Shape {
    join_type: JoinType,
    mode: PartitionMode,
    partitions: usize,
    nulls: NullEquality,
    has_filter: bool,
    has_projection: bool,
}

const PLAIN: Shape = Shape {
    join_type: JoinType::Inner,
    mode: PartitionMode::CollectLeft,
    partitions: 1,
    nulls: NullEquality::NullEqualsNothing,
    has_filter: false,
    has_projection: false,
};

fn join(build: &[RecordBatch], probe: &[RecordBatch], shape: Shape) -> HashJoinExec {
    let (left, right) = (schema("l"), schema("r"));
    let on: JoinOn = vec![(col("l_key", &left).unwrap(), col("r_key", &right).unwrap())];
    let spread = |plan: Arc<dyn ExecutionPlan>, key: &Arc<dyn PhysicalExpr>| {
        let by = Partitioning::Hash(vec![Arc::clone(key)], shape.partitions);
        Arc::new(RepartitionExec::try_new(plan, by).unwrap()) as Arc<dyn ExecutionPlan>
    };
    let (build, probe) = match shape.mode {
        PartitionMode::Partitioned => (
            spread(table("l", build, 1), &on[0].0),
            spread(table("r", probe, 2), &on[0].1),
        ),
        _ => (table("l", build, 1), table("r", probe, shape.partitions)),
    };
    let mut join = HashJoinExecBuilder::new(build, probe, on, shape.join_type)
        .with_partition_mode(shape.mode)
        .with_null_equality(shape.nulls);
    if shape.has_filter {
        // l_number > r_number
        let (build, probe) = (Column::new("a", 0), Column::new("b", 1));
        let both = BinaryExpr::new(Arc::new(build), Operator::Gt, Arc::new(probe));
        let numbers = [JoinSide::Left, JoinSide::Right].map(|side| ColumnIndex { index: 1, side });
        let fields = ["a", "b"].map(|name| Field::new(name, DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        join = join.with_filter(Some(JoinFilter::new(
            Arc::new(both),
            numbers.to_vec(),
            schema,
        )));
    }
    let join = join.build().unwrap();
    if shape.has_projection {
        let last = join.schema().fields().len() - 1;
        return join.with_projection(Some(vec![last, 0])).unwrap();
    }
    join
}

struct World {
    context: Arc<TaskContext>,
    memory: Arc<OwnMemory>,
    folder: TempDir,
}

fn world(memory_bytes: u64) -> World {
    let memory = Arc::new(OwnMemory::new(memory_bytes));
    let folder = TempDir::new().unwrap();
    let pool = TaskMemoryPool::new(Arc::clone(&memory) as Arc<dyn Memory>);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(temporary_files(folder.path(), None))
        .build_arc()
        .unwrap();
    let mut config = SessionConfig::new().with_batch_size(1_024);
    config.options_mut().execution.sort_spill_reservation_bytes = 64 * 1024;
    let context = TaskContext::default()
        .with_session_config(config)
        .with_runtime(runtime);
    World {
        context: Arc::new(context),
        memory,
        folder,
    }
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("-");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns
                .iter()
                .map(|column| column.value(row).to_string())
                .collect();
            lines.push(cells.join("|"));
        }
    }
    lines
}

async fn rows_of(plan: Arc<dyn ExecutionPlan>, context: &Arc<TaskContext>) -> Vec<String> {
    let mut lines = lines(&collect(plan, Arc::clone(context)).await.unwrap());
    lines.sort_unstable();
    lines
}

fn files_in(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap().count())
        .sum()
}

/// Runs a join with enough memory and with too little, and compares the rows.
async fn compare(build: &[RecordBatch], probe: &[RecordBatch], shape: Shape) {
    let name = format!(
        "{} {:?} of {} filter {}",
        shape.join_type, shape.mode, shape.partitions, shape.has_filter
    );
    let plain = Arc::new(join(build, probe, shape));
    let expected = rows_of(plain, &world(1 << 32).context).await;
    let small = world(MEMORY_BYTES);
    // Plans of their own: what one has read, it does not read again.
    let in_memory = Arc::new(join(build, probe, shape));
    let refused = collect(in_memory, Arc::clone(&small.context)).await;
    let refused = refused.map(drop).unwrap_err();
    assert!(is_refusal(&refused), "{name}: {refused}");
    let plan = let_joins_spill(Arc::new(join(build, probe, shape))).unwrap();
    let found = rows_of(Arc::clone(&plan), &small.context).await;
    assert!(
        plan.metrics().unwrap().spill_count().unwrap_or(0) > 0,
        "{name} did not spill"
    );
    assert_eq!(found.len(), expected.len(), "{name}");
    assert!(found == expected, "{name}: other rows");
    drop(plan);
    // Readers of files end on threads of their own.
    for _ in 0..1_000 {
        if files_in(&small.folder) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(files_in(&small.folder), 0, "{name} left files");
    drop(small.context);
    assert_eq!(small.memory.taken_bytes(), 0, "{name}");
}

#[tokio::test]
async fn every_type_gives_the_rows_that_it_gives_in_memory() {
    let build = batches("l", BUILD_ROWS, spread(40_000));
    let probe = batches("r", PROBE_ROWS, spread(30_000));
    for join_type in JOIN_TYPES {
        for has_filter in [false, true] {
            let shape = Shape {
                join_type,
                has_filter,
                has_projection: has_filter,
                ..PLAIN
            };
            compare(&build, &probe, shape).await;
        }
    }
}

#[tokio::test]
async fn nulls_that_are_equal_find_each_other() {
    let build = batches("l", BUILD_ROWS, spread(40_000));
    // Few nulls here, or there would be millions of rows.
    let probe = batches("r", PROBE_ROWS, |row| (row % 5_000 != 3).then_some(row));
    for join_type in JOIN_TYPES {
        let shape = Shape {
            join_type,
            nulls: NullEquality::NullEqualsNull,
            ..PLAIN
        };
        compare(&build, &probe, shape).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_works_over_several_partitions() {
    let build = batches("l", BUILD_ROWS, spread(40_000));
    let probe = batches("r", PROBE_ROWS, spread(30_000));
    for join_type in JOIN_TYPES {
        for mode in [PartitionMode::CollectLeft, PartitionMode::Partitioned] {
            let shape = Shape {
                join_type,
                mode,
                partitions: 3,
                ..PLAIN
            };
            compare(&build, &probe, shape).await;
        }
    }
}

#[tokio::test]
async fn one_key_with_all_rows_is_joined_piece_by_piece() {
    let build = batches("l", BUILD_ROWS, |_| Some(1));
    let probe = batches("r", 40, |row| Some(row % 20));
    for join_type in JOIN_TYPES {
        for has_filter in [false, true] {
            let shape = Shape {
                join_type,
                has_filter,
                has_projection: has_filter,
                ..PLAIN
            };
            compare(&build, &probe, shape).await;
        }
    }
}

#[tokio::test]
async fn a_side_without_rows_is_no_trouble() {
    let build = batches("l", BUILD_ROWS, spread(40_000));
    for join_type in JOIN_TYPES {
        let shape = Shape { join_type, ..PLAIN };
        compare(&build, &batches("r", 0, Some), shape).await;
    }
}

#[tokio::test]
async fn the_order_of_the_probe_side_is_made_again() {
    let ordered_by_number = |side: &str, batches: Vec<RecordBatch>| {
        let number = col(&format!("{side}_number"), &schema(side)).unwrap();
        let order = LexOrdering::new([PhysicalSortExpr::new(number, SortOptions::default())]);
        let source = MemorySourceConfig::try_new(&[batches], schema(side), None).unwrap();
        let source = source
            .try_with_sort_information(vec![order.unwrap()])
            .unwrap();
        DataSourceExec::from_data_source(source) as Arc<dyn ExecutionPlan>
    };
    // The first rows in an order are kept in memory: that needs some.
    for (fetch, memory_bytes) in [(None, MEMORY_BYTES), (Some(100), 2 * MEMORY_BYTES)] {
        let planned = join(&batches("l", BUILD_ROWS, spread(40_000)), &[], PLAIN);
        let probe = ordered_by_number("r", batches("r", PROBE_ROWS, spread(30_000)));
        let inputs = vec![Arc::clone(planned.left()), probe];
        let planned = planned.builder().with_new_children(inputs).unwrap();
        let planned = planned
            .with_fetch(fetch)
            .recompute_properties()
            .build_exec()
            .unwrap();
        assert!(planned.properties().output_ordering().is_some());
        let plan = let_joins_spill(planned).unwrap();
        let small = world(memory_bytes);
        let rows = collect(Arc::clone(&plan), Arc::clone(&small.context))
            .await
            .unwrap();
        assert!(plan.metrics().unwrap().spill_count().unwrap_or(0) > 0);
        let mut numbers = Vec::new();
        for batch in &rows {
            let column = batch.column_by_name("r_number").unwrap();
            let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
            numbers.extend(column.values().iter().copied());
        }
        assert!(numbers.is_sorted());
        match fetch {
            None => assert!(numbers.len() > 10_000),
            Some(fetch) => assert_eq!(numbers.len(), fetch),
        }
    }
}

#[tokio::test]
async fn a_join_that_fits_stays_in_memory() {
    let build = batches("l", 1_000, spread(900));
    let probe = batches("r", PROBE_ROWS, spread(900));
    let world = world(64 << 20);
    let plan = join(&build, &probe, PLAIN);
    let expected = rows_of(Arc::new(plan), &world.context).await;
    let plan = Arc::new(join(&build, &probe, PLAIN)) as Arc<dyn ExecutionPlan>;
    let plan = let_joins_spill(plan).unwrap();
    assert_eq!(rows_of(Arc::clone(&plan), &world.context).await, expected);
    let metrics = plan.metrics().unwrap();
    assert_eq!(metrics.spill_count().unwrap_or(0), 0);
    assert_eq!(metrics.output_rows(), Some(expected.len()));
    assert_eq!(plan.name(), "HashJoinExec");
}

#[tokio::test]
async fn a_full_disk_is_told_as_such() {
    let mut small = world(MEMORY_BYTES);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::clone(small.context.memory_pool()))
        .with_disk_manager_builder(temporary_files(small.folder.path(), Some(1 << 20)))
        .build_arc()
        .unwrap();
    small.context = Arc::new(TaskContext::default().with_runtime(runtime));
    let build = batches("l", BUILD_ROWS, spread(40_000));
    let plan = join(&build, &batches("r", PROBE_ROWS, spread(30_000)), PLAIN);
    let plan = let_joins_spill(Arc::new(plan)).unwrap();
    let error = collect(plan, small.context).await.unwrap_err();
    assert!(error.to_string().contains("disk"), "{error}");
    assert!(!is_refusal(&error));
}
