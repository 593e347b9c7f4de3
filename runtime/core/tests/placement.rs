//! Which task goes where, and in which order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod cluster;

use cluster::{CLIENT, Cluster, needs, next_plan, plan, retracted, slots};
use oxidask_core::{Effect, Event, GraphId, TaskReport, TaskState, WorkerId, WorkerInfo};

#[test]
fn independent_tasks_spread_over_all_workers() {
    let mut cluster = Cluster::new()
        .workers(4, slots(2))
        .submit(plan().tasks(8).wants(&[0]));
    assert_eq!(cluster.place_tasks(), [0, 1, 2, 3, 4, 5, 6, 7]);
    for worker in cluster.core.workers() {
        assert_eq!(worker.queued, 2, "{}", worker.name);
    }
}

#[test]
fn long_tasks_stay_here_and_tiny_ones_are_queued_deep() {
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(3_000).wants(&[0]));
    assert_eq!(cluster.place_tasks().len(), 2);
    cluster.finish_with(0, 8, 2);
    cluster.finish_with(1, 8, 2);
    let queued = cluster.place_tasks().len();
    assert!((1_000..=1_024).contains(&queued), "{queued}");

    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(3_000).wants(&[0]));
    cluster.place();
    cluster.finish_with(0, 8, 1_000_000);
    assert_eq!(cluster.place_tasks().len(), 1);
}

#[test]
fn more_than_the_slots_can_take_is_a_queue() {
    let mut cluster = Cluster::new()
        .workers(2, slots(2))
        .submit(plan().tasks(5).wants(&[0, 1, 2, 3, 4]));
    assert!(!cluster.core.has_queues());
    assert_eq!(cluster.place_tasks().len(), 5);
    assert!(cluster.core.has_queues());
    cluster.finish_with(0, 8, 2);
    let full = cluster
        .core
        .workers()
        .iter()
        .any(|worker| worker.queued > 2);
    assert_eq!(cluster.core.has_queues(), full);
    for task in 1..5 {
        cluster.finish_with(task, 8, 2);
    }
    assert!(!cluster.core.has_queues());
}

#[test]
fn tasks_go_where_their_big_inputs_are() {
    let graph = plan()
        .task("a")
        .task("b")
        .task("x")
        .reads(&[0])
        .task("y")
        .reads(&[1])
        .wants(&[2, 3]);
    let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
    cluster.place();
    let (a, b) = (cluster.worker_of(0), cluster.worker_of(1));
    assert_ne!(a, b);
    cluster.finish_with(1, 1 << 30, 100);
    cluster.finish_with(0, 1 << 30, 100);
    cluster.place();
    assert_eq!((cluster.worker_of(2), cluster.worker_of(3)), (a, b));
}

#[test]
fn waiting_for_a_busy_holder_is_weighed_against_moving() {
    for (bytes, is_moved) in [(1_u64 << 40, false), (1_000_000, true)] {
        let graph = plan()
            .task("a")
            .task("x")
            .reads(&[0])
            .task("y")
            .reads(&[0])
            .wants(&[1, 2]);
        let mut cluster = Cluster::new().workers(2, slots(1)).submit(graph);
        cluster.place();
        let holder = cluster.worker_of(0);
        cluster.finish_with(0, bytes, 50_000);
        cluster.place();
        assert_eq!(cluster.worker_of(1), holder);
        assert_eq!(cluster.worker_of(2) != holder, is_moved, "{bytes} bytes");
    }
}

#[test]
fn who_has_to_wait_waits_where_a_run_ends_first() {
    let graph = plan().tasks(2).task("x").reads(&[0]);
    let mut cluster = Cluster::new()
        .workers(2, slots(1))
        .submit(graph.wants(&[1, 2]).unfinished());
    cluster.place();
    let (holder, other) = (cluster.worker_of(0), cluster.worker_of(1));
    cluster.start(1);
    // It is taken to need 200 ms, since none has ended yet.
    cluster.pass(198_000);
    cluster.finish_with(0, 8, 5_000);
    // Something urgent begins where the input is, just now.
    cluster.send(next_plan().task("urgent").priority(1).wants(&[3]));
    assert_eq!(cluster.place_tasks(), [3, 2]);
    assert_eq!(cluster.worker_of(3), holder);
    assert_eq!(cluster.worker_of(2), other);
}

#[test]
fn the_longest_way_goes_first_when_the_graph_could_not_end_before_it() {
    for (slots_of_all, goes_first) in [(1, 0), (4, 10)] {
        let mut graph = plan().tasks(11);
        for task in 11..18 {
            graph = graph.task(&format!("chain-{task}")).reads(&[task - 1]);
        }
        let mut cluster = Cluster::new()
            .workers(1, slots(slots_of_all))
            .submit(graph.wants(&[17]));
        assert_eq!(cluster.place_tasks()[0], goes_first, "{slots_of_all} slots");
    }
}

