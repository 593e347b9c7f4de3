//! Graph files: what they mean, and what is said when they are wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Instant;

use bytes::Bytes;
use oxidask_client::graph_file::{
    GraphFileError, GraphPlan, GraphPlanBuilder, LINE_BYTES_MAX, TaskOptions,
};
use oxidask_core::{GraphChunk, Requirement};
use oxidask_diagnostic::Diagnostic;
use oxidask_exec::Body;
use oxidask_proto::CHUNK_BYTES_TARGET;
use oxidask_proto::graph::PlacedChunk;
use serde_json::{Value, json};

fn plan(text: &str) -> GraphPlan {
    GraphPlan::parse(text, "g.jsonl", None).unwrap()
}

/// The chunks as the scheduler reads them, which also checks them.
fn chunks(plan: &GraphPlan) -> Vec<(GraphChunk, Vec<Bytes>)> {
    let read = |(number, chunk)| {
        let placed = PlacedChunk::try_from(chunk).unwrap();
        assert_eq!(placed.number, number);
        (placed.chunk, placed.bodies)
    };
    (0..).zip(plan.chunks()).map(read).collect()
}

fn keys(plan: &GraphPlan) -> Vec<&str> {
    (0..plan.len())
        .map(|task| plan.key(u32::try_from(task).unwrap()))
        .collect()
}

fn outputs(plan: &GraphPlan) -> Vec<&str> {
    plan.outputs().iter().map(|task| plan.key(*task)).collect()
}

fn refused(text: &[u8]) -> Diagnostic {
    let error: GraphFileError = GraphPlan::read(text, "g.jsonl", None).unwrap_err();
    Diagnostic::from_error(&error)
}

/// Code, message and hint must be these; an empty hint means the code's own.
fn expect(text: &str, code: &str, message: &str, hint: &str) {
    let diagnostic = refused(text.as_bytes());
    let hint = if hint.is_empty() {
        diagnostic.code.hint()
    } else {
        hint
    };
    let expected = format!("error[{code}]: {message}\n\nhint: {hint}");
    let shown: String = text.chars().take(200).collect();
    assert_eq!(diagnostic.to_string(), expected, "{shown}");
}

#[test]
fn reads_every_field() {
    let plan = plan(concat!(
        "{\"outputs\": [\"c\", \"a\"]}\n",
        "\n",
        "{\"key\":\"a\",\"op\":\"value\",\"args\":{\"value\":{\"x\":[1]}},\"priority\":-7,",
        "\"retries\":3,\"resources\":{\"gpu\":1,\"disk\":2,\"none\":0},",
        "\"workers\":[\"w1\",\"big\",\"w1\"]}\r\n",
        "   \t\r\n",
        " {\"op\":\"sum\",\"inputs\":[\"a\",\"b\",\"a\"],\"key\":\"c\"} \n",
        "{\"key\":\"b\",\"op\":\"read\",\"args\":{\"location\":\"x\"},\"inputs\":[]}",
    ));
    assert_eq!(keys(&plan), ["a", "b", "c"]);
    assert_eq!(outputs(&plan), ["c", "a"]);
    assert_eq!(plan.inputs(2), [0, 1, 0]);
    assert_eq!(
        &plan.body(0)[..],
        br#"{"op":"value","args":{"value":{"x":[1]}}}"#
    );
    assert_eq!((plan.priority(0), plan.retries(0)), (-7, 3));
    assert_eq!((plan.priority(2), plan.retries(2)), (0, 0));
    assert_eq!(
        *plan.requirement(0),
        Requirement {
            slots: 1,
            resources: vec![("disk".to_owned(), 2), ("gpu".to_owned(), 1)],
            workers: vec!["big".to_owned(), "w1".to_owned()],
        }
    );
    assert_eq!(plan.requirement(1).slots, u32::MAX);
    assert_eq!(*plan.requirement(2), Requirement::default());
    assert_eq!(plan.requirements().len(), 3);
    assert_eq!(plan.first_with_requirement(1), Some(0));
    assert_eq!(plan.skipped(), 0);
}

