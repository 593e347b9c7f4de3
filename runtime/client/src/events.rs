//! What a running graph tells its client, and the queue in which it waits.
//!
//! Owns the merging that keeps a million events small: ready results are lists, only the latest
//! progress counts. Invariants: when [`EVENT_BYTES_MAX`] wait, the session is not read further; what
//! the scheduler says again, to a client that comes back, is an event once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::bits::BitSet;

/// Bytes of events that may wait to be asked for.
const EVENT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Ready results in one event.
const READY_PER_EVENT_MAX: usize = 65_536;

/// Bytes counted for an event that has no list.
const EVENT_BYTES: usize = 64;

/// How often a full queue looks whether it must be read on all the same.
const FULL_CHECK_PERIOD: Duration = Duration::from_millis(50);

/// Something that happened to a graph.
#[derive(Debug, Clone, PartialEq)]
pub enum GraphEvent {
    /// These wanted results are there: task and size in bytes.
    Ready(Vec<(u32, u64)>),
    /// A wanted task failed for good, or cannot run because one of its inputs did.
    Failed {
        /// The task.
        task: u32,
        /// Why; dependents share the error of the input that failed.
        diagnostic: Arc<Diagnostic>,
        /// Whether this task itself failed, and not one of its inputs.
        is_origin: bool,
    },
    /// How far the graph is; about ten times a second, and once at its end.
    Progress(wire::Progress),
    /// A line for a person: a worker that died, tasks tried again.
    Notice(String),
    /// The scheduler refused a part of the graph, and the graph failed with it.
    Refused(Diagnostic),
    /// Every wanted task is done or failed.
    Done,
    /// The connection to the scheduler broke, for this reason; it is made again by itself. Calls
    /// and fetches wait meanwhile.
    Reconnecting(Diagnostic),
    /// The connection is there again, and the graph goes on.
    Reconnected,
    /// The session is over; nothing follows.
    Disconnected(Diagnostic),
}

/// Events that wait to be asked for.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    state: Mutex<State>,
    arrived: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<GraphEvent>,
    bytes: usize,
    told_ready: BitSet,
    told_failed: BitSet,
    is_done_told: bool,
    is_ended: bool,
}

