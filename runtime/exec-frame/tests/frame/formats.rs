//! Every format, from one file, a folder, a pattern, compressed or partitioned.

use serde_json::json;

use crate::harness::Worker;

#[tokio::test]
async fn csv_from_a_file_a_folder_and_a_pattern() {
    let worker = Worker::new();
    worker.file("data/a.csv", "id,name,at\n1,one,2013-01-02T03:04:05\n2,,\n");
    worker.file(
        "data/b.csv",
        "id,name,at\n3,\"th,ree\",2014-01-01T00:00:00\n",
    );
    worker.file("data/notes.txt", "no table");
    for location in ["data/", "data", "data/*.csv", "./data/../data/?.csv"] {
        let rows = worker
            .rows(&format!(
                "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{location}';
                 SELECT * FROM t ORDER BY id"
            ))
            .await;
        assert_eq!(
            rows,
            [
                json!({"id": 1, "name": "one", "at": "2013-01-02T03:04:05"}),
                json!({"id": 2, "name": null, "at": null}),
                json!({"id": 3, "name": "th,ree", "at": "2014-01-01T00:00:00"}),
            ],
            "{location}"
        );
    }
    let absolute = worker.path("data/a.csv");
    let text = format!(
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'file://{}'; SELECT count(*) AS n FROM t",
        absolute.display()
    );
    assert_eq!(worker.rows(&text).await, [json!({"n": 2})]);
}

#[tokio::test]
async fn csv_options_types_and_missing_values() {
    let worker = Worker::new();
    worker.file("a.csv", "1;x;NA\n2;NA;7\n-;y;8.5\n");
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv'
               OPTIONS ('has_header' 'false', 'format.delimiter' ';', 'null_value' 'NA|-');
             SELECT column_1 AS a, column_2 AS b, column_3 AS c FROM t",
        )
        .await;
    assert_eq!(
        rows,
        [
            json!({"a": 1, "b": "x", "c": null}),
            json!({"a": 2, "b": null, "c": 7.0}),
            json!({"a": null, "b": "y", "c": 8.5}),
        ]
    );
    worker.file("b.csv", "n,d\n1,NA\n007,2020-02-29\n");
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t (n VARCHAR, d DATE) STORED AS CSV LOCATION 'b.csv'
               OPTIONS ('null_value' 'NA');
             SELECT n, d, date_part('month', d) AS m FROM t",
        )
        .await;
    assert_eq!(
        rows,
        [
            json!({"n": "1", "d": null, "m": null}),
            json!({"n": "007", "d": "2020-02-29", "m": 2})
        ]
    );
    worker.file("c.tsv", "a\tb\n1\t2\n");
    let rows = worker
        .rows("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'c.tsv'; SELECT a + b AS s FROM t")
        .await;
    assert_eq!(rows, [json!({"s": 3})]);
}

#[tokio::test]
async fn line_breaks_in_quotes_are_read_whatever_the_size() {
    let worker = Worker::new();
    let rows = (0..60_000)
        .map(|i| format!("{i},\"first line of {i}\nsecond, with \"\"quotes\"\"\"\n"))
        .collect::<Vec<_>>();
    let text = format!("id,words\n{}", rows.concat());
    worker.file("a.csv", text);
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv';
             SELECT count(*) AS n, sum(id) AS s, count(DISTINCT length(words) > 30) AS l FROM t",
        )
        .await;
    assert_eq!(rows, [json!({"n": 60_000, "s": 1_799_970_000_i64, "l": 1})]);
}

#[tokio::test]
async fn json_lines_under_all_their_endings() {
    let worker = Worker::new();
    worker.file(
        "a/x.jsonl",
        "{\"id\":1,\"tags\":[\"p\"],\"in\":{\"n\":1}}\n",
    );
    worker.file("a/y.ndjson", "{\"id\":2,\"tags\":[],\"in\":null}\n");
    worker.file("a/z.json", "{\"id\":3,\"tags\":null,\"in\":{\"n\":3}}\n\n");
    for format in ["JSON", "NDJSON", "jsonl"] {
        let text = format!(
            "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS {format} LOCATION 'a/';
             SELECT sum(id) AS s FROM t"
        );
        assert_eq!(worker.rows(&text).await, [json!({"s": 6})]);
    }
    let rows = worker
        .rows("CREATE EXTERNAL TABLE t STORED AS JSON LOCATION 'a/x.jsonl'; SELECT * FROM t")
        .await;
    assert_eq!(rows, [json!({"id": 1, "tags": ["p"], "in": {"n": 1}})]);
}

#[tokio::test]
async fn what_copy_writes_is_read_back() {
    let worker = Worker::new();
    let source = "CREATE VIEW v AS SELECT * FROM (VALUES
        (1, 'one', 1.5, TIMESTAMP '2013-01-02T03:04:05'),
        (2, NULL, NULL, NULL), (3, 'ä,\"b\"', -2.25, TIMESTAMP '1969-12-31T23:59:59'))
        AS t (id, name, amount, at);";
    let expected = [
        json!({"id": 1, "name": "one", "amount": 1.5, "at": "2013-01-02T03:04:05"}),
        json!({"id": 2, "name": null, "amount": null, "at": null}),
        json!({"id": 3, "name": "ä,\"b\"", "amount": -2.25, "at": "1969-12-31T23:59:59"}),
    ];
    for (name, format) in [
        ("a.parquet", "PARQUET"),
        ("b.csv", "CSV"),
        ("c.csv.gz", "CSV"),
        ("d.csv.zst", "CSV"),
        ("e.json", "JSON"),
        ("f.json.bz2", "JSON"),
        ("folder.csv/", "CSV"),
        ("g.csv.xz", "CSV"),
    ] {
        let rows = worker
            .rows(&format!(
                "{source} COPY v TO 'out/{name}';
                 CREATE EXTERNAL TABLE t STORED AS {format} LOCATION 'out/{name}';
                 SELECT * FROM t ORDER BY id"
            ))
            .await;
        if format == "JSON" {
            // JSON has no timestamps: they come back as texts.
            assert_eq!(rows.len(), 3, "{name}");
            assert_eq!(rows[2]["name"], "ä,\"b\"");
        } else {
            assert_eq!(rows, expected, "{name}");
        }
    }
    assert_eq!(worker.scratch(), Vec::<String>::new());
}

#[tokio::test]
async fn show_describe_and_explain() {
    let worker = Worker::new();
    worker.file("a.csv", "x,y\n1,2\n");
    let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv';";
    let rows = worker.rows(&format!("{table} DESCRIBE t")).await;
    assert_eq!(rows[0]["column_name"], "x");
    assert_eq!(rows.len(), 2);
    let rows = worker.rows(&format!("{table} SHOW TABLES")).await;
    assert!(rows.iter().any(|row| row["table_name"] == "t"));
    assert!(
        !worker
            .rows(&format!("{table} EXPLAIN SELECT x FROM t"))
            .await
            .is_empty()
    );
    assert!(
        !worker
            .rows(&format!("{table} EXPLAIN ANALYZE SELECT x FROM t"))
            .await
            .is_empty()
    );
    let rows = worker
        .rows("SET datafusion.execution.batch_size = 3; SELECT 1 AS one")
        .await;
    assert_eq!(rows, [json!({"one": 1})]);
}
