//! A core that goes on from what a journal has kept: what is believed, what runs at once, what waits
//! for former workers, what they bring back, and what a client hears.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use std::sync::Arc;

use cluster::{
    CLIENT, Cluster, Plan, cancelled, given_up, is_done, is_failed, plan, ready, released, slots,
};
use oxidask_core::{
    Attempt, AttemptState, ClientId, Core, CoreConfig, Effect, Event, GraphId, Inventory,
    RestoreError, Restored, TaskIndex, TaskRef, TaskReport,
    TaskState::{self, Assigned, Failed, Finished, Ready, Released, Running, Waiting},
    Timestamp, WorkerId, WorkerInfo, WorkerStanding,
};
use oxidask_diagnostic::{Code, Diagnostic};

const W1: WorkerId = WorkerId(1);
const W2: WorkerId = WorkerId(2);
const G: GraphId = GraphId(1);
const LATER: GraphId = GraphId(1_001);

fn task(index: u32) -> TaskRef {
    TaskRef {
        graph: G,
        task: TaskIndex(index),
    }
}

fn named(name: &str) -> WorkerInfo {
    WorkerInfo {
        name: name.to_owned(),
        ..slots(2)
    }
}

fn joined(worker: WorkerId) -> Restored {
    Restored::WorkerJoined {
        worker,
        info: named(&format!("w{worker}")),
    }
}

fn opened() -> Restored {
    Restored::GraphOpened {
        graph: G,
        name: "g".into(),
        is_open_ended: false,
    }
}

fn chunk(plan: Plan) -> Restored {
    Restored::Chunk {
        graph: G,
        number: 0,
        chunk: Box::new(plan.chunk),
    }
}

fn finished(worker: WorkerId, tasks: &[u32]) -> Restored {
    Restored::Finished {
        worker,
        results: tasks.iter().map(|index| (task(*index), 8, 1)).collect(),
    }
}

/// A core of epoch 2 that has begun with these items.
fn restored(items: &[Restored]) -> Cluster {
    // What is not about the reunion does not wait for it.
    restored_with(0, items)
}

fn restored_with(reunion_micros: u64, items: &[Restored]) -> Cluster {
    let mut cluster = Cluster::with(CoreConfig {
        epoch: 2,
        reunion_micros,
        ..CoreConfig::default()
    });
    for item in items {
        cluster.core.restore(item.clone()).unwrap();
    }
    let mut effects = Vec::new();
    cluster
        .core
        .begin_restored(cluster.now, LATER, &mut effects);
    assert_eq!(effects, []);
    cluster.core.invariants().unwrap();
    cluster
}

fn states(cluster: &Cluster, count: u32) -> Vec<TaskState> {
    (0..count).map(|task| cluster.state(task)).collect()
}

fn open(cluster: &mut Cluster) -> Vec<Effect> {
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "g".into(),
        is_open_ended: false,
    })
}

fn comes_back(cluster: &mut Cluster, worker: WorkerId, inventory: Inventory) -> Vec<Effect> {
    let inventory = Box::new(inventory);
    cluster.react(Event::WorkerReturned { worker, inventory })
}

fn held(tasks: &[u32]) -> Vec<(TaskRef, u64)> {
    tasks.iter().map(|index| (task(*index), 8)).collect()
}

fn before(number: u32) -> Attempt {
    Attempt { epoch: 1, number }
}

/// `0 → 1 → 2`, `3 → 4`, and `5` alone.
fn two_chains() -> Plan {
    plan()
        .task("a")
        .task("b")
        .reads(&[0])
        .task("c")
        .reads(&[1])
        .task("d")
        .task("e")
        .reads(&[3])
        .task("f")
        .wants(&[2, 4, 5])
}

#[test]
fn what_former_workers_hold_waits_for_them_and_everything_else_runs_at_once() {
    let cluster = restored(&[
        joined(W1),
        joined(W2),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1]),
        finished(W2, &[3]),
        Restored::WorkerGone { worker: W2 },
    ]);
    assert_eq!(
        states(&cluster, 6),
        [Released, Finished, Waiting, Ready, Waiting, Ready],
        "0 is needed by nobody, 3 was lost with its worker"
    );
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Suspect));
    assert_eq!(cluster.core.standing(W2), None);
    assert!(cluster.core.is_stranded(task(1)));
}

