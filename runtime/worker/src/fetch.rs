//! Whole objects from peers: requests through the bulk data plane.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use oxidask_comm::{BulkObject, BulkPool, CommError};
use oxidask_core::WorkerId;
use oxidask_store::{Payload, PayloadKind, ResultKey};
use tokio::task::JoinSet;

use crate::pieces::{Peer, Peers};
use oxidask_worker_machine::RequestId;

/// What a peer delivered: every object that was asked for, none where the peer lacks it.
pub(crate) type Delivery = Vec<(ResultKey, Option<Payload>)>;

/// A request that is over. No delivery: the peer did not answer, the log says why.
pub(crate) struct Fetched {
    pub(crate) request: RequestId,
    pub(crate) delivery: Option<Delivery>,
}

/// Requests to peers. Their number is bounded by the machine.
pub(crate) struct Fetcher {
    pool: BulkPool,
    peers: Arc<Peers>,
    requests: JoinSet<Fetched>,
}

impl Fetcher {
    pub(crate) fn new(pool: BulkPool, peers: Arc<Peers>) -> Self {
        Self {
            pool,
            peers,
            requests: JoinSet::new(),
        }
    }

    /// Asks a peer. Always answered by [`Fetcher::next_fetched`].
    pub(crate) fn begin(&mut self, request: RequestId, peer: WorkerId, keys: &[ResultKey]) {
        let found = self.peers.find(peer);
        let pool = self.pool.clone();
        let keys: Vec<u64> = keys.iter().map(|key| key.0).collect();
        self.requests.spawn(async move {
            let delivery = match found {
                Some(Peer { address, gone }) => tokio::select! {
                    delivery = ask(pool, peer, address, keys) => delivery,
                    // The scheduler says so; another holder is asked at once.
                    () = gone.cancelled() => None,
                },
                None => None,
            };
            Fetched { request, delivery }
        });
    }

    /// The next request that is over; never, if there is none.
    pub(crate) async fn next_fetched(&mut self) -> Fetched {
        loop {
            match self.requests.join_next().await {
                Some(Ok(fetched)) => return fetched,
                Some(Err(error)) => tracing::error!(%error, "a request to a peer was lost"),
                None => return std::future::pending().await,
            }
        }
    }
}

async fn ask(
    pool: BulkPool,
    peer: WorkerId,
    address: Arc<str>,
    keys: Vec<u64>,
) -> Option<Delivery> {
    match AssertUnwindSafe(pool.fetch(&address, &keys))
        .catch_unwind()
        .await
    {
        Ok(Ok(objects)) => Some(objects.into_iter().map(accept).collect()),
        Ok(Err(error)) => {
            log_failure(peer, &address, &error);
            None
        }
        Err(_) => {
            tracing::error!(%peer, %address, "a request to a peer panicked");
            None
        }
    }
}

fn log_failure(peer: WorkerId, address: &str, error: &CommError) {
    let source = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::warn!(%peer, %address, %error, %source, "results could not be fetched");
}

/// An object of an unknown kind is as good as missing.
fn accept((key, object): (u64, Option<BulkObject>)) -> (ResultKey, Option<Payload>) {
    let payload = object.and_then(|object| {
        let kind = PayloadKind::from_number(u32::from(object.kind))?;
        Some(Payload {
            kind,
            parts: object.parts,
        })
    });
    (ResultKey(key), payload)
}
