//! Copies that the scheduler orders, what the machine says that it has, and orders that come twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod driver;

use driver::{Describe, Driver, GRAPH, OWN, assignment, attempt, failure, key, task_ref};
use oxidask_core::{AttemptState, Digest, Inventory, TaskReport, WorkerId};
use oxidask_store::ResultKey;
use oxidask_worker_machine::{Effect, Event, Refusal};

fn order(task: u32, from: u32) -> Event {
    Event::CopyOrdered {
        key: key(task),
        bytes: 100,
        from: WorkerId(from),
    }
}

fn copies_failed(driver: &Driver) -> Vec<ResultKey> {
    let failed = driver.effects.iter().filter_map(|effect| match effect {
        Effect::CopyFailed { key } => Some(*key),
        _ => None,
    });
    failed.collect()
}

fn released(task: u32) -> Event {
    Event::Released { task: key(task) }
}

#[test]
fn an_ordered_copy_is_fetched_without_anybody_who_waits_for_it() {
    let mut driver = Driver::new(1).peers([1]);
    driver.batch([order(5, 1)]);
    assert!(driver.machine.wants_copy(key(5)) && driver.machine.is_ordered(key(5)));
    let request = driver.only_fetch();
    driver.deliver(request, &[5]);
    assert_eq!(driver.copies_added(), [key(5)]);
    assert!(driver.machine.is_idle());
    assert_eq!(driver.machine.inventory().held, [(task_ref(5), 100)]);
    // Ordered again, it is there.
    driver.batch([order(5, 1)]);
    assert_eq!(driver.copies_added(), [key(5), key(5)]);
    driver.batch([released(5)]);
    assert_eq!(driver.dropped(), [key(5)]);
    assert_eq!(driver.machine.digest(), Digest::default());
}

#[test]
fn an_order_and_a_task_share_one_fetch() {
    let mut driver = Driver::new(1).peers([1, 2]);
    driver.assign(assignment(1, 1).inputs([(5, 1)]));
    driver.batch([order(5, 2)]);
    let request = driver.only_fetch();
    // The task goes, the order stays; what it named is asked next.
    let task = key(1);
    let attempt = attempt(1);
    driver.batch([Event::Cancelled { task, attempt }]);
    driver.fail_fetch(request);
    let fetches = driver.take_fetches();
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].1, WorkerId(2));
    driver.deliver(fetches[0].0, &[5]);
    assert_eq!(driver.copies_added(), [key(5)]);
}

#[test]
fn what_nobody_delivers_is_told() {
    let mut driver = Driver::new(1).peers([1, 2]);
    driver.batch([order(5, 1), order(6, 7), order(7, OWN), order(8, 2)]);
    assert_eq!(
        copies_failed(&driver),
        [key(6), key(7)],
        "nobody to be asked"
    );
    let fetches = driver.take_fetches();
    driver.lack(fetches[0].0, &[5]);
    assert_eq!(driver.copies_missing(), [(key(5), WorkerId(1))]);
    driver.fail_fetch(fetches[1].0);
    assert_eq!(copies_failed(&driver), [6, 7, 5, 8].map(key));
    assert!(driver.machine.is_idle());
    assert!(driver.machine.held().next().is_none());
}

#[test]
fn a_peer_that_goes_takes_its_orders_along() {
    let mut driver = Driver::new(1).peers([1]);
    // More than can be under way.
    driver.batch((5..8).map(|task| Event::CopyOrdered {
        key: key(task),
        bytes: u64::MAX / 8,
        from: WorkerId(1),
    }));
    let fetches = driver.take_fetches();
    driver.batch([Event::PeerGone { peer: WorkerId(1) }]);
    for (request, ..) in fetches {
        driver.fail_fetch(request);
    }
    let mut failed = copies_failed(&driver);
    failed.sort_unstable();
    assert_eq!(failed, [5, 6, 7].map(key));
}

