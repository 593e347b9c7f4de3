//! Which worker goes, and when: nothing is lost and nothing is repeated.

use crate::world::*;
use oxidask_operator_plan::DeletionReason;
use oxidask_operator_plan::dask::DRAIN_DEADLINE;

const GROUP: &str = "c-default";

/// There, with the API routes off, the scheduler retires one worker and the operator deletes
/// another one: that which holds the data.
#[test]
fn the_retired_worker_is_the_deleted_one_and_it_is_the_one_without_data() {
    let mut world = World::settled(4);
    let workers = world.workers(GROUP);
    world.give(&workers[0], 0, 10_000_000);
    world.give(&workers[1], 1, 0);
    world.give(&workers[2], 1, 5);
    world.scale(GROUP, 3);
    world.rounds(5);
    assert_eq!(world.retired, [workers[3].as_str()]);
    assert_eq!(world.deleted, [workers[3].as_str()]);
    assert_eq!((world.lost_bytes, world.repeated_tasks), (0, 0));
}

/// There the worker of any group may be retired, and its group stays short for ever.
#[test]
fn an_idle_group_is_not_touched_when_a_busy_one_is_scaled_down() {
    let mut world = World::settled(2);
    world.add_group("c-other", 2);
    world.rounds(4);
    let other = world.workers("c-other");
    assert_eq!(other.len(), 2);
    for worker in world.workers(GROUP) {
        world.give(&worker, 1, 0);
    }
    world.scale(GROUP, 1);
    world.rounds(20);
    assert!(world.retired.is_empty(), "both are busy");
    world.give(&world.workers(GROUP)[1].clone(), 0, 0);
    world.rounds(4);
    assert_eq!(world.workers(GROUP).len(), 1);
    assert_eq!(world.workers("c-other"), other);
    assert_eq!(world.repeated_tasks, 0);
}

/// There a busy worker is retired within a moment and its task runs again elsewhere.
#[test]
fn running_work_is_waited_for_up_to_a_bound_and_a_choice_can_change() {
    let mut world = World::settled(3);
    let workers = world.workers(GROUP);
    for worker in &workers {
        world.give(worker, 1, 1);
    }
    world.scale(GROUP, 2);
    world.rounds(10);
    assert!(world.retired.is_empty() && world.deleted.is_empty());
    // The one that was chosen goes on; another one is done first.
    world.give(&workers[2], 0, 1);
    world.rounds(4);
    assert_eq!(world.deleted, [workers[2].as_str()]);
    assert_eq!(world.repeated_tasks, 0);
    let left = world.workers(GROUP);
    let marks = left.iter().filter(|name| {
        let annotations = world.deployments[*name].metadata.annotations.as_ref();
        annotations
            .unwrap()
            .contains_key("kubernetes.dask.org/draining-since")
    });
    assert_eq!(marks.count(), 0, "those that stay are not marked any more");
    // Without an end of the work the bound counts.
    world.scale(GROUP, 1);
    world.rounds(230);
    assert_eq!(world.workers(GROUP).len(), 2);
    world.rounds(20);
    assert_eq!(world.workers(GROUP).len(), 1);
    assert_eq!(world.lost_bytes, 0);
}

/// It was asked for as idle and not retired, because it had got a task just then.
#[test]
fn a_worker_that_got_work_when_it_was_to_go_is_waited_for() {
    let mut world = World::settled(2);
    let workers = world.workers(GROUP);
    world.give(&workers[0], 1, 1);
    world.give(&workers[1], 0, 1);
    world.refuses = true;
    world.scale(GROUP, 1);
    world.rounds(3);
    assert!(world.retired.contains(&workers[1]) && world.deleted.is_empty());
    world.refuses = false;
    world.give(&workers[1], 1, 1);
    world.rounds(10);
    assert_eq!((world.repeated_tasks, world.deleted.len()), (0, 0));
    world.give(&workers[1], 0, 1);
    world.rounds(4);
    assert_eq!(world.deleted, [workers[1].as_str()]);
    assert_eq!((world.lost_bytes, world.repeated_tasks), (0, 0));
}

