//! Graphs and clients: failures, cancelling, closing, attaching, chunks that are refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{CLIENT, Cluster, Plan, is_done, is_failed, next_plan, plan, ready, released, slots};
use oxidask_core::{
    Attempt, ClientId, Effect, Event, GraphId, TaskIndex, TaskRef, TaskReport, TaskState, WorkerId,
    WorkerInfo, WorkerLoss,
};
use oxidask_diagnostic::Code;

// ---- failures ----

#[test]
fn a_failure_reaches_all_dependents_and_nothing_else() {
    let graph = plan()
        .task("a")
        .task("b")
        .task("c")
        .reads(&[0, 1])
        .task("d")
        .reads(&[2])
        .task("e")
        .reads(&[1])
        .wants(&[3, 4]);
    let mut cluster = Cluster::new().workers(1, slots(2)).submit(graph);
    cluster.place();
    cluster.finish(1);
    let effects = cluster.fail(0, true);
    assert!(is_failed(&effects, 0, Code::TaskFailed, true));
    assert!(is_failed(&effects, 3, Code::TaskFailed, false));
    assert!(
        !is_failed(&effects, 2, Code::TaskFailed, false),
        "nobody wants it"
    );
    assert_eq!(cluster.state(2), TaskState::Failed);
    assert!(!is_done(&effects));
    cluster.place();
    assert!(is_done(&cluster.finish(4)));
    assert_eq!(cluster.state(1), TaskState::Released);
    let progress = cluster.core.progress(GraphId(1)).unwrap();
    assert_eq!((progress.groups[0].done, progress.groups[0].failed), (2, 3));
}

#[test]
fn a_task_that_cannot_be_understood_is_not_tried_again() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().task("a").retries(5).wants(&[0]));
    cluster.place();
    assert!(is_failed(
        &cluster.fail(0, false),
        0,
        Code::TaskFailed,
        true
    ));
}

#[test]
fn a_later_chunk_that_reads_a_failed_task_fails() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().task("a").unfinished());
    cluster.place();
    cluster.fail(0, true);
    let effects = cluster.send(next_plan().task("x").reads(&[0]).wants(&[1]));
    assert!(is_failed(&effects, 1, Code::TaskFailed, false));
    assert!(is_done(&effects));
}

// ---- clients and graphs ----

#[test]
fn cancelling_stops_what_runs_and_keeps_what_is_done() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(4).wants(&[0, 1, 3]));
    cluster.place();
    cluster.finish(0);
    cluster.start(1);
    let other = ClientId(9);
    assert_eq!(
        cluster.react(Event::GraphCancelled {
            client: other,
            graph: GraphId(1)
        }),
        []
    );
    let effects = cluster.react(Event::GraphCancelled {
        client: CLIENT,
        graph: GraphId(1),
    });
    let cancelled = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Cancel { .. }));
    assert_eq!(cancelled.count(), 1);
    assert!(is_failed(&effects, 1, Code::GraphCancelled, false));
    assert!(is_failed(&effects, 3, Code::GraphCancelled, false));
    assert!(is_done(&effects));
    assert_eq!(cluster.state(0), TaskState::Finished);
    assert_eq!(released(&cluster.finish(1)), [(1, 1)]);
    assert_eq!(cluster.place(), []);
    assert_eq!(
        cluster.react(Event::GraphCancelled {
            client: CLIENT,
            graph: GraphId(1)
        }),
        []
    );
    let effects = cluster.react(Event::GraphClosed {
        client: CLIENT,
        graph: GraphId(1),
    });
    assert_eq!(effects, [Effect::GraphForgotten { graph: GraphId(1) }]);
    assert_eq!(cluster.core.workers()[0].held_bytes, 0);
    assert!(cluster.core.graphs().is_empty());
}

#[test]
fn closing_takes_everything_away_and_the_name_is_free_again() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(3).wants(&[0]));
    cluster.place();
    cluster.finish(0);
    cluster.start(1);
    cluster.react(Event::GraphClosed {
        client: ClientId(2),
        graph: GraphId(1),
    });
    assert_eq!(cluster.core.graphs().len(), 1);
    let effects = cluster.react(Event::GraphClosed {
        client: CLIENT,
        graph: GraphId(1),
    });
    assert!(matches!(
        effects[..],
        [Effect::Cancel { .. }, Effect::GraphForgotten { .. }]
    ));
    let summary = cluster.core.cluster();
    assert_eq!(
        (summary.running, summary.ready, summary.held_bytes),
        (0, 0, 0)
    );
    assert_eq!(released(&cluster.finish(1)), [(1, 1)]);
    let effects = cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "g".into(),
        is_open_ended: false,
    });
    assert!(matches!(
        effects[..],
        [Effect::GraphAttached {
            graph: GraphId(2),
            ..
        }]
    ));
}

