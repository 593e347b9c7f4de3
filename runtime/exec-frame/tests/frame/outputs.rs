//! Outputs appear whole, replace only what they may, and leave nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use oxidask_diagnostic::Code;
use oxidask_store::PayloadKind;
use serde_json::json;

use crate::harness::{Worker, files};

const VIEW: &str = "CREATE VIEW v AS SELECT value AS id, value % 3 AS part FROM range(0, 1000);";

#[tokio::test]
async fn a_partitioned_folder_has_the_same_names_every_time() {
    let worker = Worker::new();
    for options in [
        "",
        "OPTIONS ('overwrite' 'true')",
        "OPTIONS ('overwrite' 'true')",
    ] {
        let results = worker
            .sql(&format!(
                "{VIEW} COPY v TO 'out/' STORED AS PARQUET PARTITIONED BY (part) {options}"
            ))
            .await
            .unwrap_or_else(|error| panic!("{}", error.diagnostic));
        assert_eq!(results[0].kind, PayloadKind::Value);
        assert_eq!(results[0].parts.concat(), b"1000");
        assert_eq!(
            files(&worker.base_dir),
            [
                "out/part=0/part-00000.parquet",
                "out/part=1/part-00000.parquet",
                "out/part=2/part-00000.parquet"
            ]
        );
    }
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'out/';
             SELECT part, count(*) AS n, min(id) AS low FROM t GROUP BY part ORDER BY part",
        )
        .await;
    assert_eq!(rows[0], json!({"part": "0", "n": 334, "low": 0}));
    assert_eq!(rows[2], json!({"part": "2", "n": 333, "low": 2}));
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t (id BIGINT, part INT) STORED AS PARQUET
               PARTITIONED BY (part) LOCATION 'out/';
             SELECT sum(part) AS s FROM t",
        )
        .await;
    assert_eq!(rows, [json!({"s": 999})]);
}

#[tokio::test]
async fn an_existing_output_is_refused() {
    let worker = Worker::new();
    worker.file("a.csv", "old");
    worker.file("dir/b.csv", "old");
    fs::create_dir(worker.path("empty")).unwrap();
    for target in ["a.csv", "dir/", "dir"] {
        let error = worker
            .error(&format!("{VIEW} COPY v TO '{target}' STORED AS CSV"))
            .await;
        assert_eq!(error.code, Code::DataUnwritable, "{target}");
        assert!(
            error.message.contains("already exists"),
            "{}",
            error.message
        );
        assert!(
            error.message.starts_with("statement 2 (test.sql:1): "),
            "{}",
            error.message
        );
        assert!(error.hint.contains("overwrite"), "{}", error.hint);
    }
    assert_eq!(fs::read(worker.path("a.csv")).unwrap(), b"old");
    worker
        .sql(&format!("{VIEW} COPY v TO 'empty/' STORED AS CSV"))
        .await
        .unwrap();
    assert_eq!(
        files(&worker.base_dir),
        ["a.csv", "dir/b.csv", "empty/part-00000.csv"]
    );
    // What a table was made of is not replaced by accident, nor is a folder of other things.
    worker.file("dir/thesis.doc", "precious");
    let error = worker
        .error(&format!(
            "{VIEW} COPY v TO 'dir/' STORED AS CSV OPTIONS ('overwrite' 'true')"
        ))
        .await;
    assert_eq!(error.code, Code::DataUnwritable);
    assert!(error.message.contains("thesis.doc"), "{}", error.message);
    let error = worker
        .error(&format!(
            "{VIEW} COPY v TO '.' STORED AS CSV OPTIONS ('overwrite' 'true')"
        ))
        .await;
    assert_eq!(error.code, Code::DataUnwritable);
}

