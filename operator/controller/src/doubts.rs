//! Watches that may have lost something.
//!
//! Owns when a kind is listed anew: what was written is not shown by its watch, although the API server
//! took it long ago. A server does not lose events, but what stands between may; without a list nothing
//! would show the object until the watch ends by itself. Never lists by itself.
//!
//! Invariant: a kind is doubted at most once in [`PAUSE`], however late a loaded server is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

/// Between two lists of a kind for this reason.
const PAUSE: Duration = Duration::from_secs(15);

/// As many as there are kinds; who misses one is asked again.
const WAITING_MAX: usize = 16;

/// Who doubts, and since when.
#[derive(Debug)]
pub(crate) struct Doubts {
    sender: broadcast::Sender<&'static str>,
    last: Mutex<HashMap<&'static str, Instant>>,
}

impl Doubts {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(WAITING_MAX),
            last: Mutex::default(),
        }
    }

    /// Has a kind listed anew, unless that was done just now.
    pub(crate) fn doubt(&self, kind: &'static str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_new = last
            .get(kind)
            .is_none_or(|at| now.duration_since(*at) >= PAUSE);
        if is_new {
            last.insert(kind, now);
            tracing::info!(kind, "what was written does not show: listing again");
            // Fails if nobody watches, and then nobody has lost anything.
            let _ = self.sender.send(kind);
        }
    }

    /// Kinds that are doubted from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<&'static str> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kind_is_doubted_once_in_a_while_and_others_besides() {
        let doubts = Doubts::new();
        let mut watch = doubts.subscribe();
        for kind in ["Pod", "Pod", "Service"] {
            doubts.doubt(kind);
        }
        assert_eq!(watch.try_recv().unwrap(), "Pod");
        assert_eq!(watch.try_recv().unwrap(), "Service");
        assert!(watch.try_recv().is_err());
    }
}
