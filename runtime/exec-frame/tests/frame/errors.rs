//! What is wrong is named: the statement, the table, the file, the line.

use oxidask_diagnostic::{Code, Diagnostic};

use crate::harness::Worker;

fn check(error: &Diagnostic, code: Code, parts: &[&str]) {
    assert_eq!(error.code, code, "{error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    let first = error.message.lines().next().unwrap_or_default();
    assert!(!first.ends_with('.'), "{first}");
    assert!(!text.contains("datafusion.public"), "{text}");
}

#[tokio::test]
async fn unknown_tables_columns_and_functions() {
    let worker = Worker::new();
    worker.file("a.csv", "carrier,delay\nUA,1\n");
    let table = "CREATE EXTERNAL TABLE flights STORED AS CSV LOCATION 'a.csv';\n\n";
    let error = worker.error(&format!("{table}SELECT * FROM flihgts")).await;
    check(
        &error,
        Code::SqlPlan,
        &[
            "statement 2 (test.sql:3): table 'flihgts' not found",
            "did you mean `flights`?",
        ],
    );
    let error = worker.error("SELECT * FROM nothing").await;
    check(
        &error,
        Code::SqlPlan,
        &["'nothing' not found", "CREATE EXTERNAL TABLE"],
    );
    let error = worker
        .error(&format!("{table}SELECT carier FROM flights"))
        .await;
    check(
        &error,
        Code::SqlPlan,
        &[
            "statement 2 (test.sql:3): ",
            "no column named `carier`",
            "carrier",
            "delay",
        ],
    );
    let error = worker
        .error(&format!("{table}SELECT avrg(delay) FROM flights"))
        .await;
    check(&error, Code::SqlPlan, &["avrg", "avg"]);
    let error = worker
        .error(&format!("{table}SELECT carrier, sum(delay) FROM flights"))
        .await;
    check(&error, Code::SqlPlan, &["carrier"]);
    let error = worker.error(&format!("{table}{table}SELECT 1")).await;
    check(
        &error,
        Code::SqlPlan,
        &["statement 2", "`flights` exists already"],
    );
    let error = worker
        .error("CREATE VIEW v AS SELECT x FROM nowhere; SELECT 1")
        .await;
    check(&error, Code::SqlPlan, &["statement 1", "nowhere"]);
    let error = worker
        .error("SET datafusion.execution.no_such_option = 1")
        .await;
    check(&error, Code::SqlPlan, &["no_such_option"]);
}

#[tokio::test]
async fn missing_files_are_named() {
    let worker = Worker::new();
    worker.file("data/readme.txt", "no table");
    std::fs::create_dir(worker.path("empty")).unwrap();
    for (location, parts) in [
        (
            "nowhere/f.parquet",
            [
                "`nowhere/f.parquet` does not exist",
                "base/nowhere/f.parquet",
            ],
        ),
        (
            "nowhere/",
            ["`nowhere/` does not exist", "statement 1 (test.sql:1)"],
        ),
        ("data/", ["holds no `.parquet` file", "readme.txt"]),
        (
            "empty/",
            [
                "the folder `empty/` holds no `.parquet` file",
                "statement 1",
            ],
        ),
        (
            "data/*.parquet",
            ["no file matches `data/*.parquet`", "statement 1"],
        ),
    ] {
        let text =
            format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{location}'; SELECT 1");
        let error = worker.task_error(&text).await;
        assert!(!error.is_retryable, "{location}");
        check(&error.diagnostic, Code::DataUnreadable, &parts);
    }
    let text = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'http://host/a.csv'; SELECT 1";
    check(
        &worker.error(text).await,
        Code::SqlUnsupported,
        &["http://"],
    );
    let text = "CREATE EXTERNAL TABLE t STORED AS AVRO LOCATION 'a.avro'; SELECT 1";
    check(&worker.error(text).await, Code::SqlUnsupported, &["AVRO"]);
}

async fn csv_error(content: &[u8]) -> Diagnostic {
    let worker = Worker::new();
    worker.file("a.csv", content);
    worker
        .error("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv'; SELECT * FROM t")
        .await
}

#[tokio::test]
async fn broken_csv_names_file_and_line() {
    let error = csv_error(b"a,b\n1,x\n2,\"never closed\n3,z\n4,w\n").await;
    check(
        &error,
        Code::DataUnreadable,
        &["base/a.csv:3: a quoted value begins here and is never"],
    );
    let error = csv_error(b"a,b\n1,\"x\"y\n").await;
    check(
        &error,
        Code::DataUnreadable,
        &["base/a.csv:2: ", "closing quote"],
    );
    let error = csv_error(b"a,b\n1,x\n2,y,extra\n").await;
    check(
        &error,
        Code::DataUnreadable,
        &["base/a.csv:3: incorrect number of fields"],
    );
    let error = csv_error(b"a,b\n1,x\n2\n").await;
    check(
        &error,
        Code::DataUnreadable,
        &["base/a.csv:3: incorrect number of fields"],
    );
    let error = csv_error(b"a,b\n1,x\n2,\xff\xfe\n").await;
    check(&error, Code::DataUnreadable, &["base/a.csv:3: ", "UTF-8"]);
}

#[tokio::test]
async fn a_fault_deep_in_the_second_file_is_found() {
    let worker = Worker::new();
    let lines: Vec<_> = (0..50_000).map(|i| format!("{i},word {i}\n")).collect();
    let good = lines.concat();
    worker.file("d/a.csv", format!("id,w\n{good}"));
    for (fault, parts) in [
        ("7,x,y", ["d/b.csv:50002: ", "incorrect number of fields"]),
        ("seven,x", ["d/b.csv:50002: ", "seven"]),
    ] {
        worker.file("d/b.csv", format!("id,w\n{good}{fault}\n{good}"));
        let error = worker
            .error("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'd/'; SELECT sum(id) FROM t")
            .await;
        check(&error, Code::DataUnreadable, &parts);
    }
}

#[tokio::test]
async fn broken_json_names_file_and_line() {
    for (content, part) in [
        (
            "{\"a\":1}\n{\"a\":\n{\"a\":2}\n",
            "a.json:2: the line is not one JSON object",
        ),
        (
            "{\"a\":1}\n[1]\n",
            "a.json:2: the line is not one JSON object",
        ),
        (
            "{\"a\":1}\nhello\n",
            "a.json:2: the line is not one JSON object",
        ),
    ] {
        let worker = Worker::new();
        worker.file("a.json", content);
        let text = "CREATE EXTERNAL TABLE t STORED AS JSON LOCATION 'a.json'; SELECT * FROM t";
        check(&worker.error(text).await, Code::DataUnreadable, &[part]);
    }
}

#[tokio::test]
async fn broken_parquet_names_the_file() {
    let worker = Worker::new();
    worker
        .sql("COPY (SELECT value FROM range(0, 100000)) TO 'd/a.parquet'")
        .await
        .unwrap();
    let whole = std::fs::read(worker.path("d/a.parquet")).unwrap();
    let text = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'd/'; SELECT sum(value) FROM t";
    for (content, part) in [
        (
            &whole[..whole.len() / 2],
            "d/b.parquet` is not a whole Parquet file: its end is missing",
        ),
        (&whole[..5], "d/b.parquet`"),
        (&b""[..], "d/b.parquet` is empty"),
        (
            &b"id,name\n1,this is a CSV file\n"[..],
            "d/b.parquet` is not a Parquet file",
        ),
    ] {
        worker.file("d/b.parquet", content);
        check(&worker.error(text).await, Code::DataUnreadable, &[part]);
    }
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[10..middle].fill(0x55);
    worker.file("d/b.parquet", &damaged);
    match worker.sql(text).await {
        Ok(results) => panic!("{:?}", crate::harness::rows(&results[0])),
        Err(error) => check(&error.diagnostic, Code::DataUnreadable, &["statement 2"]),
    }
}

#[tokio::test]
async fn values_that_an_expression_cannot_take() {
    let worker = Worker::new();
    for (text, part) in [
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT CAST('x' AS INT)", "'x'"),
        (
            "SELECT CAST(v AS INT) FROM (VALUES ('1'), ('x')) AS t (v)",
            "'x'",
        ),
        (
            "SELECT CAST(v AS TINYINT) FROM (VALUES (1000)) AS t (v)",
            "1000",
        ),
        (
            "SELECT (SELECT v FROM (VALUES (1), (2)) AS t (v))",
            "more than one row",
        ),
    ] {
        let error = worker.task_error(&format!("\n{text}")).await;
        assert!(!error.is_retryable, "{text}");
        check(
            &error.diagnostic,
            Code::QueryFailed,
            &["statement 1 (test.sql:2): ", part],
        );
    }
}

#[tokio::test]
async fn deep_and_long_statements_do_not_crash() {
    let worker = Worker::new();
    let nested = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    check(
        &worker.error(&nested).await,
        Code::SqlSyntax,
        &["nested too deeply"],
    );
    let nested = format!("SELECT {}1{}", "abs(".repeat(10_000), ")".repeat(10_000));
    check(
        &worker.error(&nested).await,
        Code::SqlSyntax,
        &["nested too deeply"],
    );
    // A long chain is a deep tree without any nesting in the text: a result or an error.
    for count in [100, 1_000, 10_000, 100_000] {
        let chain = format!("SELECT {} AS s", vec!["1"; count].join(" + "));
        match worker.sql(&chain).await {
            Ok(_) => {}
            Err(error) => check(
                &error.diagnostic,
                Code::LimitPassed,
                &["test.sql:1:1: more than"],
            ),
        }
        let chain = format!("SELECT 1 AS x WHERE {}", vec!["1 = 1"; count].join(" OR "));
        match worker.sql(&chain).await {
            Ok(_) => {}
            Err(error) => check(&error.diagnostic, Code::LimitPassed, &[]),
        }
    }
    let list = (0..20_000)
        .map(|i| i.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let rows = worker
        .rows(&format!("SELECT 19999 IN ({list}) AS found"))
        .await;
    assert_eq!(rows[0]["found"], true);
}
