//! The deadline of a job, and how long it is kept.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use serde_json::json;

#[test]
fn a_job_that_takes_too_long_fails_and_everything_is_removed() {
    let mut world = World::running(sql(json!({"activeDeadlineSeconds": 100})));
    let deadline = world
        .runner()
        .spec
        .as_ref()
        .unwrap()
        .active_deadline_seconds;
    assert_eq!(
        deadline,
        Some(100),
        "kubelet ends the runner and keeps its log"
    );
    assert_eq!(world.plan().wake_after.unwrap().as_secs(), 100);
    world.now += 100;
    world.settle();
    assert_eq!(
        world.state(),
        Some(JobState::Running),
        "kubelet comes first"
    );
    assert!(world.is_last_wake_set);
    world.set_runner(json!({"phase": "Failed", "reason": "DeadlineExceeded"}));
    world.settle();
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::Failed));
    let failed = condition(&status, "Failed");
    assert_eq!(failed.reason, "DeadlineExceeded");
    assert_eq!(
        failed.message,
        "the job took longer than its deadline of 100 seconds"
    );
    assert!(world.pods.contains_key(RUNNER) && world.clusters.is_empty());
}

#[test]
fn a_runner_that_kubelet_does_not_end_is_deleted() {
    let mut world = World::running(sql(json!({"activeDeadlineSeconds": 100})));
    world.now += 131;
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    assert!(world.pods.is_empty() && world.clusters.is_empty());
    let position = |line: &str| world.position(line);
    assert!(position("status Failed") < position("delete Pod flights-runner"));
}

#[test]
fn the_deadline_spans_all_attempts() {
    let fields = json!({"activeDeadlineSeconds": 60, "backoffLimit": 100});
    let mut world = World::running(sql(fields));
    world.now += 25;
    world.end_runner("Failed", 1, "");
    world.settle();
    world.now += 10;
    world.settle();
    let deadline = world
        .runner()
        .spec
        .as_ref()
        .unwrap()
        .active_deadline_seconds;
    assert_eq!(deadline, Some(25), "what is left");
    world.end_runner("Failed", 1, "");
    world.settle();
    world.now += 25;
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    assert_eq!(
        condition(&world.status(), "Failed").reason,
        "DeadlineExceeded"
    );
}

#[test]
fn a_deadline_that_kubelet_saw_first_is_not_tried_again() {
    let fields = json!({"activeDeadlineSeconds": 60, "backoffLimit": 3});
    let mut world = World::running(sql(fields));
    world.now += 59;
    world.set_runner(json!({"phase": "Failed", "reason": "DeadlineExceeded"}));
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
    assert_eq!(world.runners_made, 1);
}

#[test]
fn a_clock_that_goes_back_does_not_count() {
    let mut world = World::running(sql(json!({"activeDeadlineSeconds": 100})));
    world.now -= 10_000;
    world.settle();
    assert_eq!(world.state(), Some(JobState::Running));
    assert_eq!(world.plan().wake_after.unwrap().as_secs(), 100);
}

#[test]
fn an_ended_job_is_deleted_when_its_time_is_over() {
    let mut world = World::running(sql(json!({"ttlSecondsAfterFinished": 300})));
    world.end_runner("Succeeded", 0, "");
    world.settle();
    assert_eq!(world.plan().wake_after.unwrap().as_secs(), 300);
    world.now += 299;
    assert!(world.plan().is_empty());
    world.now += 1;
    world.settle();
    assert!(world.jobs.is_empty() && world.pods.is_empty() && world.config_maps.is_empty());
    assert!(world.position("status Successful") < world.position("delete DaskJob flights"));
}

#[test]
fn a_job_can_be_deleted_at_once_after_its_end() {
    let mut world = World::running(sql(json!({"ttlSecondsAfterFinished": 0})));
    world.end_runner("Failed", 1, "");
    world.round();
    assert_eq!(
        world.state(),
        Some(JobState::Failed),
        "the end is written first"
    );
    assert!(world.is_last_wake_set);
    world.settle();
    assert!(world.jobs.is_empty());
}
