//! Manifests as people write them: good ones, stock ones, and every kind of nonsense.
#![allow(clippy::expect_used, reason = "a helper of tests fails the test")]

use std::path::Path;

use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_operator_api::{
    GraphSource, Kind, MANIFEST_BYTES_MAX, Manifest, ManifestError, REPLICAS_MAX, ScriptSource,
    Work,
};

const COMPLETE: &str = r#"
apiVersion: kubernetes.dask.org/v1
kind: DaskJob
metadata: {name: flights}
spec:
  cluster:
    spec:
      worker:
        replicas: 2
        threads: 2                                   # slots for tasks; default: the CPU limit
        resources: {limits: {cpu: "2", memory: 2Gi}} # the usual Kubernetes block
        autoscale: {minimum: 1, maximum: 8}          # optional
  sql:
    statements: |
      CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION 'data/flights/';
      SELECT carrier, count(*) AS flights FROM flights GROUP BY carrier;
"#;

/// Every documented field at once.
const FULL: &str = r"
apiVersion: kubernetes.dask.org/v1
kind: DaskJob
metadata: {name: full, namespace: team, labels: {a: b}, annotations: {c: d}}
spec:
  suspend: false
  schedule: '0 3 * * *'
  timeZone: Europe/Berlin
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 300
  successfulJobsHistoryLimit: 5
  failedJobsHistoryLimit: 0
  keepCluster: OnFailure
  activeDeadlineSeconds: 600
  ttlSecondsAfterFinished: 60
  backoffLimit: 2
  cluster:
    metadata: {labels: {x: y}}
    spec:
      runtime: Rust
      idleTimeout: 300
      suspend: false
      tls: {caSecretRef: {name: ca}, certificateLifetime: 24h, renewBefore: 8h}
      updateStrategy: {maxSurge: 1, maxUnavailable: 25%}
      scheduler:
        image: i
        resources: {requests: {cpu: 500m}}
        journal: {sizeLimit: 1Gi, volumeClaim: {storageClassName: fast}}
      worker:
        replicas: 2
        threads: 2
        autoscale: {minimum: 1, maximum: 3}
        taskResources: {gpu: 1}
        spill: {sizeLimit: 10Gi}
        image: i
        env: [{name: A, value: '1'}]
        envFrom: [{secretRef: {name: s}}]
        volumes: [{name: v, emptyDir: {}}]
        volumeMounts: [{name: v, mountPath: /v}]
        nodeSelector: {disk: ssd}
        tolerations: [{operator: Exists}]
        affinity: {nodeAffinity: {}}
        serviceAccountName: sa
        imagePullSecrets: [{name: p}]
        workingDir: /data
        metadata: {labels: {l: m}}
      workerGroups:
        - {name: big, replicas: 1, threads: 8, image: other}
  graph:
    outputs: [a]
    tasks:
      - {key: a, op: value, args: {value: [1, null, 2.5]}}
";

/// A cluster as `make_cluster_spec` of dask-kubernetes writes it.
const STOCK_CLUSTER: &str = r#"
apiVersion: kubernetes.dask.org/v1
kind: DaskCluster
metadata:
  name: simple
spec:
  idleTimeout: null
  worker:
    replicas: 3
    spec:
      containers:
        - name: worker
          image: ghcr.io/dask/dask:latest
          args: [dask-worker, --name, $(DASK_WORKER_NAME), --dashboard, --dashboard-address, "8788"]
          env: []
          resources: {}
          ports: [{name: http-dashboard, containerPort: 8788, protocol: TCP}]
  scheduler:
    metadata:
      labels: {team: data}
    spec:
      containers:
        - name: scheduler
          image: ghcr.io/dask/dask:latest
          args: [dask-scheduler, --host, 0.0.0.0]
          env: []
          resources: {}
          ports:
            - {name: tcp-comm, containerPort: 8786, protocol: TCP}
            - {name: http-dashboard, containerPort: 8787, protocol: TCP}
          readinessProbe:
            httpGet: {port: http-dashboard, path: /health}
            periodSeconds: 1
            timeoutSeconds: 300
    service:
      type: ClusterIP
      selector: {dask.org/cluster-name: simple, dask.org/component: scheduler}
      ports:
        - {name: tcp-comm, protocol: TCP, port: 8786, targetPort: tcp-comm}
        - {name: http-dashboard, protocol: TCP, port: 8787, targetPort: http-dashboard}
