//! The main loop's side of each connection.
//!
//! Owns what the loop gathers for a peer during one round, and hands it to the peer's outbox at the
//! end of the round: one lock a round instead of one an effect. Never waits.
//!
//! Invariants: the order of orders to a worker is the order of the effects; within a message a body
//! stands before the first assignment that uses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use oxidask_core::GraphId;
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;

use crate::bodies::BodiesSent;
use crate::outbox::{Batch, Outbox};

/// A round's messages to one peer are handed over early when they reach this many bytes, so that a
/// message is never much larger than a single item.
const PENDING_BYTES_MAX: usize = 1024 * 1024;

/// Bytes counted for a ready result.
const READY_BYTES: usize = 24;

/// What a worker last said of itself; written by its stream, read by status and progress.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    /// Bytes of results that it holds.
    pub(crate) held_bytes: AtomicU64,
    /// Bytes of memory that its process uses.
    pub(crate) resident_bytes: AtomicU64,
    /// Tasks that run.
    pub(crate) running: AtomicU32,
    /// Tasks that wait there.
    pub(crate) queued: AtomicU32,
}

impl Vitals {
    /// Keeps the latest heartbeat.
    pub(crate) fn note(&self, heartbeat: &wire::Heartbeat) {
        self.held_bytes
            .store(heartbeat.held_bytes, Ordering::Relaxed);
        self.resident_bytes
            .store(heartbeat.resident_bytes, Ordering::Relaxed);
        self.running.store(heartbeat.running, Ordering::Relaxed);
        self.queued.store(heartbeat.queued, Ordering::Relaxed);
    }
}

/// What the loop keeps of a worker besides what the core knows.
pub(crate) struct WorkerLink {
    /// What it said when it joined.
    pub(crate) hello: wire::WorkerHello,
    /// The address of its data plane, shared with relays.
    pub(crate) address: Arc<str>,
    /// Its heartbeats.
    pub(crate) vitals: Arc<Vitals>,
    /// Graphs of which it got an assignment, with the shared bodies it has.
    pub(crate) graphs: HashMap<GraphId, BodiesSent>,
    outbox: Arc<Outbox<wire::WorkBatch>>,
    pending: wire::WorkBatch,
    pending_bytes: usize,
}

impl WorkerLink {
    /// A link without messages.
    pub(crate) fn new(
        hello: wire::WorkerHello,
        vitals: Arc<Vitals>,
        outbox: Arc<Outbox<wire::WorkBatch>>,
    ) -> Self {
        Self {
            address: Arc::from(hello.data_address.as_str()),
            hello,
            vitals,
            graphs: HashMap::new(),
            outbox,
            pending: wire::WorkBatch::default(),
            pending_bytes: 0,
        }
    }

    /// Adds to the round's message. `bytes` is what it adds, roughly. True if it is the first
    /// addition of the round.
    pub(crate) fn add(&mut self, bytes: usize, change: impl FnOnce(&mut wire::WorkBatch)) -> bool {
        let is_first = self.pending_bytes == 0;
        change(&mut self.pending);
        self.pending_bytes += bytes.max(1);
        if self.pending_bytes >= PENDING_BYTES_MAX {
            self.flush();
        }
        is_first
    }

    /// Hands the round's message over. False if the worker was closed because it does not read.
    pub(crate) fn flush(&mut self) -> bool {
        if self.pending_bytes == 0 {
            return true;
        }
        self.outbox.push(
            std::mem::take(&mut self.pending),
            std::mem::take(&mut self.pending_bytes),
        )
    }

    /// Ends the stream after what was added.
    pub(crate) fn finish(&mut self) {
        self.flush();
        self.outbox.finish(Ok(()));
    }
}

/// What the loop keeps of a client.
pub(crate) struct ClientLink {
    outbox: Arc<Outbox<wire::SessionBatch>>,
    pending: wire::SessionBatch,
    pending_bytes: usize,
    last_error: Option<Arc<Diagnostic>>,
}

impl ClientLink {
    /// A link without messages.
    pub(crate) fn new(outbox: Arc<Outbox<wire::SessionBatch>>) -> Self {
        let pending = wire::SessionBatch::default();
        Self {
            outbox,
            pending,
            pending_bytes: 0,
            last_error: None,
        }
    }

    /// Adds to the round's message, as [`WorkerLink::add`].
    pub(crate) fn add(
        &mut self,
        bytes: usize,
        change: impl FnOnce(&mut wire::SessionBatch),
    ) -> bool {
        let is_first = self.pending_bytes == 0;
        change(&mut self.pending);
        self.pending_bytes += bytes.max(1);
        if self.pending_bytes >= PENDING_BYTES_MAX {
            self.flush();
        }
        is_first
    }

