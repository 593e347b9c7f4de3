//! The main loop's side of each connection.
//!
//! Owns what the loop gathers for a peer during one round, and hands it to the peer's outbox at the
//! end of the round: one lock a round instead of one an effect. Never waits.
//!
//! Invariants: the order of orders to a worker is the order of the effects; within a message a body
//! stands before the first assignment that uses it; what is ordered of a worker while nobody hears
//! of it does not reach it, not even later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use oxidask_core::{Digest, GraphId, Timestamp, WorkerId};
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use tonic::Status;

use crate::bodies::BodiesSent;
use crate::outbox::{Batch, OUTBOX_BYTES_MAX, Outbox};
use crate::values;
use crate::vitals::Vitals;

/// A round's messages to one peer are handed over early when they reach this many bytes, so that a
/// message is never much larger than a single item.
const PENDING_BYTES_MAX: usize = 1024 * 1024;

/// Bytes counted for a ready result.
const READY_BYTES: usize = 24;

/// Bytes counted for a peer besides its address.
const PEER_BYTES: usize = 8;

/// Whether a worker is heard. In all but the first case it is a suspect for the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// Its messages come, and orders reach it.
    Heard,
    /// It has a stream that says nothing.
    Silent,
    /// It was asked for all that it has; its answer makes it heard.
    Asked,
    /// It has no stream.
    Away,
}

/// One stream of a worker, as the loop sees it.
pub(crate) struct Stream {
    /// Tells it from others of the same worker.
    pub(crate) number: u32,
    /// The way to the worker.
    pub(crate) outbox: Arc<Outbox<wire::WorkBatch>>,
}

/// Beats since anything else was on its way between scheduler and worker.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    /// Their number.
    pub(crate) beats: u32,
    /// The digest that was found to be right, so that it is not compared with each beat.
    pub(crate) agreed: Option<Digest>,
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
    /// It runs nothing, and all it holds is elsewhere too: the core said so.
    pub(crate) is_empty: bool,
    /// It is to end when it is empty, because it asked to leave or somebody wants that.
    pub(crate) ends: bool,
    /// It asked to leave: by when it must be gone.
    pub(crate) leaves_by: Option<Timestamp>,
    /// It could not be drained when that was tried.
    pub(crate) is_leaving_refused: bool,
    /// How long nothing was on its way.
    pub(crate) quiet: Quiet,
    /// Times in a row that it was asked for all that it has, because it differed.
    pub(crate) repairs: u32,
    /// Peers whose address it has been told: those that its orders name. Not all, because each of
    /// thousands would have to be told to each.
    pub(crate) peers_told: HashSet<WorkerId>,
    /// Peers of these that moved or went while nobody heard of it: no more than did so within the time
    /// after which it is given up.
    pub(crate) peers_missed: Vec<wire::Peer>,
    hearing: Hearing,
    stream: Option<Stream>,
    pending: wire::WorkBatch,
    pending_bytes: usize,
}

impl WorkerLink {
    /// A link to a worker that has just connected.
    pub(crate) fn new(hello: wire::WorkerHello, vitals: Arc<Vitals>, stream: Stream) -> Self {
        Self {
            stream: Some(stream),
            hearing: Hearing::Heard,
            vitals,
            ..Self::former(hello)
        }
    }

    /// A link to a worker that was there before this process began, and may come back.
    pub(crate) fn former(hello: wire::WorkerHello) -> Self {
        Self {
            address: Arc::from(hello.data_address.as_str()),
            hello,
            vitals: Arc::default(),
            graphs: HashMap::new(),
            is_empty: false,
            ends: false,
            leaves_by: None,
            is_leaving_refused: false,
            quiet: Quiet::default(),
            repairs: 0,
            peers_told: HashSet::new(),
            peers_missed: Vec::new(),
            hearing: Hearing::Away,
            stream: None,
            pending: wire::WorkBatch::default(),
            pending_bytes: 0,
        }
    }

    /// Whether it is heard.
    pub(crate) fn hearing(&self) -> Hearing {
        self.hearing
    }

    /// Whether what comes from this stream comes from the worker.
    pub(crate) fn is_of(&self, stream: u32) -> bool {
        self.stream.as_ref().is_some_and(|own| own.number == stream)
    }

    /// Orders reach it from now on.
    pub(crate) fn hear(&mut self) {
        self.hearing = Hearing::Heard;
        self.quiet = Quiet::default();
    }

    /// Orders do not reach it any more, but what was ordered before does.
    pub(crate) fn mute(&mut self, hearing: Hearing) {
        self.flush();
        self.hearing = hearing;
    }

