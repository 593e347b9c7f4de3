//! Workers that are asked to go: what they run ends or moves, what only they hold is copied, and
//! nothing is computed twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use std::collections::BTreeSet;

use cluster::{
    CLIENT, Cluster, cancelled, copies, emptied, is_done, plan, refused, released, retracted, slots,
};
use oxidask_core::{
    Effect, Event, TaskReport, TaskState, WorkerId, WorkerInfo, WorkerLoss, WorkerStanding,
};

const W1: WorkerId = WorkerId(1);
const W2: WorkerId = WorkerId(2);
const HOUR: u64 = 3_600_000_000;

fn memory(memory_bytes: u64) -> WorkerInfo {
    WorkerInfo {
        memory_bytes,
        ..slots(1)
    }
}

/// One worker that holds this many wanted results of 100 bytes.
fn holder_of(count: u32) -> Cluster {
    let wanted: Vec<u32> = (0..count).collect();
    let graph = plan().tasks(count).wants(&wanted);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    loop {
        let tasks = cluster.place_tasks();
        if tasks.is_empty() {
            return cluster;
        }
        for task in tasks {
            cluster.finish_with(task, 100, 1_000);
        }
    }
}

/// Carries copies out until nothing is on its way; returns all that was said.
fn drain(cluster: &mut Cluster) -> Vec<Effect> {
    let mut all = Vec::new();
    loop {
        let effects = cluster.place();
        let ordered = copies(&effects);
        all.extend(effects);
        if ordered.is_empty() {
            return all;
        }
        for (to, task, _) in ordered {
            cluster.copied(WorkerId(to), &[task]);
        }
    }
}

fn leave(cluster: &mut Cluster, worker: WorkerId) -> Vec<Effect> {
    let loss = WorkerLoss::Retired;
    cluster.react(Event::WorkerLost { worker, loss })
}

/// How often the tasks were handed out, at most.
fn attempts(cluster: &Cluster, tasks: std::ops::Range<u32>) -> u32 {
    let attempts = tasks.map(|task| cluster.core.explain(cluster.at(task)).unwrap().attempts);
    attempts.max().unwrap()
}

#[test]
fn what_only_a_retiring_worker_holds_is_copied_and_nothing_is_computed_again() {
    let mut cluster = holder_of(100);
    cluster.join(slots(1));
    assert_eq!(cluster.retire(&[W1], HOUR), []);
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Retiring));
    let effects = drain(&mut cluster);
    let copied: BTreeSet<_> = copies(&effects).into_iter().collect();
    assert_eq!(copied, (0..100).map(|task| (2, task, 1)).collect());
    assert_eq!(emptied(&effects), [1]);
    assert_eq!(leave(&mut cluster, W1), []);
    assert_eq!(cluster.place_tasks(), []);
    assert_eq!(attempts(&cluster, 0..100), 1);
    assert_eq!(cluster.core.cluster().held_bytes, 10_000);
    assert!(cluster.core.graphs()[0].is_done);
}

#[test]
fn copies_on_their_way_are_bounded_and_go_where_there_is_room() {
    let mut cluster = holder_of(40);
    cluster.join(memory(1_000));
    cluster.join(memory(10_000));
    cluster.join(WorkerInfo {
        group: "other".to_owned(),
        ..memory(1 << 40)
    });
    cluster.retire(&[W1], HOUR);
    let ordered = copies(&cluster.place());
    let to = |worker: u32| ordered.iter().filter(|(to, ..)| *to == worker).count();
    // The group's own workers first, at most eight each.
    assert_eq!((to(2), to(3), to(4)), (8, 8, 8));
    assert_eq!((ordered[0].0, copies(&cluster.place())), (3, vec![]));
    let (_, task, _) = *ordered.iter().find(|(to, ..)| *to == 2).unwrap();
    cluster.copied(W2, &[task]);
    assert_eq!(
        copies(&cluster.place()).len(),
        1,
        "each arrival brings the next"
    );
}

