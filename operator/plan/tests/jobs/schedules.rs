//! Jobs that run again and again.

use crate::world::*;
use oxidask_operator_api::kubernetes::JobState;
use oxidask_operator_plan::{DeletionReason, SCHEDULE, SCHEDULED_TIME, run_name};
use serde_json::{Value, json};

const HOUR: i64 = 3600;

/// Every hour, from 01:47 on.
fn hourly(fields: Value) -> World {
    let mut spec = sql(json!({"schedule": "0 * * * *"}));
    let object = spec.as_object_mut().unwrap();
    object.extend(fields.as_object().unwrap().clone());
    World::new(spec)
}

fn runs(world: &World) -> Vec<String> {
    let names = world.jobs.keys().filter(|name| *name != NAME);
    names.cloned().collect()
}

/// The run's runner ends, and the run sees it.
fn end(world: &mut World, run: &str, phase: &str) {
    let pod = world.pods.get_mut(&format!("{run}-runner")).unwrap();
    pod.status = Some(read(json!({"phase": phase})));
    world.settle();
}

fn next_hour(world: &mut World) -> String {
    world.now = (world.now / HOUR + 1) * HOUR;
    world.settle();
    run_name(NAME, at(world.now))
}

#[test]
fn each_time_has_a_run_of_its_own() {
    let labels = json!({"team": "a", "kueue.x-k8s.io/queue-name": "q"});
    let mut world = hourly(json!({"backoffLimit": 2, "timeZone": "Europe/Berlin"}));
    world.job().metadata.labels = read(labels);
    world.settle();
    let status = world.status();
    assert_eq!(status.job_status, Some(JobState::JobCreated));
    assert_eq!(status.cluster_name, None);
    let message = &condition(&status, "Reconciling").message;
    assert_eq!(message, "the next run is due at 2001-09-09T02:00:00Z");
    let seconds = world.plan().wake_after.unwrap().as_secs();
    assert_eq!(seconds, 600, "the clock may jump");
    assert!(runs(&world).is_empty() && world.pods.is_empty());

    let name = next_hour(&mut world);
    assert_eq!(name, "flights-16666680");
    assert_eq!(runs(&world), std::slice::from_ref(&name));
    let run = &world.jobs[&name];
    assert_eq!(run.spec.schedule, None);
    assert_eq!(run.spec.backoff_limit, Some(2));
    let labels = run.metadata.labels.as_ref().unwrap();
    assert_eq!(labels[SCHEDULE], NAME);
    assert_eq!(
        (
            labels["team"].as_str(),
            labels["kueue.x-k8s.io/queue-name"].as_str()
        ),
        ("a", "q")
    );
    let annotations = run.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[SCHEDULED_TIME], "2001-09-09T02:00:00Z");
    assert_eq!(
        run.status.as_ref().unwrap().job_status,
        Some(JobState::Running)
    );
    let status = world.status();
    assert_eq!(status.last_schedule_time.unwrap().0, at(world.now));
    assert_eq!(status.active, std::slice::from_ref(&name));

    end(&mut world, &name, "Succeeded");
    let status = world.status();
    assert!(status.active.is_empty() && status.last_successful_time.is_some());
    assert_eq!(world.count("RunStarted"), 1);
    assert!(world.plan().is_empty());
}

#[test]
fn after_a_pause_of_the_operator_only_the_newest_run_starts() {
    let mut world = hourly(json!({}));
    world.settle();
    world.now += 50 * HOUR;
    world.settle();
    assert_eq!(runs(&world).len(), 1);
    assert_eq!(runs(&world)[0], run_name(NAME, at(world.now / HOUR * HOUR)));
}

#[test]
fn a_clock_that_goes_back_starts_nothing_twice() {
    let mut world = hourly(json!({}));
    next_hour(&mut world);
    next_hour(&mut world);
    assert_eq!(runs(&world).len(), 2);
    world.now -= 2 * HOUR;
    for _ in 0..12 {
        world.now += 600;
        world.settle();
    }
    assert_eq!(runs(&world).len(), 2);
    next_hour(&mut world);
    assert_eq!(runs(&world).len(), 3);
}

#[test]
fn a_run_that_cannot_be_made_is_not_forgotten() {
    let mut world = hourly(json!({}));
    world.settle();
    world.now = (world.now / HOUR + 1) * HOUR;
    let mut plan = world.plan();
    assert_eq!(plan.apply.len(), 1);
    plan.apply.clear();
    world.carry_out(NAME, plan);
    world.refusals = vec![oxidask_operator_plan::Refusal {
        object: "DaskJob x".to_owned(),
        message: "exceeded quota".to_owned(),
    }];
    let plan = world.plan();
    assert_eq!(plan.apply.len(), 1, "it is tried again");
    let message = condition(&plan.status.unwrap(), "Reconciling")
        .message
        .clone();
    assert!(
        message.starts_with("DaskJob x was refused: exceeded quota"),
        "{message}"
    );
    world.settle();
    assert_eq!(runs(&world).len(), 1);
}