    /// Its stream is over.
    pub(crate) fn lose_stream(&mut self) {
        self.hearing = Hearing::Away;
        (self.pending, self.pending_bytes) = (wire::WorkBatch::default(), 0);
        if let Some(stream) = self.stream.take() {
            stream.outbox.finish(Ok(()));
        }
    }

    /// It has come back on another stream. What was under way on the one before may be lost: bodies
    /// are sent again.
    pub(crate) fn come_back(&mut self, hello: wire::WorkerHello, came: (Arc<Vitals>, Stream)) {
        self.lose_stream();
        self.address = Arc::from(hello.data_address.as_str());
        self.hello = hello;
        self.vitals = came.0;
        self.stream = Some(came.1);
        for bodies in self.graphs.values_mut() {
            *bodies = BodiesSent::default();
        }
    }

    /// Bytes that wait for the transport.
    pub(crate) fn outbox_bytes(&self) -> usize {
        let stream = self.stream.as_ref();
        stream.map_or(0, |stream| stream.outbox.bytes())
    }

    /// Whether all that was ordered has been taken by the transport.
    pub(crate) fn is_flushed(&self) -> bool {
        let stream = self.stream.as_ref();
        self.pending_bytes == 0 && stream.is_none_or(|stream| stream.outbox.is_empty())
    }

    /// Tells it of a peer that it does not know yet. True if it is the first addition of the round.
    pub(crate) fn meet_peer(&mut self, peer: wire::Peer) -> bool {
        self.peers_told.insert(WorkerId(peer.worker));
        self.tell_peer(peer)
    }

    /// Tells it that a peer has moved or, with an empty address, is gone: now or when it is heard
    /// again. Nothing if it does not know the peer. True if it is the first addition of the round.
    pub(crate) fn tell_peer(&mut self, peer: wire::Peer) -> bool {
        let id = WorkerId(peer.worker);
        let is_known = match peer.data_address.as_str() {
            "" => self.peers_told.remove(&id),
            _ => self.peers_told.contains(&id),
        };
        if !is_known {
            return false;
        }
        if self.hearing != Hearing::Heard {
            self.peers_missed
                .retain(|other| other.worker != peer.worker);
            self.peers_missed.push(peer);
            return false;
        }
        self.add(PEER_BYTES + peer.data_address.len(), |batch| {
            batch.peers.push(peer);
        })
    }

    /// Adds to the round's message, unless nobody hears of the worker. `bytes` is what it adds,
    /// roughly. True if it is the first addition of the round.
    pub(crate) fn add(&mut self, bytes: usize, change: impl FnOnce(&mut wire::WorkBatch)) -> bool {
        self.hearing == Hearing::Heard && self.say(bytes, change)
    }

    /// As [`Self::add`], but for what a worker must be told before it can be heard.
    pub(crate) fn say(&mut self, bytes: usize, change: impl FnOnce(&mut wire::WorkBatch)) -> bool {
        let is_first = self.pending_bytes == 0;
        self.quiet = Quiet::default();
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
        let batch = std::mem::take(&mut self.pending);
        let bytes = std::mem::take(&mut self.pending_bytes);
        match &self.stream {
            Some(stream) => stream.outbox.push(batch, bytes),
            None => true,
        }
    }

    /// Ends the stream after what was added.
    pub(crate) fn finish(&mut self) {
        self.flush();
        if let Some(stream) = &self.stream {
            stream.outbox.finish(Ok(()));
        }
    }
}

