//! Tiny runs are handed over before there is a slot for them, and come back if others keep them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod driver;

use driver::{Describe, Driver, assignment, attempt, ended_after, given_back, key};
use oxidask_core::TaskReport;
use oxidask_worker_machine::{Event, LINE_BYTES_MAX, LINE_MICROS_MAX, LINE_RUNS_MAX, Run, RunId};

const QUICK_MICROS: u64 = 20;

/// A worker with one slot that is taken, and that has seen one quick run. The run that has the slot.
fn quick() -> (Driver, RunId) {
    let mut worker = Driver::new(1);
    worker.assign(assignment(1, 1).may_wait());
    let first = worker.only_run();
    worker.batch([ended_after(first, QUICK_MICROS)]);
    worker.assign(assignment(2, 1).may_wait());
    let running = worker.only_run();
    worker.effects.clear();
    (worker, running)
}

fn runs(worker: &mut Driver) -> Vec<Run> {
    std::iter::from_fn(|| worker.next_run()).collect()
}

#[test]
fn as_many_wait_in_line_as_take_a_moment() {
    let (mut worker, _) = quick();
    let all = (10..200).map(|task| Event::Assigned(assignment(task, 1).may_wait()));
    worker.batch(all);
    let ahead = runs(&mut worker);
    assert_eq!(ahead.len(), LINE_RUNS_MAX as usize);
    assert!(ahead.iter().all(|run| run.is_ahead));
    let order: Vec<_> = ahead.iter().map(|run| run.task.task()).collect();
    assert!(order.is_sorted());
    // To the scheduler they wait like the others.
    assert_eq!(
        (worker.machine.running(), worker.machine.queued()),
        (1, 190)
    );
    assert_eq!(worker.reports(10), []);
    let inventory = worker.machine.inventory();
    assert_eq!((inventory.running.len(), inventory.queued.len()), (1, 190));
}

#[test]
fn the_next_begins_in_its_turn_and_another_joins_the_line() {
    let (mut worker, running) = quick();
    worker.batch((10..50).map(|task| Event::Assigned(assignment(task, 1).may_wait())));
    let ahead = runs(&mut worker);
    let next = ahead[0].run;
    worker.batch([
        Event::Begun { run: next },
        ended_after(running, QUICK_MICROS),
    ]);
    assert_eq!(worker.reports(10), [TaskReport::Started]);
    let more = runs(&mut worker);
    assert_eq!(more.len(), 1);
    assert!(more[0].is_ahead);
    // Some end before anybody could say that they have begun.
    worker.batch([ended_after(ahead[1].run, QUICK_MICROS)]);
    assert!(matches!(
        worker.reports(11)[..],
        [TaskReport::Finished { .. }]
    ));
    assert_eq!(worker.machine.running(), 1);
}

#[test]
fn nothing_goes_ahead_before_runs_are_known_to_be_quick() {
    let mut worker = Driver::new(1);
    worker.batch((1..10).map(|task| Event::Assigned(assignment(task, 1).may_wait())));
    let first = worker.only_run();
    worker.batch([ended_after(first, LINE_MICROS_MAX + 1)]);
    let second = worker.only_run();
    assert_eq!(runs(&mut worker), []);
    // One slow run counts for as long as it takes to forget it.
    worker.batch([ended_after(second, 1)]);
    assert!(runs(&mut worker).len() <= 2);
}

#[test]
fn what_is_large_or_takes_more_or_may_not_wait_is_never_in_line() {
    let large = vec![0_u8; usize::try_from(LINE_BYTES_MAX).unwrap() + 1];
    let orders = [
        assignment(10, 1),
        assignment(10, 1).may_wait().slots(2),
        driver::with_arguments(assignment(10, 1).may_wait(), large),
    ];
    for order in orders {
        let mut worker = Driver::new(2);
        worker.assign(assignment(1, 1).may_wait());
        let first = worker.only_run();
        worker.batch([ended_after(first, QUICK_MICROS)]);
        worker.assign(assignment(2, 1).may_wait().slots(2));
        worker.only_run();
        worker.assign(order);
        assert_eq!(runs(&mut worker), []);
    }
}

#[test]
fn a_run_that_comes_back_starts_when_there_is_a_slot() {
    let (mut worker, running) = quick();
    worker.assign(assignment(10, 1).may_wait());
    let ahead = worker.only_run();
    worker.batch([given_back(ahead)]);
    assert_eq!(runs(&mut worker), [], "none goes ahead after that");
    worker.batch([ended_after(running, QUICK_MICROS)]);
    let again = worker.next_run().expect("it starts");
    assert_eq!((again.task, again.is_ahead), (key(10), false));
    assert_eq!(worker.reports(10), [TaskReport::Started]);
}

#[test]
fn one_that_is_wanted_back_goes_if_it_comes_back_and_stays_if_it_has_begun() {
    let (mut worker, _) = quick();
    worker.batch((10..12).map(|task| Event::Assigned(assignment(task, 1).may_wait())));
    let ahead = runs(&mut worker);
    worker.batch((10..12).map(|task| Event::Retracted {
        task: key(task),
        attempt: attempt(1),
    }));
    assert_eq!(worker.reports(10), []);
    worker.batch([Event::Begun { run: ahead[0].run }, given_back(ahead[1].run)]);
    assert_eq!(worker.reports(10), [TaskReport::Started]);
    assert_eq!(worker.reports(11), [TaskReport::Retracted]);
}

#[test]
fn one_that_is_cancelled_is_told_so_and_ends() {
    let (mut worker, running) = quick();
    worker.assign(assignment(10, 1).may_wait());
    let ahead = worker.only_run();
    worker.batch([Event::Cancelled {
        task: key(10),
        attempt: attempt(1),
    }]);
    assert_eq!(worker.cancelled_runs(), [ahead]);
    worker.batch([given_back(ahead), ended_after(running, QUICK_MICROS)]);
    assert_eq!(worker.reports(10), []);
    assert!(worker.machine.is_idle());
}

#[test]
fn memory_that_is_short_lets_nothing_go_ahead() {
    let (mut worker, _) = quick();
    worker.batch([Event::PressureChanged {
        is_paused: true,
        is_easing: false,
        free_bytes: u64::MAX,
    }]);
    worker.assign(assignment(10, 1).may_wait());
    assert_eq!(runs(&mut worker), []);
}
