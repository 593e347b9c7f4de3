//! What the pods of a group say and hold.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use oxidask_operator_plan::signal::Standing;
use serde_json::{Value, json};

use crate::world::*;

fn spec(worker: Value) -> PodSpec {
    let mut worker = worker;
    worker["replicas"] = json!(1);
    let world = World::settled(worker);
    let pod = world.pods.into_values().next().unwrap();
    pod.spec.unwrap()
}

fn variable(spec: &PodSpec, name: &str) -> Option<String> {
    let variables = spec.containers[0].env.as_ref().unwrap();
    let found = variables.iter().find(|variable| variable.name == name)?;
    found.value.clone()
}

#[test]
fn the_grace_period_fits_a_drain_and_the_worker_knows_it() {
    let default = spec(json!({}));
    assert_eq!(default.termination_grace_period_seconds, Some(300));
    assert_eq!(
        variable(&default, "OXIDASK_GRACE_SECONDS").as_deref(),
        Some("290")
    );
    assert_eq!(variable(&default, "OXIDASK_SCRATCH_DIR"), None);
    for (grace, seconds) in [(60, "50"), (4, "2"), (0, "0")] {
        let containers = json!([{"name": "worker"}]);
        let pod = json!({"containers": containers, "terminationGracePeriodSeconds": grace});
        let mut world = World::of(json!({
            "runtime": "Rust", "worker": {"replicas": 1, "spec": pod},
        }));
        world.settle();
        let own = world.pods.into_values().next().unwrap().spec.unwrap();
        assert_eq!(own.termination_grace_period_seconds, Some(grace));
        assert_eq!(
            variable(&own, "OXIDASK_GRACE_SECONDS").as_deref(),
            Some(seconds)
        );
    }
}

#[test]
fn spilled_results_have_a_volume_of_their_own() {
    let folder = spec(json!({"spill": {"sizeLimit": "20Gi"}}));
    assert_eq!(
        variable(&folder, "OXIDASK_SCRATCH_DIR").as_deref(),
        Some("/scratch")
    );
    let volume = |spec: &PodSpec| {
        let mut volumes = spec.volumes.iter().flatten();
        let volume = volumes.find(|volume| volume.name == "oxidask-scratch");
        serde_json::to_value(volume.unwrap()).unwrap()
    };
    let limit = json!({"name": "oxidask-scratch", "emptyDir": {"sizeLimit": "20Gi"}});
    assert_eq!(volume(&folder), limit);
    let mounts = folder.containers[0].volume_mounts.as_ref().unwrap();
    assert!(mounts.iter().any(|mount| mount.mount_path == "/scratch"));
    let claim = json!({"resources": {"requests": {"storage": "50Gi"}}, "storageClassName": "ssd"});
    let claimed = volume(&spec(json!({"spill": {"volumeClaim": claim}})));
    let template = &claimed["ephemeral"]["volumeClaimTemplate"]["spec"];
    assert_eq!(template["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(template["storageClassName"], "ssd");
}

/// The first worker's pod changes into this state.
fn with_status(world: &mut World, status: Value) -> String {
    let name = world.names()[0].clone();
    let pod = world.pods.get_mut(&name).unwrap();
    pod.status = Some(read(status));
    name
}

fn ended(exit: Value) -> Value {
    json!({"phase": "Failed", "containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": exit},
    }]})
}

#[test]
fn the_scheduler_is_told_why_a_worker_ended_once() {
    let cases = [
        (ended(json!({"exitCode": 3})), "exit status 3"),
        (
            ended(json!({"exitCode": 137, "reason": "OOMKilled"})),
            "out of memory (OOMKilled), exit status 137, ended by signal 9",
        ),
        (
            ended(json!({"exitCode": 0, "signal": 15})),
            "ended by signal 15",
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
            "Evicted: low on memory",
        ),
    ];
    for (status, reason) in cases {
        let mut world = World::settled(json!({"replicas": 2}));
        world.now += 60;
        let name = with_status(&mut world, status);
        world.known_mut(&name).held = 10;
        world.round();
        assert_eq!(world.told, [(name, reason.to_owned())]);
        world.settle();
        assert_eq!(world.told.len(), 1);
        assert_eq!(world.names().len(), 2);
        let events = world.events.iter();
        let told = events
            .filter(|it| it.note.contains(reason))
            .map(|it| it.reason);
        assert_eq!(told.collect::<Vec<_>>(), ["WorkerLost", "WorkerEnded"]);
    }
}

#[test]
fn of_a_program_that_may_run_again_it_is_told_only_while_nobody_hears_it() {
    let mut world = World::settled(json!({"replicas": 2}));
    let crashed = json!({"phase": "Running", "containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1}},
    }]});
    let name = with_status(&mut world, crashed);
    assert!(
        world.plan_group(GROUP).ended.is_empty(),
        "its stream stands again"
    );
    world.known_mut(&name).standing = Standing::Suspect;
    let plan = world.plan_group(GROUP);
    assert_eq!(plan.ended.len(), 1);
    assert_eq!(plan.ended[0].reason, "exit status 1");
    let other = world.names()[1].clone();
    world.known_mut(&other).standing = Standing::Suspect;
    assert_eq!(world.plan_group(GROUP).ended.len(), 1, "the other one runs");
    world.pods.remove(&other);
    let reasons = world.plan_group(GROUP).ended;
    assert!(reasons.iter().any(|end| end.reason == "its pod is gone"));
}

fn deleted_when_scaled_to_nothing(status: Value, is_known: bool) -> bool {
    let mut world = World::settled(json!({"replicas": 1}));
    let name = with_status(&mut world, status);
    if !is_known {
        world.known.remove(&name);
    }
    world.scale(GROUP, 0);
    !world.plan_group(GROUP).delete.is_empty()
}

#[test]
fn only_a_pod_that_can_hold_nothing_goes_at_once() {
    // Ready conditions change before the program starts, or after it was ready.
    let never_ready = running(1000, None);
    let mut was_ready = running(1000, None);
    was_ready["conditions"][0]["lastTransitionTime"] = json!(at(2000).to_string());
    for (status, is_known, goes) in [
        (waiting("ContainerCreating"), false, true),
        (unschedulable(), false, true),
        (never_ready.clone(), false, true),
        (never_ready, true, false),
        (was_ready, false, false),
        (running(1000, Some(1005)), false, false),
        (running(1000, Some(1005)), true, false),
    ] {
        let found = deleted_when_scaled_to_nothing(status.clone(), is_known);
        assert_eq!(found, goes, "{status}");
    }
}

#[test]
fn the_slowest_start_is_measured_but_not_a_later_change() {
    let mut world = World::settled(json!({"replicas": 2}));
    let names = world.names();
    let now = world.now;
    let created = |pod: &mut Pod, second: i64| {
        pod.metadata.creation_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(second)),
        );
    };
    let set = |world: &mut World, index: usize, from: i64, started: i64, ready: i64| {
        let pod = world.pods.get_mut(&names[index]).unwrap();
        created(pod, from);
        pod.status = Some(read(running(started, Some(ready))));
    };
    set(&mut world, 0, now - 500, now - 470, now - 460);
    set(&mut world, 1, now - 500, now - 480, now - 5);
    world.round();
    assert_eq!(world.status(GROUP).start_seconds, Some(40));
}