#[test]
fn queued_tasks_go_elsewhere_and_running_ones_finish() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(3).wants(&[0, 1, 2]));
    cluster.place();
    cluster.start(0);
    cluster.join(slots(1));
    let effects = cluster.retire(&[W1], HOUR);
    assert_eq!(retracted(&effects), [(1, 1)]);
    cluster.report(1, TaskReport::Retracted);
    let tasks = cluster.place_tasks();
    assert_eq!(tasks, [1, 2]);
    assert!(tasks.iter().all(|task| cluster.worker_of(*task) == W2));
    assert_eq!(emptied(&cluster.place()), []);
    cluster.finish(0);
    assert_eq!(copies(&cluster.place()), [(2, 0, 1)]);
    cluster.copied(W2, &[0]);
    assert_eq!(emptied(&cluster.place()), [1]);
    assert_eq!(emptied(&cluster.place()), [], "said once");
}

#[test]
fn at_the_deadline_running_tasks_move_without_blame() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(2).wants(&[0, 1]));
    cluster.place();
    cluster.start(0);
    cluster.join(slots(2));
    cluster.retire(&[W1], 100_000);
    // The answer to the retraction of 1 does not come.
    assert_eq!(cancelled(&cluster.place()), []);
    cluster.pass(90_000);
    let effects = cluster.place();
    let mut stopped = cancelled(&effects);
    stopped.sort_unstable();
    assert_eq!(stopped, [(1, 0), (1, 1)]);
    assert_eq!(emptied(&effects), [1]);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::TaskRescheduled { .. }))
    );
    assert_eq!((cluster.worker_of(0), cluster.worker_of(1)), (W2, W2));
    assert_eq!(cluster.core.explain(cluster.at(0)).unwrap().crashes, 0);
    leave(&mut cluster, W1);
    cluster.finish(0);
    assert!(is_done(&cluster.finish(1)));
}

#[test]
fn retiring_is_refused_with_a_reason_when_nobody_can_take_the_data() {
    let mut cluster = holder_of(3);
    let effects = cluster.retire(&[W1, WorkerId(9)], HOUR);
    let reasons = refused(&effects);
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].0 == 9 && reasons[0].1.contains("not connected"));
    assert!(
        reasons[1].0 == 1 && reasons[1].1.contains("300 bytes"),
        "{reasons:?}"
    );
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Active));

    cluster.join(memory(250));
    let reasons = refused(&cluster.retire(&[W1], HOUR));
    assert!(reasons[0].1.contains("room for 250"), "{reasons:?}");

    // Enough in all, but no one has room for the last one.
    cluster.join(memory(50));
    assert_eq!(refused(&cluster.retire(&[W1], HOUR)), []);
    let reasons = refused(&drain(&mut cluster));
    assert!(
        reasons[0].1.contains("no other worker has room"),
        "{reasons:?}"
    );
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Active));
    assert_eq!(attempts(&cluster, 0..3), 1);
}

#[test]
fn an_idle_worker_without_data_may_go_even_if_it_is_the_last() {
    let mut cluster = Cluster::new().workers(1, slots(1));
    cluster.retire(&[W1], HOUR);
    assert_eq!(emptied(&cluster.place()), [1]);
    leave(&mut cluster, W1);
    assert_eq!(cluster.core.cluster().workers, 0);
}

#[test]
fn several_at_once_do_not_take_each_others_data() {
    let wanted: Vec<u32> = (0..40).collect();
    let graph = plan().tasks(40).wants(&wanted);
    let mut cluster = Cluster::new().workers(4, slots(1)).submit(graph);
    cluster.run();
    cluster.join(slots(1));
    cluster.join(slots(1));
    let going: Vec<WorkerId> = (1..=4).map(WorkerId).collect();
    cluster.retire(&going, HOUR);
    let effects = drain(&mut cluster);
    assert!(copies(&effects).iter().all(|(to, ..)| *to > 4));
    assert_eq!(copies(&effects).len(), 40);
    assert_eq!(emptied(&effects), [1, 2, 3, 4]);
    for worker in going {
        leave(&mut cluster, worker);
    }
    assert_eq!(cluster.place_tasks(), []);
    assert_eq!(attempts(&cluster, 0..40), 1);
}

#[test]
fn a_result_that_two_retiring_workers_hold_is_copied_once() {
    let mut cluster = holder_of(1);
    cluster.join(slots(1));
    cluster.copied(W2, &[0]);
    cluster.join(memory(150));
    assert_eq!(cluster.retire(&[W1, W2], HOUR), []);
    let effects = drain(&mut cluster);
    assert_eq!(copies(&effects).len(), 1);
    assert_eq!(emptied(&effects).len(), 2);
}

