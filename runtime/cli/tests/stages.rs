//! SQL in stages: the same output as in one task, whatever becomes of the job.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::{Workspace, eventually};

const TIDY: Duration = Duration::from_secs(2);

/// Many numbers and a few words, so that joins, sorts and groups have work.
const TABLES: &str = "
    CREATE VIEW numbers AS SELECT value AS n, value % 97 AS k FROM generate_series(1, 200000);
    CREATE VIEW words AS SELECT value AS k, concat('word-', value) AS word FROM generate_series(0, 96);
";

/// With and without an order of their own; empty results; a write and what reads it.
const STATEMENTS: &str = "
    SELECT k, count(*) AS c, sum(n) AS s FROM numbers GROUP BY k ORDER BY k;
    SELECT word, max(n) AS most FROM numbers JOIN words USING (k) GROUP BY word ORDER BY word LIMIT 7;
    SELECT n FROM numbers WHERE n < 0;
    SELECT 1 AS one;
    COPY (SELECT k, count(*) AS c FROM numbers GROUP BY k) TO 'out/' STORED AS PARQUET;
    CREATE EXTERNAL TABLE copied STORED AS PARQUET LOCATION 'out/';
    SELECT count(k) AS groups, sum(c) AS rows FROM copied;
    COPY (SELECT count(c) AS groups FROM copied) TO 'count.csv';
    CREATE EXTERNAL TABLE counted STORED AS CSV LOCATION 'count.csv'
        OPTIONS ('format.has_header' 'true');
    SELECT * FROM counted;
    SELECT n, k FROM numbers WHERE n > 199990 ORDER BY n DESC;
";

fn job(stages: &str, width: u32, statements: &str) -> (Workspace, String) {
    let workspace = Workspace::new();
    let text = format!(
        "SET oxidask.stages = '{stages}'; SET oxidask.width = {width};\n{TABLES}\n{statements}"
    );
    let file = workspace.sql_job(2, &text);
    (workspace, file.display().to_string())
}

/// Standard output and the lines about writes.
fn outcome(stages: &str, width: u32, form: &str) -> (String, Vec<String>) {
    let (workspace, file) = job(stages, width, STATEMENTS);
    let run = workspace.run(&["run", &file, "-o", form]).expect(0);
    workspace.assert_clean(TIDY);
    let lines = run.stderr.lines().filter(|line| line.contains(" wrote "));
    (run.stdout, lines.map(str::to_owned).collect())
}

#[test]
fn several_statements_give_the_same_in_one_task_and_in_stages() {
    for form in ["json", "table"] {
        let (expected, written) = outcome("never", 0, form);
        assert_eq!(written.len(), 2, "{written:?}");
        assert!(expected.contains("200000"), "{expected}");
        for width in [1, 3] {
            let (stdout, lines) = outcome("always", width, form);
            assert_eq!(stdout, expected, "width {width}, {form}");
            assert_eq!(lines, written, "width {width}, {form}");
        }
    }
}

