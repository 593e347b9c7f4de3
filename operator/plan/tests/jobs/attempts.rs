//! Failed work is started again; lost runners are counted apart.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_plan::job::LOST_RUNNERS_MAX;
use serde_json::json;

fn run_id(world: &mut World) -> String {
    let spec = serde_json::to_value(world.runner().spec.clone()).unwrap();
    let env = spec["containers"][0]["env"].as_array().unwrap().clone();
    let id = env
        .into_iter()
        .find(|v| v["name"] == "OXIDASK_RUN_ID")
        .unwrap();
    id["value"].as_str().unwrap().to_owned()
}

#[test]
fn failed_work_is_started_again_after_growing_pauses() {
    let mut world = World::running(sql(json!({"backoffLimit": 3})));
    let cluster = world.clusters[NAME].metadata.uid.clone();
    for (attempt, pause) in [(1, 10), (2, 20), (3, 40)] {
        assert_eq!(run_id(&mut world), format!("uid-job-{attempt}"));
        world.end_runner("Failed", 1, "error[OX221]: no table\n");
        world.settle();
        assert_eq!(world.state(), Some(JobState::Running));
        assert!(
            world.pods.contains_key(RUNNER),
            "its log can be read meanwhile"
        );
        let status = world.status();
        assert_eq!(condition(&status, "Reconciling").reason, "AttemptFailed");
        assert_eq!(status.next_attempt_time.unwrap().0, at(world.now + pause));
        assert_eq!(
            world.plan().wake_after.unwrap().as_secs(),
            pause.unsigned_abs()
        );
        world.now += pause - 1;
        assert!(world.plan().is_empty());
        world.now += 1;
        world.settle();
        let status = world.status();
        assert_eq!(status.attempts, Some(attempt + 1));
        assert_eq!(
            (status.lost_runners, status.next_attempt_time),
            (None, None)
        );
        assert_eq!(
            world.clusters[NAME].metadata.uid, cluster,
            "the cluster stays"
        );
    }
    assert_eq!(world.count("AttemptFailed"), 3);
    assert!(world.events.iter().any(|event| {
        event
            .note
            .contains("attempt 1 of 4 failed and is made again after 10 seconds: OX221")
    }));
    world.end_runner("Failed", 1, "error[OX221]: no table\n");
    world.settle();
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::Failed));
    let failed = condition(&status, "Failed");
    assert_eq!(failed.reason, "OX221");
    assert!(
        failed
            .message
            .starts_with("attempt 4 of 4: the runner ended with exit status 1")
    );
    assert!(world.clusters.is_empty());
    assert!(world.pods.contains_key(RUNNER), "the last log stays");
}

#[test]
fn a_second_attempt_that_succeeds_ends_the_job() {
    let mut world = World::running(sql(json!({"backoffLimit": 1})));
    world.end_runner("Failed", 1, "");
    world.settle();
    world.now += 10;
    world.settle();
    world.end_runner("Succeeded", 0, "");
    world.settle();
    assert_eq!(world.state(), Some(JobState::Successful));
    assert_eq!(world.runners_made, 2);
}

#[test]
fn without_a_limit_the_first_failure_is_the_last() {
    let mut world = World::running(sql(json!({})));
    world.end_runner("Failed", 2, "");
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    let failed = condition(&world.status(), "Failed").message.clone();
    assert_eq!(failed, "the runner ended with exit status 2");
}

#[test]
fn lost_runners_keep_their_attempt_and_its_run() {
    let mut world = World::running(sql(json!({"backoffLimit": 2})));
    world.end_runner("Failed", 1, "");
    world.settle();
    world.now += 10;
    world.settle();
    for lost in 1..=LOST_RUNNERS_MAX {
        world.pods.remove(RUNNER);
        world.settle();
        let status = world.status();
        assert_eq!(
            (status.attempts, status.lost_runners),
            (Some(2), Some(lost))
        );
        assert_eq!(
            run_id(&mut world),
            "uid-job-2",
            "the work that runs is found again"
        );
    }
    world.pods.remove(RUNNER);
    world.settle();
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::Failed));
    assert_eq!(condition(&status, "Failed").reason, "OX507");
    assert_eq!(
        condition(&status, "Failed").message,
        "the runner was lost 4 times"
    );
    assert!(world.clusters.is_empty());
}

#[test]
fn an_evicted_runner_is_lost_and_not_failed() {
    for reason in ["Evicted", "NodeLost", "Preempting"] {
        let mut world = World::running(sql(json!({"backoffLimit": 0})));
        world.set_runner(json!({"phase": "Failed", "reason": reason}));
        world.settle();
        let status = world.status();
        assert_eq!(status.job_status, Some(JobState::Running));
        assert_eq!((status.attempts, status.lost_runners), (Some(1), Some(1)));
        assert_eq!(world.count("RunnerEnded"), 1, "why it ended is said once");
        assert_eq!(world.count("RunnerLost"), 1);
    }
}

#[test]
fn a_failed_pod_that_somebody_removes_in_the_pause_is_not_lost() {
    let mut world = World::running(sql(json!({"backoffLimit": 1})));
    world.end_runner("Failed", 1, "");
    world.settle();
    world.pods.remove(RUNNER);
    world.settle();
    assert!(world.pods.is_empty(), "the pause counts all the same");
    world.now += 10;
    world.settle();
    let status = world.status();
    assert_eq!((status.attempts, status.lost_runners), (Some(2), None));
}

#[test]
fn attempts_of_a_driver_are_pods_of_their_own() {
    let spec = json!({
        "cluster": {"spec": {"worker": {}}}, "backoffLimit": 1,
        "job": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "main"}]}},
    });
    let mut world = World::running(spec);
    let policy = world.runner().spec.as_ref().unwrap().restart_policy.clone();
    assert_eq!(policy.as_deref(), Some("Never"));
    world.end_runner("Failed", 1, "");
    world.settle();
    world.now += 10;
    world.settle();
    world.end_runner("Failed", 1, "");
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    assert_eq!(world.runners_made, 2);
}

#[test]
fn a_cluster_is_kept_as_the_job_says() {
    for (policy, phase, is_kept) in [
        ("Never", "Failed", false),
        ("OnFailure", "Failed", true),
        ("OnFailure", "Succeeded", false),
        ("Always", "Succeeded", true),
    ] {
        let mut world = World::running(sql(json!({"keepCluster": policy})));
        world.end_runner(phase, i32::from(phase == "Failed"), "");
        world.settle();
        assert_eq!(!world.clusters.is_empty(), is_kept, "{policy} {phase}");
        let note = if is_kept {
            "keeping Dask cluster"
        } else {
            "deleting Dask cluster"
        };
        assert!(world.events.iter().any(|event| event.note.contains(note)));
        world.job().spec.keep_cluster = None;
        world.settle();
        assert!(
            world.clusters.is_empty(),
            "the field can be taken back later"
        );
    }
}

#[test]
fn a_crash_between_the_final_status_and_the_deletion_costs_nothing() {
    let mut world = World::running(sql(json!({})));
    world.end_runner("Succeeded", 0, "");
    let mut plan = world.plan();
    assert_eq!(plan.delete.len(), 1);
    plan.delete.clear();
    world.carry_out(NAME, plan);
    let plan = world.plan();
    assert!(plan.status.is_none() && plan.apply.is_empty() && plan.events.is_empty());
    assert_eq!(plan.delete.len(), 1);
    world.settle();
    assert!(world.clusters.is_empty());
    world.pods.clear();
    assert!(world.plan().is_empty(), "an ended job never starts again");
}
