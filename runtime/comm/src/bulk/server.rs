//! The side that holds the objects.
//!
//! Invariants: a connection holds one object and a bounded buffer at a time, however slowly its
//! peer reads; a peer that reads or writes nothing for a while is cut; only workers and the
//! scheduler are served.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use oxidask_identity::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::{
    ANSWER_HEADER_BYTES, Answer, KEY_BYTES, REQUEST_HEADER_BYTES, STALL_SECONDS_MAX,
    TLS_BUFFER_BYTES, request_keys,
};
use super::transfer::{broken, stalled, step};
use super::{BulkObject, BulkSource};
use crate::accept::accept;
use crate::connection::Connection;
use crate::credentials::{Application, Credentials};
use crate::error::CommError;
use crate::handshake::{BULK_GREETING, BULK_REFUSAL};
use crate::warnings::Warnings;

/// Connections of peers at a time; a peer opens a few and keeps them for a while.
const CONNECTIONS_MAX: usize = 4096;
/// A connection without requests is closed after this time; peers drop theirs earlier.
const IDLE_SECONDS_MAX: u64 = 120;
/// Headers and small parts are gathered until there is this much to write.
const GATHER_BYTES: usize = 64 * 1024;
/// Parts from this size on are written as they are.
const DIRECT_BYTES: usize = 16 * 1024;
/// Bytes of one write; progress is looked at after each.
const STEP_BYTES: usize = 256 * 1024;

/// Serves objects until `shutdown`. The future is boxed so that its code is made once, here.
pub fn serve_bulk(
    listener: TcpListener,
    credentials: Credentials,
    source: Arc<dyn BulkSource>,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), CommError>> {
    Box::pin(serve_all(listener, credentials, source, shutdown))
}

async fn serve_all(
    listener: TcpListener,
    credentials: Credentials,
    source: Arc<dyn BulkSource>,
    shutdown: CancellationToken,
) -> Result<(), CommError> {
    let address = listener
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    let mut connections = accept(listener, credentials, Application::Bulk, shutdown.clone());
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let warnings = Arc::new(Warnings::new());
    let mut tasks = JoinSet::new();
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = tasks.join_next() => continue,
            connection = connections.recv() => connection,
        };
        let connection = match connection {
            None => return Ok(()),
            Some(Err(source)) => return Err(CommError::Handshake { address, source }),
            Some(Ok(connection)) => connection,
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            let limit = CONNECTIONS_MAX;
            tracing::warn!(peer = %connection.peer().address, limit, "too many connections");
            continue;
        };
        let (source, warnings) = (Arc::clone(&source), Arc::clone(&warnings));
        tasks.spawn(async move {
            let address = connection.peer().address;
            if let Err(error) = Service::new(connection, source).run().await {
                warnings.refused(address, &error);
            }
            drop(permit);
        });
    }
}

struct Service {
    connection: Connection,
    address: String,
    source: Arc<dyn BulkSource>,
    gathered: BytesMut,
}

impl Service {
    fn new(mut connection: Connection, source: Arc<dyn BulkSource>) -> Self {
        connection.limit_buffer(TLS_BUFFER_BYTES);
        let address = connection.peer().address.to_string();
        Self {
            connection,
            address,
            source,
            gathered: BytesMut::new(),
        }
    }

    async fn run(mut self) -> Result<(), CommError> {
        let identity = self.connection.peer().identity.clone();
        if !matches!(identity.role, Role::Worker | Role::Scheduler) {
            self.write(BULK_REFUSAL).await?;
            self.flush().await?;
            return Err(CommError::Forbidden {
                identity: Box::new(identity),
            });
        }
        self.write(BULK_GREETING).await?;
        self.flush().await?;
        let mut keys = BytesMut::new();
        while let Some(count) = self.next_request().await? {
            self.read_keys(&mut keys, count * KEY_BYTES).await?;
            for key in keys.chunks_exact(KEY_BYTES) {
                let mut number = [0; KEY_BYTES];
                number.copy_from_slice(key);
                let object = self.source.get(u64::from_le_bytes(number));
                self.answer(object).await?;
            }
            self.write_gathered().await?;
            self.flush().await?;
            self.gathered = BytesMut::new();
            keys = BytesMut::new();
        }
        // The peer has gone in good order.
        let _ = timeout(Duration::from_secs(1), self.connection.shutdown()).await;
        Ok(())
    }

