//! The traps of cutting plans, each with a test of the plan itself. What only shows in rows is
//! tested with the rest of the queries, in `tests/stage`.

#![allow(clippy::format_collect, reason = "these are tests")]

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::JoinType;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, PartitionMode};
use oxidask_exec::TaskContext;

use super::plan::Goal;
use super::{EdgeMode, PlanRequest, Planned, Stage, StageOutput, StagePlan, plan_statement};
use crate::script::{self, ClusterSize};
use crate::session::{Session, Shared};

struct Fixture {
    session: Session,
    _dir: tempfile::TempDir,
}

impl Fixture {
    /// Tables `a` and `b` of a few files.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..500)
            .map(|row| format!("{},{row},text {row}\n", row % 17))
            .collect();
        for table in ["a", "b"] {
            let folder = dir.path().join(table);
            std::fs::create_dir(&folder).unwrap();
            for file in 0..3 {
                std::fs::write(folder.join(format!("{file}.csv")), format!("k,v,s\n{rows}"))
                    .unwrap();
            }
        }
        let context =
            TaskContext::alone(1 << 30, dir.path().to_owned(), dir.path().join("scratch"));
        let session = Session::new(Arc::new(Shared::default()), &context).unwrap();
        let mut fixture = Self { session, _dir: dir };
        for table in ["a", "b"] {
            fixture
                .define(&format!(
                    "CREATE EXTERNAL TABLE {table} (k INT, v BIGINT, s VARCHAR) STORED AS CSV \
                     LOCATION '{table}/'"
                ))
                .await;
        }
        fixture.define("SET oxidask.stages = 'always'").await;
        fixture
    }

    async fn define(&mut self, text: &str) {
        let statement = script::parse_one(text).unwrap();
        self.session.define(statement).await.unwrap();
    }

    async fn planned(&self, query: &str) -> Planned {
        let logical = self
            .session
            .plan_query(script::parse_one(query).unwrap())
            .await
            .unwrap();
        let request = PlanRequest {
            name: "query-1",
            place: "statement 1",
            cluster: ClusterSize {
                workers: 2,
                slots: 4,
                memory_bytes: 1 << 30,
            },
            slots: 2,
            memory_bytes: 1 << 30,
            goal: Goal::Rows,
        };
        plan_statement(&self.session, logical, &request)
            .await
            .unwrap()
    }

    async fn stages(&self, query: &str) -> StagePlan {
        match self.planned(query).await {
            Planned::Stages(plan) => *plan,
            Planned::OneTask { reason, .. } => panic!("one task, {reason}: {query}"),
        }
    }
}

