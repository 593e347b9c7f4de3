//! Connections to the data ports of peers, kept for a while and used again.
//!
//! Invariants: a few connections per address; one that broke, or whose transfer was given up, is
//! never used again; a kept one that turns out to be dead costs one more try and no error.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use oxidask_identity::Role;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::client::BulkConnection;
use super::frame::REQUEST_ENTRIES_MAX;
use super::{BulkObject, BulkPart, BulkParts, BulkPieceRequest, BulkRead, BulkRefusal, BulkUpload};
use crate::address::Endpoint;
use crate::channel::reach;
use crate::credentials::{Application, Credentials};
use crate::error::CommError;
use crate::handshake::initiate;

/// Connections to one address at a time; more transfers wait for one of them.
const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// A connection that is not used for this long is closed; servers wait longer.
const IDLE_SECONDS_MAX: u64 = 60;
/// Addresses that are remembered before those without connections are forgotten.
const PEERS_BEFORE_SWEEP: usize = 64;

/// Fetches objects from workers. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct BulkPool {
    inner: Arc<Inner>,
}

struct Inner {
    credentials: Credentials,
    peers: Mutex<HashMap<String, Arc<PeerSlots>>>,
}

struct PeerSlots {
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(BulkConnection, Instant)>>,
}

impl fmt::Debug for BulkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = &self.inner.credentials;
        f.debug_struct("BulkPool")
            .field("credentials", credentials)
            .finish_non_exhaustive()
    }
}

impl BulkPool {
    /// A pool without connections.
    pub fn new(credentials: Credentials) -> Self {
        Self {
            inner: Arc::new(Inner {
                credentials,
                peers: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Fetches objects from the worker at `address` (`host:port`), in the order of `keys`. What
    /// the worker does not have is `None`.
    pub async fn fetch(
        &self,
        address: &str,
        keys: &[u64],
    ) -> Result<Vec<(u64, Option<BulkObject>)>, CommError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut lease = self.lease(address).await?;
        for keys in keys.chunks(REQUEST_ENTRIES_MAX) {
            let length = found.len();
            if let Err(error) = lease.connection.fetch(keys, &mut found).await {
                lease.renew_or(error).await?;
                found.truncate(length);
                lease.connection.fetch(keys, &mut found).await?;
            }
            lease.is_fresh = true;
        }
        lease.give_back();
        Ok(found)
    }

    /// Fetches objects and passes them on in parts of at most 1 MiB, waiting for the receiver.
    pub async fn fetch_parts(
        &self,
        address: &str,
        keys: Vec<u64>,
        into: mpsc::Sender<BulkPart>,
    ) -> Result<(), CommError> {
        let mut lease = self.lease(address).await?;
        for keys in keys.chunks(REQUEST_ENTRIES_MAX) {
            if let Err(error) = lease.connection.relay(keys, &into).await {
                lease.renew_or(error).await?;
                lease.connection.relay(keys, &into).await?;
            }
            lease.is_fresh = true;
        }
        lease.give_back();
        Ok(())
    }

    /// Reads pieces of what the worker at `address` holds, in the order of `requests`. A piece may
    /// come short, since an answer holds at most 8 MiB; the first one that has bytes left does not
    /// come empty.
    pub fn read_pieces<'a>(
        &'a self,
        address: &'a str,
        requests: &'a [BulkPieceRequest],
    ) -> BoxFuture<'a, Result<Vec<BulkRead>, CommError>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(requests.len());
            let mut lease = self.lease(address).await?;
            for requests in requests.chunks(REQUEST_ENTRIES_MAX) {
                let length = found.len();
                let read = lease.connection.read_pieces(requests, &mut found).await;
                if let Err(error) = read {
                    lease.renew_or(error).await?;
                    found.truncate(length);
                    lease.connection.read_pieces(requests, &mut found).await?;
                }
                lease.is_fresh = true;
            }
            lease.give_back();
            Ok(found)
        })
    }

    /// Tells the worker at `address` that nobody will read these slices any more: it may drop them.
    /// Done when it has heard it.
    pub fn free_slices<'a>(
        &'a self,
        address: &'a str,
        slices: Vec<(u64, u32)>,
    ) -> BoxFuture<'a, Result<(), CommError>> {
        Box::pin(async move {
            let mut lease = self.lease(address).await?;
            for slices in slices.chunks(REQUEST_ENTRIES_MAX) {
                if let Err(error) = lease.connection.free(slices).await {
                    lease.renew_or(error).await?;
                    lease.connection.free(slices).await?;
                }
                lease.is_fresh = true;
            }
            lease.give_back();
            Ok(())
        })
    }

    /// Brings an object to the worker at `address`, which keeps it until somebody adopts it, or says
    /// why not. Nothing is taken from `parts` before there is room for all of it.
    pub fn upload<'a>(
        &'a self,
        address: &'a str,
        upload: BulkUpload,
        parts: &'a mut BulkParts<'_>,
    ) -> BoxFuture<'a, Result<Result<(), BulkRefusal>, CommError>> {
        Box::pin(async move {
            let mut lease = self.lease(address).await?;
            let outcome = match lease.connection.upload(upload, parts).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    lease.renew_or(error).await?;
                    lease.connection.upload(upload, parts).await?
                }
            };
            lease.give_back();
            Ok(outcome)
        })
    }

    async fn lease(&self, address: &str) -> Result<Lease, CommError> {
        let slots = self.slots(address);
        let permit = Arc::clone(&slots.permits).acquire_owned().await;
        let permit = permit.map_err(|_| CommError::ReceiverGone {
            address: address.to_owned(),
        })?;
        let kept = slots.take_idle();
        let is_fresh = kept.is_none();
        let connection = match kept {
            Some(connection) => connection,
            None => open(address, &self.inner.credentials).await?,
        };
        let credentials = self.inner.credentials.clone();
        let address = address.to_owned();
        Ok(Lease {
            connection,
            slots,
            is_fresh,
            address,
            credentials,
            _permit: permit,
        })
    }

    fn slots(&self, address: &str) -> Arc<PeerSlots> {
        let mut peers = self
            .inner
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = peers.get(address) {
            return Arc::clone(slots);
        }
        if peers.len() >= PEERS_BEFORE_SWEEP {
            peers.retain(|_, slots| slots.is_in_use());
        }
        let slots = Arc::new(PeerSlots {
            permits: Arc::new(Semaphore::new(CONNECTIONS_PER_PEER_MAX)),
            idle: Mutex::new(Vec::new()),
        });
        peers.insert(address.to_owned(), Arc::clone(&slots));
        slots
    }
}

