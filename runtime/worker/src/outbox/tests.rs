//! What is told, in which order, and what waits.

use std::sync::Arc;

use wire::report::Outcome;

use super::*;

const ATTEMPT: Attempt = Attempt {
    epoch: 1,
    number: 1,
};
const FINISHED: TaskReport = TaskReport::Finished {
    bytes: 4,
    duration_micros: 1,
    rows: 0,
};

fn key(task: u32) -> ResultKey {
    ResultKey::new(1, task)
}

#[test]
fn a_start_is_told_only_while_the_task_runs() {
    let mut outbox = Outbox::default();
    outbox.report(key(1), ATTEMPT, TaskReport::Started);
    outbox.report(key(2), ATTEMPT, TaskReport::Started);
    outbox.report(key(3), ATTEMPT, TaskReport::Started);
    outbox.report(key(1), ATTEMPT, FINISHED);
    outbox.forget_start(key(3), ATTEMPT);
    let message = outbox.take();
    assert_eq!(message.reports.len(), 2);
    assert!(matches!(
        message.reports[0].outcome,
        Some(Outcome::Finished(_))
    ));
    assert!(matches!(
        message.reports[1].outcome,
        Some(Outcome::Started(_))
    ));
    assert_eq!(message.reports[1].task.unwrap().task, 2);
    assert!(outbox.is_empty());
    outbox.report(key(2), ATTEMPT, FINISHED);
    assert_eq!(outbox.take().reports.len(), 1);
}

#[test]
fn only_ends_and_starts_that_nobody_waits_for_may_wait() {
    let patient = || {
        let mut outbox = Outbox::default();
        outbox.report(key(1), ATTEMPT, FINISHED);
        outbox.report(key(2), ATTEMPT, TaskReport::Started);
        outbox
    };
    assert!(patient().is_patient());
    assert!(!Outbox::default().is_patient(), "there is nothing to send");
    let urgent: [fn(&mut Outbox); 6] = [
        |outbox| outbox.report(key(3), ATTEMPT, TaskReport::Retracted),
        |outbox| outbox.value((key(1), ATTEMPT), wire::SmallValue::default()),
        |outbox| outbox.copy_added(key(4)),
        |outbox| outbox.beat(wire::Heartbeat::default()),
        |outbox| outbox.leaving(5),
        |outbox| outbox.paused(true),
    ];
    for (number, make) in urgent.into_iter().enumerate() {
        let mut outbox = patient();
        make(&mut outbox);
        assert!(!outbox.is_patient(), "{number}");
        outbox.take();
        outbox.report(key(5), ATTEMPT, FINISHED);
        assert!(outbox.is_patient(), "{number}: it was told");
    }
}

#[test]
fn messages_are_bounded_and_lose_nothing() {
    let mut outbox = Outbox::default();
    let error = Arc::new(Diagnostic::new(Code::TaskFailed, "x".repeat(16 * 1024)));
    for task in 0..1_000 {
        let error = Arc::clone(&error);
        outbox.report(
            key(task),
            ATTEMPT,
            TaskReport::Failed {
                error,
                is_retryable: true,
            },
        );
    }
    for task in 0..100_000 {
        outbox.report(key(task), ATTEMPT, FINISHED);
    }
    let (mut total, mut messages) = (0, 0);
    while !outbox.is_empty() {
        let message = outbox.take();
        assert!(message.reports.len() <= REPORTS_PER_MESSAGE_MAX);
        total += message.reports.len();
        messages += 1;
    }
    assert_eq!(total, 101_000);
    assert!((4..=8).contains(&messages), "{messages}");
}

#[test]
fn an_inventory_stands_between_what_was_before_and_what_came_later() {
    let mut outbox = Outbox::offline();
    outbox.report(key(1), ATTEMPT, TaskReport::Started);
    outbox.report(key(2), ATTEMPT, FINISHED);
    outbox.beat(wire::Heartbeat::default());
    outbox.copy_added(key(9));
    outbox.opened();
    outbox.leaving(5);
    assert!(outbox.begin_inventory(Inventory::default()));
    assert!(!outbox.begin_inventory(Inventory::default()));
    outbox.report(key(1), ATTEMPT, FINISHED);
    outbox.beat(wire::Heartbeat::default());
    let before = outbox.take();
    let told: Vec<_> = before
        .reports
        .iter()
        .map(|r| r.task.unwrap().task)
        .collect();
    assert_eq!(told, [2, 1]);
    let is_start = matches!(before.reports[1].outcome, Some(Outcome::Started(_)));
    assert!(is_start && before.heartbeat.is_none() && before.copies_added.is_empty());
    let inventory = outbox.take();
    assert!(inventory.inventory.unwrap().is_last && inventory.reports.is_empty());
    assert!(!outbox.has_inventory());
    let after = outbox.take();
    assert_eq!((after.reports.len(), after.leaving_ms), (1, Some(5)));
    assert!(after.heartbeat.is_some() && outbox.is_empty());
}

