//! What waits to be sent to the scheduler.
//!
//! Owns the order of what a client says: chunks of its graph in order; a cancellation overtakes the
//! chunks that wait and replaces them. Chunks are bounded by [`CHUNKS_WAITING_MAX`], the rest by the
//! number of tasks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use oxidask_proto::wire;
use tokio::sync::Notify;

/// Chunks that wait for the transport; whoever has more waits.
const CHUNKS_WAITING_MAX: usize = 2;

/// Released tasks in one message.
const RELEASED_PER_MESSAGE_MAX: usize = 500_000;

/// Messages that wait for the transport.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    state: Mutex<State>,
    changed: Notify,
    space: Notify,
}

#[derive(Debug, Default)]
struct State {
    first: Option<wire::ClientBatch>,
    chunks: VecDeque<wire::GraphChunk>,
    released: Vec<wire::TaskId>,
    cancelled: Vec<u32>,
    closed: Vec<u32>,
    is_cancelled: bool,
    is_ended: bool,
}

impl Commands {
    /// A queue that begins with a message.
    pub(crate) fn new(first: wire::ClientBatch) -> Arc<Self> {
        let state = State {
            first: Some(first),
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            ..Self::default()
        })
    }

    /// Sends a chunk once there is room for it. False if nothing more can be sent.
    pub(crate) async fn send_chunk(&self, chunk: wire::GraphChunk) -> bool {
        loop {
            {
                let mut state = self.state();
                if state.is_ended || state.is_cancelled {
                    return false;
                }
                if state.chunks.len() < CHUNKS_WAITING_MAX {
                    state.chunks.push_back(chunk);
                    break;
                }
            }
            self.space.notified().await;
        }
        self.changed.notify_one();
        true
    }

    /// The client no longer wants these results.
    pub(crate) fn release(&self, graph: u32, tasks: Vec<u32>) {
        let ids = tasks.into_iter().map(|task| wire::TaskId { graph, task });
        self.state().released.extend(ids);
        self.changed.notify_one();
    }

    /// The graph is to stop.
    pub(crate) fn cancel(&self, graph: u32) {
        let mut state = self.state();
        state.chunks.clear();
        state.is_cancelled = true;
        state.cancelled = vec![graph];
        drop(state);
        self.changed.notify_one();
        self.space.notify_one();
    }

    /// The client is done with the graph: everything of it goes, and the session ends.
    pub(crate) fn close(&self, graph: u32) {
        let mut state = self.state();
        state.chunks.clear();
        state.released.clear();
        state.closed = vec![graph];
        drop(state);
        self.end();
    }

    /// Ends the session after what waits.
    pub(crate) fn end(&self) {
        self.state().is_ended = true;
        self.changed.notify_one();
        self.space.notify_one();
    }

    /// Whether this side ended the session.
    pub(crate) fn is_ended(&self) -> bool {
        self.state().is_ended
    }

    /// What the transport reads.
    pub(crate) fn into_stream(self: Arc<Self>) -> impl Stream<Item = wire::ClientBatch> + Send {
        futures::stream::unfold(self, |commands| async move {
            let batch = commands.take().await?;
            Some((batch, commands))
        })
    }

    async fn take(&self) -> Option<wire::ClientBatch> {
        loop {
            {
                let mut state = self.state();
                if let Some(batch) = state.next() {
                    drop(state);
                    self.space.notify_one();
                    return Some(batch);
                }
                if state.is_ended {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<wire::ClientBatch> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if let Some(chunk) = self.chunks.pop_front() {
            return Some(wire::ClientBatch {
                chunks: vec![chunk],
                ..Default::default()
            });
        }
        if self.released.is_empty() && self.cancelled.is_empty() && self.closed.is_empty() {
            return None;
        }
        let rest = self.released.len().saturating_sub(RELEASED_PER_MESSAGE_MAX);
        Some(wire::ClientBatch {
            released: self.released.split_off(rest),
            cancelled: std::mem::take(&mut self.cancelled),
            closed: std::mem::take(&mut self.closed),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn chunks_wait_for_room_and_keep_their_order() {
        let commands = Commands::new(wire::ClientBatch::default());
        let chunk = |number| wire::GraphChunk {
            number,
            ..Default::default()
        };
        let sender = Arc::clone(&commands);
        let sending = tokio::spawn(async move {
            for number in 0..10 {
                assert!(sender.send_chunk(chunk(number)).await);
            }
            sender.release(1, vec![5]);
            sender.end();
            sender.send_chunk(chunk(11)).await
        });
        tokio::task::yield_now().await;
        assert!(commands.state().chunks.len() <= CHUNKS_WAITING_MAX);
        let batches: Vec<_> = Arc::clone(&commands).into_stream().collect().await;
        let numbers: Vec<u32> = batches
            .iter()
            .flat_map(|b| &b.chunks)
            .map(|c| c.number)
            .collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        assert_eq!(batches.last().unwrap().released.len(), 1);
        assert!(!sending.await.unwrap(), "nothing is sent after the end");
    }

    #[tokio::test]
    async fn cancelling_drops_the_chunks_that_wait() {
        let commands = Commands::new(wire::ClientBatch::default());
        assert!(commands.send_chunk(wire::GraphChunk::default()).await);
        commands.cancel(4);
        assert!(!commands.send_chunk(wire::GraphChunk::default()).await);
        commands.close(4);
        let batches: Vec<_> = Arc::clone(&commands).into_stream().collect().await;
        assert_eq!(batches.len(), 2);
        assert_eq!((batches[1].cancelled[0], batches[1].closed[0]), (4, 4));
        assert!(batches[1].chunks.is_empty());
    }
}
