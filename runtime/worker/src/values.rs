//! Small results that the scheduler wants with the report of their end.
//!
//! Owns which attempts that is so for. A result goes that way besides lying in the store like any
//! other, so whatever does not fit, or has gone from there already, is simply not sent.

use std::collections::{HashMap, HashSet};

use oxidask_core::{Attempt, TaskReport};
use oxidask_proto::{SMALL_VALUE_BYTES_MAX, ids, wire};
use oxidask_store::{Payload, PayloadKind, ResultKey, Store};
use wire::order::Order;

/// Attempts that are noted at a time; those beyond are fetched by whoever wants them.
const ATTEMPTS_MAX: usize = 262_144;

/// Bytes of results that wait beside their reports; further ones are fetched by whoever wants them.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Attempts whose results are wanted with their reports.
#[derive(Debug, Default)]
pub(crate) struct ValuesWanted(HashSet<(ResultKey, Attempt)>);

impl ValuesWanted {
    /// The scheduler orders something.
    pub(crate) fn ordered(&mut self, order: &wire::Order) {
        match &order.order {
            Some(Order::Assign(assign)) if assign.value_wanted && self.0.len() < ATTEMPTS_MAX => {
                let attempt = Attempt {
                    epoch: assign.epoch,
                    number: assign.attempt,
                };
                let task = ResultKey::new(assign.graph, assign.task);
                self.0.insert((task, attempt));
            }
            // Nothing is reported of what is cancelled.
            Some(Order::Cancel(id)) => {
                if let Ok((task, attempt)) = ids::attempt_from_wire(*id) {
                    let task = ResultKey::new(task.graph.0, task.task.0);
                    self.0.remove(&(task, attempt));
                }
            }
            _ => {}
        }
    }

    /// Nothing is reported of a graph any more.
    pub(crate) fn forget_graph(&mut self, graph: u32) {
        self.0.retain(|(task, _)| task.graph() != graph);
    }

    /// What goes with a report.
    pub(crate) fn reported(
        &mut self,
        store: &Store,
        (task, attempt): (ResultKey, Attempt),
        report: &TaskReport,
    ) -> Option<wire::SmallValue> {
        if self.0.is_empty() || !is_end(report) || !self.0.remove(&(task, attempt)) {
            return None;
        }
        match report {
            TaskReport::Finished { bytes, .. }
                if (1..=SMALL_VALUE_BYTES_MAX as u64).contains(bytes) =>
            {
                small_value(store.get(task)?)
            }
            _ => None,
        }
    }
}

/// Results that wait beside their reports.
#[derive(Debug, Default)]
pub(crate) struct WaitingValues {
    values: HashMap<(ResultKey, Attempt), wire::SmallValue>,
    bytes: usize,
}

impl WaitingValues {
    /// Keeps a value until its report is sent, if there is room.
    pub(crate) fn add(&mut self, attempt: (ResultKey, Attempt), value: wire::SmallValue) {
        let bytes = self.bytes + value.data.len();
        if bytes <= WAITING_BYTES_MAX && self.values.insert(attempt, value).is_none() {
            self.bytes = bytes;
        }
    }

    /// The value that goes with the report at this place of a message.
    pub(crate) fn take(
        &mut self,
        attempt: (ResultKey, Attempt),
        report: usize,
    ) -> Option<wire::ReportedValue> {
        let value = self.values.remove(&attempt)?;
        self.bytes = self.bytes.saturating_sub(value.data.len());
        Some(wire::ReportedValue {
            report: u32::try_from(report).unwrap_or(u32::MAX),
            value: Some(value),
        })
    }
}

fn is_end(report: &TaskReport) -> bool {
    !matches!(
        report,
        TaskReport::Started | TaskReport::Seceded | TaskReport::Rejoined
    )
}

