//! What waits to be sent to one peer.
//!
//! Owns the batches that a connection has not taken yet. The main loop pushes, the gRPC stream takes
//! whenever the transport is ready for more: so batches grow by themselves when a peer is slow, and
//! are sent at once when it is fast. Never blocks, never waits inside `push`.
//!
//! Invariants: order is kept; one message stays near [`MESSAGE_BYTES_TARGET`]; no more than
//! `bytes_max` wait: a peer that does not read is closed with OX306 instead.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::fault::to_status;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// Batches are merged up to this many bytes; a single larger item is sent alone.
pub(crate) const MESSAGE_BYTES_TARGET: usize = 4 * 1024 * 1024;

/// Bytes that may wait for one peer.
pub(crate) const OUTBOX_BYTES_MAX: usize = 128 * 1024 * 1024;

/// A message that others can be appended to.
pub(crate) trait Batch: Default + Send + 'static {
    /// Appends what came later.
    fn append(&mut self, later: Self);
}

/// The sending side of one connection.
pub(crate) struct Outbox<B> {
    state: Mutex<State<B>>,
    changed: Notify,
    closed: CancellationToken,
    bytes_max: usize,
}

struct State<B> {
    waiting: VecDeque<(B, usize)>,
    bytes: usize,
    end: Option<Result<(), Box<Status>>>,
    is_overflown: bool,
}

impl<B: Batch> Outbox<B> {
    /// An empty outbox, closed when `shutdown` fires.
    pub(crate) fn new(bytes_max: usize, shutdown: &CancellationToken) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            bytes: 0,
            end: None,
            is_overflown: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            closed: shutdown.child_token(),
            bytes_max,
        })
    }

    /// Fires when the connection is over: ended, overflown, shut down, or the peer is gone.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Adds a batch of about `bytes` bytes. False if the peer had to be closed because of it.
    pub(crate) fn push(&self, batch: B, bytes: usize) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return true;
        }
        if state.bytes + bytes > self.bytes_max && !state.waiting.is_empty() {
            let error = Diagnostic::new(
                Code::PeerTooSlow,
                format!("the peer left `{}` bytes unread", state.bytes),
            );
            state.waiting.clear();
            state.bytes = 0;
            state.is_overflown = true;
            state.end = Some(Err(Box::new(to_status(&error))));
            drop(state);
            self.wake_and_close();
            return false;
        }
        state.bytes += bytes;
        match state.waiting.back_mut() {
            Some((last, size)) if *size + bytes <= MESSAGE_BYTES_TARGET => {
                last.append(batch);
                *size += bytes;
            }
            _ => state.waiting.push_back((batch, bytes)),
        }
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Ends the stream after what waits now.
    pub(crate) fn finish(&self, end: Result<(), Status>) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(end.map_err(Box::new));
        }
        drop(state);
        self.wake_and_close();
    }

    /// Whether the peer was closed because it does not read.
    pub(crate) fn is_overflown(&self) -> bool {
        self.state().is_overflown
    }

    /// Whether our side has ended the stream.
    pub(crate) fn is_finished(&self) -> bool {
        self.state().end.is_some()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Whether the transport has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// The stream that the transport reads. Dropping it closes the outbox.
    pub(crate) fn into_stream(self: Arc<Self>) -> impl Stream<Item = Result<B, Status>> + Send {
        let guard = self.closed.clone().drop_guard();
        futures::stream::unfold(Some((self, guard)), |reader| async move {
            let (outbox, guard): (Arc<Self>, DropGuard) = reader?;
            match outbox.take().await {
                Some(Ok(batch)) => Some((Ok(batch), Some((outbox, guard)))),
                Some(Err(status)) => Some((Err(status), None)),
                None => None,
            }
        })
    }

    async fn take(&self) -> Option<Result<B, Status>> {
        loop {
            {
                let mut state = self.state();
                if let Some((batch, bytes)) = state.waiting.pop_front() {
                    state.bytes -= bytes;
                    return Some(Ok(batch));
                }
                match &mut state.end {
                    Some(Ok(())) => return None,
                    Some(failed) => {
                        let status = std::mem::replace(failed, Ok(())).err()?;
                        return Some(Err(*status));
                    }
                    None => {}
                }
            }
            self.changed.notified().await;
        }
    }

    fn wake_and_close(&self) {
        self.changed.notify_one();
        self.closed.cancel();
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    impl Batch for Vec<u32> {
        fn append(&mut self, later: Self) {
            self.extend(later);
        }
    }

    fn outbox(bytes_max: usize) -> Arc<Outbox<Vec<u32>>> {
        Outbox::new(bytes_max, &CancellationToken::new())
    }

    #[tokio::test]
    async fn what_accumulates_is_one_message_until_it_is_large() {
        let outbox = outbox(OUTBOX_BYTES_MAX);
        assert!(outbox.push(vec![1], 10));
        assert!(outbox.push(vec![2], 10));
        assert!(outbox.push(vec![3], MESSAGE_BYTES_TARGET));
        assert!(outbox.push(vec![4], 1));
        outbox.finish(Ok(()));
        assert!(outbox.push(vec![5], 1), "ignored after the end");
        let stream = Arc::clone(&outbox).into_stream();
        let got: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(got, [vec![1, 2], vec![3], vec![4]]);
        assert!(outbox.closed().is_cancelled());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_closed_and_told_why() {
        let outbox = outbox(100);
        assert!(
            outbox.push(vec![0; 9], 1000),
            "one item may be larger than the bound"
        );
        assert!(!outbox.push(vec![1], 1));
        assert!(outbox.closed().is_cancelled());
        assert!(outbox.is_overflown() && outbox.is_finished());
        let got: Vec<_> = Arc::clone(&outbox).into_stream().collect().await;
        assert_eq!(got.len(), 1, "what waited is dropped");
        assert!(got[0].as_ref().unwrap_err().message().contains("OX306"));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_and_a_dropped_one_closes_the_outbox() {
        let outbox = outbox(100);
        let mut stream = Box::pin(Arc::clone(&outbox).into_stream());
        let later = Arc::clone(&outbox);
        tokio::spawn(async move { later.push(vec![7], 1) });
        assert_eq!(stream.next().await.unwrap().unwrap(), [7]);
        drop(stream);
        assert!(outbox.closed().is_cancelled());
    }
}
