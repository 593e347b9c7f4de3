//! A job from its manifest to its end.

use crate::support::*;
use k8s_openapi::api::core::v1::ContainerState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_api::{EnvironmentVariable, Runtime};
use oxidask_operator_plan::job::LOST_RUNNERS_MAX;
use oxidask_operator_plan::{DeletionReason, RUNNER_START};
use serde_json::{Value, json};

const RUNNER: &str = "flights-runner";

fn running_job() -> World {
    let mut world = World::with_job(sql_job("flights"));
    world.settle();
    assert_eq!(
        world.job_status("flights").job_status,
        Some(JobState::Running)
    );
    world.events.clear();
    world.log.clear();
    world
}

fn end_runner(world: &mut World, phase: &str, state: ContainerState) {
    world.pods.get_mut(RUNNER).unwrap().status = Some(pod_status(phase, false, state));
}

fn state(world: &World) -> JobState {
    world.job_status("flights").job_status.unwrap()
}

#[test]
fn a_new_job_has_its_names_at_once_and_the_runner_waits_for_the_cluster() {
    let mut world = World::with_job(sql_job("flights"));
    let plan = world.plan_job("flights");
    let status = plan.status.unwrap();
    assert_eq!(status.job_status, Some(JobState::JobCreated));
    assert_eq!(status.cluster_name.as_deref(), Some("flights"));
    assert_eq!(status.job_runner_pod_name.as_deref(), Some(RUNNER));
    let applied: Vec<&str> = plan
        .apply
        .iter()
        .map(|object| object.kind().kind())
        .collect();
    assert_eq!(applied, ["ConfigMap", "Pod"]);
    world.settle();
    let position = |line: &str| world.log.iter().position(|found| found == line).unwrap();
    assert!(position("status JobCreated") < position("DaskCluster flights"));
    assert!(position("Pod flights-runner") < position("DaskCluster flights"));
    assert!(position("status ClusterCreated") < position("DaskCluster flights"));
    assert!(position("DaskCluster flights") < position("status Running"));
    assert!(position("Pod flights-runner") < position("status Running"));
}

#[test]
fn a_job_that_succeeds() {
    let mut world = running_job();
    let status = world.job_status("flights");
    assert!(status.start_time.is_some() && status.end_time.is_none());
    assert_eq!(status.runner_starts, Some(1));
    assert!(is_true(&status.conditions, "Reconciling"));
    end_runner(
        &mut world,
        "Succeeded",
        terminated(0, "", 1_000_010, 1_000_020),
    );
    let plan = world.plan_job("flights");
    let status = plan.status.as_ref().unwrap();
    assert_eq!(status.job_status, Some(JobState::Successful));
    assert_eq!(status.end_time, Some(Time(at(1_000_020))));
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].reason, DeletionReason::JobFinished);
    world.settle();
    let order: Vec<&str> = world.log.iter().map(String::as_str).collect();
    assert_eq!(order, ["status Successful", "delete DaskCluster flights"]);
    let status = world.job_status("flights");
    assert!(is_true(&status.conditions, "Complete"));
    for kind in ["Failed", "Reconciling", "Stalled"] {
        assert!(!is_true(&status.conditions, kind), "{kind}");
    }
    assert!(world.clusters.is_empty() && world.services.is_empty() && world.groups.is_empty());
    assert_eq!(
        world.pods.keys().collect::<Vec<_>>(),
        [RUNNER],
        "the log stays"
    );
    assert!(world.has_event("Successful"));
}

#[test]
fn a_crash_between_final_status_and_deletion_costs_nothing() {
    let mut world = running_job();
    end_runner(&mut world, "Succeeded", terminated(0, "", 1, 2));
    let status = world.plan_job("flights").status;
    world.jobs.get_mut("flights").unwrap().status = status;
    let plan = world.plan_job("flights");
    assert!(plan.status.is_none() && plan.apply.is_empty() && plan.events.is_empty());
    assert_eq!(plan.delete.len(), 1);
    world.settle();
    assert!(world.clusters.is_empty());
    world.pods.clear();
    assert!(
        world.plan_job("flights").is_empty(),
        "an ended job never starts again"
    );
}

