//! What stands in the objects.

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};
use oxidask_operator_plan::Object;
use serde_json::{Value, json};

use crate::support::*;

/// The objects of a job's cluster as they are applied first.
fn world(cluster: &Value) -> World {
    let spec = json!({"cluster": {"spec": cluster}, "sql": {"statements": "SELECT 1"}});
    let mut world = World::with_job(job_of("flights", spec));
    world.settle();
    world
}

fn worker_spec(world: &World) -> PodSpec {
    let name = world.workers()[0].clone();
    world.pods[&name].spec.clone().unwrap()
}

fn scheduler_spec(world: &World) -> PodSpec {
    let deployment = world.deployments["flights-scheduler"].spec.clone().unwrap();
    deployment.template.spec.unwrap()
}

fn env<'a>(container: &'a Container, name: &str) -> Option<&'a EnvVar> {
    container
        .env
        .iter()
        .flatten()
        .find(|variable| variable.name == name)
}

fn value<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    env(container, name)?.value.as_deref()
}

/// The object as it goes to the API server.
fn shown(object: &Object) -> String {
    serde_json::to_string_pretty(&object.to_value()).unwrap()
}

#[test]
fn the_scheduler() {
    let world = World::with_cluster(cluster("flights", json!({"worker": {}})));
    let plan = world.plan_cluster("flights");
    insta::assert_snapshot!("scheduler_service", shown(&plan.apply[0]));
    insta::assert_snapshot!("workers_budget", shown(&plan.apply[1]));
    insta::assert_snapshot!("scheduler_deployment", shown(&plan.apply[2]));
}

#[test]
fn a_worker() {
    let limits = json!({"limits": {"cpu": "1500m", "memory": "2Gi"}});
    let group = worker_group("flights-default", "flights", json!({"resources": limits}));
    let mut world = World::with_cluster(cluster("flights", json!({"worker": {}})));
    world.settle();
    world.groups.insert("flights-default".to_owned(), group);
    let plan = world.plan_group("flights-default");
    insta::assert_snapshot!("worker_pod", shown(&plan.apply[0]));
}

#[test]
fn a_runner() {
    let mut world = world(&json!({"worker": {}}));
    world.pods.remove("flights-runner");
    let mut plan = world.plan_job("flights");
    let runner = plan.apply.pop().unwrap();
    insta::assert_snapshot!("runner_pod", shown(&runner));
}

#[test]
fn the_users_environment_comes_first_and_wins() {
    let world = world(&json!({
        "worker": {
            "threads": 3,
            "env": [
                {"name": "AWS_REGION", "value": "eu-west-1"},
                {"name": "OXIDASK_THREADS", "value": "9"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "envFrom": [{"secretRef": {"name": "more"}}],
        },
    }));
    let container = &worker_spec(&world).containers[0];
    let names: Vec<&str> = container
        .env
        .iter()
        .flatten()
        .map(|v| v.name.as_str())
        .collect();
    assert_eq!(names[..3], ["AWS_REGION", "OXIDASK_THREADS", "TOKEN"]);
    assert_eq!(value(container, "OXIDASK_THREADS"), Some("9"));
    assert_eq!(
        names
            .iter()
            .filter(|name| **name == "OXIDASK_THREADS")
            .count(),
        1
    );
    assert!(env(container, "TOKEN").unwrap().value_from.is_some());
    assert_eq!(container.env_from.as_ref().unwrap().len(), 1);
    let name = world.workers()[0].clone();
    assert_eq!(value(container, "DASK_WORKER_NAME"), Some(name.as_str()));
}

#[test]
fn slots_memory_and_resources_follow_from_the_limits() {
    for (worker, threads, memory, resources) in [
        (json!({}), "1", None, None),
        (
            json!({"resources": {"limits": {"cpu": "1500m"}}}),
            "2",
            None,
            None,
        ),
        (
            json!({"threads": 4, "resources": {"limits": {"cpu": 1}}}),
            "4",
            None,
            None,
        ),
        (
            json!({"resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": 2}},
                   "taskResources": {"license": 1}}),
            "1",
            Some("1073741824"),
            Some("gpu=2,license=1"),
        ),
        (
            json!({"resources": {"limits": {"nvidia.com/gpu": 2}}, "taskResources": {"gpu": 8}}),
            "1",
            None,
            Some("gpu=8"),
        ),
    ] {
        let world = world(&json!({"worker": worker}));
        let container = &worker_spec(&world).containers[0];
        assert_eq!(
            value(container, "OXIDASK_THREADS"),
            Some(threads),
            "{worker}"
        );
        assert_eq!(value(container, "OXIDASK_MEMORY"), memory, "{worker}");
        assert_eq!(value(container, "OXIDASK_RESOURCES"), resources, "{worker}");
    }
}

