//! `DaskAutoscaler`.

use oxidask_operator_api::kubernetes::{AutoscalerStatus, DaskAutoscaler};
use oxidask_operator_plan::autoscaler::{self, Observed};
use oxidask_operator_plan::{ObjectKind, scaling};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::*;

const BIG: &str = "flights-big";

fn autoscaler(name: &str, created: i64, bounds: Value) -> DaskAutoscaler {
    let mut spec = bounds;
    spec["cluster"] = json!("flights");
    read(json!({
        "metadata": {
            "name": name, "namespace": "science", "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": at(created).to_string(),
        },
        "spec": spec,
    }))
}

fn world(bounds: Value) -> World {
    let mut world = World::of(json!({
        "worker": {"replicas": 1},
        "workerGroups": [{"name": "big", "replicas": 0}],
    }));
    world.autoscaler = Some(autoscaler("mine", 1, bounds));
    world.settle();
    world
}

fn want(world: &mut World, default: u64, big: u64) {
    world.wanted.insert("default".to_owned(), default);
    world.wanted.insert("big".to_owned(), big);
}

fn status(world: &World) -> AutoscalerStatus {
    world.autoscaler.as_ref().unwrap().status.clone().unwrap()
}

fn replicas(world: &World) -> (u32, u32) {
    (world.replicas(GROUP), world.replicas(BIG))
}

#[test]
fn only_the_group_that_has_the_load_grows_and_the_minimum_is_in_the_default_group() {
    let mut world = world(json!({"minimum": 2, "maximum": 10}));
    assert_eq!(replicas(&world), (2, 0));
    want(&mut world, 0, 6);
    world.rounds(3);
    assert_eq!(replicas(&world), (2, 6));
    let told = status(&world);
    assert_eq!((told.desired, told.current), (Some(8), Some(8)));
    assert!(told.reason.unwrap().contains("60 s of work wait"));
    assert!(world.has_event("ScalingUp"));
    want(&mut world, 0, 0);
    world.settle();
    assert_eq!(replicas(&world), (2, 0));
    assert!(world.lost.is_empty());
}

#[test]
fn the_maximum_is_for_all_groups_together_also_while_the_load_moves() {
    let mut world = world(json!({"minimum": 0, "maximum": 6}));
    want(&mut world, 30, 10);
    world.rounds(3);
    let (default, big) = replicas(&world);
    assert_eq!(default + big, 6);
    assert!(default > big && big > 0);
    want(&mut world, 0, 30);
    for _ in 0..60 {
        world.round();
        let (default, big) = replicas(&world);
        assert!(default + big <= 6, "{default} and {big}");
    }
    assert_eq!(replicas(&world), (0, 6));
    world.autoscaler.as_mut().unwrap().spec.maximum = Some(2);
    world.rounds(2);
    assert_eq!(replicas(&world), (0, 2), "a lower maximum counts at once");
}

#[test]
fn what_clients_of_dask_kubernetes_write_is_understood() {
    let mut world = world(json!({"minimum": null, "maximum": null}));
    want(&mut world, 50, 0);
    world.rounds(3);
    assert_eq!(replicas(&world), (50, 0));
    want(&mut world, 0, 0);
    world.settle();
    assert_eq!(replicas(&world), (0, 0), "to nothing");
    // `scale()` deletes the autoscaler and writes the number.
    world.autoscaler = None;
    world.scale(GROUP, 3);
    want(&mut world, 50, 50);
    world.settle();
    assert_eq!(replicas(&world), (3, 0));
}

#[test]
fn a_group_with_bounds_of_its_own_and_a_group_of_the_users_are_left_alone() {
    let mut world = World::of(json!({
        "worker": {"replicas": 1},
        "workerGroups": [
            {"name": "big", "replicas": 1, "autoscale": {"minimum": 1, "maximum": 2}},
            {"name": "own", "replicas": 1},
        ],
    }));
    world.group_mut("flights-own").metadata.annotations = None;
    world.autoscaler = Some(autoscaler("mine", 1, json!({"minimum": 0, "maximum": 20})));
    for group in ["default", "big", "own"] {
        world.wanted.insert(group.to_owned(), 9);
    }
    world.rounds(5);
    assert_eq!(world.replicas(GROUP), 9);
    assert_eq!(world.replicas(BIG), 2, "by its own bounds");
    assert_eq!(world.replicas("flights-own"), 1);
    let groups: Vec<_> = status(&world)
        .groups
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(groups, [GROUP]);
}

#[test]
fn numbers_written_by_hand_are_undone_and_said() {
    let mut world = world(json!({"minimum": 1, "maximum": 5}));
    world.scale(GROUP, 4);
    world.settle();
    assert_eq!(world.replicas(GROUP), 1);
    assert!(world.has_event("ScalingOverridden"));
}