#[test]
fn nothing_is_handed_out_until_former_workers_are_back_but_not_for_long() {
    let items = [joined(W1), joined(W2), opened(), chunk(two_chains())];
    for is_second_back in [true, false] {
        let mut cluster = restored_with(500_000, &items);
        comes_back(&mut cluster, W1, Inventory::default());
        assert_eq!(cluster.place(), [], "the other may run it");
        if is_second_back {
            let inventory = Inventory {
                running: vec![(task(0), before(1))],
                ..Inventory::default()
            };
            comes_back(&mut cluster, W2, inventory);
            assert_eq!(cluster.state(0), Running, "where it was");
        } else {
            cluster.pass(500_000);
        }
        assert!(!cluster.place().is_empty());
        assert!(cluster.state(0).is_placed(), "{:?}", states(&cluster, 6));
    }
}

#[test]
fn nothing_that_returns_is_computed_again() {
    let mut cluster = restored(&[
        joined(W1),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1, 3]),
    ]);
    assert_eq!(given_up(&cluster.pass(9_900_000)), []);
    let effects = comes_back(
        &mut cluster,
        W1,
        Inventory {
            held: held(&[1, 3]),
            ..Inventory::default()
        },
    );
    assert_eq!(effects, []);
    assert_eq!(cluster.core.standing(W1), Some(WorkerStanding::Active));
    assert_eq!(cluster.place_tasks(), [2, 4, 5]);
    assert_eq!(
        cluster.assigned[&2].1,
        Attempt {
            epoch: 2,
            number: 1
        }
    );
}

#[test]
fn what_does_not_return_in_the_window_is_computed_again_with_its_inputs() {
    let mut cluster = restored(&[
        joined(W1),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1, 3]),
    ]);
    assert_eq!(given_up(&cluster.pass(10_000_000)), [W1.0]);
    assert_eq!(
        states(&cluster, 6),
        [Ready, Waiting, Waiting, Ready, Waiting, Ready]
    );
}

#[test]
fn attempts_of_an_earlier_epoch_are_taken_back_and_their_reports_count() {
    let mut cluster = restored(&[joined(W1), opened(), chunk(two_chains())]);
    let effects = comes_back(
        &mut cluster,
        W1,
        Inventory {
            held: held(&[0]),
            running: vec![(task(1), before(3)), (task(9), before(1))],
            queued: vec![(task(3), before(1)), (task(4), before(1))],
            seceded: vec![],
        },
    );
    assert_eq!(
        cancelled(&effects),
        [(1, 9), (1, 4)],
        "unknown, and not ready"
    );
    assert_eq!(
        states(&cluster, 6),
        [Finished, Running, Waiting, Assigned, Waiting, Ready]
    );
    assert_eq!(cluster.core.attempt(task(1)), Some((W1, before(3))));
    let mut digest = oxidask_core::Digest::default();
    digest.add_held(task(0));
    digest.add_attempt(task(1), before(3), AttemptState::Running);
    digest.add_attempt(task(3), before(1), AttemptState::Queued);
    assert_eq!(cluster.core.digest(W1), Some(digest));
    let done = TaskReport::Finished {
        bytes: 8,
        duration_micros: 1_000,
        rows: 0,
    };
    let error = Arc::new(Diagnostic::new(Code::TaskFailed, "failed"));
    let failed = TaskReport::Failed {
        error,
        is_retryable: false,
    };
    open(&mut cluster);
    let effects = cluster.react(Event::TaskReported {
        worker: W1,
        reports: vec![
            (task(3), before(1), TaskReport::Started),
            (task(1), before(3), done),
            (task(3), before(1), failed),
        ],
    });
    assert!(is_failed(&effects, 3, Code::TaskFailed, true));
    assert_eq!(
        states(&cluster, 6),
        [Released, Finished, Ready, Failed, Failed, Ready]
    );
}

#[test]
fn a_running_attempt_is_taken_back_although_its_inputs_have_not_returned() {
    let mut cluster = restored(&[
        joined(W1),
        joined(W2),
        opened(),
        chunk(two_chains()),
        finished(W2, &[0]),
    ]);
    let running = vec![(task(1), before(1))];
    comes_back(
        &mut cluster,
        W1,
        Inventory {
            running,
            ..Inventory::default()
        },
    );
    assert_eq!(cluster.state(1), Running);
    // The input is lost for good; the attempt needs it no more.
    cluster.pass(10_000_000);
    assert_eq!(cluster.state(1), Running);
    assert_eq!(cluster.state(0), Released);
    // If the attempt is lost too, everything is made again, as an attempt of this epoch.
    cluster.react(Event::WorkerSuspected { worker: W1 });
    cluster.pass(2_000_000);
    assert_eq!(states(&cluster, 2), [Ready, Waiting]);
}

