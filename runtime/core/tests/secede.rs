//! Tasks that run on without their slots and resources: others run in their stead, and whatever
//! becomes of them nothing is given back twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{
    CLIENT, Cluster, cancelled, is_done, needs, next_plan, plan, ready, released, slots,
};
use oxidask_core::{
    Event, Inventory, TaskReport,
    TaskState::{Assigned, Finished, Ready, Released, Running},
    WorkerId, WorkerInfo,
};

const W1: WorkerId = WorkerId(1);

fn with_gpu() -> WorkerInfo {
    WorkerInfo {
        resources: vec![("gpu".to_owned(), 1)],
        ..slots(1)
    }
}

#[test]
fn a_task_that_waits_for_another_one_on_the_only_slot_finishes() {
    let gpu = needs(1, &[("gpu", 1)], &[]);
    let graph = plan().task("outer").needs(gpu.clone()).wants(&[0]);
    let mut cluster = Cluster::new().workers(1, with_gpu());
    cluster = cluster.submit(graph.unfinished());
    cluster.place();
    // It submits another one that asks for the same, and waits for it.
    let inner = next_plan().task("inner").needs(gpu).wants(&[1]);
    cluster.send(inner);
    assert_eq!(cluster.place_tasks(), []);
    cluster.report(0, TaskReport::Seceded);
    assert_eq!(cluster.state(0), Running, "its start was left out");
    assert_eq!(cluster.place_tasks(), [1]);
    let facts = &cluster.core.workers()[0];
    assert_eq!((facts.running, facts.queued), (1, 1));
    cluster.start(1);
    // It is back before the other one is through: more than the worker has.
    cluster.report(0, TaskReport::Rejoined);
    cluster.report(0, TaskReport::Rejoined);
    assert_eq!(cluster.place_tasks(), []);
    assert_eq!(ready(&cluster.finish(1)), [1]);
    let effects = cluster.finish(0);
    assert_eq!(ready(&effects), [0]);
    assert!(is_done(&effects));
}

#[test]
fn others_of_the_worker_get_the_slots_and_finishing_gives_nothing_back_twice() {
    let graph = plan().tasks(4).wants(&[0, 1, 2, 3]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.start(0);
    for _ in 0..2 {
        cluster.report(0, TaskReport::Seceded);
    }
    cluster.place();
    assert_eq!(cluster.state(2), Assigned);
    assert_eq!(cluster.state(3), Ready);
    assert_eq!(ready(&cluster.finish(0)), [0]);
    assert_eq!(cluster.place_tasks(), [], "it had nothing any more");
    cluster.finish(1);
    assert_eq!(cluster.place_tasks(), [3]);
}

#[test]
fn it_dies_with_its_worker_and_is_blamed_like_any_other() {
    let graph = plan().task("a").wants(&[0]);
    let mut cluster = Cluster::new().workers(1, with_gpu()).submit(graph);
    cluster.place();
    cluster.report(0, TaskReport::Seceded);
    cluster.die(W1);
    assert_eq!(cluster.state(0), Ready);
    assert_eq!(cluster.core.explain(cluster.at(0)).unwrap().crashes, 1);
    cluster.join(slots(1));
    assert_eq!(cluster.run(), [0]);
}

#[test]
fn it_can_be_cancelled_and_its_worker_is_free_once() {
    let graph = plan().tasks(2).wants(&[0]).unfinished();
    let mut cluster = Cluster::new().workers(1, slots(1));
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "g".into(),
        is_open_ended: true,
    });
    cluster.send(graph);
    cluster.place();
    cluster.report(0, TaskReport::Seceded);
    let tasks = vec![cluster.at(0)];
    let effects = cluster.react(Event::ResultsReleased {
        client: CLIENT,
        tasks,
    });
    assert_eq!(cancelled(&effects), [(1, 0)]);
    assert_eq!(cluster.state(0), Released);
    // What it still says is too late.
    cluster.report(0, TaskReport::Rejoined);
    assert_eq!(released(&cluster.finish(0)), [(1, 0)]);
    assert_eq!(cluster.core.workers()[0].running, 0);
}

#[test]
fn who_has_seceded_is_settled_by_the_word_of_a_worker_that_returns() {
    let gpu = || needs(1, &[("gpu", 1)], &[]);
    let graph = plan().task("a").needs(gpu()).task("b").needs(gpu());
    let mut cluster = Cluster::new()
        .workers(1, with_gpu())
        .submit(graph.wants(&[0, 1]));
    cluster.place();
    cluster.report(0, TaskReport::Seceded);
    cluster.place();
    cluster.start(1);
    let before = cluster.core.digest(W1).unwrap();
    cluster.suspect(W1);
    let of = |task: u32| (cluster.at(task), cluster.assigned[&task].1);
    let (first, second) = (of(0), of(1));
    let come_back = |cluster: &mut Cluster, seceded| {
        let inventory = Box::new(Inventory {
            running: vec![second, first],
            seceded,
            ..Inventory::default()
        });
        let worker = W1;
        cluster.react(Event::WorkerReturned { worker, inventory })
    };
    // It took its slots back meanwhile, and what it had to report of that was lost.
    let effects = come_back(&mut cluster, Vec::new());
    assert_eq!(cancelled(&effects), []);
    assert_ne!(cluster.core.digest(W1), Some(before));
    cluster.suspect(W1);
    come_back(&mut cluster, vec![first]);
    assert_eq!(cluster.core.digest(W1), Some(before));
    // Both run elsewhere, and are found to run here after all.
    cluster.suspect(W1);
    cluster.pass(3_000_000);
    assert_eq!(cluster.state(0), Ready);
    let effects = come_back(&mut cluster, vec![first]);
    assert_eq!(cancelled(&effects), []);
    assert_eq!((cluster.state(0), cluster.state(1)), (Running, Running));
    assert_eq!(cluster.core.digest(W1), Some(before));
    cluster.finish(0);
    cluster.finish(1);
    assert_eq!((cluster.state(0), cluster.state(1)), (Finished, Finished));
}

#[test]
fn a_worker_whose_tasks_have_all_seceded_is_still_wanted() {
    let graph = plan().task("a").wants(&[0]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.report(0, TaskReport::Seceded);
    assert_eq!(cluster.core.backlog(60).groups[0].workers_wanted, 1);
    cluster.finish(0);
    assert_eq!(cluster.core.workers()[0].running, 0);
}