#[test]
fn a_job_that_fails_says_why() {
    let mut world = running_job();
    let log = "4 of 9 tasks\nerror[OX221]: statement 2: table `flight` not found\n\nhint: check\n";
    end_runner(
        &mut world,
        "Failed",
        terminated(1, log, 1_000_010, 1_000_020),
    );
    world.settle();
    let status = world.job_status("flights");
    assert_eq!(status.job_status, Some(JobState::Failed));
    let failed = condition(&status.conditions, "Failed");
    assert_eq!(
        (failed.status.as_str(), failed.reason.as_str()),
        ("True", "OX221")
    );
    assert!(failed.message.starts_with(
        "the runner ended with exit status 1: error[OX221]: statement 2: table `flight` not found"
    ));
    let event = world
        .events
        .iter()
        .find(|event| event.reason == "Failed")
        .unwrap();
    assert!(
        event.note.starts_with("OX221: the runner ended"),
        "{}",
        event.note
    );
    assert!(world.clusters.is_empty());
}

#[test]
fn long_logs_and_deadlines() {
    let mut world = running_job();
    end_runner(
        &mut world,
        "Failed",
        terminated(137, &"ä".repeat(4000), 1, 2),
    );
    let status = world.plan_job("flights").status.unwrap();
    let failed = condition(&status.conditions, "Failed");
    assert_eq!(failed.reason, "OX506");
    assert!(failed.message.len() < 1200, "{}", failed.message.len());
    let pod = world.pods.get_mut(RUNNER).unwrap();
    pod.status.as_mut().unwrap().reason = Some("DeadlineExceeded".to_owned());
    world
        .jobs
        .get_mut("flights")
        .unwrap()
        .spec
        .active_deadline_seconds = Some(60);
    let status = world.plan_job("flights").status.unwrap();
    let failed = condition(&status.conditions, "Failed");
    assert_eq!(failed.reason, "DeadlineExceeded");
    assert!(failed.message.contains("60 seconds"));
}

#[test]
fn a_lost_runner_is_made_again_a_few_times() {
    let mut world = running_job();
    for start in 2..=1 + LOST_RUNNERS_MAX {
        world.pods.remove(RUNNER);
        let plan = world.plan_job("flights");
        assert_eq!(plan.apply.len(), 1);
        let again = world.plan_job("flights");
        let number =
            |plan: &oxidask_operator_plan::Plan<oxidask_operator_api::kubernetes::JobStatus>| {
                let annotations = plan.apply[0].metadata().annotations.clone();
                annotations.unwrap()[RUNNER_START].clone()
            };
        assert_eq!(number(&plan), start.to_string());
        assert_eq!(
            number(&again),
            start.to_string(),
            "a stale snapshot does not count on"
        );
        assert!(reasons(&plan.events).contains(&"RunnerLost"));
        world.settle();
        assert_eq!(state(&world), JobState::Running);
        assert_eq!(world.job_status("flights").runner_starts, Some(start));
    }
    world.pods.remove(RUNNER);
    world.settle();
    let status = world.job_status("flights");
    assert_eq!(status.job_status, Some(JobState::Failed));
    let failed = condition(&status.conditions, "Failed");
    assert_eq!(failed.reason, "OX507");
    assert_eq!(failed.message, "the runner was lost 4 times");
    assert!(world.clusters.is_empty());
}

#[test]
fn an_evicted_runner_is_lost_not_failed() {
    let mut world = running_job();
    end_runner(&mut world, "Failed", terminated(137, "", 1, 2));
    world
        .pods
        .get_mut(RUNNER)
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .reason = Some("Evicted".to_owned());
    let plan = world.plan_job("flights");
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].reason, DeletionReason::RunnerLost);
    world.settle();
    assert_eq!(state(&world), JobState::Running);
    assert_eq!(world.job_status("flights").runner_starts, Some(2));
}

#[test]
fn a_runner_that_is_being_deleted_has_not_failed() {
    let mut world = running_job();
    end_runner(&mut world, "Failed", terminated(143, "", 1, 2));
    world
        .pods
        .get_mut(RUNNER)
        .unwrap()
        .metadata
        .deletion_timestamp = Some(Time(at(1)));
    let plan = world.plan_job("flights");
    assert!(plan.apply.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.status.unwrap().job_status, Some(JobState::Running));
}

#[test]
fn a_cluster_that_somebody_deleted_is_made_again() {
    let mut world = running_job();
    let object = world.clusters.get_mut("flights").unwrap();
    object.metadata.deletion_timestamp = Some(Time(at(1)));
    let plan = world.plan_job("flights");
    assert!(
        plan.apply.is_empty() && plan.delete.is_empty(),
        "first it has to go"
    );
    world.collect_garbage();
    let plan = world.plan_job("flights");
    assert_eq!(plan.apply.len(), 1);
    assert_eq!(
        plan.status.as_ref().unwrap().job_status,
        Some(JobState::Running)
    );
    assert!(reasons(&plan.events).contains(&"ClusterDeleted"));
    world.settle();
    assert_eq!(state(&world), JobState::Running);
    assert!(world.clusters.contains_key("flights"));
}

