//! The scaling signal. That its counters equal a look at every task is checked by the invariants,
//! after every event of all tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{CLIENT, Cluster, needs, plan, slots};
use oxidask_core::{
    Backlog, CoreConfig, Event, GroupBacklog, TaskReport, WorkerId, WorkerInfo, WorkerLoss,
};

fn of<'a>(backlog: &'a Backlog, name: &str) -> &'a GroupBacklog {
    let mut groups = backlog.groups.iter();
    groups.find(|group| group.group == name).unwrap()
}

fn in_group(group: &str, slots_each: u32) -> WorkerInfo {
    WorkerInfo {
        group: group.to_owned(),
        ..slots(slots_each)
    }
}

fn leave(cluster: &mut Cluster, worker: u32) {
    let (worker, loss) = (WorkerId(worker), WorkerLoss::Retired);
    cluster.react(Event::WorkerLost { worker, loss });
}

#[test]
fn work_is_measured_by_what_tasks_took_and_guessed_before() {
    let mut cluster = Cluster::new()
        .workers(1, slots(2))
        .submit(plan().tasks(100).wants(&[0]));
    let before = cluster.core.backlog(10);
    let group = of(&before, "default");
    assert_eq!(
        (group.waiting_tasks, group.waiting_micros),
        (100, 20_000_000)
    );
    assert_eq!(group.workers_wanted, 1, "20 s of work for 2 slots");
    cluster.place();
    cluster.start(0);
    cluster.finish_with(0, 8, 3_000_000);
    let after = cluster.core.backlog(10);
    let group = of(&after, "default");
    // 96 wait for 3 s each; 3 were handed out before that was known.
    assert_eq!(
        (group.waiting_tasks, group.waiting_micros),
        (96, 288_000_000)
    );
    assert_eq!((group.placed_micros, group.tail_micros), (600_000, 300_000));
    assert_eq!(group.workers_wanted, 15, "288.6 s / (10 s and 2 slots)");
    assert!(
        group.reason.contains("96 tasks with 288.0 s"),
        "{}",
        group.reason
    );
    let soon = cluster.core.backlog(1);
    let wanted = of(&soon, "default").workers_wanted;
    assert_eq!(wanted, 49, "no more than one for two tasks would help");
}

#[test]
fn nothing_to_do_is_no_worker_and_idleness_is_dated() {
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(plan().tasks(1).wants(&[0]));
    cluster.place();
    cluster.pass(1_000);
    assert_eq!(of(&cluster.core.backlog(1), "default").idle_since, None);
    cluster.finish(0);
    cluster.pass(1_000);
    assert_eq!(
        of(&cluster.core.backlog(1), "default").idle_since,
        None,
        "busy since the last look"
    );
    cluster.pass(1_000);
    let since = cluster.now;
    cluster.pass(5_000_000);
    let backlog = cluster.core.backlog(1);
    let group = of(&backlog, "default");
    assert_eq!(group.idle_since, Some(since));
    assert_eq!(group.workers_wanted, 1, "it keeps a result");
    assert!(group.reason.contains("8 bytes"), "{}", group.reason);
    let (client, graph) = (CLIENT, cluster.graph);
    cluster.react(Event::GraphClosed { client, graph });
    let backlog = cluster.core.backlog(1);
    assert_eq!(of(&backlog, "default").workers_wanted, 0);
    assert_eq!(
        of(&backlog, "default").reason,
        "nothing to do and nothing to keep"
    );
}

