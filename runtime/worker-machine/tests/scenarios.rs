//! The worker machine, one situation a test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod driver;

use driver::{Describe, Driver, assignment, attempt, failure, key, task_ref};
use oxidask_core::{TaskReport, WorkerId};
use oxidask_worker_machine::{
    Effect, Event, REQUEST_BYTES_MAX, REQUEST_OBJECTS_MAX, Refusal, RequestId, RunOutcome,
};

const MEBIBYTE: u64 = 1024 * 1024;

#[test]
fn a_task_without_inputs_runs_at_once_and_is_reported() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    assert_eq!(worker.reports(1), [TaskReport::Started]);
    worker.finish(run, 10);
    assert_eq!(
        worker.reports(1),
        [
            TaskReport::Started,
            TaskReport::Finished {
                bytes: 10,
                duration_micros: 5,
                rows: 0
            }
        ]
    );
    assert!(worker.machine.is_idle());
}

#[test]
fn ready_tasks_run_by_priority_then_by_arrival() {
    let mut worker = Driver::new(1);
    worker.batch([
        Event::Assigned(assignment(1, 1)),
        Event::Assigned(assignment(2, 1).priority(5)),
        Event::Assigned(assignment(3, 1).priority(5)),
        Event::Assigned(assignment(4, 1).priority(-1)),
    ]);
    let mut order = Vec::new();
    while let Some(run) = worker.next_run() {
        order.push(run.task.task());
        worker.finish(run.run, 1);
    }
    assert_eq!(order, [2, 3, 1, 4]);
}

#[test]
fn a_task_with_an_earlier_turn_passes_those_that_came_before_it() {
    let mut worker = Driver::new(1);
    worker.batch([
        Event::Assigned(assignment(1, 1).turn(7)),
        Event::Assigned(assignment(2, 1).turn(7)),
        Event::Assigned(assignment(3, 1).turn(7)),
    ]);
    let first = worker.next_run().unwrap();
    worker.assign(assignment(4, 1).turn(3));
    worker.finish(first.run, 1);
    let mut order = vec![first.task.task()];
    while let Some(run) = worker.next_run() {
        order.push(run.task.task());
        worker.finish(run.run, 1);
    }
    assert_eq!(order, [1, 4, 2, 3], "what runs is not interrupted");
}

#[test]
fn a_task_of_many_slots_waits_and_is_not_passed_by() {
    let mut worker = Driver::new(2);
    worker.assign(assignment(1, 1));
    worker.assign(assignment(2, 1).slots(u32::MAX));
    worker.assign(assignment(3, 1));
    let first = worker.only_run();
    worker.finish(first, 1);
    let wide = worker.next_run().unwrap();
    assert_eq!((wide.task, wide.slots), (key(2), 2));
    assert!(worker.next_run().is_none());
    worker.finish(wide.run, 1);
    assert_eq!(worker.only_run_task(), key(3));
}

#[test]
fn a_run_that_secedes_makes_room_and_takes_its_slots_back_beyond_the_number() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    worker.assign(assignment(2, 1));
    worker.assign(assignment(3, 1));
    let first = worker.only_run();
    assert!(worker.next_run().is_none());
    worker.batch([Event::Seceded { run: first }, Event::Seceded { run: first }]);
    let second = worker.only_run();
    assert_eq!(
        worker.reports(1),
        [TaskReport::Started, TaskReport::Seceded]
    );
    let inventory = worker.machine.inventory();
    assert_eq!(inventory.seceded, [(task_ref(1), attempt(1))]);
    assert_eq!(inventory.running.len(), 2);
    // It is back while the other one has its slot: nothing starts until both have ended.
    worker.batch([Event::Rejoined { run: first }]);
    assert_eq!(worker.reports(1).last(), Some(&TaskReport::Rejoined));
    worker.finish(second, 1);
    assert!(worker.next_run().is_none());
    worker.finish(first, 1);
    let third = worker.only_run();
    worker.finish(third, 1);
    assert!(worker.machine.is_idle());
}

#[test]
fn a_run_that_was_cancelled_while_it_had_seceded_gives_back_nothing_twice() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    let first = worker.only_run();
    worker.batch([Event::Seceded { run: first }]);
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(1),
    }]);
    worker.assign(assignment(2, 1));
    let second = worker.only_run();
    // The run has not ended yet: nobody hears that it is back.
    worker.batch([Event::Rejoined { run: first }]);
    assert_eq!(worker.reports(1).len(), 2);
    worker.finish(first, 1);
    worker.assign(assignment(3, 1));
    assert!(worker.next_run().is_none());
    worker.finish(second, 1);
    assert_eq!(worker.only_run_task(), key(3));
}

