//! Scaling and draining of a group.

use std::sync::Arc;
use std::time::Duration;

use oxidask_operator_plan::group::PODS_PER_PLAN_MAX;
use oxidask_operator_plan::signal::Standing;
use oxidask_operator_plan::{DRAIN, DRAIN_FINALIZER, DeletionReason, Object};
use serde_json::json;

use crate::world::*;

fn marked(world: &World) -> Vec<String> {
    let pods = world.pods.iter().filter(|(_, pod)| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.is_some_and(|it| it.contains_key(DRAIN))
    });
    pods.map(|(name, _)| name.clone()).collect()
}

#[test]
fn names_follow_from_the_group_and_a_stale_snapshot_gives_the_same_ones() {
    let mut world = World::new(json!({"replicas": 3}));
    let names = |world: &World| -> Vec<String> {
        let plan = world.plan_group(GROUP);
        plan.apply.iter().map(|it| it.name().to_owned()).collect()
    };
    let first = names(&world);
    assert_eq!(first.len(), 3);
    assert_eq!(names(&world), first);
    world.settle();
    assert_eq!(world.names().len(), 3);
    assert!(first.iter().all(|name| world.pods.contains_key(name)));
    let ready = &world.status(GROUP).conditions;
    assert_eq!(condition(ready, "Ready").status, "True");
}

#[test]
fn the_idle_worker_goes_and_hands_over_what_only_it_holds() {
    let mut world = World::settled(json!({"replicas": 4}));
    let names = world.names();
    for name in &names {
        let known = world.known_mut(name);
        (known.running, known.held) = (60, 1000);
    }
    world.known_mut(&names[2]).running = 0;
    world.known_mut(&names[2]).held = 10_000_000;
    world.scale(GROUP, 3);
    world.round();
    assert_eq!(marked(&world), [names[2].clone()]);
    assert_eq!(world.names().len(), 4, "not before it is empty");
    world.rounds(5);
    assert_eq!(
        world.names(),
        [names[0].clone(), names[1].clone(), names[3].clone()]
    );
    assert!(world.lost.is_empty());
    assert!(world.has_event("DrainingWorkers") && world.has_event("ScaledDown"));
    let held: u64 = world.known.values().map(|known| known.held).sum();
    assert_eq!(held, 10_003_000, "nothing is lost");
}

#[test]
fn busy_workers_finish_what_runs_before_they_go() {
    let mut world = World::settled(json!({"replicas": 2}));
    for name in world.names() {
        world.known_mut(&name).running = 12;
    }
    world.scale(GROUP, 1);
    world.rounds(10);
    assert_eq!(world.names().len(), 2);
    assert!(
        world.message().contains("1 worker being drained"),
        "{}",
        world.message()
    );
    world.rounds(8);
    assert_eq!(world.names().len(), 1);
    assert!(world.lost.is_empty());
}

#[test]
fn only_the_scaled_group_loses_a_worker() {
    let mut world = World::of(json!({
        "worker": {"replicas": 2},
        "workerGroups": [{"name": "big", "replicas": 1}],
    }));
    world.settle();
    for name in world.names().iter().filter(|name| name.contains("default")) {
        world.known_mut(name).running = 30;
    }
    world.scale(GROUP, 1);
    world.rounds(40);
    assert_eq!((world.pods_of(GROUP), world.pods_of("flights-big")), (1, 1));
    assert!(world.lost.is_empty());
}

#[test]
fn pods_that_find_no_node_go_first_and_at_once() {
    let mut world = World::settled(json!({"replicas": 2}));
    let running = world.names();
    world.room = 2;
    world.scale(GROUP, 4);
    world.rounds(3);
    assert!(
        world.message().contains("Unschedulable"),
        "{}",
        world.message()
    );
    world.scale(GROUP, 2);
    world.is_silent = true;
    world.rounds(2);
    assert_eq!(world.names(), running);
    assert!(
        world
            .deletions
            .iter()
            .all(|it| it.reason == DeletionReason::ScaledDown)
    );
}

#[test]
fn a_silent_scheduler_keeps_every_worker_and_the_status_says_so() {
    let mut world = World::settled(json!({"replicas": 3}));
    world.is_silent = true;
    world.scale(GROUP, 1);
    world.rounds(30);
    assert_eq!(world.names().len(), 3);
    let message = world.message();
    assert!(
        message.contains("OX551: the scheduler is silent: 2 workers too many"),
        "{message}"
    );
    assert!(world.has_event("SchedulerSilent"));
    world.is_silent = false;
    world.settle();
    assert_eq!(world.names().len(), 1);
    assert!(world.lost.is_empty());
}

