//! Results: kept, released, lost and computed again; attempts and who is blamed for a death.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use std::collections::BTreeSet;

use cluster::{
    CLIENT, Cluster, is_done, is_failed, needs, next_plan, plan, ready, released, slots,
};
use oxidask_core::{
    Attempt, CoreConfig, Effect, Event, GraphId, TaskIndex, TaskRef, TaskReport, TaskState,
    WorkerId, WorkerInfo, WorkerLoss,
};
use oxidask_diagnostic::Code;

// ---- results ----

#[test]
fn results_go_when_the_last_consumer_is_done() {
    let graph = plan()
        .task("a")
        .task("x")
        .reads(&[0, 0])
        .task("y")
        .reads(&[0, 1])
        .wants(&[2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    assert_eq!(released(&cluster.finish(0)), []);
    cluster.place();
    assert_eq!(released(&cluster.finish(1)), []);
    cluster.place();
    let effects = cluster.finish(2);
    assert_eq!(
        released(&effects).into_iter().collect::<BTreeSet<_>>(),
        [(1, 0), (1, 1)].into()
    );
    assert_eq!(ready(&effects), [2]);
    assert!(is_done(&effects));
    assert_eq!(cluster.core.workers()[0].held_bytes, 8);
    let tasks = vec![cluster.at(2)];
    let effects = cluster.react(Event::ResultsReleased {
        client: CLIENT,
        tasks,
    });
    assert_eq!(released(&effects), [(1, 2)]);
    assert_eq!(cluster.core.workers()[0].held_bytes, 0);
}

#[test]
fn results_are_kept_until_the_last_chunk_tells_who_reads_them() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().task("a").task("b").unfinished());
    cluster.place();
    assert_eq!(released(&cluster.finish(0)), []);
    assert_eq!(released(&cluster.finish(1)), []);
    let mut more = next_plan().task("x").reads(&[0]).wants(&[2]);
    more.chunk.is_last = true;
    let effects = cluster.send(more);
    assert_eq!(released(&effects), [(1, 1)]);
    assert_eq!(cluster.run(), [2]);
    assert_eq!(cluster.state(0), TaskState::Released);
}

#[test]
fn copies_are_released_too_and_late_ones_at_once() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().workers(3, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    for worker in [2, 3] {
        let tasks = vec![cluster.at(0)];
        cluster.react(Event::CopiesAdded {
            worker: WorkerId(worker),
            tasks,
        });
    }
    assert_eq!(cluster.core.holders(cluster.at(0)).len(), 3);
    cluster.place();
    let effects = cluster.finish(1);
    let all: BTreeSet<_> = [(1, 0), (2, 0), (3, 0)].into();
    assert_eq!(released(&effects).into_iter().collect::<BTreeSet<_>>(), all);
    let tasks = vec![
        cluster.at(0),
        TaskRef {
            graph: GraphId(77),
            task: TaskIndex(3),
        },
    ];
    let effects = cluster.react(Event::CopiesAdded {
        worker: WorkerId(2),
        tasks,
    });
    assert_eq!(released(&effects), [(2, 0), (2, 3)]);
}

// ---- lost workers ----