status: {phase: Running}
"#;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, "job.yaml", Path::new("/somewhere"))
}

/// A job with these lines in its worker and these below `spec`.
fn job(worker: &str, work: &str) -> String {
    format!(
        "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {{name: j}}\nspec:\n  \
         cluster: {{spec: {{worker: {{{worker}}}}}}}\n{work}\n"
    )
}

const SQL: &str = "  sql: {statements: SELECT 1}";

fn message(text: &str) -> (Code, String, String) {
    let error = parse(text).and_then(|manifest| match manifest.kind() {
        Kind::Job => manifest.into_job().map(|_| ()),
        Kind::Cluster => manifest.into_cluster().map(|_| ()),
    });
    let error = error.expect_err(text);
    (error.code(), error.to_string(), error.hint().into_owned())
}

#[test]
fn the_complete_example_becomes_a_plan() {
    let plan = parse(COMPLETE).unwrap().into_job().unwrap();
    assert_eq!(
        (plan.cluster.name.as_str(), plan.cluster.namespace.as_str()),
        ("flights", "local")
    );
    assert_eq!(plan.base_dir, Path::new("/somewhere"));
    let [group] = plan.cluster.groups.as_slice() else {
        panic!("{:?}", plan.cluster.groups)
    };
    assert_eq!(
        (
            group.name.as_str(),
            group.replicas,
            group.slots,
            group.memory_bytes
        ),
        ("default", 2, 2, Some(2 << 30))
    );
    assert_eq!(plan.cluster.ignored, ["spec.cluster.spec.worker.autoscale"]);
    assert_eq!(plan.cluster.workers(), 2);
    let Work::Sql { text, origin } = plan.work else {
        panic!("{:?}", plan.work)
    };
    assert!(
        text.starts_with("CREATE EXTERNAL TABLE") && text.ends_with("carrier;\n"),
        "{text}"
    );
    assert_eq!(origin, "job.yaml:15:7: spec.sql.statements");
}

#[test]
fn slots_memory_and_resources_have_their_defaults() {
    let plan = |worker: &str| {
        let mut plan = parse(&job(worker, SQL)).unwrap().into_job().unwrap();
        plan.cluster.groups.remove(0)
    };
    let bare = plan("");
    assert_eq!((bare.replicas, bare.slots, bare.memory_bytes), (1, 1, None));
    assert_eq!(plan("resources: {limits: {cpu: 2500m}}").slots, 3);
    assert_eq!(plan("threads: 1, resources: {limits: {cpu: 4}}").slots, 1);
    assert_eq!(
        plan("resources: {limits: {memory: 1.5Gi}}").memory_bytes,
        Some(3 << 29)
    );
    assert_eq!(plan("autoscale: {minimum: 3, maximum: 8}").replicas, 3);
    assert_eq!(plan("autoscale: {maximum: 8}").replicas, 1);
    let gpus = plan("taskResources: {disk: 2}, resources: {limits: {nvidia.com/gpu: 1}}");
    assert_eq!(
        gpus.resources,
        [("disk".to_owned(), 2), ("gpu".to_owned(), 1)]
    );
    let env = plan("env: [{name: A, value: b}, {name: C, valueFrom: {fieldRef: {}}}]");
    assert_eq!(env.environment, [("A".to_owned(), "b".to_owned())]);
    let template = plan(
        "spec: {containers: [{name: w, resources: {limits: {cpu: 3, memory: 1Gi}}}]}, threads: 2",
    );
    assert_eq!((template.slots, template.memory_bytes), (2, Some(1 << 30)));
}