fn nodes(stage: &Stage) -> Vec<Arc<dyn ExecutionPlan>> {
    let mut nodes = Vec::new();
    stage
        .plan
        .apply(|node| {
            nodes.push(Arc::clone(node));
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
    nodes
}

fn has(stage: &Stage, name: &str) -> bool {
    nodes(stage).iter().any(|node| node.name() == name)
}

const QUERIES: [&str; 6] = [
    "SELECT k, count(*) FROM a GROUP BY k ORDER BY k LIMIT 5",
    "SELECT a.s, b.s FROM a JOIN b ON a.k = b.k WHERE a.v < 3",
    "SELECT a.s, b.s FROM a LEFT JOIN b ON a.v = b.v ORDER BY a.v LIMIT 10",
    "SELECT k, row_number() OVER (PARTITION BY k ORDER BY v) FROM a",
    "SELECT k FROM a UNION SELECT k FROM b",
    "SELECT count(*) FROM a WHERE v > (SELECT avg(v) FROM b)",
];

#[tokio::test]
async fn trap_1_tasks_of_one_partition_are_merged() {
    let mut fixture = Fixture::new().await;
    fixture.define("SET oxidask.width = 4").await;
    let plan = fixture.stages("SELECT sum(v) FROM a").await;
    // Each task has a part of the sum; one more adds them up.
    let [parts, whole] = plan.stages.as_slice() else {
        panic!("{} stages", plan.stages.len());
    };
    assert!(parts.tasks > 1);
    assert_eq!((whole.tasks, whole.edges[0].mode), (1, EdgeMode::Gather));
    assert_eq!(whole.edges[0].producers, parts.tasks);
}

#[tokio::test]
async fn trap_2_and_trap_6_no_task_waits_for_another_of_its_stage() {
    let fixture = Fixture::new().await;
    for query in QUERIES {
        let plan = fixture.stages(query).await;
        for stage in &plan.stages {
            assert!(!has(stage, "RepartitionExec"), "{query}");
            let gathers =
                has(stage, "CoalescePartitionsExec") || has(stage, "SortPreservingMergeExec");
            let merges = stage
                .edges
                .iter()
                .any(|edge| matches!(edge.mode, EdgeMode::Merge | EdgeMode::Gather));
            assert!(!gathers || merges, "{query}");
            for node in nodes(stage) {
                if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                    assert!(join.dynamic_expressions_produced().is_empty(), "{query}");
                }
            }
        }
    }
}

#[tokio::test]
async fn trap_3_values_of_subqueries_are_read_where_they_are_used() {
    let fixture = Fixture::new().await;
    let plan = fixture
        .stages("SELECT k, count(*) FROM a WHERE v > (SELECT avg(v) FROM b) GROUP BY k")
        .await;
    let readers: Vec<_> = plan
        .stages
        .iter()
        .filter(|s| has(s, "ScalarSubqueryExec"))
        .collect();
    let [reader] = readers.as_slice() else {
        panic!("{} stages read the value", readers.len());
    };
    assert!(has(reader, "DataSourceExec"));
    assert!(
        reader
            .edges
            .iter()
            .all(|edge| edge.mode == EdgeMode::Broadcast)
    );
}

#[tokio::test]
async fn trap_5_every_dynamic_filter_is_off() {
    let mut fixture = Fixture::new().await;
    fixture
        .define("SET datafusion.optimizer.enable_dynamic_filter_pushdown = true")
        .await;
    let plan = fixture.stages(QUERIES[2]).await;
    let optimizer = &plan.options.optimizer;
    assert!(!optimizer.enable_dynamic_filter_pushdown);
    assert!(!optimizer.enable_join_dynamic_filter_pushdown);
    assert!(!optimizer.enable_topk_dynamic_filter_pushdown);
    assert!(!optimizer.enable_aggregate_dynamic_filter_pushdown);
    assert!(!optimizer.enable_round_robin_repartition);
    assert!(!plan.options.execution.enable_file_stream_work_stealing);
}

#[test]
fn trap_7_one_version_of_each_engine_crate() {
    let lock = include_str!("../../../../Cargo.lock");
    let engine = lock
        .split("[[package]]")
        .find(|entry| entry.contains("name = \"datafusion\"\n"));
    let engine = engine.unwrap();
    // With two versions the lock file would name them with their numbers.
    for name in ["arrow", "object_store", "parquet"] {
        let wanted = format!("\n \"{name}");
        let line = engine
            .lines()
            .find(|line| format!("\n{line}").starts_with(&wanted))
            .unwrap();
        let is_old = !line.contains("60.") && !line.contains("0.14");
        assert!(is_old, "{line}");
    }
}

#[tokio::test]
async fn trap_8_no_shared_build_side_emits_rows() {
    let mut fixture = Fixture::new().await;
    fixture
        .define("SET oxidask.broadcast_bytes = 1000000000")
        .await;
    for join in [
        "LEFT JOIN",
        "FULL JOIN",
        "LEFT SEMI JOIN",
        "LEFT ANTI JOIN",
        "JOIN",
        "RIGHT JOIN",
    ] {
        let select = if join.contains("SEMI") || join.contains("ANTI") {
            "a.s"
        } else {
            "a.s, b.v"
        };
        let query = format!("SELECT {select} FROM a {join} b ON a.k = b.k");
        let plan = fixture.stages(&query).await;
        for stage in plan.stages.iter().filter(|stage| stage.tasks > 1) {
            for node in nodes(stage) {
                let Some(join) = node.downcast_ref::<HashJoinExec>() else {
                    continue;
                };
                let emits = matches!(
                    join.join_type(),
                    JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti
                );
                let is_shared = *join.partition_mode() == PartitionMode::CollectLeft;
                assert!(!(emits && is_shared), "{query}");
            }
        }
    }
}

#[tokio::test]
async fn trap_9_joins_by_a_condition_emit_rows_of_the_side_they_walk() {
    let fixture = Fixture::new().await;
    for (join, is_divided) in [
        ("LEFT JOIN", true),
        ("RIGHT JOIN", true),
        ("FULL JOIN", false),
    ] {
        let plan = fixture
            .stages(&format!("SELECT a.s FROM a {join} b ON a.v < b.v"))
            .await;
        let joins = plan
            .stages
            .iter()
            .find(|stage| has(stage, "NestedLoopJoinExec"))
            .unwrap();
        assert_eq!(joins.tasks > 1, is_divided, "{join}");
        for node in nodes(joins) {
            if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
                assert!(*join.join_type() != JoinType::Left || joins.tasks == 1);
            }
        }
    }
}

