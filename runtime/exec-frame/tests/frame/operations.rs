//! The operations of graph files: `read`, `sql` and `write`.

use oxidask_diagnostic::Code;
use oxidask_exec::{Body, TableToCsv};
use oxidask_exec_frame::{CsvTables, render};
use oxidask_store::{Payload, PayloadKind};
use serde_json::json;

use crate::harness::{Worker, files, rows};

#[tokio::test]
async fn read_query_and_write() {
    let worker = Worker::new();
    worker.file("d/a.csv", "id;w\n1;x\n2;NA\n");
    worker.file("d/b.csv", "id;w\n3;z\n");
    let body = Body::new("read")
        .with("location", "d/")
        .with("format", "csv")
        .with(
            "options",
            json!({"delimiter": ";", "header": true, "nulls": "NA"}),
        );
    let table = worker.run(&body, Vec::new()).await.unwrap();
    let mut seen = rows(&table);
    seen.sort_by_key(|row| row["id"].as_i64());
    assert_eq!(seen[1], json!({"id": 2, "w": null}));

    let body = Body::new("sql")
        .with(
            "query",
            "SELECT l.id, \"R\".w FROM left_one l JOIN \"R\" ON l.id = \"R\".id ORDER BY 1 DESC;",
        )
        .with("as", json!(["left_one", "R"]));
    let joined = worker
        .run(&body, vec![table.clone(), table.clone()])
        .await
        .unwrap();
    assert_eq!(rows(&joined)[0], json!({"id": 3, "w": "z"}));

    let body = Body::new("write").with("location", "out/t.parquet");
    let count = worker.run(&body, vec![joined.clone()]).await.unwrap();
    assert_eq!(count, Payload::new(PayloadKind::Value, "3"));
    let body = Body::new("read").with("location", "out/t.parquet");
    let again = worker.run(&body, Vec::new()).await.unwrap();
    assert_eq!(rows(&again), rows(&joined));

    let body = Body::new("write")
        .with("location", "parts/")
        .with("format", "json")
        .with("partitionBy", json!(["id"]));
    worker.run(&body, vec![joined.clone()]).await.unwrap();
    assert_eq!(
        files(&worker.path("parts")),
        [
            "id=1/part-00000.json",
            "id=2/part-00000.json",
            "id=3/part-00000.json"
        ]
    );
    let error = worker.run(&body, vec![joined]).await.unwrap_err();
    assert_eq!(error.diagnostic.code, Code::DataUnwritable);
}

#[tokio::test]
async fn arguments_and_inputs_that_do_not_fit() {
    let worker = Worker::new();
    let table = worker.sql("SELECT 1 AS one").await.unwrap().remove(0);
    let sql = |query: &str, names: serde_json::Value| {
        Body::new("sql").with("query", query).with("as", names)
    };
    for (body, inputs, code, part) in [
        (
            sql("SELECT 1", json!([])),
            vec![table.clone()],
            Code::OperationUnknown,
            "1 inputs",
        ),
        (
            sql("SELECT * FROM a", json!(["a"])),
            vec![Payload::null()],
            Code::OperationUnknown,
            "input `a` is not a table",
        ),
        (
            sql("SELECT * FORM a", json!(["a"])),
            vec![table.clone()],
            Code::SqlSyntax,
            "query:1:",
        ),
        (
            sql("SELECT 1; SELECT 2", json!([])),
            vec![],
            Code::SqlSyntax,
            "one query",
        ),
        (
            sql("COPY a TO 'x.csv'", json!(["a"])),
            vec![table.clone()],
            Code::SqlUnsupported,
            "takes a query",
        ),
        (
            sql("SELECT * FROM b", json!(["a"])),
            vec![table.clone()],
            Code::SqlPlan,
            "'b' not found",
        ),
    ] {
        let error = worker.run(&body, inputs).await.unwrap_err();
        assert_eq!(error.diagnostic.code, code, "{}", error.diagnostic);
        assert!(
            error.diagnostic.message.contains(part),
            "{}",
            error.diagnostic
        );
        assert!(!error.is_retryable);
    }
}

#[tokio::test]
async fn reads_and_writes_that_do_not_fit() {
    let worker = Worker::new();
    for (body, inputs, code, part) in [
        (
            Body::new("write").with("location", "x.csv"),
            vec![],
            Code::OperationUnknown,
            "one input",
        ),
        (
            Body::new("read").with("location", "a.xlsx"),
            vec![],
            Code::OperationUnknown,
            "`format`",
        ),
        (
            Body::new("read").with("location", "a.csv"),
            vec![],
            Code::DataUnreadable,
            "a.csv",
        ),
        (
            Body::new("read")
                .with("location", "s3://b/a.csv")
                .with("options", json!({"aws.secret_access_key": "x"})),
            vec![],
            Code::SqlUnsupported,
            "aws.secret_access_key",
        ),
    ] {
        let error = worker.run(&body, inputs).await.unwrap_err();
        assert_eq!(error.diagnostic.code, code, "{}", error.diagnostic);
        assert!(
            error.diagnostic.message.contains(part),
            "{}",
            error.diagnostic
        );
        assert!(!error.is_retryable);
    }
    let error = worker.run(&Body::new("read"), vec![]).await.unwrap_err();
    assert_eq!(error.diagnostic.code, Code::OperationUnknown);
    assert!(files(&worker.base_dir).is_empty());
}

#[tokio::test]
async fn tables_as_csv_for_programs() {
    let worker = Worker::new();
    let text = "SELECT * FROM (VALUES (1, 'a,b', 1.5), (2, NULL, NULL)) AS t (id, \"w w\", x)";
    let table = worker.sql(text).await.unwrap().remove(0);
    let mut bytes = Vec::new();
    CsvTables.write_csv(&table, &mut bytes).unwrap();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "id,w w,x\n1,\"a,b\",1.5\n2,,\n"
    );
    let empty = worker
        .sql("SELECT 1 AS id, 'x' AS w WHERE false")
        .await
        .unwrap()
        .remove(0);
    let mut bytes = Vec::new();
    render::csv(&empty, &mut bytes).unwrap();
    assert_eq!(bytes, b"id,w\n");
    assert!(
        CsvTables
            .write_csv(&Payload::null(), &mut Vec::new())
            .is_err()
    );
}