#[test]
fn lost_results_are_computed_again_from_released_inputs() {
    let graph = plan()
        .task("a")
        .task("b")
        .reads(&[0])
        .task("c")
        .reads(&[1])
        .wants(&[2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    assert_eq!(cluster.run(), [0, 1, 2]);
    assert_eq!(cluster.state(0), TaskState::Released);
    cluster.die(WorkerId(1));
    assert_eq!(cluster.state(0), TaskState::Ready);
    cluster.join(slots(1));
    let mut order = Vec::new();
    let mut last = Vec::new();
    for _ in 0..3 {
        let tasks = cluster.place_tasks();
        last = cluster.finish(tasks[0]);
        order.extend(tasks);
    }
    assert_eq!(order, [0, 1, 2]);
    assert_eq!(ready(&last), [2]);
    assert!(is_done(&last));
}

#[test]
fn a_chain_of_a_million_is_computed_again_without_deep_recursion() {
    let length = 1_000_000;
    let mut graph = plan();
    for task in 0..length {
        graph = graph.task("t");
        if task > 0 {
            graph = graph.reads(&[task - 1]);
        }
    }
    let mut cluster = Cluster::new().workers(1, slots(1));
    let mut effects = Vec::new();
    let (client, number) = (CLIENT, 0);
    cluster.react(Event::GraphOpened {
        client,
        name: "g".into(),
        is_open_ended: false,
    });
    let chunk = Box::new(graph.wants(&[length - 1]).chunk);
    let arrived = Event::ChunkArrived {
        client,
        graph: GraphId(1),
        number,
        chunk,
    };
    cluster.core.react(arrived, cluster.now, &mut effects);
    for task in 0..length {
        effects.clear();
        while cluster.core.place(cluster.now, &mut effects) {}
        let Some(Effect::Assign {
            worker,
            attempt,
            task: assigned,
            ..
        }) = effects.last().cloned()
        else {
            panic!("task {task} is not assigned")
        };
        let report = TaskReport::Finished {
            bytes: 8,
            duration_micros: 1,
            rows: 0,
        };
        let reports = vec![(assigned, attempt, report)];
        cluster.core.react(
            Event::TaskReported { worker, reports },
            cluster.now,
            &mut effects,
        );
    }
    assert_eq!(cluster.state(length - 1), TaskState::Finished);
    cluster.die(WorkerId(1));
    assert_eq!(cluster.state(0), TaskState::Ready);
    assert_eq!(cluster.state(length - 1), TaskState::Waiting);
    // And a failure at its beginning fails all of it.
    cluster.join(slots(1));
    cluster.place();
    assert!(is_failed(
        &cluster.fail(0, true),
        length - 1,
        Code::TaskFailed,
        false
    ));
}

#[test]
fn only_running_tasks_are_blamed_for_a_death() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(2).wants(&[0, 1]));
    for round in 0..4 {
        assert_eq!(cluster.place_tasks().len(), 2);
        cluster.start(0);
        let effects = cluster.die(WorkerId(round + 1));
        let rescheduled = effects
            .iter()
            .filter(|effect| matches!(effect, Effect::TaskRescheduled { .. }));
        if round < 3 {
            assert_eq!(rescheduled.count(), 1);
        } else {
            assert!(is_failed(&effects, 0, Code::TaskKilledWorkers, true));
            assert_eq!(cluster.state(1), TaskState::Ready);
        }
        cluster.join(slots(1));
    }
    assert_eq!(cluster.run(), [1]);
}

#[test]
fn the_error_of_a_task_that_kills_workers_names_task_worker_and_reason() {
    let config = CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    };
    let mut cluster = Cluster::with(config)
        .workers(1, slots(1))
        .submit(plan().task("k").wants(&[0]));
    cluster.place();
    cluster.start(0);
    let effects = cluster.die(WorkerId(1));
    let text = effects
        .iter()
        .find_map(|effect| match effect {
            Effect::TaskFailed { error, .. } => Some(error.to_string()),
            _ => None,
        })
        .unwrap();
    assert!(
        text.contains("`k`") && text.contains("`w1`") && text.contains("signal 9"),
        "{text}"
    );
}

#[test]
fn retries_are_not_used_up_by_deaths_and_a_retired_worker_blames_nobody() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().task("a").retries(1).wants(&[0]));
    cluster.place();
    cluster.start(0);
    cluster.die(WorkerId(1));
    for number in 2..10 {
        cluster.join(slots(1));
        cluster.place();
        cluster.start(0);
        let worker = WorkerId(number);
        cluster.react(Event::WorkerLost {
            worker,
            loss: WorkerLoss::Retired,
        });
        assert_eq!(cluster.state(0), TaskState::Ready);
    }
    cluster.join(slots(1));
    cluster.place();
    cluster.fail(0, true);
    assert_eq!(cluster.state(0), TaskState::Ready);
    cluster.place();
    assert!(is_failed(&cluster.fail(0, true), 0, Code::TaskFailed, true));
}

#[test]
fn inputs_that_cannot_be_fetched_are_computed_again() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    let holder = cluster.worker_of(0);
    cluster.finish(0);
    cluster.place();
    let lost = vec![(cluster.at(0), holder)];
    let effects = cluster.report(1, TaskReport::InputsLost { lost });
    assert_eq!(released(&effects), [(holder.0, 0)]);
    assert_eq!(
        (cluster.state(0), cluster.state(1)),
        (TaskState::Ready, TaskState::Waiting)
    );
    assert_eq!(cluster.run(), [0, 1]);
}

#[test]
fn fetches_that_fail_for_ever_end_with_an_error() {
    let config = CoreConfig {
        fetch_limit: 5,
        ..CoreConfig::default()
    };
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::with(config).workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    for round in 0..=5 {
        assert_eq!(cluster.place_tasks(), [1]);
        let effects = cluster.report(1, TaskReport::InputsLost { lost: Vec::new() });
        assert_eq!(
            is_failed(&effects, 1, Code::ResultUnavailable, true),
            round == 5
        );
    }
}