#[test]
fn workers_that_were_to_go_stay_when_more_are_wanted_again() {
    let mut world = World::settled(json!({"replicas": 3}));
    let names = world.names();
    for name in &names {
        world.known_mut(name).running = 50;
    }
    world.scale(GROUP, 1);
    world.rounds(3);
    assert_eq!(marked(&world).len(), 2);
    world.scale(GROUP, 3);
    world.settle();
    assert_eq!(world.names(), names);
    assert!(marked(&world).is_empty());
    let active = world
        .known
        .values()
        .all(|it| it.standing == Standing::Active);
    assert!(active && world.deletions.is_empty());
}

#[test]
fn a_deadline_of_the_manifest_ends_a_drain() {
    let mut world = World::of(json!({
        "worker": {"replicas": 2}, "updateStrategy": {"drainTimeoutSeconds": 20},
    }));
    world.settle();
    for name in world.names() {
        world.known_mut(&name).running = 500;
    }
    world.scale(GROUP, 1);
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.retire[0].deadline, Duration::from_secs(20));
    world.rounds(19);
    assert_eq!(world.names().len(), 2);
    world.rounds(4);
    assert_eq!(world.names().len(), 1);
    assert!(world.has_event("DrainTimeout"));

    let mut world = World::settled(json!({"replicas": 2}));
    let annotations = world
        .group_mut(GROUP)
        .metadata
        .annotations
        .get_or_insert_default();
    annotations.insert(
        "kubernetes.dask.org/drain-deadline-seconds".to_owned(),
        "7".to_owned(),
    );
    world.scale(GROUP, 1);
    assert_eq!(
        world.plan_group(GROUP).retire[0].deadline,
        Duration::from_secs(7)
    );
}

#[test]
fn the_last_holder_stays_until_somebody_can_take_what_it_holds() {
    let mut world = World::settled(json!({"replicas": 1}));
    let name = world.names()[0].clone();
    world.known_mut(&name).held = 5;
    world.scale(GROUP, 0);
    world.rounds(40);
    assert_eq!(world.names().len(), 1);
    world.known_mut(&name).held = 0;
    world.settle();
    assert!(world.names().is_empty() && world.lost.is_empty());
}

#[test]
fn a_worker_that_somebody_else_has_drained_makes_room_for_another() {
    let mut world = World::settled(json!({"replicas": 2}));
    let names = world.names();
    let uid = world.pods[&names[0]].metadata.uid.clone();
    world.known_mut(&names[0]).standing = Standing::Retiring;
    world.settle();
    assert_eq!(world.names().len(), 2);
    assert!(
        world
            .names()
            .iter()
            .all(|name| world.pods[name].metadata.uid != uid)
    );
    assert_eq!(world.deletions[0].reason, DeletionReason::Drained);
}

#[test]
fn workers_with_names_of_their_own_are_found_by_uid_or_address() {
    let mut world = World::settled(json!({"replicas": 2}));
    let names = world.names();
    for name in &names {
        let known = world.known.remove(name).unwrap();
        world.known.insert(format!("tcp://{name}"), known);
    }
    world.scale(GROUP, 1);
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.retire.len(), 1);
    assert!(plan.retire[0].worker.starts_with("tcp://"));
    let mut snapshot = world.snapshot(GROUP);
    let signal = snapshot.observed.signal.as_mut().unwrap();
    for (index, worker) in signal.workers.values_mut().enumerate() {
        worker.pod_uid = String::new();
        worker.host = format!("10.0.0.{index}");
    }
    for (index, pod) in snapshot.observed.pods.iter_mut().enumerate() {
        Arc::make_mut(pod).status.as_mut().unwrap().pod_ip = Some(format!("10.0.0.{index}"));
    }
    assert_eq!(world.plan(&snapshot).retire.len(), 1);
}

#[test]
fn many_pods_come_and_go_in_batches() {
    let mut world = World::new(json!({"replicas": 600}));
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.apply.len(), PODS_PER_PLAN_MAX);
    assert!(plan.wake_after.is_some());
    assert!(plan.events.iter().all(|event| event.note.len() <= 1024));
    world.settle();
    assert_eq!(world.names().len(), 600);
    world.scale(GROUP, 1);
    assert_eq!(world.plan_group(GROUP).metadata.len(), PODS_PER_PLAN_MAX);
    world.settle();
    assert_eq!(world.names().len(), 1);
    assert!(world.lost.is_empty());
}

