//! Graphs that are never sealed: what nobody needs goes or stops at once, and is computed when it is
//! needed again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use std::sync::Arc;

use cluster::{
    CLIENT, Cluster, Plan, cancelled, is_done, is_failed, next_plan, plan, ready, released, slots,
};
use oxidask_core::{
    Core, CoreConfig, Effect, Event, GraphId, Restored, TaskReport,
    TaskState::{Assigned, Failed, Finished, Ready, Released, Running, Waiting},
    Timestamp, WorkerId,
};
use oxidask_diagnostic::{Code, Diagnostic};

fn open(slots_each: u32, plan: Plan) -> Cluster {
    let mut cluster = Cluster::new().workers(1, slots(slots_each));
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "futures".into(),
        is_open_ended: true,
    });
    cluster.send(plan.unfinished());
    cluster
}

fn more() -> Plan {
    next_plan().unfinished()
}

fn give_back(cluster: &mut Cluster, tasks: &[u32]) -> Vec<Effect> {
    let tasks = tasks.iter().map(|task| cluster.at(*task)).collect();
    cluster.react(Event::ResultsReleased {
        client: CLIENT,
        tasks,
    })
}

#[test]
fn a_result_goes_as_soon_as_nobody_needs_it_although_chunks_may_follow() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = open(1, graph);
    cluster.place();
    assert_eq!(released(&cluster.finish(0)), []);
    cluster.place();
    let effects = cluster.finish(1);
    assert_eq!(
        (released(&effects), ready(&effects)),
        (vec![(1, 0)], vec![1])
    );
    assert!(!is_done(&effects), "nobody knows what follows");
    let effects = give_back(&mut cluster, &[1]);
    assert_eq!(released(&effects), [(1, 1)]);
    assert!(!is_done(&effects));
    assert_eq!(cluster.core.workers()[0].held_bytes, 0);
}

#[test]
fn what_a_chunk_wants_or_reads_does_not_go_while_it_is_taken_in() {
    let mut cluster = open(1, plan().task("a").wants(&[0]));
    assert_eq!(cluster.run(), [0]);
    // The wish for the task comes behind the tasks of the chunk.
    let effects = cluster.send(more().task("b").task("c").reads(&[1]).wants(&[1, 2]));
    assert_eq!(cancelled(&effects), []);
    assert_eq!((cluster.state(1), cluster.state(2)), (Ready, Waiting));
    // What a chunk brings and nobody wants never runs.
    cluster.send(more().task("d").task("e").reads(&[3]));
    assert_eq!((cluster.state(3), cluster.state(4)), (Released, Released));
    assert_eq!(cluster.run(), [1, 2]);
}

#[test]
fn pending_tasks_stop_in_a_cascade_whatever_they_are_at() {
    let graph = plan()
        .task("root")
        .task("running")
        .reads(&[0])
        .task("queued")
        .reads(&[0])
        .task("waiting")
        .reads(&[1, 2])
        .task("other")
        .reads(&[0])
        .wants(&[3, 4]);
    let mut cluster = open(1, graph);
    cluster.place();
    cluster.finish(0);
    cluster.place();
    cluster.start(1);
    assert_eq!((cluster.state(1), cluster.state(2)), (Running, Assigned));
    let effects = give_back(&mut cluster, &[3]);
    assert_eq!(cancelled(&effects), [(1, 2), (1, 1)]);
    let states: Vec<_> = (0..4).map(|task| cluster.state(task)).collect();
    assert_eq!(states, [Finished, Released, Released, Released]);
    // What was under way comes too late and is dropped.
    assert_eq!(released(&cluster.finish(1)), [(1, 1)]);
    assert_eq!(cluster.state(4), Assigned);
    cluster.finish(4);
    assert_eq!(cluster.state(0), Released);
    assert_eq!(cluster.core.cluster().running, 0);
}

#[test]
fn what_was_released_or_never_ran_is_computed_when_it_is_wanted_again() {
    let graph = plan().task("a").task("b").reads(&[0]).task("c").reads(&[1]);
    let mut cluster = open(1, graph.wants(&[1]));
    assert_eq!(cluster.state(2), Released);
    assert_eq!(cluster.run(), [0, 1]);
    give_back(&mut cluster, &[1]);
    assert_eq!(cluster.state(1), Released);
    assert_eq!(cluster.core.recomputed(), 0);
    cluster.send(more().wants(&[2]));
    assert_eq!(cluster.run(), [0, 1, 2]);
    assert_eq!(cluster.core.recomputed(), 2, "one of them had never run");
    cluster.send(more().task("d").reads(&[0]).wants(&[3]));
    assert_eq!(cluster.run(), [0, 3]);
    assert_eq!((cluster.state(2), cluster.state(0)), (Finished, Released));
}