/// What a client can read.
fn small_value(mut payload: Payload) -> Option<wire::SmallValue> {
    match payload.kind {
        PayloadKind::Value | PayloadKind::Bytes | PayloadKind::Table | PayloadKind::Python => {}
        PayloadKind::Slices | PayloadKind::Graph => return None,
    }
    let data = match payload.parts.len() {
        1 => payload.parts.pop()?,
        _ => payload.parts.concat().into(),
    };
    Some(wire::SmallValue {
        kind: payload.kind as u32,
        data,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const FIRST: Attempt = Attempt {
        epoch: 1,
        number: 1,
    };
    const SECOND: Attempt = Attempt {
        epoch: 1,
        number: 2,
    };

    fn assign(task: u32, attempt: Attempt, value_wanted: bool) -> wire::Order {
        let assign = wire::Assign {
            graph: 1,
            task,
            epoch: attempt.epoch,
            attempt: attempt.number,
            value_wanted,
            ..wire::Assign::default()
        };
        wire::Order {
            order: Some(Order::Assign(assign)),
        }
    }

    fn finished(bytes: u64) -> TaskReport {
        TaskReport::Finished {
            bytes,
            duration_micros: 1,
            rows: 0,
        }
    }

    fn store(payloads: &[(u32, Payload)]) -> Store {
        let store = Store::new(1 << 20);
        for (task, payload) in payloads {
            let key = ResultKey::new(1, *task);
            store.insert_result(key, payload.clone()).unwrap();
        }
        store
    }

    #[test]
    fn a_small_result_goes_with_the_report_of_the_attempt_that_was_asked() {
        let payload = Payload {
            kind: PayloadKind::Python,
            parts: vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")],
        };
        let store = store(&[(1, payload.clone()), (2, payload)]);
        let mut wanted = ValuesWanted::default();
        wanted.ordered(&assign(1, SECOND, true));
        wanted.ordered(&assign(2, FIRST, false));
        let mut reported = |task, attempt, report: &TaskReport| {
            let value = wanted.reported(&store, (ResultKey::new(1, task), attempt), report);
            value.map(|value| (value.kind, value.data.to_vec()))
        };
        assert_eq!(reported(1, FIRST, &finished(3)), None, "another attempt");
        assert_eq!(reported(1, SECOND, &TaskReport::Started), None);
        assert_eq!(
            reported(1, SECOND, &finished(3)),
            Some((5, b"abc".to_vec()))
        );
        assert_eq!(reported(1, SECOND, &finished(3)), None, "once");
        assert_eq!(reported(2, FIRST, &finished(3)), None, "not asked for");
    }

    #[test]
    fn so_much_waits_beside_reports_and_is_taken_once() {
        let mut waiting = WaitingValues::default();
        let value = |bytes: usize| wire::SmallValue {
            kind: 5,
            data: vec![1; bytes].into(),
        };
        let key = |task| (ResultKey::new(1, task), FIRST);
        waiting.add(key(1), value(4));
        waiting.add(key(2), value(WAITING_BYTES_MAX - 4));
        waiting.add(key(3), value(1));
        let taken = waiting.take(key(1), 7).unwrap();
        assert_eq!((taken.report, taken.value), (7, Some(value(4))));
        assert_eq!(waiting.take(key(1), 7), None);
        assert_eq!(waiting.take(key(3), 7), None, "there was no room");
        waiting.add(key(3), value(1));
        assert!(waiting.take(key(2), 0).is_some() && waiting.take(key(3), 1).is_some());
        assert_eq!((waiting.values.len(), waiting.bytes), (0, 0));
    }

    #[test]
    fn what_is_large_gone_or_cannot_be_read_by_clients_is_left_out_and_nothing_stays() {
        let large = vec![0; SMALL_VALUE_BYTES_MAX + 1];
        let large_bytes = large.len() as u64;
        let store = store(&[
            (1, Payload::new(PayloadKind::Bytes, large)),
            (
                2,
                Payload::from_slices(vec![vec![Bytes::from_static(b"a")]]),
            ),
        ]);
        let mut wanted = ValuesWanted::default();
        for task in 1..=6 {
            wanted.ordered(&assign(task, FIRST, true));
        }
        let key = |task| (ResultKey::new(1, task), FIRST);
        for (task, report) in [
            (1, finished(large_bytes)),
            (2, finished(17)),
            (3, finished(9)),
            (4, TaskReport::Retracted),
        ] {
            assert_eq!(wanted.reported(&store, key(task), &report), None, "{task}");
        }
        let cancel = wire::AttemptId {
            task: Some(wire::TaskId { graph: 1, task: 5 }),
            epoch: 1,
            attempt: 1,
        };
        wanted.ordered(&wire::Order {
            order: Some(Order::Cancel(cancel)),
        });
        wanted.forget_graph(2);
        assert_eq!(wanted.0.len(), 1);
        wanted.forget_graph(1);
        assert!(wanted.0.is_empty());
    }
}