/// There the scheduler's answer 500 makes the operator choose others.
#[test]
fn silence_deletes_nothing_that_may_hold_results_and_pending_workers_go_first() {
    let mut world = World::settled(2);
    world.is_full = true;
    world.scale(GROUP, 5);
    world.rounds(3);
    world.is_silent = true;
    world.scale(GROUP, 1);
    world.rounds(400);
    assert_eq!(
        world.workers(GROUP).len(),
        2,
        "pending ones are gone, the others stay"
    );
    let status = world.groups[GROUP].status.clone().unwrap();
    assert!(
        status
            .conditions
            .iter()
            .any(|it| it.message.contains("does not answer"))
    );
    world.is_silent = false;
    world.rounds(5);
    assert_eq!(world.workers(GROUP).len(), 1);
    assert_eq!(world.lost_bytes, 0);
}

/// There names that do not match make the operator ask for ever and retire more each time.
#[test]
fn workers_without_a_given_name_are_found_by_their_address() {
    let mut world = World::new(cluster_spec(3));
    world.is_nameless = true;
    world.rounds(5);
    let workers = world.workers(GROUP);
    world.give(&workers[0], 1, 7);
    world.give(&workers[2], 1, 7);
    world.scale(GROUP, 2);
    world.rounds(5);
    assert_eq!(world.deleted, [workers[1].as_str()]);
    assert_eq!(world.retired.len(), 1);
    assert!(world.retired[0].starts_with("tcp://"));
}

/// There the operator asks again at each retry. Here the operator is new at each round anyway:
/// everything stands in the objects.
#[test]
fn data_that_nobody_takes_keeps_its_worker_until_the_deadline() {
    let mut world = World::settled(2);
    world.refuses = true;
    for worker in world.workers(GROUP) {
        world.give(&worker, 0, 9);
    }
    let group = &mut world.groups.get_mut(GROUP).unwrap().metadata;
    let annotations = group.annotations.get_or_insert_default();
    annotations.insert(DRAIN_DEADLINE.to_owned(), "30".to_owned());
    world.scale(GROUP, 1);
    world.rounds(25);
    assert!(world.deleted.is_empty());
    world.rounds(10);
    assert_eq!(world.workers(GROUP).len(), 1);
    assert!(
        world
            .events
            .iter()
            .any(|event| event.reason == "DrainDeadline")
    );
}

#[test]
fn more_workers_are_wanted_while_others_go() {
    let mut world = World::settled(3);
    for worker in world.workers(GROUP) {
        world.give(&worker, 1, 1);
    }
    world.scale(GROUP, 1);
    world.rounds(3);
    world.scale(GROUP, 4);
    world.rounds(5);
    assert_eq!(world.workers(GROUP).len(), 4);
    assert!(world.deleted.is_empty() && world.retired.is_empty());
}

/// There an edit of the image has no effect at all.
#[test]
fn a_new_image_replaces_one_worker_after_the_other_and_loses_nothing() {
    let mut world = World::settled(3);
    let old = world.workers(GROUP);
    for worker in &old {
        world.give(worker, 0, 100);
    }
    let image = |world: &mut World, image: &str| {
        let cluster = world.clusters.get_mut("c").unwrap();
        let spec = cluster.spec.worker.spec.as_mut().unwrap();
        spec["containers"][0]["image"] = image.into();
    };
    image(&mut world, "dask:new");
    let mut most = 0;
    for _ in 0..40 {
        world.rounds(1);
        let count = world.workers(GROUP).len();
        most = most.max(count);
        assert!(count >= 3, "never fewer than wanted");
    }
    assert_eq!(most, 4, "one more at most");
    let new = world.workers(GROUP);
    assert_eq!(new.len(), 3);
    for name in &new {
        let template = world.deployments[name].spec.clone().unwrap().template;
        let image = template.spec.unwrap().containers[0].image.clone();
        assert_eq!(image.as_deref(), Some("dask:new"));
    }
    assert_eq!(world.lost_bytes, 0);
    assert_eq!(world.deleted.len(), 3);
    assert!(world.deleted.iter().all(|name| old.contains(name)));
    // One that does not come up stops the rest.
    world.is_full = true;
    image(&mut world, "dask:bad");
    world.rounds(20);
    assert!(new.iter().all(|name| world.deployments.contains_key(name)));
    let status = world.groups[GROUP].status.clone().unwrap();
    let reconciling = status
        .conditions
        .iter()
        .find(|it| it.type_ == "Reconciling")
        .unwrap();
    assert_eq!(reconciling.reason, "ReplacingWorkers");
    world.is_full = false;
    image(&mut world, "dask:new");
    world.rounds(10);
    assert_eq!(world.workers(GROUP).len(), 3);
    assert!(world.plan_group(GROUP).is_empty());
}

