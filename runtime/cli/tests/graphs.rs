//! Graphs that nobody should write, and graphs at the limits: refused with their place, failed with
//! the task's key, or run to the end.

mod support;

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use support::Workspace;

const AT_ONCE: Duration = Duration::from_millis(100);
const TIDY: Duration = Duration::from_secs(2);

/// Lines of a graph file, the code they are refused with, and words of the message.
type Refusal = (&'static str, &'static str, &'static [&'static str]);

/// Lines that are no tasks.
const LINES: &[Refusal] = &[
    (
        "{\"key\": \"b\", op: noop}",
        "OX201",
        &["graph.jsonl:2:14: not valid JSON: key must be a string"],
    ),
    (
        "{\"key\": \"b\", \"op\": \"no",
        "OX201",
        &["graph.jsonl:2:22: not valid JSON"],
    ),
    (
        "[",
        "OX201",
        &["graph.jsonl:2:1: not valid JSON", "a list of tasks"],
    ),
    (
        "{",
        "OX201",
        &[
            "graph.jsonl:2:1: not valid JSON",
            "an object over several lines",
        ],
    ),
    ("- key: b", "OX201", &["graph.jsonl:2:2: not valid JSON"]),
    ("key,op", "OX201", &["graph.jsonl:2:1: "]),
    ("\0\0\0", "OX201", &["graph.jsonl:2:1: "]),
    (
        "{\"key\":\"b\",\"op\":\"noop\"},",
        "OX201",
        &["graph.jsonl:2:24: not valid JSON: trailing characters"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\"}{}",
        "OX201",
        &["graph.jsonl:2:24: "],
    ),
    (
        "{\"key\":\"b\",\"op\":\"value\",\"args\":{\"value\":NaN}}",
        "OX201",
        &["graph.jsonl:2:41: "],
    ),
    (
        "{\"key\":\"\\ud800\",\"op\":\"noop\"}",
        "OX201",
        &["graph.jsonl:2:15: "],
    ),
    (
        "[{\"key\":\"b\",\"op\":\"noop\"}]",
        "OX201",
        &[
            "graph.jsonl:2: a task is an object, not a list",
            "without the list",
        ],
    ),
    (
        "42",
        "OX201",
        &["graph.jsonl:2: a task is an object, not a number"],
    ),
    (
        "{\"key\":\"b\"}",
        "OX201",
        &["graph.jsonl:2: a task needs the field `op`"],
    ),
    (
        "{\"op\":\"noop\"}",
        "OX201",
        &["a task needs the field `key`"],
    ),
    (
        "{\"key\":\"\",\"op\":\"noop\"}",
        "OX201",
        &["`key` must be a string that is not empty"],
    ),
    (
        "{\"key\":7,\"op\":\"noop\"}",
        "OX201",
        &["`key` must be a string, not `7`"],
    ),
    (
        "{\"key\":\"b\",\"key\":\"c\",\"op\":\"noop\"}",
        "OX201",
        &["duplicate field `key`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"retires\":1}",
        "OX201",
        &["unknown field `retires`", "did you mean `retries`?"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"sleep\",\"seconds\":1}",
        "OX201",
        &["unknown field `seconds`", "a task has the fields key, op"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"inputs\":\"a\"}",
        "OX201",
        &["`inputs` must be a list of keys, not `\"a\"`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"inputs\":[1]}",
        "OX201",
        &["`inputs` must be a list of keys"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"args\":[1]}",
        "OX201",
        &["`args` must be an object"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"retries\":-1}",
        "OX201",
        &["`retries` must be an integer from 0"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"priority\":1000000000000}",
        "OX201",
        &["`priority` must be an integer from -2147483648"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"resources\":{\"gpu\":0.5}}",
        "OX201",
        &["`resources` must be an object of integers"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"workers\":\"fast\"}",
        "OX201",
        &["`workers` must be a list of names"],
    ),
    (
        "{\"outputs\":[\"a\"]}",
        "OX201",
        &["graph.jsonl:2: only the first line may name outputs"],
    ),
    (
        "{\"key\":\"a\",\"op\":\"noop\"}",
        "OX202",
        &["graph.jsonl:2: key `a` is already defined at graph.jsonl:1"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"inputs\":[\"zzz\"]}",
        "OX203",
        &["graph.jsonl:2: task `b` reads `zzz`, which is not defined"],
    ),
    (
        "{\"key\":\"b-1\",\"op\":\"noop\",\"inputs\":[\"b-2\"]}",
        "OX203",
        &["`b-2`", "did you mean `b-1`?"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"inputs\":[\"b\"]}",
        "OX204",
        &["graph.jsonl:2: ", "`b` -> `b`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"cuont\"}",
        "OX205",
        &[
            "graph.jsonl:2: operation `cuont` is unknown",
            "did you mean `count`?",
        ],
    ),
    (
        "{\"key\":\"b\",\"op\":\"\"}",
        "OX205",
        &["operation `` is unknown", "there are `noop`, `value`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"statement\"}",
        "OX205",
        &["operation `statement` is unknown"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"value\",\"args\":{\"valeu\":1}}",
        "OX205",
        &["`value` has no argument `valeu`", "did you mean `value`?"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"value\"}",
        "OX205",
        &["`value` needs the argument `value`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"noop\",\"args\":{\"x\":1}}",
        "OX205",
        &["`noop` takes no arguments"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"sleep\",\"args\":{\"seconds\":\"1\"}}",
        "OX205",
        &[
            "argument `seconds` of operation `sleep` must be",
            "not `\"1\"`",
        ],
    ),
    (
        "{\"key\":\"b\",\"op\":\"sleep\",\"args\":{\"seconds\":-1}}",
        "OX205",
        &["not `-1`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"sleep\",\"args\":{\"seconds\":1e300}}",
        "OX205",
        &["not `1e+300`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"bytes\",\"args\":{\"len\":-1}}",
        "OX205",
        &["`len`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"exec\",\"args\":{\"command\":\"ls -l\"}}",
        "OX205",
        &["must be a list of strings", "not `\"ls -l\"`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"exec\",\"args\":{\"command\":[]}}",
        "OX205",
        &["`command`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"exec\",\"args\":{\"command\":[\"a\\u0000\"]}}",
        "OX205",
        &["`command`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"exec\",\"args\":{\"command\":[\"a\"],\"env\":{\"A=B\":\"c\"}}}",
        "OX205",
        &["`env`"],
    ),
    (
        "{\"key\":\"b\",\"op\":\"exec\",\"args\":{\"command\":[\"a\"],\"timeoutSeconds\":0}}",
        "OX205",
        &["`timeoutSeconds`", "above 0"],
    ),
];

/// Whole files.
const FILES: &[Refusal] = &[
    (
        "\u{feff}{\"key\":\"a\",\"op\":\"noop\"}\n",
        "OX201",
        &["graph.jsonl:1: the text begins with a byte-order mark"],
    ),
    (
        "{\"outputs\":[\"a\",\"b\"]}\n{\"key\":\"a\",\"op\":\"noop\"}\n",
        "OX203",
        &["graph.jsonl:1: the output `b` is not defined"],
    ),
    (
        "{\"outputs\":[\"a\",\"a\"]}\n{\"key\":\"a\",\"op\":\"noop\"}\n",
        "OX201",
        &["the output `a` is named twice"],
    ),
    (
        "{\"outputs\":\"a\"}\n{\"key\":\"a\",\"op\":\"noop\"}\n",
        "OX201",
        &["`outputs` must be a list of keys"],
    ),
    (
        "{\"key\":\"x\",\"op\":\"noop\"}\n{\"key\":\"a\",\"op\":\"noop\",\"inputs\":[\"c\",\"x\"]}\n\
         {\"key\":\"b\",\"op\":\"noop\",\"inputs\":[\"a\"]}\n{\"key\":\"c\",\"op\":\"noop\",\"inputs\":[\"b\"]}\n",
        "OX204",
        &["graph.jsonl:2: tasks wait for each other: `a` -> `c` -> `b` -> `a`"],
    ),
];

/// One task (key `t`) that fails, over the inputs `list` (texts), `raw` (bytes) and `big`.
const FAILURES: &[Refusal] = &[
    (
        "\"op\":\"sum\",\"inputs\":[\"list\"]",
        "OX208",
        &["task `t`: ", "`sum` takes numbers", "input 0 has a string"],
    ),
    (
        "\"op\":\"max\",\"inputs\":[\"big\",\"raw\"]",
        "OX208",
        &["task `t`: ", "input 1 is bytes"],
    ),
    (
        "\"op\":\"sum\",\"inputs\":[\"big\",\"big\"]",
        "OX208",
        &["task `t`: ", "`sum` overflows"],
    ),
    (
        "\"op\":\"concat\",\"inputs\":[\"raw\",\"list\"]",
        "OX208",
        &["task `t`: ", "`concat` joins values or bytes"],
    ),
    (
        "\"op\":\"fail\",\"args\":{\"message\":\"b\\u001b[31mad\\nnews\"}",
        "OX208",
        &["task `t`: b\\u{1b}[31mad\nnews", "`retries`"],
    ),
    (
        "\"op\":\"fail\",\"retries\":3,\"args\":{\"attempts\":4}",
        "OX208",
        &["task `t`: "],
    ),
    (
        "\"op\":\"bytes\",\"args\":{\"len\":1000000000000000}",
        "OX301",
        &["task `t`: ", "1000000000000000 bytes", "memory"],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"no-such-program\"]}",
        "OX210",
        &[
            "task `t`: ",
            "`no-such-program` was not found",
            "no shell is implied",
        ],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"/etc/passwd\"]}",
        "OX210",
        &[
            "`/etc/passwd` cannot be started",
            "Permission denied",
            "executable?",
        ],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"/\"]}",
        "OX210",
        &["`/` cannot be started"],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"false\"]}",
        "OX210",
        &[
            "task `t`: the program `false` ended with exit status 1",
            "printed nothing",
        ],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"sh\",\"-c\",\"seq -f 'line %g' 50 >&2; exit 7\"]}",
        "OX210",
        &[
            "ended with exit status 7",
            "    line 31\n",
            "    line 50\n",
            "by hand",
        ],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"sh\",\"-c\",\"kill -9 $$\"]}",
        "OX210",
        &["ended with signal 9 (SIGKILL)"],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"sh\",\"-c\",\"sleep 1000 & sleep 1000\"],\"timeoutSeconds\":0.3}",
        "OX211",
        &[
            "task `t`: the program `sh` took longer than 0.3 s and was ended",
            "timeoutSeconds",
        ],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"yes\"]}",
        "OX206",
        &["task `t`: the program `yes` printed more than 64 MiB"],
    ),
    (
        "\"op\":\"exec\",\"args\":{\"command\":[\"sh\",\"-c\",\"yes >&2\"],\"timeoutSeconds\":0.3}",
        "OX211",
        &["    y\n"],
    ),
    (
        "\"op\":\"read\",\"args\":{\"location\":\"nowhere.csv\"}",
        "OX223",
        &["task `t`: ", "`nowhere.csv` does not exist"],
    ),
    (
        "\"op\":\"read\",\"args\":{\"location\":\"nowhere.txt\"}",
        "OX205",
        &["task `t`: ", "`nowhere.txt`", "`format`"],
    ),
    (
        "\"op\":\"sql\",\"inputs\":[\"raw\"],\"args\":{\"query\":\"SELECT 1\",\"as\":[\"x\"]}",
        "OX205",
        &["task `t`: the input `x` is not a table"],
    ),
    (
        "\"op\":\"sql\",\"args\":{\"query\":\"SELECT 1 FROM x\"}",
        "OX221",
        &["task `t`: ", "x"],
    ),
    (
        "\"op\":\"sql\",\"args\":{\"query\":\"SELEKT 1\"}",
        "OX220",
        &["task `t`: ", "SELEKT"],
    ),
    (
        "\"op\":\"write\",\"inputs\":[\"raw\"],\"args\":{\"location\":\"out.csv\"}",
        "OX205",
        &["task `t`: "],
    ),
];

#[test]
fn lines_and_files_that_are_no_graph() {
    let workspace = Workspace::new();
    for (line, code, words) in LINES {
        workspace.graph_job(1, &format!("{{\"key\":\"a\",\"op\":\"noop\"}}\n{line}\n"));
        workspace
            .run(&["run", "job.yaml"])
            .assert_refused(line, code, words);
    }
    for (text, code, words) in FILES {
        workspace.graph_job(1, text);
        workspace
            .run(&["run", "job.yaml"])
            .assert_refused(text, code, words);
    }
    workspace.write("graph.jsonl", b"\n{\"key\":\"\xff\",\"op\":\"noop\"}\n");
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_refused(
        "bad UTF-8",
        "OX201",
        &["graph.jsonl:2:9: the line is not valid UTF-8"],
    );
    workspace.assert_clean(AT_ONCE);
}

#[test]
fn graphs_inside_of_a_manifest() {
    let workspace = Workspace::new();
    for (work, code, words) in [
        (
            "[{key: a, op: noop}, {key: b, op: nop}]",
            "OX205",
            "spec.graph.tasks[1]: operation `nop` is unknown",
        ),
        (
            "[{key: a, op: noop}, {key: a, op: noop}]",
            "OX202",
            "spec.graph.tasks[1]: key `a` is already defined",
        ),
        (
            "[{key: a, op: noop, inputs: [a]}]",
            "OX204",
            "spec.graph.tasks[0]: tasks wait for each other",
        ),
        (
            "[7]",
            "OX201",
            "spec.graph.tasks[0]: a task is an object, not a number",
        ),
        (
            "'{\"key\":\"a\",\"op\":\"nop\"}'",
            "OX205",
            "spec.graph.tasks:1: operation `nop` is unknown",
        ),
    ] {
        workspace.job(1, &format!("graph: {{tasks: {work}}}"));
        let run = workspace.run(&["run", "job.yaml"]);
        run.assert_refused(work, code, &["job.yaml:6:", words]);
    }
    let tasks = "graph:\n    tasks:\n    - {key: a, op: noop}\n    - {key: b, op: nop}";
    workspace.job(1, tasks);
    let run = workspace.run(&["run", "job.yaml"]);
    let place = "job.yaml:9:7: spec.graph.tasks[1]: operation `nop`";
    run.assert_refused("the place of an item", "OX205", &[place]);
    workspace.job(1, "graph: {outputs: [b], tasks: [{key: a, op: noop}]}");
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_refused("outputs", "OX203", &["the output `b` is not defined"]);
}

#[test]
fn keys_and_lines_at_their_limits() {
    let workspace = Workspace::new();
    for key in ["k".repeat(1024), "ä".repeat(512)] {
        workspace.graph_job(1, &json!({"key": key, "op": "noop"}).to_string());
        let run = workspace.run(&["run", "job.yaml"]).expect(0);
        assert_eq!(run.json()[0]["key"], key.as_str());
        let long = json!({"key": key + "x", "op": "noop"}).to_string();
        workspace.graph_job(1, &long);
        let words = [
            "graph.jsonl:1: more than 1024 bytes in a key",
            "use shorter keys",
        ];
        workspace
            .run(&["run", "job.yaml"])
            .assert_refused("a long key", "OX206", &words);
    }
    workspace.graph_job(1, &format!("{{\"key\":\"{}", "x".repeat(100 << 20)));
    let words = ["graph.jsonl:1: more than 67108864 bytes in a line"];
    workspace
        .run(&["run", "job.yaml"])
        .assert_refused("a long line", "OX206", &words);
    workspace.graph_job(1, &nested(5000));
    let words = ["graph.jsonl:1:", "recursion limit exceeded"];
    workspace
        .run(&["run", "job.yaml"])
        .assert_refused("deep", "OX201", &words);
    workspace.graph_job(1, &nested(100));
    workspace.run(&["run", "job.yaml"]).expect(0);
    let mut cycle = String::new();
    for n in 0..100_000 {
        let line = json!({"key": format!("k{n}"), "op": "noop", "inputs": [format!("k{}", (n + 1) % 100_000)]});
        let _ = writeln!(cycle, "{line}");
    }
    workspace.graph_job(1, &cycle);
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_refused(
        "a long cycle",
        "OX204",
        &["`k0` -> `k1` -> ", " more … -> `k99999` -> `k0`"],
    );
    assert!(run.stderr.len() < 1000, "{}", run.stderr);
}

fn nested(depth: usize) -> String {
    let value = "[".repeat(depth) + &"]".repeat(depth);
    format!("{{\"key\":\"a\",\"op\":\"value\",\"args\":{{\"value\":{value}}}}}\n")
}

#[test]
fn keys_of_odd_characters() {
    let workspace = Workspace::new();
    let keys = [
        "quote\"s'`",
        "new\nline\ttab",
        "nul\0",
        "🦀 emoji",
        "\u{202e}turned",
        "back\\slash",
        " ",
        "\u{1b}[31mred",
        "é",
        "e\u{301}",
        "{}",
        "%s%n",
        "../../etc/passwd",
        "-",
        "--help",
        "$HOME",
    ];
    let mut lines = String::new();
    for (number, key) in keys.iter().enumerate() {
        let line = json!({"key": key, "op": "value", "args": {"value": number}});
        let _ = writeln!(lines, "{line}");
    }
    let sum = json!({"key": "sum\n", "op": "sum", "inputs": keys});
    let outputs = json!({"outputs": [keys[0], keys[1], keys[2], keys[3], "sum\n"]});
    workspace.graph_job(2, &format!("{outputs}\n{lines}{sum}\n"));
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    let total = keys.len() * (keys.len() - 1) / 2;
    let mut expected: Vec<_> = (0..4)
        .map(|n| json!({"key": keys[n], "value": n}))
        .collect();
    expected.push(json!({"key": "sum\n", "value": total}));
    assert_eq!(run.json(), expected);
    // In messages and tables they do not command the terminal.
    for output in ["json", "table"] {
        let fails = json!({"key": "\u{1b}[31m\n\0", "op": "fail", "args": {"message": "no"}});
        workspace.graph_job(1, &fails.to_string());
        let run = workspace.run(&["run", "job.yaml", "-o", output]).expect(1);
        run.assert_error(output, "OX208", &["task `", "[31m"]);
        assert!(!run.stderr.contains(['\u{1b}', '\0']), "{:?}", run.stderr);
    }
    let twice = format!("{}\n", json!({"key": "a\n\u{1b}[31m", "op": "noop"})).repeat(2);
    workspace.graph_job(1, &twice);
    let words = ["graph.jsonl:2: key `a\\n\\u{1b}[31m` is already defined"];
    workspace
        .run(&["run", "job.yaml"])
        .assert_refused("an odd key twice", "OX202", &words);
}

#[test]
fn failed_tasks_name_their_key_and_leave_nothing() {
    let workspace = Workspace::new();
    let inputs = "{\"outputs\":[\"list\",\"t\"]}\n\
        {\"key\":\"list\",\"op\":\"value\",\"priority\":9,\"args\":{\"value\":[\"a\"]}}\n\
        {\"key\":\"raw\",\"op\":\"bytes\",\"args\":{\"len\":3}}\n\
        {\"key\":\"big\",\"op\":\"value\",\"args\":{\"value\":9223372036854775807}}\n";
    for (task, code, words) in FAILURES {
        workspace.graph_job(1, &format!("{inputs}{{\"key\":\"t\",{task}}}\n"));
        let run = workspace.run(&["run", "job.yaml", "--memory=1GiB"]);
        run.assert_failed(task, code, words, "{\"key\":\"list\",\"value\":[\"a\"]}\n");
        assert!(!run.stderr.contains("died"), "{task}: {}", run.stderr);
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn programs_that_are_rude_do_no_harm() {
    let workspace = Workspace::new();
    for (what, command, stdout) in [
        ("reads standard input", "cat; echo done", "done\n"),
        ("leaves a child", "sleep 1000 & echo hi", "hi\n"),
        (
            "locks its folder",
            "mkdir -p a/b; echo 1 > a/b/c; chmod 000 a; echo hi",
            "hi\n",
        ),
        ("removes its folder", "rmdir \"$PWD\"; echo hi", "hi\n"),
        ("closes its output", "exec >&- 2>&-; sleep 0.1", ""),
        (
            "fills its standard error",
            "head -c 3000000 /dev/zero >&2; echo hi",
            "hi\n",
        ),
        ("ignores the end", "trap '' TERM INT HUP; echo hi", "hi\n"),
    ] {
        let task = json!({"key": "t", "op": "exec", "args": {"command": ["sh", "-c", command]}});
        let digest = json!({"key": "d", "op": "sha256", "inputs": ["t"]});
        let made = json!({"key": "e", "op": "exec", "args": {"command": ["printf", "%s", stdout]}});
        let expected = json!({"key": "f", "op": "sha256", "inputs": ["e"]});
        workspace.graph_job(1, &format!("{task}\n{digest}\n{made}\n{expected}\n"));
        let run = workspace.run(&["run", "job.yaml"]).expect(0);
        let lines = run.json();
        assert_eq!(lines[0]["value"], lines[1]["value"], "{what}");
        workspace.assert_clean(TIDY);
    }
    let long =
        json!({"key": "t", "op": "exec", "args": {"command": ["echo", "x".repeat(200_000)]}});
    workspace.graph_job(1, &long.to_string());
    let words = [
        "task `t`: ",
        "Argument list too long",
        "pass long texts as inputs",
    ];
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_failed("a long argument", "OX210", &words, "");
}

#[test]
fn a_task_that_kills_its_worker_is_blamed() {
    let workspace = Workspace::new();
    // A worker that dies at once may not have told that the task had started.
    workspace.graph_job(
        1,
        "{\"key\":\"good\",\"op\":\"value\",\"priority\":9,\"args\":{\"value\":1}}\n\
         {\"key\":\"killer\",\"op\":\"exec\",\"args\":{\"command\":[\"sh\",\"-c\",\"sleep 0.3; kill -9 $PPID\"]}}\n",
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(1);
    let words = ["task `killer` was running each of the 4 times that a worker died"];
    run.assert_error("killer", "OX303", &words);
    run.assert_stderr("worker `default-0` died (signal 9, SIGKILL)");
    workspace.assert_clean(TIDY);
}

/// A Parquet file that says that a column has less than no bytes: its reader panics.
#[test]
fn a_task_that_panics_fails_alone_and_its_worker_goes_on() {
    let workspace = Workspace::new();
    let mut damaged = include_bytes!("../../../examples/flights/data/airlines.parquet").to_vec();
    let size = &mut damaged[563];
    assert_eq!(
        *size, 0x08,
        "another file: look for the length of its column"
    );
    *size = 0x01;
    workspace.write("damaged.parquet", damaged);
    workspace.graph_job(
        1,
        "{\"key\":\"first\",\"op\":\"value\",\"priority\":9,\"args\":{\"value\":1}}\n\
         {\"key\":\"bad\",\"op\":\"read\",\"retries\":2,\"args\":{\"location\":\"damaged.parquet\"}}\n\
         {\"key\":\"second\",\"op\":\"value\",\"priority\":8,\"args\":{\"value\":2}}\n",
    );
    let run = workspace.run(&["run", "job.yaml"]);
    let finished = "{\"key\":\"first\",\"value\":1}\n{\"key\":\"second\",\"value\":2}\n";
    run.assert_failed(
        "a panic",
        "OX302",
        &["task `bad`: the task panicked: "],
        finished,
    );
    assert!(!run.stderr.contains("died"), "{}", run.stderr);
    workspace.assert_clean(TIDY);
}

#[test]
fn a_million_tasks_and_a_million_inputs() {
    let workspace = Workspace::new();
    let mut lines = "{\"outputs\":[\"end\"]}\n".to_owned();
    for n in 0..999_000 {
        let _ = writeln!(lines, "{{\"key\":\"t-{n}\",\"op\":\"noop\"}}");
    }
    let names = |prefix: &str, range: std::ops::Range<u32>| {
        let names: Vec<String> = range.map(|n| format!("\"{prefix}-{n}\"")).collect();
        names.join(",")
    };
    for n in 0..999 {
        let inputs = names("t", n * 1000..(n + 1) * 1000);
        let _ = writeln!(
            lines,
            "{{\"key\":\"g-{n}\",\"op\":\"count\",\"inputs\":[{inputs}]}}"
        );
    }
    let inputs = names("g", 0..999);
    let _ = writeln!(
        lines,
        "{{\"key\":\"end\",\"op\":\"sum\",\"inputs\":[{inputs}]}}"
    );
    workspace.graph_job(2, &lines);
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(run.stdout, "{\"key\":\"end\",\"value\":999000}\n");
    run.assert_stderr("done: 1,000,000 tasks in ");

    let pairs = vec!["\"v\",\"w\""; 500_000].join(",");
    let values = "{\"key\":\"v\",\"op\":\"value\",\"args\":{\"value\":1}}\n\
                  {\"key\":\"w\",\"op\":\"value\",\"args\":{\"value\":2}}\n";
    workspace.graph_job(
        1,
        &format!("{values}{{\"key\":\"end\",\"op\":\"sum\",\"inputs\":[{pairs}]}}\n"),
    );
    let run = workspace.run(&["run", "job.yaml"]).expect(0);
    assert_eq!(run.stdout, "{\"key\":\"end\",\"value\":1500000}\n");
    workspace.graph_job(
        1,
        &format!("{values}{{\"key\":\"end\",\"op\":\"sum\",\"inputs\":[{pairs},\"v\"]}}\n"),
    );
    let words = [
        "graph.jsonl:3: more than 1000000 inputs of a task",
        "combine the inputs in steps",
    ];
    workspace
        .run(&["run", "job.yaml"])
        .assert_refused("too many", "OX206", &words);
    workspace.assert_clean(TIDY);
}
