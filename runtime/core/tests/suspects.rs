//! Workers that nobody hears of: what goes on, what waits, who is blamed, and what they bring back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{
    CLIENT, Cluster, cancelled, given_up, is_done, is_failed, needs, plan, ready, released, slots,
};
use oxidask_core::{
    CoreConfig, Effect, Event, Inventory, TaskReport,
    TaskState::{self, Assigned, Finished, Ready, Running},
    WorkerId, WorkerInfo, WorkerStanding,
};
use oxidask_diagnostic::Code;

const W1: WorkerId = WorkerId(1);
const W2: WorkerId = WorkerId(2);

fn rescheduled(effects: &[Effect]) -> usize {
    let is = |effect: &&Effect| matches!(effect, Effect::TaskRescheduled { .. });
    effects.iter().filter(is).count()
}

#[test]
fn a_suspect_gets_nothing_and_keeps_what_it_has_for_a_while() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().tasks(6).wants(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(cluster.place_tasks().len(), 4);
    let of_first: Vec<u32> = (0..4)
        .filter(|task| cluster.worker_of(*task) == W1)
        .collect();
    assert_eq!(of_first, [0, 2]);
    cluster.start(0);
    cluster.start(1);
    let effects = cluster.suspect(W1);
    assert_eq!(effects, [], "nothing is said to it");
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Suspect));
    assert_eq!(cluster.state(0), Running);
    assert_eq!(cluster.state(2), Assigned, "it may have begun since");
    assert_eq!(rescheduled(&cluster.pass(1_999_999)), 0);
    assert_eq!(cluster.state(2), Assigned);
    assert_eq!(rescheduled(&cluster.pass(1)), 2);
    assert_eq!((cluster.state(0), cluster.state(2)), (Ready, Ready));
    cluster.finish(1);
    cluster.finish(3);
    let tasks = cluster.place_tasks();
    assert!(!tasks.is_empty() && tasks.iter().all(|task| cluster.worker_of(*task) == W2));
    assert!(tasks.contains(&2), "{tasks:?}");
    let effects = cluster.suspect(W1);
    assert_eq!(effects, [], "twice is once");
}

#[test]
fn tasks_whose_inputs_only_suspects_hold_wait_all_others_go_on() {
    let graph = plan()
        .task("a")
        .task("b")
        .task("x")
        .reads(&[0])
        .task("y")
        .reads(&[1])
        .task("z")
        .reads(&[0, 0, 1])
        .wants(&[2, 3, 4]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.finish(1);
    let holder = cluster.worker_of(0);
    cluster.suspect(holder);
    assert!(cluster.core.is_stranded(cluster.at(0)));
    assert_eq!(cluster.core.holders(cluster.at(0)), [holder]);
    assert_eq!(cluster.place_tasks(), [3]);
    assert_eq!(cluster.state(2), TaskState::Waiting);
    assert_eq!(cluster.state(4), TaskState::Waiting);
    // It still answers its peers: a copy of the input lets its consumers go on.
    let other = cluster.worker_of(1);
    cluster.copied(other, &[0]);
    assert!(!cluster.core.is_stranded(cluster.at(0)));
    cluster.finish(3);
    assert_eq!(cluster.run(), [2, 4]);
    let effects = cluster.come_back(holder, &[0], &[], &[]);
    assert_eq!(released(&effects), [(holder.0, 0)], "needed by nobody now");
}

#[test]
fn a_suspect_that_returns_in_time_costs_nothing() {
    let graph = plan()
        .task("a")
        .priority(2)
        .task("long")
        .priority(1)
        .task("queued")
        .priority(1)
        .task("x")
        .reads(&[0])
        .wants(&[1, 2, 3]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.place();
    cluster.start(1);
    let before = cluster.assigned.clone();
    cluster.suspect(W1);
    assert_eq!(cluster.state(2), Assigned);
    assert_eq!(cluster.state(3), TaskState::Waiting);
    assert_eq!(given_up(&cluster.pass(9_000_000)), []);
    assert_eq!(cluster.state(2), Ready);
    assert_eq!(cluster.place_tasks(), []);
    let effects = cluster.come_back(W1, &[0], &[1], &[2]);
    assert_eq!(effects, []);
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Active));
    assert_eq!(cluster.state(1), Running);
    assert_eq!(cluster.state(2), Assigned, "the same attempt goes on");
    assert_eq!(cluster.state(3), Ready);
    cluster.finish(1);
    cluster.finish(2);
    assert_eq!(cluster.assigned, before);
    assert_eq!(cluster.run(), [3]);
    let summary = &cluster.core.graphs()[0];
    assert!(summary.is_done);
    for task in 0..4 {
        assert_eq!(cluster.core.explain(cluster.at(task)).unwrap().attempts, 1);
    }
}

