//! Whose turn it is to send a request.
//!
//! Owns the bound on requests under way and the order of those that wait: one for each object in
//! turn, not the one that came first. An object with five hundred pods to make takes every place
//! that nobody else wants, and delays another object by one request at most.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

tokio::task_local! {
    /// For whom the requests of this task are.
    static LANE: Arc<str>;
}

/// Runs a future whose requests all belong to one object.
pub(crate) async fn in_lane<T>(lane: Arc<str>, work: impl Future<Output = T>) -> T {
    LANE.scope(lane, work).await
}

#[derive(Debug)]
struct State {
    free: usize,
    /// The lanes in which somebody waits, in the order of their turns; each once.
    order: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Turn>>>,
}

impl State {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let lane = self.order.pop_front()?;
        let line = self.waiting.get_mut(&lane)?;
        let first = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&lane);
        } else {
            self.order.push_back(lane);
        }
        first
    }
}

/// The places.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<State>);

/// A place; dropped, it is the next one's.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Option<Arc<Turns>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.release();
        }
    }
}

impl Turns {
    /// So many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            free: places,
            order: VecDeque::new(),
            waiting: HashMap::new(),
        })))
    }

    /// Waits for a place.
    pub(crate) async fn wait(self: &Arc<Self>) -> Turn {
        let lane = LANE.try_with(Arc::clone).unwrap_or_else(|_| Arc::from(""));
        let receiver = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                state.free -= 1;
                return self.turn();
            }
            let (sender, receiver) = oneshot::channel();
            let line = state.waiting.entry(Arc::clone(&lane)).or_default();
            let is_new = line.is_empty();
            line.push_back(sender);
            if is_new {
                state.order.push_back(lane);
            }
            receiver
        };
        // The sender is dropped only with all places; then there is no bound to keep.
        receiver.await.unwrap_or(Turn { turns: None })
    }

    fn turn(self: &Arc<Self>) -> Turn {
        let turns = Some(Arc::clone(self));
        Turn { turns }
    }

    fn release(self: &Arc<Self>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = state.next() {
            match next.send(self.turn()) {
                Ok(()) => return,
                // It no longer waits; its place goes to the one after it.
                Err(mut unwanted) => unwanted.turns = None,
            }
        }
        state.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_large_object_delays_a_small_one_by_one_request() {
        let turns = Turns::new(2);
        let log: Arc<Mutex<Vec<Arc<str>>>> = Arc::default();
        let request = |lane: &'static str| {
            let (turns, log) = (Arc::clone(&turns), Arc::clone(&log));
            tokio::spawn(in_lane(Arc::from(lane), async move {
                let _turn = turns.wait().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                log.lock().unwrap().push(Arc::from(lane));
            }))
        };
        let mut requests: Vec<_> = (0..500).map(|_| request("large")).collect();
        tokio::task::yield_now().await;
        requests.push(request("small"));
        for request in requests {
            request.await.unwrap();
        }
        let log = log.lock().unwrap();
        let place = log.iter().position(|lane| &**lane == "small").unwrap();
        assert!(place <= 6, "{place}");
        assert_eq!(log.len(), 501);
    }

    #[tokio::test]
    async fn who_gives_up_loses_no_place() {
        let turns = Turns::new(1);
        let first = turns.wait().await;
        for _ in 0..10 {
            let waited = tokio::time::timeout(Duration::from_millis(1), turns.wait()).await;
            assert!(waited.is_err());
        }
        drop(first);
        let _next = tokio::time::timeout(Duration::from_secs(1), turns.wait())
            .await
            .unwrap();
        let state = turns.0.lock().unwrap();
        assert!(state.waiting.is_empty() && state.order.is_empty() && state.free == 0);
    }
}