#[test]
fn larger_priorities_first_then_order_of_submission() {
    let graph = plan()
        .task("a")
        .task("b")
        .priority(5)
        .task("c")
        .priority(-1)
        .task("d")
        .priority(5);
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(graph.wants(&[0]));
    assert_eq!(cluster.run(), [1, 3, 0, 2]);
}

#[test]
fn priorities_hold_across_requirements() {
    let graph = plan()
        .task("low")
        .task("high")
        .priority(1)
        .needs(needs(1, &[], &["w1"]))
        .task("highest")
        .priority(2);
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(graph.wants(&[0]));
    assert_eq!(cluster.run(), [2, 1, 0]);
}

#[test]
fn the_older_graph_goes_first() {
    let mut cluster = Cluster::new().submit(plan().tasks(2).wants(&[0]));
    cluster.react(Event::GraphOpened {
        client: CLIENT,
        name: "second".into(),
        is_open_ended: false,
    });
    let chunk = Box::new(plan().task("x").wants(&[0]).chunk);
    let graph = GraphId(2);
    cluster.react(Event::ChunkArrived {
        client: CLIENT,
        graph,
        number: 0,
        chunk,
    });
    cluster.join(slots(1));
    let effects = cluster.place();
    let graphs: Vec<u32> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Assign { task, .. } => Some(task.graph.0),
            _ => None,
        })
        .collect();
    assert_eq!(graphs, [1, 1]);
}

#[test]
fn a_task_that_asks_for_more_slots_than_there_are_takes_all() {
    let graph = plan()
        .task("a")
        .needs(needs(u32::MAX, &[], &[]))
        .tasks(4)
        .wants(&[0]);
    let mut cluster = Cluster::new().workers(2, slots(4)).submit(graph);
    cluster.place();
    let whole = cluster.worker_of(0);
    for task in 1..5 {
        assert_ne!(cluster.worker_of(task), whole);
    }
    assert_eq!(cluster.core.slots(cluster.at(0)), u32::MAX);
}

#[test]
fn a_task_of_all_slots_is_not_starved_by_small_ones() {
    let mut graph = plan()
        .tasks(2)
        .task("all")
        .priority(1)
        .needs(needs(99, &[], &[]))
        .tasks(50);
    graph.chunk.priority[0] = 2;
    graph.chunk.priority[1] = 2;
    let mut cluster = Cluster::new()
        .workers(1, slots(2))
        .submit(graph.wants(&[2]));
    let order = cluster.run();
    assert!(
        order.iter().position(|task| *task == 2).unwrap() <= 4,
        "{order:?}"
    );
}

#[test]
fn task_resources_bound_what_is_on_a_worker() {
    let mut graph = plan();
    for key in ["a", "b", "c"] {
        graph = graph.task(key).needs(needs(1, &[("gpu", 1)], &[]));
    }
    let gpu = WorkerInfo {
        resources: vec![("gpu".to_owned(), 2)],
        ..slots(8)
    };
    let mut cluster = Cluster::new()
        .workers(1, slots(8))
        .workers(1, gpu)
        .submit(graph.wants(&[2]));
    assert_eq!(cluster.place_tasks(), [0, 1]);
    assert_eq!(
        (cluster.worker_of(0), cluster.worker_of(1)),
        (WorkerId(2), WorkerId(2))
    );
    cluster.finish(0);
    assert_eq!(cluster.place_tasks(), [2]);
    assert_eq!(cluster.worker_of(2), WorkerId(2));
}

#[test]
fn tasks_that_nobody_can_run_are_parked_until_somebody_can() {
    let graph = plan()
        .task("a")
        .needs(needs(1, &[("gpu", 1)], &[]))
        .task("b")
        .needs(needs(1, &[], &["big"]))
        .task("c");
    let mut cluster = Cluster::new().submit(graph.wants(&[0, 1, 2]));
    assert_eq!(cluster.core.cluster().parked, 3);
    let reason = cluster.core.cluster().parked_reason.unwrap();
    assert!(reason.contains("none is connected"), "{reason}");
    cluster.join(slots(2));
    assert_eq!(cluster.place_tasks(), [2]);
    assert_eq!(cluster.core.cluster().parked, 2);
    let reason = cluster.core.cluster().parked_reason.unwrap();
    assert_eq!(
        reason,
        "task `a` needs 1 of resource `gpu`, which no worker offers"
    );
    cluster.join(WorkerInfo {
        group: "big".to_owned(),
        ..slots(1)
    });
    assert_eq!(cluster.place_tasks(), [1]);
    let gpu = vec![("gpu".to_owned(), 4)];
    let worker = cluster.join(WorkerInfo {
        resources: gpu,
        ..slots(1)
    });
    assert_eq!(cluster.place_tasks(), [0]);
    assert_eq!(cluster.core.cluster().parked, 0);
    assert_eq!(cluster.worker_of(0), worker);
    cluster.die(worker);
    assert_eq!(cluster.core.cluster().parked, 1);
}