#[test]
fn another_holder_saves_a_result() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().task("a").wants(&[0]));
    cluster.place();
    cluster.finish(0);
    let tasks = vec![cluster.at(0)];
    cluster.react(Event::CopiesAdded {
        worker: WorkerId(2),
        tasks,
    });
    cluster.die(WorkerId(1));
    assert_eq!(cluster.state(0), TaskState::Finished);
    let tasks = vec![cluster.at(0)];
    let effects = cluster.react(Event::CopiesMissing {
        worker: WorkerId(2),
        tasks,
    });
    assert_eq!(
        released(&effects),
        [(2, 0)],
        "it may have fetched it again just now"
    );
    assert_eq!(cluster.state(0), TaskState::Ready);
}

#[test]
fn a_late_copy_of_what_its_worker_makes_again_is_not_released() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().task("a").wants(&[0]));
    cluster.place();
    let first = cluster.worker_of(0);
    cluster.finish(0);
    cluster.die(first);
    cluster.place();
    let second = cluster.worker_of(0);
    assert_ne!(first, second);
    // Fetched before its source died, told after the task was assigned here: a release would reach
    // the worker after it has made the result.
    let tasks = vec![cluster.at(0)];
    let worker = second;
    assert_eq!(cluster.react(Event::CopiesAdded { worker, tasks }), []);
    cluster.finish(0);
    assert_eq!(cluster.core.holders(cluster.at(0)), [second]);
}

#[test]
fn a_task_that_cannot_run_again_lets_none_of_its_inputs_run_again() {
    let graph = plan()
        .task("a")
        .task("b")
        .needs(needs(1, &[], &["deadly"]))
        .task("x")
        .reads(&[0, 1])
        .task("y")
        .reads(&[1])
        .wants(&[2, 3]);
    let deadly = || WorkerInfo {
        group: "deadly".to_owned(),
        ..slots(1)
    };
    let mut cluster = Cluster::with(CoreConfig {
        crash_limit: 0,
        ..CoreConfig::default()
    })
    .workers(1, deadly())
    .submit(graph);
    assert_eq!(cluster.run(), [0, 1, 2, 3]);
    let (first, copier) = (
        cluster.core.holders(cluster.at(2))[0],
        cluster.join(slots(1)),
    );
    let tasks = vec![cluster.at(2)];
    let worker = copier;
    cluster.react(Event::CopiesAdded { worker, tasks });
    // `y` is lost and needs `b`, which fails for good.
    cluster.die(first);
    cluster.join(deadly());
    cluster.place();
    cluster.start(1);
    let worker = cluster.worker_of(1);
    cluster.die(worker);
    assert_eq!(cluster.state(3), TaskState::Failed);
    assert_eq!(cluster.state(2), TaskState::Finished);
    // `x` is lost, too: there is no use for `a`.
    cluster.die(copier);
    assert_eq!(cluster.state(2), TaskState::Failed);
    assert_eq!(cluster.state(0), TaskState::Released);
}

// ---- attempts ----

#[test]
fn reports_of_another_attempt_worker_or_epoch_change_nothing() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().task("a").retries(1).wants(&[0]));
    cluster.place();
    let (worker, old) = cluster.assigned[&0];
    cluster.fail(0, true);
    cluster.place();
    let (now_at, new) = cluster.assigned[&0];
    assert_eq!(new.number, old.number + 1);
    let finished = || TaskReport::Finished {
        bytes: 1,
        duration_micros: 1,
        rows: 0,
    };
    let other_epoch = Attempt {
        epoch: new.epoch + 1,
        ..new
    };
    let other_worker = WorkerId(if now_at.0 == 1 { 2 } else { 1 });
    for (worker, attempt, is_dropped) in [
        (worker, old, worker != now_at),
        (now_at, other_epoch, false),
        (other_worker, new, true),
    ] {
        let reports = vec![(cluster.at(0), attempt, finished())];
        let effects = cluster.react(Event::TaskReported { worker, reports });
        assert_eq!(released(&effects).len(), usize::from(is_dropped));
        assert_eq!(cluster.state(0), TaskState::Assigned);
    }
    assert_eq!(ready(&cluster.finish(0)), [0]);
    // Said twice: the holder keeps its result.
    assert_eq!(cluster.finish(0), []);
}