#[test]
fn an_empty_graph_is_fine() {
    for text in ["", "\n\n", "{\"outputs\":[]}", " \n{\"outputs\":[]}\n"] {
        let plan = plan(text);
        assert!(plan.is_empty());
        let last = GraphChunk {
            is_last: true,
            ..GraphChunk::default()
        };
        assert_eq!(chunks(&plan), [(last, vec![])], "{text:?}");
    }
    assert!(
        GraphPlan::from_values(&[], "tasks", None)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn default_outputs_are_what_nothing_uses_in_order_of_appearance() {
    let plan = plan(concat!(
        "{\"key\":\"z\",\"op\":\"sum\",\"inputs\":[\"a\"]}\n",
        "{\"key\":\"a\",\"op\":\"noop\"}\n",
        "{\"key\":\"m\",\"op\":\"noop\"}\n",
    ));
    assert_eq!(outputs(&plan), ["z", "m"]);
    assert_eq!(keys(&plan), ["a", "z", "m"]);
}

#[test]
fn what_no_output_needs_is_left_out() {
    let text = concat!(
        "{\"outputs\":[\"c\"]}\n",
        "{\"key\":\"x\",\"op\":\"value\",\"args\":{\"value\":1},\"resources\":{\"gpu\":1}}\n",
        "{\"key\":\"a\",\"op\":\"noop\"}\n",
        "{\"key\":\"y\",\"op\":\"sum\",\"inputs\":[\"a\",\"x\"]}\n",
        "{\"key\":\"c\",\"op\":\"sum\",\"inputs\":[\"a\"]}\n",
    );
    let plan = plan(text);
    assert_eq!(keys(&plan), ["a", "c"]);
    assert_eq!(plan.skipped(), 2);
    assert_eq!(plan.bodies().len(), 2);
    assert_eq!(plan.requirements(), [Requirement::default()]);
    let none = GraphPlan::parse(text.split_once('\n').unwrap().1, "g", Some(&[])).unwrap();
    assert_eq!((none.len(), none.skipped()), (0, 4));
}

#[test]
fn outputs_may_be_named_outside_but_only_once() {
    let task = "{\"key\":\"a\",\"op\":\"noop\"}\n";
    let wanted = ["a".to_owned()];
    assert_eq!(
        outputs(&GraphPlan::parse(task, "g", Some(&wanted)).unwrap()),
        ["a"]
    );
    let text = format!("{{\"outputs\":[\"a\"]}}\n{task}");
    let error = GraphPlan::parse(&text, "g", Some(&wanted)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "g:1: outputs are named here and in the manifest"
    );
    let error = GraphPlan::parse(task, "job.yaml", Some(&["b".to_owned()])).unwrap_err();
    assert_eq!(error.to_string(), "job.yaml: the output `b` is not defined");
}

#[test]
fn lines_that_are_not_tasks_are_named() {
    let syntax = "OX201";
    let json = "each line is one whole JSON object; a list of tasks or an object over several \
                lines is not read";
    expect(
        "{\"key\":\"a\",\"op\":\"noop\"}\n\n{\"key\":",
        syntax,
        "g.jsonl:3:7: not valid JSON: EOF while parsing a value",
        json,
    );
    expect(
        "{'key': 1}",
        syntax,
        "g.jsonl:1:2: not valid JSON: key must be a string",
        json,
    );
    expect(
        "{\"key\":\"a\",\"op\":\"noop\"} x",
        syntax,
        "g.jsonl:1:25: not valid JSON: trailing characters",
        json,
    );
    expect(
        "# comment",
        syntax,
        "g.jsonl:1:1: not valid JSON: expected value",
        json,
    );
    expect(
        "{\"key\":\"a\",\"op\":\"value\",\"args\":{\"value\":NaN}}",
        syntax,
        "g.jsonl:1:41: not valid JSON: expected value",
        json,
    );
    expect(
        "[\"a\", \"noop\"]",
        syntax,
        "g.jsonl:1: a task is an object, not a list",
        "put each task on a line of its own, without the list around them",
    );
    expect(
        "7",
        syntax,
        "g.jsonl:1: a task is an object, not a number",
        "",
    );
    let deep = format!("{{\"key\":{}", "[".repeat(100_000));
    expect(
        &deep,
        syntax,
        "g.jsonl:1:134: not valid JSON: recursion limit exceeded",
        json,
    );
    expect(
        "{\"key\":\"a\",\"op\":\"noop\",\"key\":\"b\"}",
        syntax,
        "g.jsonl:1: duplicate field `key`",
        "",
    );
}

#[test]
fn fields_that_are_wrong_are_named() {
    let syntax = "OX201";
    expect(
        "{\"kye\":\"a\",\"op\":\"noop\"}",
        syntax,
        "g.jsonl:1: unknown field `kye`",
        "did you mean `key`?",
    );
    expect(
        "{\"key\":\"a\",\"op\":\"noop\",\"banana\\n\":1}",
        syntax,
        "g.jsonl:1: unknown field `banana\\n`",
        "a task has the fields key, op, inputs, args, priority, retries, resources, workers",
    );
    expect(
        "{\"op\":\"noop\"}",
        syntax,
        "g.jsonl:1: a task needs the field `key`",
        "",
    );
    expect(
        "\n{\"key\":\"a\"}",
        syntax,
        "g.jsonl:2: a task needs the field `op`",
        "",
    );
    expect("{}", syntax, "g.jsonl:1: a task needs the field `key`", "");
    expect(
        "{\"key\":\"\",\"op\":\"noop\"}",
        syntax,
        "g.jsonl:1: `key` must be a string that is not empty, not `\"\"`",
        "",
    );
}

#[test]
fn values_that_are_wrong_are_named() {
    let syntax = "OX201";
    for (field, value, expected) in [
        ("key", "5", "a string"),
        ("op", "[\"noop\"]", "a string"),
        ("inputs", "\"b\"", "a list of keys"),
        ("inputs", "[1]", "a list of keys"),
        ("outputs", "\"a\"", "a list of keys"),
        ("args", "[]", "an object"),
        (
            "priority",
            "1.5",
            "an integer from -2147483648 to 2147483647",
        ),
        (
            "priority",
            "2147483648",
            "an integer from -2147483648 to 2147483647",
        ),
        (
            "priority",
            "\"high\"",
            "an integer from -2147483648 to 2147483647",
        ),
        ("retries", "-1", "an integer from 0 to 4294967295"),
        ("retries", "1.0", "an integer from 0 to 4294967295"),
        ("retries", "4294967296", "an integer from 0 to 4294967295"),
        (
            "resources",
            "{\"gpu\":-1}",
            "an object of integers from 0 on",
        ),
        (
            "resources",
            "{\"gpu\":0.5}",
            "an object of integers from 0 on",
        ),
        ("resources", "[\"gpu\"]", "an object of integers from 0 on"),
        ("workers", "\"w1\"", "a list of names"),
        ("workers", "[null]", "a list of names"),
    ] {
        let line = format!("{{\"{field}\":{value}}}");
        let message = format!("g.jsonl:1: `{field}` must be {expected}, not `{value}`");
        expect(&line, syntax, &message, "");
    }
}

#[test]
fn bytes_that_are_not_text_are_refused() {
    let diagnostic = refused(b"\xef\xbb\xbf{\"key\":\"a\",\"op\":\"noop\"}");
    assert_eq!(
        diagnostic.message,
        "g.jsonl:1: the text begins with a byte-order mark"
    );
    assert_eq!(
        diagnostic.hint,
        "save the file as UTF-8 without a byte-order mark"
    );
    let diagnostic = refused(b"\n{\"key\":\"\xff\"}");
    assert_eq!(
        diagnostic.message,
        "g.jsonl:2:9: the line is not valid UTF-8"
    );
    let diagnostic = refused(b"\xff\xfe{\0");
    assert_eq!(
        diagnostic.message,
        "g.jsonl:1:1: the line is not valid UTF-8"
    );
    assert_eq!(
        refused(b"\0\0\0").message,
        "g.jsonl:1:1: not valid JSON: expected value"
    );
}

#[test]
fn keys_may_be_odd() {
    let odd = [
        "('x', 0)",
        " ",
        "\n",
        "\u{0}",
        "ключ🦀",
        "a\"b\\c",
        "a -> b",
        "\u{feff}",
    ];
    let text: String = odd
        .iter()
        .map(|key| json!({"key": key, "op": "noop"}).to_string() + "\n")
        .collect();
    assert_eq!(keys(&plan(&text)), odd);
    let long = "k".repeat(1024);
    assert_eq!(
        keys(&plan(&json!({"key": long, "op": "noop"}).to_string())),
        [long.as_str()]
    );
    let diagnostic = refused(
        json!({"key": long + "k", "op": "noop"})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(
        diagnostic.to_string().lines().next().unwrap(),
        "error[OX206]: g.jsonl:1: more than 1024 bytes in a key"
    );
}

#[test]
fn a_key_twice_names_both_lines() {
    expect(
        "{\"key\":\"a\",\"op\":\"noop\"}\n\n{\"key\":\"\\u0061\",\"op\":\"noop\"}",
        "OX202",
        "g.jsonl:3: key `a` is already defined at g.jsonl:1",
        "",
    );
}

#[test]
fn an_undefined_input_is_named_with_what_was_meant() {
    expect(
        "{\"key\":\"b\",\"op\":\"sum\",\"inputs\":[\"load-11\"]}\n{\"key\":\"load-1\",\"op\":\"noop\"}",
        "OX203",
        "g.jsonl:1: task `b` reads `load-11`, which is not defined",
        "did you mean `load-1`?",
    );
    expect(
        "{\"key\":\"b\",\"op\":\"sum\",\"inputs\":[\"\"]}",
        "OX203",
        "g.jsonl:1: task `b` reads ``, which is not defined",
        "",
    );
    expect(
        "{\"outputs\":[\"sums\"]}\n{\"key\":\"sum\",\"op\":\"noop\"}",
        "OX203",
        "g.jsonl:1: the output `sums` is not defined",
        "did you mean `sum`?",
    );
    expect(
        "{\"outputs\":[\"b\"]}\n{\"key\":\"a\",\"op\":\"noop\",\"inputs\":[\"b\"]}",
        "OX203",
        "g.jsonl:2: task `a` reads `b`, which is not defined",
        "",
    );
}

#[test]
fn a_cycle_is_printed() {
    expect(
        "{\"key\":\"a\",\"op\":\"sum\",\"inputs\":[\"a\"]}",
        "OX204",
        "g.jsonl:1: tasks wait for each other: `a` -> `a`",
        "",
    );
    let line = |key: &str, inputs: &[&str]| {
        json!({"key": key, "op": "sum", "inputs": inputs}).to_string() + "\n"
    };
    let text = line("x", &["b"])
        + &line("a", &["b", "x"])
        + &line("b", &["ok", "c"])
        + &line("ok", &[])
        + &line("c", &["a"]);
    expect(
        &text,
        "OX204",
        "g.jsonl:3: tasks wait for each other: `b` -> `c` -> `a` -> `b`",
        "",
    );
    // Also where no output needs it.
    let text = format!("{{\"outputs\":[\"ok\"]}}\n{text}");
    assert_eq!(refused(text.as_bytes()).code.to_string(), "OX204");
    let long: String = (0..100_000)
        .map(|i| line(&format!("k{i}"), &[&format!("k{}", (i + 1) % 100_000)]))
        .collect();
    let message = refused(long.as_bytes()).message;
    assert!(
        message.contains("-> … 99988 more … -> `k99999` -> `k0`"),
        "{message}"
    );
    assert!(message.len() < 400, "{message}");
}

#[test]
fn operations_are_checked() {
    let code = "OX205";
    expect(
        "{\"key\":\"a\",\"op\":\"cuont\"}",
        code,
        "g.jsonl:1: operation `cuont` is unknown",
        "did you mean `count`?",
    );
    expect(
        "{\"key\":\"a\",\"op\":\"noop\"}\n{\"key\":\"b\",\"op\":\"sleep\",\"args\":{\"second\":1}}",
        code,
        "g.jsonl:2: operation `sleep` has no argument `second`",
        "did you mean `seconds`?",
    );
    expect(
        "{\"key\":\"a\",\"op\":\"bytes\",\"args\":{\"len\":-1}}",
        code,
        "g.jsonl:1: argument `len` of operation `bytes` must be an integer from 0 on, not `-1`",
        "",
    );
    expect(
        "{\"key\":\"a\",\"op\":\"statement\"}",
        code,
        "g.jsonl:1: operation `statement` is unknown",
        &refused(b"{\"key\":\"a\",\"op\":\"statement\"}").hint,
    );
}

#[test]
fn outputs_stand_alone_and_first() {
    let syntax = "OX201";
    let task = "{\"key\":\"a\",\"op\":\"noop\"}";
    expect(
        &format!("{task}\n{{\"outputs\":[\"a\"]}}"),
        syntax,
        "g.jsonl:2: only the first line may name outputs",
        "",
    );
    expect(
        &format!("{{\"outputs\":[\"a\"]}}\n{{\"outputs\":[\"a\"]}}\n{task}"),
        syntax,
        "g.jsonl:2: only the first line may name outputs",
        "",
    );
    expect(
        "{\"outputs\":[\"a\"],\"key\":\"a\"}",
        syntax,
        "g.jsonl:1: `outputs` stands on a line of its own, before all tasks",
        "",
    );
    expect(
        &format!("{{\"outputs\":[\"a\",\"a\"]}}\n{task}"),
        syntax,
        "g.jsonl:1: the output `a` is named twice",
        "",
    );
}

#[test]
fn limits_are_told() {
    let inputs = vec!["a"; 1_000_001];
    let text = json!({"key": "b", "op": "count", "inputs": inputs}).to_string();
    expect(
        &text,
        "OX206",
        "g.jsonl:1: more than 1000000 inputs of a task",
        "combine the inputs in steps: first groups of them, then the results of the groups",
    );
    let text = json!({"key": "b", "op": "value", "args": {"value": "x".repeat(16 << 20)}});
    expect(
        &text.to_string(),
        "OX206",
        "g.jsonl:1: more than 16777216 bytes in a task's operation and arguments",
        "",
    );
    let endless = std::io::BufReader::new(std::io::repeat(b' '));
    let error = GraphPlan::read(endless, "endless", None).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("endless:1: more than {LINE_BYTES_MAX} bytes in a line")
    );
    let many: String = (0..=1024)
        .map(|i| {
            json!({"key": i.to_string(), "op": "noop", "resources": {"r": i}}).to_string() + "\n"
        })
        .collect();
    assert_eq!(plan(&many).requirements().len(), 1025);
    let one_more = many + "{\"key\":\"x\",\"op\":\"noop\",\"workers\":[\"w\"]}";
    expect(
        &one_more,
        "OX206",
        "g.jsonl:1026: more than 1024 different resources and workers in a graph",
        "",
    );
    let names: Vec<String> = (0..1025).map(|i| i.to_string()).collect();
    let text = json!({"key": "a", "op": "noop", "workers": names}).to_string();
    expect(
        &text,
        "OX206",
        "g.jsonl:1: more than 1024 resources or workers of a task",
        "",
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is on fire"))
        }
    }
    let error = GraphPlan::read(std::io::BufReader::new(Broken), "g.jsonl", None).unwrap_err();
    let diagnostic = Diagnostic::from_error(&error);
    assert_eq!(diagnostic.message, "`g.jsonl` cannot be read");
    assert_eq!(diagnostic.causes, ["the disk is on fire"]);
}

#[test]
fn inline_tasks_mean_the_same_as_lines() {
    let tasks = [
        json!({"key": "c", "op": "sum", "inputs": ["b", "a"], "priority": 2}),
        json!({"key": "a", "op": "value", "args": {"value": 1}, "retries": 1}),
        json!({"key": "b", "op": "noop", "workers": ["w"], "resources": {"gpu": 1}}),
    ];
    let inline = GraphPlan::from_values(&tasks, "job.yaml: spec.graph.tasks", None).unwrap();
    let text: String = tasks.iter().map(|task| task.to_string() + "\n").collect();
    let lines = plan(&text);
    assert_eq!(chunks(&inline), chunks(&lines));
    for (task, message) in [
        (json!([1]), "a task is an object, not a list"),
        (json!(null), "a task is an object, not null"),
        (json!({"key": "x", "opp": "noop"}), "unknown field `opp`"),
        (
            json!({"key": "x", "op": "noop", "retries": -1}),
            "`retries` must be an integer from 0 to 4294967295, not `-1`",
        ),
        (
            json!({"key": "c", "op": "noop"}),
            "key `c` is already defined at tasks[0]",
        ),
        (
            json!({"key": "x", "op": "noop", "inputs": ["y"]}),
            "task `x` reads `y`, which is not defined",
        ),
    ] {
        let tasks = [tasks.as_slice(), &[task]].concat();
        let error = GraphPlan::from_values(&tasks, "tasks", None).unwrap_err();
        assert_eq!(error.to_string(), format!("tasks[3]: {message}"));
    }
}

/// What a scheduler would have after all chunks.
#[derive(Default)]
struct Received {
    keys: Vec<String>,
    bodies: Vec<Bytes>,
    groups: Vec<String>,
    requirements: Vec<Requirement>,
    inputs: Vec<Vec<u32>>,
    body: Vec<u32>,
    wanted: Vec<u32>,
}

/// Takes the chunks as the protocol says and checks its rules.
fn receive(plan: &GraphPlan) -> Received {
    let mut received = Received {
        requirements: vec![Requirement::default()],
        ..Received::default()
    };
    let chunks = chunks(plan);
    let count = chunks.len();
    for (number, (chunk, bodies)) in chunks.into_iter().enumerate() {
        assert_eq!(chunk.is_last, number + 1 == count);
        assert_eq!(chunk.new_bodies_count as usize, bodies.len());
        let tasks_count = chunk.len();
        assert_eq!(chunk.key_lengths.len(), tasks_count);
        assert_eq!(chunk.group.len(), tasks_count);
        for column in [
            chunk.requirement.len(),
            chunk.priority.len(),
            chunk.retries.len(),
            chunk.input_counts.len(),
        ] {
            assert!(column == 0 || column == tasks_count);
        }
        received.bodies.extend(bodies);
        received.groups.extend(chunk.new_groups);
        received.requirements.extend(chunk.new_requirements);
        let (mut key_start, mut input_start) = (0, 0);
        for task in 0..tasks_count {
            let key_end = key_start + chunk.key_lengths[task] as usize;
            received
                .keys
                .push(chunk.keys[key_start..key_end].to_owned());
            key_start = key_end;
            let inputs_count = chunk
                .input_counts
                .get(task)
                .map_or(0, |count| *count as usize);
            let inputs = &chunk.inputs[input_start..input_start + inputs_count];
            input_start += inputs_count;
            let position = u32::try_from(received.inputs.len()).unwrap();
            assert!(
                inputs.iter().all(|input| input.0 < position),
                "inputs come first"
            );
            received
                .inputs
                .push(inputs.iter().map(|input| input.0).collect());
            assert!((chunk.body[task] as usize) < received.bodies.len());
            assert!((chunk.group[task] as usize) < received.groups.len());
            let requirement = chunk.requirement.get(task).copied().unwrap_or(0);
            assert!((requirement as usize) < received.requirements.len());
            received.body.push(chunk.body[task]);
        }
        assert_eq!(
            (key_start, input_start),
            (chunk.keys.len(), chunk.inputs.len())
        );
        assert!(
            chunk
                .wanted
                .iter()
                .all(|task| (task.0 as usize) < received.keys.len())
        );
        received
            .wanted
            .extend(chunk.wanted.iter().map(|task| task.0));
    }
    received
}

#[test]
fn chunks_carry_everything_and_are_of_bounded_size() {
    let mut builder = GraphPlanBuilder::new("test");
    let mut tasks = Vec::new();
    for number in 0..100_000_u32 {
        let body = match number % 10 {
            0 => Body::new("value").with("value", "x".repeat(100) + &number.to_string()),
            1 => Body::new("read").with("location", "here"),
            _ => Body::new("count"),
        };
        let inputs: Vec<u32> = tasks.iter().rev().take(3).copied().collect();
        let options = TaskOptions {
            priority: i32::from(number > 90_000),
            resources: if number % 1000 == 999 {
                vec![("gpu".to_owned(), 1)]
            } else {
                vec![]
            },
            ..TaskOptions::default()
        };
        let key = format!(
            "{}-{number}",
            ["read", "map", "tree", "sum"][number as usize / 30_000]
        );
        tasks.push(builder.task_with(&key, &body, &inputs, options).unwrap());
    }
    builder.output(tasks[99_999]);
    builder.output(tasks[5]);
    let plan = builder.finish().unwrap();
    let received = receive(&plan);
    assert_eq!(received.keys, keys(&plan));
    assert_eq!(received.bodies, plan.bodies());
    assert_eq!(received.groups, ["read", "map", "tree", "sum"]);
    assert_eq!(received.requirements, plan.requirements());
    assert_eq!(received.wanted, [5, 99_999]);
    assert_eq!(plan.outputs(), [99_999, 5]);
    assert_eq!(received.inputs[50_000], [49_999, 49_998, 49_997]);
    assert_eq!(
        received.bodies[received.body[50_001] as usize],
        Body::new("read").with("location", "here").encode()
    );
    let sizes: Vec<usize> = chunks(&plan)
        .iter()
        .map(|(chunk, bodies)| encoded_bytes(chunk, bodies))
        .collect();
    assert!(sizes.len() > 2);
    for size in &sizes {
        assert!(
            *size < CHUNK_BYTES_TARGET + CHUNK_BYTES_TARGET / 4,
            "{sizes:?}"
        );
    }
}

/// About what the wire takes: numbers of up to five bytes.
fn encoded_bytes(chunk: &GraphChunk, bodies: &[Bytes]) -> usize {
    let numbers = chunk.key_lengths.len()
        + chunk.body.len()
        + chunk.group.len()
        + chunk.requirement.len()
        + chunk.priority.len()
        + chunk.retries.len()
        + chunk.input_counts.len();
    chunk.keys.len()
        + 2 * numbers
        + 4 * chunk.inputs.len()
        + bodies.iter().map(|body| body.len() + 3).sum::<usize>()
}

#[test]
fn a_million_inputs_of_one_task_sit_in_one_chunk() {
    let mut text = String::from("{\"key\":\"all\",\"op\":\"count\",\"inputs\":[\"a\"");
    text.push_str(&",\"a\"".repeat(999_999));
    text.push_str("]}\n{\"key\":\"a\",\"op\":\"noop\"}\n{\"key\":\"b\",\"op\":\"noop\"}");
    let plan = plan(&text);
    assert_eq!(plan.inputs(1).len(), 1_000_000);
    let chunks: Vec<_> = chunks(&plan).into_iter().map(|(chunk, _)| chunk).collect();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0].input_counts, [0, 1_000_000]);
    assert_eq!(keys(&plan), ["a", "all", "b"]);
    receive(&plan);
}

