//! Suspended jobs have no pods, and start afresh.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use serde_json::json;

fn suspend(world: &mut World, is_suspended: bool) {
    world.job().spec.suspend = Some(is_suspended);
}

#[test]
fn a_job_that_is_created_suspended_makes_nothing_until_it_is_resumed() {
    let mut world = World::new(sql(json!({"suspend": true, "activeDeadlineSeconds": 50})));
    world.settle();
    assert!(world.pods.is_empty() && world.clusters.is_empty() && world.config_maps.is_empty());
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::JobCreated));
    assert!(is_true(&status, "Suspended") && !is_true(&status, "Reconciling"));
    world.now += 1000;
    suspend(&mut world, false);
    world.settle();
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::Running));
    assert!(!is_true(&status, "Suspended"));
    assert_eq!(status.attempts, Some(1));
    assert_eq!((world.count("Suspended"), world.count("Resumed")), (1, 1));
}

#[test]
fn a_running_job_that_is_suspended_loses_its_pods_and_no_attempt() {
    let mut world = World::running(sql(json!({"backoffLimit": 0})));
    let cluster = world.clusters[NAME].metadata.uid.clone();
    for _ in 0..5 {
        suspend(&mut world, true);
        world.settle();
        assert!(world.pods.is_empty() && world.clusters.is_empty());
        assert!(is_true(&world.status(), "Suspended"));
        assert_eq!(
            world.state(),
            Some(JobState::Running),
            "states never go back"
        );
        suspend(&mut world, false);
        world.settle();
        let status = world.status();
        assert_eq!((status.attempts, status.lost_runners), (Some(1), None));
        assert!(!is_true(&status, "Suspended"));
        assert_ne!(world.clusters[NAME].metadata.uid, cluster);
    }
    assert_eq!(world.count("RunnerLost") + world.count("ClusterDeleted"), 0);
    world.end_runner("Succeeded", 0, "");
    world.settle();
    assert_eq!(world.state(), Some(JobState::Successful));
}

#[test]
fn the_status_says_suspended_before_anything_is_deleted() {
    let mut world = World::running(sql(json!({})));
    suspend(&mut world, true);
    let plan = world.plan();
    assert!(is_true(plan.status.as_ref().unwrap(), "Suspended"));
    assert_eq!(plan.delete.len(), 2);
    let again = world.plan();
    assert_eq!(plan.delete, again.delete);
}

#[test]
fn a_pod_of_the_time_before_a_suspension_is_not_taken_over() {
    let mut world = World::running(sql(json!({})));
    suspend(&mut world, true);
    let mut plan = world.plan();
    plan.delete.clear();
    world.carry_out(NAME, plan);
    suspend(&mut world, false);
    let old = world.runner().metadata.uid.clone();
    world.settle();
    assert_ne!(world.runner().metadata.uid, old);
    assert_eq!(world.status().lost_runners, None);
}

#[test]
fn suspended_time_is_not_active_time() {
    let mut world = World::running(sql(json!({"activeDeadlineSeconds": 100})));
    world.now += 60;
    suspend(&mut world, true);
    world.settle();
    assert_eq!(world.status().active_seconds, Some(60));
    world.now += 100_000;
    world.settle();
    suspend(&mut world, false);
    world.settle();
    assert_eq!(world.plan().wake_after.unwrap().as_secs(), 40);
    let deadline = world
        .runner()
        .spec
        .as_ref()
        .unwrap()
        .active_deadline_seconds;
    assert_eq!(deadline, Some(40));
    world.now += 71;
    world.settle();
    assert_eq!(world.state(), Some(JobState::Failed));
}

#[test]
fn work_that_ended_in_the_moment_of_the_suspension_has_ended() {
    let mut world = World::running(sql(json!({})));
    world.end_runner("Succeeded", 0, "");
    suspend(&mut world, true);
    world.settle();
    assert_eq!(world.state(), Some(JobState::Successful));
    assert!(!is_true(&world.status(), "Suspended"));
}

#[test]
fn a_pause_between_attempts_survives_a_suspension() {
    let mut world = World::running(sql(json!({"backoffLimit": 2})));
    world.end_runner("Failed", 1, "");
    world.settle();
    suspend(&mut world, true);
    world.settle();
    assert!(world.pods.is_empty());
    world.now += 100;
    suspend(&mut world, false);
    world.settle();
    let status = world.status();
    assert_eq!((status.attempts, status.lost_runners), (Some(2), None));
    assert_eq!(status.next_attempt_time, None);
}