#[tokio::test]
async fn overwriting_an_output_that_is_read_sees_the_old_rows() {
    let worker = Worker::new();
    worker.file("n.csv", "n\n1\n2\n");
    let rows = worker
        .rows(
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'n.csv';
             COPY (SELECT n + 10 AS n FROM t UNION ALL SELECT n FROM t) TO 'n.csv'
               OPTIONS ('overwrite' 'true');
             SELECT count(*) AS c, sum(n) AS s FROM t",
        )
        .await;
    assert_eq!(rows, [json!({"c": 4, "s": 26})]);
    assert_eq!(files(&worker.base_dir), ["n.csv"]);
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_and_keeps_the_old() {
    let worker = Worker::new();
    worker.file("out/part-00000.csv", "old");
    let error = worker
        .error(
            "COPY (SELECT 1 / (value - 5000) AS x FROM range(0, 100000)) TO 'out/' STORED AS CSV
               OPTIONS ('overwrite' 'true')",
        )
        .await;
    assert_eq!(error.code, Code::QueryFailed);
    assert!(
        error.message.contains("division by zero"),
        "{}",
        error.message
    );
    let error = worker
        .error("COPY (SELECT 1 / 0 AS x) TO 'deep/new/x.parquet'")
        .await;
    assert_eq!(error.code, Code::QueryFailed);
    assert_eq!(files(&worker.base_dir), ["out/part-00000.csv"]);
    assert_eq!(fs::read(worker.path("out/part-00000.csv")).unwrap(), b"old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_write_ends_at_once_and_leaves_nothing() {
    let worker = Worker::new();
    let token = worker.cancelled.clone();
    let (ended, began) = tokio::join!(
        worker.sql(
            "COPY (SELECT a.value * b.value AS x FROM range(0, 100000) a, range(0, 100000) b)
               TO 'out/big.csv'"
        ),
        async {
            while files(&worker.base_dir).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            token.cancel();
            Instant::now()
        }
    );
    assert!(ended.is_err());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(files(&worker.base_dir), Vec::<String>::new());
}

#[tokio::test]
async fn an_empty_result_is_an_output_too() {
    let worker = Worker::new();
    for target in ["a.parquet", "b.csv", "c/"] {
        let text =
            format!("{VIEW} COPY (SELECT * FROM v WHERE id < 0) TO '{target}' STORED AS PARQUET");
        let results = worker
            .sql(&text.replace("'b.csv' STORED AS PARQUET", "'b.csv'"))
            .await
            .unwrap();
        assert_eq!(results[0].parts.concat(), b"0");
        assert!(worker.path(target).exists(), "{target}");
    }
    let rows = worker
        .rows("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'a.parquet'; SELECT count(*) AS n FROM t")
        .await;
    assert_eq!(rows, [json!({"n": 0})]);
}

#[tokio::test]
async fn what_a_killed_worker_left_is_removed() {
    let worker = Worker::new();
    worker.file(".out.csv.oxidask-4194304-7.tmp/out.csv", "half");
    worker
        .sql(&format!("{VIEW} COPY v TO 'out.csv'"))
        .await
        .unwrap();
    assert_eq!(files(&worker.base_dir), ["out.csv"]);
}

#[tokio::test]
async fn an_output_that_cannot_be_written() {
    let worker = Worker::new();
    worker.file("file", "no folder");
    let error = worker
        .error(&format!("{VIEW} COPY v TO 'file/out.csv'"))
        .await;
    assert_eq!(error.code, Code::DataUnwritable);
    assert!(error.message.contains("file/out.csv"), "{}", error.message);
    for target in ["out.unknown", "out/", "noending"] {
        let error = worker.error(&format!("{VIEW} COPY v TO '{target}'")).await;
        assert_eq!(error.code, Code::SqlUnsupported, "{target}");
    }
    let error = worker.error(&format!("{VIEW} COPY v TO 'a/*.csv'")).await;
    assert_eq!(error.code, Code::SqlUnsupported);
    let error = worker
        .error(&format!("{VIEW} COPY v TO '/proc/nowhere/out.csv'"))
        .await;
    assert_eq!(error.code, Code::DataUnwritable);
    // Root may write everywhere; anybody else not into a folder without permission.
    fs::create_dir(worker.path("closed")).unwrap();
    fs::set_permissions(worker.path("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(worker.path("closed/probe"), "").is_err() {
        let error = worker
            .error(&format!("{VIEW} COPY v TO 'closed/out.csv'"))
            .await;
        assert_eq!(error.code, Code::DataUnwritable);
    }
}

/// Only root may mount a small disk; others see the name of the skipped test.
#[tokio::test]
async fn a_full_disk() {
    let worker = Worker::new();
    let disk = worker.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&disk)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: a_full_disk (a tmpfs cannot be mounted here)");
        return;
    }
    let mut outcomes = Vec::new();
    for target in ["disk/out.csv", "disk/out.parquet", "disk/folder.json/"] {
        let text = format!(
            "COPY (SELECT value, md5(CAST(value AS VARCHAR)) AS hash FROM range(0, 400000)) TO '{target}'"
        )
        .replace("md5(CAST(value AS VARCHAR))", "sin(value)");
        outcomes.push((target, worker.sql(&text).await, files(&disk)));
    }
    assert!(
        Command::new("umount")
            .arg(&disk)
            .status()
            .unwrap()
            .success()
    );
    for (target, outcome, left) in outcomes {
        let error = outcome
            .err()
            .unwrap_or_else(|| panic!("{target} was written"));
        let diagnostic = &error.diagnostic;
        assert_eq!(diagnostic.code, Code::DataUnwritable, "{diagnostic}");
        assert!(
            diagnostic.message.contains("find room on the disk"),
            "{diagnostic}"
        );
        assert!(
            diagnostic.to_string().contains("No space left"),
            "{diagnostic}"
        );
        assert!(diagnostic.hint.contains("free some space"), "{diagnostic}");
        assert!(
            diagnostic.message.contains(target.trim_end_matches('/')),
            "{diagnostic}"
        );
        assert!(error.is_retryable);
        assert_eq!(left, Vec::<String>::new());
    }
}
