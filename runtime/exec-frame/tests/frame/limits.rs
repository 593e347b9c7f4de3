//! Memory has a bound with a name, work can be ended, and the same query gives the same rows.

use std::time::{Duration, Instant};

use oxidask_diagnostic::Code;

use crate::harness::Worker;

#[tokio::test]
async fn a_result_that_does_not_fit_is_named() {
    let mut worker = Worker::new();
    worker.memory_bytes = 64 << 20;
    let error = worker
        .task_error("SELECT value, CAST(value AS VARCHAR) AS text FROM range(0, 20000000)")
        .await;
    assert_eq!(
        error.diagnostic.code,
        Code::MemoryExceeded,
        "{}",
        error.diagnostic
    );
    assert!(
        error.diagnostic.to_string().contains("the query's result"),
        "{}",
        error.diagnostic
    );
    assert!(!error.is_retryable);
    assert!(worker.scratch().is_empty());
}

#[tokio::test]
async fn a_join_that_does_not_fit_goes_to_the_disk() {
    let mut worker = Worker::new();
    worker.memory_bytes = 64 << 20;
    let rows = worker
        .rows(
            "SELECT count(*) AS n FROM range(0, 6000000) a JOIN range(0, 6000000) b
               ON a.value = b.value WHERE a.value + b.value > 5",
        )
        .await;
    assert_eq!(rows[0]["n"], 5_999_997);
    assert!(worker.scratch().is_empty());
}

#[tokio::test]
async fn what_cannot_work_on_the_disk_names_who_holds_the_memory() {
    let mut worker = Worker::new();
    worker.memory_bytes = 64 << 20;
    let error = worker
        .error("SELECT cardinality(array_agg(CAST(value AS VARCHAR))) FROM range(0, 10000000)")
        .await;
    assert_eq!(error.code, Code::MemoryExceeded, "{error}");
    assert!(error.to_string().contains("Aggregate"), "{error}");
    assert!(error.to_string().contains("`67108864`"), "{error}");
    assert!(
        error.message.starts_with("statement 1 (test.sql:1): "),
        "{error}"
    );
}

#[tokio::test]
async fn a_large_sort_spills_into_the_scratch_folder_and_tidies_up() {
    let mut worker = Worker::new();
    worker.memory_bytes = 256 << 20;
    let rows = worker
        .rows(
            "SELECT max(n) AS n FROM (SELECT row_number() OVER (ORDER BY sin(value), value) AS n
               FROM range(0, 4000000))",
        )
        .await;
    assert_eq!(rows[0]["n"], 4_000_000);
    assert!(worker.scratch().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_query_ends_at_once() {
    let worker = Worker::new();
    let token = worker.cancelled.clone();
    let (ended, at) = tokio::join!(
        worker
            .sql("SELECT sum(sin(a.value * b.value)) FROM range(0, 200000) a, range(0, 200000) b"),
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            token.cancel();
            Instant::now()
        }
    );
    assert!(ended.is_err());
    assert!(at.elapsed() < Duration::from_secs(10), "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_query_gives_the_same_bytes() {
    let worker = Worker::new();
    worker
        .sql("COPY (SELECT value AS id, sin(value) AS x FROM range(0, 300000)) TO 'a.parquet'")
        .await
        .unwrap();
    let text = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'a.parquet';
        SELECT * FROM t WHERE id % 7 = 3; SELECT sum(x) AS s, avg(x) AS a FROM t";
    let first: Vec<_> = worker
        .sql(text)
        .await
        .unwrap()
        .iter()
        .map(|p| p.parts.concat())
        .collect();
    for _ in 0..5 {
        let again: Vec<_> = worker
            .sql(text)
            .await
            .unwrap()
            .iter()
            .map(|p| p.parts.concat())
            .collect();
        assert!(first == again);
    }
}

#[tokio::test]
async fn a_session_costs_little() {
    let worker = Worker::new();
    worker.rows("SELECT 1 AS one").await;
    let start = Instant::now();
    for _ in 0..20 {
        worker.rows("SELECT 1 AS one").await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}
