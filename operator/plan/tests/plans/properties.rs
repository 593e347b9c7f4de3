//! What holds for any snapshot.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_plan::{ObjectKind, job};
use proptest::prelude::*;
use serde_json::json;

use crate::support::*;

/// What a pod of a snapshot is like.
#[allow(clippy::struct_excessive_bools, reason = "each is an axis of its own")]
#[derive(Debug, Clone)]
struct Sketch {
    /// One of the names that the planner would give, or another one.
    index: u64,
    has_planned_name: bool,
    is_owned: bool,
    is_ready: bool,
    is_terminating: bool,
    phase: &'static str,
    created: i64,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let phases = prop::sample::select(vec!["Pending", "Running", "Succeeded", "Failed", "Unknown"]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (0..12_u64, flags, phases, 0..5_i64).prop_map(|(index, flags, phase, created)| Sketch {
        index,
        has_planned_name: flags.0,
        is_owned: flags.1,
        is_ready: flags.2,
        is_terminating: flags.3,
        phase,
        created,
    })
}

const GROUP: &str = "flights-default";

fn pod(sketch: &Sketch, position: usize) -> Pod {
    let uid = format!("uid-{GROUP}");
    let name = if sketch.has_planned_name {
        oxidask_operator_plan::names::worker_pod(GROUP, &uid, sketch.index)
    } else {
        format!("pod-{}", sketch.index)
    };
    let owner = if sketch.is_owned {
        uid.as_str()
    } else {
        "uid-other"
    };
    let mut pod: Pod = read(json!({"metadata": {
        "name": name, "namespace": "science", "uid": format!("uid-pod-{position}"),
        "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner}],
    }}));
    pod.metadata.creation_timestamp = Some(Time(at(sketch.created)));
    pod.metadata.deletion_timestamp = sketch.is_terminating.then(|| Time(at(9)));
    pod.status = Some(pod_status(sketch.phase, sketch.is_ready, running(1)));
    pod
}

fn is_label(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

proptest! {
    #[test]
    fn names_fit_whatever_the_cluster_is_called(
        name in "[a-zA-Z0-9.-]{1,70}",
        group in "[a-z0-9-]{1,70}",
    ) {
        let spec = json!({"worker": {"replicas": 1}, "workerGroups": [{"name": group}]});
        let mut world = World::with_cluster(cluster(&name, spec));
        world.settle();
        let names = world.services.keys().chain(world.deployments.keys()).chain(world.pods.keys());
        let names = names.chain(world.groups.keys());
        for name in names {
            prop_assert!(is_label(name), "{name}");
        }
        let status = world.cluster_status(&name);
        let stalled = is_true(&status.conditions, "Stalled");
        prop_assert_eq!(stalled, world.pods.is_empty());
    }

    #[test]
    fn a_job_deletes_nothing_of_others_and_its_state_never_goes_back(
        sketch in sketch(),
        has_runner in any::<bool>(),
        has_cluster in any::<bool>(),
        cluster_is_ours in any::<bool>(),
        before in prop::sample::select(vec![
            "JobCreated", "ClusterCreated", "Running", "Successful", "Failed",
        ]),
    ) {
        const ORDER: [&str; 5] = ["JobCreated", "ClusterCreated", "Running", "Successful", "Failed"];
        let mut job = sql_job("flights");
        job.status = Some(read(json!({"jobStatus": before})));
        let mut runner = pod(&sketch, 0);
        runner.metadata.name = Some("flights-runner".to_owned());
        if sketch.is_owned {
            let owners = runner.metadata.owner_references.as_mut().unwrap();
            owners[0].uid = job.metadata.uid.clone().unwrap();
        }
        let mut cluster = cluster("flights", json!({"worker": {}}));
        let owner = if cluster_is_ours { "uid-flights-job" } else { "uid-other" };
        cluster.metadata.owner_references = Some(vec![read(
            json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner}),
        )]);
        let observed = job::Observed {
            cluster: has_cluster.then_some(cluster),
            runner: has_runner.then_some(runner),
            ..job::Observed::default()
        };
        let plan = job::plan(&job, &observed, &settings(), at(100));
        for deletion in &plan.delete {
            match deletion.object.kind {
                ObjectKind::Cluster => prop_assert!(cluster_is_ours),
                ObjectKind::Pod => prop_assert!(sketch.is_owned),
                kind => prop_assert!(false, "deletes a {}", kind),
            }
        }
        let is_final = matches!(before, "Successful" | "Failed");
        prop_assert!(!is_final || plan.apply.is_empty() && plan.status.is_none());
        for object in &plan.apply {
            let is_taken = match object.kind() {
                ObjectKind::Cluster => has_cluster && !cluster_is_ours,
                ObjectKind::Pod => has_runner,
                _ => false,
            };
            prop_assert!(!is_taken, "applies {} {}", object.kind(), object.name());
            prop_assert!(is_owned(object.metadata(), job.metadata.uid.as_deref()));
        }
        if let Some(after) = plan.status.and_then(|status| status.job_status) {
            let after = after.to_string();
            let rank = |state: &str| ORDER.iter().position(|found| *found == state);
            prop_assert!(rank(&after) >= rank(before), "{before} to {after}");
        }
    }
}
