//! The custom resource definitions: names, columns, defaults, size, and what their schemas admit.
//!
//! The rules in CEL are checked by a real API server elsewhere; here they are checked for standing
//! where they should.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use oxidask_operator_api::kubernetes::{
    DaskCluster, DaskJob, DaskWorkerGroup, custom_resource_definitions, to_yaml,
};
use oxidask_operator_api::{GroupPlan, Manifest, Runtime};
use serde_json::{Map, Value, json};

/// What `kubectl apply` can keep in an annotation.
const DEFINITION_BYTES_MAX: usize = 256 << 10;

fn definition(kind: &str) -> CustomResourceDefinition {
    let mut all = custom_resource_definitions().into_iter();
    all.find(|definition| definition.spec.names.kind == kind)
        .unwrap()
}

fn version(kind: &str) -> Value {
    serde_json::to_value(&definition(kind).spec.versions[0]).unwrap()
}

fn schema(kind: &str) -> Value {
    version(kind)["schema"]["openAPIV3Schema"].clone()
}

/// Calls `visit` with the path of every schema.
fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Map<String, Value>)) {
    let Some(node) = schema.as_object() else {
        return;
    };
    visit(path, node);
    for (name, child) in node
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        walk(&format!("{path}.{name}"), child, visit);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let Some(child) = node.get(key) {
            walk(&format!("{path}{mark}"), child, visit);
        }
    }
}

/// Drops nulls and fills in defaults, as the API server does, then says what the schema refuses.
fn admit(path: &str, schema: &Value, value: &mut Value) -> Vec<String> {
    let mut faults = Vec::new();
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return faults;
    }
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_i64() && !value.is_u64() && !value.is_string() {
            faults.push(format!(
                "{path}: {value} is neither a whole number nor a text"
            ));
        }
        return faults;
    }
    let is_right = match schema["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        other => return vec![format!("{path}: the schema has the type {other}")],
    };
    if !is_right {
        return vec![format!("{path}: {value} is no {}", schema["type"])];
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        faults.push(format!("{path}: {value} is none of {allowed:?}"));
    }
    if let Some(number) = value.as_f64() {
        let is_below = schema["minimum"]
            .as_f64()
            .is_some_and(|least| number < least);
        let is_above = schema["maximum"].as_f64().is_some_and(|most| number > most);
        if is_below || is_above {
            faults.push(format!("{path}: {number} is out of range"));
        }
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                faults.extend(admit(&format!("{path}[{index}]"), &schema["items"], item));
            }
        }
        Value::Object(fields) => faults.extend(admit_fields(path, schema, fields)),
        _ => {}
    }
    faults
}

fn admit_fields(path: &str, schema: &Value, fields: &mut Map<String, Value>) -> Vec<String> {
    let mut faults = Vec::new();
    if path == "metadata" {
        return faults;
    }
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let others = &schema["additionalProperties"];
    fields.retain(|name, value| {
        !value.is_null()
            || properties
                .get(name)
                .is_some_and(|known| known["nullable"] == true)
    });
    for (name, known) in properties {
        if known.get("default").is_some() && !fields.contains_key(name) {
            fields.insert(name.clone(), known["default"].clone());
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            faults.push(format!("{path}: {name} is missing"));
        }
    }
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        let path = path.trim_start_matches('.');
        match properties.get(name) {
            Some(_) if value.is_null() => {}
            Some(known) => faults.extend(admit(path, known, value)),
            None if others.is_object() => faults.extend(admit(path, others, value)),
            None => faults.push(format!("{path}: unknown")),
        }
    }
    faults
}

