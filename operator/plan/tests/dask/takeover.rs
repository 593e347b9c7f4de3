//! An installation of dask-kubernetes, as it leaves it, becomes ours in place.

use std::collections::BTreeMap;

use crate::world::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

const MARKER: &str = "kopf.zalando.org/KopfFinalizerMarker";
const LAST: &str = "kopf.zalando.org/last-handled-configuration";

/// What dask-kubernetes leaves: finalizer, notes, selectors over all labels, its own variables.
fn upstream() -> World {
    let mut world = World::new(cluster_spec(2));
    let cluster = &mut world.clusters.get_mut("c").unwrap().metadata;
    cluster.finalizers = Some(vec![MARKER.to_owned()]);
    let notes: BTreeMap<String, String> = [(LAST.to_owned(), "{}".to_owned())].into();
    cluster.annotations = Some(notes.clone());
    cluster.labels = Some([("team".to_owned(), "a".to_owned())].into());
    let owner = |kind: &str, name: &str| {
        json!([{
            "apiVersion": "kubernetes.dask.org/v1", "kind": kind, "name": name,
            "uid": format!("uid-{name}"), "controller": true, "blockOwnerDeletion": true,
        }])
    };
    let metadata = |name: &str, labels: &Value, owners: Value| {
        json!({
            "name": name, "namespace": "science", "uid": format!("uid-{name}"), "generation": 1,
            "labels": labels, "annotations": notes, "ownerReferences": owners,
        })
    };
    let labels = json!({"dask.org/cluster-name": "c", "dask.org/component": "workergroup"});
    let mut spec = cluster_spec(2);
    // It was scaled since.
    spec["worker"]["replicas"] = json!(3);
    let group = json!({
        "metadata": metadata("c-default", &labels, owner("DaskCluster", "c")),
        "spec": {"cluster": "c", "worker": spec["worker"]},
    });
    world.groups.insert("c-default".to_owned(), read(group));
    let deployment = |name: &str, labels: Value, owners: Value, mut pod: Value| {
        let address = "tcp://c-scheduler.science.svc.cluster.local:8786";
        let env = json!([
            {"name": "DASK_WORKER_NAME", "value": name},
            {"name": "DASK_SCHEDULER_ADDRESS", "value": address},
        ]);
        pod["containers"][0]["env"] = env;
        json!({
            "metadata": metadata(name, &labels, owners),
            "spec": {
                "replicas": 1, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        })
    };
    let labels = json!({
        "dask.org/cluster-name": "c", "dask.org/component": "scheduler",
        "sidecar.istio.io/inject": "false", "team": "a",
    });
    let service = json!({
        "metadata": metadata("c-scheduler", &labels, owner("DaskCluster", "c")),
        "spec": spec["scheduler"]["service"],
    });
    world
        .services
        .insert("c-scheduler".to_owned(), read(service));
    let pod = spec["scheduler"]["spec"].clone();
    let scheduler = deployment("c-scheduler", labels, owner("DaskCluster", "c"), pod);
    world
        .deployments
        .insert("c-scheduler".to_owned(), read(scheduler));
    for digits in ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"] {
        let name = format!("c-default-worker-{digits}");
        let labels = json!({
            "dask.org/cluster-name": "c", "dask.org/component": "worker",
            "dask.org/workergroup-name": "c-default", "sidecar.istio.io/inject": "false",
            "team": "a",
        });
        let owners = owner("DaskWorkerGroup", "c-default");
        let worker = deployment(&name, labels, owners, worker_spec());
        world.deployments.insert(name, read(worker));
    }
    world
}

#[test]
fn nothing_that_runs_is_changed_and_what_was_left_behind_is_gone() {
    let mut world = upstream();
    let before = world.deployments.clone();
    let service = world.services["c-scheduler"].spec.clone();
    world.rounds(6);
    assert_eq!(world.deployments.len(), before.len());
    for (name, deployment) in &world.deployments {
        assert_eq!(deployment.spec, before[name].spec, "{name}");
        assert!(
            !deployment
                .metadata
                .annotations
                .as_ref()
                .unwrap()
                .contains_key(LAST)
        );
    }
    assert_eq!(world.services["c-scheduler"].spec, service);
    let cluster = &world.clusters["c"].metadata;
    assert!(cluster.finalizers.as_ref().unwrap().is_empty());
    assert!(!cluster.annotations.as_ref().unwrap().contains_key(LAST));
    assert_eq!(
        world.groups["c-default"].spec.worker.replicas,
        Some(3),
        "as it was scaled"
    );
    assert!(world.deleted.is_empty() && world.retired.is_empty());
    assert!(world.plan_cluster("c").is_empty() && world.plan_group("c-default").is_empty());
}

#[test]
fn later_edits_and_scaling_work_and_selectors_stay() {
    let mut world = upstream();
    world.rounds(6);
    let selector = world.deployments["c-scheduler"]
        .spec
        .clone()
        .unwrap()
        .selector;
    // A label that is handed down restarts nothing.
    let cluster = world.clusters.get_mut("c").unwrap();
    cluster
        .metadata
        .labels
        .as_mut()
        .unwrap()
        .insert("new".to_owned(), "1".to_owned());
    let before = world.deployments.clone();
    world.rounds(4);
    for (name, deployment) in &world.deployments {
        assert_eq!(deployment.spec, before[name].spec, "{name}");
    }
    world.scale("c-default", 2);
    world.rounds(5);
    assert_eq!(world.workers("c-default").len(), 2);
    let cluster = world.clusters.get_mut("c").unwrap();
    let image = "dask:new";
    cluster
        .spec
        .scheduler
        .as_mut()
        .unwrap()
        .spec
        .as_mut()
        .unwrap()["containers"][0]["image"] = image.into();
    cluster.spec.worker.spec.as_mut().unwrap()["containers"][0]["image"] = image.into();
    world.rounds(30);
    let scheduler = world.deployments["c-scheduler"].spec.clone().unwrap();
    assert_eq!(scheduler.selector, selector);
    let labels = scheduler.template.metadata.unwrap().labels.unwrap();
    let selected = selector.match_labels.unwrap();
    assert!(
        selected
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    );
    assert_eq!(
        scheduler.template.spec.unwrap().containers[0]
            .image
            .as_deref(),
        Some(image)
    );
    assert_eq!(world.workers("c-default").len(), 2);
    for name in world.workers("c-default") {
        let spec = world.deployments[&name]
            .spec
            .clone()
            .unwrap()
            .template
            .spec
            .unwrap();
        assert_eq!(spec.containers[0].image.as_deref(), Some(image));
    }
    assert_eq!(world.lost_bytes, 0);
}

/// With dask-kubernetes gone, the deletion of such a cluster and of its namespace hangs there.
#[test]
fn a_cluster_that_waits_for_the_other_operator_is_let_go() {
    let mut world = upstream();
    let now = Some(Time(at(world.now)));
    world
        .clusters
        .get_mut("c")
        .unwrap()
        .metadata
        .deletion_timestamp = now;
    world.rounds(1);
    assert!(world.clusters.is_empty());
}