#[test]
fn a_result_that_the_journal_does_not_know_yet_counts() {
    let mut cluster = restored(&[joined(W1), opened(), chunk(two_chains())]);
    let report = TaskReport::Finished {
        bytes: 77,
        duration_micros: 1,
        rows: 5,
    };
    cluster.core.keep_notes();
    cluster.react(Event::TaskReported {
        worker: W1,
        reports: vec![(task(3), before(1), report)],
    });
    assert_eq!(cluster.state(3), Finished);
    assert!(cluster.core.is_stranded(task(3)), "it is not back yet");
    comes_back(
        &mut cluster,
        W1,
        Inventory {
            held: held(&[3, 5]),
            ..Inventory::default()
        },
    );
    assert_eq!(cluster.state(5), Finished);
    let results = vec![(task(3), 77, 5), (task(5), 8, 0)];
    assert_eq!(
        *cluster.core.notes(),
        [Restored::Finished {
            worker: W1,
            results
        }]
    );
    assert_eq!(cluster.place_tasks(), [0, 4]);
}

#[test]
fn what_was_only_read_by_a_result_that_comes_back_does_not_run_again() {
    // The scheduler died before it had written down that 0, 1 and 3 and then 2 and 4 were done; their
    // workers had dropped by then what nobody needed any more.
    let items = [joined(W1), joined(W2), opened(), chunk(two_chains())];
    let mut cluster = restored_with(500_000, &items);
    comes_back(&mut cluster, W1, Inventory::default());
    let inventory = Inventory {
        held: held(&[2]),
        queued: vec![(task(3), before(1))],
        ..Inventory::default()
    };
    comes_back(&mut cluster, W2, inventory);
    assert_eq!(
        states(&cluster, 6),
        [Released, Released, Finished, Assigned, Waiting, Ready],
        "0 and 1 were made for 2 alone"
    );
    assert_eq!(cluster.place_tasks(), [5]);
    let inventory = Inventory {
        held: held(&[2, 4]),
        running: vec![(task(3), before(1))],
        ..Inventory::default()
    };
    cluster.react(Event::WorkerSuspected { worker: W2 });
    let mut told = cancelled(&comes_back(&mut cluster, W2, inventory));
    told.dedup();
    assert_eq!(told, [(2, 3)], "even what runs");
    assert_eq!(cluster.state(3), Released);
}

#[test]
fn a_client_that_opens_the_graph_again_hears_everything_again() {
    let error = Arc::new(Diagnostic::new(Code::TaskFailed, "no"));
    let failure = Restored::Failed {
        task: task(3),
        error,
    };
    let mut cluster = restored(&[
        joined(W1),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1, 2, 5]),
        failure,
    ]);
    let effects = open(&mut cluster);
    assert!(effects.contains(&Effect::GraphAttached {
        client: CLIENT,
        name: "g".into(),
        graph: G,
        next_chunk: 1
    }));
    assert_eq!(ready(&effects), [2, 5]);
    assert!(is_failed(&effects, 3, Code::TaskFailed, true));
    assert!(is_failed(&effects, 4, Code::TaskFailed, false));
    assert!(is_done(&effects));
    let other = cluster.react(Event::GraphOpened {
        client: ClientId(2),
        name: "another".into(),
        is_open_ended: false,
    });
    let is_later =
        |effect: &Effect| matches!(effect, Effect::GraphAttached { graph, .. } if *graph == LATER);
    assert!(other.iter().any(is_later), "{other:?}");
}

#[test]
fn a_graph_whose_client_does_not_come_back_ends() {
    let mut cluster = restored(&[opened(), chunk(two_chains())]);
    assert_eq!(cluster.pass(59_000_000), []);
    let effects = cluster.pass(1_000_000);
    assert_eq!(effects, [Effect::GraphForgotten { graph: G }]);
}

#[test]
fn what_was_released_cancelled_or_closed_stays_so() {
    let mut cluster = restored(&[
        joined(W1),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1, 2]),
        Restored::Released {
            tasks: vec![task(2)],
        },
        Restored::Cancelled { graph: G },
    ]);
    assert_eq!(
        states(&cluster, 6),
        [Released, Released, Released, Released, Failed, Failed],
        "3 was for 4 alone"
    );
    let inventory = Inventory {
        held: held(&[2]),
        running: vec![(task(5), before(1))],
        ..Inventory::default()
    };
    let effects = comes_back(&mut cluster, W1, inventory);
    assert_eq!(released(&effects), [(1, 2)]);
    assert_eq!(cancelled(&effects), [(1, 5)]);
    assert!(is_failed(
        &open(&mut cluster),
        4,
        Code::GraphCancelled,
        false
    ));
    let closed = restored(&[
        joined(W1),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0]),
        Restored::Closed { graph: G },
    ]);
    assert_eq!(closed.core.graphs(), []);
    assert_eq!(closed.core.workers()[0].held_bytes, 0);
}