#[test]
fn inputs_that_are_held_are_used_and_others_fetched_per_peer() {
    let mut worker = Driver::new(1).peers([2, 3]);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.finish(run, 1);
    worker.assign(assignment(9, 1).inputs([(1, 0), (2, 2), (3, 2), (4, 3), (2, 2)]));
    let fetches = worker.take_fetches();
    assert_eq!(fetches.len(), 2);
    assert_eq!(fetches[0].1, WorkerId(2));
    assert_eq!(fetches[0].2, [key(2), key(3)]);
    assert_eq!(fetches[1].2, [key(4)]);
    worker.deliver(fetches[0].0, &[2, 3]);
    assert!(worker.next_run().is_none());
    worker.deliver(fetches[1].0, &[4]);
    let run = worker.next_run().unwrap();
    assert_eq!(run.inputs, [key(1), key(2), key(3), key(4), key(2)]);
    assert_eq!(worker.copies_added(), [key(2), key(3), key(4)]);
}

#[test]
fn an_input_in_flight_is_not_fetched_twice() {
    let mut worker = Driver::new(2).peers([2, 3]);
    worker.assign(assignment(8, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.assign(assignment(9, 1).inputs([(1, 3)]));
    assert!(worker.take_fetches().is_empty());
    worker.deliver(fetch, &[1]);
    assert_eq!(worker.machine.running(), 2);
}

#[test]
fn requests_are_bounded_in_number_bytes_and_objects_and_go_by_priority() {
    let mut worker = Driver::new(1).peers([2]);
    let half = REQUEST_BYTES_MAX / 2 + 1;
    worker.batch((1..=4).map(|task| {
        let priority = i32::try_from(task).unwrap();
        Event::Assigned(
            assignment(100 + task, 1)
                .priority(priority)
                .sized_inputs([(task, half, 2)]),
        )
    }));
    let fetches = worker.take_fetches();
    assert_eq!(fetches.len(), 2);
    assert_eq!(
        (&fetches[0].2, &fetches[1].2),
        (&vec![key(4)], &vec![key(3)])
    );
    worker.deliver(fetches[0].0, &[4]);
    assert_eq!(worker.take_fetches()[0].2, [key(2)]);

    let mut worker = Driver::new(1).peers([2]);
    let many = u32::try_from(REQUEST_OBJECTS_MAX).unwrap() + 1;
    worker.assign(assignment(0, 1).inputs((1..=many).map(|task| (task, 2))));
    let sizes: Vec<usize> = worker
        .take_fetches()
        .iter()
        .map(|fetch| fetch.2.len())
        .collect();
    assert_eq!(sizes, [REQUEST_OBJECTS_MAX, 1]);
}

#[test]
fn a_huge_object_is_asked_for_alone() {
    let mut worker = Driver::new(1).peers([2]);
    let sizes = [(1, 1, 2), (2, 100 * REQUEST_BYTES_MAX, 2)];
    worker.assign(assignment(9, 1).sized_inputs(sizes));
    let fetches = worker.take_fetches();
    assert_eq!(
        fetches
            .iter()
            .map(|fetch| fetch.2.len())
            .collect::<Vec<_>>(),
        [1, 1]
    );
}

#[test]
fn an_urgent_task_moves_its_input_forward() {
    let mut worker = Driver::new(1).peers([2]);
    let size = REQUEST_BYTES_MAX;
    worker
        .batch((1..=4).map(|task| {
            Event::Assigned(assignment(100 + task, 1).sized_inputs([(task, size, 2)]))
        }));
    let first = worker.take_fetches();
    worker.assign(assignment(200, 1).priority(9).sized_inputs([(4, size, 2)]));
    worker.deliver(first[0].0, &[1]);
    assert_eq!(worker.take_fetches()[0].2, [key(4)]);
}

#[test]
fn alternates_are_tried_and_the_peer_that_lacks_it_is_named() {
    let mut worker = Driver::new(1).peers([2, 3]);
    worker.assign(assignment(9, 1).inputs([(1, 2)]).alternate(0, 3));
    let fetch = worker.only_fetch();
    worker.lack(fetch, &[1]);
    assert_eq!(worker.copies_missing(), [(key(1), WorkerId(2))]);
    let fetches = worker.take_fetches();
    assert_eq!(fetches[0].1, WorkerId(3));
    worker.deliver(fetches[0].0, &[1]);
    assert_eq!(worker.only_run_task(), key(9));
}

#[test]
fn no_holder_left_loses_the_inputs_of_that_attempt_only() {
    let mut worker = Driver::new(1).peers([2, 3]);
    worker.assign(
        assignment(8, 1)
            .inputs([(1, 2), (2, 2), (5, 3)])
            .alternate(0, 3),
    );
    worker.assign(assignment(9, 1).inputs([(5, 3)]));
    let fetches = worker.take_fetches();
    worker.fail_fetch(fetches[0].0);
    let lost = vec![(task_ref(2), WorkerId(2))];
    assert_eq!(worker.reports(8), [TaskReport::InputsLost { lost }]);
    worker.deliver(fetches[1].0, &[5]);
    assert_eq!(worker.only_run_task(), key(9));
}

#[test]
fn all_who_did_not_deliver_are_named() {
    let mut worker = Driver::new(1).peers([2, 3]);
    worker.assign(
        assignment(8, 1)
            .inputs([(1, 2)])
            .alternate(0, 3)
            .alternate(0, 77),
    );
    let fetch = worker.only_fetch();
    worker.fail_fetch(fetch);
    let fetch = worker.only_fetch();
    worker.lack(fetch, &[1]);
    let [TaskReport::InputsLost { lost }] = &worker.reports(8)[..] else {
        panic!()
    };
    let mut peers: Vec<u32> = lost.iter().map(|(_, peer)| peer.0).collect();
    peers.sort_unstable();
    assert_eq!(peers, [2, 3, 77]);
    assert!(worker.machine.is_idle());
}

#[test]
fn an_input_said_to_be_here_that_is_not_is_lost_at_once() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(8, 1).inputs([(1, driver::OWN)]));
    let lost = vec![(task_ref(1), WorkerId(driver::OWN))];
    assert_eq!(worker.reports(8), [TaskReport::InputsLost { lost }]);
}

