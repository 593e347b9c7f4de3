//! What the machine does about streamed inputs and about tight memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod driver;

use driver::{Describe, Driver, OWN, assignment, attempt, key, task_ref};
use oxidask_core::{TaskReport, WorkerId};
use oxidask_worker_machine::{Assignment, Event, Input, RunId, RunOutcome};

const MEBIBYTE: u64 = 1024 * 1024;

fn streaming(task: u32, streamed: impl IntoIterator<Item = (u32, u32)>) -> Assignment {
    let mut order = assignment(task, 1);
    order.streamed = assignment(task, 1).inputs(streamed).inputs;
    order.part = 7;
    order
}

fn pressure(is_paused: bool, is_easing: bool, free_bytes: u64) -> Event {
    Event::PressureChanged {
        is_paused,
        is_easing,
        free_bytes,
    }
}

fn lost(run: RunId, lost: &[(u32, u32)]) -> Event {
    let lost = lost
        .iter()
        .map(|(task, peer)| (key(*task), WorkerId(*peer)));
    Event::RunEnded {
        run,
        outcome: RunOutcome::InputsLost(lost.collect()),
    }
}

fn keys(inputs: &[Input]) -> Vec<u32> {
    inputs.iter().map(|input| input.key.task()).collect()
}

#[test]
fn streamed_inputs_are_passed_on_and_never_fetched() {
    let mut worker = Driver::new(2).peers([2]);
    // 5 is held by nobody who is known, 4 is wanted as a whole by another task.
    worker.assign(streaming(1, [(3, 2), (4, 2), (5, 9), (3, 2)]));
    let run = worker.next_run().unwrap();
    assert_eq!((run.part, keys(&run.streamed)), (7, vec![3, 4, 5, 3]));
    assert!(run.inputs.is_empty());
    assert!(worker.take_fetches().is_empty());
    worker.assign(assignment(2, 1).inputs([(4, 2)]));
    let fetch = worker.only_fetch();
    worker.deliver(fetch, &[4]);
    assert_eq!(worker.only_run_task(), key(2));
    worker.finish(run.run, 10);
    assert_eq!(worker.copies_added(), [key(4)]);
}

#[test]
fn a_task_with_both_kinds_waits_for_those_that_it_is_given() {
    let mut worker = Driver::new(1).peers([2]);
    let mut order = streaming(1, [(3, 2)]);
    order.inputs = assignment(1, 1).inputs([(4, 2)]).inputs;
    worker.assign(order);
    assert!(worker.next_run().is_none());
    let fetches = worker.take_fetches();
    assert_eq!(fetches[0].2, [key(4)]);
    worker.deliver(fetches[0].0, &[4]);
    let run = worker.next_run().unwrap();
    assert_eq!((run.inputs, keys(&run.streamed)), (vec![key(4)], vec![3]));
}

#[test]
fn streamed_inputs_that_nobody_delivered_are_reported_and_those_of_cancelled_runs_are_not() {
    let mut worker = Driver::new(2);
    worker.assign(streaming(1, [(3, 2), (4, 5)]));
    let run = worker.only_run();
    worker.assign(streaming(2, [(3, 2)]));
    let other = worker.only_run();
    worker.batch([lost(run, &[(3, 2), (3, 4), (4, 5)])]);
    let of = |task, peer| (task_ref(task), WorkerId(peer));
    let expected = TaskReport::InputsLost {
        lost: vec![of(3, 2), of(3, 4), of(4, 5)],
    };
    assert_eq!(worker.reports(1), [TaskReport::Started, expected]);
    worker.batch([Event::Cancelled {
        task: key(2),
        attempt: attempt(1),
    }]);
    worker.batch([lost(other, &[(3, 2)])]);
    assert_eq!(worker.reports(2), [TaskReport::Started]);
    // The slots are free, and the task may come again.
    worker.assign(Assignment {
        attempt: attempt(2),
        ..streaming(1, [(3, 4)])
    });
    worker.only_run();
}

#[test]
fn nothing_starts_while_memory_is_short_and_all_goes_on_afterwards() {
    let mut worker = Driver::new(3);
    worker.assign(assignment(1, 1));
    let first = worker.only_run();
    worker.batch([pressure(true, false, 0)]);
    worker.batch((2..=4).map(|task| Event::Assigned(assignment(task, 1))));
    assert!(worker.next_run().is_none());
    // Nothing else would make room: one may start, and only one.
    worker.finish(first, 1);
    let second = worker.only_run();
    // While room is being made, not even that.
    worker.batch([pressure(true, true, 0)]);
    worker.finish(second, 1);
    assert!(worker.next_run().is_none());
    worker.batch([pressure(false, false, MEBIBYTE)]);
    assert!(worker.next_run().is_some() && worker.next_run().is_some());
}

#[test]
fn what_is_fetched_fits_into_what_is_free() {
    let mut worker = Driver::new(1).peers([2, 3]);
    worker.batch([pressure(false, false, 10 * MEBIBYTE)]);
    let sized = |inputs: std::ops::Range<u32>| inputs.map(|task| (task, 4 * MEBIBYTE, 2));
    worker.assign(assignment(50, 1).sized_inputs(sized(1..9)));
    // Two fit; with the third the bound is reached.
    let fetches = worker.take_fetches();
    let asked: Vec<_> = fetches.iter().map(|fetch| fetch.2.len()).collect();
    assert_eq!(asked, [2, 1]);
    // What comes takes the room; something runs, so more room will come.
    worker.assign(assignment(51, 1));
    let run = worker.only_run();
    worker.batch([pressure(true, false, 0)]);
    worker.deliver(fetches[0].0, &[1, 2]);
    worker.deliver(fetches[1].0, &[3]);
    assert!(worker.take_fetches().is_empty());
    // Nothing runs and nothing is on its way: without this, it would wait for ever.
    worker.finish(run, 1);
    let mut next = 4;
    while next < 9 {
        let fetch = worker.only_fetch();
        worker.deliver(fetch, &[next]);
        next += 1;
    }
    assert_eq!(worker.only_run_task(), key(50));
}

#[test]
fn what_the_store_has_lost_is_told_and_asked_for_again() {
    let mut worker = Driver::new(1).peers([2]);
    worker.assign(assignment(1, 1));
    let run = worker.only_run();
    worker.assign(assignment(9, 1).inputs([(4, 2)]));
    let fetch = worker.only_fetch();
    worker.deliver(fetch, &[4]);
    worker.batch([Event::ObjectGone { key: key(4) }]);
    assert_eq!(worker.copies_missing(), [(key(4), WorkerId(OWN))]);
    // The attempt that was ready finds out when its turn comes.
    worker.finish(run, 1);
    let expected = TaskReport::InputsLost {
        lost: vec![(task_ref(4), WorkerId(OWN))],
    };
    assert_eq!(worker.reports(9), [expected]);
    worker.assign(Assignment {
        attempt: attempt(2),
        ..assignment(9, 2).inputs([(4, 2)])
    });
    let again = worker.only_fetch();
    // What is on its way has not gone, and neither has what was never here.
    worker.batch([
        Event::ObjectGone { key: key(4) },
        Event::ObjectGone { key: key(77) },
    ]);
    worker.deliver(again, &[4]);
    assert_eq!(worker.only_run_task(), key(9));
    assert_eq!(worker.copies_missing().len(), 1);
}