#[test]
fn a_silent_scheduler_changes_nothing_and_it_says_so() {
    let mut world = world(json!({"minimum": 1, "maximum": 5}));
    want(&mut world, 4, 0);
    world.rounds(3);
    world.is_silent = true;
    world.rounds(40);
    assert_eq!(replicas(&world), (4, 0));
    let told = status(&world);
    let ready = condition(&told.conditions, "Ready");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "SchedulerSilent")
    );
    assert!(ready.message.starts_with("OX551"));
}

#[test]
fn a_recommendation_is_only_told() {
    let mut world = world(json!({"minimum": 0, "maximum": 9, "recommendOnly": true}));
    want(&mut world, 4, 3);
    world.settle();
    assert_eq!(replicas(&world), (1, 0));
    let told = status(&world);
    assert_eq!((told.recommendation, told.desired), (Some(7), None));
    assert_eq!(condition(&told.conditions, "Ready").reason, "RecommendOnly");
}

fn observed(world: &World, autoscalers: Vec<DaskAutoscaler>) -> Observed {
    Observed {
        cluster: Some(world.cluster.clone()),
        groups: world.groups.values().cloned().collect(),
        autoscalers,
        signal: world.signal(),
        ..Observed::default()
    }
}

#[test]
fn of_two_autoscalers_the_older_one_decides() {
    let mut world = world(json!({"minimum": 0, "maximum": 9}));
    want(&mut world, 5, 0);
    let old = autoscaler("old", 10, json!({"maximum": 3}));
    let new = autoscaler("new", 20, json!({"maximum": 8}));
    let observed = observed(&world, vec![new.clone(), old.clone()]);
    let plan = autoscaler::plan(&new, &observed, &settings(), at(100));
    assert!(plan.scale.is_empty());
    let conditions = plan.status.unwrap().conditions;
    let stalled = condition(&conditions, "Stalled");
    assert_eq!(stalled.reason, "OX552");
    assert!(
        stalled.message.contains("`old` is older"),
        "{}",
        stalled.message
    );
    let plan = autoscaler::plan(&old, &observed, &settings(), at(100));
    assert_eq!(plan.scale[0].to, 3);
}

#[test]
fn it_is_adopted_by_its_cluster_and_waits_for_it() {
    let world = world(json!({"minimum": 0, "maximum": 9}));
    let own = autoscaler("mine", 1, json!({"maximum": 3}));
    let mut observed = observed(&world, vec![own.clone()]);
    let plan = autoscaler::plan(&own, &observed, &settings(), at(100));
    assert_eq!(plan.apply.len(), 1);
    assert_eq!(plan.apply[0].kind(), ObjectKind::Autoscaler);
    let owners = plan.apply[0].metadata().owner_references.as_ref().unwrap();
    assert_eq!(
        (owners[0].kind.as_str(), owners[0].uid.as_str()),
        ("DaskCluster", "uid-flights")
    );
    assert!(
        world
            .autoscaler
            .as_ref()
            .unwrap()
            .metadata
            .owner_references
            .is_some()
    );
    for is_suspended in [true, false] {
        observed.cluster = Some(world.cluster.clone()).filter(|_| is_suspended);
        if let Some(cluster) = &mut observed.cluster {
            cluster.spec.suspend = Some(true);
        }
        let plan = autoscaler::plan(&own, &observed, &settings(), at(100));
        assert!(plan.scale.is_empty());
        let conditions = plan.status.unwrap().conditions;
        assert_eq!(condition(&conditions, "Ready").reason, "WaitingForCluster");
    }
}

#[test]
fn the_smallest_target_of_a_cluster_counts() {
    let world = World::of(json!({
        "worker": {"autoscale": {"maximum": 3, "targetSeconds": 20}},
        "workerGroups": [{"name": "big", "autoscale": {"maximum": 3, "targetSeconds": 8}}],
    }));
    let own = autoscaler("mine", 1, json!({"targetSeconds": 12}));
    assert_eq!(
        scaling::target_seconds(world.groups.values(), [&own]),
        Some(8)
    );
    assert_eq!(scaling::target_seconds([], [&own]), Some(12));
    assert_eq!(scaling::target_seconds([], []), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_sum_stays_within_the_bounds_whatever_the_load(
        minimum in 0..4_u32,
        span in 0..8_u32,
        loads in prop::collection::vec((0..12_u64, 0..12_u64, 1..25_usize, any::<bool>()), 1..8),
    ) {
        let mut world = world(json!({"minimum": minimum, "maximum": minimum + span}));
        for (default, big, seconds, is_silent) in loads {
            want(&mut world, default, big);
            world.is_silent = is_silent;
            for _ in 0..seconds {
                world.round();
                let (default, big) = replicas(&world);
                prop_assert!((minimum..=minimum + span).contains(&(default + big)));
                prop_assert!(default >= minimum);
            }
        }
        world.is_silent = false;
        want(&mut world, 5, 5);
        world.settle();
        let (default, big) = replicas(&world);
        prop_assert_eq!(default + big, (minimum.max(5) + 5).min(minimum + span));
        prop_assert!(!world.has_event("ScalingOverridden"));
    }
}
