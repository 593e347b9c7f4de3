//! `EXPLAIN` and `EXPLAIN ANALYZE`, in one task and as stages.

use datafusion::arrow::array::AsArray;
use oxidask_exec_frame::{explain, script};
use oxidask_store::Payload;

use crate::cluster::{Cluster, Graph};

const ALWAYS: &str = "SET oxidask.stages = 'always'; SET oxidask.width = 2;\n";
const TABLES: &str = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in/';
    CREATE EXTERNAL TABLE names STORED AS CSV LOCATION 'names.csv';\n";
const QUERY: &str = "SELECT n.name, sum(t.id) AS total FROM t JOIN names n ON t.half = n.half
    WHERE t.id > 3 GROUP BY n.name ORDER BY total DESC";

fn with_input() -> Cluster {
    let cluster = Cluster::new();
    for file in 0..2 {
        let lines = (0..10).map(|row| format!("{},{}", file * 10 + row, row % 2));
        let rows = lines.collect::<Vec<_>>().join("\n");
        cluster.file(&format!("in/{file}.csv"), format!("id,half\n{rows}"));
    }
    cluster.file("names.csv", "half,name\n0,even\n1,odd\n");
    cluster
}

async fn lines(cluster: &Cluster, text: &str) -> Vec<String> {
    let (schema, rows) = match cluster.batches(text).await {
        Ok(table) => table,
        Err(error) => panic!("{}", error.diagnostic),
    };
    assert_eq!(schema.fields().len(), 1);
    assert_eq!(schema.field(0).name(), "plan");
    let lines = rows.iter().flat_map(|batch| {
        let column = batch.column(0).as_string::<i32>();
        column
            .iter()
            .map(|line| line.unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    let lines: Vec<String> = lines.collect();
    lines
}

fn has(lines: &[String], words: &[&str]) {
    let found = lines
        .iter()
        .any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "{words:?} not in\n{}", lines.join("\n"));
}

#[tokio::test]
async fn stages_are_shown_with_what_they_read_and_send() {
    let cluster = with_input();
    let shown = lines(&cluster, &format!("{ALWAYS}{TABLES}EXPLAIN {QUERY}")).await;
    assert!(
        shown[0].contains("stages") && shown[0].contains("tasks"),
        "{}",
        shown[0]
    );
    has(&shown, &["stage 1: "]);
    has(&shown, &["read t: 2 files"]);
    has(&shown, &["read names: 1 file", "columns"]);
    has(&shown, &["filter", "id > 3"]);
    has(&shown, &["sends rows to stage", "by the hash of name"]);
    has(
        &shown,
        &[
            "sends all rows to stage",
            "in the order of total descending",
        ],
    );
    has(&shown, &["gives the result"]);
    let numbers = shown
        .iter()
        .any(|line| line.contains("id@") || line.contains("Exec"));
    assert!(!numbers, "the engine's words:\n{}", shown.join("\n"));
    let verbose = lines(
        &cluster,
        &format!("{ALWAYS}{TABLES}EXPLAIN VERBOSE {QUERY}"),
    )
    .await;
    has(&verbose, &["the engine's plan of stage 1"]);
    has(&verbose, &["DataSourceExec"]);
}

#[tokio::test]
async fn one_task_is_shown_with_the_reason() {
    let cluster = with_input();
    let shown = lines(&cluster, &format!("{TABLES}EXPLAIN {QUERY}")).await;
    assert!(
        shown[0].contains("one task") && shown[0].contains(" ms of work"),
        "{}",
        shown[0]
    );
    let never = "SET oxidask.stages = 'never';";
    let shown = lines(&cluster, &format!("{never}{TABLES}EXPLAIN {QUERY}")).await;
    assert!(
        shown[0].contains("`oxidask.stages` is `never`"),
        "{}",
        shown[0]
    );
    let shown = lines(&cluster, &format!("{TABLES}EXPLAIN ANALYZE {QUERY}")).await;
    has(&shown, &["time "]);
    has(&shown, &["22 rows in", "2 rows out"]);
    has(&shown, &["read t: 2 files", "[20 rows"]);
}

#[tokio::test]
async fn a_run_as_stages_is_measured() {
    let cluster = with_input();
    let text = format!("{ALWAYS}{TABLES}EXPLAIN ANALYZE {QUERY}");
    let graph = Graph::decode(&cluster.plan(&text).await.unwrap());
    assert_eq!(
        graph.tasks.last().unwrap().inputs.len(),
        graph.tasks.len() - 1
    );
    let shown = lines(&cluster, &text).await;
    has(&shown, &["in all, median", "longest", "skew"]);
    has(&shown, &["read t: 2 files", "[20 rows"]);
    has(&shown, &["filter", "[16 rows"]);
    has(&shown, &["stage", "1 task"]);
    has(&shown, &["2 rows out"]);
    has(&shown, &["gives the result, which is not kept"]);
}

#[tokio::test]
async fn writes_are_shown_but_not_made() {
    let cluster = with_input();
    let copy = "COPY t TO 'out/' STORED AS CSV";
    for settings in ["", ALWAYS] {
        let text = format!("{settings}{TABLES}EXPLAIN {copy}");
        let shown = lines(&cluster, &text).await;
        has(&shown, &["writes", "out"]);
    }
    assert!(!cluster.base_dir.join("out").exists());
}

#[tokio::test]
async fn a_whole_text_is_told_to_a_command() {
    let cluster = with_input();
    let size = script::ClusterSize {
        workers: 2,
        slots: 4,
        memory_bytes: 1 << 30,
    };
    let text =
        format!("{TABLES}{QUERY};\nSET oxidask.stages = 'always';\nCOPY t TO 'o/' STORED AS CSV");
    let told = explain(text, "q.sql".to_owned(), cluster.base_dir.clone(), size).await;
    let told = told.unwrap_or_else(|error| panic!("{error}"));
    assert!(
        told.starts_with("statement 3 (q.sql:3): one task"),
        "{told}"
    );
    assert!(told.contains("\n\nstatement 5 (q.sql:6): "), "{told}");
    assert!(told.contains("writes parts of"), "{told}");
    let later = "COPY (SELECT 1 AS a) TO 'later.csv';
        CREATE EXTERNAL TABLE later STORED AS CSV LOCATION 'later.csv'; SELECT a FROM later";
    let told = explain(
        later.to_owned(),
        "q.sql".to_owned(),
        cluster.base_dir.clone(),
        size,
    );
    let told = told.await.unwrap_or_else(|error| panic!("{error}"));
    assert!(
        told.contains("statement 3 (q.sql:2): not to be told before a COPY"),
        "{told}"
    );
    let error = explain(
        "SELECT nothing FROM nowhere".to_owned(),
        "q.sql".to_owned(),
        cluster.base_dir.clone(),
        size,
    );
    let error = error.await.unwrap_err();
    assert!(
        error.message.starts_with("statement 1 (q.sql:1): "),
        "{error}"
    );
    let _: Payload = cluster.plan("SELECT 1").await.unwrap();
}
