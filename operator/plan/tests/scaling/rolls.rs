//! A new template rolls through the workers.

use oxidask_operator_plan::{DeletionReason, TEMPLATE_HASH};
use serde_json::json;

use crate::world::*;

fn images(world: &World) -> Vec<String> {
    let pods = world.pods.values();
    let image = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().unwrap().containers[0]
            .image
            .clone()
            .unwrap()
    };
    pods.map(image).collect()
}

fn count(world: &World, image: &str) -> usize {
    images(world).iter().filter(|it| *it == image).count()
}

fn change_image(world: &mut World, image: &str) {
    world.group_mut(GROUP).spec.worker.image = Some(image.to_owned());
}

/// Rolls; the fewest ready workers and the most pods on the way.
fn roll(world: &mut World) -> (usize, usize) {
    let (mut fewest, mut most) = (usize::MAX, 0);
    for _ in 0..200 {
        world.round();
        let ready = world.pods.values().filter(|pod| is_ready(pod)).count();
        fewest = fewest.min(ready);
        most = most.max(world.pods.len());
    }
    (fewest, most)
}

#[test]
fn workers_are_replaced_one_by_one_and_nothing_is_lost() {
    let mut world = World::settled(json!({"replicas": 3}));
    for name in world.names() {
        let known = world.known_mut(&name);
        (known.running, known.held) = (4, 100);
    }
    change_image(&mut world, "new");
    assert_eq!(roll(&mut world), (3, 4));
    assert_eq!(images(&world), ["new", "new", "new"]);
    assert!(world.lost.is_empty());
    let held: u64 = world.known.values().map(|known| known.held).sum();
    assert_eq!(held, 300);
    let mut reasons = world.deletions.iter().map(|it| it.reason);
    assert!(reasons.all(|reason| reason == DeletionReason::TemplateChanged));
    let status = world.status(GROUP);
    assert_eq!(status.updated_replicas, Some(3));
    assert!(world.plan_group(GROUP).is_empty());
}

#[test]
fn the_strategy_says_how_many_pods_may_be_added_and_missing() {
    for (strategy, limits) in [
        (json!({"maxSurge": "50%"}), (4, 6)),
        (json!({"maxSurge": 0, "maxUnavailable": 1}), (3, 4)),
        (json!({"maxSurge": 0, "maxUnavailable": "50%"}), (2, 4)),
        (json!({"maxSurge": 4}), (4, 8)),
        (json!({"maxSurge": 0, "maxUnavailable": "10%"}), (4, 5)),
    ] {
        let spec = json!({"worker": {"replicas": 4}, "updateStrategy": strategy});
        let mut world = World::of(spec);
        world.settle();
        change_image(&mut world, "new");
        assert_eq!(roll(&mut world), limits, "{strategy}");
        assert_eq!(count(&world, "new"), 4, "{strategy}");
        assert!(world.lost.is_empty());
    }
}

#[test]
fn a_bad_image_stops_the_roll_and_the_way_back_costs_nothing() {
    let mut world = World::settled(json!({"replicas": 4}));
    let before = world.names();
    world.broken.insert("broken".to_owned());
    change_image(&mut world, "broken");
    world.rounds(60);
    assert_eq!(count(&world, "broken"), 1);
    assert!(before.iter().all(|name| world.pods.contains_key(name)));
    let conditions = world.status(GROUP).conditions;
    let reconciling = condition(&conditions, "Reconciling");
    assert_eq!(reconciling.reason, "RollStopped");
    let message = &reconciling.message;
    let words = "OX550: the change of template has stopped with 1 of 4 workers updated: pod `";
    assert!(
        message.contains(words) && message.contains("ImagePullBackOff"),
        "{message}"
    );
    let stops = world.events.iter().filter(|it| it.reason == "RollStopped");
    assert_eq!(stops.count(), 1);
    world.group_mut(GROUP).spec.worker.image = None;
    world.settle();
    assert_eq!(world.names(), before);
    assert!(world.lost.is_empty());
}