/// There the workers of a deleted group are collected with all they hold.
#[test]
fn a_deleted_group_drains_but_not_for_long() {
    let mut world = World::settled(1);
    world.add_group("c-other", 2);
    world.rounds(4);
    for worker in world.workers("c-other") {
        world.give(&worker, 0, 50);
    }
    let end = |world: &mut World, name: &str| {
        let now = world.now;
        let group = world.groups.get_mut(name).unwrap();
        group.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(now)),
        );
    };
    end(&mut world, "c-other");
    world.rounds(8);
    assert!(!world.groups.contains_key("c-other"));
    assert!(world.workers("c-other").is_empty());
    assert_eq!(world.lost_bytes, 0);
    world.add_group("c-third", 1);
    world.rounds(4);
    world.is_silent = true;
    end(&mut world, "c-third");
    world.rounds(50);
    assert!(
        world.groups.contains_key("c-third"),
        "nobody knows what it holds"
    );
    world.rounds(15);
    assert!(
        !world.groups.contains_key("c-third"),
        "but it does not stay for ever"
    );
}

#[test]
fn a_group_goes_at_once_with_its_cluster() {
    let mut world = World::settled(2);
    let now = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(
        world.now,
    )));
    world.clusters.clear();
    world
        .groups
        .get_mut(GROUP)
        .unwrap()
        .metadata
        .deletion_timestamp = now;
    world.rounds(2);
    assert!(world.groups.is_empty() && world.workers(GROUP).is_empty());
}

/// There all groups are counted together and only the default one grows.
#[test]
fn the_wanted_number_goes_to_the_groups_that_have_the_load() {
    let mut world = World::settled(1);
    world.add_group("c-other", 1);
    world.rounds(4);
    let other = world.workers("c-other")[0].clone();
    world.give(&other, 30, 0);
    world.wanted = Some(6);
    let signal = world.heard();
    assert_eq!(signal.groups["other"].workers_wanted, 6);
    assert_eq!(signal.groups["default"].workers_wanted, 0);
    world.give(&other, 0, 0);
    assert_eq!(world.heard().groups["default"].workers_wanted, 6);
    let default = world.workers(GROUP)[0].clone();
    world.give(&default, 10, 0);
    world.give(&other, 20, 0);
    let signal = world.heard();
    assert_eq!(signal.groups["other"].workers_wanted, 4);
    assert_eq!(signal.groups["default"].workers_wanted, 2);
}

/// Bounds of a group's own, by what the scheduler wants.
#[test]
fn a_group_with_bounds_follows_its_own_load() {
    let mut world = World::settled(1);
    world.add_group("c-other", 1);
    let bounds = serde_json::json!({"minimum": 1, "maximum": 3});
    let other = world.groups.get_mut("c-other").unwrap();
    other.spec.worker.autoscale = Some(serde_json::from_value(bounds).unwrap());
    world.rounds(4);
    let worker = world.workers("c-other")[0].clone();
    world.give(&worker, 50, 0);
    world.wanted = Some(9);
    let plan = world.plan_group("c-other");
    assert_eq!(plan.scale.len(), 1);
    assert_eq!((plan.scale[0].from, plan.scale[0].to), (1, 3));
    assert!(world.plan_group(GROUP).scale.is_empty());
    world.is_silent = true;
    assert!(world.plan_group("c-other").scale.is_empty());
}

#[test]
fn every_deletion_of_a_worker_has_a_reason_and_a_uid() {
    let mut world = World::settled(2);
    world.is_full = true;
    world.scale(GROUP, 3);
    world.rounds(3);
    world.scale(GROUP, 2);
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].reason, DeletionReason::ScaledDown);
    assert!(!plan.delete[0].object.uid.is_empty());
}