#[test]
fn a_copy_that_does_not_fit_fails_for_all_who_want_it() {
    let mut driver = Driver::new(1).peers([1]);
    driver.assign(assignment(1, 1).inputs([(5, 1)]));
    driver.batch([order(5, 1)]);
    let request = driver.only_fetch();
    let refused = Refusal {
        key: key(5),
        failure: failure("full", true),
    };
    driver.batch([Event::FetchDone {
        request,
        kept: vec![],
        missing: vec![],
        refused: vec![refused],
    }]);
    assert_eq!(copies_failed(&driver), [key(5)]);
    assert!(matches!(driver.reports(1)[..], [TaskReport::Failed { .. }]));
}

#[test]
fn a_released_order_is_dropped_on_arrival_and_not_answered() {
    let mut driver = Driver::new(1).peers([1]);
    driver.batch([order(5, 1)]);
    let request = driver.only_fetch();
    driver.batch([released(5)]);
    assert!(!driver.machine.wants_copy(key(5)));
    driver.deliver(request, &[5]);
    assert_eq!(driver.dropped(), [key(5)]);
    assert!(driver.copies_added().is_empty() && copies_failed(&driver).is_empty());
}

#[test]
fn the_inventory_is_what_counts_here() {
    let mut driver = Driver::new(2).peers([1]);
    driver.assign(assignment(1, 1));
    let first = driver.only_run();
    driver.finish(first, 7);
    driver.assign(assignment(2, 1));
    driver.assign(assignment(3, 4));
    driver.assign(assignment(4, 1));
    driver.assign(assignment(5, 1).inputs([(9, 1)]));
    // 2 was cancelled and has not ended.
    let (task, attempt_2) = (key(2), attempt(1));
    driver.batch([Event::Cancelled {
        task,
        attempt: attempt_2,
    }]);
    let expected = Inventory {
        held: vec![(task_ref(1), 7)],
        running: vec![(task_ref(3), attempt(4))],
        queued: vec![(task_ref(4), attempt(1)), (task_ref(5), attempt(1))],
        seceded: vec![],
    };
    assert_eq!(driver.machine.inventory(), expected);
    let mut digest = Digest::default();
    digest.add_held(task_ref(1));
    digest.add_attempt(task_ref(3), attempt(4), AttemptState::Running);
    digest.add_attempt(task_ref(4), attempt(1), AttemptState::Queued);
    digest.add_attempt(task_ref(5), attempt(1), AttemptState::Queued);
    assert_eq!(driver.machine.digest(), digest);
}

#[test]
fn an_assignment_that_was_carried_out_is_not_carried_out_again() {
    let mut driver = Driver::new(1);
    driver.assign(assignment(1, 3));
    let run = driver.only_run();
    driver.assign(assignment(1, 3));
    driver.assign(assignment(1, 2));
    assert!(driver.next_run().is_none(), "it runs already");
    driver.finish(run, 7);
    driver.assign(assignment(1, 3));
    driver.assign(assignment(1, 2));
    assert!(driver.next_run().is_none(), "it has its result");
    assert!(driver.machine.is_idle() && driver.dropped().is_empty());
    driver.assign(assignment(1, 4));
    driver.only_run();
    assert_eq!(driver.dropped(), [key(1)]);
    assert_eq!(ResultKey::new(GRAPH, 1), key(1));
}

#[test]
fn a_later_epoch_counts_whatever_its_number() {
    let mut driver = Driver::new(1);
    driver.assign(assignment(1, 9));
    let run = driver.only_run();
    let mut later = assignment(1, 1);
    later.attempt.epoch = 2;
    driver.assign(later);
    assert_eq!(driver.cancelled_runs(), [run]);
    driver.finish(run, 7);
    let second = driver.next_run().expect("the later one");
    assert_eq!(second.attempt.epoch, 2);
    driver.assign(assignment(1, 10));
    assert_eq!(driver.machine.inventory().running.len(), 1);
}
