//! Faults and nonsense with many tasks: tiny files, wide files, deep expressions, queries without
//! an end, and secrets that must not travel.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use oxidask_diagnostic::Code;
use oxidask_store::PayloadKind;

use crate::cluster::{Cluster, Graph};
use crate::copies::files;

const ALWAYS: &str = "SET oxidask.stages = 'always'; SET oxidask.width = 4;\n";

/// Seconds to plan a sum over so many files of one row.
async fn planning_seconds(format: &str, count: usize) -> f64 {
    let cluster = Cluster::new();
    let ending = format.to_lowercase();
    cluster
        .plan(&format!("COPY (SELECT 1 AS id) TO 'one.{ending}'"))
        .await
        .unwrap();
    let one = std::fs::read(cluster.base_dir.join(format!("one.{ending}"))).unwrap();
    for file in 0..count {
        cluster.file(&format!("in/{file}.{ending}"), &one);
    }
    let text = format!(
        "{ALWAYS}CREATE EXTERNAL TABLE t STORED AS {format} LOCATION 'in/';
         SELECT sum(id) AS s FROM t"
    );
    let (_, rows) = cluster.batches(&text).await.unwrap();
    let sum = datafusion::arrow::array::AsArray::as_primitive::<
        datafusion::arrow::datatypes::Int64Type,
    >(rows[0].column(0));
    assert_eq!(sum.value(0), i64::try_from(count).unwrap());
    // The better of two, now that the files are not being written to the disk any more.
    let mut best = f64::INFINITY;
    for _ in 0..2 {
        let begun = Instant::now();
        let planned = cluster.plan(&text).await.unwrap();
        best = best.min(begun.elapsed().as_secs_f64());
        assert_eq!(planned.kind, PayloadKind::Graph);
    }
    best
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_tiny_files_are_planned_in_time() {
    for format in ["CSV", "PARQUET"] {
        let few = planning_seconds(format, 5_000).await;
        let many = planning_seconds(format, 20_000).await;
        eprintln!(
            "{format}: {:.0} and {:.0} µs a file",
            few / 5e3 * 1e6,
            many / 2e4 * 1e6
        );
        assert!(
            many < 12.0 * few.max(0.1),
            "{format}: {few} s, then {many} s for four times as many"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_ten_thousand_columns() {
    let cluster = Cluster::new();
    let mut text = String::new();
    for column in 0..10_000 {
        write!(text, "{}c{column}", if column == 0 { "" } else { "," }).unwrap();
    }
    for row in 0..20 {
        text.push('\n');
        let cells: Vec<_> = (0..10_000)
            .map(|column| (row * column % 7).to_string())
            .collect();
        text.push_str(&cells.join(","));
    }
    cluster.file("wide.csv", text);
    let begun = Instant::now();
    let copy = format!(
        "{ALWAYS}CREATE EXTERNAL TABLE w STORED AS CSV LOCATION 'wide.csv';
         COPY w TO 'out/' STORED AS PARQUET"
    );
    let planned = cluster.plan(&copy).await.unwrap();
    let results = cluster.run(&Graph::decode(&planned)).await.unwrap();
    assert_eq!(results[0].parts.concat(), b"20");
    let query = format!(
        "{ALWAYS}CREATE EXTERNAL TABLE w STORED AS PARQUET LOCATION 'out/';
         SELECT c9999 % 3 AS k, sum(c1) AS a, max(c5000) AS b FROM w GROUP BY 1"
    );
    let (_, rows) = cluster.batches(&query).await.unwrap();
    assert!(rows.iter().map(RecordBatch::num_rows).sum::<usize>() > 1);
    eprintln!("ten thousand columns: {:?}", begun.elapsed());
    let everything = format!(
        "{ALWAYS}CREATE EXTERNAL TABLE w STORED AS PARQUET LOCATION 'out/'; SELECT * FROM w"
    );
    let (schema, _) = cluster.batches(&everything).await.unwrap();
    assert_eq!(schema.fields().len(), 10_000);
}

/// The code of the error of a query over a table `t` with a column `x`, if there is one.
async fn outcome(query: String) -> Option<Code> {
    let cluster = Cluster::new();
    cluster.file("a.csv", "x\n1\n2\n");
    let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv';";
    let outcome = cluster.tables(&format!("{ALWAYS}{table}\n{query}")).await;
    outcome.err().map(|error| error.diagnostic.code)
}

/// As a worker runs it: on one of the runtime's own threads.
async fn deep(query: String) -> Option<Code> {
    tokio::spawn(outcome(query)).await.unwrap()
}

/// On a stack of the size that a worker's threads have.
#[test]
fn deep_expressions_are_computed_or_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for count in [50, 90, 300, 500] {
            let sum = vec!["x"; count].join(" + ");
            assert_eq!(
                deep(format!("SELECT {sum} AS s FROM t")).await,
                None,
                "{count}"
            );
            let cases: String = (0..count / 2).map(|_| "CASE WHEN x > 1 THEN ").collect();
            let ends: String = (0..count / 2).map(|_| " ELSE 0 END").collect();
            let nested = deep(format!("SELECT {cases}x{ends} AS s FROM t")).await;
            assert!(
                nested.is_none() || is_refusal(nested),
                "{count}: {nested:?}"
            );
            let calls = format!("{}x{}", "abs(".repeat(count / 2), ")".repeat(count / 2));
            let nested = deep(format!("SELECT {calls} AS s FROM t")).await;
            assert!(
                nested.is_none() || is_refusal(nested),
                "{count}: {nested:?}"
            );
            let queries = count / 10;
            let query = (0..queries).fold("SELECT x FROM t".to_owned(), |inner, number| {
                format!("SELECT x, max(x) AS m{number} FROM ({inner}) GROUP BY x")
            });
            let nested = deep(query).await;
            assert!(
                nested.is_none() || is_refusal(nested),
                "{count}: {nested:?}"
            );
        }
        for count in [5_000, 100_000] {
            let sum = vec!["x"; count].join(" + ");
            assert!(is_refusal(deep(format!("SELECT {sum} AS s FROM t")).await));
            let open = format!("{}x{}", "(".repeat(count), ")".repeat(count));
            assert!(is_refusal(deep(format!("SELECT {open} AS s FROM t")).await));
        }
    });
}

fn is_refusal(code: Option<Code>) -> bool {
    code.is_some_and(|code| (200..300).contains(&code.number()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cross_join_without_an_end_is_cancelled() {
    for text in [
        "SELECT count(*) AS c FROM t a, t b, t c, t d WHERE a.x + b.x + c.x + d.x < -1",
        "COPY (SELECT a.x FROM t a, t b, t c, t d) TO 'out/' STORED AS CSV",
    ] {
        let mut cluster = Cluster::new();
        for file in 0..4 {
            let rows = (0..3_000).fold(String::new(), |rows, row| rows + &row.to_string() + "\n");
            cluster.file(&format!("in/{file}.csv"), format!("x\n{rows}"));
        }
        cluster.slots = 1;
        let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in/';\n";
        let planned = cluster
            .plan(&format!("{ALWAYS}{table}{text}"))
            .await
            .unwrap();
        assert_eq!(planned.kind, PayloadKind::Graph);
        let graph = Graph::decode(&planned);
        let token = cluster.cancelled.clone();
        let (outcome, cancelled) = tokio::join!(cluster.run(&graph), async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            token.cancel();
            Instant::now()
        });
        assert!(outcome.is_err(), "{text}");
        assert!(
            cancelled.elapsed() < Duration::from_secs(10),
            "{:?}",
            cancelled.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
        let left = files(&cluster.base_dir);
        assert!(left.iter().all(|name| name.starts_with("in/")), "{left:?}");
        assert_eq!(
            files(&cluster.dir.path().join("scratch")),
            Vec::<String>::new()
        );
    }
}
