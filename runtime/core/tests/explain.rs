//! What is said about a task: why it waits, why it is where it is, why it failed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{CLIENT, Cluster, needs, plan, slots};
use oxidask_core::{
    Event, Explanation, FailureFacts, PlaceFacts, TaskReport, TaskState, WaitFacts, WorkerId,
    WorkerInfo,
};

fn explain(cluster: &Cluster, task: u32) -> Explanation {
    cluster.core.explain(cluster.at(task)).unwrap()
}

/// The sentences about why a task waits.
fn waits(cluster: &Cluster, task: u32) -> Vec<String> {
    let waits = explain(cluster, task).waits;
    waits.iter().map(ToString::to_string).collect()
}

fn placed(cluster: &Cluster, task: u32) -> String {
    explain(cluster, task).place.unwrap().to_string()
}

#[test]
fn inputs_that_are_not_there_are_named_with_their_state() {
    let graph = plan()
        .task("a")
        .task("b")
        .task("x")
        .reads(&[0, 1, 1])
        .wants(&[2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    assert_eq!(
        waits(&cluster, 2),
        ["waits for 2 inputs: `a` (ready), `b` (ready)"]
    );
    cluster.place();
    cluster.start(0);
    cluster.finish(1);
    assert_eq!(waits(&cluster, 2), ["waits for 1 input: `a` (running)"]);
    let WaitFacts::Inputs { count, some } = &explain(&cluster, 2).waits[0] else {
        panic!("waits for something else");
    };
    assert_eq!((*count, some[0].task), (1, cluster.at(0)));
    cluster.suspect(WorkerId(1));
    let sentences = waits(&cluster, 2);
    assert_eq!(sentences.len(), 2);
    assert!(sentences[1].contains("not heard: `w1`"), "{sentences:?}");
    assert_eq!(cluster.core.explain(cluster.at(77)), None);
}

#[test]
fn without_a_worker_that_could_run_it_the_first_obstacle_is_named() {
    let graph = plan()
        .task("plain")
        .task("limited")
        .needs(needs(1, &[], &["here", "there"]))
        .task("gpu")
        .needs(needs(1, &[("gpu", 4)], &[]))
        .task("both")
        .needs(needs(1, &[("gpu", 1), ("disk", 1)], &[]))
        .wants(&[0, 1, 2, 3]);
    let mut cluster = Cluster::new().submit(graph);
    assert_eq!(
        waits(&cluster, 0),
        ["waits for a worker, none is connected"]
    );
    for resource in ["gpu", "disk"] {
        cluster.join(WorkerInfo {
            resources: vec![(resource.to_owned(), 2)],
            ..slots(1)
        });
    }
    assert_eq!(
        waits(&cluster, 1),
        ["is limited to the workers or groups `here`, `there`, none of which is connected"]
    );
    assert_eq!(
        waits(&cluster, 2),
        ["needs 4 of resource `gpu`, no worker has more than 2"]
    );
    assert_eq!(
        waits(&cluster, 3),
        ["needs more resources than any one worker offers"]
    );
}

#[test]
fn workers_that_are_busy_or_take_nothing_are_told_apart() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().tasks(7).wants(&[0, 6]));
    cluster.place();
    cluster.start(0);
    let busy = "waits for one of 2 slots of 2 workers that could run it, as do 2 other tasks that \
                ask for the same; the first is free in about 400 ms";
    assert_eq!(waits(&cluster, 6), [busy]);
    let (worker, is_paused) = (WorkerId(1), true);
    cluster.react(Event::WorkerPaused { worker, is_paused });
    cluster.suspect(WorkerId(2));
    let closed = "some workers that could run it take no new work: 1 without room, 0 retiring, \
                  1 not heard";
    assert_eq!(waits(&cluster, 6), [closed]);
}

#[test]
fn a_task_on_a_worker_says_what_it_finds_there() {
    let graph = plan().tasks(2).task("x").reads(&[0, 1]).wants(&[2]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    assert!(placed(&cluster, 0).contains("which had the least to do of 2 workers"));
    cluster.finish_with(0, 600, 10);
    cluster.finish_with(1, 400, 10);
    cluster.place();
    let (worker, name) = (cluster.worker_of(2), format!("w{}", cluster.worker_of(2)));
    let Some(PlaceFacts::Worker {
        worker: at,
        local_bytes,
        input_bytes,
        ..
    }) = explain(&cluster, 2).place
    else {
        panic!("it is elsewhere");
    };
    assert_eq!((at, input_bytes), (worker, 1_000));
    assert_eq!(
        local_bytes,
        if cluster.worker_of(0) == worker {
            600
        } else {
            400
        }
    );
    assert_eq!(
        waits(&cluster, 2),
        [format!("waits at worker `{name}`, which runs 0 tasks")]
    );
    cluster.start(2);
    assert_eq!(waits(&cluster, 2), [""; 0]);
}

#[test]
fn a_result_says_where_it_is_and_for_whom() {
    let graph = plan().task("a").task("x").reads(&[0]).wants(&[1]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    cluster.finish(0);
    let name = format!("w{}", cluster.worker_of(0));
    let sentence = format!("its result of 8 bytes is at `{name}`; 1 use to come");
    assert_eq!(placed(&cluster, 0), sentence);
    cluster.run();
    assert!(placed(&cluster, 1).ends_with("the client wants it"));
    assert_eq!(
        placed(&cluster, 0),
        "nobody needs its result, so it is not kept"
    );
}

#[test]
fn a_failure_names_its_origin_and_what_was_tried() {
    let graph = plan()
        .task("a")
        .retries(2)
        .task("x")
        .reads(&[0])
        .task("other")
        .wants(&[1, 2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.start(0);
    cluster.die(WorkerId(1));
    cluster.join(slots(1));
    cluster.place();
    cluster.fail(0, true);
    let explanation = explain(&cluster, 0);
    assert_eq!(
        (
            explanation.retries_left,
            explanation.crashes,
            explanation.attempts
        ),
        (1, 1, 2)
    );
    cluster.place();
    cluster.fail(0, false);
    let explanation = explain(&cluster, 1);
    assert_eq!(explanation.state, TaskState::Failed);
    let FailureFacts {
        origin, is_origin, ..
    } = explanation.failure.unwrap();
    assert_eq!((origin.as_deref(), is_origin), (Some("a"), false));
    let sentence = |task| explain(&cluster, task).failure.unwrap().to_string();
    assert_eq!(sentence(0), "failed: task 0 failed");
    assert_eq!(sentence(1), "cannot run because `a` failed: task 0 failed");
    let (client, graph) = (CLIENT, cluster.graph);
    cluster.react(Event::GraphCancelled { client, graph });
    let failure = explain(&cluster, 2).failure.unwrap().to_string();
    assert_eq!(failure, "ended with its graph: graph `g` was cancelled");
}

#[test]
fn a_retraction_is_mentioned() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(2).wants(&[0, 1]));
    cluster.place();
    cluster.report(0, TaskReport::Started);
    cluster.retire(&[WorkerId(1)], 1_000_000);
    assert!(waits(&cluster, 1)[0].contains("asked to give it back"));
}