#[test]
fn a_stopped_attempt_does_not_count_when_the_task_runs_again() {
    let mut cluster = open(1, plan().task("a").wants(&[0]));
    cluster.place();
    cluster.start(0);
    let before = cluster.assigned[&0];
    assert_eq!(cancelled(&give_back(&mut cluster, &[0])), [(1, 0)]);
    cluster.send(more().wants(&[0]));
    assert_eq!(cluster.place_tasks(), [0]);
    assert_ne!(cluster.assigned[&0].1, before.1);
    let finished = TaskReport::Finished {
        bytes: 8,
        duration_micros: 1,
        rows: 0,
    };
    let reports = vec![(cluster.at(0), before.1, finished)];
    let worker = before.0;
    cluster.react(Event::TaskReported { worker, reports });
    assert_eq!(cluster.state(0), Assigned);
    assert_eq!(ready(&cluster.finish(0)), [0]);
}

#[test]
fn a_failure_stops_what_only_its_dependents_needed_and_stays() {
    let graph = plan()
        .task("bad")
        .task("slow")
        .task("sum")
        .reads(&[0, 1])
        .wants(&[2]);
    let mut cluster = open(2, graph);
    cluster.place();
    cluster.start(1);
    let effects = cluster.fail(0, false);
    assert!(is_failed(&effects, 2, Code::TaskFailed, false));
    assert_eq!(cancelled(&effects), [(1, 1)]);
    assert_eq!(cluster.state(1), Released);
    give_back(&mut cluster, &[2]);
    assert_eq!((cluster.state(0), cluster.state(2)), (Failed, Failed));
    let effects = cluster.send(more().task("again").reads(&[0]).wants(&[2, 3]));
    assert!(is_failed(&effects, 2, Code::TaskFailed, false));
    assert_eq!(cluster.state(3), Failed);
    assert_eq!(cluster.run(), []);
}

#[test]
fn a_lost_result_that_nobody_needs_stays_away() {
    let graph = plan().task("a").task("b").reads(&[0]).wants(&[0, 1]);
    let mut cluster = open(1, graph);
    assert_eq!(cluster.run(), [0, 1]);
    give_back(&mut cluster, &[0]);
    cluster.die(WorkerId(1));
    cluster.join(slots(1));
    assert_eq!(cluster.run(), [0, 1]);
    assert_eq!((cluster.state(0), cluster.state(1)), (Released, Finished));
}

#[test]
fn a_chain_of_a_million_stops_without_deep_recursion() {
    let mut graph = plan().task("t");
    for task in 1..1_000_000 {
        graph = graph.task("t").reads(&[task - 1]);
    }
    let mut core = Core::new(CoreConfig::default());
    let mut effects = Vec::new();
    let mut react = |event| core.react(event, Timestamp(1), &mut effects);
    react(Event::GraphOpened {
        client: CLIENT,
        name: "g".into(),
        is_open_ended: true,
    });
    react(Event::ChunkArrived {
        client: CLIENT,
        graph: GraphId(1),
        number: 0,
        chunk: Box::new(graph.unfinished().wants(&[999_999]).chunk),
    });
    let task = |task| oxidask_core::TaskRef {
        graph: GraphId(1),
        task: oxidask_core::TaskIndex(task),
    };
    react(Event::ResultsReleased {
        client: CLIENT,
        tasks: vec![task(999_999)],
    });
    for at in [0, 1, 500_000, 999_999] {
        assert_eq!(core.state(task(at)), Some(Released));
    }
}

#[test]
fn cancelling_and_closing_leave_nothing() {
    let graph = plan()
        .task("a")
        .task("b")
        .reads(&[0])
        .task("c")
        .wants(&[1, 2]);
    let mut cluster = open(1, graph);
    cluster.place();
    cluster.finish(0);
    let graph = cluster.graph;
    let client = CLIENT;
    let effects = cluster.react(Event::GraphCancelled { client, graph });
    assert!(is_done(&effects));
    assert_eq!(released(&effects), [(1, 0)]);
    assert_eq!(cluster.state(1), Failed);
    cluster.react(Event::GraphClosed { client, graph });
    let all = cluster.core.cluster();
    assert_eq!((all.running, all.ready, all.held_bytes), (0, 0, 0));
}