#[test]
fn workers_of_a_program_load_python_while_they_start_unless_told_otherwise() {
    let own = json!([{"name": "OXIDASK_LOAD_PYTHON", "value": "false"}]);
    let groups = json!([{"name": "idle", "env": own}]);
    let cluster = json!({"spec": {"worker": {}, "workerGroups": groups}});
    let script = json!({"cluster": cluster, "script": {"source": "print(1)"}});
    let mut world = World::with_job(job_of("flights", script));
    world.settle();
    let spec = &world.clusters["flights"].spec;
    let values = |env: &[EnvironmentVariable]| -> Vec<Option<String>> {
        env.iter().map(|variable| variable.value.clone()).collect()
    };
    assert_eq!(values(&spec.worker.env), [Some("true".to_owned())]);
    let idle = &spec.worker_groups[0].env;
    assert_eq!(values(idle), [Some("false".to_owned())]);
}

#[test]
fn work_that_is_not_operated_stalls_without_a_status() {
    let cluster = json!({"spec": {"worker": {}}});
    let sql = json!({"statements": "SELECT 1"});
    for (spec, code) in [
        (
            json!({"cluster": cluster, "script": {"file": "a.py"}}),
            "OX106",
        ),
        (json!({"cluster": cluster}), "OX106"),
        (
            json!({"cluster": cluster, "sql": {"file": "a.sql"}}),
            "OX106",
        ),
        (
            json!({"cluster": {"spec": {"runtime": "Dask", "worker": {}}}, "sql": sql}),
            "OX105",
        ),
        (
            json!({"cluster": cluster, "sql": {"statements": "x".repeat(1 << 20)}}),
            "OX206",
        ),
        (
            json!({"cluster": cluster, "script": {"source": "x".repeat(1 << 20)}}),
            "OX206",
        ),
    ] {
        let mut world = World::with_job(job_of("flights", spec));
        let plan = world.plan_job("flights");
        assert!(plan.apply.is_empty() && plan.delete.is_empty());
        let status = plan.status.unwrap();
        assert_eq!(status.job_status, None);
        let stalled = condition(&status.conditions, "Stalled");
        assert_eq!(
            (stalled.status.as_str(), stalled.reason.as_str()),
            ("True", code)
        );
        world.jobs.get_mut("flights").unwrap().status = Some(status);
        assert!(world.plan_job("flights").is_empty());
    }
}

#[test]
fn a_cluster_of_the_same_name_is_left_alone() {
    let mut world = World::with_job(sql_job("flights"));
    let other = cluster("flights", json!({"worker": {}}));
    world.clusters.insert("flights".to_owned(), other);
    let plan = world.plan_job("flights");
    assert!(plan.apply.is_empty() && plan.delete.is_empty());
    let status = plan.status.unwrap();
    assert_eq!(condition(&status.conditions, "Stalled").reason, "OX504");
}

#[test]
fn a_stalled_cluster_stalls_its_job() {
    let spec = json!({
        "cluster": {"spec": {"worker": {"tolerations": [1]}}},
        "sql": {"statements": "SELECT 1"},
    });
    let mut world = World::with_job(job_of("flights", spec));
    for _ in 0..6 {
        world.is_lazy = true;
        world.round();
    }
    let status = world.job_status("flights");
    let stalled = condition(&status.conditions, "Stalled");
    assert_eq!(
        (stalled.status.as_str(), stalled.reason.as_str()),
        ("True", "OX503")
    );
    assert!(
        stalled.message.contains("`spec.worker.tolerations[0]`"),
        "{}",
        stalled.message
    );
    assert_eq!(stalled.message.matches("hint: ").count(), 1);
    assert!(world.workers().is_empty());
}

#[test]
fn what_the_cluster_lacks_shows_in_the_job() {
    let mut world = running_job();
    let name = world.workers()[0].clone();
    let status = pod_status("Pending", false, waiting("ImagePullBackOff", ""));
    world.pods.get_mut(&name).unwrap().status = Some(status);
    world.settle();
    let status = world.job_status("flights");
    let reconciling = condition(&status.conditions, "Reconciling");
    assert!(
        reconciling
            .message
            .starts_with("the work is running; the cluster: 1 of 2 workers")
    );
    assert!(reconciling.message.contains("ImagePullBackOff"));
}

