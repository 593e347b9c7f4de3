//! The runner comes first, and why it does not start is said in words.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_plan::job::{Warning, wants_warnings};
use serde_json::json;

#[test]
fn the_runner_is_admitted_before_the_cluster_is_made() {
    let mut world = World::new(sql(json!({})));
    let plan = world.plan();
    let kinds: Vec<&str> = plan.apply.iter().map(|o| o.kind().kind()).collect();
    assert_eq!(kinds, ["ConfigMap", "Pod"]);
    let status = plan.status.unwrap();
    assert_eq!(status.job_status, Some(JobState::JobCreated));
    assert_eq!(status.cluster_name.as_deref(), Some(NAME));
    assert_eq!(status.job_runner_pod_name.as_deref(), Some(RUNNER));
    world.settle();
    assert!(world.position("Pod flights-runner") < world.position("DaskCluster flights"));
    assert!(world.position("status ClusterCreated") < world.position("DaskCluster flights"));
    assert!(world.position("DaskCluster flights") < world.position("status Running"));
}

#[test]
fn a_quota_without_room_for_the_runner_makes_no_cluster_and_is_told_once() {
    let mut world = World::new(sql(json!({"activeDeadlineSeconds": 60})));
    world.is_full = true;
    for _ in 0..4 {
        world.round();
    }
    assert!(world.clusters.is_empty() && world.pods.is_empty());
    let status = world.status();
    let message = &condition(&status, "Reconciling").message;
    assert!(
        message.contains("refused Pod flights-runner: exceeded quota: small"),
        "{message}"
    );
    assert_eq!(world.count("Refused"), 1);
    assert!(world.is_last_wake_set);
    world.now += 60;
    world.round();
    let status = world.status();
    let failed = condition(&status, "Failed");
    assert_eq!(
        (failed.status.as_str(), failed.reason.as_str()),
        ("True", "DeadlineExceeded")
    );
    assert!(
        failed.message.contains("exceeded quota"),
        "{}",
        failed.message
    );
}

#[test]
fn when_the_quota_has_room_the_job_goes_on() {
    let mut world = World::new(sql(json!({})));
    world.is_full = true;
    world.round();
    world.round();
    world.is_full = false;
    world.settle();
    assert_eq!(world.state(), Some(JobState::Running));
    let status = world.status();
    assert!(!condition(&status, "Reconciling").message.contains("quota"));
}

#[test]
fn what_keeps_the_runner_from_starting_is_said_in_one_round() {
    let unschedulable = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient cpu.",
    }]});
    let waiting = |reason: &str, message: &str| {
        json!({"phase": "Pending", "containerStatuses": [{
            "name": "runner", "image": "nowhere/image:1", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}},
        }]})
    };
    let missing = "configmap \"settings\" not found";
    for (status, wanted) in [
        (
            unschedulable,
            "Unschedulable: 0/2 nodes are available: 2 Insufficient cpu.",
        ),
        (
            waiting("ErrImagePull", "no such image"),
            "image `nowhere/image:1`: no such image",
        ),
        (
            waiting("CreateContainerConfigError", missing),
            "configmap \"settings\" not found",
        ),
    ] {
        let mut world = World::new(sql(json!({"activeDeadlineSeconds": 100})));
        world.round();
        world.set_runner(status);
        world.round();
        let message = condition(&world.status(), "Reconciling").message.clone();
        assert!(message.contains(wanted), "{message}");
        world.settle();
        assert_eq!(world.count("PodCannotStart"), 1, "{wanted}");
        world.now += 100;
        world.settle();
        let status = world.status();
        assert_eq!(status.job_status, Some(JobState::Failed));
        let message = &condition(&status, "Failed").message;
        assert!(
            message.contains("deadline of 100 seconds; pod"),
            "{message}"
        );
        assert!(world.pods.is_empty() && world.clusters.is_empty());
    }
}