/// A pod spec with something of everything.
fn template() -> Value {
    json!({
        "priorityClassName": "high",
        "nodeSelector": {"disk": "ssd"},
        "securityContext": {"runAsUser": 1000},
        "terminationGracePeriodSeconds": 60,
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "containers": [
            {"name": "sidecar", "image": "sidecar"},
            {
                "name": "worker",
                "image": "registry/dask",
                "command": ["dask-worker"],
                "args": ["--dashboard"],
                "env": [{"name": "A", "value": "template"}, {"name": "B", "value": "template"}],
                "ports": [{"name": "http-dashboard", "containerPort": 9000},
                          {"name": "debug", "containerPort": 5678}],
                "volumeMounts": [{"name": "cache", "mountPath": "/tmp"}],
                "resources": {"limits": {"cpu": "3"}},
                "readinessProbe": {"exec": {"command": ["true"]}},
            },
        ],
    })
}

#[test]
fn a_pod_spec_is_a_template() {
    let world = world(&json!({
        "worker": {
            "spec": template(),
            "env": [{"name": "A", "value": "short"}],
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "serviceAccountName": "reader",
            "imagePullSecrets": [{"name": "pull"}],
            "workingDir": "/work",
        },
    }));
    let spec = worker_spec(&world);
    assert_eq!(spec.priority_class_name.as_deref(), Some("high"));
    assert_eq!(spec.node_selector.as_ref().unwrap().len(), 2);
    assert_eq!(
        spec.security_context.as_ref().unwrap().run_as_user,
        Some(1000)
    );
    assert_eq!(spec.termination_grace_period_seconds, Some(60));
    assert_eq!(spec.service_account_name.as_deref(), Some("reader"));
    assert_eq!(spec.image_pull_secrets.as_ref().unwrap().len(), 1);
    assert_eq!(spec.tolerations.as_ref().unwrap().len(), 1);
    let volumes: Vec<&str> = spec
        .volumes
        .iter()
        .flatten()
        .map(|v| v.name.as_str())
        .collect();
    assert_eq!(
        volumes,
        ["cache", "oxidask-tls", "oxidask-program"],
        "the user's folder at /tmp is enough"
    );
    assert_eq!(
        spec.security_context.as_ref().unwrap().fs_group,
        Some(65532)
    );
    assert_eq!(spec.containers.len(), 2);
    assert_eq!(spec.containers[0].image.as_deref(), Some("sidecar"));
    assert!(
        spec.containers[0].volume_mounts.is_none(),
        "a sidecar gets no key"
    );
    let container = &spec.containers[1];
    assert_eq!(container.image.as_deref(), Some("registry/dask"));
    let program = ["/opt/oxidask/oxidask".to_owned()];
    assert_eq!(container.command.as_deref(), Some(&program[..]));
    assert_eq!(container.args.as_deref(), Some(&["worker".to_owned()][..]));
    assert_eq!(value(container, "A"), Some("short"));
    assert_eq!(value(container, "B"), Some("template"));
    assert_eq!(value(container, "OXIDASK_THREADS"), Some("3"));
    assert_eq!(value(container, "OXIDASK_BASE_DIR"), Some("/work"));
    assert!(container.readiness_probe.as_ref().unwrap().exec.is_some());
    let ports: Vec<i32> = container
        .ports
        .iter()
        .flatten()
        .map(|p| p.container_port)
        .collect();
    assert_eq!(ports, [5678, 8788, 8789]);
}

