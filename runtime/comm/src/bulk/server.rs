//! The side that holds the objects.
//!
//! Invariants: a connection holds one object that is at hand, or one piece of another, and a bounded
//! buffer at a time, however slowly its peer reads; a peer that reads or writes nothing for a while
//! is cut; workers, clients and the scheduler are served, only workers may say that something is no
//! longer needed, and only the scheduler may bring something. Room for that is made before its bytes
//! are read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use oxidask_identity::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::{
    ANSWER_PIECES_BYTES_MAX, Answer, PieceAnswer, REQUEST_HEADER_BYTES, STALL_SECONDS_MAX,
    TLS_BUFFER_BYTES, Verb, decode_key, decode_piece, decode_request, decode_slice, decode_upload,
    encode_upload_answer, request_header,
};
use super::transfer::{broken, stalled, step};
use super::{BULK_WHOLE, BulkFound, BulkPieceRequest, BulkRead, BulkSource, BulkUpload};
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
/// An object that is brought is kept in parts of this size. Each is allocated when the one before it
/// is full, and the system gives it memory only where bytes have arrived.
const UPLOAD_PART_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that are read at a time of an object that is not at hand.
const STORED_PIECE_BYTES: u64 = 1024 * 1024;

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
        if identity.role == Role::Operator {
            self.write(BULK_REFUSAL).await?;
            self.flush().await?;
            return Err(CommError::Forbidden {
                identity: Box::new(identity),
            });
        }
        self.write(BULK_GREETING).await?;
        self.flush().await?;
        let mut entries = BytesMut::new();
        while let Some((verb, count)) = self.next_request().await? {
            entries.resize(count * verb.entry_bytes(), 0);
            let reading = self.connection.read_exact(&mut entries);
            step(&self.address, reading).await?;
            let entries_of = entries.chunks_exact(verb.entry_bytes());
            match verb {
                Verb::Objects => self.answer_objects(entries_of.map(decode_key)).await?,
                Verb::Pieces => self.answer_pieces(entries_of.map(decode_piece)).await?,
                Verb::Free if identity.role == Role::Worker => {
                    self.free(entries_of.map(decode_slice))?;
                }
                Verb::Upload if identity.role == Role::Scheduler => {
                    let upload = entries_of.map(decode_upload).next().flatten();
                    self.take_upload(upload).await?;
                }
                Verb::Free | Verb::Upload => {
                    return Err(CommError::Forbidden {
                        identity: Box::new(identity),
                    });
                }
            }
            self.write_gathered().await?;
            self.flush().await?;
            self.gathered = BytesMut::new();
            entries = BytesMut::new();
        }
        // The peer has gone in good order.
        let _ = timeout(Duration::from_secs(1), self.connection.shutdown()).await;
        Ok(())
    }

    // What the next request is; nothing when the peer has had enough or sleeps.
    async fn next_request(&mut self) -> Result<Option<(Verb, usize)>, CommError> {
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
        let request = decode_request(header);
        let nonsense = || self.nonsense("verb or length of a request are not allowed");
        request.ok_or_else(nonsense).map(Some)
    }

    async fn answer_objects(&mut self, keys: impl Iterator<Item = u64>) -> Result<(), CommError> {
        for key in keys {
            match self.source.find(key) {
                BulkFound::Missing => self.gather(&Answer::Missing.encode()).await?,
                BulkFound::Here(object) => {
                    let answer = Answer::Found {
                        kind: object.kind,
                        bytes: object.len(),
                    };
                    self.gather(&answer.encode()).await?;
                    for part in object.parts {
                        self.answer_part(part).await?;
                    }
                }
                BulkFound::Stored { kind, bytes } => {
                    self.gather(&Answer::Found { kind, bytes }.encode()).await?;
                    self.answer_stored(key, bytes).await?;
                }
            }
        }
        Ok(())
    }

    // The length has been told: if the object cannot be read any more, the connection ends.
    async fn answer_stored(&mut self, key: u64, bytes: u64) -> Result<(), CommError> {
        let (mut offset, mut version) = (0, None);
        while offset < bytes {
            let request = BulkPieceRequest {
                key,
                slice: BULK_WHOLE,
                offset,
                bytes_max: STORED_PIECE_BYTES.min(bytes - offset),
            };
            let piece = self.read(request).await?;
            let is_usable = |length: u64| (1..=request.bytes_max).contains(&length);
            let piece = piece
                .piece()
                .filter(|piece| is_usable(piece.len()) && piece.total_bytes == bytes)
                .filter(|piece| *version.get_or_insert(piece.version) == piece.version)
                .ok_or_else(|| self.source_gone())?;
            offset += piece.len();
            for part in piece.parts {
                self.answer_part(part).await?;
            }
        }
        Ok(())
    }

    async fn answer_pieces(
        &mut self,
        requests: impl Iterator<Item = Option<BulkPieceRequest>>,
    ) -> Result<(), CommError> {
        let mut room = ANSWER_PIECES_BYTES_MAX;
        for request in requests {
            let mut request = request.ok_or_else(|| self.nonsense("an entry has no slice"))?;
            request.bytes_max = request.bytes_max.min(room);
            let piece = self.read(request).await?;
            let piece = match piece {
                BulkRead::Found(piece) if piece.len() <= request.bytes_max => piece,
                BulkRead::NoSuchSlice => {
                    self.gather(&PieceAnswer::NoSuchSlice.encode()).await?;
                    continue;
                }
                BulkRead::Missing | BulkRead::Found(_) => {
                    self.gather(&PieceAnswer::Missing.encode()).await?;
                    continue;
                }
            };
            let bytes = piece.len();
            room -= bytes;
            let answer = PieceAnswer::Found {
                kind: piece.kind,
                version: piece.version,
                total: piece.total_bytes,
                bytes,
            };
            self.gather(&answer.encode()).await?;
            for part in piece.parts {
                self.answer_part(part).await?;
            }
        }
        Ok(())
    }

    fn free(&mut self, slices: impl Iterator<Item = Option<(u64, u32)>>) -> Result<(), CommError> {
        let slices: Option<Vec<_>> = slices.collect();
        let slices = slices.ok_or_else(|| self.nonsense("an entry has no slice"))?;
        self.source.free(&slices);
        let heard = request_header(Verb::Free, slices.len());
        self.gathered.extend_from_slice(&heard);
        Ok(())
    }

    async fn take_upload(&mut self, upload: Option<BulkUpload>) -> Result<(), CommError> {
        let upload = upload.ok_or_else(|| self.nonsense("an object of no kind is brought"))?;
        let sink = match self.source.upload(upload) {
            Ok(sink) => sink,
            Err(refusal) => return self.gather(&encode_upload_answer(Err(refusal))).await,
        };
        self.write(&encode_upload_answer(Ok(()))).await?;
        self.flush().await?;
        let mut left = upload.bytes;
        let mut parts = Vec::new();
        while left > 0 {
            let bytes = left.min(UPLOAD_PART_BYTES_MAX);
            left -= bytes;
            parts.push(self.read_upload(bytes).await?);
        }
        self.gather(&encode_upload_answer(sink.keep(parts))).await
    }

    async fn read_upload(&mut self, bytes: u64) -> Result<Bytes, CommError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut part = Vec::with_capacity(bytes);
        while part.len() < bytes {
            let left = bytes - part.len();
            let mut room = (&mut part).limit(left);
            let reading = self.connection.read_buf(&mut room);
            if step(&self.address, reading).await? == 0 {
                return Err(broken(&self.address, io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(part.into())
    }

    // A disk that does not answer must not keep the connection for ever.
    async fn read(&self, request: BulkPieceRequest) -> Result<BulkRead, CommError> {
        let patience = Duration::from_secs(STALL_SECONDS_MAX);
        timeout(patience, self.source.read(request))
            .await
            .map_err(|_| self.source_gone())
    }

    fn source_gone(&self) -> CommError {
        CommError::SourceGone {
            address: self.address.clone(),
        }
    }

    async fn gather(&mut self, bytes: &[u8]) -> Result<(), CommError> {
        if self.gathered.len() + bytes.len() > GATHER_BYTES {
            self.write_gathered().await?;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn nonsense(&self, what: &'static str) -> CommError {
        CommError::Nonsense {
            address: self.address.clone(),
            what,
        }
    }

    async fn answer_part(&mut self, part: Bytes) -> Result<(), CommError> {
        if part.len() < DIRECT_BYTES {
            return self.gather(&part).await;
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
    use crate::bulk::frame::{encode_free, encode_pieces, encode_request};
    use crate::bulk::pool::{BulkPool, open};
    use crate::bulk::{BulkObject, BulkPiece};

    struct Large(Bytes);

    impl BulkSource for Large {
        fn find(&self, _: u64) -> BulkFound {
            BulkFound::Here(BulkObject {
                kind: 0,
                parts: vec![self.0.clone()],
            })
        }

        fn read(&self, request: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
            let bytes = usize::try_from(request.bytes_max)
                .unwrap()
                .min(self.0.len());
            let piece = BulkPiece {
                kind: 0,
                version: 0,
                total_bytes: self.0.len() as u64,
                parts: vec![self.0.slice(..bytes)],
            };
            Box::pin(std::future::ready(BulkRead::Found(piece)))
        }

        fn free(&self, _: &[(u64, u32)]) {}
    }

    /// A disk that never answers.
    struct Stuck;

    impl BulkSource for Stuck {
        fn find(&self, _: u64) -> BulkFound {
            BulkFound::Stored { kind: 0, bytes: 10 }
        }

        fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
            Box::pin(std::future::pending())
        }

        fn free(&self, _: &[(u64, u32)]) {}
    }

    fn worker() -> Credentials {
        let authority = Authority::new("local", "stall").unwrap();
        let leaf = authority
            .issue(Role::Worker, Duration::from_mins(1))
            .unwrap();
        let ca = authority.ca_pem();
        Credentials::from_pem(&ca, &leaf.cert_pem, &leaf.key_pem).unwrap()
    }

    #[tokio::test]
    async fn a_source_that_does_not_answer_ends_the_connection() {
        let worker = worker();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stuck = Arc::new(Stuck);
        let weak = Arc::downgrade(&stuck);
        let shutdown = CancellationToken::new();
        let serving = serve_bulk(listener, worker.clone(), stuck, shutdown.clone());
        tokio::spawn(serving);
        let pool = BulkPool::new(worker);
        let piece = BulkPieceRequest {
            key: 1,
            slice: 0,
            offset: 0,
            bytes_max: 10,
        };
        let start = Instant::now();
        let error = pool.read_pieces(&address, &[piece]).await.unwrap_err();
        assert!(
            matches!(
                error,
                CommError::Transfer { .. } | CommError::Stalled { .. }
            ),
            "{error:?}"
        );
        let error = pool.fetch(&address, &[1]).await.unwrap_err();
        assert!(
            matches!(
                error,
                CommError::Transfer { .. } | CommError::Stalled { .. }
            ),
            "{error:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(4));
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(weak.upgrade().is_none());
    }

    // The wait is one second here instead of half a minute.
    #[tokio::test]
    async fn peers_that_stop_in_the_middle_are_cut() {
        let worker = worker();
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

        // One asks and does not read, the others stop in the middle of their questions.
        let piece = BulkPieceRequest {
            key: 1,
            slice: BULK_WHOLE,
            offset: 0,
            bytes_max: u64::MAX,
        };
        let requests = [
            encode_request(&[1]),
            encode_request(&[1, 2])[..20].to_vec(),
            encode_pieces(&[piece])[..20].to_vec(),
            encode_free(&[(1, 2)])[..20].to_vec(),
        ];
        let peers = requests.into_iter().map(|request| {
            let (address, worker) = (address.clone(), worker.clone());
            async move {
                let connection = open(&address, &worker).await.unwrap();
                let mut connection: Connection = BulkConnection::into_inner(connection);
                connection.write_all(&request).await.unwrap();
                connection.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                let start = Instant::now();
                let mut received = Vec::new();
                let _ = connection.read_to_end(&mut received).await;
                assert!(received.len() < 64 << 20, "{}", received.len());
                assert!(start.elapsed() < Duration::from_secs(10));
            }
        });
        futures::future::join_all(peers).await;
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(weak.upgrade().is_none());
    }
}