#[test]
fn a_corrected_image_goes_on_from_the_broken_one() {
    let mut world = World::settled(json!({"replicas": 3}));
    world.broken.insert("broken".to_owned());
    change_image(&mut world, "broken");
    world.rounds(10);
    change_image(&mut world, "good");
    world.settle();
    assert_eq!(images(&world), ["good"; 3]);
}

#[test]
fn the_scheduler_comes_first() {
    let mut world = World::settled(json!({"replicas": 2}));
    world.settings = read_settings("runtime:2");
    world.rounds(10);
    assert_eq!(
        count(&world, "runtime:1"),
        2,
        "the scheduler has the old image"
    );
    assert!(
        world
            .message()
            .contains("until the scheduler has its new image")
    );
    world.scale(GROUP, 3);
    world.rounds(5);
    assert_eq!(world.names().len(), 2);
    let pod = world
        .scheduler
        .spec
        .as_mut()
        .unwrap()
        .template
        .spec
        .as_mut()
        .unwrap();
    pod.containers[0].image = Some("runtime:2".to_owned());
    world.scheduler.status.as_mut().unwrap().available_replicas = Some(0);
    world.rounds(10);
    assert_eq!(count(&world, "runtime:1"), 2, "the scheduler starts");
    assert_eq!(count(&world, "runtime:2"), 1, "new workers may come");
    world.scheduler.status.as_mut().unwrap().available_replicas = Some(1);
    world.settle();
    assert_eq!(images(&world), ["runtime:2"; 3]);
}

#[test]
fn what_is_no_part_of_the_template_replaces_nobody() {
    let mut world = World::settled(json!({"replicas": 2, "image": "mine"}));
    let before = world.names();
    world.settings.image_pull_policy = Some("Always".to_owned());
    let group = world.group_mut(GROUP);
    group.spec.worker.autoscale = Some(read(json!({"minimum": 2, "maximum": 3})));
    let labels = group.metadata.labels.get_or_insert_default();
    labels.insert("team".to_owned(), "a".to_owned());
    world.settle();
    assert_eq!(world.names(), before);
    assert!(world.deletions.is_empty());
    let hashes = world
        .pods
        .values()
        .map(|pod| &pod.metadata.labels.as_ref().unwrap()[TEMPLATE_HASH]);
    assert!(hashes.into_iter().all(|hash| hash.len() == 16));
}

#[test]
fn resources_threads_and_environment_roll() {
    for change in [
        json!({"threads": 3}),
        json!({"env": [{"name": "A", "value": "b"}]}),
        json!({"resources": {"limits": {"cpu": 2}}}),
        json!({"spill": {"sizeLimit": "1Gi"}}),
    ] {
        let mut world = World::settled(json!({"replicas": 2}));
        let before = world.snapshot(GROUP).observed.pods;
        let mut worker = change.clone();
        worker["replicas"] = json!(2);
        world.group_mut(GROUP).spec.worker = read(worker);
        world.settle();
        let uids = before.iter().map(|pod| pod.metadata.uid.clone());
        for uid in uids {
            assert!(
                world.pods.values().all(|pod| pod.metadata.uid != uid),
                "{change}"
            );
        }
        assert_eq!(world.names().len(), 2);
        assert!(world.lost.is_empty());
    }
}

#[test]
fn scaling_goes_on_while_a_template_rolls() {
    let mut world = World::settled(json!({"replicas": 6}));
    change_image(&mut world, "new");
    world.rounds(4);
    world.scale(GROUP, 2);
    world.settle();
    assert_eq!(images(&world), ["new"; 2]);
    change_image(&mut world, "newer");
    world.rounds(2);
    world.scale(GROUP, 5);
    world.settle();
    assert_eq!(images(&world), ["newer"; 5]);
    assert!(world.lost.is_empty());
}

#[test]
fn a_silent_scheduler_stops_a_roll() {
    let mut world = World::settled(json!({"replicas": 2}));
    change_image(&mut world, "new");
    world.is_silent = true;
    world.rounds(30);
    assert_eq!((count(&world, "runtime:1"), count(&world, "new")), (2, 1));
    world.is_silent = false;
    world.settle();
    assert_eq!(images(&world), ["new"; 2]);
    assert!(world.lost.is_empty());
}