#[test]
fn a_client_that_comes_back_hears_the_state_and_one_that_does_not_loses_its_graph() {
    let graph = plan().task("a").task("b").task("c").wants(&[0, 1]);
    let mut cluster = Cluster::new().workers(1, slots(2)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.react(Event::ClientLost { client: CLIENT });
    assert_eq!(cluster.fail(1, true), []);
    cluster.now = cluster.now.plus_micros(59_000_000);
    assert_eq!(cluster.react(Event::Tick), []);
    let client = ClientId(2);
    let effects = cluster.react(Event::GraphOpened {
        client,
        name: "g".into(),
        is_open_ended: false,
    });
    assert!(matches!(
        effects[0],
        Effect::GraphAttached {
            next_chunk: 1,
            client: ClientId(2),
            ..
        }
    ));
    assert_eq!(ready(&effects), [0]);
    assert!(is_failed(&effects, 1, Code::TaskFailed, true));
    assert!(is_done(&effects));
    cluster.now = cluster.now.plus_micros(600_000_000);
    assert_eq!(cluster.react(Event::Tick), []);
    cluster.react(Event::ClientLost { client });
    cluster.now = cluster.now.plus_micros(60_000_000);
    let effects = cluster.react(Event::Tick);
    assert!(matches!(
        effects.last(),
        Some(Effect::GraphForgotten { .. })
    ));
    assert!(cluster.core.graphs().is_empty());
}

#[test]
fn an_empty_graph_is_done_at_once() {
    let mut cluster = Cluster::new();
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "g".into(),
        is_open_ended: false,
    });
    assert!(is_done(&cluster.send(next_plan())));
}

fn invalid_shapes() -> Vec<(&'static str, Plan, Code)> {
    vec![
        ("itself", plan().task("a").reads(&[0]), Code::GraphSyntax),
        (
            "forward",
            plan().task("a").reads(&[1]).task("b"),
            Code::GraphSyntax,
        ),
        ("wanted", plan().task("a").wants(&[1]), Code::GraphSyntax),
        ("empty key", plan().task(""), Code::GraphSyntax),
        (
            "long key",
            plan().task(&"k".repeat(1_025)),
            Code::LimitPassed,
        ),
    ]
}

fn invalid_columns() -> Vec<(&'static str, Plan, Code)> {
    vec![
        (
            "group",
            with(|plan| plan.chunk.group[0] = 1),
            Code::GraphSyntax,
        ),
        (
            "body",
            with(|plan| plan.chunk.body[0] = 1),
            Code::GraphSyntax,
        ),
        (
            "requirement",
            with(|plan| plan.chunk.requirement[0] = 1),
            Code::GraphSyntax,
        ),
        (
            "column",
            with(|plan| plan.chunk.priority.push(1)),
            Code::GraphSyntax,
        ),
        (
            "lengths",
            with(|plan| plan.chunk.key_lengths[0] = 2),
            Code::GraphSyntax,
        ),
        (
            "huge",
            with(|plan| plan.chunk.key_lengths[0] = u32::MAX),
            Code::LimitPassed,
        ),
        (
            "half a character",
            with(|plan| "ä".clone_into(&mut plan.chunk.keys)),
            Code::GraphSyntax,
        ),
        (
            "inputs left",
            with(|plan| plan.chunk.inputs.push(TaskIndex(0))),
            Code::GraphSyntax,
        ),
        (
            "inputs missing",
            with(|plan| plan.chunk.input_counts[0] = 1),
            Code::GraphSyntax,
        ),
        (
            "many inputs",
            with(|plan| plan.chunk.input_counts[0] = 2_000_000),
            Code::LimitPassed,
        ),
        (
            "many groups",
            with(|plan| plan.chunk.new_groups = vec!["g".to_owned(); 1_025]),
            Code::LimitPassed,
        ),
    ]
}