fn object(kind: &str, spec: &Value) -> Value {
    let metadata = json!({"name": "a", "labels": {"x": "y"}});
    let version = oxidask_operator_api::API_VERSION;
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

/// The object with defaults, or what is wrong with it.
fn admitted(kind: &str, spec: &Value) -> Result<Value, Vec<String>> {
    let mut object = object(kind, spec);
    let faults = admit("", &schema(kind), &mut object);
    if faults.is_empty() {
        Ok(object)
    } else {
        Err(faults)
    }
}

/// As dask-kubernetes's `make_cluster_spec` writes it.
fn python_scheduler() -> Value {
    let dashboard = |period: u32| {
        json!({
            "httpGet": {"port": "http-dashboard", "path": "/health"},
            "initialDelaySeconds": 15,
            "periodSeconds": period,
            "timeoutSeconds": 300,
        })
    };
    json!({
        "spec": {"containers": [{
            "name": "scheduler",
            "image": "ghcr.io/dask/dask:latest",
            "args": ["dask-scheduler", "--host", "0.0.0.0"],
            "env": [],
            "resources": {},
            "ports": [
                {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
                {"name": "http-dashboard", "containerPort": 8787},
            ],
            "readinessProbe": dashboard(1),
            "livenessProbe": dashboard(20),
        }]},
        "service": {
            "type": "ClusterIP",
            "selector": {"dask.org/cluster-name": "a", "dask.org/component": "scheduler"},
            "ports": [
                {"name": "tcp-comm", "protocol": "TCP", "port": 8786, "targetPort": "tcp-comm"},
                {"name": "http-dashboard", "port": 8787, "targetPort": 8787},
            ],
        },
    })
}

fn python_worker() -> Value {
    json!({
        "replicas": 3,
        "spec": {"containers": [{
            "name": "worker",
            "image": "ghcr.io/dask/dask:latest",
            "args": [
                "dask-worker", "--name", "$(DASK_WORKER_NAME)", "--dashboard",
                "--dashboard-address", "8788",
            ],
            "env": [{"name": "A", "value": "b"}],
            "resources": {"limits": {"cpu": 1, "memory": "2Gi"}},
            "ports": [{"name": "http-dashboard", "containerPort": 8788, "protocol": "TCP"}],
        }]},
    })
}

fn python_cluster() -> Value {
    json!({"idleTimeout": null, "worker": python_worker(), "scheduler": python_scheduler()})
}

#[test]
fn names_and_columns_are_those_of_dask_kubernetes_and_more() {
    let all: Vec<_> = custom_resource_definitions()
        .into_iter()
        .map(|definition| {
            let names = definition.spec.names;
            let scale = definition.spec.versions[0]
                .subresources
                .clone()
                .unwrap()
                .scale;
            let columns = definition.spec.versions[0]
                .additional_printer_columns
                .clone()
                .unwrap();
            let columns: Vec<_> = columns.into_iter().map(|column| column.name).collect();
            (
                definition.metadata.name.unwrap(),
                names.singular.unwrap(),
                names.short_names.unwrap_or_default().join(","),
                scale.is_some(),
                columns.join(","),
            )
        })
        .collect();
    let expected = [
        ("daskclusters", "daskcluster", "daskcluster,dsk", true),
        ("daskworkergroups", "daskworkergroup", "daskworkers", true),
        ("daskjobs", "daskjob", "djb", false),
        ("daskautoscalers", "daskautoscaler", "", false),
    ];
    let columns = [
        "Workers,Ready,Status,Reason,Age,Address",
        "Workers,Ready,Cluster,Age",
        "Status,Number Of Workers,Started,Finished,Age,Suspended,Schedule,Runner",
        "Cluster,Minimum,Maximum,Age,Desired,Message",
    ];
    for ((found, expected), columns) in all.iter().zip(expected).zip(columns) {
        let (name, singular, short_names, has_scale) = expected;
        assert_eq!(found.0, format!("{name}.kubernetes.dask.org"));
        assert_eq!(
            (found.1.as_str(), found.2.as_str(), found.3),
            (singular, short_names, has_scale)
        );
        assert_eq!(found.4, columns);
    }
}

#[test]
fn every_definition_fits_into_the_annotation_of_kubectl_apply() {
    for definition in custom_resource_definitions() {
        let bytes = serde_json::to_string(&definition).unwrap().len();
        let name = definition.metadata.name.unwrap();
        assert!(bytes < DEFINITION_BYTES_MAX, "{name}: {bytes} bytes");
        assert!(bytes > 1000, "{name} has no schema");
    }
}

#[test]
fn the_schemas_are_structural_and_unknown_fields_are_kept_in_one_place_only() {
    for kind in [
        "DaskCluster",
        "DaskWorkerGroup",
        "DaskJob",
        "DaskAutoscaler",
    ] {
        let mut free = Vec::new();
        walk("", &schema(kind), &mut |path, node| {
            for key in [
                "$ref", "$schema", "title", "anyOf", "oneOf", "allOf", "const", "variants",
            ] {
                assert!(!node.contains_key(key), "{kind}{path} has {key}");
            }
            let is_free = node.contains_key("x-kubernetes-preserve-unknown-fields");
            let is_mixed = node.contains_key("x-kubernetes-int-or-string");
            assert_eq!(
                node.contains_key("type"),
                !is_free && !is_mixed,
                "{kind}{path}"
            );
            if is_free {
                free.push(path.to_owned());
            }
            let is_walked = node.contains_key("x-kubernetes-list-map-keys");
            assert_eq!(
                is_walked,
                node.get("x-kubernetes-list-type").is_some(),
                "{kind}{path}"
            );
        });
        let expected: &[&str] = if kind == "DaskJob" {
            &[".spec.graph.tasks"]
        } else {
            &[]
        };
        assert_eq!(free, expected, "{kind}");
    }
}

#[test]
fn keys_of_lists_are_required_or_have_a_default() {
    for kind in [
        "DaskCluster",
        "DaskWorkerGroup",
        "DaskJob",
        "DaskAutoscaler",
    ] {
        walk("", &schema(kind), &mut |path, node| {
            let Some(keys) = node.get("x-kubernetes-list-map-keys") else {
                return;
            };
            let item = &node["items"];
            for key in keys.as_array().unwrap() {
                let is_required = item["required"]
                    .as_array()
                    .is_some_and(|all| all.contains(key));
                let has_default = item["properties"][key.as_str().unwrap()]["default"].is_string();
                assert!(is_required || has_default, "{kind}{path}: {key}");
            }
        });
    }
}

#[test]
fn descriptions_are_ours_only() {
    let schema = schema("DaskCluster");
    let worker = &schema["properties"]["spec"]["properties"]["worker"]["properties"];
    for name in ["spec", "volumes", "affinity", "tolerations", "envFrom"] {
        assert!(worker[name]["description"].is_string(), "{name}");
        let mut texts = 0;
        walk(name, &worker[name], &mut |_, node| {
            texts += usize::from(node.contains_key("description"));
        });
        assert_eq!(texts, 1, "{name} has texts of Kubernetes");
    }
}

#[test]
fn manifests_of_dask_kubernetes_are_admitted() {
    let cluster = admitted("DaskCluster", &python_cluster()).unwrap();
    assert_eq!(cluster["spec"]["idleTimeout"], 0);
    let cluster: DaskCluster = serde_json::from_value(cluster).unwrap();
    assert_eq!(cluster.spec.runtime(), Runtime::Dask);
    assert_eq!(cluster.spec.worker.replicas, Some(3));

    let group = json!({"cluster": "a", "worker": python_worker()});
    let group = admitted("DaskWorkerGroup", &group).unwrap();
    let _: DaskWorkerGroup = serde_json::from_value(group).unwrap();

    let pod = json!({"containers": [{
        "name": "job", "image": "ghcr.io/dask/dask:latest", "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", "print(1)"],
    }]});
    let job = json!({"job": {"spec": pod}, "cluster": {"spec": python_cluster()}});
    let job = admitted("DaskJob", &job).unwrap();
    assert_eq!(job["spec"]["job"]["spec"]["restartPolicy"], "OnFailure");
    let _: DaskJob = serde_json::from_value(job).unwrap();

    for (minimum, maximum) in [(json!(null), json!(null)), (json!(0), json!(10))] {
        let spec = json!({"cluster": "a", "minimum": minimum, "maximum": maximum});
        admitted("DaskAutoscaler", &spec).unwrap();
    }
}

#[test]
fn defaults_are_filled_in_and_change_no_meaning() {
    let cluster = admitted("DaskCluster", &json!({"worker": {}})).unwrap();
    assert_eq!(
        cluster["spec"],
        json!({"idleTimeout": 0, "worker": {"replicas": 1}})
    );
    let cluster: DaskCluster = serde_json::from_value(cluster).unwrap();
    assert_eq!(cluster.spec.runtime(), Runtime::Rust);
    let given = GroupPlan::new("default", &cluster.spec.worker);
    let absent = GroupPlan::new("default", &oxidask_operator_api::Worker::default());
    assert_eq!(given, absent);

    let cluster = admitted("DaskCluster", &python_cluster()).unwrap();
    let container = &cluster["spec"]["scheduler"]["spec"]["containers"][0];
    assert_eq!(container["ports"][1]["protocol"], "TCP");
    assert_eq!(
        cluster["spec"]["scheduler"]["service"]["ports"][1]["protocol"],
        "TCP"
    );
    assert!(container.get("restartPolicy").is_none());
}

#[test]
fn pods_may_have_what_newer_kubernetes_versions_brought() {
    let worker = json!({"spec": {
        "containers": [{
            "name": "worker",
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "readinessProbe": {"grpc": {"port": 8786}},
            "resources": {"claims": [{"name": "gpu"}]},
        }],
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "schedulingGates": [{"name": "x"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}],
        "hostUsers": false,
        "os": {"name": "linux"},
        "resources": {"limits": {"cpu": 2}},
        "volumes": [{"name": "image", "image": {"reference": "a/b:c"}}],
    }});
    admitted("DaskCluster", &json!({"worker": worker})).unwrap();
}

#[test]
fn what_the_fields_alone_can_tell_is_refused_by_the_schema() {
    let cases = [
        (json!({}), "spec: \"worker\" is missing"),
        (
            json!({"worker": {"replcas": 2}}),
            "spec.worker.replcas: unknown",
        ),
        (
            json!({"worker": {"replicas": 10_001}}),
            "spec.worker.replicas: 10001 is out of range",
        ),
        (
            json!({"worker": {"threads": 0}}),
            "spec.worker.threads: 0 is out of range",
        ),
        (
            json!({"worker": {"autoscale": {"minimum": 1}}}),
            "spec.worker.autoscale: \"maximum\" is missing",
        ),
        (
            json!({"worker": {}, "workerGroups": [{}]}),
            "spec.workerGroups[0]: \"name\" is missing",
        ),
        (
            json!({"worker": {"resources": {"limits": {"cpu": 0.5}}}}),
            "is neither a whole number",
        ),
        (
            json!({"worker": {"spec": {}}}),
            "spec.worker.spec: \"containers\" is missing",
        ),
    ];
    for (spec, fault) in cases {
        let faults = admitted("DaskCluster", &spec).unwrap_err();
        assert!(
            faults.iter().any(|found| found.contains(fault)),
            "{fault}: {faults:?}"
        );
    }
}

#[test]
fn rules_stand_where_the_checks_of_local_runs_look() {
    let mut found = Vec::new();
    walk("", &schema("DaskJob"), &mut |path, node| {
        let rules = node
            .get("x-kubernetes-validations")
            .and_then(Value::as_array);
        for rule in rules.into_iter().flatten() {
            assert!(
                rule["message"].as_str().is_some_and(|text| text.len() > 20),
                "{path}: {rule}"
            );
            found.push((path.to_owned(), rule["rule"].as_str().unwrap().to_owned()));
        }
    });
    let has = |path: &str, part: &str| {
        found
            .iter()
            .any(|(place, rule)| place == path && rule.contains(part))
    };
    for kind in ["sql", "graph", "script", "job"] {
        assert!(
            has(".spec", &format!("self.{kind} == oldSelf.{kind}")),
            "{kind}"
        );
    }
    assert!(has(".spec", ".filter(is_given, is_given).size() == 1"));
    assert!(has(
        ".spec",
        "has(self.job) || !has(self.cluster.spec.runtime)"
    ));
    assert!(has(".spec", "has(self.schedule) || !(has(self.timeZone)"));
    assert!(has(".spec", "has(self.schedule) == has(oldSelf.schedule)"));
    for kind in ["sql", "graph", "script"] {
        assert!(has(&format!(".spec.{kind}"), "!has(self.file)"), "{kind}");
        assert!(
            has(&format!(".spec.{kind}"), "!= has(self.configMapKeyRef)"),
            "{kind}"
        );
    }
    for worker in [".worker", ".workerGroups[]"] {
        let worker = format!(".spec.cluster.spec{worker}");
        assert!(has(
            &format!("{worker}.autoscale"),
            "self.minimum <= self.maximum"
        ));
        assert!(has(&format!("{worker}.resources"), "isGreaterThan"));
        assert!(has(&format!("{worker}.taskResources"), "size(name) > 0"));
    }
    let strategy = ".spec.cluster.spec.updateStrategy";
    assert!(has(strategy, "self.maxSurge >= 0"));
    assert!(has(strategy, "!has(self.maxSurge) || !("));
    assert!(has(
        ".spec.cluster.spec.workerGroups[].name",
        "self != 'default'"
    ));
    assert!(
        found
            .iter()
            .all(|(path, rule)| !path.is_empty() && !rule.contains("metadata"))
    );
}

#[test]
fn an_autoscaler_may_have_bounds_that_are_null_but_not_crossed() {
    let schema = schema("DaskAutoscaler");
    let rules = &schema["properties"]["spec"]["x-kubernetes-validations"];
    let rule = rules[0]["rule"].as_str().unwrap();
    for part in [
        "dyn(self.minimum) == null",
        "dyn(self.maximum) == null",
        "self.minimum <= self.maximum",
    ] {
        assert!(rule.contains(part), "{rule}");
    }
    let spec = json!({
        "cluster": "a", "minimum": 0, "scaleDownWindowSeconds": 60, "targetSeconds": 10,
        "recommendOnly": true,
    });
    let object = admitted("DaskAutoscaler", &spec).unwrap();
    let object: oxidask_operator_api::kubernetes::DaskAutoscaler =
        serde_json::from_value(object).unwrap();
    assert_eq!(object.spec.scale_down_window_seconds, Some(60));
    let faults = admitted(
        "DaskAutoscaler",
        &json!({"cluster": "a", "targetSeconds": 0}),
    );
    assert!(faults.unwrap_err()[0].contains("spec.targetSeconds: 0 is out of range"));
}

#[test]
fn a_manifest_that_a_local_run_takes_is_admitted_and_means_the_same() {
    let spec = json!({
        "cluster": {"spec": {
            "worker": {
                "replicas": 2, "threads": 2, "env": [{"name": "A", "value": "b"}],
                "resources": {"limits": {"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": 1}},
                "autoscale": {"minimum": 1, "maximum": 8},
            },
            "workerGroups": [{"name": "big", "taskResources": {"disk": 3}}],
            "suspend": false,
        }},
        "graph": {"tasks": [{"key": "a", "op": "value", "args": {"value": [null, {"x": 1.5}]}}]},
        "activeDeadlineSeconds": 60,
    });
    let written = to_yaml(&object("DaskJob", &spec));
    let local = Manifest::parse(&written, "job.yaml", std::path::Path::new("."));
    let local = local.unwrap().into_job().unwrap();
    let job: DaskJob = serde_json::from_value(admitted("DaskJob", &spec).unwrap()).unwrap();
    let cluster = &job.spec.cluster.spec;
    let mut groups = vec![GroupPlan::new("default", &cluster.worker)];
    groups.extend(
        cluster
            .worker_groups
            .iter()
            .map(|group| GroupPlan::new(&group.name, &group.to_worker())),
    );
    assert_eq!(groups, local.cluster.groups);
}