#[test]
fn a_quota_is_explained_in_the_same_round_and_tried_with_one_pod() {
    let mut world = World::new(json!({"replicas": 8}));
    world.quota = 3;
    world.round();
    world.round();
    let message = world.message();
    assert!(
        message.contains("OX524: the API server refuses pods: exceeded quota"),
        "{message}"
    );
    assert!(world.has_event("PodsRefused"));
    assert_eq!(world.plan_group(GROUP).apply.len(), 1);
    world.quota = 100;
    world.settle();
    assert_eq!(world.names().len(), 8);
}

#[test]
fn a_suspended_cluster_has_no_workers() {
    let mut world = World::settled(json!({"replicas": 3}));
    world.cluster.spec.suspend = Some(true);
    world.settle();
    assert!(world.names().is_empty());
    let conditions = world.status(GROUP).conditions;
    assert_eq!(condition(&conditions, "Ready").reason, "Suspended");
    assert_eq!(condition(&conditions, "Reconciling").status, "False");
    world.cluster.spec.suspend = None;
    world.settle();
    assert_eq!(world.names().len(), 3);
}

const BIG: &str = "flights-big";

fn two_groups() -> World {
    let mut world = World::of(json!({
        "worker": {"replicas": 1},
        "workerGroups": [{"name": "big", "replicas": 2}],
    }));
    world.settle();
    world
}

fn delete_group(world: &mut World) {
    let now = at(world.now);
    let metadata = &mut world.groups.get_mut(BIG).unwrap().metadata;
    metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
}

fn has_finalizer(world: &World, group: &str) -> bool {
    let finalizers = world.groups[group].metadata.finalizers.as_ref();
    finalizers.is_some_and(|it| it.iter().any(|it| it == DRAIN_FINALIZER))
}

#[test]
fn a_deleted_group_hands_over_what_it_holds_before_it_goes() {
    let mut world = two_groups();
    assert!(has_finalizer(&world, BIG) && !has_finalizer(&world, GROUP));
    for known in world
        .known
        .values_mut()
        .filter(|known| known.group == "big")
    {
        (known.running, known.held) = (5, 100);
    }
    delete_group(&mut world);
    world.rounds(4);
    assert!(has_finalizer(&world, BIG));
    world.rounds(8);
    assert!(!has_finalizer(&world, BIG));
    assert_eq!(world.pods_of(BIG), 0);
    assert!(world.lost.is_empty());
    assert_eq!(
        world.known.values().map(|known| known.held).sum::<u64>(),
        200
    );
}

#[test]
fn a_deleted_group_never_stays_longer_than_a_minute() {
    let mut world = two_groups();
    for known in world.known.values_mut() {
        known.running = 5000;
    }
    delete_group(&mut world);
    world.rounds(30);
    world.is_silent = true;
    world.rounds(25);
    assert!(has_finalizer(&world, BIG));
    world.rounds(10);
    assert!(!has_finalizer(&world, BIG));

    let mut world = two_groups();
    for known in world.known.values_mut() {
        known.running = 5000;
    }
    delete_group(&mut world);
    let now = at(world.now);
    world.cluster.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    world.reconcile(BIG);
    assert!(
        !has_finalizer(&world, BIG),
        "at once when the cluster goes as well"
    );
}

#[test]
fn bounds_of_its_own_scale_a_group_up_in_one_step_and_back_to_nothing() {
    let autoscale = json!({"replicas": 0, "autoscale": {"minimum": 0, "maximum": 8}});
    let mut world = World::settled(autoscale);
    assert!(world.names().is_empty());
    world.wanted.insert("default".to_owned(), 40);
    world.round();
    assert_eq!(world.replicas(GROUP), 8);
    world.round();
    assert_eq!(world.names().len(), 8, "the pods come in the next round");
    let scaling = world.status(GROUP).scaling.unwrap();
    assert_eq!((scaling.desired, scaling.previous), (Some(8), Some(0)));
    assert_eq!(scaling.reason.as_deref(), Some("ScaledUp"));
    assert!(scaling.message.unwrap().contains("400 s of work wait"));
    assert!(world.has_event("ScalingUp"));
    world.rounds(5);
    world.wanted.insert("default".to_owned(), 0);
    world.rounds(10);
    assert_eq!(world.replicas(GROUP), 8);
    world.settle();
    assert_eq!(world.replicas(GROUP), 0);
    assert!(world.names().is_empty() && world.lost.is_empty());
    assert_eq!(world.scalings, 2);
    assert_eq!(world.status(GROUP).start_seconds, Some(2));
}