#[test]
fn what_a_peer_that_goes_had_yet_to_deliver_is_asked_of_another() {
    let mut worker = Driver::new(1).peers([2, 3]);
    let size = REQUEST_BYTES_MAX;
    let busy = [
        (1, size, 2),
        (2, size, 2),
        (4, size, 3),
        (5, size, 3),
        (6, size, 3),
    ];
    worker.assign(assignment(8, 1).sized_inputs(busy));
    let busy = worker.take_fetches();
    assert_eq!(busy.len(), 4);
    worker.assign(assignment(9, 1).inputs([(10, 2)]).alternate(0, 3));
    worker.assign(assignment(11, 1).inputs([(12, 2)]));
    assert!(worker.take_fetches().is_empty());
    worker.batch([Event::PeerGone { peer: WorkerId(2) }]);
    let lost = vec![(task_ref(12), WorkerId(2))];
    assert_eq!(worker.reports(11), [TaskReport::InputsLost { lost }]);
    assert_eq!(worker.reports(9), []);
    for (request, _, keys) in busy.iter().filter(|fetch| fetch.1 == WorkerId(3)) {
        worker.deliver(*request, &[keys[0].task()]);
    }
    let asked: Vec<_> = worker
        .take_fetches()
        .into_iter()
        .map(|fetch| (fetch.1, fetch.2))
        .collect();
    assert_eq!(
        asked,
        [(WorkerId(3), vec![key(6)]), (WorkerId(3), vec![key(10)])]
    );
}

#[test]
fn a_released_object_in_flight_is_dropped_on_arrival() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(9, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.batch([
        Event::Cancelled {
            task: key(9),
            attempt: attempt(1),
        },
        Event::Released { task: key(1) },
    ]);
    assert!(!worker.machine.wants_copy(key(1)));
    worker.deliver(fetch, &[1]);
    assert_eq!(worker.dropped(), [key(1)]);
    assert!(worker.copies_added().is_empty());
    assert!(worker.machine.is_idle());
}

#[test]
fn an_object_released_in_flight_and_wanted_again_is_kept() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(8, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.batch([
        Event::Cancelled {
            task: key(8),
            attempt: attempt(1),
        },
        Event::Released { task: key(1) },
        Event::Assigned(assignment(9, 1).inputs([(1, 2)])),
    ]);
    assert!(worker.take_fetches().is_empty());
    worker.deliver(fetch, &[1]);
    assert_eq!(worker.only_run_task(), key(9));
}

#[test]
fn a_copy_is_kept_until_it_is_released() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(8, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.deliver(fetch, &[1]);
    let run = worker.only_run();
    worker.finish(run, 1);
    assert!(worker.dropped().is_empty());
    worker.batch([Event::Released { task: key(1) }]);
    assert_eq!(worker.dropped(), [key(1)]);
}

