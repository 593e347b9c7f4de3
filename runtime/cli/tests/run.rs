//! `oxidask run`: what is printed, and the exit status.

mod support;

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::{Running, Workspace};

const TIDY: Duration = Duration::from_secs(2);

/// So many tasks, each with its number as its result.
fn values(count: usize) -> String {
    let mut lines = String::new();
    for n in 0..count {
        let _ = writeln!(
            lines,
            "{{\"key\":\"v-{n}\",\"op\":\"value\",\"args\":{{\"value\":{n}}}}}"
        );
    }
    lines
}

#[test]
fn one_inline_task() {
    let workspace = Workspace::new();
    workspace.job(
        1,
        "graph: {tasks: [{key: answer, op: value, args: {value: 42}}]}",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(run.stdout, "{\"key\":\"answer\",\"value\":42}\n");
    run.assert_stderr("done: 1 task in ");
    run.assert_stderr(" on 1 worker\n");
    workspace.assert_clean(TIDY);
}

#[test]
fn map_reduce_in_order_of_outputs() {
    let workspace = Workspace::new();
    let mut lines = "{\"outputs\": [\"total\", \"part-3\"]}\n".to_owned();
    for part in 0..100 {
        let _ = writeln!(
            lines,
            "{{\"key\": \"part-{part}\", \"op\": \"value\", \"args\": {{\"value\": {part}}}}}"
        );
    }
    let inputs: Vec<String> = (0..100).map(|part| format!("part-{part}")).collect();
    lines.push_str(&json!({"key": "total", "op": "sum", "inputs": inputs}).to_string());
    lines.push_str("\n{\"key\": \"lonely\", \"op\": \"noop\"}\n");
    workspace.graph_job(2, &lines);
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(
        run.stdout,
        "{\"key\":\"total\",\"value\":4950}\n{\"key\":\"part-3\",\"value\":3}\n"
    );
    run.assert_stderr("1 task is not run: no output needs it");
    run.assert_stderr("on 2 workers");
}

#[test]
fn values_bytes_and_tables_as_json_and_for_people() {
    let workspace = Workspace::new();
    workspace.write("t.csv", "name,n\nada,1\nalan,\n");
    workspace.graph_job(
        1,
        concat!(
            "{\"key\": \"v\", \"op\": \"value\", \"args\": {\"value\": {\"a\": [1.5, \"ä\"]}}}\n",
            "{\"key\": \"b\", \"op\": \"bytes\", \"args\": {\"len\": 3000}}\n",
            "{\"key\": \"t\", \"op\": \"read\", \"args\": {\"location\": \"t.csv\"}}\n",
        ),
    );
    let run = workspace.run(&["run", "job.yaml", "-o", "json"]).expect(0);
    let lines = run.json();
    assert_eq!(lines[0], json!({"key": "v", "value": {"a": [1.5, "ä"]}}));
    assert_eq!(lines[1]["bytes"], 3000);
    assert_eq!(lines[1]["sha256"].as_str().map(str::len), Some(64));
    let rows = json!([{"name": "ada", "n": 1}, {"name": "alan", "n": null}]);
    assert_eq!(lines[2], json!({"key": "t", "rows": rows}));
    assert_eq!(lines.len(), 3);

    let run = workspace.run(&["run", "job.yaml", "-o", "table"]).expect(0);
    assert!(
        run.stdout
            .starts_with("v: {\"a\":[1.5,\"ä\"]}\nb: 2.9 KiB, sha256 "),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("alan  NULL\n"), "{}", run.stdout);
}

#[test]
fn sql_prints_the_rows_of_queries_only() {
    let workspace = Workspace::new();
    workspace.write("t.csv", "name,n\nada,1\nalan,2\n");
    workspace.sql_job(
        2,
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't.csv' OPTIONS ('format.has_header' 'true');\n\
         SELECT name FROM t ORDER BY n DESC;\n\
         COPY (SELECT * FROM t) TO 'out/' STORED AS PARQUET;\n\
         SELECT sum(n) AS total FROM t;",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(
        run.stdout,
        "{\"name\":\"alan\"}\n{\"name\":\"ada\"}\n{\"total\":3}\n"
    );
    run.assert_stderr("2 rows");
    assert!(workspace.path().join("out").exists());
}

#[test]
fn a_failed_task_prints_what_was_finished_and_then_the_error() {
    let workspace = Workspace::new();
    workspace.graph_job(
        1,
        concat!(
            "{\"key\": \"good\", \"op\": \"value\", \"args\": {\"value\": 1}, \"priority\": 9}\n",
            "{\"key\": \"bad\", \"op\": \"fail\", \"args\": {\"message\": \"on purpose\"}}\n",
            "{\"key\": \"after\", \"op\": \"count\", \"inputs\": [\"bad\"]}\n",
        ),
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(1);
    assert_eq!(run.stdout, "{\"key\":\"good\",\"value\":1}\n");
    run.assert_stderr("error[OX208]: ");
    run.assert_stderr("on purpose");
    run.assert_stderr("`bad`");
    run.assert_stderr("\n\nhint: ");
    workspace.assert_clean(TIDY);
}

#[test]
fn what_nobody_offers_is_refused_before_anything_starts() {
    let workspace = Workspace::new();
    workspace.graph_job(
        1,
        "{\"key\": \"train\", \"op\": \"noop\", \"resources\": {\"gpu\": 2}}\n",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(1);
    run.assert_stderr("error[OX207]: ");
    run.assert_stderr("`train`");
    run.assert_stderr("`gpu`");
    workspace.graph_job(
        1,
        "{\"key\": \"train\", \"op\": \"noop\", \"workers\": [\"fast\"]}\n",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(1);
    run.assert_stderr("`fast`");
    for name in ["default", "default-0"] {
        let line = format!("{{\"key\": \"t\", \"op\": \"noop\", \"workers\": [\"{name}\"]}}\n");
        workspace.graph_job(1, &line);
        workspace.run(&["run", "job.yaml"]).expect(0);
    }
}

#[test]
fn wrong_files_are_status_2() {
    let workspace = Workspace::new();
    let run = workspace.run(&["run", "missing.yaml"]).expect(2);
    run.assert_stderr("error[OX101]: ");
    workspace.job(1, "grahp: {tasks: []}");
    workspace
        .run(&["run", "job.yaml"])
        .expect(2)
        .assert_stderr("grahp");
    workspace.graph_job(
        1,
        "{\"key\": \"a\", \"op\": \"noop\", \"inputs\": [\"a\"]}\n",
    );
    workspace
        .run(&["run", "job.yaml"])
        .expect(2)
        .assert_stderr("error[OX204]: ");
    workspace.sql_job(1, "SELECT 1;\nSELEKT 2;");
    workspace
        .run(&["run", "job.yaml"])
        .expect(2)
        .assert_stderr("query.sql:2:1");
    workspace.job(1, "job: {spec: {containers: []}}");
    workspace
        .run(&["run", "job.yaml"])
        .expect(2)
        .assert_stderr("error[OX107]: ");
    workspace.sql_job(1, "SELECT * FROM nowhere");
    workspace
        .run(&["run", "job.yaml"])
        .expect(1)
        .assert_stderr("nowhere");
    workspace.cluster(1);
    workspace
        .run(&["run", "cluster.yaml"])
        .expect(2)
        .assert_stderr("error[OX103]: ");
    assert!(workspace.leftovers().is_empty());
}

#[test]
fn wrong_flags_keep_the_form_of_the_command_line_parser() {
    let workspace = Workspace::new();
    let run = workspace
        .run(&["run", "--wrokers", "2", "job.yaml"])
        .expect(2);
    run.assert_stderr("error: unexpected argument '--wrokers' found");
    workspace
        .run(&["run", "job.yaml", "--workers", "0"])
        .expect(2);
    workspace
        .run(&["run", "job.yaml", "--memory", "much"])
        .expect(2);
    workspace
        .run(&["submit", "job.yaml"])
        .expect(2)
        .assert_stderr("--scheduler");
    workspace.run(&[]).expect(2);
    assert!(
        workspace
            .run(&["--version"])
            .expect(0)
            .stdout
            .starts_with("oxidask ")
    );
    assert!(
        workspace
            .run(&["run", "--help"])
            .expect(0)
            .stdout
            .contains("OXIDASK_WORKERS")
    );
}

#[test]
fn overrides_change_the_cluster() {
    let workspace = Workspace::new();
    workspace.graph_job(1, "{\"key\": \"a\", \"op\": \"noop\"}\n");
    let run = workspace
        .run(&["run", "job.yaml", "--workers", "3", "--memory=200MiB"])
        .expect(0);
    run.assert_stderr("on 3 workers");
}

#[test]
fn an_empty_graph_is_done_at_once() {
    let workspace = Workspace::new();
    workspace.graph_job(1, "");
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(run.stdout, "");
}

#[test]
fn progress_as_json_lines_and_not_at_all() {
    let workspace = Workspace::new();
    workspace.graph_job(
        1,
        "{\"key\": \"a\", \"op\": \"sleep\", \"args\": {\"seconds\": 0.3}}\n",
    );
    let run = workspace
        .run(&["run", "job.yaml", "--progress", "json"])
        .expect(0);
    let lines: Vec<serde_json::Value> = run
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.last().unwrap()["type"], "done");
    assert!(lines.iter().any(|line| line["type"] == "progress"));
    let run = workspace
        .run(&["run", "job.yaml", "--progress=none"])
        .expect(0);
    assert_eq!(run.stderr, "");
}

#[test]
fn many_outputs_stream_in_order() {
    let workspace = Workspace::new();
    let lines = values(20_000);
    workspace.graph_job(2, &lines);
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    let mut expected = String::new();
    for n in 0..20_000 {
        let _ = writeln!(expected, "{{\"key\":\"v-{n}\",\"value\":{n}}}");
    }
    assert!(run.stdout == expected, "{} bytes", run.stdout.len());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let workspace = Workspace::new();
    let lines = values(50_000);
    workspace.graph_job(2, &lines);
    let mut command = Command::new("bash");
    let program = env!("CARGO_BIN_EXE_oxidask");
    command
        .arg("-c")
        .arg(format!(
            "{program} run job.yaml | head -1; echo \"status ${{PIPESTATUS[0]}}\""
        ))
        .current_dir(workspace.path())
        .env("TMPDIR", workspace.path().join("tmp"))
        .stdin(Stdio::null());
    let run = Running::spawn(command).finish().expect(0);
    assert_eq!(run.stdout, "{\"key\":\"v-0\",\"value\":0}\nstatus 0\n");
    assert!(!run.stderr.contains("error"), "{}", run.stderr);
    workspace.assert_clean(TIDY);
}

#[test]
fn a_full_disk_is_an_error() {
    let workspace = Workspace::new();
    workspace.graph_job(1, "{\"key\": \"a\", \"op\": \"noop\"}\n");
    let mut command = Command::new("bash");
    let program = env!("CARGO_BIN_EXE_oxidask");
    command
        .arg("-c")
        .arg(format!("{program} run job.yaml > /dev/full"))
        .current_dir(workspace.path())
        .env("TMPDIR", workspace.path().join("tmp"));
    Running::spawn(command)
        .finish()
        .expect(1)
        .assert_stderr("error[OX115]: ");
    workspace.assert_clean(TIDY);
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let workspace = Workspace::new();
    workspace.graph_job(
        2,
        "{\"key\": \"a\", \"op\": \"sleep\", \"args\": {\"seconds\": 0.5}}\n\
         {\"key\": \"b\", \"op\": \"value\", \"inputs\": [\"a\"], \"args\": {\"value\": 7}}\n",
    );
    let runs = [
        workspace.start(&["run", "job.yaml"]),
        workspace.start(&["run", "job.yaml"]),
    ];
    for run in runs {
        let run = run.finish().expect(0);
        assert_eq!(run.stdout, "{\"key\":\"b\",\"value\":7}\n");
    }
    workspace.assert_clean(TIDY);
}

#[test]
fn a_deadline_ends_a_job() {
    let workspace = Workspace::new();
    workspace.write(
        "graph.jsonl",
        "{\"key\": \"a\", \"op\": \"sleep\", \"args\": {\"seconds\": 100}}\n",
    );
    workspace.job(1, "graph: {file: graph.jsonl}\n  activeDeadlineSeconds: 1");
    let run = workspace
        .start(&["run", "job.yaml"])
        .finish_within(TIDY * 2)
        .expect(1);
    run.assert_stderr("error[OX211]: the job took longer than its `1` s");
    workspace.assert_clean(TIDY);
}

#[test]
fn plain_lines_come_every_two_seconds_and_say_why_nothing_moves() {
    let workspace = Workspace::new();
    workspace.graph_job(
        1,
        "{\"key\": \"nap\", \"op\": \"sleep\", \"args\": {\"seconds\": 2.5}}\n",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.stderr);
    assert!(lines[0].starts_with("0 of 1 task done (nap 0/1); 1 worker, 1 of 1 slot busy"));
}

#[test]
fn what_only_pods_have_is_ignored_in_one_line() {
    let workspace = Workspace::new();
    let text = "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {name: test}\nspec:\n  \
                cluster: {spec: {worker: {image: a/b, nodeSelector: {a: b}}}}\n  \
                graph: {tasks: [{key: a, op: noop}]}\n";
    workspace.write("job.yaml", text);
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    let lines: Vec<&str> = run
        .stderr
        .lines()
        .filter(|line| line.contains("ignores"))
        .collect();
    assert_eq!(lines.len(), 1, "{}", run.stderr);
    assert!(
        lines[0].contains("image") && lines[0].contains("nodeSelector"),
        "{}",
        lines[0]
    );
}