#[test]
fn the_scheduler_takes_short_fields_and_a_service() {
    let world = world(&json!({
        "worker": {},
        "scheduler": {
            "image": "registry/mine",
            "resources": {"limits": {"memory": "1Gi"}},
            "metadata": {"annotations": {"a": "b"}},
            "service": {
                "type": "NodePort",
                "selector": {"mine": "yes"},
                "ports": [{"name": "tcp-comm", "port": 8786, "targetPort": "x", "nodePort": 30000},
                          {"name": "extra", "port": 1}],
            },
        },
    }));
    let container = &scheduler_spec(&world).containers[0];
    assert_eq!(container.image.as_deref(), Some("registry/mine"));
    let metadata = &world.deployments["flights-scheduler"].metadata;
    assert_eq!(metadata.annotations.as_ref().unwrap()["a"], "b");
    let service = serde_json::to_value(&world.services["flights-scheduler"].spec).unwrap();
    assert_eq!(service["type"], "NodePort");
    assert_eq!(
        service["selector"],
        json!({"dask.org/cluster-name": "flights", "dask.org/component": "scheduler"})
    );
    let ports = service["ports"].as_array().unwrap();
    let ports: Vec<(&Value, &Value)> = ports.iter().map(|p| (&p["name"], &p["port"])).collect();
    assert_eq!(
        ports,
        [
            (&json!("extra"), &json!(1)),
            (&json!("tcp-comm"), &json!(8786)),
            (&json!("http-dashboard"), &json!(8787)),
        ]
    );
    assert_eq!(service["ports"][1]["nodePort"], 30000);
    // The runner stands where the scheduler does, with the same image.
    let runner = world.pods["flights-runner"].spec.as_ref().unwrap();
    assert_eq!(runner.containers[0].image.as_deref(), Some("registry/mine"));
    assert_eq!(runner.containers[0].resources, None);
}

#[test]
fn labels_reach_all_objects_but_those_of_tools_do_not() {
    let mut object = cluster(
        "flights",
        json!({"worker": {"replicas": 1, "metadata": {"labels": {"team": "b", "dask.org/component": "x"}}}}),
    );
    let labels = [
        ("team", "a"),
        ("app.kubernetes.io/instance", "x"),
        ("argocd.argoproj.io/instance", "x"),
    ];
    let pairs = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    object.metadata.labels = Some(pairs.into());
    let annotations = [
        ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
        ("n", "1"),
    ];
    let pairs = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    object.metadata.annotations = Some(pairs.into());
    let mut world = World::with_cluster(object);
    world.settle();
    let name = world.workers()[0].clone();
    let mut pod = world.pods[&name].metadata.clone();
    let hash = pod
        .labels
        .as_mut()
        .unwrap()
        .remove("kubernetes.dask.org/template-hash");
    assert!(hash.is_some());
    let pod = &pod;
    assert_eq!(
        serde_json::to_value(&pod.labels).unwrap(),
        json!({
            "dask.org/cluster-name": "flights",
            "dask.org/component": "worker",
            "dask.org/workergroup-name": "flights-default",
            "sidecar.istio.io/inject": "false",
            "team": "b",
        })
    );
    let deployment = &world.deployments["flights-scheduler"];
    let service = &world.services["flights-scheduler"].metadata;
    for metadata in [
        pod,
        &deployment.metadata,
        service,
        &world.groups["flights-default"].metadata,
    ] {
        let labels = metadata.labels.as_ref().unwrap();
        assert!(labels.contains_key("team"));
        assert!(!labels.contains_key("app.kubernetes.io/instance"));
        assert!(!labels.contains_key("argocd.argoproj.io/instance"));
        let annotations = metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations.get("n").map(String::as_str), Some("1"));
        assert!(!annotations.keys().any(|key| key.starts_with("kubectl")));
    }
    assert!(
        !service
            .labels
            .as_ref()
            .unwrap()
            .contains_key("sidecar.istio.io/inject")
    );
    let selector = &deployment.spec.as_ref().unwrap().selector;
    assert_eq!(
        selector.match_labels.as_ref().unwrap().len(),
        2,
        "{selector:?}"
    );
}