impl PeerSlots {
    fn take_idle(&self) -> Option<BulkConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < Duration::from_secs(IDLE_SECONDS_MAX));
        idle.pop().map(|(connection, _)| connection)
    }

    fn is_in_use(&self) -> bool {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < Duration::from_secs(IDLE_SECONDS_MAX));
        !idle.is_empty() || self.permits.available_permits() < CONNECTIONS_PER_PEER_MAX
    }
}

// A connection in use. Dropped without being given back, it is closed.
struct Lease {
    connection: BulkConnection,
    slots: Arc<PeerSlots>,
    is_fresh: bool,
    address: String,
    credentials: Credentials,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    // A kept connection may have died long ago; then, and only then, a new one is tried.
    async fn renew_or(&mut self, error: CommError) -> Result<(), CommError> {
        let is_stale = !self.is_fresh
            && !self.connection.has_answered
            && matches!(error, CommError::Transfer { .. });
        if !is_stale {
            return Err(error);
        }
        self.connection = open(&self.address, &self.credentials).await?;
        self.is_fresh = true;
        Ok(())
    }

    fn give_back(self) {
        let mut idle = self
            .slots
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.push((self.connection, Instant::now()));
    }
}

pub(super) async fn open(
    address: &str,
    credentials: &Credentials,
) -> Result<BulkConnection, CommError> {
    let endpoint = Endpoint::from_authority(address)?;
    let tcp = reach(&endpoint, 1).await?;
    let connection = initiate(tcp, address, credentials, Role::Worker, Application::Bulk).await?;
    Ok(BulkConnection::new(connection, address))
}
