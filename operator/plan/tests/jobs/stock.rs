//! Jobs that have only fields of dask-kubernetes look as they do there.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_plan::{EventKind, RUNNER_START, TROUBLE};
use serde_json::{Value, json};

fn keys(world: &World) -> Vec<String> {
    let value = serde_json::to_value(world.status()).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_status_has_five_keys_from_the_first_to_the_last() {
    let mut world = World::new(stock(json!({})));
    let known = [
        "jobStatus",
        "clusterName",
        "jobRunnerPodName",
        "startTime",
        "endTime",
    ];
    for _ in 0..8 {
        world.round();
        let keys = keys(&world);
        assert!(
            keys.iter().all(|key| known.contains(&key.as_str())),
            "{keys:?}"
        );
    }
    assert_eq!(world.state(), Some(JobState::Running));
    assert!(
        world
            .events
            .iter()
            .any(|event| event.note == "A DaskJob has been created")
    );
    world.end_runner("Succeeded", 0, "");
    world.settle();
    assert_eq!(keys(&world).len(), 5);
    let note = "Job succeeded, deleting Dask cluster.";
    assert!(world.events.iter().any(|event| event.note == note));
    assert!(world.clusters.is_empty());
    assert!(world.pods.contains_key(RUNNER));
}

#[test]
fn any_field_of_ours_brings_conditions() {
    for field in [
        json!({"suspend": false}),
        json!({"backoffLimit": 0}),
        json!({"ttlSecondsAfterFinished": 600}),
        json!({"activeDeadlineSeconds": 600}),
        json!({"keepCluster": "Never"}),
    ] {
        let mut world = World::new(stock(field.clone()));
        world.settle();
        let status = world.status();
        assert!(!is_true(&status, "Complete"), "{field}");
        assert_eq!(status.observed_generation, Some(1));
        assert_eq!((status.runner_starts, status.attempts), (Some(1), Some(1)));
    }
}

#[test]
fn the_runner_is_the_users_pod_with_the_schedulers_address() {
    let mut world = World::running(stock(json!({})));
    let runner = serde_json::to_value(world.runner().clone()).unwrap();
    assert_eq!(
        runner["metadata"]["labels"],
        json!({
            "dask.org/cluster-name": NAME,
            "dask.org/component": "job-runner",
            "sidecar.istio.io/inject": "false",
            "team": "a",
        })
    );
    assert_eq!(runner["metadata"]["annotations"]["note"], "x");
    let address = "tcp://flights-scheduler.science.svc:8786";
    assert_eq!(
        runner["spec"],
        json!({
            "restartPolicy": "OnFailure",
            "initContainers": [{"name": "i", "image": "i"}],
            "containers": [
                {"name": "job", "image": "dask:1", "args": ["python", "a.py"], "env": [
                    {"name": "A", "value": "1"},
                    {"name": "DASK_SCHEDULER_ADDRESS", "value": address},
                ]},
                {"name": "side", "image": "side:1",
                 "env": [{"name": "DASK_SCHEDULER_ADDRESS", "value": "tcp://mine:1"}]},
            ],
        })
    );
    assert!(world.config_maps.is_empty());
}

#[test]
fn the_cluster_keeps_its_idle_timeout() {
    let world = World::running(stock(json!({})));
    let spec = serde_json::to_value(&world.clusters[NAME].spec).unwrap();
    assert_eq!(spec["idleTimeout"], 60);
    assert_eq!(spec["runtime"], Value::Null);
}

#[test]
fn a_runner_that_cannot_start_is_told_once_without_conditions() {
    let mut world = World::new(stock(json!({})));
    world.round();
    world.hold_runner("ImagePullBackOff", "Back-off pulling image \"i\"");
    world.settle();
    let trouble = world.annotation(TROUBLE).unwrap();
    assert!(trouble.contains("ImagePullBackOff"), "{trouble}");
    assert_eq!(world.count("PodCannotStart"), 1);
    assert!(keys(&world).iter().all(|key| key != "conditions"));
    world.runner().status = None;
    world.settle();
    assert_eq!(world.annotation(TROUBLE), None);
    assert_eq!(world.state(), Some(JobState::Running));
}

#[test]
fn lost_runners_are_counted_beside_the_status() {
    let mut world = World::running(stock(json!({})));
    for start in 2..=4 {
        world.pods.remove(RUNNER);
        world.settle();
        assert_eq!(world.state(), Some(JobState::Running));
        assert_eq!(world.annotation(RUNNER_START), Some(start.to_string()));
    }
    world.pods.remove(RUNNER);
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    assert_eq!(keys(&world).len(), 5);
    assert!(
        world
            .annotation(TROUBLE)
            .unwrap()
            .contains("the runner was lost 4 times")
    );
    assert!(world.clusters.is_empty());
}

#[test]
fn a_driver_that_fails_fails_the_job() {
    let mut spec = stock(json!({}));
    spec["job"]["spec"]["restartPolicy"] = json!("Never");
    let mut world = World::running(spec);
    world.end_runner("Failed", 1, "");
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    let event = world
        .events
        .iter()
        .find(|event| event.reason == "Failed")
        .unwrap();
    assert_eq!(event.kind, EventKind::Warning);
    assert!(
        event.note.ends_with("Job failed, deleting Dask cluster."),
        "{}",
        event.note
    );
}

#[test]
fn a_pod_spec_of_a_wrong_form_stalls_and_says_so_once() {
    let mut spec = stock(json!({}));
    spec["job"]["spec"]["containers"] = json!("none");
    let mut world = World::new(spec);
    world.settle();
    assert!(world.pods.is_empty() && world.clusters.is_empty());
    assert_eq!(world.count("Stalled"), 1);
    assert!(
        world
            .annotation(TROUBLE)
            .unwrap()
            .contains("`spec.job.spec` cannot be used")
    );
}