#[test]
fn every_documented_field_is_known_and_pod_fields_are_listed_as_ignored() {
    let plan = parse(FULL).unwrap().into_job().unwrap();
    assert_eq!(plan.cluster.namespace, "local");
    assert_eq!(plan.active_deadline_seconds, Some(600));
    let groups: Vec<_> = plan
        .cluster
        .groups
        .iter()
        .map(|g| (g.name.as_str(), g.slots))
        .collect();
    assert_eq!(groups, [("default", 2), ("big", 8)]);
    let ignored: Vec<&str> = plan
        .cluster
        .ignored
        .iter()
        .map(|path| path.strip_prefix("spec.cluster.spec.").unwrap_or(path))
        .collect();
    assert_eq!(
        ignored.join(" "),
        "spec.keepCluster spec.schedule idleTimeout tls updateStrategy scheduler.image scheduler.resources \
         scheduler.journal worker.metadata worker.image worker.envFrom worker.volumes \
         worker.volumeMounts worker.nodeSelector worker.tolerations worker.affinity \
         worker.serviceAccountName worker.imagePullSecrets worker.autoscale worker.spill \
         workerGroups[0].image"
    );
    let Work::Graph {
        tasks: GraphSource::Inline { tasks, .. },
        outputs,
    } = plan.work
    else {
        panic!("{:?}", plan.work)
    };
    assert_eq!(outputs, Some(vec!["a".to_owned()]));
    assert_eq!(
        serde_json::to_string(&tasks).unwrap(),
        r#"[{"key":"a","op":"value","args":{"value":[1,null,2.5]}}]"#
    );
}

#[test]
fn stock_manifests_of_dask_kubernetes_are_accepted_but_need_kubernetes() {
    let manifest = parse(STOCK_CLUSTER).unwrap();
    assert_eq!(manifest.kind(), Kind::Cluster);
    let (code, text, _) = message(STOCK_CLUSTER);
    assert_eq!(code, Code::WorkUnavailable);
    assert!(text.contains("`spec` describes pods"), "{text}");

    let indented = STOCK_CLUSTER.replace("kind: DaskCluster", "kind: DaskJob");
    let (head, spec) = indented.split_once("spec:\n").unwrap();
    let spec = spec
        .replace("status: {phase: Running}\n", "")
        .replace('\n', "\n    ");
    let stock_job = format!(
        "{head}spec:\n  job:\n    metadata: {{labels: {{a: b}}}}\n    spec:\n      containers:\n      \
         - {{name: job, image: i, args: [python, -c, 'print(1)']}}\n  cluster:\n    spec:\n    {spec}"
    );
    let plan = parse(&stock_job).unwrap().into_job().unwrap();
    assert_eq!(plan.work, Work::Job);
    assert_eq!(plan.cluster.groups[0].replicas, 3);
}

#[test]
fn texts_may_stand_in_a_config_map_of_the_same_file_or_in_a_file() {
    let config_map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  q: SELECT 2\n";
    let by_reference = "  sql: {configMapKeyRef: {name: m, key: q}}";
    for text in [
        format!("{config_map}---\n{}", job("", by_reference)),
        format!("---\n{}---\n{config_map}---\n", job("", by_reference)),
    ] {
        let Work::Sql { text, origin } = parse(&text).unwrap().into_job().unwrap().work else {
            panic!("no SQL")
        };
        assert_eq!(
            (text.as_str(), origin.as_str()),
            ("SELECT 2", "ConfigMap `m`, key `q`")
        );
    }
    let (code, text, _) = message(&job("", by_reference));
    assert_eq!(code, Code::ManifestValue);
    assert_eq!(
        text,
        "job.yaml:6:26: `spec.sql.configMapKeyRef` names the ConfigMap `m`, which a local run \
         looks for in the same file"
    );
    let wrong_key = job("", "  sql: {configMapKeyRef: {name: m, key: z}}");
    let (_, text, _) = message(&format!("{config_map}---\n{wrong_key}"));
    assert!(
        text.ends_with("names the key `z`, which `m` does not have"),
        "{text}"
    );

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("q.sql"), "SELECT 3").unwrap();
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, job("", "  sql: {file: q.sql}")).unwrap();
    let plan = Manifest::load(&path).unwrap().into_job().unwrap();
    assert!(matches!(plan.work, Work::Sql { text, .. } if text == "SELECT 3"));
    std::fs::write(&path, job("", "  graph: {file: g.jsonl}")).unwrap();
    let plan = Manifest::load(&path).unwrap().into_job().unwrap();
    let Work::Graph {
        tasks: GraphSource::File(file),
        ..
    } = plan.work
    else {
        panic!("no file")
    };
    assert_eq!(file, folder.path().join("g.jsonl"));
    std::fs::write(&path, job("", "  script: {file: missing.py}")).unwrap();
    let error = Manifest::load(&path).unwrap().into_job().unwrap_err();
    assert_eq!(error.code(), Code::ManifestUnreadable);
    let text = job("", "  graph: {tasks: '{\"key\":\"a\",\"op\":\"noop\"}'}");
    let plan = parse(&text).unwrap().into_job().unwrap();
    assert!(matches!(
        plan.work,
        Work::Graph {
            tasks: GraphSource::Text { .. },
            ..
        }
    ));
}