#[test]
fn a_runner_that_cannot_start_is_named_once() {
    let mut world = running_job();
    let status = pod_status("Pending", false, waiting("ImagePullBackOff", ""));
    world.pods.get_mut(RUNNER).unwrap().status = Some(status);
    world.settle();
    let told = world
        .events
        .iter()
        .filter(|event| event.reason == "PodCannotStart")
        .count();
    assert_eq!(told, 1);
    assert_eq!(state(&world), JobState::Running, "states never go back");
}

#[test]
fn a_suspended_job_waits() {
    let mut job = sql_job("flights");
    job.spec.suspend = Some(true);
    let mut world = World::with_job(job);
    world.settle();
    assert!(world.clusters.is_empty() && world.config_maps.is_empty());
    assert_eq!(state(&world), JobState::JobCreated);
    world.jobs.get_mut("flights").unwrap().spec.suspend = Some(false);
    world.settle();
    assert_eq!(state(&world), JobState::Running);
}

#[test]
fn the_runner_reads_the_job_as_it_was_given() {
    let world = running_job();
    let data = world.config_maps["flights-work"].data.as_ref().unwrap();
    let manifest: Value = serde_json::from_str(&data["job.json"]).unwrap();
    assert_eq!(
        manifest,
        json!({
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskJob",
            "metadata": {"name": "flights", "namespace": "science"},
            "spec": {
                "cluster": {"spec": {"worker": {"replicas": 2}}},
                "sql": {"statements": "SELECT 1"},
            },
        })
    );
    assert_eq!(world.clusters["flights"].spec.runtime, Some(Runtime::Rust));
}

#[test]
fn a_text_from_a_config_map_is_mounted_beside_the_manifest() {
    let spec = json!({
        "cluster": {"spec": {"worker": {}}},
        "graph": {"configMapKeyRef": {"name": "my-graph", "key": "tasks.jsonl"}, "outputs": ["a"]},
    });
    let mut world = World::with_job(job_of("flights", spec));
    world.settle();
    let data = world.config_maps["flights-work"].data.as_ref().unwrap();
    let manifest: Value = serde_json::from_str(&data["job.json"]).unwrap();
    assert_eq!(
        manifest["spec"]["graph"],
        json!({"file": "text", "outputs": ["a"]})
    );
    let spec = world.pods[RUNNER].spec.as_ref().unwrap();
    let volumes = serde_json::to_value(&spec.volumes).unwrap();
    let work = volumes
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == "oxidask-work")
        .unwrap();
    let source = &work["projected"]["sources"][1]["configMap"];
    let wanted = json!({"name": "my-graph", "items": [{"key": "tasks.jsonl", "path": "text"}]});
    assert_eq!(source, &wanted);
}

#[test]
fn a_runner_that_starts_slowly_names_the_config_map() {
    let spec = json!({
        "cluster": {"spec": {"worker": {}}},
        "sql": {"configMapKeyRef": {"name": "queries", "key": "late.sql"}},
    });
    let mut world = World::with_job(job_of("flights", spec));
    world.settle();
    let status = pod_status("Pending", false, waiting("ContainerCreating", ""));
    let pod = world.pods.get_mut(RUNNER).unwrap();
    pod.status = Some(status);
    pod.metadata.creation_timestamp = Some(Time(at(world.now - 10)));
    assert_eq!(world.plan_job("flights").wake_after.unwrap().as_secs(), 5);
    world.now += 20;
    let status = world.plan_job("flights").status.unwrap();
    let message = &condition(&status.conditions, "Reconciling").message;
    let wanted = "is there a ConfigMap `queries` with the key `late.sql`?";
    assert!(message.contains(wanted), "{message}");
}

#[test]
fn work_that_has_ended_ends_the_job_whatever_became_of_its_spec() {
    let mut world = running_job();
    world.jobs.get_mut("flights").unwrap().spec.schedule = Some("* * * * *".to_owned());
    let status = world.plan_job("flights").status.unwrap();
    assert!(is_true(&status.conditions, "Stalled"));
    assert_eq!(status.job_status, Some(JobState::Running));
    end_runner(&mut world, "Succeeded", terminated(0, "", 1, 2));
    world.settle();
    assert_eq!(state(&world), JobState::Successful);
}