#[test]
fn a_volume_that_cannot_be_mounted_is_known_from_events() {
    let mut world = World::new(sql(json!({})));
    world.is_lazy = true;
    world.round();
    world.hold_runner("ContainerCreating", "");
    world.settle();
    let wants =
        |world: &World| wants_warnings(&world.jobs[NAME], &world.observe(NAME), at(world.now));
    assert!(!wants(&world));
    assert!(world.is_last_wake_set);
    world.now += 5;
    assert!(wants(&world));
    let warning = |message: &str| Warning {
        reason: "FailedMount".to_owned(),
        message: message.to_owned(),
    };
    let missing = "MountVolume.SetUp failed for volume \"work\" : configmap \"queries\" not found";
    let early = "MountVolume.SetUp failed for volume \"oxidask-tls\" : secret \
                 \"flights-tls-client\" not found";
    world.warnings = vec![warning(early)];
    world.settle();
    assert_eq!(
        world.count("PodCannotStart"),
        0,
        "the Secret comes with the cluster"
    );
    world.play_kubelet();
    world.hold_runner("ContainerCreating", "");
    world.settle();
    assert_eq!(
        world.count("PodCannotStart"),
        0,
        "the event stays when the Secret is there"
    );
    world.warnings = vec![
        warning("Unable to attach or mount volumes: timed out"),
        warning(missing),
    ];
    world.settle();
    let message = condition(&world.status(), "Reconciling").message.clone();
    assert!(
        message.contains("cannot start: FailedMount: MountVolume"),
        "{message}"
    );
    assert!(message.contains("\"queries\" not found"), "{message}");
    assert_eq!(world.count("PodCannotStart"), 1);
    world.warnings.reverse();
    assert!(
        world.plan().is_empty(),
        "the order of events changes nothing"
    );
}

#[test]
fn a_pod_that_a_queue_holds_back_is_no_puzzle() {
    let labels = json!({"kueue.x-k8s.io/queue-name": "team"});
    let mut world = World::labelled(sql(json!({})), labels);
    world.is_lazy = true;
    world.round();
    let label = "kueue.x-k8s.io/queue-name";
    let labels = world.runner().metadata.labels.clone().unwrap();
    assert_eq!(labels.get(label).map(String::as_str), Some("team"));
    world.runner().spec.as_mut().unwrap().scheduling_gates =
        Some(read(json!([{"name": "kueue.x-k8s.io/admission"}])));
    world.set_runner(json!({"phase": "Pending"}));
    world.settle();
    let message = condition(&world.status(), "Reconciling").message.clone();
    assert!(
        message.contains("held back by `kueue.x-k8s.io/admission`"),
        "{message}"
    );
    let labels = world.clusters[NAME].metadata.labels.clone().unwrap();
    assert_eq!(labels.get(label).map(String::as_str), Some("team"));
}

#[test]
fn a_runner_on_a_node_that_does_not_answer_says_so() {
    let mut world = World::running(sql(json!({})));
    let now = world.now;
    let runner = world.runner();
    runner.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(now)),
    );
    runner.spec.as_mut().unwrap().node_name = Some("node-7".to_owned());
    let message = |world: &World| {
        let status = world.plan().status.unwrap();
        condition(&status, "Reconciling").message.clone()
    };
    assert!(!message(&world).contains("node-7"));
    world.now += 60;
    assert!(message(&world).contains("does node `node-7` answer?"));
    assert!(world.plan().apply.is_empty() && world.plan().delete.is_empty());
}

#[test]
fn a_driver_of_the_rust_runtime_has_address_certificate_and_run_id() {
    let spec = json!({
        "cluster": {"spec": {"worker": {}}},
        "job": {"spec": {"containers": [{"name": "main", "command": ["train"]}]}},
    });
    let mut world = World::running(spec);
    assert!(world.config_maps.is_empty());
    let spec = serde_json::to_value(world.runner().spec.clone()).unwrap();
    assert_eq!(spec["restartPolicy"], "OnFailure");
    assert_eq!(spec["securityContext"]["fsGroup"], 65532);
    let container = &spec["containers"][0];
    assert_eq!(container["command"], json!(["train"]));
    assert_eq!(container["image"], "oxidask-runtime:1");
    let env = json!([
        {"name": "DASK_SCHEDULER_ADDRESS", "value": "oxidask://flights-scheduler.science.svc:8786"},
        {"name": "OXIDASK_TLS_DIR", "value": "/etc/oxidask/tls"},
        {"name": "OXIDASK_RUN_ID", "value": "uid-job-1"},
    ]);
    assert_eq!(container["env"], env);
    assert_eq!(
        container["volumeMounts"][0]["mountPath"],
        "/etc/oxidask/tls"
    );
    assert_eq!(
        spec["volumes"][0]["secret"]["secretName"],
        "flights-tls-client"
    );
}

#[test]
fn a_driver_that_starts_again_and_again_is_said_to_do_so() {
    let spec = json!({
        "cluster": {"spec": {"worker": {}}},
        "job": {"spec": {"containers": [{"name": "main", "image": "i"}]}},
    });
    let mut world = World::running(spec);
    world.set_runner(json!({"phase": "Running", "containerStatuses": [{
        "name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"exitCode": 3, "message": "no data"}},
    }]}));
    world.settle();
    let message = condition(&world.status(), "Reconciling").message.clone();
    assert!(
        message.contains("CrashLoopBackOff: exit status 3: no data"),
        "{message}"
    );
    assert_eq!(world.state(), Some(JobState::Running));
    assert_eq!(world.count("PodCannotStart"), 1);
}