#[test]
fn files_that_cannot_be_manifests_are_ox101() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    let error = Manifest::load(&path).unwrap_err();
    let diagnostic = Diagnostic::from_error(&error);
    assert_eq!(diagnostic.code, Code::ManifestUnreadable);
    assert_eq!(
        diagnostic.causes,
        ["No such file or directory (os error 2)"]
    );

    let error = Manifest::load(folder.path()).unwrap_err();
    assert!(
        error.to_string().ends_with("is a folder, not a file"),
        "{error}"
    );
    assert_eq!(error.code(), Code::ManifestUnreadable);

    std::fs::write(&path, b"PAR1\x00\xff\xfe\x00").unwrap();
    let error = Manifest::load(&path).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is not UTF-8 text: byte 5 does not fit"),
        "{error}"
    );

    let file = std::fs::File::create(&path).unwrap();
    file.set_len(100 << 20).unwrap();
    let error = Manifest::load(&path).unwrap_err();
    assert!(
        error.to_string().ends_with("is larger than 16 MiB"),
        "{error}"
    );
    assert_eq!(error.code(), Code::ManifestUnreadable);
    file.set_len(MANIFEST_BYTES_MAX as u64).unwrap();
    let error = Manifest::load(&path).unwrap_err();
    assert_eq!(error.code(), Code::ManifestSyntax, "16 MiB of NUL: {error}");
}

#[test]
fn wrong_objects_are_ox103() {
    let two_jobs = format!("{}---\n{}", job("", SQL), job("", SQL));
    let cases: [(&str, &str, &str); 11] = [
        ("", "job.yaml: the file holds no object", "write a DaskJob"),
        (
            "# nothing\n---\n",
            "job.yaml: the file holds no object",
            "write a DaskJob",
        ),
        (
            "hello, this is no manifest\n",
            "job.yaml:1:1: found a text, expected an object",
            "use",
        ),
        (
            "- 1\n- 2\n",
            "job.yaml:1:1: found a list, expected an object",
            "use",
        ),
        (
            "{kind: DaskJob}",
            "job.yaml:1:1: the object has no `apiVersion`",
            "use",
        ),
        (
            "{apiVersion: 1, kind: DaskJob}",
            "job.yaml:1:1: `apiVersion` is a number, expected a text",
            "use",
        ),
        (
            "{apiVersion: kubernetes.dask.org/v2, kind: DaskJob}",
            "job.yaml:1:1: `apiVersion` is `kubernetes.dask.org/v2`, expected \
             `kubernetes.dask.org/v1`",
            "write `apiVersion: kubernetes.dask.org/v1`",
        ),
        (
            "{apiVersion: kubernetes.dask.org/v1, kind: daskjobs}",
            "job.yaml:1:1: `kind` is `daskjobs`, expected `DaskJob` or `DaskCluster`",
            "did you mean `kind: DaskJob`?",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment}",
            "job.yaml:1:1: `kind` is `Deployment`, expected `DaskJob` or `DaskCluster`",
            "use `apiVersion: kubernetes.dask.org/v1` and one object",
        ),
        (
            &two_jobs,
            "job.yaml: the file holds 2 objects: DaskJob at line 1, DaskJob at line 8",
            "keep one of them",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}",
            "job.yaml: the file holds only ConfigMaps",
            "add the DaskJob",
        ),
    ];
    for (text, wanted, hint_start) in cases {
        let (code, found, hint) = message(text);
        assert_eq!(
            (code, found.as_str()),
            (Code::ManifestKind, wanted),
            "{text}"
        );
        assert!(hint.starts_with(hint_start), "{text}: {hint}");
    }
}