#[test]
fn a_graph_that_was_refused_says_so_again() {
    let error = Arc::new(Diagnostic::new(Code::GraphSyntax, "no"));
    let refusal = Restored::Refused { graph: G, error };
    let mut cluster = restored(&[opened(), chunk(two_chains().unfinished()), refusal]);
    let effects = open(&mut cluster);
    let is_refusal = |effect: &Effect| matches!(effect, Effect::GraphRefused { .. });
    assert!(effects.iter().any(is_refusal), "{effects:?}");
    assert!(is_done(&effects));
}

#[test]
fn items_may_come_twice_and_may_be_about_what_is_gone() {
    let items = [
        joined(W1),
        joined(W2),
        opened(),
        chunk(two_chains()),
        finished(W1, &[0, 1, 3]),
        Restored::CopiesAdded {
            worker: W2,
            tasks: vec![task(1), task(2)],
        },
        Restored::WorkerGone { worker: W1 },
        Restored::Released {
            tasks: vec![task(5)],
        },
    ];
    let once = restored(&items);
    for length in 0..items.len() {
        let mut twice = items[..length].to_vec();
        twice.extend_from_slice(&items);
        let twice = restored(&twice);
        assert_eq!(states(&twice, 6), states(&once, 6), "{length} items twice");
        assert_eq!(twice.core.workers(), once.core.workers());
        let bytes = |cluster: &Cluster| cluster.core.progress(G).unwrap().groups[0].bytes;
        assert_eq!(bytes(&twice), bytes(&once));
    }
    let mut closed = items.to_vec();
    closed.push(Restored::Closed { graph: G });
    closed.push(Restored::GraphOpened {
        graph: GraphId(2),
        name: "g".into(),
        is_open_ended: false,
    });
    closed.extend_from_slice(&closed.clone());
    assert_eq!(restored(&closed).core.graphs().len(), 1);
    assert_eq!(
        states(&once, 6),
        [Released, Finished, Waiting, Ready, Waiting, Ready]
    );
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    let mut core = Core::new(CoreConfig::default());
    core.restore(opened()).unwrap();
    let unknown = core.restore(finished(W1, &[0])).unwrap_err();
    assert_eq!(unknown, RestoreError::UnknownTask { task: task(0) });
    let late = Restored::Chunk {
        graph: G,
        number: 1,
        chunk: Box::new(two_chains().chunk),
    };
    let gap = core.restore(late).unwrap_err();
    assert!(gap.to_string().contains("out of order"), "{gap}");
    let other = Restored::GraphOpened {
        graph: G,
        name: "h".into(),
        is_open_ended: false,
    };
    assert!(matches!(
        core.restore(other),
        Err(RestoreError::GraphTwice { .. })
    ));
}

#[test]
fn notes_of_a_core_restore_the_same() {
    let mut cluster = Cluster::new();
    cluster.core.keep_notes();
    let mut cluster = cluster.workers(2, slots(2));
    open(&mut cluster);
    let notes = std::mem::take(cluster.core.notes());
    cluster.send(two_chains());
    cluster.place();
    let (_, attempt) = cluster.assigned[&0];
    cluster.finish(0);
    cluster.place();
    cluster.finish(1);
    cluster.fail(3, false);
    cluster.copied(cluster.worker_of(0), &[1]);
    let client = CLIENT;
    let tasks = vec![task(5)];
    cluster.react(Event::ResultsReleased { client, tasks });
    assert_eq!(attempt.number, 1);
    let mut items = notes;
    items.push(chunk(two_chains()));
    items.append(cluster.core.notes());
    let mut again = Core::new(CoreConfig {
        epoch: 2,
        ..CoreConfig::default()
    });
    for item in items {
        again.restore(item).unwrap();
    }
    again.begin_restored(Timestamp(0), LATER, &mut Vec::new());
    again.invariants().unwrap();
    for index in 0..6 {
        let state = cluster.state(index);
        let expected = match state {
            // What ran or waited for a worker is to run again, once its inputs are heard of.
            Assigned | Running | Ready if index == 2 => Waiting,
            Assigned | Running => Ready,
            other => other,
        };
        assert_eq!(again.state(task(index)), Some(expected), "{index}");
        assert_eq!(
            again.holders(task(index)),
            cluster.core.holders(task(index))
        );
    }
}