#[test]
fn after_the_grace_period_only_what_ran_is_blamed() {
    let graph = plan().tasks(4).wants(&[0, 1, 2, 3]);
    let config = CoreConfig {
        crash_limit: 0,
        suspect_grace_micros: 2_000_000,
        ..CoreConfig::default()
    };
    let mut cluster = Cluster::with(config).workers(1, slots(2)).submit(graph);
    assert_eq!(cluster.place_tasks().len(), 4);
    cluster.start(0);
    cluster.suspect(W1);
    assert_eq!(given_up(&cluster.pass(1_999_999)), []);
    let effects = cluster.pass(1);
    assert_eq!(given_up(&effects), [1]);
    assert!(is_failed(&effects, 0, Code::TaskKilledWorkers, true));
    for task in 1..4 {
        assert_eq!(cluster.state(task), Ready);
    }
    assert_eq!(cluster.core.standing(W1), None);
    cluster.join(slots(2));
    assert_eq!(cluster.run(), [1, 2, 3]);
}

#[test]
fn what_a_lost_suspect_held_is_computed_again_once_and_told_again() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[0, 1]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    assert_eq!(cluster.run(), [0, 1]);
    cluster.suspect(W1);
    cluster.join(slots(1));
    assert_eq!(cluster.place_tasks(), []);
    cluster.pass(10_000_000);
    assert_eq!(cluster.place_tasks(), [0]);
    assert_eq!(ready(&cluster.finish(0)), [0]);
    assert_eq!(cluster.place_tasks(), [1]);
    let effects = cluster.finish(1);
    assert_eq!(ready(&effects), [1]);
    assert!(is_done(&effects));
}

#[test]
fn a_new_worker_takes_the_name_of_a_suspect_but_not_of_another() {
    let named = |name: &str| WorkerInfo {
        name: name.to_owned(),
        ..slots(1)
    };
    let mut cluster = Cluster::new().submit(plan().tasks(2).wants(&[0, 1]));
    cluster.join(named("ada"));
    cluster.place();
    cluster.start(0);
    let info = named("ada");
    let effects = cluster.react(Event::WorkerJoined { worker: W2, info });
    assert!(matches!(
        effects[..],
        [Effect::WorkerRefused { worker: W2, .. }]
    ));
    cluster.suspect(W1);
    let worker = WorkerId(3);
    let info = named("ada");
    let effects = cluster.react(Event::WorkerJoined { worker, info });
    assert_eq!(given_up(&effects), [1]);
    assert_eq!(rescheduled(&effects), 1, "only what ran");
    assert!(effects.contains(&Effect::WorkerAccepted { worker }));
    assert_eq!(cluster.run(), [0, 1]);
    assert_eq!(cluster.worker_of(0), worker);
    let effects = cluster.come_back(W1, &[], &[0], &[]);
    assert_eq!(effects, [], "nobody knows it any more");
}

#[test]
fn the_word_of_a_worker_that_returns_settles_every_difference() {
    let graph = plan().tasks(6).wants(&[0, 1, 2, 3, 4, 5]);
    let mut cluster = Cluster::new().workers(1, slots(3)).submit(graph);
    assert_eq!(cluster.place_tasks().len(), 6);
    cluster.finish(0);
    cluster.finish(1);
    cluster.start(2);
    cluster.start(3);
    cluster.suspect(W1);
    // Result 1 is gone, 2 is done, 3 was never heard of, 4 was begun, 5 is queued.
    let effects = cluster.come_back(W1, &[0, 2], &[4], &[5]);
    assert_eq!(ready(&effects), [2]);
    let states: Vec<TaskState> = (0..6).map(|task| cluster.state(task)).collect();
    assert_eq!(
        states,
        [Finished, Ready, Finished, Ready, Running, Assigned]
    );
    assert_eq!(rescheduled(&effects), 0, "nobody is blamed");
    assert_eq!(cancelled(&effects), []);
    assert_eq!(cluster.place_tasks(), [1, 3]);
}