#[test]
fn a_run_may_wait_for_the_one_before() {
    let mut world = hourly(json!({"concurrencyPolicy": "Forbid"}));
    let first = next_hour(&mut world);
    let second = next_hour(&mut world);
    assert_eq!(runs(&world), std::slice::from_ref(&first));
    let message = condition(&world.status(), "Reconciling").message.clone();
    assert!(message.contains("waits for an earlier one"), "{message}");
    world.now += 60;
    end(&mut world, &first, "Succeeded");
    assert_eq!(runs(&world), [first, second]);
}

#[test]
fn a_run_that_has_waited_too_long_is_given_up() {
    let fields = json!({"concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 120});
    let mut world = hourly(fields);
    let first = next_hour(&mut world);
    next_hour(&mut world);
    assert_eq!(world.plan().wake_after.unwrap().as_secs(), 121);
    world.now += 121;
    world.settle();
    assert_eq!(world.count("RunMissed"), 1);
    end(&mut world, &first, "Succeeded");
    assert_eq!(runs(&world), [first]);
    assert_eq!(world.count("RunMissed"), 1);
    let third = next_hour(&mut world);
    assert!(runs(&world).contains(&third));
}

#[test]
fn a_run_may_take_the_place_of_the_one_before() {
    let mut world = hourly(json!({"concurrencyPolicy": "Replace"}));
    let first = next_hour(&mut world);
    let second = next_hour(&mut world);
    assert_ne!(first, second);
    assert_eq!(runs(&world), [second]);
    assert_eq!(world.pods.len(), 1);
}

#[test]
fn runs_may_overlap() {
    let mut world = hourly(json!({}));
    let names = [next_hour(&mut world), next_hour(&mut world)];
    assert_eq!(runs(&world), names);
    assert_eq!(world.status().active, names);
}

#[test]
fn only_so_many_ended_runs_are_kept() {
    let mut world = hourly(json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 0}));
    let mut names = Vec::new();
    for _ in 0..4 {
        let name = next_hour(&mut world);
        end(&mut world, &name, "Succeeded");
        names.push(name);
    }
    assert_eq!(runs(&world), names[2..]);
    let failed = next_hour(&mut world);
    let pod = world.pods.get_mut(&format!("{failed}-runner")).unwrap();
    pod.status = Some(read(json!({"phase": "Failed"})));
    world.round();
    world.round();
    let plan = world.plan();
    assert!(
        plan.delete
            .iter()
            .all(|d| d.reason == DeletionReason::HistoryLimit)
    );
    world.settle();
    assert_eq!(runs(&world), names[2..]);
}

#[test]
fn a_suspended_schedule_skips_its_times_and_leaves_its_runs() {
    let mut world = hourly(json!({}));
    let first = next_hour(&mut world);
    world.job().spec.suspend = Some(true);
    next_hour(&mut world);
    next_hour(&mut world);
    assert_eq!(runs(&world), std::slice::from_ref(&first));
    assert!(world.pods.contains_key(&format!("{first}-runner")));
    assert!(is_true(&world.status(), "Suspended"));
    assert!(world.plan().wake_after.is_none());
    world.now += 60;
    world.job().spec.suspend = Some(false);
    world.settle();
    assert_eq!(
        runs(&world),
        std::slice::from_ref(&first),
        "what was skipped stays skipped"
    );
    let next = next_hour(&mut world);
    assert_eq!(runs(&world), [first, next]);
}

#[test]
fn runs_of_others_are_left_alone() {
    let mut world = hourly(json!({"concurrencyPolicy": "Replace"}));
    let first = next_hour(&mut world);
    let other = run_name(NAME, at(world.now + HOUR));
    let run = world.jobs[&first].clone();
    let mut foreign = run;
    foreign.metadata.name = Some("flights-abc".to_owned());
    world.jobs.insert("flights-abc".to_owned(), foreign);
    let second = next_hour(&mut world);
    assert_eq!(second, other);
    assert!(
        world.jobs.contains_key("flights-abc"),
        "its name is no time"
    );
}

#[test]
fn schedules_that_cannot_be_followed_stall() {
    for (fields, code, wanted) in [
        (json!({"schedule": "61 * * * *"}), "OX527", "is no minute"),
        (
            json!({"schedule": "0 0 30 2 *"}),
            "OX527",
            "a day that never comes",
        ),
        (
            json!({"timeZone": "Mars/Olympus"}),
            "OX527",
            "is no time zone",
        ),
        (
            json!({"sql": {"file": "a.sql"}}),
            "OX106",
            "a file beside the manifest",
        ),
    ] {
        let mut world = hourly(fields);
        world.settle();
        let status = world.status();
        let stalled = condition(&status, "Stalled");
        assert_eq!(
            (stalled.status.as_str(), stalled.reason.as_str()),
            ("True", code)
        );
        assert!(stalled.message.contains(wanted), "{}", stalled.message);
        assert_eq!(world.count("Stalled"), 1);
    }
    let mut world = hourly(json!({}));
    let mut job = world.jobs.remove(NAME).unwrap();
    let long = "x".repeat(44);
    job.metadata.name = Some(long.clone());
    world.jobs.insert(long.clone(), job);
    let status = world.plan_of(&long).status.unwrap();
    assert_eq!(condition(&status, "Stalled").reason, "OX502");
}
