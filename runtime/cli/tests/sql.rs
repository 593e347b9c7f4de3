//! SQL and data that nobody should have: refused with their place, failed with the statement, the
//! file and the line, and nothing half-written is left.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Finished, Workspace};

const AT_ONCE: Duration = Duration::from_millis(100);
const TIDY: Duration = Duration::from_secs(2);
const AIRLINES: &[u8] = include_bytes!("../../../examples/flights/data/airlines.parquet");
const PLANES: &[u8] = include_bytes!("../../../examples/flights/data/planes.parquet");

/// A SQL text, the code it is refused or fails with, and words of the message.
type Fault = (&'static str, &'static str, &'static [&'static str]);

/// Refused before anything starts.
const REFUSED: &[Fault] = &[
    ("", "OX220", &["query.sql: the SQL text holds no statement"]),
    (";;;", "OX220", &["holds no statement"]),
    (
        "-- nothing\n",
        "OX220",
        &["holds no statement", "`SELECT 1;`"],
    ),
    (
        "SELECT 1;\n\n  SELEKT 2;\n",
        "OX220",
        &["query.sql:3:3: ", "SELEKT", "\n      SELEKT 2;\n      ^"],
    ),
    (
        "SELECT 1\nSELECT 2",
        "OX220",
        &["query.sql:2:1: expected: end of statement"],
    ),
    (
        "SELECT 1;\nSELECT (1 + 2;\nSELECT 3",
        "OX220",
        &["query.sql:2:14: "],
    ),
    (
        "SELECT 'abc\nFROM t;\n",
        "OX220",
        &["query.sql:1:8: unterminated string literal"],
    ),
    ("SELECT \"abc\nFROM t;\n", "OX220", &["query.sql:1:8: "]),
    (
        "SELECT 1; /* abc",
        "OX220",
        &["query.sql:1:17: ", "comment"],
    ),
    ("SELECT 1\0;", "OX220", &["query.sql:1:9: "]),
    (
        "please give me all flights",
        "OX220",
        &["query.sql:1:1: ", "please"],
    ),
    ("SELECT ‘a’;", "OX220", &["query.sql:1:8: ", "‘"]),
    (
        "INSERT INTO t VALUES (1);",
        "OX222",
        &["query.sql:1:1: INSERT is not supported", "COPY"],
    ),
    (
        "SELECT 1;\nUPDATE t SET a = 1;",
        "OX222",
        &["query.sql:2:1: UPDATE is not supported"],
    ),
    ("DELETE FROM t;", "OX222", &["DELETE is not supported"]),
    (
        "CREATE TABLE t (a INT);",
        "OX222",
        &["CREATE TABLE is not supported", "CREATE EXTERNAL TABLE"],
    ),
    ("BEGIN;", "OX222", &["query.sql:1:1: "]),
    (
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://b/x.csv' OPTIONS ('aws.secret_access_key' 'x');",
        "OX222",
        &[
            "`aws.secret_access_key` may not stand in a SQL text",
            "environment",
        ],
    ),
];