#[test]
fn what_a_suspect_has_done_or_still_runs_counts_although_it_has_moved() {
    let graph = plan().tasks(4).wants(&[0, 1, 2, 3]);
    let mut cluster = Cluster::new().workers(1, slots(4)).submit(graph);
    cluster.place();
    let first = cluster.assigned.clone();
    cluster.suspect(W1);
    cluster.pass(2_000_000);
    cluster.join(slots(4));
    assert_eq!(cluster.place_tasks().len(), 4);
    cluster.start(0);
    cluster.start(1);
    let second = cluster.assigned.clone();
    // The first attempts: 0 and 2 are done by now, 1 and 3 run.
    cluster.assigned.clone_from(&first);
    let effects = cluster.come_back(W1, &[0, 2], &[1, 3], &[]);
    let mut stopped = cancelled(&effects);
    stopped.sort_unstable();
    assert_eq!(stopped, [(2, 0), (2, 1), (2, 2), (2, 3)]);
    assert_eq!(ready(&effects), [0, 2]);
    assert_eq!(cluster.core.attempt(cluster.at(1)), Some(first[&1]));
    cluster.assigned = second;
    for task in [0, 1] {
        let effects = cluster.finish(task);
        assert_eq!(
            released(&effects),
            [(2, task)],
            "the other one came too late"
        );
    }
    cluster.assigned = first;
    cluster.finish(1);
    assert!(is_done(&cluster.finish(3)));
}

#[test]
fn attempts_that_wait_and_have_moved_are_cancelled() {
    let graph = plan().tasks(4).wants(&[0, 1, 2, 3]);
    let mut cluster = Cluster::new().workers(1, slots(4)).submit(graph);
    cluster.place();
    let first = cluster.assigned.clone();
    cluster.suspect(W1);
    cluster.pass(2_000_000);
    cluster.join(slots(4));
    assert_eq!(cluster.place_tasks().len(), 4);
    let second = std::mem::replace(&mut cluster.assigned, first);
    let effects = cluster.come_back(W1, &[], &[], &[0, 1, 2, 3]);
    assert_eq!(cancelled(&effects), [(1, 0), (1, 1), (1, 2), (1, 3)]);
    cluster.assigned = second;
    for task in 0..4 {
        cluster.finish(task);
    }
    assert!(cluster.core.graphs()[0].is_done);
}

#[test]
fn what_runs_on_a_suspect_runs_elsewhere_after_a_while_and_nobody_is_blamed_until_it_is_dead() {
    let graph = plan().tasks(1).wants(&[0]);
    let config = CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    };
    let mut cluster = Cluster::with(config).workers(2, slots(1)).submit(graph);
    cluster.place();
    let first = cluster.worker_of(0);
    cluster.start(0);
    cluster.suspect(first);
    cluster.pass(1_999_000);
    assert_eq!(cluster.state(0), Running);
    let effects = cluster.pass(1_000);
    assert!(
        rescheduled(&effects) == 1 && effects.len() == 1,
        "{effects:?}"
    );
    assert_eq!(cluster.place_tasks(), [0]);
    let (second, attempt) = cluster.assigned[&0];
    assert_ne!(second, first);
    assert_eq!(attempt.number, 2);
    let effects = cluster.die(first);
    assert_eq!(cancelled(&effects), [(second.0, 0)]);
    assert!(is_failed(&effects, 0, Code::TaskKilledWorkers, true));
}