#[test]
fn work_goes_to_the_groups_that_can_do_it_also_when_they_have_no_workers() {
    let gpu = needs(1, &[("gpu", 1)], &[]);
    let big = needs(1, &[], &["big"]);
    let odd = needs(1, &[("fpga", 1)], &[]);
    let mut graph = plan().tasks(6);
    for (key, requirement) in [("g", gpu), ("b", big), ("o", odd.clone())] {
        graph = graph.task(key).needs(requirement);
    }
    let mut cluster = Cluster::new();
    cluster.join(in_group("big", 4));
    cluster.join(WorkerInfo {
        resources: vec![("gpu".to_owned(), 2)],
        ..in_group("gpu", 2)
    });
    let mut cluster = cluster.submit(graph.wants(&[0]));
    let backlog = cluster.core.backlog(1);
    // Six plain tasks are shared by slots; the others have one place each.
    assert_eq!(of(&backlog, "big").waiting_tasks, 4 + 1);
    assert_eq!(of(&backlog, "gpu").waiting_tasks, 2 + 1);
    assert_eq!(backlog.unplaceable.len(), 1);
    assert_eq!(backlog.unplaceable[0].requirement, odd);
    assert_eq!(backlog.unplaceable[0].ready_tasks, 1);
    leave(&mut cluster, 1);
    leave(&mut cluster, 2);
    let backlog = cluster.core.backlog(1);
    assert_eq!(of(&backlog, "big").waiting_tasks, 4 + 1);
    assert_eq!(of(&backlog, "gpu").waiting_tasks, 2 + 1);
    assert_eq!(
        (
            of(&backlog, "gpu").workers,
            of(&backlog, "gpu").workers_wanted
        ),
        (0, 1)
    );
    assert_eq!(backlog.unplaceable.len(), 1);
}

#[test]
fn resources_bound_what_one_worker_does_at_once() {
    let gpu = needs(1, &[("gpu", 1)], &[]);
    let mut graph = plan();
    for number in 0..10 {
        graph = graph.task(&format!("g{number}")).needs(gpu.clone());
    }
    let mut cluster = Cluster::new();
    cluster.join(WorkerInfo {
        resources: vec![("gpu".to_owned(), 1)],
        ..slots(8)
    });
    let cluster = cluster.submit(graph.wants(&[0]));
    let backlog = cluster.core.backlog(1);
    let group = of(&backlog, "default");
    assert_eq!(group.workers_wanted, 2, "2 s of work, one task at a time");
    assert_eq!(
        group
            .classes
            .iter()
            .map(|class| class.ready_tasks)
            .sum::<u64>(),
        10
    );
}

#[test]
fn memory_asks_for_workers_too() {
    let wanted: Vec<u32> = (0..10).collect();
    let config = CoreConfig::default();
    let info = WorkerInfo {
        memory_bytes: 1_000,
        ..slots(1)
    };
    let mut cluster = Cluster::with(config)
        .workers(2, info)
        .submit(plan().tasks(10).wants(&wanted));
    for _ in 0..3 {
        for task in cluster.place_tasks().into_iter().take(2) {
            cluster.finish_with(task, 400, 1_000);
        }
    }
    cluster.place();
    let backlog = cluster.core.backlog(60);
    let group = of(&backlog, "default");
    assert_eq!((group.held_bytes, group.expected_bytes), (2_400, 1_600));
    assert_eq!(group.workers_wanted, 5, "4000 bytes at 800 a worker");
    assert!(group.reason.contains("4000 bytes"), "{}", group.reason);
}

#[test]
fn what_waits_for_inputs_counts_and_what_failed_does_not() {
    let graph = plan()
        .task("a")
        .task("x")
        .reads(&[0])
        .task("y")
        .reads(&[1])
        .wants(&[2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    let backlog = cluster.core.backlog(1);
    let class = &of(&backlog, "default").classes[0];
    assert_eq!((class.ready_tasks, class.waiting_tasks), (0, 2));
    cluster.report(0, TaskReport::Started);
    cluster.fail(0, false);
    let backlog = cluster.core.backlog(1);
    assert!(of(&backlog, "default").classes.is_empty());
    assert_eq!(of(&backlog, "default").workers_wanted, 0);
}

#[test]
fn workers_that_take_nothing_are_told_apart() {
    let mut cluster = Cluster::new()
        .workers(3, slots(2))
        .submit(plan().tasks(50).wants(&[0]));
    cluster.suspect(WorkerId(1));
    cluster.retire(&[WorkerId(2)], 1);
    let backlog = cluster.core.backlog(1);
    let group = of(&backlog, "default");
    assert_eq!((group.workers, group.workers_open, group.slots), (3, 1, 2));
    assert_eq!(group.waiting_tasks, 50);
    assert_eq!(backlog.unplaceable, []);
}
