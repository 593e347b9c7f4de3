//! Changes by others, changes of the spec, suspension, idleness and what the API server refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use oxidask_operator_plan::signal::Signal;
use oxidask_operator_plan::{DeletionReason, EventKind, Object, ObjectKind, Refusal, Settings};
use serde_json::json;

use crate::support::*;

fn world() -> World {
    let mut world = World::with_cluster(cluster("flights", json!({"worker": {"replicas": 1}})));
    world.settle();
    world.events.clear();
    world
}

fn change(
    world: &mut World,
    change: impl FnOnce(&mut oxidask_operator_api::kubernetes::DaskCluster),
) {
    let object = world.clusters.get_mut("flights").unwrap();
    change(object);
    object.metadata.generation = object.metadata.generation.map(|it| it + 1);
}

fn signal(idle: Option<Duration>, heard: i64) -> Signal {
    Signal {
        heard_at: at(heard),
        graphs: 0,
        clients: 0,
        unfinished_tasks: 0,
        idle,
        groups: BTreeMap::new(),
        workers: BTreeMap::new(),
        loaded: None,
        clients_loaded: Vec::new(),
        unplaced: Vec::new(),
    }
}

#[test]
fn changes_by_others_are_undone_and_told() {
    let mut world = world();
    let status = world.cluster_status("flights");
    let spec = world.deployments.get_mut("flights-scheduler").unwrap();
    spec.spec.as_mut().unwrap().replicas = Some(0);
    let service = world.services.get_mut("flights-scheduler").unwrap();
    service.spec.as_mut().unwrap().selector = Some([("a".to_owned(), "b".to_owned())].into());
    let budget = world.budgets.get_mut("flights-default").unwrap();
    budget.spec.as_mut().unwrap().unhealthy_pod_eviction_policy = None;
    let group = world.groups.get_mut("flights-default").unwrap();
    group.spec.worker.image = None;
    group.spec.worker.threads = Some(7);
    let plan = world.plan_cluster("flights");
    let kinds: Vec<ObjectKind> = plan.apply.iter().map(Object::kind).collect();
    assert_eq!(
        kinds,
        [
            ObjectKind::Service,
            ObjectKind::DisruptionBudget,
            ObjectKind::Deployment
        ],
        "what others add to a group is theirs"
    );
    let notes: Vec<&str> = plan
        .events
        .iter()
        .map(|event| event.note.as_str())
        .collect();
    assert_eq!(
        notes[2],
        "undoes a change by others: Deployment `flights-scheduler`: `spec.replicas` is 0 instead \
         of 1"
    );
    assert!(plan.status.is_none(), "Ready says nothing else meanwhile");
    world.settle();
    assert_eq!(world.cluster_status("flights"), status);
    assert_eq!(
        world.deployments["flights-scheduler"]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(1)
    );
}

#[test]
fn a_group_that_somebody_changed_is_repaired_and_keeps_its_number() {
    let spec = json!({"worker": {"replicas": 1, "threads": 2}});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    let group = world.groups.get_mut("flights-default").unwrap();
    group.spec.worker.threads = Some(7);
    group.spec.worker.replicas = Some(3);
    world.settle();
    let worker = &world.groups["flights-default"].spec.worker;
    assert_eq!((worker.threads, worker.replicas), (Some(2), Some(3)));
}

#[test]
fn a_webhook_that_changes_it_each_time_wins_after_three_repairs_for_an_hour() {
    let mut world = world();
    let spoil = |world: &mut World| {
        let service = world.services.get_mut("flights-scheduler").unwrap();
        service.spec.as_mut().unwrap().type_ = Some("NodePort".to_owned());
    };
    let mut applied = 0;
    for _ in 0..20 {
        spoil(&mut world);
        applied += world.plan_cluster("flights").apply.len();
        world.round();
    }
    assert_eq!(applied, 3);
    let told = world
        .events
        .iter()
        .filter(|event| event.reason == "Drifted");
    assert_eq!(told.count(), 1, "said once");
    let status = world.cluster_status("flights");
    let drifted = condition(&status.conditions, "Drifted");
    assert_eq!(drifted.reason, "OX534");
    assert!(
        drifted
            .message
            .contains("`spec.type` is NodePort instead of ClusterIP")
    );
    assert!(is_true(&status.conditions, "Ready"));
    let wake = world.plan_cluster("flights").wake_after.unwrap();
    assert!(wake <= Duration::from_hours(1));
    world.now += 3600;
    assert_eq!(
        world.plan_cluster("flights").apply.len(),
        1,
        "it is tried again"
    );
    world.settle();
    let conditions = world.cluster_status("flights").conditions;
    assert!(
        conditions
            .iter()
            .all(|condition| condition.type_ != "Drifted")
    );
}