    // The number of keys of the next request; nothing when the peer has had enough or sleeps.
    async fn next_request(&mut self) -> Result<Option<usize>, CommError> {
        let mut header = [0; REQUEST_HEADER_BYTES];
        let mut filled = 0;
        let mut wait = Duration::from_secs(IDLE_SECONDS_MAX);
        while filled < header.len() {
            match timeout(wait, self.connection.read(&mut header[filled..])).await {
                Ok(Ok(0)) | Err(_) if filled == 0 => return Ok(None),
                Ok(Ok(0)) => {
                    return Err(broken(&self.address, io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(Ok(read)) => filled += read,
                Ok(Err(error)) if filled == 0 && is_goodbye(&error) => return Ok(None),
                Ok(Err(error)) => return Err(broken(&self.address, error)),
                Err(_) => return Err(stalled(&self.address)),
            }
            wait = Duration::from_secs(STALL_SECONDS_MAX);
        }
        let what = "the number of keys of a request is not allowed";
        let count = request_keys(header);
        let nonsense = || CommError::Nonsense {
            address: self.address.clone(),
            what,
        };
        count.ok_or_else(nonsense).map(Some)
    }

    async fn read_keys(&mut self, keys: &mut BytesMut, bytes: usize) -> Result<(), CommError> {
        keys.resize(bytes, 0);
        let reading = self.connection.read_exact(keys);
        step(&self.address, reading).await.map(drop)
    }

    async fn answer(&mut self, object: Option<BulkObject>) -> Result<(), CommError> {
        if self.gathered.len() + ANSWER_HEADER_BYTES > GATHER_BYTES {
            self.write_gathered().await?;
        }
        let Some(object) = object else {
            self.gathered.extend_from_slice(&Answer::Missing.encode());
            return Ok(());
        };
        let answer = Answer::Found {
            kind: object.kind,
            bytes: object.len(),
        };
        self.gathered.extend_from_slice(&answer.encode());
        for part in object.parts {
            self.answer_part(part).await?;
        }
        Ok(())
    }

    async fn answer_part(&mut self, part: Bytes) -> Result<(), CommError> {
        if part.len() < DIRECT_BYTES {
            if self.gathered.len() + part.len() > GATHER_BYTES {
                self.write_gathered().await?;
            }
            self.gathered.extend_from_slice(&part);
            return Ok(());
        }
        self.write_gathered().await?;
        for step in part.chunks(STEP_BYTES) {
            self.write(step).await?;
        }
        Ok(())
    }

    async fn write_gathered(&mut self) -> Result<(), CommError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write(&gathered).await?;
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), CommError> {
        while !bytes.is_empty() {
            match step(&self.address, self.connection.write(bytes)).await? {
                0 => return Err(broken(&self.address, io::ErrorKind::WriteZero.into())),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CommError> {
        step(&self.address, self.connection.flush()).await
    }
}

// A process that ends does not always say so.
fn is_goodbye(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use oxidask_pki::Authority;

    use super::*;
    use crate::bulk::client::BulkConnection;
    use crate::bulk::frame::encode_request;
    use crate::bulk::pool::open;

    struct Large(Bytes);

    impl BulkSource for Large {
        fn get(&self, _: u64) -> Option<BulkObject> {
            Some(BulkObject {
                kind: 0,
                parts: vec![self.0.clone()],
            })
        }
    }

    // The wait is one second here instead of half a minute.
    #[tokio::test]
    async fn peers_that_stop_in_the_middle_are_cut() {
        let authority = Authority::new("local", "stall").unwrap();
        let leaf = authority
            .issue(Role::Worker, Duration::from_mins(1))
            .unwrap();
        let ca = authority.ca_pem();
        let worker = Credentials::from_pem(&ca, &leaf.cert_pem, &leaf.key_pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let large = Arc::new(Large(vec![1; 64 << 20].into()));
        let weak = Arc::downgrade(&large);
        let shutdown = CancellationToken::new();
        tokio::spawn(serve_bulk(
            listener,
            worker.clone(),
            large,
            shutdown.clone(),
        ));

        // One asks and does not read, one stops in the middle of its question.
        for request in [encode_request(&[1]), encode_request(&[1, 2])[..20].to_vec()] {
            let connection = open(&address, &worker).await.unwrap();
            let mut connection: Connection = BulkConnection::into_inner(connection);
            connection.write_all(&request).await.unwrap();
            connection.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            let start = Instant::now();
            let mut received = Vec::new();
            let _ = connection.read_to_end(&mut received).await;
            assert!(received.len() < 64 << 20, "{}", received.len());
            assert!(start.elapsed() < Duration::from_secs(1));
        }
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(weak.upgrade().is_none());
    }
}
