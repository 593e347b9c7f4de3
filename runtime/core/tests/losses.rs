//! Inputs that are found missing while a task runs: made again, nobody blamed, never for ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{Cluster, is_failed, plan, ready, released, slots};
use oxidask_core::{CoreConfig, Effect, GraphProgress, TaskReport, TaskState, WorkerId};
use oxidask_diagnostic::Code;

/// Nobody may be blamed for anything.
fn strict() -> CoreConfig {
    CoreConfig {
        crash_limit: 0,
        fetch_limit: 5,
        ..CoreConfig::default()
    }
}

fn inputs_lost(cluster: &mut Cluster, reader: u32, lost: &[(u32, WorkerId)]) -> Vec<Effect> {
    let lost = lost
        .iter()
        .map(|(task, worker)| (cluster.at(*task), *worker));
    let lost = lost.collect();
    cluster.report(reader, TaskReport::InputsLost { lost })
}

/// One worker, inputs that are finished, and readers of all of them.
fn with_readers(inputs: u32, readers: u32) -> Cluster {
    let mut graph = plan().tasks(inputs);
    let all: Vec<u32> = (0..inputs).collect();
    for _ in 0..readers {
        graph = graph.task("reader").reads(&all);
    }
    let wanted: Vec<u32> = (inputs..inputs + readers).collect();
    let mut cluster = Cluster::with(strict())
        .workers(1, slots(inputs.max(readers)))
        .submit(graph.wants(&wanted));
    assert_eq!(cluster.place_tasks(), all);
    for input in all {
        cluster.finish(input);
    }
    assert_eq!(cluster.place_tasks(), wanted);
    cluster
}

#[test]
fn a_reader_that_runs_waits_for_what_it_misses_and_runs_again() {
    let mut cluster = with_readers(3, 1);
    cluster.start(3);
    let effects = inputs_lost(&mut cluster, 3, &[(0, WorkerId(1)), (2, WorkerId(1))]);
    assert_eq!(released(&effects), [(1, 0), (1, 2)]);
    assert_eq!(
        (0..4).map(|task| cluster.state(task)).collect::<Vec<_>>(),
        [
            TaskState::Ready,
            TaskState::Finished,
            TaskState::Ready,
            TaskState::Waiting
        ]
    );
    // Its retries, of which it has none, are not used up.
    assert_eq!(cluster.run(), [0, 2, 3]);
    assert_eq!(cluster.state(3), TaskState::Finished);
}

#[test]
fn losses_that_show_one_by_one_are_no_failure() {
    let mut cluster = with_readers(100, 1);
    for input in 0..100 {
        cluster.start(100);
        inputs_lost(&mut cluster, 100, &[(input, WorkerId(1))]);
        assert_eq!(cluster.place_tasks(), [input]);
        cluster.finish(input);
        assert_eq!(cluster.place_tasks(), [100]);
    }
    assert_eq!(ready(&cluster.finish(100)), [100]);
}

#[test]
fn an_input_that_is_lost_for_ever_is_an_error_in_the_end() {
    let mut cluster = with_readers(1, 1);
    for round in 0.. {
        cluster.start(1);
        let effects = inputs_lost(&mut cluster, 1, &[(0, WorkerId(1))]);
        if is_failed(&effects, 1, Code::ResultUnavailable, true) {
            assert_eq!(
                round, 10,
                "five losses of the input, then five of the reader"
            );
            break;
        }
        assert!(round < 10, "the repetitions are bounded");
        assert_eq!(cluster.place_tasks(), [0]);
        cluster.finish(0);
        assert_eq!(cluster.place_tasks(), [1]);
    }
}

#[test]
fn a_late_reader_does_not_drop_what_was_made_again_meanwhile() {
    let mut cluster = with_readers(1, 3);
    for reader in 1..4 {
        cluster.start(reader);
    }
    inputs_lost(&mut cluster, 1, &[(0, WorkerId(1))]);
    // Found by another reader before the input is there again.
    assert_eq!(
        released(&inputs_lost(&mut cluster, 2, &[(0, WorkerId(1))])),
        []
    );
    assert_eq!(cluster.place_tasks(), [0]);
    cluster.finish(0);
    // Found by the last one only now.
    let effects = inputs_lost(&mut cluster, 3, &[(0, WorkerId(1))]);
    assert_eq!(released(&effects), []);
    assert_eq!(cluster.state(0), TaskState::Finished);
    assert_eq!(cluster.run(), [1, 2, 3]);
}

#[test]
fn the_death_of_a_holder_is_noticed_by_readers_that_still_need_it() {
    let graph = plan()
        .tasks(2)
        .task("x")
        .reads(&[0, 1])
        .task("y")
        .reads(&[0, 1])
        .wants(&[2, 3]);
    let mut cluster = Cluster::with(strict()).workers(2, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    cluster.finish(1);
    assert_eq!(cluster.place_tasks().len(), 2);
    let (x, y) = (2, 3);
    cluster.start(x);
    cluster.start(y);
    let dead = cluster.worker_of(0);
    let (survivor, victim) = if cluster.worker_of(x) == dead {
        (y, x)
    } else {
        (x, y)
    };
    // The reader on the dead worker was running there: it is blamed as ever, but not the other.
    let effects = cluster.die(dead);
    assert!(is_failed(&effects, victim, Code::TaskKilledWorkers, true));
    assert_eq!(cluster.state(survivor), TaskState::Running);
    assert_eq!(
        cluster.state(0),
        TaskState::Released,
        "perhaps nobody misses it"
    );
    inputs_lost(&mut cluster, survivor, &[(0, dead)]);
    assert_eq!(cluster.run(), [0, survivor]);
}

#[test]
fn progress_counts_what_was_made_also_when_it_is_gone() {
    let mut cluster = Cluster::new()
        .workers(1, slots(2))
        .submit(plan().tasks(2).task("x").reads(&[0, 1]).wants(&[2]));
    cluster.place();
    for (task, rows) in [(0, 10), (1, 5), (2, 1)] {
        if task == 2 {
            cluster.place();
        }
        let report = TaskReport::Finished {
            bytes: 100,
            duration_micros: 1,
            rows,
        };
        cluster.report(task, report);
    }
    let progress: GraphProgress = cluster.core.progress(cluster.graph).unwrap();
    let group = &progress.groups[0];
    assert_eq!((group.bytes, group.made_bytes, group.rows), (100, 300, 16));
}
