//! What a graph's client has to say to the scheduler, whatever connection carries it.
//!
//! Owns the order of what a client says: chunks of its graph in order; a cancellation overtakes the
//! chunks that wait and replaces them. Chunks are kept until the scheduler has said that it will not
//! lose them, so that a new connection can say them again; so are releases, which are one bit each.
//!
//! Invariants: chunks are bounded by [`CHUNKS_WAITING_MAX`] and [`CHUNKS_UNACKNOWLEDGED_MAX`], the
//! rest by the number of tasks; only the newest connection is served, and nothing but its first
//! message before the scheduler has named the graph on it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use oxidask_proto::wire;
use tokio::sync::Notify;

use crate::bits::BitSet;

/// Chunks that wait for the transport; whoever has more waits.
const CHUNKS_WAITING_MAX: usize = 2;

/// Chunks that are on their way and not acknowledged yet; whoever has more waits.
const CHUNKS_UNACKNOWLEDGED_MAX: usize = 8;

/// Released tasks in one message.
const RELEASED_PER_MESSAGE_MAX: usize = 500_000;

/// What waits for a connection, or for an acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    state: Mutex<State>,
    space: Notify,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    graph: u32,
    /// In order of their numbers, without gaps; the first `sent` are on their way.
    chunks: VecDeque<wire::GraphChunk>,
    sent: usize,
    /// The number that the chunk after the last one will have.
    next_chunk: u32,
    /// Somebody waits for room.
    waiting: usize,
    released: BitSet,
    released_waiting: Vec<u32>,
    cancellation: Word,
    closing: Word,
    is_ended: bool,
    line: Option<Arc<Line>>,
}

/// Something that is said once on each connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    NotGiven,
    /// Not said on this connection yet.
    Waiting,
    Said,
}

impl Word {
    fn is_given(self) -> bool {
        self != Self::NotGiven
    }

    /// A new connection has heard nothing.
    fn say_again(&mut self) {
        if *self == Self::Said {
            *self = Self::Waiting;
        }
    }

    /// Whether it is to be said now.
    fn say(&mut self) -> bool {
        let is_waiting = *self == Self::Waiting;
        if is_waiting {
            *self = Self::Said;
        }
        is_waiting
    }
}

/// One connection's side.
#[derive(Debug)]
struct Line {
    first: Mutex<Option<wire::ClientBatch>>,
    is_attached: AtomicBool,
    changed: Notify,
}

/// Counts a sender that waits for as long as it does.
struct Waiting<'a>(&'a Commands);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// The scheduler lacks chunks that it had acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunksLost;

impl Commands {
    /// Nothing yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Sends a chunk once there is room for it. False if nothing more can be sent.
    pub(crate) async fn send_chunk(&self, chunk: wire::GraphChunk) -> bool {
        loop {
            {
                let mut state = self.state();
                if state.is_ended || state.cancellation.is_given() {
                    return false;
                }
                let unsent = state.chunks.len() - state.sent;
                if unsent < CHUNKS_WAITING_MAX && state.chunks.len() < CHUNKS_UNACKNOWLEDGED_MAX {
                    state.next_chunk = chunk.number.saturating_add(1);
                    state.chunks.push_back(chunk);
                    state.wake();
                    return true;
                }
                state.waiting += 1;
            }
            // May be dropped while it waits.
            let _waiting = Waiting(self);
            self.space.notified().await;
        }
    }

    /// Whether a sender waits: acknowledgements must be read then, whatever comes with them.
    pub(crate) fn is_waiting(&self) -> bool {
        self.state().waiting > 0
    }

    /// The scheduler will not lose this chunk, nor those before it.
    pub(crate) fn acknowledged(&self, number: u32) {
        let mut state = self.state();
        state.forget_through(number);
        drop(state);
        self.space.notify_one();
    }

    /// The client no longer wants these results.
    pub(crate) fn release(&self, tasks: Vec<u32>) {
        let mut state = self.state();
        for task in tasks {
            if state.released.insert(task) {
                state.released_waiting.push(task);
            }
        }
        state.wake();
    }

    /// The graph is to stop.
    pub(crate) fn cancel(&self) {
        let mut state = self.state();
        state.drop_chunks();
        state.cancellation = Word::Waiting;
        state.wake();
        drop(state);
        self.space.notify_one();
    }

