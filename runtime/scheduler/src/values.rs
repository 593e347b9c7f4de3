//! Small results that come with the reports of their ends.
//!
//! Owns the rule which value belongs to which report. A value is here only while the core reacts to the
//! message that brought it: it is never kept, never put on record, and never the only one, since its
//! worker holds it as any other result.
//!
//! Invariant: a value goes only with the news that this very report has caused. A report that is not
//! of the current attempt causes none, and its value is dropped.

use std::collections::{HashMap, HashSet};

use oxidask_core::TaskRef;
use oxidask_proto::wire::report::Outcome;
use oxidask_proto::{SMALL_VALUE_BYTES_MAX, wire};

/// With so many bytes on their way to a client, further values are left out: it fetches them when it
/// needs them.
pub(crate) const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The values of one message of a worker.
#[derive(Default)]
pub(crate) struct ReportedValues(HashMap<TaskRef, wire::SmallValue>);

impl ReportedValues {
    /// Takes the values out of a message.
    pub(crate) fn of(batch: &mut wire::WorkerBatch) -> Self {
        let values = std::mem::take(&mut batch.values);
        let mut found = HashMap::with_capacity(values.len());
        if values.is_empty() {
            return Self(found);
        }
        for reported in values {
            let report = batch.reports.get(reported.report as usize);
            let task = report.and_then(finished);
            if let (Some(task), Some(value)) = (task, reported.value)
                && (1..=SMALL_VALUE_BYTES_MAX).contains(&value.data.len())
            {
                found.insert(task, value);
            }
        }
        // Of two ends of one task only the core knows which one counts.
        let mut seen = HashSet::with_capacity(batch.reports.len());
        for task in batch.reports.iter().filter_map(finished) {
            if !seen.insert(task) {
                found.remove(&task);
            }
        }
        Self(found)
    }

    /// The value of a task that has become ready; without bytes if it is not here.
    pub(crate) fn take(&mut self, task: TaskRef) -> wire::SmallValue {
        self.0.remove(&task).unwrap_or_default()
    }
}

fn finished(report: &wire::Report) -> Option<TaskRef> {
    let is_finished = matches!(report.outcome, Some(Outcome::Finished(_)));
    report.task.filter(|_| is_finished).map(TaskRef::from)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn report(task: u32, attempt: u32) -> wire::Report {
        wire::Report {
            task: Some(wire::TaskId { graph: 1, task }),
            epoch: 1,
            attempt,
            outcome: Some(Outcome::Finished(wire::Finished::default())),
        }
    }

    fn value(report: u32, data: impl Into<Bytes>) -> wire::ReportedValue {
        let data = data.into();
        wire::ReportedValue {
            report,
            value: Some(wire::SmallValue { kind: 5, data }),
        }
    }

    fn task(task: u32) -> TaskRef {
        wire::TaskId { graph: 1, task }.into()
    }

    #[test]
    fn a_value_is_found_by_the_task_of_its_report() {
        let mut batch = wire::WorkerBatch {
            reports: vec![report(7, 1), report(8, 1), report(9, 1)],
            values: vec![value(0, "a"), value(2, "c"), value(3, "beyond")],
            ..wire::WorkerBatch::default()
        };
        let mut values = ReportedValues::of(&mut batch);
        assert!(batch.values.is_empty());
        assert_eq!(&values.take(task(7)).data[..], b"a");
        assert!(values.take(task(7)).data.is_empty(), "it goes once");
        assert!(values.take(task(8)).data.is_empty());
        assert_eq!(&values.take(task(9)).data[..], b"c");
    }

    #[test]
    fn what_may_be_another_result_or_is_too_large_is_left_out() {
        let started = wire::Report {
            outcome: Some(Outcome::Started(wire::Empty {})),
            ..report(4, 1)
        };
        let mut batch = wire::WorkerBatch {
            reports: vec![
                report(1, 1),
                report(1, 2),
                report(2, 1),
                report(3, 1),
                started,
            ],
            values: vec![
                value(1, "which"),
                value(2, vec![0; SMALL_VALUE_BYTES_MAX + 1]),
                value(3, ""),
                value(4, "early"),
            ],
            ..wire::WorkerBatch::default()
        };
        let mut values = ReportedValues::of(&mut batch);
        for number in 1..=4 {
            assert!(values.take(task(number)).data.is_empty(), "{number}");
        }
    }
}