    /// A wanted result is there.
    pub(crate) fn ready(&mut self, task: wire::TaskId, bytes: u64) -> bool {
        self.add(READY_BYTES, |batch| {
            batch.ready_graph.push(task.graph);
            batch.ready_task.push(task.task);
            batch.ready_bytes.push(bytes);
        })
    }

    /// A task failed. Dependents fail with the error of their input: the same error as in the
    /// failure before it is left out of the message, which keeps a million dependents small.
    pub(crate) fn failed(
        &mut self,
        task: wire::TaskId,
        error: &Arc<Diagnostic>,
        is_origin: bool,
    ) -> bool {
        let is_same = self
            .last_error
            .as_ref()
            .is_some_and(|last| Arc::ptr_eq(last, error));
        let fault = (!is_same).then(|| wire::Fault::from(&**error));
        if !is_same {
            self.last_error = Some(Arc::clone(error));
        }
        let bytes = READY_BYTES + fault.as_ref().map_or(0, text_bytes);
        self.add(bytes, |batch| {
            batch.failures.push(wire::TaskFailure {
                task: Some(task),
                fault,
                is_origin,
            });
        })
    }

    /// Hands the round's message over. False if the client was closed because it does not read.
    pub(crate) fn flush(&mut self) -> bool {
        self.last_error = None;
        if self.pending_bytes == 0 {
            return true;
        }
        self.outbox.push(
            std::mem::take(&mut self.pending),
            std::mem::take(&mut self.pending_bytes),
        )
    }
}

fn text_bytes(fault: &wire::Fault) -> usize {
    let causes: usize = fault.causes.iter().map(String::len).sum();
    fault.message.len() + fault.hint.len() + causes
}

impl Batch for wire::WorkBatch {
    fn append(&mut self, later: Self) {
        if later.hello.is_some() {
            self.hello = later.hello;
            self.worker = later.worker;
        }
        if later.refused.is_some() {
            self.refused = later.refused;
        }
        extend(&mut self.peers, later.peers);
        extend(&mut self.bodies, later.bodies);
        extend(&mut self.orders, later.orders);
        extend(&mut self.graphs_forgotten, later.graphs_forgotten);
        self.retire |= later.retire;
    }
}

impl Batch for wire::SessionBatch {
    fn append(&mut self, later: Self) {
        if later.hello.is_some() {
            self.hello = later.hello;
        }
        extend(&mut self.attached, later.attached);
        extend(&mut self.accepted, later.accepted);
        extend(&mut self.refused, later.refused);
        extend(&mut self.ready_graph, later.ready_graph);
        extend(&mut self.ready_task, later.ready_task);
        extend(&mut self.ready_bytes, later.ready_bytes);
        extend(&mut self.failures, later.failures);
        extend(&mut self.done, later.done);
        extend(&mut self.notices, later.notices);
        // Only the latest progress of a graph means anything: a client that reads slowly does not
        // gather old ones.
        for progress in later.progress {
            match self
                .progress
                .iter_mut()
                .find(|old| old.graph == progress.graph)
            {
                Some(old) => *old = progress,
                None => self.progress.push(progress),
            }
        }
    }
}

fn extend<T>(first: &mut Vec<T>, mut later: Vec<T>) {
    if first.is_empty() {
        *first = later;
    } else {
        first.append(&mut later);
    }
}

#[cfg(test)]
mod tests {
    use oxidask_diagnostic::Code;

    use super::*;

    #[test]
    fn the_same_error_is_sent_once_a_message() {
        let outbox = Outbox::new(usize::MAX, &tokio_util::sync::CancellationToken::new());
        let mut link = ClientLink::new(outbox);
        let error = Arc::new(Diagnostic::new(Code::TaskFailed, "no"));
        let other = Arc::new(Diagnostic::new(Code::TaskFailed, "no"));
        let task = wire::TaskId { graph: 1, task: 2 };
        assert!(link.failed(task, &error, true));
        assert!(!link.failed(task, &error, false));
        link.failed(task, &other, true);
        let sent: Vec<_> = link
            .pending
            .failures
            .iter()
            .map(|f| f.fault.is_some())
            .collect();
        assert_eq!(sent, [true, false, true]);
        link.flush();
        link.failed(task, &other, false);
        assert!(
            link.pending.failures[0].fault.is_some(),
            "each message stands alone"
        );
    }

    #[test]
    fn appended_progress_replaces_the_older_one() {
        let progress = |graph, total| wire::Progress {
            graph,
            groups: vec![wire::GroupProgress {
                total,
                ..Default::default()
            }],
            cluster: None,
        };
        let mut batch = wire::SessionBatch {
            progress: vec![progress(1, 1)],
            ..Default::default()
        };
        let later = vec![progress(1, 2), progress(2, 3)];
        batch.append(wire::SessionBatch {
            progress: later,
            ..Default::default()
        });
        assert_eq!(batch.progress, [progress(1, 2), progress(2, 3)]);
    }
}