#[test]
fn a_command_takes_what_it_can_use() {
    let cluster = "{apiVersion: kubernetes.dask.org/v1, kind: DaskCluster, metadata: {name: c}, \
                   spec: {worker: {replicas: 4}}}";
    let error = parse(cluster).unwrap().into_job().unwrap_err();
    assert_eq!(
        error.to_string(),
        "job.yaml: found a DaskCluster, expected a DaskJob"
    );
    assert_eq!(error.hint(), "start it with `oxidask up`");
    assert_eq!(parse(cluster).unwrap().into_cluster().unwrap().workers(), 4);
    assert_eq!(
        parse(&job("replicas: 3", SQL))
            .unwrap()
            .into_cluster()
            .unwrap()
            .workers(),
        3
    );
}

#[test]
fn unknown_fields_are_named_with_path_place_and_nearest_name() {
    let (code, text, _) = message(&COMPLETE.replace("replicas: 2", "replcas: 2"));
    assert_eq!(code, Code::ManifestField);
    assert_eq!(
        text,
        "job.yaml:9:9: unknown field `spec.cluster.spec.worker.replcas`; did you mean `replicas`?"
    );
    let several = COMPLETE
        .replace("threads: 2 ", "thread: two ")
        .replace(
            "metadata: {name: flights}",
            "metadata: {name: flights, colour: red}",
        )
        .replace("  sql:", "  sq1:");
    assert_eq!(
        message(&several).1,
        "job.yaml: 3 unknown fields\n  at 4:27: `metadata.colour`\n  at 10:9: \
         `spec.cluster.spec.worker.thread`; did you mean `threads`?\n  at 13:3: `spec.sq1`; did \
         you mean `sql`?"
    );
    let (_, text, hint) = message(&job("", "  sql: {statements: SELECT 1, engine: duckdb}"));
    assert_eq!(text, "job.yaml:6:31: unknown field `spec.sql.engine`");
    assert_eq!(
        hint,
        "the fields that may stand there are `statements`, `configMapKeyRef`, `file`"
    );
    let group = COMPLETE.replace(
        "      worker:",
        "      workerGroups: [{name: a}, {name: b, replica: 1}]\n      worker:",
    );
    assert!(
        message(&group)
            .1
            .contains("`spec.cluster.spec.workerGroups[1].replica`")
    );
    let many = (0..40)
        .map(|i| format!("x{i}: 1"))
        .collect::<Vec<_>>()
        .join(", ");
    let text = message(&job(&many, SQL)).1;
    assert!(text.starts_with("job.yaml: 40 unknown fields\n"), "{text}");
    assert!(text.ends_with("\n  and 32 more"), "{text}");
}

