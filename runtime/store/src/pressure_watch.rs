//! Waking whoever waits for the pressure to change, whatever runtime it lives in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use futures::future::{BoxFuture, FutureExt, poll_fn};

/// How often something changed, and who waits for the next time.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    next_watch: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Changes {
    pub(crate) fn happened(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().for_each(Waker::wake);
    }
}

/// Waits for changes of the pressure, of the disk's state, and for results that have gone.
#[derive(Debug)]
pub struct PressureWatch {
    changes: Arc<Changes>,
    number: u64,
    seen: u64,
}

impl PressureWatch {
    pub(crate) fn new(changes: Arc<Changes>) -> Self {
        let mut state = changes.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next_watch += 1;
        let (number, seen) = (state.next_watch, state.count);
        drop(state);
        Self {
            changes,
            number,
            seen,
        }
    }

    /// Ends when something has changed since the last time. Nothing is lost when it is dropped.
    pub fn changed(&mut self) -> BoxFuture<'_, ()> {
        let wait = poll_fn(|context| {
            let mut state = self
                .changes
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if state.count != self.seen {
                self.seen = state.count;
                return Poll::Ready(());
            }
            state.wakers.insert(self.number, context.waker().clone());
            Poll::Pending
        });
        wait.boxed()
    }
}

impl Drop for PressureWatch {
    fn drop(&mut self) {
        let mut state = self
            .changes
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.wakers.remove(&self.number);
    }
}