    /// The client is done with the graph: everything of it goes, and the session ends.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.drop_chunks();
        state.released.clear();
        state.released_waiting.clear();
        state.closing = Word::Waiting;
        drop(state);
        self.end();
    }

    /// Ends the session after what waits.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.is_ended = true;
        state.wake();
        drop(state);
        self.space.notify_one();
        self.ended.notify_one();
    }

    /// Waits until this side has ended the session. For one waiter.
    pub(crate) async fn ended(&self) {
        while !self.is_ended() {
            self.ended.notified().await;
        }
    }

    /// Whether this side ended the session.
    pub(crate) fn is_ended(&self) -> bool {
        self.state().is_ended
    }

    /// Begins a connection with a message; connections before it say nothing more.
    pub(crate) fn connect(
        self: &Arc<Self>,
        first: wire::ClientBatch,
    ) -> impl Stream<Item = wire::ClientBatch> + Send + 'static {
        let line = Arc::new(Line {
            first: Mutex::new(Some(first)),
            is_attached: false.into(),
            changed: Notify::new(),
        });
        let mut state = self.state();
        if let Some(old) = state.line.replace(Arc::clone(&line)) {
            old.changed.notify_one();
        }
        drop(state);
        let outbound = (Arc::clone(self), line);
        futures::stream::unfold(outbound, |(commands, line)| async move {
            let batch = commands.take(&line).await?;
            Some((batch, (commands, line)))
        })
    }

    /// The scheduler has named the graph on the newest connection, and the first chunk that it has
    /// not got: all that it may lack is said again.
    pub(crate) fn attached(&self, graph: u32, next_chunk: u32) -> Result<(), ChunksLost> {
        let mut state = self.state();
        state.graph = graph;
        if !state.cancellation.is_given() && !state.closing.is_given() {
            if next_chunk > 0 {
                state.forget_through(next_chunk - 1);
            }
            let first_kept = state.chunks.front().map(|chunk| chunk.number);
            if first_kept.unwrap_or(state.next_chunk) > next_chunk {
                return Err(ChunksLost);
            }
        }
        state.sent = 0;
        state.released_waiting = state.released.iter().collect();
        state.cancellation.say_again();
        state.closing.say_again();
        if let Some(line) = &state.line {
            line.is_attached.store(true, Ordering::Relaxed);
        }
        state.wake();
        drop(state);
        self.space.notify_one();
        Ok(())
    }

    async fn take(&self, line: &Arc<Line>) -> Option<wire::ClientBatch> {
        loop {
            if let Some(first) = line.take_first() {
                return Some(first);
            }
            {
                let mut state = self.state();
                let is_newest = state.line.as_ref().is_some_and(|l| Arc::ptr_eq(l, line));
                if !is_newest {
                    return None;
                }
                let is_attached = line.is_attached.load(Ordering::Relaxed);
                if is_attached && let Some(batch) = state.next() {
                    drop(state);
                    self.space.notify_one();
                    return Some(batch);
                }
                if state.is_ended {
                    return None;
                }
            }
            line.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn take_first(&self) -> Option<wire::ClientBatch> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }
}

impl State {
    fn wake(&self) {
        if let Some(line) = &self.line {
            line.changed.notify_one();
        }
    }

    fn drop_chunks(&mut self) {
        self.chunks.clear();
        self.sent = 0;
    }