#[test]
fn bodies_are_shared() {
    let text: String = (0..1000)
        .map(|i| {
            json!({"key": i.to_string(), "op": "value", "args": {"value": i % 3}}).to_string()
                + "\n"
        })
        .collect();
    let plan = plan(&text);
    assert_eq!(plan.bodies().len(), 3);
    assert_eq!(plan.body(0), plan.body(999));
    assert_eq!(plan.groups().len(), 1000);
}

#[test]
fn groups_are_bounded() {
    let text: String = (0..5000)
        .map(|i| {
            json!({"key": format!("{}x", "ab".repeat(i % 40) + &i.to_string()), "op": "noop"})
                .to_string()
                + "\n"
        })
        .collect();
    let plan = plan(&text);
    assert_eq!(plan.groups().len(), 1024);
    assert_eq!(plan.group(4999), "others");
    receive(&plan);
}

#[test]
fn the_builder_refuses_what_does_not_exist() {
    let mut builder = GraphPlanBuilder::new("query");
    let one = builder.task("one", &Body::new("statement"), &[]).unwrap();
    assert_eq!(one, 0);
    let error = builder
        .task("two", &Body::new("noop"), &[one, 7])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "query: task `two` reads `task number 7`, which is not defined"
    );
    let error = builder.task("one", &Body::new("noop"), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "query: key `one` is already defined at query"
    );
    assert!(builder.task("", &Body::new("noop"), &[]).is_err());
    builder.output(3);
    assert!(builder.finish().is_err());
}

