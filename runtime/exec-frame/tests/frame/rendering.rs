//! Every type in JSON lines, and tables on a terminal.

use oxidask_exec_frame::render::{self, TextForm, TextTable};

use crate::harness::Worker;

async fn lines(text: &str) -> Vec<String> {
    let worker = Worker::new();
    let table = match worker.sql(text).await {
        Ok(mut results) => results.remove(0),
        Err(error) => panic!("{}", error.diagnostic),
    };
    let mut bytes = Vec::new();
    render::json_lines(&table, &mut bytes).unwrap();
    String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

async fn shown(text: &str, width: Option<usize>, rows_max: Option<u64>) -> String {
    let worker = Worker::new();
    let table = worker.sql(text).await.unwrap().remove(0);
    let mut bytes = Vec::new();
    render::text(&table, TextForm { width, rows_max }, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The results of several queries, printed as one table.
async fn joined(text: &str, width: Option<usize>) -> String {
    let mut table = TextTable::new(TextForm {
        width,
        rows_max: None,
    });
    let mut bytes = Vec::new();
    for part in Worker::new().sql(text).await.unwrap() {
        table.part(part, &mut bytes).unwrap();
    }
    table.finish(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn parts_of_a_table_are_one_table() {
    let empty = "SELECT 1 AS n, 'x' AS word WHERE false;";
    let text = format!(
        "{empty} SELECT 1 AS n, 'one' AS word; {empty} SELECT 1000 AS n, 'a thousand' AS word"
    );
    assert_eq!(
        joined(&text, None).await,
        "   n  word\n────  ──────────\n   1  one\n1000  a thousand\n"
    );
    assert_eq!(joined(empty, None).await, "n  word\n─  ────\n");
}

#[tokio::test]
async fn what_comes_after_the_layout_is_never_cut_without_need() {
    // More than the bytes that wait for a layout.
    let text = "SELECT 1 AS n, 'x' AS word FROM generate_series(1, 200000); \
                SELECT 12345 AS n, 'a longer word' AS word";
    let shown = joined(text, None).await;
    assert_eq!(shown.lines().count(), 2 + 200_000 + 1);
    assert_eq!(shown.lines().last(), Some("12345  a longer word"));
    let shown = joined(text, Some(15)).await;
    assert_eq!(shown.lines().last(), Some("12345  a longer wo…"));
}

#[tokio::test]
async fn every_type_as_json() {
    for (expression, json) in [
        ("NULL", "null"),
        ("true", "true"),
        ("CAST(-5 AS TINYINT)", "-5"),
        (
            "CAST(18446744073709551615 AS BIGINT UNSIGNED)",
            "18446744073709551615",
        ),
        ("1.5", "1.5"),
        ("CAST(0.1 AS REAL)", "0.1"),
        ("CAST(1e300 AS DOUBLE)", "1e+300"),
        ("CAST(3 AS DOUBLE)", "3.0"),
        ("CAST('NaN' AS DOUBLE)", "null"),
        ("CAST('-inf' AS DOUBLE)", "null"),
        (
            "CAST('-1234567890123456789.05' AS DECIMAL(38, 2))",
            "-1234567890123456789.05",
        ),
        ("CAST(5 AS DECIMAL(10, 3))", "5.000"),
        (
            r#"'ä "q" \ ' || chr(10) || chr(1)"#,
            r#""ä \"q\" \\ \n\u0001""#,
        ),
        ("X'00ff'", "\"00ff\""),
        ("DATE '2013-02-28'", "\"2013-02-28\""),
        ("TIME '23:59:58'", "\"23:59:58\""),
        (
            "TIMESTAMP '2013-01-02T03:04:05.25'",
            "\"2013-01-02T03:04:05.250\"",
        ),
        (
            "arrow_cast(TIMESTAMP '2013-01-02T03:04:05', 'Timestamp(Second, Some(\"+02:00\"))')",
            "\"2013-01-02T03:04:05+02:00\"",
        ),
        (
            "arrow_cast(TIMESTAMP '2013-01-02T03:04:05', 'Timestamp(Microsecond, Some(\"UTC\"))')",
            "\"2013-01-02T03:04:05Z\"",
        ),
        ("[1, NULL, 3]", "[1,null,3]"),
        ("[['a'], []]", "[[\"a\"],[]]"),
        (
            "named_struct('a', 1, 'b', [true, NULL])",
            "{\"a\":1,\"b\":[true,null]}",
        ),
        ("MAP {'k': 1, 'l': NULL}", "{\"k\":1,\"l\":null}"),
        ("arrow_cast('x', 'Dictionary(Int32, Utf8)')", "\"x\""),
        ("arrow_cast([1, 2], 'FixedSizeList(2, Int64)')", "[1,2]"),
        ("arrow_cast([1, 2], 'LargeList(Int64)')", "[1,2]"),
        (
            "arrow_cast('long enough to be no inlined view', 'Utf8View')",
            "\"long enough to be no inlined view\"",
        ),
        ("arrow_cast('x', 'LargeUtf8')", "\"x\""),
    ] {
        let line = lines(&format!("SELECT {expression} AS v")).await;
        assert_eq!(line, [format!("{{\"v\":{json}}}")], "{expression}");
    }
    let line = lines("SELECT INTERVAL '1 day 2 hours' AS v").await;
    assert!(line[0].starts_with("{\"v\":\""), "{line:?}");
}

#[tokio::test]
async fn names_are_told_apart_and_escaped() {
    let line =
        lines("SELECT a.x, b.x, 1 AS \"q\"\"q\" FROM (VALUES (1)) AS a (x), (VALUES (2)) AS b (x)")
            .await;
    assert_eq!(line, [r#"{"x":1,"x_1":2,"q\"q":1}"#]);
}

#[tokio::test]
async fn json_array_and_no_rows() {
    let worker = Worker::new();
    let tables = worker
        .sql("VALUES (1), (2); SELECT 1 AS x WHERE false")
        .await
        .unwrap();
    let array = |index: usize| {
        let mut bytes = Vec::new();
        render::json_array(&tables[index], &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(array(0), "[{\"column1\":1},{\"column1\":2}]");
    assert_eq!(array(1), "[]");
}

#[tokio::test]
async fn a_table_on_a_terminal() {
    let text = "SELECT * FROM (VALUES (1, 'one', 1.5), (20, NULL, -10.25)) AS t (n, name, amount)";
    assert_eq!(
        shown(text, None, None).await,
        " n  name  amount\n\
         ──  ────  ──────\n \
          1  one      1.5\n\
         20  NULL  -10.25\n"
    );
    let text = "SELECT value AS n, repeat('x', 100) AS long FROM range(0, 10)";
    let cut = shown(text, Some(40), Some(2)).await;
    let lines: Vec<_> = cut.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line.chars().count() <= 40), "{cut}");
    assert!(lines[2].ends_with("xx…"), "{cut}");
    assert_eq!(lines[4], "… 8 more rows");
}

#[tokio::test]
async fn a_writer_that_refuses_is_an_error() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let worker = Worker::new();
    let table = worker.sql("SELECT 1").await.unwrap().remove(0);
    match render::json_lines(&table, &mut Closed) {
        Err(render::RenderError::Write(error)) => {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
        other => panic!("{other:?}"),
    }
}