/// Lines of a worker, and what the message about them says.
const WRONG_VALUES: [(&str, &str); 23] = [
    (
        "replicas: -1",
        ".replicas` is `-1`, but must be a whole number from 0 to 4294967295",
    ),
    (
        "replicas: '2'",
        ".replicas` is the text `2`, but must be a whole number",
    ),
    (
        "replicas: 1.5",
        ".replicas` is `1.5`, but must be a whole number",
    ),
    (
        "replicas: [1]",
        ".replicas` is a list, but must be a whole number",
    ),
    (
        "replicas: 10001",
        ".replicas` is `10001`, but a group has at most 10000 workers",
    ),
    ("threads: 0", ".threads` is `0`, but must be from 1 to 4096"),
    (
        "threads: 5000",
        ".threads` is `5000`, but must be from 1 to 4096",
    ),
    (
        "resources: {limits: {cpu: lots}}",
        ".cpu` is not allowed: `lots` is not a quantity",
    ),
    (
        "resources: {limits: {memory: 2GiB}}",
        "; Kubernetes writes `2Gi`",
    ),
    (
        "resources: {limits: {memory: -2Gi}}",
        ".memory` is not allowed: `-2Gi` is below zero",
    ),
    (
        "resources: {limits: {memory: [1]}}",
        ".memory` is a list, but must be a quantity",
    ),
    (
        "resources: {limits: {memory: 512m}}",
        "`m` means a thousandth, `M` a million",
    ),
    (
        "resources: {limits: {memory: 2000}}",
        ".memory` is `2000`, which is less than `1Mi`",
    ),
    (
        "resources: {limits: {cpu: 0}}",
        ".cpu` is `0`, but must be from `1m`",
    ),
    (
        "resources: {limits: {cpu: 1}, requests: {cpu: 2}}",
        ".resources.requests.cpu` is `2`, which is above the limit `1`",
    ),
    (
        "resources: 2Gi",
        ".resources` is the text `2Gi`, but must be an object",
    ),
    (
        "autoscale: {minimum: 3, maximum: 2}",
        "has the minimum 3 above the maximum 2",
    ),
    (
        "autoscale: {minimum: 3}",
        ".autoscale` lacks the field `maximum`",
    ),
    (
        "autoscale: {maximum: 0}",
        ".autoscale.maximum` is `0`, but must be from 1 to",
    ),
    (
        "autoscale: {maximum: 1, targetSeconds: 0}",
        ".autoscale.targetSeconds` is `0`, but must be from 1 to 86400",
    ),
    (
        "autoscale: {maximum: 1, scaleDownWindowSeconds: 90000}",
        ".autoscale.scaleDownWindowSeconds` is `90000`, but must be from 0 to 86400",
    ),
    (
        "taskResources: {gpu: -1}",
        ".taskResources.gpu` is `-1`, but must be a whole number, 0",
    ),
    (
        "env: [{name: A, value: 1}]",
        ".env[0].value` is `1`, but must be a text; put it into",
    ),
];

#[test]
fn wrong_values_are_ox105_with_what_was_found_and_what_is_expected() {
    let at = "job.yaml:5:";
    let path = "spec.cluster.spec.worker";
    assert_eq!(REPLICAS_MAX, 10_000, "the table names the limit");
    for (worker, wanted) in WRONG_VALUES {
        let (code, text, _) = message(&job(worker, SQL));
        assert_eq!(code, Code::ManifestValue, "{text}");
        assert!(
            text.starts_with(at) && text.contains(path) && text.contains(wanted),
            "{text}"
        );
    }
}