#[test]
fn all_workers_cannot_go_while_they_hold_data() {
    let mut cluster = holder_of(4);
    cluster.join(slots(1));
    let effects = cluster.retire(&[W1, W2], HOUR);
    assert_eq!(refused(&effects).len(), 1);
    let effects = drain(&mut cluster);
    assert_eq!((copies(&effects).len(), emptied(&effects)), (0, vec![2]));
}

#[test]
fn a_retirement_can_be_called_off() {
    let mut cluster = holder_of(20);
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    let ordered = copies(&cluster.place());
    assert_eq!(ordered.len(), 8);
    cluster.react(Event::RetirementCancelled { workers: vec![W1] });
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Active));
    for (_, task, _) in ordered {
        cluster.copied(W2, &[task]);
    }
    assert_eq!(cluster.place(), []);
    assert_eq!(cluster.core.holders(cluster.at(0)).len(), 1);
}

#[test]
fn a_worker_that_cannot_fetch_is_passed_over_and_it_is_given_up_after_some_tries() {
    let mut cluster = holder_of(1);
    cluster.join(memory(2_000));
    cluster.join(memory(1_000));
    cluster.retire(&[W1], HOUR);
    let mut tried = Vec::new();
    let reason = loop {
        let effects = cluster.place();
        if let Some((1, reason)) = refused(&effects).pop() {
            break reason;
        }
        let (worker, ..) = copies(&effects)[0];
        tried.push(worker);
        let (worker, tasks) = (WorkerId(worker), vec![cluster.at(0)]);
        cluster.react(Event::CopiesFailed { worker, tasks });
    };
    assert_eq!(tried, [2, 3, 2, 2]);
    assert!(reason.contains("failed to fetch"), "{reason}");
}

#[test]
fn deaths_while_draining_are_deaths_like_any() {
    // Who fetches dies: somebody else does.
    let mut cluster = holder_of(5);
    cluster.join(memory(1 << 40));
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    assert!(copies(&cluster.place()).iter().all(|(to, ..)| *to == 2));
    cluster.die(W2);
    let effects = drain(&mut cluster);
    assert_eq!((copies(&effects).len(), emptied(&effects)), (5, vec![1]));
    assert_eq!(attempts(&cluster, 0..5), 1);
    // Who retires dies: what was not copied yet is computed again.
    let mut cluster = holder_of(5);
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    cluster.place();
    cluster.copied(W2, &[0, 1]);
    cluster.die(W1);
    assert_eq!(cluster.run(), [2, 3, 4]);
}

#[test]
fn a_retiring_worker_that_is_lost_of_sight_goes_on_when_it_returns() {
    let mut cluster = holder_of(3);
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    cluster.suspect(W1);
    assert_eq!(cluster.place(), []);
    cluster.come_back(W1, &[0, 1, 2], &[], &[]);
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Retiring));
    let effects = drain(&mut cluster);
    assert_eq!((copies(&effects).len(), emptied(&effects)), (3, vec![1]));
    // A fetcher that is lost of sight is replaced, and what it has when it returns counts.
    let mut cluster = holder_of(1);
    cluster.join(memory(1 << 40));
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    assert_eq!(copies(&cluster.place()), [(2, 0, 1)]);
    cluster.suspect(W2);
    assert_eq!(copies(&cluster.place()), [(3, 0, 1)]);
    cluster.come_back(W2, &[0], &[], &[]);
    cluster.copied(WorkerId(3), &[0]);
    assert_eq!(cluster.core.holders(cluster.at(0)).len(), 3);
    assert_eq!(emptied(&cluster.place()), [1]);
}

#[test]
fn what_nobody_wants_any_more_is_not_waited_for() {
    let mut cluster = holder_of(2);
    cluster.join(slots(1));
    cluster.retire(&[W1], HOUR);
    assert_eq!(copies(&cluster.place()).len(), 2);
    let tasks = vec![cluster.at(0), cluster.at(1)];
    let client = CLIENT;
    let effects = cluster.react(Event::ResultsReleased { client, tasks });
    assert_eq!(released(&effects).len(), 2);
    assert_eq!(emptied(&cluster.place()), [1]);
    let effects = cluster.copied(W2, &[0, 1]);
    assert_eq!(
        released(&effects).len(),
        2,
        "copies that come late are dropped"
    );
    assert_eq!(cluster.state(0), TaskState::Released);
}