#[test]
fn the_authoritys_secret_is_mounted_nowhere() {
    let world = world(&json!({"worker": {}}));
    let pods = serde_json::to_string(&world.pods).unwrap();
    let deployments = serde_json::to_string(&world.deployments).unwrap();
    for (text, role) in [
        (&pods, "worker"),
        (&pods, "client"),
        (&deployments, "scheduler"),
    ] {
        assert!(text.contains(&format!("flights-tls-{role}")), "{role}");
        assert!(!text.contains("flights-ca") && !text.contains("flights-tls-operator"));
    }
}

fn journal_volume(world: &World) -> Value {
    let spec = scheduler_spec(world);
    let container = &spec.containers[0];
    let arguments: Vec<&str> = container
        .args
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let ["scheduler", "--journal-dir", folder] = arguments[..] else {
        panic!("{arguments:?}");
    };
    let mut mounts = container.volume_mounts.iter().flatten();
    let mount = mounts.find(|mount| mount.mount_path == folder).unwrap();
    let mut volumes = spec.volumes.iter().flatten();
    let volume = volumes.find(|volume| volume.name == mount.name).unwrap();
    serde_json::to_value(volume).unwrap()
}

#[test]
fn the_journal_outlives_the_container_and_with_a_claim_the_pod() {
    let bare = world(&json!({"worker": {}}));
    let expected = json!({"name": "oxidask-journal", "emptyDir": {}});
    assert_eq!(journal_volume(&bare), expected);
    assert!(bare.claims.is_empty());
    let limited = world(&json!({"worker": {}, "scheduler": {"journal": {"sizeLimit": "5Gi"}}}));
    let expected = json!({"name": "oxidask-journal", "emptyDir": {"sizeLimit": "5Gi"}});
    assert_eq!(journal_volume(&limited), expected);

    let claim = json!({
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "10Gi"}},
    });
    let spec = json!({"worker": {}, "scheduler": {"journal": {"volumeClaim": claim}}});
    let mut world = world(&spec);
    let claimed = json!({"claimName": "flights-journal"});
    let expected = json!({"name": "oxidask-journal", "persistentVolumeClaim": claimed});
    assert_eq!(journal_volume(&world), expected);
    let found = &world.claims["flights-journal"];
    let owner = &found.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str()),
        ("DaskCluster", "flights")
    );
    let expected = json!({
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "10Gi"}},
    });
    assert_eq!(serde_json::to_value(&found.spec).unwrap(), expected);
    assert!(!world.has_event("FieldIgnored"));
    // The volume is there before the pod that needs it.
    let position = |what: &str| world.log.iter().position(|line| line == what).unwrap();
    let claim = position("PersistentVolumeClaim flights-journal");
    assert!(claim < position("Deployment flights-scheduler"));
    // It goes with its cluster.
    world.jobs.clear();
    world.collect_garbage();
    assert!(world.claims.is_empty());
}

#[test]
fn a_folder_that_the_template_mounts_for_the_journal_stays() {
    let mount = json!({"name": "mine", "mountPath": "/var/lib/oxidask/journal"});
    let volume = json!({"name": "mine", "hostPath": {"path": "/srv/journal"}});
    let spec = json!({
        "worker": {},
        "scheduler": {"volumes": [volume], "volumeMounts": [mount]},
    });
    let expected = json!({"name": "mine", "hostPath": {"path": "/srv/journal"}});
    assert_eq!(journal_volume(&world(&spec)), expected);
}