/// What the loop keeps of a client.
pub(crate) struct ClientLink {
    outbox: Arc<Outbox<wire::SessionBatch>>,
    pending: wire::SessionBatch,
    pending_bytes: usize,
    last_error: Option<Arc<Diagnostic>>,
    /// Nothing leaves before what the client waits for first.
    is_gated: bool,
    /// It is a part of this process.
    is_own: bool,
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
            is_gated: false,
            is_own: false,
        }
    }

    /// A client that is a part of this process.
    #[must_use]
    pub(crate) fn own(mut self) -> Self {
        self.is_own = true;
        self
    }

    /// Whether the client is a part of this process.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Keeps everything back, or lets it go with the next flush.
    pub(crate) fn gate(&mut self, is_gated: bool) {
        self.is_gated = is_gated;
    }

    /// Ends the session with an error.
    pub(crate) fn end(&mut self, status: Status) {
        self.outbox.finish(Err(status));
    }

    /// Adds to the round's message. `bytes` is what it adds, roughly. True if it is the first
    /// addition of the round.
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

    /// Bytes that wait for the transport.
    pub(crate) fn outbox_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// A wanted result is there. Its value, if there is one, is for clients in this process.
    pub(crate) fn ready(
        &mut self,
        task: wire::TaskId,
        bytes: u64,
        value: wire::SmallValue,
    ) -> bool {
        let has_room = self.pending_bytes + self.outbox.bytes() < values::WAITING_BYTES_MAX;
        let value = self.is_own.then(|| {
            if has_room {
                value
            } else {
                wire::SmallValue::default()
            }
        });
        let value_bytes = value.as_ref().map_or(0, |value| value.data.len());
        self.add(READY_BYTES + value_bytes, |batch| {
            batch.ready_graph.push(task.graph);
            batch.ready_task.push(task.task);
            batch.ready_bytes.push(bytes);
            batch.ready_value.extend(value);
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
        // A client for which too much is kept back is closed like one that does not read.
        if self.is_gated && self.pending_bytes < OUTBOX_BYTES_MAX {
            return true;
        }
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
    fault.message.len() + fault.hint.len() + fault.attachment.len() + causes
}

impl Batch for wire::WorkBatch {
    fn append(&mut self, later: Self) {
        if later.hello.is_some() {
            self.hello = later.hello;
            self.worker = later.worker;
            self.is_resumed = later.is_resumed;
        }
        if later.refused.is_some() {
            self.refused = later.refused;
        }
        extend(&mut self.peers, later.peers);
        extend(&mut self.commands, later.commands);
        extend(&mut self.bodies, later.bodies);
        extend(&mut self.orders, later.orders);
        extend(&mut self.graphs_forgotten, later.graphs_forgotten);
        extend(&mut self.copies, later.copies);
        self.is_empty |= later.is_empty;
        if !later.leaving_refused.is_empty() {
            self.leaving_refused = later.leaving_refused;
        }
        // Whatever was ordered before is in the same message or in one before it.
        self.inventory_wanted |= later.inventory_wanted;
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
        extend(&mut self.ready_value, later.ready_value);
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

    fn worker() -> WorkerLink {
        let stop = tokio_util::sync::CancellationToken::new();
        let outbox = Outbox::new(usize::MAX, &stop);
        let stream = Stream { number: 7, outbox };
        WorkerLink::new(wire::WorkerHello::default(), Arc::default(), stream)
    }

    fn peer(worker: u32, address: &str) -> wire::Peer {
        wire::Peer {
            worker,
            data_address: address.to_owned(),
        }
    }

    #[test]
    fn nothing_gathers_for_a_worker_that_is_not_heard() {
        let mut link = worker();
        assert!(link.add(5, |batch| batch.graphs_forgotten.push(1)));
        link.mute(Hearing::Silent);
        assert!(!link.is_flushed(), "what was ordered before is on its way");
        let before = link.outbox_bytes();
        for _ in 0..1_000 {
            assert!(!link.add(5_000, |batch| batch.graphs_forgotten.push(2)));
        }
        assert!(link.flush());
        assert_eq!(link.outbox_bytes(), before);
        link.hear();
        assert!(link.add(5, |batch| batch.graphs_forgotten.push(3)));
        assert_eq!(link.pending.graphs_forgotten, [3], "not even later");
    }

    #[test]
    fn the_last_word_on_each_peer_is_kept_for_a_worker_that_is_not_heard() {
        let mut link = worker();
        link.lose_stream();
        assert!(!link.is_of(7), "the stream is over");
        link.peers_told.extend([WorkerId(1), WorkerId(2)]);
        for peer in [peer(1, "a"), peer(2, "b"), peer(1, ""), peer(2, "c")] {
            assert!(!link.tell_peer(peer));
        }
        assert!(!link.tell_peer(peer(3, "of no interest")));
        assert_eq!(link.peers_missed, [peer(1, ""), peer(2, "c")]);
    }

    #[test]
    fn shared_bodies_are_sent_again_on_another_stream() {
        let mut link = worker();
        link.graphs.entry(GraphId(1)).or_default().insert(3);
        let stop = tokio_util::sync::CancellationToken::new();
        let stream = Stream {
            number: 8,
            outbox: Outbox::new(usize::MAX, &stop),
        };
        let vitals = Arc::clone(&link.vitals);
        link.come_back(wire::WorkerHello::default(), (vitals, stream));
        assert!(link.is_of(8) && !link.is_of(7));
        let bodies = link.graphs.get_mut(&GraphId(1)).unwrap();
        assert!(bodies.insert(3), "it may not have arrived");
    }

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