/// A million tasks in any order, in bounded time even in a build for tests.
#[test]
fn a_million_tasks_are_read_in_seconds() {
    use std::fmt::Write;
    let mut text = String::new();
    for number in (0..1_000_000_u32).rev() {
        if number == 0 {
            text.push_str("{\"key\":\"chain-0\",\"op\":\"noop\"}\n");
        } else {
            writeln!(
                text,
                "{{\"key\":\"chain-{number}\",\"op\":\"noop\",\"inputs\":[\"chain-{}\"]}}",
                number - 1
            )
            .unwrap();
        }
    }
    let start = Instant::now();
    let plan = plan(&text);
    let taken = start.elapsed();
    assert_eq!(plan.len(), 1_000_000);
    assert_eq!(
        (plan.key(0), plan.key(999_999)),
        ("chain-0", "chain-999999")
    );
    assert_eq!(outputs(&plan), ["chain-999999"]);
    let start = Instant::now();
    let tasks: usize = plan.chunks().map(|chunk| chunk.body.len()).sum();
    println!("read in {taken:?}, cut in {:?}", start.elapsed());
    assert_eq!(tasks, 1_000_000);
    assert!(taken.as_secs() < 20, "{taken:?}");
}

#[test]
fn numbers_keep_their_form() {
    let line =
        "{\"key\":\"a\",\"op\":\"value\",\"args\":{\"value\":[18446744073709551615,-0.0,1e5,1.0]}}";
    let body: Value = serde_json::from_slice(plan(line).body(0)).unwrap();
    assert_eq!(
        body["args"]["value"].to_string(),
        "[18446744073709551615,-0.0,100000.0,1.0]"
    );
}