#[test]
fn chunks_that_are_not_valid_are_refused_with_the_reason() {
    let cases = invalid_shapes().into_iter().chain(invalid_columns());
    for (name, bad, code) in cases {
        let mut cluster = Cluster::new().workers(1, slots(1));
        cluster.react(Event::GraphOpened {
            client: CLIENT,
            name: "g".into(),
            is_open_ended: false,
        });
        let effects = cluster.send(bad);
        let refused = effects.iter().any(
            |effect| matches!(effect, Effect::GraphRefused { error, .. } if error.code == code),
        );
        assert!(refused, "{name}: {effects:?}");
        assert!(is_done(&effects), "{name}");
        let again = cluster.send(plan().task("a"));
        assert!(matches!(again[..], [Effect::GraphRefused { .. }]), "{name}");
    }
}

fn with(change: impl Fn(&mut Plan)) -> Plan {
    let mut plan = plan().task("a");
    change(&mut plan);
    plan
}

#[test]
fn chunks_said_twice_are_acknowledged_and_out_of_order_refused() {
    let mut cluster = Cluster::new().submit(plan().task("a").unfinished());
    let (client, graph) = (CLIENT, GraphId(1));
    let chunk = || Box::new(plan().task("a").chunk);
    let effects = cluster.react(Event::ChunkArrived {
        client,
        graph,
        number: 0,
        chunk: chunk(),
    });
    assert_eq!(
        effects,
        [Effect::ChunkAccepted {
            client,
            graph,
            number: 0
        }]
    );
    assert_eq!(cluster.core.graphs()[0].total, 1);
    let other = ClientId(5);
    let arrived = Event::ChunkArrived {
        client: other,
        graph,
        number: 1,
        chunk: chunk(),
    };
    assert_eq!(cluster.react(arrived), []);
    let effects = cluster.react(Event::ChunkArrived {
        client,
        graph,
        number: 2,
        chunk: chunk(),
    });
    assert!(matches!(effects[0], Effect::GraphRefused { .. }));
    assert_eq!(cluster.state(0), TaskState::Failed);
}

#[test]
fn a_name_that_is_alive_is_refused_and_free_after_its_death() {
    let mut cluster = Cluster::new();
    let named = WorkerInfo {
        name: "same".to_owned(),
        ..slots(1)
    };
    let first = cluster.join(named.clone());
    let worker = WorkerId(7);
    let effects = cluster.react(Event::WorkerJoined {
        worker,
        info: named.clone(),
    });
    assert!(matches!(&effects[..], [Effect::WorkerRefused { error, .. }]
        if error.code == Code::WorkerRefused && error.message.contains("`same`")));
    assert_eq!(cluster.core.workers().len(), 1);
    cluster.die(first);
    let effects = cluster.react(Event::WorkerJoined {
        worker,
        info: named,
    });
    assert_eq!(effects, [Effect::WorkerAccepted { worker }]);
}

#[test]
fn nonsense_from_outside_changes_nothing() {
    let mut cluster = Cluster::new()
        .workers(1, slots(0))
        .submit(plan().task("a").wants(&[0]));
    let unknown = TaskRef {
        graph: GraphId(1),
        task: TaskIndex(u32::MAX),
    };
    let attempt = Attempt {
        epoch: 1,
        number: 1,
    };
    let (client, graph, worker) = (CLIENT, GraphId(99), WorkerId(u32::MAX));
    let one = WorkerId(1);
    let report = TaskReport::Started;
    let lost = vec![
        (unknown, worker),
        (
            TaskRef {
                graph,
                task: TaskIndex(0),
            },
            one,
        ),
    ];
    cluster.place();
    for event in [
        Event::GraphClosed { client, graph },
        Event::GraphCancelled { client, graph },
        Event::ResultsReleased {
            client,
            tasks: vec![unknown],
        },
        Event::ClientLost {
            client: ClientId(u32::MAX),
        },
        Event::WorkerLost {
            worker,
            loss: WorkerLoss::Retired,
        },
        Event::TaskReported {
            worker,
            reports: vec![(unknown, attempt, report.clone())],
        },
        Event::TaskReported {
            worker: one,
            reports: vec![(unknown, attempt, report)],
        },
        Event::CopiesAdded {
            worker,
            tasks: vec![unknown],
        },
        Event::CopiesMissing {
            worker: one,
            tasks: vec![unknown],
        },
        Event::WorkerJoined {
            worker: one,
            info: slots(3),
        },
        Event::Tick,
    ] {
        assert_eq!(cluster.react(event), []);
    }
    cluster.report(0, TaskReport::InputsLost { lost });
    cluster.place();
    assert_eq!(ready(&cluster.finish_with(0, u64::MAX, u64::MAX)), [0]);
}