#[test]
fn names_are_checked() {
    let named = |name: &str| {
        job("", SQL).replace(
            "metadata: {name: j}",
            &format!("metadata: {{name: {name}}}"),
        )
    };
    assert!(parse(&named(&"a".repeat(53))).is_ok());
    let cases = [
        (
            "Flights",
            "`metadata.name` is `Flights`, but a name has only lower-case letters",
        ),
        ("a.b", "`metadata.name` is `a.b`, but"),
        ("a-", "`metadata.name` is `a-`, but"),
        ("''", "`metadata.name` is ``, but"),
        (
            &"a".repeat(54),
            "`metadata.name` is 54 bytes long, but at most 53 fit",
        ),
        (
            "7",
            "`metadata.name` is `7`, but must be a text; put it into quotes",
        ),
        ("a, namespace: B", "`metadata.namespace` is `B`, but"),
        ("null", "`metadata.name` is missing"),
    ];
    for (name, wanted) in cases {
        let (code, text, _) = message(&named(name));
        assert_eq!(code, Code::ManifestValue);
        assert!(text.contains(wanted), "{text}");
    }
    let groups = |groups: &str| {
        job("", SQL).replace(
            "worker: {}",
            &format!("worker: {{}}, workerGroups: [{groups}]"),
        )
    };
    let cases = [
        (
            "{name: a}, {name: a}",
            "workerGroups[1].name` is `a`, as another group is named already",
        ),
        (
            "{name: default}",
            "workerGroups[0].name` is `default`, which names `spec.worker`",
        ),
        (
            "{name: A}",
            "workerGroups[0].name` is `A`, but a name has only lower-case",
        ),
        ("{replicas: 1}", "workerGroups[0]` lacks the field `name`"),
        ("{name: a, threads: 0}", "workerGroups[0].threads` is `0`"),
    ];
    for (text, wanted) in cases {
        let (code, text, _) = message(&groups(text));
        assert_eq!(code, Code::ManifestValue);
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn work_is_given_exactly_once() {
    let cases = [
        ("  suspend: false", "job.yaml:5:3: the job has no work"),
        ("  sql: null", "job.yaml:5:3: the job has no work"),
        (
            "  sql: {statements: SELECT 1}\n  graph: {file: g.jsonl}",
            "job.yaml:7:10: the job has 2 kinds of work: `sql` and `graph`",
        ),
        (
            "  sql: {}",
            "job.yaml:6:8: `spec.sql` has no source: give `statements`, `configMapKeyRef` or `file`",
        ),
        (
            "  sql: {file: q.sql, statements: SELECT 1}",
            "job.yaml:6:15: `spec.sql` has 2 sources: `statements` and `file`",
        ),
        (
            "  graph: {outputs: [a]}",
            "job.yaml:6:10: `spec.graph` has no source: give `tasks`, `configMapKeyRef` or `file`",
        ),
    ];
    for (work, wanted) in cases {
        let (code, text, _) = message(&job("", work));
        assert_eq!((code, text.as_str()), (Code::ManifestWork, wanted));
    }
}

#[test]
fn a_program_has_arguments_an_environment_and_a_python() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    let script = job(
        "",
        "  script:\n    file: a.py\n    args: [--rows, \"10\"]\n    python: python3.13\n    \
         env:\n    - {name: MODE, value: fast}\n    - {name: KEY, valueFrom: {secretKeyRef: \
         {name: s, key: k}}}\n",
    );
    std::fs::write(&path, script).unwrap();
    std::fs::write(folder.path().join("a.py"), "print(1)").unwrap();
    let plan = Manifest::load(&path).unwrap().into_job().unwrap();
    assert_eq!(plan.cluster.ignored, ["spec.script.env[].valueFrom"]);
    let variable = ("OXIDASK_LOAD_PYTHON".to_owned(), "true".to_owned());
    assert_eq!(plan.cluster.groups[0].environment, [variable]);
    let Work::Script(script) = plan.work else {
        panic!("no script")
    };
    let file = folder.path().join("a.py");
    assert_eq!(script.source, ScriptSource::File(file));
    assert_eq!(script.arguments, ["--rows", "10"]);
    let variable = ("MODE".to_owned(), "fast".to_owned());
    assert_eq!(script.environment, [variable]);
    assert_eq!(script.python.as_deref(), Some("python3.13"));
}

#[test]
fn a_program_is_given_words_that_a_process_can_have() {
    for (fields, place, problem) in [
        ("python: ''", "spec.script.python", "must name a program"),
        ("args: [\"a\\0b\"]", "spec.script.args[0]", "zero byte"),
        ("args: [{a: 1}]", "spec.script.args[0]", "an object"),
        (
            "env: [{name: 'A=B', value: c}]",
            "spec.script.env[0].name",
            "without `=`",
        ),
        (
            "env: [{name: A, value: \"b\\0\"}]",
            "spec.script.env[0].value",
            "zero byte",
        ),
    ] {
        let work = format!("  script: {{source: a, {fields}}}");
        let (code, text, _) = message(&job("", &work));
        assert_eq!(code, Code::ManifestValue, "{text}");
        assert!(text.contains(&format!("`{place}`")), "{text}");
        assert!(text.contains(problem), "{text}");
    }
}

#[test]
fn the_manifests_of_python_examples_hold_the_programs_beside_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let program = entry.unwrap().path();
        if program
            .extension()
            .is_none_or(|extension| extension != "py")
        {
            continue;
        }
        let manifest = Manifest::load(&program.with_extension("yaml")).unwrap();
        let Work::Script(script) = manifest.into_job().unwrap().work else {
            panic!("no script: {}", program.display())
        };
        let ScriptSource::Text { text, .. } = script.source else {
            panic!("a file: {}", program.display())
        };
        let beside = std::fs::read_to_string(&program).unwrap();
        assert_eq!(text, beside, "{}", program.display());
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn the_runtime_fits_the_work() {
    let dask = job("", SQL).replace("{spec: {worker", "{spec: {runtime: Dask, worker");
    let (code, text, _) = message(&dask);
    assert_eq!(code, Code::ManifestValue);
    assert!(text.contains("spec.cluster.spec.runtime"), "{text}");
    let with_spec = job("spec: {containers: []}", SQL)
        .replace("{spec: {worker", "{spec: {runtime: Dask, worker");
    assert_eq!(
        message(&with_spec).1,
        "job.yaml:5:29: `spec.cluster.spec.runtime` is `Dask`, which cannot run work of kind `sql`"
    );
    let misspelt = job("", SQL).replace("{spec: {worker", "{spec: {runtime: rust, worker");
    assert_eq!(
        message(&misspelt).1,
        "job.yaml:5:29: `spec.cluster.spec.runtime` is `rust`, but must be one of `Rust`, `Dask`; \
         did you mean `Rust`?"
    );
}

#[test]
fn wrong_types_anywhere_name_their_path() {
    let cases = [
        (
            job("", "  sql: SELECT 1"),
            "`spec.sql` is the text `SELECT 1`, but must be an object",
        ),
        (
            job("", "  graph: {tasks: 3}"),
            "`spec.graph.tasks` is `3`, but must be a list of tasks or a text of JSON lines",
        ),
        (
            job("", "  graph: {tasks: [], outputs: [1]}"),
            "`spec.graph.outputs[0]` is `1`, but must be a text; put it into quotes",
        ),
        (
            job("", "  backoffLimit: many"),
            "`spec.backoffLimit` is the text `many`, but must be",
        ),
        (
            job("", "  suspend: 1"),
            "`spec.suspend` is `1`, but must be true or false",
        ),
        (
            "{apiVersion: kubernetes.dask.org/v1, kind: DaskJob, metadata: {name: a}}".to_owned(),
            ": the object lacks the field `spec`",
        ),
        (
            "{apiVersion: kubernetes.dask.org/v1, kind: DaskJob, metadata: {name: a}, spec: {}}"
                .to_owned(),
            "`spec` lacks the field `cluster`",
        ),
    ];
    for (text, wanted) in cases {
        let (code, text, _) = message(&text);
        assert_eq!(code, Code::ManifestValue);
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn every_example_is_a_good_manifest() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut folders = vec![examples];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let plan = Manifest::load(&path).unwrap().into_job().unwrap();
                if let Work::Graph {
                    tasks: GraphSource::File(file),
                    ..
                } = plan.work
                {
                    assert!(
                        file.is_file(),
                        "{} names {}",
                        path.display(),
                        file.display()
                    );
                }
                count += 1;
            }
        }
    }
    assert!(count >= 4, "{count} examples");
}