#[tokio::test]
async fn trap_10_not_in_has_one_task_for_its_join() {
    let fixture = Fixture::new().await;
    let plan = fixture
        .stages("SELECT s FROM a WHERE k NOT IN (SELECT k FROM b)")
        .await;
    let is_aware = |node: &Arc<dyn ExecutionPlan>| {
        node.downcast_ref::<HashJoinExec>()
            .is_some_and(|join| join.null_aware)
    };
    let joins = plan
        .stages
        .iter()
        .find(|stage| nodes(stage).iter().any(is_aware));
    assert_eq!(joins.unwrap().tasks, 1);
    assert!(
        plan.stages.iter().any(|stage| stage.tasks > 1),
        "the scans are divided"
    );
}

#[tokio::test]
async fn trap_11_limits_stay_and_are_given_to_the_producers() {
    let mut fixture = Fixture::new().await;
    fixture.define("SET oxidask.width = 4").await;
    for query in [
        "SELECT s FROM a LIMIT 7",
        "SELECT s FROM a ORDER BY v LIMIT 7",
    ] {
        let plan = fixture.stages(query).await;
        let [producers, consumer] = plan.stages.as_slice() else {
            panic!("{} stages: {query}", plan.stages.len());
        };
        assert!(producers.tasks > 1);
        for stage in [producers, consumer] {
            let limits = nodes(stage).into_iter().any(|node| {
                let scan = node.downcast_ref::<datafusion::datasource::source::DataSourceExec>();
                node.fetch() == Some(7) || scan.is_some_and(|scan| scan.fetch() == Some(7))
            });
            assert!(limits, "{query}: {}", stage.name);
        }
    }
}

#[tokio::test]
async fn trap_13_no_stage_holds_a_sink() {
    let fixture = Fixture::new().await;
    for query in QUERIES {
        for stage in &fixture.stages(query).await.stages {
            assert!(!has(stage, "DataSinkExec"));
        }
    }
}

#[tokio::test]
async fn trap_14_options_travel() {
    let mut fixture = Fixture::new().await;
    fixture
        .define("SET datafusion.execution.batch_size = 123")
        .await;
    fixture
        .define("SET datafusion.execution.time_zone = '+07:00'")
        .await;
    fixture
        .define("SET datafusion.sql_parser.parse_float_as_decimal = true")
        .await;
    let plan = fixture.stages(QUERIES[0]).await;
    let travelling = super::settings::travelling(&plan.options).unwrap();
    let pairs = travelling
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let config = super::settings::of_stage(pairs).unwrap();
    assert_eq!(config.options().execution.batch_size.get(), 123);
    assert_eq!(
        config.options().execution.time_zone.as_deref(),
        Some("+07:00")
    );
    assert!(config.options().sql_parser.parse_float_as_decimal);
    assert_eq!(config.options().execution.target_partitions, 1);
    let mut entries = config.options().entries();
    entries.retain(|entry| !entry.key.ends_with("target_partitions"));
    for entry in entries {
        let planned = plan
            .options
            .entries()
            .into_iter()
            .find(|other| other.key == entry.key);
        assert_eq!(planned.unwrap().value, entry.value, "{}", entry.key);
    }
}

#[tokio::test]
async fn buckets_are_those_that_their_readers_expect() {
    let mut fixture = Fixture::new().await;
    fixture.define("SET oxidask.width = 8").await;
    for query in QUERIES {
        let plan = fixture.stages(query).await;
        for stage in &plan.stages {
            for edge in &stage.edges {
                let producer = &plan.stages[edge.producer];
                assert_eq!(edge.producers, producer.tasks);
                match (&producer.output, edge.mode) {
                    (StageOutput::Buckets(by), EdgeMode::Shuffle) => {
                        assert_eq!(by.partition_count(), edge.parts.len(), "{query}");
                    }
                    (
                        StageOutput::Whole,
                        EdgeMode::Merge | EdgeMode::Broadcast | EdgeMode::Gather,
                    ) => {}
                    (output, mode) => panic!("{output:?} is read as {mode:?}: {query}"),
                }
                assert!(edge.parts.end <= stage.tasks);
            }
        }
    }
}