#[test]
fn a_restored_graph_is_still_open_ended() {
    let g = GraphId(1);
    let at = |task| oxidask_core::TaskRef {
        graph: g,
        task: oxidask_core::TaskIndex(task),
    };
    let first = plan()
        .task("done")
        .task("given back")
        .task("needs it")
        .reads(&[1])
        .task("wanted")
        .reads(&[0])
        .task("bad")
        .task("of bad")
        .reads(&[4])
        .unfinished()
        .wants(&[2, 3, 5]);
    let mut core = Core::new(CoreConfig {
        epoch: 2,
        ..CoreConfig::default()
    });
    let error = Arc::new(Diagnostic::new(Code::TaskFailed, "no"));
    let chunk = |number, plan: Plan| Restored::Chunk {
        graph: g,
        number,
        chunk: Box::new(plan.chunk),
    };
    for item in [
        Restored::WorkerJoined {
            worker: WorkerId(1),
            info: slots(1),
        },
        Restored::GraphOpened {
            graph: g,
            name: "futures".into(),
            is_open_ended: true,
        },
        chunk(0, first),
        Restored::Finished {
            worker: WorkerId(1),
            results: vec![(at(0), 8, 0)],
        },
        Restored::Failed { task: at(4), error },
        Restored::Released { tasks: vec![at(2)] },
        chunk(1, more().task("late").wants(&[6])),
    ] {
        core.restore(item).unwrap();
    }
    let mut effects = Vec::new();
    core.begin_restored(Timestamp(5), GraphId(9), &mut effects);
    core.invariants().unwrap();
    let states: Vec<_> = (0..7).map(|task| core.state(at(task)).unwrap()).collect();
    let expected = [Finished, Released, Released, Waiting, Failed, Failed, Ready];
    assert_eq!(states, expected);
    let opened = Event::GraphOpened {
        client: CLIENT,
        name: "futures".into(),
        is_open_ended: true,
    };
    core.react(opened, Timestamp(6), &mut effects);
    let client = CLIENT;
    let tasks = vec![at(3), at(6)];
    let gone = Event::ResultsReleased { client, tasks };
    core.react(gone, Timestamp(7), &mut effects);
    core.invariants().unwrap();
    assert_eq!(core.state(at(6)), Some(Released));
    assert_eq!(core.state(at(0)), Some(Released));
}

#[test]
fn a_wish_that_was_repeated_outlives_items_that_come_twice() {
    let g = GraphId(1);
    let at = oxidask_core::TaskRef {
        graph: g,
        task: oxidask_core::TaskIndex(0),
    };
    let chunk = |number, plan: Plan| Restored::Chunk {
        graph: g,
        number,
        chunk: Box::new(plan.chunk),
    };
    let items = [
        Restored::GraphOpened {
            graph: g,
            name: "futures".into(),
            is_open_ended: true,
        },
        chunk(0, plan().task("a").unfinished().wants(&[0])),
        Restored::Released { tasks: vec![at] },
        chunk(1, more().wants(&[0])),
    ];
    // A snapshot ends anywhere in what the log says again.
    for end in 0..=items.len() {
        let mut core = Core::new(CoreConfig::default());
        for item in items[..end].iter().chain(&items) {
            core.restore(item.clone()).unwrap();
        }
        core.begin_restored(Timestamp(5), GraphId(9), &mut Vec::new());
        core.invariants().unwrap();
        assert_eq!(core.state(at), Some(Ready));
    }
}

#[test]
fn a_death_that_fails_one_task_does_not_bring_back_what_only_that_one_needed() {
    let graph = plan()
        .task("bad")
        .task("slow")
        .task("sum")
        .reads(&[0, 1])
        .wants(&[2]);
    let config = CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    };
    for order in [[0, 1], [1, 0]] {
        let mut cluster = Cluster::with(config.clone()).workers(1, slots(2));
        cluster.react(Event::GraphOpened {
            client: CLIENT,
            name: "futures".into(),
            is_open_ended: true,
        });
        cluster.send(graph.clone().unfinished());
        cluster.place();
        cluster.start(order[0]);
        let effects = cluster.die(WorkerId(1));
        assert!(is_failed(&effects, 2, Code::TaskKilledWorkers, false));
        assert_eq!(cluster.state(order[0]), Failed);
        assert_eq!(cluster.state(order[1]), Released);
    }
}

#[test]
fn a_death_counts_against_all_that_ran_also_if_it_makes_one_of_them_needless() {
    let graph = plan().task("bad").task("worse").task("sum");
    let config = CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    };
    let mut cluster = Cluster::with(config).workers(1, slots(2));
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "futures".into(),
        is_open_ended: true,
    });
    cluster.send(graph.reads(&[0, 1]).wants(&[2]).unfinished());
    cluster.place();
    cluster.start(0);
    cluster.start(1);
    cluster.die(WorkerId(1));
    // Needed again, it does not run again.
    let effects = cluster.send(more().wants(&[1]));
    assert!(is_failed(&effects, 1, Code::TaskKilledWorkers, true));
}