#[test]
fn broken_yaml_is_ox102_with_line_and_column() {
    let (code, text, _) = message(&COMPLETE.replace("kind: DaskJob", "kind: DaskJob: x"));
    assert_eq!(code, Code::ManifestSyntax);
    assert!(text.starts_with("job.yaml:3:"), "{text}");
    assert!(text.ends_with(": `kind: DaskJob: x`"), "{text}");
    let twice = COMPLETE.replace("        threads: 2 ", "        replicas: 2 ");
    let (code, text, _) = message(&twice);
    assert_eq!(code, Code::ManifestSyntax);
    assert!(
        text.starts_with("job.yaml:10:9: the field `replicas` is given twice"),
        "{text}"
    );
    for text in [
        "a: b: c",
        "{",
        "'",
        "a: *x",
        "%",
        "@",
        "\0",
        "key: [1, 2",
        "a: |\n b\n  c\n d: {",
    ] {
        let (code, ..) = message(text);
        assert!(
            matches!(code, Code::ManifestSyntax | Code::ManifestKind),
            "{text}"
        );
    }
}

#[test]
fn fields_of_a_schedule_need_one() {
    let text = COMPLETE.replace("  sql:\n", "  timeZone: UTC\n  sql:\n");
    let error = parse(&text).unwrap_err().to_string();
    assert!(
        error.contains("`spec.timeZone` needs `spec.schedule`"),
        "{error}"
    );
    assert!(parse(&text.replace("  timeZone", "  schedule: '@daily'\n  timeZone")).is_ok());
}