#[test]
fn a_ready_task_whose_input_is_released_reports_it_lost() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.finish(run, 1);
    worker.assign(assignment(2, 1));
    worker.assign(assignment(3, 1).inputs([(1, driver::OWN)]));
    let run = worker.only_run();
    worker.batch([Event::Released { task: key(1) }]);
    worker.finish(run, 1);
    let lost = vec![(task_ref(1), WorkerId(driver::OWN))];
    assert_eq!(worker.reports(3), [TaskReport::InputsLost { lost }]);
}

#[test]
fn retraction_comes_in_time_or_is_ignored() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(1, 1));
    worker.assign(assignment(2, 1));
    worker.assign(assignment(3, 1).inputs([(9, 2)]));
    for task in 1..=3 {
        worker.batch([Event::Retracted {
            task: key(task),
            attempt: attempt(1),
        }]);
    }
    worker.batch([Event::Retracted {
        task: key(77),
        attempt: attempt(1),
    }]);
    assert_eq!(worker.reports(1), [TaskReport::Started]);
    assert_eq!(worker.reports(2), [TaskReport::Retracted]);
    assert_eq!(worker.reports(3), [TaskReport::Retracted]);
    let run = worker.only_run();
    worker.finish(run, 1);
    assert!(worker.next_run().is_none());
}

#[test]
fn a_cancelled_run_frees_its_slot_when_it_has_really_ended() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    worker.assign(assignment(2, 1));
    let run = worker.only_run();
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(1),
    }]);
    assert_eq!(worker.cancelled_runs(), [run]);
    assert!(!worker.machine.is_current(run));
    assert!(worker.next_run().is_none());
    worker.finish(run, 1);
    assert_eq!(worker.reports(1), [TaskReport::Started]);
    assert_eq!(worker.only_run_task(), key(2));
}

#[test]
fn a_newer_attempt_waits_for_the_slot_of_the_old_run() {
    let mut worker = Driver::new(2);
    worker.assign(assignment(1, 1));
    let old = worker.only_run();
    worker.assign(assignment(1, 2));
    assert_eq!(worker.cancelled_runs(), [old]);
    let new = worker.only_run();
    worker.finish(new, 7);
    worker.finish(old, 99);
    assert_eq!(
        worker.reports(1)[1..],
        [
            TaskReport::Started,
            TaskReport::Finished {
                bytes: 7,
                duration_micros: 5,
                rows: 0
            }
        ]
    );
    worker.assign(assignment(1, 1));
    assert!(
        worker.dropped().is_empty(),
        "an older attempt must not touch a newer result"
    );
}

#[test]
fn an_older_or_repeated_assignment_is_ignored() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 2));
    worker.assign(assignment(1, 2));
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(1),
    }]);
    assert!(worker.machine.is_current(run));
    worker.finish(run, 1);
    assert!(worker.next_run().is_none());
}

#[test]
fn a_cancellation_that_crosses_the_report_drops_the_result() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.finish(run, 1);
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(2),
    }]);
    assert!(worker.dropped().is_empty());
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(1),
    }]);
    assert_eq!(worker.dropped(), [key(1)]);
}

#[test]
fn a_result_made_here_serves_those_who_wait_for_a_copy() {
    let mut worker = Driver::new(2).peers([2]);
    worker.assign(assignment(9, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.finish(run, 1);
    assert_eq!(worker.only_run_task(), key(9));
    worker.deliver(fetch, &[1]);
    assert!(worker.dropped().is_empty());
    assert!(worker.copies_added().is_empty());
}

#[test]
fn a_failed_run_is_reported_and_the_worker_goes_on() {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.batch([Event::RunEnded {
        run,
        outcome: RunOutcome::Failed(failure("no", true)),
    }]);
    let reports = worker.reports(1);
    assert!(
        matches!(&reports[1], TaskReport::Failed { error, is_retryable: true } if error.message == "no")
    );
    worker.assign(assignment(1, 2));
    assert_eq!(worker.only_run_task(), key(1));
}

#[test]
fn an_input_that_does_not_fit_fails_its_tasks_by_name() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(9, 1).sized_inputs([(1, 5 * MEBIBYTE, 2)]));
    let request = worker.only_fetch();
    let refused = vec![Refusal {
        key: key(1),
        failure: failure("too large", false),
    }];
    worker.batch([Event::FetchDone {
        request,
        kept: vec![],
        missing: vec![],
        refused,
    }]);
    let [
        TaskReport::Failed {
            error,
            is_retryable: false,
        },
    ] = &worker.reports(9)[..]
    else {
        panic!()
    };
    assert!(error.message.contains("task `t9`"), "{}", error.message);
    assert!(worker.machine.is_idle());
}