/// Statements over `t` (`name,n`), which is statement 1, that fail.
const FAILED: &[Fault] = &[
    (
        "SELECT * FROM nowhere",
        "OX221",
        &["statement 2 (query.sql:2): ", "nowhere", "`t`"],
    ),
    ("SELECT * FROM tt", "OX221", &["tt", "hint: "]),
    (
        "SELECT nmae FROM t",
        "OX221",
        &["statement 2 (query.sql:2): no column named `nmae`; there are `name`, `n`"],
    ),
    (
        "SELECT t.nmae FROM t",
        "OX221",
        &[
            "no column named `t.nmae`; there are `name`, `n`",
            "did you mean `name`?",
        ],
    ),
    (
        "SELECT name FROM t AS a JOIN t AS b ON a.n = b.n",
        "OX221",
        &["ambiguous", "name"],
    ),
    ("SELECT foo(n) FROM t", "OX221", &["'foo'"]),
    ("SELECT name + 1 FROM t", "OX221", &["Utf8 + Int64"]),
    ("SELECT name, count(*) FROM t", "OX221", &["GROUP BY"]),
    (
        "SELECT sum(name) FROM t",
        "OX221",
        &["no function fits the call `sum(Utf8)`"],
    ),
    (
        "SELECT CAST(name AS INT) FROM t",
        "OX225",
        &["cannot cast", "'ada'"],
    ),
    ("SELECT n / (n - n) FROM t", "OX225", &["division by zero"]),
    ("SELECT (SELECT n FROM t)", "OX225", &["more than one row"]),
    (
        "SELECT repeat(name, 1000000000000) FROM t",
        "OX225",
        &["repeat"],
    ),
    ("SELECT arrow_cast(n, 'Foo') FROM t", "OX221", &["Foo"]),
    (
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't.csv'",
        "OX221",
        &["the table `t` exists already"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 'nowhere.csv'",
        "OX223",
        &["`nowhere.csv` does not exist (looked for `/"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 'nowhere/'",
        "OX223",
        &["`nowhere/` does not exist"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 'x*.csv'",
        "OX223",
        &["no file matches `x*.csv`"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS PARQUET LOCATION 'empty/'",
        "OX223",
        &["the folder `empty/` holds no `.parquet` file"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION ''",
        "OX205",
        &["the location is empty"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS EXCEL LOCATION 't.csv'",
        "OX222",
        &["`EXCEL` is not supported", "PARQUET, CSV or JSON"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 'ftp://h/x.csv'",
        "OX222",
        &["`ftp://` are not supported", "s3://"],
    ),
    (
        "CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 't.csv' OPTIONS ('delimeter' ';')",
        "OX221",
        &["delimeter"],
    ),
    (
        "DROP TABLE t;\nSELECT * FROM t",
        "OX221",
        &["statement 3 (query.sql:3): ", "'t'"],
    ),
];

/// Contents of a file `data`, the format it is read as, and what is said about it.
const DAMAGED: &[(&str, &[u8], &str, &[&str])] = &[
    (
        "ragged",
        b"name,n\nada,1\nalan,2,3\n",
        "CSV",
        &["/data:3: ", "expected 2 got 3"],
    ),
    (
        "short",
        b"name,n\nada,1\nalan\n",
        "CSV",
        &["/data:3: ", "expected 2 got 1"],
    ),
    (
        "an open quote",
        b"name,n\nada,1\n\"alan,2\ngrace,3\n",
        "CSV",
        &["/data:3: a quoted value begins here and is never closed"],
    ),
    (
        "text behind a quote",
        b"name,n\n\"a\"da,1\n",
        "CSV",
        &["/data:2: ", "text follows its closing quote"],
    ),
    (
        "bad UTF-8",
        b"name,n\nada,1\nal\xff\xfean,2\n",
        "CSV",
        &["/data:3: ", "UTF-8"],
    ),
    (
        "compressed",
        b"\x1f\x8b\x08\x00name,n\nada,1\n",
        "CSV",
        &["/data:1: ", "UTF-8"],
    ),
    ("a Parquet file", AIRLINES, "CSV", &["/data:1: "]),
    (
        "half a line",
        b"{\"a\":1}\n{\"a\":\n",
        "JSON",
        &["/data:2: the line is not one JSON object: EOF"],
    ),
    (
        "a list",
        b"[{\"a\":1}]\n",
        "JSON",
        &["/data:1: the line is not one JSON object"],
    ),
    (
        "bad UTF-8",
        b"{\"a\":\"\xff\"}\n",
        "JSON",
        &["/data:1: invalid UTF-8"],
    ),
    (
        "nothing",
        b"",
        "PARQUET",
        &["/data` is empty and no Parquet file"],
    ),
    (
        "its magic alone",
        b"PAR1",
        "PARQUET",
        &["/data` is not a Parquet file"],
    ),
    (
        "text",
        b"name,n\nada,1\n",
        "PARQUET",
        &["/data` is not a Parquet file"],
    ),
];

#[track_caller]
fn run(workspace: &Workspace, text: &str) -> Finished {
    workspace.sql_job(1, text);
    workspace.run(&["run", "job.yaml", "--memory=512MiB"])
}

fn over_t(workspace: &Workspace, statement: &str) -> Finished {
    workspace.write("t.csv", "name,n\nada,1\nalan,2\n");
    let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't.csv';\n";
    run(workspace, &format!("{table}{statement};\n"))
}

#[test]
fn texts_that_are_no_sql() {
    let workspace = Workspace::new();
    for (text, code, words) in REFUSED {
        run(&workspace, text).assert_refused(text, code, words);
    }
    let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    let words = ["query.sql:1:1: the statement is nested too deeply"];
    run(&workspace, &deep).assert_refused("deep", "OX220", &words);
    let long = format!("SELECT {}1", "1 + ".repeat(20_000));
    run(&workspace, &long).assert_refused(
        "long",
        "OX206",
        &["query.sql:1:1: more than 1000 operators"],
    );
    let many = "SELECT 1;\n".repeat(20_000);
    let finished = run(&workspace, &many);
    assert!(
        matches!(finished.status, Some(0 | 2)),
        "{}",
        finished.stderr
    );
    workspace.sql_job(1, "");
    workspace.write("query.sql", b"SELECT '\xff';");
    let words = ["`query.sql` is not UTF-8 text: byte 8 does not fit"];
    workspace
        .run(&["run", "job.yaml"])
        .assert_refused("bad UTF-8", "OX101", &words);
    workspace.job(1, "sql: {statements: 'SELECT 1 FROM'}");
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_refused(
        "in the manifest",
        "OX220",
        &["job.yaml:6:", "spec.sql.statements:1:14: "],
    );
    workspace.assert_clean(AT_ONCE);
}

#[test]
fn statements_that_cannot_be_run() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path().join("empty")).unwrap();
    for (statement, code, words) in FAILED {
        let run = over_t(&workspace, statement);
        run.assert_failed(statement, code, words, "");
        assert!(
            !run.stderr.contains("DataFusion"),
            "{statement}: {}",
            run.stderr
        );
    }
    // What was finished is printed; what comes after is not run.
    let text = "SELECT 1 AS a;\nSELECT * FROM nowhere;\n";
    let failed = run(&workspace, text);
    let words = ["statement 2 (query.sql:2): ", "nowhere"];
    failed.assert_failed("the second", "OX221", &words, "{\"a\":1}\n");
    workspace.assert_clean(TIDY);
}

#[test]
fn files_that_are_damaged() {
    let workspace = Workspace::new();
    let check = |what: &str, bytes: &[u8], format: &str, words: &[&str]| {
        let what = format!("{format} {what}");
        workspace.write("data", bytes);
        let table = format!("CREATE EXTERNAL TABLE t STORED AS {format} LOCATION 'data';\n");
        let run = run(&workspace, &format!("{table}SELECT * FROM t;\n"));
        run.assert_failed(&what, "OX223", words, "");
    };
    for (what, bytes, format, words) in DAMAGED {
        check(what, bytes, format, words);
    }
    let half = AIRLINES.len() / 2;
    let cut = ["/data` is not a whole Parquet file: its end is missing"];
    check("cut in half", &AIRLINES[..half], "PARQUET", &cut);
    check(
        "its second half",
        &AIRLINES[half..],
        "PARQUET",
        &["/data` is not a Parquet file"],
    );
    check(
        "without its last byte",
        &AIRLINES[..AIRLINES.len() - 1],
        "PARQUET",
        &cut,
    );
    let mut flipped = PLANES.to_vec();
    for at in (1000..PLANES.len() - 20_000).step_by(97) {
        flipped[at] ^= 0x55;
    }
    check("with wrong bytes", &flipped, "PARQUET", &["data"]);
    // One damaged file among good ones is named.
    let folder = workspace.path().join("parts");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.parquet"), AIRLINES).unwrap();
    fs::write(folder.join("b.parquet"), &AIRLINES[..half]).unwrap();
    let text = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'parts/';\nSELECT * FROM t;\n";
    run(&workspace, text).assert_failed(
        "a folder",
        "OX223",
        &["parts/b.parquet` is not a whole"],
        "",
    );
    workspace.assert_clean(TIDY);
}

#[test]
fn outputs_that_cannot_be_written() {
    let workspace = Workspace::new();
    let path = |name: &str| workspace.path().join(name);
    fs::create_dir(path("taken")).unwrap();
    fs::write(path("taken/mine.txt"), "mine").unwrap();
    fs::write(path("file"), "mine").unwrap();
    for (what, target, options, words) in [
        (
            "taken",
            "taken/",
            "",
            &["/taken` already exists", "'overwrite' 'true'"][..],
        ),
        (
            "not ours",
            "taken/",
            " OPTIONS ('overwrite' 'true')",
            &["/taken` cannot be replaced: it holds `mine.txt`"],
        ),
        ("a file", "file", "", &["/file` already exists"]),
        ("a file as folder", "file/", "", &["/file` already exists"]),
        (
            "below a file",
            "file/deeper/",
            "",
            &["cannot create the folder of `", "/file/deeper`"],
        ),
        (
            "below a kernel's folder",
            "/proc/oxidask/",
            "",
            &["`/proc/oxidask`"],
        ),
    ] {
        let text = format!("COPY (SELECT 1 AS a) TO '{target}' STORED AS PARQUET{options};\n");
        let run = run(&workspace, &text);
        run.assert_failed(what, "OX224", words, "");
    }
    assert_eq!(fs::read_to_string(path("taken/mine.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "mine");
    let twice = "COPY (SELECT 1 AS a) TO 'out/' STORED AS PARQUET;\n";
    let run = run(&workspace, &twice.repeat(2));
    run.assert_failed(
        "twice",
        "OX224",
        &["statement 2 (query.sql:2): ", "/out` already exists"],
        "",
    );
    run.assert_stderr("statement 1 wrote 1 row\n");
    // A query that fails half-way leaves no output.
    let run = over_t(
        &workspace,
        "COPY (SELECT CAST(name AS INT) AS a FROM t) TO 'new/' STORED AS PARQUET",
    );
    run.assert_failed("a bad value", "OX225", &["cannot cast"], "");
    let mut left: Vec<_> = names(workspace.path());
    left.retain(|name| !["job.yaml", "query.sql", "t.csv", "tmp"].contains(&name.as_str()));
    assert_eq!(left, ["file", "out", "taken"]);
    workspace.assert_clean(TIDY);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A small file system of its own, as long as the test runs.
struct Mount(PathBuf);

impl Mount {
    /// None where mounting is not allowed, which only a continuous build must not bear.
    fn new(test: &str, folder: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", options, "oxidask-test"])
            .arg(&folder);
        if command.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{test}: a tmpfs cannot be mounted"
        );
        eprintln!("skipped: {test} needs the right to mount a tmpfs");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let test = "a_full_disk_leaves_nothing_half_written";
    let workspace = Workspace::new();
    let Some(mount) = Mount::new(test, workspace.path().join("full"), "size=64k") else {
        return;
    };
    let rows = "SELECT value, repeat('x', 100) AS x FROM generate_series(1, 200000)";
    for (target, format) in [
        ("full/x/", "PARQUET"),
        ("full/x.csv", "CSV"),
        ("full/x.json", "JSON"),
    ] {
        let text = format!("COPY ({rows}) TO '{target}' STORED AS {format};\n");
        let run = run(&workspace, &text);
        let words = ["/full/x", "No space left on device", "free some space"];
        run.assert_failed(format, "OX224", &words, "");
        assert_eq!(names(&mount.0), Vec::<String>::new(), "{format}");
    }
    workspace.assert_clean(TIDY);
}

#[test]
fn a_full_disk_for_temporary_files_is_said() {
    let test = "a_full_disk_for_temporary_files_is_said";
    let workspace = Workspace::new();
    let Some(mount) = Mount::new(test, workspace.path().join("small"), "size=128k") else {
        return;
    };
    let task = "{\"key\":\"t\",\"op\":\"exec\",\"inputs\":[\"b\"],\"args\":{\"command\":[\"wc\",\"-c\",\"0\"]}}\n\
                {\"key\":\"b\",\"op\":\"bytes\",\"args\":{\"len\":1000000}}\n";
    workspace.graph_job(1, task);
    let mut command = workspace.command(&["run", "job.yaml"]);
    command.env("TMPDIR", &mount.0);
    let run = support::Running::spawn(command).finish();
    let words = [
        "task `t`: input 0 cannot be written",
        "No space left on device",
    ];
    run.assert_failed("exec", "OX305", &words, "");
    assert_eq!(names(&mount.0), Vec::<String>::new());
}

#[test]
fn a_folder_that_is_read_only() {
    let test = "a_folder_that_is_read_only";
    let workspace = Workspace::new();
    let Some(_mount) = Mount::new(test, workspace.path().join("fixed"), "size=64k,ro") else {
        return;
    };
    let run = run(
        &workspace,
        "COPY (SELECT 1 AS a) TO 'fixed/x/' STORED AS PARQUET;\n",
    );
    run.assert_failed(
        "read-only",
        "OX224",
        &["/fixed/x`", "Read-only file system"],
        "",
    );
    workspace.assert_clean(TIDY);
}

#[test]
fn a_query_larger_than_memory_fails_alone() {
    let workspace = Workspace::new();
    let text = "SELECT 1 AS a;\nSELECT value, repeat('x', 1000) AS r FROM generate_series(1, 100000000) \
                ORDER BY r, value DESC LIMIT 3000000;\n";
    let run = run(&workspace, text);
    run.assert_failed(
        "a sort",
        "OX301",
        &["statement 2 (query.sql:2): ", "memory"],
        "{\"a\":1}\n",
    );
    assert!(!run.stderr.contains("died"), "{}", run.stderr);
    workspace.assert_clean(TIDY);
}

#[test]
fn odd_but_right() {
    let workspace = Workspace::new();
    workspace.write("h.csv", "name,n\n");
    workspace.write("q.csv", "name,n\n\"a,\"\"b\"\"\nc\",1\n");
    for (what, text, stdout) in [
        (
            "an emoji",
            "SELECT '🦀' AS \"🦀 \"\"x\"\"\";",
            "{\"🦀 \\\"x\\\"\":\"🦀\"}\n",
        ),
        (
            "comments",
            "-- a\n/* b; */ SELECT 1 AS a; -- c\n",
            "{\"a\":1}\n",
        ),
        ("no semicolon", "SELECT 1 AS a", "{\"a\":1}\n"),
        (
            "a semicolon in a text",
            "SELECT 'a;b' AS a;",
            "{\"a\":\"a;b\"}\n",
        ),
        (
            "Windows",
            "SELECT 1 AS a;\r\nSELECT 2 AS b;\r\n",
            "{\"a\":1}\n{\"b\":2}\n",
        ),
        (
            "a header alone",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'h.csv'; SELECT * FROM t;",
            "",
        ),
        (
            "quotes",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'q.csv'; SELECT * FROM t;",
            "{\"name\":\"a,\\\"b\\\"\\nc\",\"n\":1}\n",
        ),
    ] {
        let run = run(&workspace, text);
        assert_eq!(
            (run.status, run.stdout.as_str()),
            (Some(0), stdout),
            "{what}: {}",
            run.stderr
        );
    }
}
