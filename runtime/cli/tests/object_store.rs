//! Tables in an object store: read, written, replaced and refused, with credentials from the
//! environment that no output shows.

#[path = "support/object_store.rs"]
mod store;
mod support;

use std::time::Duration;

use serde_json::json;
use store::{ACCESS_KEY, ObjectStore, SECRET_KEY};
use support::{Finished, Running, Workspace};

const AIRLINES: &[u8] = include_bytes!("../../../examples/flights/data/airlines.parquet");

/// A store that is down is told within this time.
const SOON: Duration = Duration::from_secs(25);

const DAYS: &str = "CREATE VIEW days AS SELECT value AS n, value % 3 AS part FROM range(0, 30);\n";

/// Runs SQL with an environment. No output may hold a credential.
fn run_with(environment: &[(&str, &str)], sql: &str) -> Finished {
    let workspace = Workspace::new();
    workspace.sql_job(1, sql);
    let mut command = workspace.command(&["run", "job.yaml"]);
    command.envs(environment.iter().copied());
    let run = Running::spawn(command).finish();
    for secret in [ACCESS_KEY, SECRET_KEY] {
        let shown = run.stdout.contains(secret) || run.stderr.contains(secret);
        assert!(!shown, "a credential in:\n{}\n{}", run.stdout, run.stderr);
    }
    workspace.assert_clean(Duration::from_secs(2));
    run
}