#[test]
fn a_forgotten_graph_leaves_nothing_but_runs_that_end() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(1, 1));
    worker.assign(assignment(2, 1).inputs([(8, 2)]));
    worker.assign(assignment(3, 1));
    let run = worker.only_run();
    let fetch = worker.only_fetch();
    worker.batch([Event::GraphForgotten {
        graph: driver::GRAPH,
    }]);
    assert_eq!(worker.cancelled_runs(), [run]);
    assert!(worker.effects.contains(&Effect::DropGraph {
        graph: driver::GRAPH
    }));
    worker.deliver(fetch, &[8]);
    assert_eq!(worker.dropped(), [key(8)]);
    worker.finish(run, 1);
    assert!(worker.machine.is_idle());
    assert!(worker.next_run().is_none());
}

#[test]
fn objects_that_nobody_waits_for_any_more_are_not_fetched() {
    let mut worker = Driver::new(1).peers([2]);
    worker.batch([
        Event::Assigned(assignment(9, 1).inputs([(1, 2)])),
        Event::Cancelled {
            task: key(9),
            attempt: attempt(1),
        },
    ]);
    assert!(worker.take_fetches().is_empty());
    assert!(worker.machine.is_idle());
}

#[test]
fn answers_to_unknown_requests_change_nothing() {
    let mut worker = Driver::new(1).peers([2]);
    worker.fail_fetch(RequestId(5));
    worker.deliver(RequestId(6), &[1]);
    assert_eq!(worker.dropped(), [key(1)]);
}

#[test]
fn a_tiny_task_costs_little() {
    const TASKS: u32 = 100_000;
    let mut worker = Driver::new(1);
    let events: Vec<Event> = (0..TASKS)
        .map(|task| Event::Assigned(assignment(task, 1)))
        .collect();
    let start = std::time::Instant::now();
    let mut effects = Vec::new();
    for event in events {
        worker.machine.react(event, &mut effects);
    }
    worker.machine.advance(&mut effects);
    let mut count = 0;
    while let Some(effect) = effects.pop() {
        if let Effect::Run(run) = effect {
            count += 1;
            worker
                .machine
                .react(driver::ended(run.run, 4), &mut effects);
            worker.machine.start_ready(&mut effects);
        }
    }
    let nanos = start.elapsed().as_nanos() / u128::from(TASKS);
    println!("{nanos} ns a task");
    assert_eq!(count, TASKS);
    // Ten times the budget of an optimised build, so that a busy machine does not fail the test.
    assert!(nanos < 20_000, "{nanos} ns a task");
    assert_eq!(worker.machine.invariants(), Ok(()));
}

/// A worker with one slot that runs 9 and holds a copy of 1, which it is to make again.
fn with_a_copy_of_what_it_is_to_make() -> Driver {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(9, 1).inputs([(1, 2)]));
    let fetch = worker.only_fetch();
    worker.deliver(fetch, &[1]);
    worker.assign(assignment(1, 2));
    worker
}

#[test]
fn a_copy_goes_when_the_attempt_that_was_to_replace_it_ends_without_a_result() {
    let own = WorkerId(driver::OWN);
    let mut worker = with_a_copy_of_what_it_is_to_make();
    worker.batch([Event::Retracted {
        task: key(1),
        attempt: attempt(2),
    }]);
    assert_eq!(worker.reports(1), [TaskReport::Retracted]);
    assert_eq!(worker.copies_missing(), [(key(1), own)]);
    assert_eq!(worker.dropped(), [key(1)]);

    let mut worker = with_a_copy_of_what_it_is_to_make();
    worker.batch([Event::Cancelled {
        task: key(1),
        attempt: attempt(2),
    }]);
    assert_eq!(worker.copies_missing(), [(key(1), own)]);
    assert_eq!(worker.machine.held().count(), 0);
}

#[test]
fn a_copy_is_replaced_by_the_result_that_is_made_here() {
    let mut worker = with_a_copy_of_what_it_is_to_make();
    let first = worker.only_run();
    worker.finish(first, 5);
    let second = worker.only_run();
    worker.finish(second, 7);
    assert_eq!(worker.copies_missing(), []);
    assert_eq!(worker.dropped(), []);
    assert_eq!(worker.machine.held().count(), 2);
}