    fn forget_through(&mut self, number: u32) {
        while self
            .chunks
            .front()
            .is_some_and(|chunk| chunk.number <= number)
        {
            self.chunks.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    fn next(&mut self) -> Option<wire::ClientBatch> {
        if let Some(chunk) = self.chunks.get(self.sent) {
            self.sent += 1;
            return Some(wire::ClientBatch {
                chunks: vec![chunk.clone()],
                ..Default::default()
            });
        }
        let graph = self.graph;
        let said =
            |word: &mut Word| -> Vec<u32> { word.say().then_some(graph).into_iter().collect() };
        let cancelled = said(&mut self.cancellation);
        let closed = said(&mut self.closing);
        if self.released_waiting.is_empty() && cancelled.is_empty() && closed.is_empty() {
            return None;
        }
        let rest = self
            .released_waiting
            .len()
            .saturating_sub(RELEASED_PER_MESSAGE_MAX);
        let released = self.released_waiting.split_off(rest);
        let ids = released
            .into_iter()
            .map(|task| wire::TaskId { graph, task });
        Some(wire::ClientBatch {
            released: ids.collect(),
            cancelled,
            closed,
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::{FutureExt, StreamExt};

    use super::*;

    fn chunk(number: u32) -> wire::GraphChunk {
        wire::GraphChunk {
            number,
            ..Default::default()
        }
    }

    fn numbers(batch: &wire::ClientBatch) -> Vec<u32> {
        batch.chunks.iter().map(|chunk| chunk.number).collect()
    }

    #[tokio::test]
    async fn chunks_wait_for_room_and_keep_their_order() {
        let commands = Commands::new();
        let sender = Arc::clone(&commands);
        let sending = tokio::spawn(async move {
            for number in 0..30 {
                assert!(sender.send_chunk(chunk(number)).await);
            }
            sender.release(vec![5]);
            sender.end();
            sender.send_chunk(chunk(31)).await
        });
        tokio::task::yield_now().await;
        assert!(commands.state().chunks.len() <= CHUNKS_WAITING_MAX);
        let mut outbound = pin!(commands.connect(wire::ClientBatch::default()));
        assert!(outbound.next().await.is_some(), "the first message");
        assert!(
            outbound.next().now_or_never().is_none(),
            "nothing before the graph is named"
        );
        commands.attached(1, 0).unwrap();
        let mut heard = Vec::new();
        let mut released = Vec::new();
        while let Some(batch) = outbound.next().await {
            heard.extend(numbers(&batch));
            released.extend(batch.released);
            assert!(commands.state().chunks.len() <= CHUNKS_UNACKNOWLEDGED_MAX);
            if let Some(last) = heard.last() {
                commands.acknowledged(*last);
            }
        }
        assert_eq!(heard, (0..30).collect::<Vec<_>>());
        assert_eq!(released, [wire::TaskId { graph: 1, task: 5 }]);
        assert!(!sending.await.unwrap(), "nothing is sent after the end");
    }

    #[tokio::test]
    async fn without_acknowledgements_the_sender_waits() {
        let commands = Commands::new();
        let mut outbound = pin!(commands.connect(wire::ClientBatch::default()));
        outbound.next().await;
        commands.attached(1, 0).unwrap();
        let max = u32::try_from(CHUNKS_UNACKNOWLEDGED_MAX).unwrap();
        for number in 0..max {
            assert!(commands.send_chunk(chunk(number)).await);
            outbound.next().await;
        }
        let mut next = Box::pin(commands.send_chunk(chunk(max)));
        assert!(next.as_mut().now_or_never().is_none());
        assert!(commands.is_waiting());
        commands.acknowledged(0);
        assert!(next.await);
        assert!(!commands.is_waiting());
    }

    #[tokio::test]
    async fn a_new_connection_says_again_what_may_be_lost() {
        let commands = Commands::new();
        let mut old = Box::pin(commands.connect(wire::ClientBatch::default()));
        old.next().await;
        commands.attached(3, 0).unwrap();
        for number in 0..4 {
            assert!(commands.send_chunk(chunk(number)).await);
            old.next().await;
        }
        commands.release(vec![1, 0, 1]);
        assert_eq!(old.next().await.unwrap().released.len(), 2);
        commands.acknowledged(1);

        let mut new = Box::pin(commands.connect(wire::ClientBatch::default()));
        new.next().await;
        assert!(old.next().await.is_none(), "the old one is over");
        // It had chunk 2 too, but its acknowledgement was lost.
        commands.attached(3, 3).unwrap();
        assert_eq!(numbers(&new.next().await.unwrap()), [3]);
        let again = new.next().await.unwrap();
        let released: Vec<u32> = again.released.iter().map(|id| id.task).collect();
        assert_eq!(released, [0, 1]);
        assert!(new.next().now_or_never().is_none());

        commands.cancel();
        assert_eq!(new.next().await.unwrap().cancelled, [3]);
        let mut newest = Box::pin(commands.connect(wire::ClientBatch::default()));
        newest.next().await;
        commands.attached(3, 3).unwrap();
        let again = newest.next().await.unwrap();
        assert_eq!((again.cancelled[0], again.released.len()), (3, 2));
    }

    #[tokio::test]
    async fn acknowledged_chunks_that_are_gone_are_noticed() {
        let commands = Commands::new();
        let mut outbound = pin!(commands.connect(wire::ClientBatch::default()));
        outbound.next().await;
        commands.attached(3, 0).unwrap();
        for number in 0..2 {
            assert!(commands.send_chunk(chunk(number)).await);
            outbound.next().await;
        }
        commands.acknowledged(0);
        assert_eq!(commands.attached(3, 0), Err(ChunksLost));
        assert_eq!(commands.attached(3, 1), Ok(()));
        commands.acknowledged(1);
        assert_eq!(commands.attached(3, 1), Err(ChunksLost));
        assert_eq!(commands.attached(3, 2), Ok(()));
    }

    #[tokio::test]
    async fn cancelling_drops_the_chunks_that_wait() {
        let commands = Commands::new();
        assert!(commands.send_chunk(chunk(0)).await);
        commands.cancel();
        assert!(!commands.send_chunk(chunk(1)).await);
        commands.close();
        let mut outbound = pin!(commands.connect(wire::ClientBatch::default()));
        outbound.next().await;
        commands.attached(4, 0).unwrap();
        let batch = outbound.next().await.unwrap();
        assert!(batch.chunks.is_empty());
        assert_eq!((batch.cancelled[0], batch.closed[0]), (4, 4));
        assert!(outbound.next().await.is_none());
    }
}