#[test]
fn a_new_image_restarts_the_scheduler_and_says_why() {
    let mut world = world();
    change(&mut world, |cluster| {
        cluster.spec.scheduler = Some(read(json!({
            "image": "registry/new",
            "env": [{"name": "PASSWORD", "value": "secret"}],
            "resources": {"limits": {"memory": "2Gi"}},
        })));
    });
    let plan = world.plan_cluster("flights");
    let reason = "image changed from docker.io/oxidask/oxidask-runtime:0.1.0 to registry/new, \
                  environment variable `PASSWORD` changed, resources added";
    let told = plan
        .events
        .iter()
        .find(|event| event.reason == "SchedulerRestarts")
        .unwrap();
    assert!(
        told.note.starts_with("the scheduler restarts: "),
        "{}",
        told.note
    );
    assert!(!told.note.contains("secret"), "{}", told.note);
    for part in reason.split(", ") {
        assert!(told.note.contains(part), "{} lacks {part}", told.note);
    }
    world.is_lazy = true;
    world.round();
    world.round();
    let status = world.cluster_status("flights");
    let ready = condition(&status.conditions, "SchedulerReady");
    assert_eq!(ready.status, "False");
    assert!(
        ready.message.contains("restarts: image changed from"),
        "{}",
        ready.message
    );
    world.is_lazy = false;
    world.settle();
    change(&mut world, |cluster| {
        cluster.spec.worker.threads = Some(3);
    });
    let plan = world.plan_cluster("flights");
    let kinds: Vec<ObjectKind> = plan.apply.iter().map(Object::kind).collect();
    assert_eq!(kinds, [ObjectKind::WorkerGroup], "only what changed");
    assert!(
        !plan
            .events
            .iter()
            .any(|event| event.reason == "SchedulerRestarts")
    );
}

#[test]
fn a_suspended_cluster_keeps_its_journal_and_has_no_scheduler() {
    let spec = json!({"worker": {"replicas": 1}, "scheduler": {"journal": {"volumeClaim": {}}}});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    change(&mut world, |cluster| cluster.spec.suspend = Some(true));
    world.round();
    world.round();
    assert_eq!(
        world.deployments["flights-scheduler"]
            .spec
            .as_ref()
            .unwrap()
            .replicas,
        Some(0)
    );
    world.settle();
    let conditions = world.cluster_status("flights").conditions;
    assert_eq!(condition(&conditions, "Suspended").reason, "Suspended");
    assert!(is_true(&conditions, "Suspended"));
    assert_eq!(condition(&conditions, "Ready").reason, "Suspended");
    assert!(!is_true(&conditions, "Reconciling") && !is_true(&conditions, "Stalled"));
    assert!(world.claims.contains_key("flights-journal"));
    change(&mut world, |cluster| cluster.spec.suspend = None);
    world.settle();
    let conditions = world.cluster_status("flights").conditions;
    assert!(is_true(&conditions, "Ready"));
    assert!(
        conditions
            .iter()
            .all(|condition| condition.type_ != "Suspended")
    );
}

#[test]
fn an_idle_cluster_goes_and_a_silent_or_busy_one_stays() {
    let spec = json!({"worker": {}, "idleTimeout": 60});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    let now = world.now;
    assert!(
        world.plan_cluster("flights").delete.is_empty(),
        "nobody knows"
    );
    world.signal = Some(signal(None, now));
    let plan = world.plan_cluster("flights");
    assert!(plan.is_empty(), "no idleness is no fault: {plan:?}");
    world.signal = Some(signal(Some(Duration::from_secs(40)), now));
    let plan = world.plan_cluster("flights");
    assert!(plan.delete.is_empty());
    assert_eq!(plan.wake_after, Some(Duration::from_secs(20)));
    world.now += 20;
    let plan = world.plan_cluster("flights");
    assert_eq!(plan.delete[0].reason, DeletionReason::IdleTimeout);
    assert_eq!(plan.delete[0].object.kind, ObjectKind::Cluster);
    assert_eq!(plan.delete[0].object.uid, "uid-flights");
    assert_eq!(plan.events[0].reason, "IdleTimeout");
    assert_eq!(plan.events[0].kind, EventKind::Normal);
    let owner = json!([{"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskJob",
                        "name": "flights", "uid": "u", "controller": true}]);
    change(&mut world, |cluster| {
        cluster.metadata.owner_references = Some(read(owner));
    });
    assert!(
        world.plan_cluster("flights").delete.is_empty(),
        "a job ends its cluster itself"
    );
}

