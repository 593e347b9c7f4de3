//! The pods of a group of workers.

use crate::support::*;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_plan::{DeletionReason, Object, names};
use serde_json::json;

const GROUP: &str = "flights-default";

fn settled(replicas: u32) -> World {
    let spec = json!({"worker": {"replicas": replicas}});
    let mut world = World::with_cluster(cluster("flights", spec));
    world.settle();
    world.events.clear();
    world.deletions.clear();
    world
}

fn pod<'a>(world: &'a mut World, name: &str) -> &'a mut Pod {
    world.pods.get_mut(name).unwrap()
}

fn scale(world: &mut World, replicas: u32) {
    let group = world.groups.get_mut(GROUP).unwrap();
    group.spec.worker.replicas = Some(replicas);
    group.metadata.generation = group.metadata.generation.map(|generation| generation + 1);
}

#[test]
fn names_follow_from_the_group_and_a_stale_snapshot_gives_the_same_ones() {
    let mut world = settled(3);
    let uid = world.groups[GROUP].metadata.uid.clone().unwrap();
    let mut wanted: Vec<String> = (0..3)
        .map(|index| names::worker_pod(GROUP, &uid, index))
        .collect();
    wanted.sort();
    assert_eq!(world.workers(), wanted);
    world.pods.clear();
    let applied = |world: &World| -> Vec<String> {
        let plan = world.plan_group(GROUP);
        plan.apply
            .iter()
            .map(|object| object.name().to_owned())
            .collect()
    };
    let first = applied(&world);
    assert_eq!(first, applied(&world));
    assert_eq!(first.len(), 3);
}

#[test]
fn a_deleted_pod_is_made_again() {
    let mut world = settled(2);
    let name = world.workers()[0].clone();
    world.pods.remove(&name);
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.apply.len(), 1);
    assert_eq!(reasons(&plan.events), ["CreatingWorkers"]);
    let status = plan.status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas), (Some(1), Some(1)));
    world.settle();
    assert_eq!(world.workers().len(), 2);
}

#[test]
fn a_terminating_pod_is_no_worker_but_keeps_its_name() {
    let mut world = settled(2);
    let name = world.workers()[0].clone();
    pod(&mut world, &name).metadata.deletion_timestamp = Some(Time(at(1)));
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.apply.len(), 1);
    assert_ne!(plan.apply[0].name(), name);
    assert!(plan.delete.is_empty());
    assert_eq!(plan.status.unwrap().replicas, Some(1));
}

#[test]
fn an_evicted_pod_is_deleted_and_replaced() {
    let mut world = settled(2);
    let name = world.workers()[0].clone();
    pod(&mut world, &name).status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let plan = world.plan_group(GROUP);
    assert!(
        plan.apply.is_empty() && plan.delete.is_empty(),
        "it was made a moment ago"
    );
    assert!(plan.wake_after.is_some());
    world.now += 10;
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].object.name, name);
    assert_eq!(plan.delete[0].reason, DeletionReason::WorkerEnded);
    assert_eq!(plan.apply.len(), 1);
    assert_ne!(plan.apply[0].name(), name);
    assert_eq!(reasons(&plan.events), ["CreatingWorkers", "WorkerEnded"]);
    world.settle();
    assert_eq!(world.workers().len(), 2);
}

#[test]
fn scaling_down_takes_first_what_does_not_answer_then_the_youngest() {
    let mut world = settled(4);
    let workers = world.workers();
    for (index, name) in workers.iter().enumerate() {
        let created = i64::try_from(index).unwrap();
        pod(&mut world, name).metadata.creation_timestamp = Some(Time(at(created)));
    }
    let status = pod_status("Running", false, running(1));
    pod(&mut world, &workers[0]).status = Some(status);
    scale(&mut world, 2);
    let plan = world.plan_group(GROUP);
    let deleted: Vec<&str> = plan.delete.iter().map(|d| d.object.name.as_str()).collect();
    assert_eq!(deleted, [workers[0].as_str(), workers[3].as_str()]);
    assert!(
        plan.delete
            .iter()
            .all(|d| d.reason == DeletionReason::ScaledDown)
    );
    assert!(plan.delete.iter().all(|d| !d.object.uid.is_empty()));
    assert!(plan.apply.is_empty());
    assert_eq!(reasons(&plan.events), ["ScaledDown"]);
    assert!(plan.events[0].note.contains(&workers[3]));
    world.settle();
    assert_eq!(world.workers(), workers[1..3]);
}

#[test]
fn scaling_up_and_to_nothing() {
    let mut world = settled(1);
    scale(&mut world, 3);
    assert_eq!(world.plan_group(GROUP).apply.len(), 2);
    world.settle();
    let status = world.group_status(GROUP);
    assert_eq!((status.replicas, status.ready_replicas), (Some(3), Some(3)));
    assert_eq!(
        status.observed_generation,
        world.groups[GROUP].metadata.generation
    );
    assert_eq!(
        status.selector.as_deref(),
        Some(
            "dask.org/cluster-name=flights,dask.org/workergroup-name=flights-default,\
             dask.org/component=worker"
        )
    );
    scale(&mut world, 0);
    world.settle();
    assert!(world.workers().is_empty());
    assert!(is_true(&world.group_status(GROUP).conditions, "Ready"));
    assert!(is_true(
        &world.cluster_status("flights").conditions,
        "Ready"
    ));
}

