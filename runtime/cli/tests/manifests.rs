//! Manifests that nobody should write: each is refused with its place and a hint, and nothing is
//! started.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use support::Workspace;

const HEAD: &str =
    "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {name: test}\nspec:\n";
const CLUSTER: &str = "  cluster: {spec: {worker: {replicas: 1, threads: 1}}}\n";
const WORK: &str = "  graph: {tasks: [{key: a, op: noop}]}\n";
const AT_ONCE: Duration = Duration::from_millis(100);

/// A text, the code it is refused with, and words of the message.
type Refusal = (&'static str, &'static str, &'static [&'static str]);

fn good() -> String {
    [HEAD, CLUSTER, WORK].concat()
}

#[track_caller]
fn refuse(workspace: &Workspace, what: &str, text: impl AsRef<[u8]>, code: &str, words: &[&str]) {
    workspace.write("job.yaml", text);
    let run = workspace.run(&["run", "job.yaml"]);
    run.assert_refused(what, code, words);
    workspace.assert_clean(AT_ONCE);
}

/// Whole files.
const FILES: &[Refusal] = &[
    ("", "OX103", &["job.yaml: the file holds no object"]),
    ("\n  \n\n", "OX103", &["holds no object"]),
    ("# nothing here\n", "OX103", &["holds no object"]),
    ("---\n---\n", "OX103", &["holds no object"]),
    ("~\n", "OX103", &["holds no object"]),
    (
        "42\n",
        "OX103",
        &["job.yaml:1:1: found a number, expected an object"],
    ),
    ("- a\n- b\n", "OX103", &["job.yaml:1:1: found a list"]),
    (
        "Dear oxidask, run my job.\n",
        "OX103",
        &["job.yaml:1:1: found a text"],
    ),
    ("SELECT 1;\n", "OX103", &["found a text", "DaskJob"]),
    (
        "{\n  a: [1, 2\n",
        "OX102",
        &["job.yaml:2:6: unclosed bracket"],
    ),
    ("a: b: c\n", "OX102", &["job.yaml:1:5: ", "`a: b: c`"]),
    ("a: 1\n\tb: 2\n", "OX102", &["job.yaml:", "tab"]),
    ("[package]\nname = \"x\"\n", "OX102", &["job.yaml:2:1: "]),
    ("a: &a [*a]\n", "OX102", &["job.yaml:1:"]),
    ("a: 1\n\0\0\n", "OX102", &["job.yaml:2:1: "]),
    ("a: 1\n", "OX103", &["the object has no `apiVersion`"]),
    (
        "apiVersion: kubernetes.dask.org/v2\nkind: DaskJob\n",
        "OX103",
        &["`apiVersion` is `kubernetes.dask.org/v2`, expected `kubernetes.dask.org/v1`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\n",
        "OX103",
        &["has no `kind`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: Pod\n",
        "OX103",
        &[
            "job.yaml:",
            "`kind` is `Pod`, expected `DaskJob` or `DaskCluster`",
        ],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: daskjob\n",
        "OX103",
        &["`daskjob`", "hint: did you mean `kind: DaskJob`?"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskAutoscaler\n",
        "OX103",
        &["`DaskAutoscaler`", "`autoscale`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskCluster\nmetadata: {name: a}\n\
         spec: {worker: {replicas: 1}}\n",
        "OX103",
        &["found a DaskCluster, expected a DaskJob", "`oxidask up`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {name: a}\n",
        "OX105",
        &["job.yaml:1:1: the object lacks the field `spec`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nspec:\n  cluster: {spec: {worker: {}}}\n",
        "OX105",
        &["the object lacks the field `metadata`"],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {name: My_Job}\nspec:\n  \
         cluster: {spec: {worker: {}}}\n  sql: {statements: SELECT 1}\n",
        "OX105",
        &[
            "job.yaml:3:18: `metadata.name` is `My_Job`",
            "lower-case letters",
        ],
    ),
    (
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {name: 12}\nspec:\n  \
         cluster: {spec: {worker: {}}}\n  sql: {statements: SELECT 1}\n",
        "OX105",
        &["`metadata.name` is `12`, but must be a text; put it into quotes"],
    ),
];

/// What may stand below `spec`, beside a good cluster.
const SPECS: &[Refusal] = &[
    ("", "OX106", &["job.yaml:5:3: the job has no work"]),
    ("  sql:\n", "OX106", &["the job has no work"]),
    (
        "  graph: {tasks: []}\n  sql: {statements: SELECT 1}\n",
        "OX106",
        &["job.yaml:6:", "2 kinds of work: `sql` and `graph`"],
    ),
    (
        "  graph: {tasks: []}\n  sql: {statements: a}\n  script: {source: a}\n  job: {spec: {}}\n",
        "OX106",
        &["4 kinds of work: `sql`, `graph`, `script` and `job`"],
    ),
    (
        "  sql: {}\n",
        "OX106",
        &["job.yaml:6:8: `spec.sql` has no source"],
    ),
    (
        "  sql: {statements: SELECT 1, file: q.sql}\n",
        "OX106",
        &["job.yaml:6:37: `spec.sql` has 2 sources: `statements` and `file`"],
    ),
    (
        "  sql: SELECT 1\n",
        "OX105",
        &["job.yaml:6:8: `spec.sql` is the text `SELECT 1`"],
    ),
    (
        "  sql: {statements: [SELECT 1]}\n",
        "OX105",
        &["job.yaml:6:21: `spec.sql.statements` is a list, but must be a text"],
    ),
    (
        "  sql: {file: nowhere.sql}\n",
        "OX101",
        &["cannot read `nowhere.sql`", "No such file"],
    ),
    (
        "  graph: {file: nowhere.jsonl}\n",
        "OX101",
        &["cannot read `nowhere.jsonl`"],
    ),
    (
        "  sql: {file: tmp}\n",
        "OX101",
        &["`tmp` is a folder, not a file"],
    ),
    (
        "  graph: {file: tmp}\n",
        "OX101",
        &["`tmp` cannot be read", "directory"],
    ),
    (
        "  sql: {configMapKeyRef: {name: q, key: a.sql}}\n",
        "OX105",
        &[
            "job.yaml:6:26: ",
            "the ConfigMap `q`, which a local run looks for in the same file",
        ],
    ),
    (
        "  sql: {configMapKeyRef: {name: q, key: a.sql}}\n---\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {name: q}\ndata: {b.sql: SELECT 1}\n",
        "OX105",
        &["names the key `a.sql`, which `q` does not have"],
    ),
    (
        "  grahp: {tasks: []}\n",
        "OX104",
        &["job.yaml:6:3: unknown field `spec.grahp`; did you mean `graph`?"],
    ),
    (
        "  x: 1\n  graph: {tasks: []}\n",
        "OX104",
        &["`spec.x`", "`activeDeadlineSeconds`"],
    ),
    (
        "  graph: {tasks: {a: {op: noop}}}\n",
        "OX105",
        &["job.yaml:6:18: `spec.graph.tasks` is an object"],
    ),
    (
        "  graph: {tasks: []}\n  activeDeadlineSeconds: 0\n",
        "OX105",
        &[
            "job.yaml:7:26: `spec.activeDeadlineSeconds` is `0`, but must be",
            "1 or more",
        ],
    ),
    (
        "  graph: {tasks: []}\n  activeDeadlineSeconds: -1\n",
        "OX105",
        &["is `-1`"],
    ),
    (
        "  job: {spec: {containers: []}}\n",
        "OX107",
        &["`job`", "`kubectl apply`"],
    ),
    (
        "  graph: {tasks: []}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
        "OX103",
        &["job.yaml: the file holds 2 objects: DaskJob at line 1, Service at line 8"],
    ),
];

/// Fields of `worker`.
const WORKERS: &[Refusal] = &[
    (
        "replcas: 2",
        "OX104",
        &[
            "job.yaml:5:29: unknown field `spec.cluster.spec.worker.replcas`; did you mean `replicas`?",
        ],
    ),
    (
        "replicas: 1, banana: 2",
        "OX104",
        &["job.yaml:5:42: ", "worker.banana`", "`taskResources`"],
    ),
    (
        "a: 1, b: 2, c: 3",
        "OX104",
        &["3 unknown fields", "at 5:29: ", "at 5:35: ", "at 5:41: "],
    ),
    ("Replicas: 1", "OX104", &["did you mean `replicas`?"]),
    (
        "task_resources: {}",
        "OX104",
        &["did you mean `taskResources`?"],
    ),
    (
        "replicas: 1, replicas: 2",
        "OX102",
        &["job.yaml:5:42: the field `replicas` is given twice"],
    ),
    (
        "replicas: -3",
        "OX105",
        &["job.yaml:5:39: `spec.cluster.spec.worker.replicas` is `-3`, but must be a whole number"],
    ),
    (
        "replicas: two",
        "OX105",
        &["is the text `two`, but must be a whole number"],
    ),
    (
        "replicas: '2'",
        "OX105",
        &["is the text `2`, but must be a whole number"],
    ),
    ("replicas: 1.5", "OX105", &["is `1.5`"]),
    ("replicas: true", "OX105", &["is `true`"]),
    ("replicas: [1]", "OX105", &["is a list"]),
    ("replicas: 100000000000", "OX105", &["is `100000000000`"]),
    (
        "replicas: 20000",
        "OX105",
        &["is `20000`, but a group has at most 10000 workers"],
    ),
    (
        "replicas: 5000",
        "OX206",
        &["5000 workers", "at most 256", "`--workers 4`"],
    ),
    (
        "threads: 0",
        "OX105",
        &["job.yaml:5:38: ", "is `0`, but must be from 1 to 4096"],
    ),
    ("threads: -1", "OX105", &["is `-1`"]),
    (
        "resources: {limits: {memory: lots}}",
        "OX105",
        &["job.yaml:5:58: ", "`lots` is not a quantity"],
    ),
    (
        "resources: {limits: {memory: 512m}}",
        "OX105",
        &["`512m`", "`m` means a thousandth"],
    ),
    (
        "resources: {limits: {memory: 2GB}}",
        "OX105",
        &["Kubernetes writes `2G`"],
    ),
    (
        "resources: {limits: {memory: 2 Gi}}",
        "OX105",
        &["Kubernetes writes `2Gi`"],
    ),
    (
        "resources: {limits: {memory: -1Gi}}",
        "OX105",
        &["`-1Gi` is below zero"],
    ),
    (
        "resources: {limits: {memory: 99999999999999999999Gi}}",
        "OX105",
        &["larger than any amount"],
    ),
    (
        "resources: {limits: {memory: 1e400}}",
        "OX102",
        &["job.yaml:5:58: the number `1e400`"],
    ),
    (
        "resources: {limits: {memory: ''}}",
        "OX105",
        &["is not a quantity"],
    ),
    (
        "resources: {limits: {cpu: 0}}",
        "OX105",
        &["job.yaml:5:55: ", "limits.cpu` is `0`"],
    ),
    (
        "resources: {limits: {cpu: -2}}",
        "OX105",
        &["`-2` is below zero"],
    ),
    (
        "resources: {limits: {cpu: 2x}}",
        "OX105",
        &["`2x` is not a quantity"],
    ),
    ("resources: {limits: {cpu: .nan}}", "OX102", &["`.nan`"]),
    (
        "autoscale: {minimum: 5, maximum: 2}",
        "OX105",
        &["job.yaml:5:40: ", "the minimum 5 above the maximum 2"],
    ),
    (
        "taskResources: {gpu: -1}",
        "OX105",
        &["job.yaml:5:50: ", "taskResources.gpu` is `-1`"],
    ),
];

#[test]
fn files_that_are_no_job() {
    let workspace = Workspace::new();
    for (text, code, words) in FILES {
        refuse(&workspace, text, text, code, words);
    }
    let two = [good(), "---\n".to_owned(), good()].concat();
    let words = ["holds 2 objects: DaskJob at line 1, DaskJob at line 8"];
    refuse(&workspace, "two jobs", two, "OX103", &words);
}

#[test]
fn work_that_is_missing_or_too_much() {
    let workspace = Workspace::new();
    for (text, code, words) in SPECS {
        let whole = [HEAD, CLUSTER, text].concat();
        refuse(&workspace, text, whole, code, words);
    }
    for (cluster, code, words) in [
        (
            "",
            "OX105",
            "job.yaml:5:3: `spec` lacks the field `cluster`",
        ),
        ("  cluster:\n", "OX105", "`spec` lacks the field `cluster`"),
        (
            "  cluster: {worker: {}}\n",
            "OX104",
            "job.yaml:5:13: unknown field `spec.cluster.worker`",
        ),
        (
            "  cluster: {spec: {runtime: Rusty, worker: {}}}\n",
            "OX105",
            "is `Rusty`, but must be one of `Rust`, `Dask`; did you mean `Rust`?",
        ),
        (
            "  cluster: {spec: {runtime: Dask, worker: {spec: {}}}}\n",
            "OX105",
            "cannot run work of kind `graph`",
        ),
        (
            "  cluster: {spec: {worker: {}, workerGroups: [{name: a}, {name: a}]}}\n",
            "OX105",
            "`spec.cluster.spec.workerGroups[1].name` is `a`",
        ),
        (
            "  cluster: {spec: {worker: {}, workerGroups: [{replicas: 1}]}}\n",
            "OX105",
            "workerGroups[0]` lacks the field `name`",
        ),
    ] {
        let whole = [HEAD, cluster, WORK].concat();
        refuse(&workspace, cluster, whole, code, &[words]);
    }
}

#[test]
fn wrong_fields_and_quantities() {
    let workspace = Workspace::new();
    for (fields, code, words) in WORKERS {
        let cluster = format!("  cluster: {{spec: {{worker: {{{fields}}}}}}}\n");
        let whole = [HEAD, &cluster, WORK].concat();
        refuse(&workspace, fields, whole, code, words);
    }
}

#[test]
fn bytes_that_are_no_text() {
    let workspace = Workspace::new();
    let binary = fs::read(env!("CARGO_BIN_EXE_oxidask")).unwrap();
    let utf16: Vec<u8> = good().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut latin1 = [HEAD, CLUSTER, "  # caf"].concat().into_bytes();
    latin1.push(0xe9);
    let offset = format!("byte {} does not fit", latin1.len() - 1);
    latin1.extend(b"\n  graph: {tasks: []}\n");
    let not_text = "`job.yaml` is not UTF-8 text";
    refuse(
        &workspace,
        "a program",
        &binary[..1 << 20],
        "OX101",
        &[not_text],
    );
    refuse(
        &workspace,
        "a long program",
        binary,
        "OX101",
        &["larger than 16 MiB"],
    );
    refuse(&workspace, "Latin-1", latin1, "OX101", &[not_text, &offset]);
    refuse(
        &workspace,
        "gzip",
        b"\x1f\x8b\x08\0\0",
        "OX101",
        &[not_text, "byte 1 "],
    );
    workspace.write("job.yaml", utf16);
    assert_eq!(workspace.run(&["run", "job.yaml"]).status, Some(2));
    // What would command the terminal is not printed as it is.
    workspace.write("job.yaml", "a: 1\n\u{1b}[31m: b: c\0\n");
    let run = workspace.run(&["run", "job.yaml"]).expect(2);
    assert!(!run.stderr.contains(['\u{1b}', '\0']), "{:?}", run.stderr);
}

#[test]
fn a_hundred_megabytes_and_depths_without_end() {
    let workspace = Workspace::new();
    let large = ["`job.yaml` is larger than 16 MiB", "`graph: {file: …}`"];
    let line = "  # a comment of a line of a long file\n";
    let comments = [HEAD, &line.repeat((100 << 20) / line.len()), CLUSTER, WORK].concat();
    refuse(&workspace, "100 MB", comments, "OX101", &large);
    refuse(
        &workspace,
        "one line",
        vec![b'a'; 100 << 20],
        "OX101",
        &large,
    );
    for (what, text) in [
        ("lists", "[".repeat(100_000)),
        ("objects", "{a: ".repeat(100_000)),
        (
            "blocks",
            (0..3000).map(|n| " ".repeat(n) + "a:\n").collect(),
        ),
    ] {
        refuse(&workspace, what, text, "OX102", &["job.yaml:"]);
    }
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        let _ = writeln!(bomb, "a{level}: &a{level} [{aliases}]");
    }
    let words = ["anchors and aliases copy more than 16 MiB"];
    refuse(&workspace, "a bomb of aliases", bomb, "OX102", &words);
}

#[test]
fn paths_that_are_no_files() {
    let workspace = Workspace::new();
    for (path, words) in [
        ("nowhere/job.yaml", "cannot read `nowhere/job.yaml`"),
        ("tmp", "`tmp` is a folder, not a file"),
        ("/dev/zero", "`/dev/zero` is larger than 16 MiB"),
        ("", "cannot read ``"),
    ] {
        let run = workspace.run(&["run", path]);
        if run.stderr.starts_with("error: ") {
            // The command line itself refuses the empty path.
            assert_eq!((run.status, path), (Some(2), ""));
            continue;
        }
        run.assert_refused(path, "OX101", &[words]);
    }
    std::os::unix::fs::symlink("/nowhere", workspace.path().join("link.yaml")).unwrap();
    let run = workspace.run(&["run", "link.yaml"]);
    run.assert_refused(
        "a dangling link",
        "OX101",
        &["cannot read `link.yaml`", "No such file"],
    );
}

#[test]
fn every_command_refuses_alike() {
    let workspace = Workspace::new();
    workspace.write("job.yaml", good().replace("replicas", "replcas"));
    let words = ["job.yaml:5:29: ", "did you mean `replicas`?"];
    let run = workspace.run(&["up", "job.yaml"]);
    run.assert_refused("up", "OX104", &words);
    let scheduler = "--scheduler=oxidask://localhost:1";
    let run = workspace.run(&["submit", "job.yaml", scheduler, "--tls-dir=nowhere"]);
    run.assert_refused("submit", "OX104", &words);
}

#[test]
fn a_cluster_without_workers_cannot_run_anything() {
    let workspace = Workspace::new();
    workspace.graph_job(0, "{\"key\": \"a\", \"op\": \"noop\"}\n");
    let run = workspace.run(&["run", "job.yaml"]);
    let words = ["no workers to run task `a`", "hint: set `replicas` to 1"];
    run.assert_failed("no workers", "OX207", &words, "");
}

#[test]
fn odd_but_right() {
    let workspace = Workspace::new();
    let map =
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: q}\ndata: {a.sql: SELECT 7 AS n}\n";
    let by_reference = "  sql: {configMapKeyRef: {name: q, key: a.sql}}\n";
    let null = "{\"key\":\"a\",\"value\":null}\n";
    for (what, text, stdout) in [
        ("line ends of Windows", good().replace('\n', "\r\n"), null),
        ("a byte-order mark", "\u{feff}".to_owned() + &good(), null),
        (
            "documents around it",
            format!("---\n# x\n---\n{}---\n", good()),
            null,
        ),
        ("JSON", good_json(), null),
        (
            "a ConfigMap",
            [HEAD, CLUSTER, by_reference, map].concat(),
            "{\"n\":7}\n",
        ),
        (
            "a long deadline",
            good() + "  activeDeadlineSeconds: 18446744073709551615\n",
            null,
        ),
    ] {
        workspace.write("job.yaml", text);
        let run = workspace.run(&["run", "job.yaml"]);
        assert_eq!(
            (run.status, run.stdout.as_str()),
            (Some(0), stdout),
            "{what}: {}",
            run.stderr
        );
    }
}

fn good_json() -> String {
    serde_json::json!({
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskJob",
        "metadata": {"name": "test"},
        "spec": {
            "cluster": {"spec": {"worker": {"replicas": 1, "threads": 1}}},
            "graph": {"tasks": [{"key": "a", "op": "noop"}]},
        },
    })
    .to_string()
}