#[test]
fn what_the_api_server_refuses_is_said() {
    let mut world = world();
    world.refusals.push(Refusal {
        object: "Pod a".to_owned(),
        message: "exceeded quota: small".to_owned(),
    });
    world.settle();
    let conditions = world.cluster_status("flights").conditions;
    let refused = condition(&conditions, "ObjectsRefused");
    assert_eq!(
        refused.message,
        "the API server refuses Pod a: exceeded quota: small"
    );
    assert_eq!(refused.reason, "OX524");
    world.refusals.clear();
    world.settle();
    let conditions = world.cluster_status("flights").conditions;
    assert!(
        conditions
            .iter()
            .all(|condition| condition.type_ != "ObjectsRefused")
    );
}

#[test]
fn a_network_policy_comes_and_goes_with_the_setting() {
    let mut world = world();
    let with = Settings {
        network_policies: true,
        operator_namespace: Some("operators".to_owned()),
        ..settings()
    };
    world.settings = Some(with);
    let plan = world.plan_cluster("flights");
    let [object] = plan.apply.as_slice() else {
        panic!("{:?}", plan.apply);
    };
    insta::assert_snapshot!(
        "network_policy",
        serde_json::to_string_pretty(&object.to_value()).unwrap()
    );
    world.settle();
    // Somebody opens a door.
    let policy = world.policies.get_mut("flights-dask").unwrap();
    let ingress = policy.spec.as_mut().unwrap().ingress.as_mut().unwrap();
    ingress.push(read(json!({})));
    assert_eq!(world.plan_cluster("flights").apply.len(), 1);
    world.settings = None;
    world.settle();
    assert!(world.policies.is_empty());
    assert_eq!(world.deletions[0].reason, DeletionReason::NotWanted);
}

#[test]
fn budgets_go_with_their_groups() {
    let spec = json!({"worker": {}, "workerGroups": [{"name": "gpu", "replicas": 1}]});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    let names: Vec<&String> = world.budgets.keys().collect();
    assert_eq!(names, ["flights-default", "flights-gpu"]);
    change(&mut world, |cluster| cluster.spec.worker_groups.clear());
    world.settle();
    assert_eq!(world.budgets.len(), 1);
}

#[test]
fn fields_of_a_newer_kubernetes_reach_the_pods() {
    let template = json!({
        "futureScheduling": {"gang": 4},
        "containers": [{"name": "worker", "futureRuntime": "wasm"}, {"name": "side", "x": 1}],
    });
    let spec = json!({
        "runtime": "Rust",
        "worker": {"spec": template},
        "scheduler": {
            "spec": template,
            "volumes": [{"name": "v", "futureVolume": {"a": 1}}],
            "service": {"futureRouting": "near"},
        },
    });
    let world = World::with_cluster(cluster("flights", spec));
    let plan = world.plan_cluster("flights");
    let of = |kind: ObjectKind| {
        let found = plan
            .apply
            .iter()
            .find(|object| object.kind() == kind)
            .unwrap();
        found.to_value()
    };
    let deployment = of(ObjectKind::Deployment);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["futureScheduling"]["gang"], 4);
    assert_eq!(pod["containers"][0]["futureRuntime"], "wasm");
    assert_eq!(pod["containers"][1]["x"], 1);
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "v").unwrap();
    assert_eq!(volume["futureVolume"]["a"], 1);
    assert_eq!(of(ObjectKind::Service)["spec"]["futureRouting"], "near");
    let group = of(ObjectKind::WorkerGroup);
    assert_eq!(
        group["spec"]["worker"]["spec"]["futureScheduling"]["gang"],
        4
    );
}