#[test]
fn many_pods_come_in_batches() {
    let mut world = settled(0);
    scale(&mut world, 600);
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.apply.len(), 256);
    assert!(plan.wake_after.is_some());
    assert!(plan.events.iter().all(|event| event.note.len() <= 1024));
    world.settle();
    assert_eq!(world.workers().len(), 600);
    assert!(world.plan_group(GROUP).wake_after.is_none());
    scale(&mut world, 1);
    assert_eq!(world.plan_group(GROUP).delete.len(), 256);
    world.settle();
    assert_eq!(world.workers().len(), 1);
}

#[test]
fn without_cluster_or_certificates_it_waits() {
    let mut world = World::new();
    let group = worker_group("mine", "flights", json!({"replicas": 2}));
    world.groups.insert("mine".to_owned(), group);
    let plan = world.plan_group("mine");
    assert!(plan.apply.is_empty());
    let conditions = plan.status.unwrap().conditions;
    let reconciling = condition(&conditions, "Reconciling");
    assert_eq!(reconciling.status, "True");
    assert_eq!(reconciling.reason, "WaitingForCluster");
    assert!(reconciling.message.contains("the cluster does not exist"));
    let object = cluster("flights", json!({"worker": {"replicas": 0}}));
    world.clusters.insert("flights".to_owned(), object);
    assert!(
        world.plan_group("mine").apply.is_empty(),
        "no certificates yet"
    );
    world.settle();
    assert_eq!(world.workers().len(), 2);
    let Some(Pod {
        spec: Some(spec), ..
    }) = world.pods.values().next()
    else {
        panic!("no pod");
    };
    let env = spec.containers[0].env.as_ref().unwrap();
    let group = env
        .iter()
        .find(|variable| variable.name == "OXIDASK_GROUP")
        .unwrap();
    assert_eq!(group.value.as_deref(), Some("mine"));
}

#[test]
fn faults_of_a_group_stall_it_and_touch_no_pod() {
    let mut world = settled(2);
    let group = world.groups.get_mut(GROUP).unwrap();
    group.spec.worker.affinity = Some(json!("nowhere"));
    group.spec.worker.replicas = Some(0);
    let plan = world.plan_group(GROUP);
    assert!(plan.apply.is_empty() && plan.delete.is_empty());
    let status = plan.status.unwrap();
    let stalled = condition(&status.conditions, "Stalled");
    assert_eq!(
        (stalled.status.as_str(), stalled.reason.as_str()),
        ("True", "OX503")
    );
    assert!(
        stalled
            .message
            .starts_with("`spec.worker.affinity` cannot be used: ")
    );
    assert_eq!(status.replicas, Some(2));
}

#[test]
fn an_unschedulable_and_a_crashing_pod_are_explained() {
    let mut world = settled(2);
    let workers = world.workers();
    let mut unscheduled = pod_status("Pending", false, waiting("", ""));
    unscheduled.container_statuses = None;
    unscheduled.conditions = Some(vec![read(json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient cpu.",
    }))]);
    pod(&mut world, &workers[0]).status = Some(unscheduled);
    let mut crashing = pod_status("Running", false, running(5));
    let container = &mut crashing.container_statuses.as_mut().unwrap()[0];
    container.restart_count = 3;
    container.last_state = Some(terminated(
        2,
        "starting\nerror[OX401]: no certificate\n",
        1,
        2,
    ));
    container.state = Some(waiting("CrashLoopBackOff", "back-off 40s restarting"));
    pod(&mut world, &workers[1]).status = Some(crashing);
    let plan = world.plan_group(GROUP);
    let message = condition(&plan.status.unwrap().conditions, "Reconciling")
        .message
        .clone();
    assert_eq!(
        message,
        format!(
            "0 of 2 workers are ready; pod `{}` cannot start: Unschedulable: 0/2 nodes are \
             available: 2 Insufficient cpu. (and one pod more)",
            workers[0]
        )
    );
    pod(&mut world, &workers[0]).status = Some(pod_status("Running", true, running(1)));
    let plan = world.plan_group(GROUP);
    let message = condition(&plan.status.unwrap().conditions, "Reconciling")
        .message
        .clone();
    let wanted = "CrashLoopBackOff: exit status 2: error[OX401]: no certificate";
    assert!(message.ends_with(wanted), "{message}");
}

#[test]
fn a_pod_that_exists_is_never_applied_again() {
    let mut world = settled(2);
    world.groups.get_mut(GROUP).unwrap().spec.worker.image = Some("another".to_owned());
    assert!(world.plan_group(GROUP).apply.is_empty());
    let name = world.workers()[0].clone();
    world.pods.remove(&name);
    let plan = world.plan_group(GROUP);
    let [Object::Pod(pod)] = plan.apply.as_slice() else {
        panic!("{:#?}", plan.apply);
    };
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.containers[0].image.as_deref(), Some("another"));
}
