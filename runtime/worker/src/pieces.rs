//! Pieces of results: the own store as others read it, and the way to those of others.
//!
//! Owns the addresses of peers and the bound on the bytes of pieces that are on their way here.
//! Knows no run: see [`crate::streams`].

use std::sync::{Arc, PoisonError, RwLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_comm::{
    BULK_WHOLE, BulkFound, BulkObject, BulkPiece, BulkPieceRequest, BulkPool, BulkRead,
    BulkRefusal, BulkSink, BulkSource, BulkUpload, CommError,
};
use oxidask_core::WorkerId;
use oxidask_store::{IdMap, ResultKey, Store, StoreError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::uploads::Uploads;

/// Bytes of pieces that are on their way here at most, for all runs together.
pub(crate) const PIECES_IN_FLIGHT_BYTES_MAX: u64 = 48 * 1024 * 1024;
/// The same as a share of the memory: nobody accounts for what is on its way.
const PIECES_IN_FLIGHT_SHARE: u64 = 16;
/// Bytes of pieces that one answer of a peer holds at most.
pub(crate) const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The unit in which the bound is counted.
const UNIT_BYTES: u64 = 1024;
/// Pieces in one request.
const REQUEST_PIECES_MAX: usize = 4_096;

/// Where peers are reached.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: RwLock<IdMap<WorkerId, Peer>>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: Arc<str>,
    /// Whoever waits for the peer need not any more.
    pub(crate) gone: CancellationToken,
}

impl Peers {
    pub(crate) fn add(&self, id: WorkerId, address: &str) {
        let peer = Peer {
            address: address.into(),
            gone: CancellationToken::new(),
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Said again, it is nothing new.
        if known.get(&id).is_none_or(|peer| &*peer.address != address) {
            known.insert(id, peer);
        }
    }

    pub(crate) fn remove(&self, id: WorkerId) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.remove(&id) {
            peer.gone.cancel();
        }
    }

    pub(crate) fn find(&self, id: WorkerId) -> Option<Peer> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).cloned()
    }

    pub(crate) fn is_known(&self, id: WorkerId) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.contains_key(&id)
    }
}

/// Reads pieces for all runs of a session.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) own: WorkerId,
    pub(crate) store: Arc<Store>,
    pub(crate) peers: Arc<Peers>,
    pool: BulkPool,
    in_flight: Semaphore,
    metrics: Arc<Metrics>,
}

impl Reader {
    pub(crate) fn new(
        own: WorkerId,
        store: Arc<Store>,
        peers: Arc<Peers>,
        pool: BulkPool,
        metrics: Arc<Metrics>,
    ) -> Self {
        let share = store.limit_bytes() / PIECES_IN_FLIGHT_SHARE;
        let bytes = share.clamp(ANSWER_BYTES_MAX, PIECES_IN_FLIGHT_BYTES_MAX);
        let units = usize::try_from(bytes / UNIT_BYTES).unwrap_or(usize::MAX);
        Self {
            own,
            store,
            peers,
            pool,
            in_flight: Semaphore::new(units.min(Semaphore::MAX_PERMITS)),
            metrics,
        }
    }

    /// A piece that this worker holds. What cannot be read is as good as missing.
    pub(crate) async fn read_own(&self, request: BulkPieceRequest) -> BulkRead {
        read_stored(&self.store, request).await
    }

    /// Pieces that a peer holds, in the order of the requests. Fails when the peer is gone.
    pub(crate) async fn read_peer(
        &self,
        id: WorkerId,
        requests: &[BulkPieceRequest],
    ) -> Result<Vec<BulkRead>, CommError> {
        let gone = |address: &str| CommError::ReceiverGone {
            address: address.to_owned(),
        };
        let peer = self.peers.find(id).ok_or_else(|| gone(""))?;
        tokio::select! {
            read = self.read_at(&peer.address, requests) => read,
            () = peer.gone.cancelled() => Err(gone(&peer.address)),
        }
    }

    async fn read_at(
        &self,
        address: &str,
        requests: &[BulkPieceRequest],
    ) -> Result<Vec<BulkRead>, CommError> {
        let mut found = Vec::with_capacity(requests.len());
        for requests in requests.chunks(REQUEST_PIECES_MAX) {
            let wanted = requests
                .iter()
                .fold(0_u64, |sum, request| sum.saturating_add(request.bytes_max));
            let units = wanted.min(ANSWER_BYTES_MAX).div_ceil(UNIT_BYTES).max(1);
            let units = u32::try_from(units).unwrap_or(u32::MAX);
            // It is never closed; without a permit nothing bad happens either.
            let permit = self.in_flight.acquire_many(units).await;
            let pieces = self.pool.read_pieces(address, requests).await?;
            drop(permit);
            let bytes = pieces.iter().map(|piece| match piece {
                BulkRead::Found(piece) => piece.len(),
                BulkRead::Missing | BulkRead::NoSuchSlice => 0,
            });
            self.metrics.streamed_bytes.inc_by(bytes.sum());
            self.metrics.stream_requests.inc();
            found.extend(pieces);
        }
        Ok(found)
    }
}

async fn read_stored(store: &Store, request: BulkPieceRequest) -> BulkRead {
    let BulkPieceRequest {
        key,
        slice,
        offset,
        bytes_max,
    } = request;
    let key = ResultKey(key);
    match store.read_piece(key, slice, offset, bytes_max).await {
        Ok(Some(piece)) => BulkRead::Found(BulkPiece {
            kind: piece.kind as u8,
            version: piece.generation,
            total_bytes: piece.slice_bytes,
            parts: piece.parts,
        }),
        Ok(None) => match store.slice_count(key) {
            Some(count) if slice != BULK_WHOLE && slice >= count => BulkRead::NoSuchSlice,
            _ => BulkRead::Missing,
        },
        Err(error) => {
            log_unreadable(key, &error);
            BulkRead::Missing
        }
    }
}

pub(crate) fn log_unreadable(key: ResultKey, error: &StoreError) {
    let source = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::warn!(%key, %error, %source, "a result could not be read");
}

/// The store as others read it, and where the scheduler brings values of clients.
#[derive(Debug)]
pub(crate) struct StoreSource {
    pub(crate) store: Arc<Store>,
    pub(crate) uploads: Arc<Uploads>,
}

impl BulkSource for StoreSource {
    fn find(&self, key: u64) -> BulkFound {
        let key = ResultKey(key);
        if let Some(payload) = self.store.get(key) {
            return BulkFound::Here(BulkObject {
                kind: payload.kind as u8,
                parts: payload.parts,
            });
        }
        match self.store.find(key) {
            Some((kind, bytes)) => BulkFound::Stored {
                kind: kind as u8,
                bytes,
            },
            None => BulkFound::Missing,
        }
    }

    fn read(&self, request: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        read_stored(&self.store, request).boxed()
    }

    fn free(&self, slices: &[(u64, u32)]) {
        for (key, slice) in slices {
            self.store.free_slice(ResultKey(*key), *slice);
        }
    }

    fn upload(&self, upload: BulkUpload) -> Result<Box<dyn BulkSink>, BulkRefusal> {
        self.uploads.begin(upload)
    }
}