#[test]
fn a_worker_that_joins_gets_queued_tasks_of_others() {
    let mut cluster = Cluster::new()
        .workers(1, slots(2))
        .submit(plan().tasks(4).wants(&[0]));
    assert_eq!(cluster.place_tasks().len(), 4);
    cluster.start(0);
    cluster.start(1);
    let joined = cluster.join(slots(2));
    let effects = cluster.place();
    assert_eq!(retracted(&effects), [(1, 3), (1, 2)]);
    assert_eq!(retracted(&cluster.place()), []);
    cluster.report(3, TaskReport::Retracted);
    assert_eq!(cluster.place_tasks(), [3]);
    assert_eq!(cluster.worker_of(3), joined);
    // The other one has started before the question came.
    cluster.start(2);
    assert_eq!(cluster.state(2), TaskState::Running);
    cluster.finish(2);
    assert_eq!(cluster.state(2), TaskState::Released);
    assert_eq!(cluster.core.workers()[0].queued, 0);
}

#[test]
fn tasks_are_not_asked_back_when_moving_their_inputs_takes_longer() {
    let graph = plan()
        .task("a")
        .task("x")
        .reads(&[0])
        .task("y")
        .reads(&[0])
        .wants(&[1, 2]);
    let mut cluster = Cluster::new().workers(1, slots(1)).submit(graph);
    cluster.place();
    cluster.finish_with(0, 1 << 40, 50_000);
    assert_eq!(cluster.place_tasks(), [1, 2]);
    cluster.start(1);
    cluster.join(slots(1));
    assert_eq!(retracted(&cluster.place()), []);
}

#[test]
fn what_has_begun_is_finished_before_much_more_is_begun_also_over_chunks() {
    const LEAVES: u32 = 128;
    // All leaves in one chunk; in the next what each of them is for.
    let mut cluster = Cluster::new()
        .workers(1, slots(1))
        .submit(plan().tasks(LEAVES).unfinished());
    let mut more = next_plan();
    for leaf in 0..LEAVES {
        more = more.task(&format!("after-{leaf}")).reads(&[leaf]);
    }
    let wanted: Vec<u32> = (LEAVES..2 * LEAVES).collect();
    cluster.send(more.wants(&wanted));
    let order = run_slowly(&mut cluster).0;
    let position = |task: u32| order.iter().position(|other| *other == task).unwrap();
    for leaf in 0..LEAVES - 64 {
        assert!(position(LEAVES + leaf) < position(leaf + 64), "{leaf}");
    }
    assert!(position(LEAVES) > position(16), "not one after the other");
}

/// Runs everything, each task far longer than a queue is filled ahead; returns the order and the
/// most bytes that were held at once.
fn run_slowly(cluster: &mut Cluster) -> (Vec<u32>, u64) {
    let (mut order, mut most) = (Vec::new(), 0);
    let mut waiting = std::collections::VecDeque::new();
    loop {
        waiting.extend(cluster.place_tasks());
        let Some(task) = waiting.pop_front() else {
            return (order, most);
        };
        cluster.finish_with(task, 1, 1_000_000);
        order.push(task);
        most = most.max(cluster.core.cluster().held_bytes);
    }
}

#[test]
fn a_wide_reduction_never_holds_many_of_its_leaves() {
    const LEAVES: u32 = 512;
    let mut graph = plan().tasks(LEAVES);
    let (mut level, mut count): (Vec<u32>, u32) = ((0..LEAVES).collect(), LEAVES);
    while level.len() > 1 {
        let mut next = Vec::new();
        for pair in level.chunks(2) {
            graph = graph.task(&format!("sum-{count}")).reads(pair);
            next.push(count);
            count += 1;
        }
        level = next;
    }
    let mut cluster = Cluster::new()
        .workers(2, slots(2))
        .submit(graph.wants(&[count - 1]));
    let (_, most) = run_slowly(&mut cluster);
    assert!(cluster.core.graphs()[0].is_done);
    assert!((16..=56).contains(&most), "{most} results at once");
}
