//! Slices that nobody will read any more: whoever holds them is told.
//!
//! Best effort: a slice that is not freed goes with its result. Invariant: what waits is bounded,
//! and a peer that does not answer holds up nothing but this.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use oxidask_comm::BulkPool;
use oxidask_core::WorkerId;
use oxidask_store::ResultKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::pieces::Reader;

/// A slice and all who may hold it.
pub(crate) type Consumed = (ResultKey, u32, Vec<WorkerId>);

/// Ends of runs whose slices wait to be told; more are left out.
const ENDS_WAITING_MAX: usize = 1_024;
/// Ends that are told together.
const ENDS_AT_ONCE_MAX: usize = 256;

/// Tells holders what they need not hold any more. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Freer {
    reader: Arc<Reader>,
    waiting: mpsc::Sender<Vec<Consumed>>,
    _telling: JoinSet<()>,
}

impl Freer {
    pub(crate) fn new(reader: Arc<Reader>, pool: BulkPool) -> Self {
        let (waiting, ends) = mpsc::channel(ENDS_WAITING_MAX);
        let mut telling = JoinSet::new();
        telling.spawn(tell(Arc::clone(&reader), pool, ends));
        Self {
            reader,
            waiting,
            _telling: telling,
        }
    }

    /// Frees what is here at once and has the others told.
    pub(crate) fn free(&self, consumed: Vec<Consumed>) {
        for (key, slice, _) in &consumed {
            self.reader.store.free_slice(*key, *slice);
        }
        if !consumed.is_empty() && self.waiting.try_send(consumed).is_err() {
            tracing::debug!("too many consumed slices wait to be told");
        }
    }
}

async fn tell(reader: Arc<Reader>, pool: BulkPool, mut ends: mpsc::Receiver<Vec<Consumed>>) {
    let mut batch = Vec::new();
    while ends.recv_many(&mut batch, ENDS_AT_ONCE_MAX).await > 0 {
        let mut slices: BTreeMap<WorkerId, Vec<(u64, u32)>> = BTreeMap::new();
        for (key, slice, holders) in batch.drain(..).flatten() {
            for holder in holders.into_iter().filter(|holder| *holder != reader.own) {
                slices.entry(holder).or_default().push((key.0, slice));
            }
        }
        let told = slices.into_iter().map(|(peer, slices)| {
            let (found, pool) = (reader.peers.find(peer), pool.clone());
            async move {
                let Some(found) = found else { return };
                if let Err(error) = pool.free_slices(&found.address, slices).await {
                    tracing::debug!(%peer, %error, "a peer was not told what it can free");
                }
            }
        });
        join_all(told).await;
    }
}