#[test]
fn a_suspect_that_returns_still_running_is_preferred_to_what_was_begun_since() {
    let graph = plan().tasks(1).wants(&[0]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    let (first, attempt) = cluster.assigned[&0];
    cluster.start(0);
    cluster.suspect(first);
    cluster.pass(2_000_000);
    cluster.place();
    cluster.start(0);
    let (second, later) = cluster.assigned[&0];
    cluster.assigned.insert(0, (first, attempt));
    let effects = cluster.come_back(first, &[], &[0], &[]);
    assert_eq!(cancelled(&effects), [(second.0, 0)]);
    assert_eq!(cluster.core.attempt(cluster.at(0)), Some((first, attempt)));
    // Once more: what is handed out next is newer than both.
    cluster.suspect(first);
    cluster.pass(2_000_000);
    cluster.place();
    let (_, last) = cluster.assigned[&0];
    assert!(last > later && last > attempt, "{last:?}");
    assert!(is_done(&cluster.finish(0)));
    let effects = cluster.come_back(first, &[0], &[], &[]);
    assert_eq!(effects, [], "a copy is as good as any");
}

#[test]
fn a_worker_that_has_just_joined_brings_results_along() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().submit(graph);
    let worker = cluster.join(slots(1));
    let inventory = Box::new(Inventory {
        held: vec![(cluster.at(0), 77), (cluster.at(9), 1)],
        ..Inventory::default()
    });
    let effects = cluster.react(Event::WorkerReturned { worker, inventory });
    assert_eq!(released(&effects), [(1, 9)], "of no task of the graph");
    assert_eq!(cluster.core.bytes(cluster.at(0)), 77);
    assert_eq!(cluster.place_tasks(), [1]);
    assert!(is_done(&cluster.finish(1)));
}

#[test]
fn a_failed_fetch_from_a_suspect_waits_for_it_unless_there_is_another_copy() {
    let graph = plan()
        .task("a")
        .task("x")
        .reads(&[0])
        .task("y")
        .reads(&[0])
        .wants(&[1, 2]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.place();
    let holder = cluster.worker_of(0);
    let reader = (1..3)
        .find(|task| cluster.worker_of(*task) != holder)
        .unwrap();
    let lost = vec![(cluster.at(0), holder)];
    cluster.suspect(holder);
    cluster.report(reader, TaskReport::InputsLost { lost });
    assert_eq!(cluster.state(0), Finished, "not computed again");
    assert_eq!(cluster.state(reader), TaskState::Waiting);
    assert_eq!(cluster.place_tasks(), []);
    cluster.come_back(holder, &[0], &[], &[]);
    assert_eq!(cluster.run().len(), 2);
}

#[test]
fn reports_of_a_suspect_count_as_long_as_it_is_one() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    let holder = cluster.worker_of(0);
    cluster.start(0);
    cluster.suspect(holder);
    cluster.finish(0);
    assert!(cluster.core.is_stranded(cluster.at(0)));
    assert_eq!(cluster.place_tasks(), []);
    cluster.come_back(holder, &[0], &[], &[]);
    assert_eq!(cluster.run(), [1]);
}

#[test]
fn closing_a_graph_with_suspects_leaves_nothing() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.suspect(W1);
    let graph = cluster.graph;
    let client = CLIENT;
    cluster.react(Event::GraphClosed { client, graph });
    let effects = cluster.come_back(W1, &[0], &[], &[]);
    assert_eq!(released(&effects), [(1, 0)]);
    assert_eq!(cluster.core.cluster().held_bytes, 0);
}

#[test]
fn a_paused_worker_gives_back_what_waits_and_gets_nothing_until_it_goes_on() {
    let gpu = needs(1, &[("gpu", 1)], &[]);
    let graph = plan().tasks(3).task("g").needs(gpu).wants(&[0, 1, 2, 3]);
    let mut cluster = Cluster::new().submit(graph);
    cluster.join(WorkerInfo {
        resources: vec![("gpu".to_owned(), 1)],
        ..slots(1)
    });
    cluster.place();
    cluster.start(0);
    let is_paused = true;
    let worker = W1;
    let effects = cluster.react(Event::WorkerPaused { worker, is_paused });
    assert_eq!(cluster::retracted(&effects), [(1, 1)]);
    cluster.report(1, TaskReport::Retracted);
    assert_eq!(cluster.place_tasks(), []);
    let summary = cluster.core.cluster();
    assert_eq!(
        (summary.parked, summary.parked_reason),
        (0, None),
        "it will go on"
    );
    cluster.join(slots(1));
    assert_eq!(cluster.place_tasks(), [1, 2]);
    let is_paused = false;
    cluster.react(Event::WorkerPaused { worker, is_paused });
    cluster.finish(0);
    assert_eq!(cluster.place_tasks(), [3]);
    assert_eq!(cluster.worker_of(3), W1);
}