#[test]
fn parts_of_a_result_are_one_table_and_empty_ones_are_nothing() {
    // Without an order each partition is a part, most of them empty.
    let statements = "SELECT k, count(*) AS c FROM numbers WHERE k < 3 GROUP BY k;
        SELECT n, k FROM numbers WHERE n < 0 AND k IN (1, 2);
        SELECT k FROM numbers WHERE n = 5;";
    let (workspace, file) = job("always", 8, statements);
    let run = workspace.run(&["run", &file, "-o", "table"]).expect(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    let headings = lines.iter().filter(|line| line.starts_with("k "));
    assert_eq!(headings.count(), 1, "{}", run.stdout);
    let mut rows = lines[2..5].to_vec();
    rows.sort_unstable();
    assert_eq!(rows, ["0  2061", "1  2062", "2  2062"], "{}", run.stdout);
    assert_eq!(
        lines[5..],
        ["", "n  k", "─  ─", "", "k", "─", "5"],
        "{}",
        run.stdout
    );
}

#[test]
fn progress_names_stages_with_rows() {
    let (workspace, file) = job(
        "always",
        3,
        "SELECT k, count(*) AS c FROM numbers GROUP BY k;",
    );
    let run = workspace
        .run(&["run", &file, "--progress", "json"])
        .expect(0);
    let done: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(done["type"], "done");
    // A task that plans, one that reads and three that group.
    assert!(done["tasks"].as_u64().unwrap() >= 5, "{done}");
}

#[test]
fn an_error_in_a_stage_names_the_statement_and_earlier_results_are_printed() {
    let statements = "SELECT count(n) AS c FROM numbers;
        COPY (SELECT 1 AS one) TO 'one.csv';
        SELECT k, sum(100 / (n - 5)) AS s FROM numbers GROUP BY k;";
    let (workspace, file) = job("always", 3, statements);
    let run = workspace.run(&["run", &file, "-o", "json"]).expect(1);
    assert_eq!(run.stdout, "{\"c\":200000}\n");
    assert!(run.stderr.contains("statement 7 ("), "{}", run.stderr);
    assert!(run.stderr.contains("error[OX225]"), "{}", run.stderr);
    workspace.assert_clean(TIDY);
}

#[test]
fn an_interrupted_job_stops_its_stages_on_the_cluster() {
    let workspace = Workspace::new();
    workspace.cluster(2);
    let up = workspace.start(&["up", "cluster.yaml"]);
    up.await_stdout("oxidask submit");
    let (scheduler, tls_dir) = (
        value(&up.stdout(), "scheduler "),
        value(&up.stdout(), "tls dir "),
    );
    let text = "SET oxidask.stages = 'always'; SET oxidask.width = 3;
        CREATE VIEW numbers AS SELECT value AS n, value % 97 AS k FROM generate_series(1, 2000000);
        SELECT a.k, count(*) AS c
        FROM (SELECT n, k FROM numbers ORDER BY random()) AS a
            JOIN (SELECT k FROM numbers ORDER BY random()) AS b ON a.k = b.k AND a.n % 2 <> 5
        GROUP BY a.k;";
    workspace.sql_job(2, text);
    let connect = ["--scheduler", &scheduler, "--tls-dir", &tls_dir];
    let submit = workspace.start(&[&["submit", "job.yaml"][..], &connect].concat());
    let graphs = || {
        let status = workspace.run(&[&["status", "-o", "json"][..], &connect].concat());
        let lines = status.expect(0).json().into_iter();
        let graphs = lines.filter(|line| line["kind"] == "graph");
        graphs
            .map(|line| line["name"].to_string())
            .collect::<Vec<_>>()
    };
    eventually("the stages to run", Duration::from_secs(20), || {
        graphs().iter().any(|name| name.contains("/query-1"))
    });
    submit.signal(Signal::INT);
    submit.finish().expect(130);
    eventually("the graphs to go", TIDY, || graphs().is_empty());
    up.signal(Signal::INT);
    up.finish().expect(130);
    workspace.assert_clean(TIDY);
}

/// The value in a line such as `  scheduler  oxidask://…`.
fn value(text: &str, name: &str) -> String {
    let value = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name));
    value.unwrap_or_default().trim().to_owned()
}

#[test]
fn explain_shows_the_stages_and_runs_nothing() {
    let (workspace, file) = job("always", 3, STATEMENTS);
    let run = workspace.run(&["explain", &file]).expect(0);
    assert!(run.stdout.contains("stage 1"), "{}", run.stdout);
    for name in ["out", "count.csv"] {
        assert!(!fs::exists(workspace.path().join(name)).unwrap());
    }
    workspace.assert_clean(TIDY);
    let graph = workspace.graph_job(1, r#"{"key": "a", "op": "noop"}"#);
    let run = workspace
        .run(&["explain", &graph.display().to_string()])
        .expect(2);
    assert!(run.stderr.contains("holds no SQL text"), "{}", run.stderr);
    let syntax = workspace.sql_job(1, "SELEKT 1");
    workspace
        .run(&["explain", &syntax.display().to_string()])
        .expect(2);
}