fn run(store: &ObjectStore, sql: &str) -> Finished {
    run_with(
        &[
            ("AWS_ENDPOINT", &store.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ],
        sql,
    )
}

#[test]
fn folders_patterns_and_files_are_read() {
    let store = ObjectStore::start();
    // As on this machine, folders inside belong to a table only if they are named `column=value`.
    for name in ["a", "b", "deep/c"] {
        store.put(&format!("air lines/{name}.parquet"), AIRLINES);
    }
    store.put("air lines/_SUCCESS", "");
    store.put("air lines/notes.txt", "no data");
    store.put("one/names.csv", "carrier,note\nUA,\"two\nlines\"\nAA,\n");
    let read = run(
        &store,
        "CREATE EXTERNAL TABLE folder STORED AS PARQUET LOCATION 's3://lake/air lines/';
         CREATE EXTERNAL TABLE some STORED AS PARQUET LOCATION 's3://lake/air lines/[ab].parquet';
         CREATE EXTERNAL TABLE names STORED AS CSV LOCATION 's3://lake/one/names.csv';
         SELECT count(*) AS c, count(DISTINCT carrier) AS d FROM folder;
         SELECT count(*) AS c FROM some;
         SELECT f.name, n.note FROM some f JOIN names n USING (carrier) GROUP BY 1, 2 ORDER BY 1;",
    )
    .expect(0);
    assert_eq!(
        read.json(),
        [
            json!({"c": 32, "d": 16}),
            json!({"c": 32}),
            json!({"name": "American Airlines Inc.", "note": null}),
            json!({"name": "United Air Lines Inc.", "note": "two\nlines"}),
        ]
    );
}

#[test]
fn a_partitioned_output_is_written_read_back_kept_and_replaced() {
    let store = ObjectStore::start();
    let copy =
        format!("{DAYS}COPY days TO 's3://lake/out/' STORED AS PARQUET PARTITIONED BY (part)");
    let table = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 's3://lake/out/';\n\
         SELECT CAST(part AS INT) AS part, count(*) AS c, sum(n) AS s FROM t GROUP BY 1 ORDER BY 1;\n";
    let written = run(&store, &format!("{copy};\n{table}")).expect(0);
    let rows = written.json();
    let expected = [
        json!({"part": 0, "c": 10, "s": 135}),
        json!({"part": 1, "c": 10, "s": 145}),
        json!({"part": 2, "c": 10, "s": 155}),
    ];
    assert_eq!(rows[rows.len() - 3..], expected, "{rows:?}");
    let keys = store.keys("out/");
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(keys[0].starts_with("out/part=0/"), "{keys:?}");

    let again = run(&store, &copy);
    assert_eq!(again.status, Some(1));
    again.assert_error(
        "again",
        "OX224",
        &["`s3://lake/out/` already exists", "overwrite"],
    );
    assert_eq!(store.keys("out/"), keys);

    // The new output is made of the old one, which goes when the new one is whole.
    let replace = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 's3://lake/out/';\n\
         COPY (SELECT n FROM t WHERE n < 5) TO 's3://lake/out/' STORED AS PARQUET \
         OPTIONS ('overwrite' 'true');\nSELECT count(*) AS c, max(n) AS m FROM t;\n";
    let replaced = run(&store, replace).expect(0);
    assert_eq!(replaced.json().last(), Some(&json!({"c": 5, "m": 4})));
    assert!(store.keys("out/").iter().all(|key| !keys.contains(key)));
}

#[test]
fn a_large_output_goes_in_parts_and_a_failed_one_leaves_nothing() {
    let store = ObjectStore::start();
    let rows =
        |columns: &str| format!("SELECT {columns}, repeat('x', 30) AS t FROM range(0, 800000)");
    let written = run(
        &store,
        &format!(
            "COPY ({}) TO 's3://lake/big.csv';
             CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://lake/big.csv';
             SELECT count(*) AS c, sum(n) AS s FROM t;",
            rows("value AS n")
        ),
    )
    .expect(0);
    let last = json!({"c": 800_000, "s": 319_999_600_000_u64});
    assert_eq!(written.json().last(), Some(&last));
    assert_eq!(store.uploads(), (1, 0));

    let failing = rows("100 / (value - 799999) AS n");
    let failed = run(
        &store,
        &format!("COPY ({failing}) TO 's3://lake/bad/' STORED AS CSV;"),
    );
    assert_eq!(failed.status, Some(1));
    failed.assert_error("a division", "OX225", &["statement 1", "division by zero"]);
    assert_eq!(store.uploads(), (1, 0), "an upload is left");
    let old = store.object("big.csv");
    let options = "OPTIONS ('overwrite' 'true')";
    run(
        &store,
        &format!("COPY ({failing}) TO 's3://lake/big.csv' {options};"),
    )
    .assert_error("a division", "OX225", &["division by zero"]);
    assert!(store.object("big.csv") == old, "the old output is gone");
    assert_eq!(store.keys("bad/"), Vec::<String>::new());
}

#[test]
fn what_is_not_there_is_named() {
    let store = ObjectStore::start();
    store.put("dir/readme.txt", "x");
    let table = |url: &str| {
        format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{url}';\nSELECT * FROM t;\n")
    };
    for (url, words) in [
        (
            "s3://lake/no.parquet",
            "`s3://lake/no.parquet` does not exist",
        ),
        (
            "s3://lake/no/*.parquet",
            "no file matches `s3://lake/no/*.parquet`",
        ),
        (
            "s3://lake/dir/",
            "the folder `s3://lake/dir/` holds no `.parquet` file",
        ),
        ("s3://sea/dir/", "`s3://sea/dir`: the bucket does not exist"),
        (
            "s3://sea/a.parquet",
            "`s3://sea/a.parquet`: the bucket does not exist",
        ),
    ] {
        let run = run(&store, &table(url));
        assert_eq!(run.status, Some(1), "{url}");
        run.assert_error(url, "OX223", &[words]);
    }
    let run = run(&store, "COPY (SELECT 1 AS a) TO 's3://sea/a.csv';");
    run.assert_error(
        "a write",
        "OX224",
        &["s3://sea/a.csv", "the bucket does not exist"],
    );
}

#[test]
fn a_store_that_refuses_or_is_down_is_told_soon() {
    let store = ObjectStore::start();
    // A port where nobody listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let up = store.endpoint.as_str();
    let key = ("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    let secret = ("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    let http = ("AWS_ALLOW_HTTP", "true");
    let read = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://lake/a.csv'; SELECT * FROM t;";
    let write = "COPY (SELECT 1 AS a) TO 's3://lake/a.csv';";
    let metadata = ("AWS_METADATA_ENDPOINT", nowhere.as_str());
    let other = ("AWS_ACCESS_KEY_ID", "AKIAOTHER");
    for (environment, reason, hint) in [
        (
            vec![("AWS_ENDPOINT", nowhere.as_str()), http, key, secret],
            "cannot be reached",
            "AWS_ENDPOINT",
        ),
        (
            vec![("AWS_ENDPOINT", up), http, other, secret],
            "access is refused: `",
            "credentials",
        ),
        (
            vec![("AWS_ENDPOINT", up), http, metadata],
            "no credentials were found",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            vec![("AWS_ENDPOINT", up), key, secret],
            "which is not allowed",
            "AWS_ALLOW_HTTP",
        ),
    ] {
        for (sql, code) in [(read, "OX223"), (write, "OX224")] {
            let run = run_with(&environment, sql);
            assert_eq!(run.status, Some(1), "{reason}");
            run.assert_error(reason, code, &["s3://lake/a.csv", reason, hint]);
            assert!(run.elapsed < SOON, "{reason}: {:?}", run.elapsed);
        }
    }
}

#[test]
fn credentials_may_not_stand_in_a_text() {
    let store = ObjectStore::start();
    for sql in [
        format!(
            "COPY (SELECT 1 AS a) TO 's3://lake/a.csv' OPTIONS ('aws.secret_access_key' '{SECRET_KEY}');"
        ),
        format!(
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://lake/a.csv' \
             OPTIONS ('aws.access_key_id' '{ACCESS_KEY}');"
        ),
    ] {
        let run = run(&store, &sql);
        assert_eq!(run.status, Some(2));
        run.assert_error(
            &sql,
            "OX222",
            &["may not stand in a SQL text", "environment"],
        );
    }
    let url = format!("COPY (SELECT 1 AS a) TO 's3://{ACCESS_KEY}:{SECRET_KEY}@lake/a.csv';");
    run(&store, &url).assert_error("a URL", "OX222", &["no user, password"]);
}