#[test]
fn a_stream_that_breaks_in_an_inventory_loses_no_report() {
    let mut outbox = Outbox::default();
    outbox.report(key(1), ATTEMPT, FINISHED);
    outbox.report(key(3), ATTEMPT, TaskReport::Started);
    outbox.begin_inventory(Inventory::default());
    outbox.report(key(2), ATTEMPT, FINISHED);
    outbox.report(key(3), ATTEMPT, FINISHED);
    outbox.closed();
    outbox.opened();
    let told = outbox.take();
    let tasks: Vec<_> = told.reports.iter().map(|r| r.task.unwrap().task).collect();
    assert_eq!(tasks, [1, 2, 3]);
    assert!(outbox.is_empty());
}

#[test]
fn without_a_scheduler_a_bounded_number_waits() {
    let mut outbox = Outbox::offline();
    let many = u32::try_from(ENTRIES_MAX).unwrap();
    for task in 0..many + 10 {
        outbox.report(key(task), ATTEMPT, FINISHED);
    }
    outbox.copy_missing(key(1), WorkerId(1));
    assert_eq!(outbox.entries(), ENTRIES_MAX);
    outbox.opened();
    outbox.report(key(many), ATTEMPT, FINISHED);
    assert_eq!(outbox.entries(), ENTRIES_MAX + 1);
    outbox.closed();
    assert_eq!(outbox.entries(), ENTRIES_MAX);
}

#[test]
fn a_heartbeat_does_not_overtake_reports() {
    let mut outbox = Outbox::default();
    let many = u32::try_from(REPORTS_PER_MESSAGE_MAX).unwrap() + 1;
    (0..many).for_each(|task| outbox.report(key(task), ATTEMPT, FINISHED));
    outbox.beat(wire::Heartbeat::default());
    assert!(outbox.take().heartbeat.is_none());
    assert!(outbox.take().heartbeat.is_some());
}

#[test]
fn a_pause_is_told_once_and_again_to_whoever_may_not_know() {
    let mut outbox = Outbox::default();
    outbox.paused(false);
    assert!(outbox.is_empty());
    outbox.paused(true);
    assert!(!outbox.is_empty());
    assert_eq!(outbox.take().is_paused, Some(true));
    outbox.paused(true);
    assert!(outbox.is_empty());
    // It is over before anybody could be told.
    outbox.paused(false);
    outbox.paused(true);
    assert!(outbox.is_empty());
    outbox.closed();
    outbox.paused(false);
    assert!(outbox.is_empty());
    outbox.opened();
    outbox.begin_inventory(Inventory::default());
    let inventory = outbox.take();
    assert!(inventory.inventory.is_some() && inventory.is_paused.is_none());
    assert_eq!(outbox.take().is_paused, Some(false));
    assert!(outbox.is_empty());
}

#[test]
fn answers_to_commands_outlast_a_broken_stream_and_are_bounded() {
    let answer = |command, bytes: usize| wire::CommandResult {
        command,
        fault: None,
        content: vec![0; bytes].into(),
    };
    let mut outbox = Outbox::default();
    outbox.command_result(answer(1, 10));
    outbox.closed();
    outbox.command_result(answer(2, 10));
    outbox.opened();
    outbox.begin_inventory(Inventory::default());
    outbox.command_result(answer(3, 10));
    let told = |batch: wire::WorkerBatch| -> Vec<u64> {
        batch
            .command_results
            .iter()
            .map(|answer| answer.command)
            .collect()
    };
    assert_eq!(told(outbox.take()), [1, 2]);
    assert!(outbox.take().inventory.is_some());
    outbox.closed();
    outbox.opened();
    assert_eq!(told(outbox.take()), [3]);
    for command in 0..40 {
        outbox.command_result(answer(command, 2 << 20));
    }
    let (mut refused, mut messages) = (0, 0);
    while !outbox.is_empty() {
        let batch = outbox.take();
        messages += 1;
        refused += batch
            .command_results
            .iter()
            .filter(|a| a.fault.is_some())
            .count();
    }
    assert_eq!((refused, messages), (9, 16));
}

#[test]
fn too_much_stops_orders() {
    let mut outbox = Outbox::default();
    let many = u32::try_from(ENTRIES_MAX).unwrap();
    (0..many).for_each(|task| outbox.copy_added(key(task)));
    assert!(outbox.is_full());
    assert_eq!(outbox.take().copies_added.len(), COPIES_PER_MESSAGE_MAX);
    assert!(!outbox.is_full());
}