impl EventQueue {
    /// Appends what a message says about a graph.
    pub(crate) fn push(&self, graph: u32, batch: wire::SessionBatch) {
        let mut state = self.state();
        let ready = batch
            .ready_graph
            .iter()
            .zip(&batch.ready_task)
            .zip(&batch.ready_bytes);
        for ((of_graph, task), bytes) in ready {
            if *of_graph == graph && state.told_ready.insert(*task) {
                state.push_ready((*task, *bytes));
            }
        }
        state.push_failures(graph, batch.failures);
        for notice in batch.notices {
            state.push(GraphEvent::Notice(notice.text));
        }
        for progress in batch
            .progress
            .into_iter()
            .filter(|progress| progress.graph == graph)
        {
            state.push_progress(progress);
        }
        for refused in batch
            .refused
            .into_iter()
            .filter(|refused| refused.graph == graph)
        {
            state.push(GraphEvent::Refused(
                refused.fault.unwrap_or_default().into(),
            ));
        }
        if batch.done.contains(&graph) && !state.is_done_told {
            state.is_done_told = true;
            state.push(GraphEvent::Done);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Appends an event of the connection itself.
    pub(crate) fn push_event(&self, event: GraphEvent) {
        self.state().push(event);
        self.arrived.notify_one();
    }

    /// The last event; `None` if the client itself ended the session.
    pub(crate) fn end(&self, reason: Option<Diagnostic>) {
        let mut state = self.state();
        if let Some(reason) = reason {
            state.push(GraphEvent::Disconnected(reason));
        }
        state.is_ended = true;
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits until few enough events wait, or until reading must go on because somebody waits for
    /// something else that the scheduler says.
    pub(crate) async fn space(&self, must_go_on: impl Fn() -> bool) {
        while self.state().bytes > EVENT_BYTES_MAX && !must_go_on() {
            let _ = timeout(FULL_CHECK_PERIOD, self.taken.notified()).await;
        }
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&self) -> Option<GraphEvent> {
        loop {
            {
                let mut state = self.state();
                if let Some(event) = state.events.pop_front() {
                    state.bytes = state.bytes.saturating_sub(bytes(&event));
                    drop(state);
                    self.taken.notify_one();
                    return Some(event);
                }
                if state.is_ended {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, event: GraphEvent) {
        self.bytes += bytes(&event);
        self.events.push_back(event);
    }

    fn push_ready(&mut self, ready: (u32, u64)) {
        match self.events.back_mut() {
            Some(GraphEvent::Ready(list)) if list.len() < READY_PER_EVENT_MAX => {
                list.push(ready);
                self.bytes += size_of::<(u32, u64)>();
            }
            _ => self.push(GraphEvent::Ready(vec![ready])),
        }
    }

    /// A failure without an error has the error of the failure before it.
    fn push_failures(&mut self, graph: u32, failures: Vec<wire::TaskFailure>) {
        let mut diagnostic = Arc::new(Diagnostic::from(wire::Fault::default()));
        for failure in failures {
            if let Some(fault) = failure.fault {
                diagnostic = Arc::new(fault.into());
                self.bytes += diagnostic.message.len();
            }
            let id = failure.task.unwrap_or_default();
            if id.graph == graph && self.told_failed.insert(id.task) {
                let (task, is_origin) = (id.task, failure.is_origin);
                let diagnostic = Arc::clone(&diagnostic);
                self.push(GraphEvent::Failed {
                    task,
                    diagnostic,
                    is_origin,
                });
            }
        }
    }

    fn push_progress(&mut self, progress: wire::Progress) {
        let old = self
            .events
            .iter()
            .rposition(|event| matches!(event, GraphEvent::Progress(_)));
        // Only near the end of the queue, so that a full queue is not searched each time.
        if let Some(position) = old.filter(|position| position + 4 > self.events.len())
            && let Some(event) = self.events.remove(position)
        {
            self.bytes = self.bytes.saturating_sub(bytes(&event));
        }
        self.push(GraphEvent::Progress(progress));
    }
}

fn bytes(event: &GraphEvent) -> usize {
    EVENT_BYTES
        + match event {
            GraphEvent::Ready(list) => size_of_val(list.as_slice()),
            GraphEvent::Progress(progress) => progress.groups.len() * EVENT_BYTES,
            GraphEvent::Notice(text) => text.len(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use oxidask_diagnostic::Code;

    use super::*;

    fn ready(tasks: &[u32]) -> wire::SessionBatch {
        wire::SessionBatch {
            ready_graph: vec![7; tasks.len()],
            ready_task: tasks.to_vec(),
            ready_bytes: vec![4; tasks.len()],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn ready_results_are_merged_and_done_comes_last() {
        let queue = EventQueue::default();
        queue.push(7, ready(&[1, 2]));
        let progress = |total| wire::Progress {
            graph: 7,
            groups: vec![wire::GroupProgress {
                total,
                ..Default::default()
            }],
            cluster: None,
        };
        queue.push(
            7,
            wire::SessionBatch {
                done: vec![7],
                ..ready(&[3])
            },
        );
        queue.end(None);
        assert_eq!(
            queue.next().await,
            Some(GraphEvent::Ready(vec![(1, 4), (2, 4), (3, 4)]))
        );
        assert_eq!(queue.next().await, Some(GraphEvent::Done));
        assert_eq!(queue.next().await, None);
        assert_eq!(queue.state().bytes, 0, "what is taken is no longer counted");

        let queue = EventQueue::default();
        for total in 0..100 {
            let task = u32::try_from(total).unwrap();
            let batch = wire::SessionBatch {
                progress: vec![progress(total)],
                ..ready(&[task])
            };
            queue.push(7, batch);
        }
        let waiting = queue.state().events.len();
        assert!(waiting < 110, "{waiting}");
        assert_eq!(
            queue.state().events.back(),
            Some(&GraphEvent::Progress(progress(99)))
        );
    }

    #[tokio::test]
    async fn what_is_said_again_is_no_event() {
        let queue = EventQueue::default();
        let failure = |task| wire::TaskFailure {
            task: Some(wire::TaskId { graph: 7, task }),
            fault: None,
            is_origin: false,
        };
        let all = wire::SessionBatch {
            failures: vec![failure(8), failure(9)],
            done: vec![7],
            ..ready(&[1, 2])
        };
        queue.push(7, ready(&[2]));
        queue.push(7, all.clone());
        queue.push(7, all);
        queue.end(None);
        let mut heard = (Vec::new(), Vec::new(), 0);
        while let Some(event) = queue.next().await {
            match event {
                GraphEvent::Ready(list) => heard.0.extend(list.iter().map(|(task, _)| *task)),
                GraphEvent::Failed { task, .. } => heard.1.push(task),
                GraphEvent::Done => heard.2 += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heard, (vec![2, 1], vec![8, 9], 1));
    }

    #[tokio::test]
    async fn failures_share_the_error_before_them() {
        let queue = EventQueue::default();
        let task = |task| Some(wire::TaskId { graph: 7, task });
        let fault = Some(wire::Fault::from(Diagnostic::new(Code::TaskFailed, "no")));
        let failures = vec![
            wire::TaskFailure {
                task: task(1),
                fault,
                is_origin: true,
            },
            wire::TaskFailure {
                task: task(2),
                fault: None,
                is_origin: false,
            },
        ];
        queue.push(
            7,
            wire::SessionBatch {
                failures,
                ..Default::default()
            },
        );
        let mut seen = Vec::new();
        while seen.len() < 2 {
            if let Some(GraphEvent::Failed {
                task,
                diagnostic,
                is_origin,
            }) = queue.next().await
            {
                seen.push((task, diagnostic.message.clone(), is_origin));
            }
        }
        assert_eq!(
            seen,
            [(1, "no".to_owned(), true), (2, "no".to_owned(), false)]
        );
    }
}
