//! Large results, read from the workers that have them.
//!
//! Owns which workers are tried. Inside of a cluster, and beside a local one, clients reach workers;
//! from outside, through a forwarded port, they do not: then one try is lost, and what is asked for
//! comes through the scheduler for a while. Never decides where a result is: the scheduler says that.
//!
//! Invariants: a result that does not come whole is left to the scheduler's relay, which knows what to
//! do when a worker has lost it; so many streams at a time and no more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxidask_comm::{BulkPart, BulkPool, Credentials};
use oxidask_proto::ids::bulk_key;
use oxidask_proto::wire;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::fetching::FetchSink;

/// Results that are read at a time. One stream takes a core at each of its ends.
const STREAMS_MAX: usize = 4;

/// Parts that wait between a worker and whoever puts them together.
const PARTS_WAITING_MAX: usize = 2;

/// A worker that was never reached must begin to answer within this time.
const FIRST_ANSWER_TIME_MAX: Duration = Duration::from_millis(1_500);

/// For so long a worker that could not be reached is not tried again.
const UNREACHABLE_TIME: Duration = Duration::from_mins(5);

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 10_000;

/// A result that a worker is said to have.
pub(super) struct Place {
    pub(super) index: usize,
    pub(super) task: wire::TaskId,
    pub(super) address: String,
}

/// The ways to workers.
pub(super) struct Direct {
    pool: BulkPool,
    streams: Semaphore,
    reach: Mutex<Reach>,
}

/// Who can be reached.
#[derive(Default)]
struct Reach {
    reached: HashSet<String>,
    failed: HashMap<String, Instant>,
    /// When the first worker of all could not be reached: others are where it is.
    all_failed: Option<Instant>,
}

impl Direct {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            pool: BulkPool::new(credentials),
            streams: Semaphore::new(STREAMS_MAX),
            reach: Mutex::default(),
        }
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there may be workers that can be reached.
    pub(super) fn is_worth_asking(&self) -> bool {
        let reach = self.reach();
        !reach.reached.is_empty() || !is_recent(reach.all_failed)
    }

    /// Reads a result, unless the worker is out of reach. True if all of it has arrived.
    pub(super) async fn read(&self, place: &Place, sink: &Arc<dyn FetchSink>) -> bool {
        let Ok(_turn) = self.streams.acquire().await else {
            return false;
        };
        let Some(is_known) = self.reach().may_try(&place.address) else {
            return false;
        };
        let (sender, mut parts) = mpsc::channel(PARTS_WAITING_MAX);
        let keys = vec![bulk_key(place.task.into())];
        let reading = self.pool.fetch_parts(&place.address, keys, sender);
        let taking = async {
            let first = if is_known {
                parts.recv().await
            } else {
                let first = timeout(FIRST_ANSWER_TIME_MAX, parts.recv()).await;
                first.ok().flatten()
            };
            self.reach().note(&place.address, first.is_some());
            Some(take(place.index, first?, parts, sink).await)
        };
        tokio::pin!(reading, taking);
        let taken = tokio::select! {
            taken = &mut taking => {
                if taken.is_some() {
                    // So that the connection can be used again.
                    let _ = reading.await;
                }
                taken
            }
            // Why a transfer failed shows when the scheduler tries the same.
            _ = &mut reading => taking.await,
        };
        taken == Some(true)
    }
}

/// Hands over what arrives. True if that was a whole result.
async fn take(
    index: usize,
    first: BulkPart,
    mut parts: mpsc::Receiver<BulkPart>,
    sink: &Arc<dyn FetchSink>,
) -> bool {
    let (mut large, mut is_whole) = (None, false);
    let mut next = Some(first);
    while let Some(part) = next {
        match part {
            BulkPart::Missing { .. } => {}
            BulkPart::Whole { kind, data, .. } => {
                sink.whole(vec![(index, u32::from(kind), data)]);
                is_whole = true;
            }
            BulkPart::Start { kind, bytes, .. } => {
                large = Some(sink.start(index, u32::from(kind), bytes));
            }
            BulkPart::Data(data) => {
                if let Some(large) = &mut large {
                    large.part(data);
                }
            }
            BulkPart::End { .. } => {
                if let Some(large) = large.take() {
                    large.end();
                    is_whole = true;
                }
            }
        }
        next = parts.recv().await;
    }
    is_whole
}

impl Reach {
    /// Whether a worker is to be tried, and then whether it has answered before.
    fn may_try(&mut self, address: &str) -> Option<bool> {
        if self.reached.contains(address) {
            return Some(true);
        }
        let failed = self.failed.get(address).copied();
        (!is_recent(failed) && !is_recent(self.all_failed)).then_some(false)
    }

    fn note(&mut self, address: &str, has_answered: bool) {
        if has_answered {
            self.all_failed = None;
            if self.reached.len() < ADDRESSES_MAX {
                self.reached.insert(address.to_owned());
            }
            return;
        }
        self.reached.remove(address);
        self.failed.retain(|_, at| is_recent(Some(*at)));
        if self.failed.len() < ADDRESSES_MAX {
            self.failed.insert(address.to_owned(), Instant::now());
        }
        if self.reached.is_empty() {
            self.all_failed = Some(Instant::now());
        }
    }
}

fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < UNREACHABLE_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_out_of_reach_is_left_alone_and_so_are_others_until_one_was_reached() {
        let mut reach = Reach::default();
        assert_eq!(reach.may_try("a:1"), Some(false));
        reach.note("a:1", false);
        assert_eq!((reach.may_try("a:1"), reach.may_try("b:1")), (None, None));
        // One that was asked at the same time has answered.
        reach.note("b:1", true);
        assert_eq!(reach.may_try("b:1"), Some(true));
        assert_eq!(
            (reach.may_try("a:1"), reach.may_try("c:1")),
            (None, Some(false))
        );
        // It has died: the others are not like it.
        reach.note("c:1", true);
        reach.note("b:1", false);
        assert_eq!(reach.may_try("b:1"), None);
        assert_eq!(
            (reach.may_try("c:1"), reach.may_try("d:1")),
            (Some(true), Some(false))
        );
    }
}