#[test]
fn a_load_that_changes_writes_no_status_while_the_decision_stays() {
    let autoscale = json!({"replicas": 8, "autoscale": {"minimum": 0, "maximum": 8}});
    let mut world = World::settled(autoscale);
    world.wanted.insert("default".to_owned(), 40);
    world.settle();
    for wanted in [41, 77, 12, 99] {
        world.wanted.insert("default".to_owned(), wanted);
        assert!(world.plan_group(GROUP).is_empty(), "{wanted}");
    }
}

#[test]
fn scaling_an_autoscaled_group_by_hand_is_undone_and_said() {
    let mut world = World::settled(json!({
        "replicas": 2, "autoscale": {"minimum": 2, "maximum": 8},
    }));
    world.scale(GROUP, 5);
    world.settle();
    assert_eq!(world.replicas(GROUP), 2);
    let overridden = world
        .events
        .iter()
        .filter(|it| it.reason == "ScalingOverridden");
    let notes: Vec<_> = overridden.collect();
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].note.contains("has written 5 workers"),
        "{}",
        notes[0].note
    );
}

#[test]
fn a_recommendation_changes_nothing() {
    let mut world = World::settled(json!({
        "replicas": 2, "autoscale": {"minimum": 0, "maximum": 8, "recommendOnly": true},
    }));
    world.wanted.insert("default".to_owned(), 5);
    world.settle();
    let scaling = world.status(GROUP).scaling.unwrap();
    assert_eq!((scaling.recommendation, scaling.desired), (Some(5), None));
    assert_eq!((world.replicas(GROUP), world.names().len()), (2, 2));
    world.scale(GROUP, 3);
    world.settle();
    assert_eq!(world.names().len(), 3);
    assert!(!world.has_event("ScalingOverridden"));
}

#[test]
fn pods_that_find_no_node_keep_an_autoscaled_group_from_growing() {
    let mut world = World::settled(json!({
        "replicas": 2, "autoscale": {"minimum": 0, "maximum": 50},
    }));
    world.room = 3;
    world.wanted.insert("default".to_owned(), 6);
    world.rounds(40);
    world.wanted.insert("default".to_owned(), 30);
    world.rounds(3);
    assert_eq!(world.replicas(GROUP), 6);
    let scaling = world.status(GROUP).scaling.unwrap();
    assert_eq!(scaling.reason.as_deref(), Some("WithoutEffect"));
    assert_eq!(world.status(GROUP).stuck_replicas, Some(3));
    assert!(world.has_event("ScalingWithoutEffect"));
    world.room = 100;
    world.settle();
    assert_eq!(world.names().len(), 30);
}

#[test]
fn faults_of_a_group_stall_it_and_touch_no_pod() {
    let mut world = World::settled(json!({"replicas": 2}));
    let group = world.group_mut(GROUP);
    group.spec.worker.affinity = Some(json!("nowhere"));
    group.spec.worker.replicas = Some(0);
    let plan = world.plan_group(GROUP);
    assert!(plan.apply.is_empty() && plan.delete.is_empty() && plan.retire.is_empty());
    let status = plan.status.unwrap();
    let stalled = condition(&status.conditions, "Stalled");
    assert_eq!(
        (stalled.status.as_str(), stalled.reason.as_str()),
        ("True", "OX503")
    );
    assert_eq!(status.replicas, Some(2));
}

#[test]
fn without_cluster_or_certificates_it_waits() {
    let world = World::new(json!({"replicas": 2}));
    let mut snapshot = world.snapshot(GROUP);
    snapshot.observed.has_certificates = false;
    let reconciling = |snapshot: &Snapshot| {
        let plan = world.plan(snapshot);
        assert!(plan.apply.iter().all(|it| !matches!(it, Object::Pod(_))));
        condition(&plan.status.unwrap().conditions, "Reconciling").clone()
    };
    assert!(
        reconciling(&snapshot)
            .message
            .contains("no certificates yet")
    );
    snapshot.observed.cluster = None;
    let condition = reconciling(&snapshot);
    assert_eq!(condition.reason, "WaitingForCluster");
    assert!(condition.message.contains("the cluster does not exist"));
}
