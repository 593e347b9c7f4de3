//! The side that asks: one request and its answer on one connection.
//!
//! Invariant: memory follows the bytes that arrive, not the lengths that a peer announces.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frame::{
    ANSWER_HEADER_BYTES, ANSWER_PIECES_BYTES_MAX, Answer, PieceAnswer, REQUEST_HEADER_BYTES,
    TLS_BUFFER_BYTES, UPLOAD_ANSWER_BYTES, Verb, decode_upload_answer, encode_free, encode_pieces,
    encode_request, encode_upload, request_header,
};
use super::transfer::{broken, step};
use super::{
    BulkObject, BulkPart, BulkParts, BulkPiece, BulkPieceRequest, BulkRead, BulkRefusal, BulkUpload,
};
use crate::connection::Connection;
use crate::error::CommError;

/// Bytes read ahead, where headers and small objects are taken from.
const INBOX_BYTES: usize = 64 * 1024;
/// A larger object is handed out in several parts of this size. Each is allocated when the one
/// before it is full, and the system gives it memory only where bytes have arrived.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a part that is passed on.
const RELAY_BYTES_MAX: usize = 1024 * 1024;
/// Objects up to this size are passed on whole.
const RELAY_WHOLE_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of one write; progress is looked at after each.
const STEP_BYTES: usize = 256 * 1024;

/// A connection to a peer's data port between two requests.
#[derive(Debug)]
pub(crate) struct BulkConnection {
    connection: Connection,
    address: String,
    inbox: BytesMut,
    /// Whether any byte of an answer has arrived since the last request was written.
    pub(crate) has_answered: bool,
}

impl BulkConnection {
    pub(crate) fn new(mut connection: Connection, address: &str) -> Self {
        connection.limit_buffer(TLS_BUFFER_BYTES);
        let address = address.to_owned();
        Self {
            connection,
            address,
            inbox: BytesMut::new(),
            has_answered: false,
        }
    }

    #[cfg(test)]
    pub(crate) fn into_inner(self) -> Connection {
        self.connection
    }

    /// Asks for objects and appends them to `found` in the order of `keys`.
    pub(crate) async fn fetch(
        &mut self,
        keys: &[u64],
        found: &mut Vec<(u64, Option<BulkObject>)>,
    ) -> Result<(), CommError> {
        self.ask(&encode_request(keys)).await?;
        for &key in keys {
            let object = match self.next_answer().await? {
                Answer::Missing => None,
                Answer::Found { kind, bytes } => {
                    let parts = self.read_parts(bytes).await?;
                    Some(BulkObject { kind, parts })
                }
            };
            found.push((key, object));
        }
        self.finish()
    }

    /// Asks for objects and passes them on piece by piece.
    pub(crate) async fn relay(
        &mut self,
        keys: &[u64],
        into: &mpsc::Sender<BulkPart>,
    ) -> Result<(), CommError> {
        self.ask(&encode_request(keys)).await?;
        for &key in keys {
            match self.next_answer().await? {
                Answer::Missing => self.pass(BulkPart::Missing { key }, into).await?,
                Answer::Found { kind, bytes } if bytes <= RELAY_WHOLE_BYTES_MAX => {
                    let data = self.read_part(to_size(bytes)).await?;
                    self.pass(BulkPart::Whole { key, kind, data }, into).await?;
                }
                Answer::Found { kind, bytes } => {
                    self.pass(BulkPart::Start { key, kind, bytes }, into)
                        .await?;
                    let mut left = bytes;
                    while left > 0 {
                        let data = self.read_part(to_size(left).min(RELAY_BYTES_MAX)).await?;
                        left -= data.len() as u64;
                        self.pass(BulkPart::Data(data), into).await?;
                    }
                    self.pass(BulkPart::End { key }, into).await?;
                }
            }
        }
        self.finish()
    }

    /// Asks for pieces and appends them to `found` in the order of `requests`.
    pub(crate) async fn read_pieces(
        &mut self,
        requests: &[BulkPieceRequest],
        found: &mut Vec<BulkRead>,
    ) -> Result<(), CommError> {
        self.ask(&encode_pieces(requests)).await?;
        let mut room = ANSWER_PIECES_BYTES_MAX;
        for request in requests {
            let header = self.next_header().await?;
            let answer = PieceAnswer::decode(header)
                .ok_or_else(|| self.nonsense("an answer has an unknown status"))?;
            let (kind, version, total, bytes) = match answer {
                PieceAnswer::Missing => {
                    found.push(BulkRead::Missing);
                    continue;
                }
                PieceAnswer::NoSuchSlice => {
                    found.push(BulkRead::NoSuchSlice);
                    continue;
                }
                PieceAnswer::Found {
                    kind,
                    version,
                    total,
                    bytes,
                } => (kind, version, total, bytes),
            };
            if bytes > room.min(request.bytes_max) {
                return Err(self.nonsense("an answer is longer than it may be"));
            }
            room -= bytes;
            let parts = match bytes {
                0 => Vec::new(),
                _ => vec![self.read_part(to_size(bytes)).await?],
            };
            found.push(BulkRead::Found(BulkPiece {
                kind,
                version,
                total_bytes: total,
                parts,
            }));
        }
        self.finish()
    }

    /// Says that slices can go, and waits until the peer has heard it.
    pub(crate) async fn free(&mut self, slices: &[(u64, u32)]) -> Result<(), CommError> {
        self.ask(&encode_free(slices)).await?;
        let heard: [u8; REQUEST_HEADER_BYTES] = self.next_header().await?;
        if heard != request_header(Verb::Free, slices.len()) {
            return Err(self.nonsense("it heard something else than was said"));
        }
        self.finish()
    }

    /// Brings an object. Nothing of it is taken from `parts` before the peer has made room for it.
    pub(crate) async fn upload(
        &mut self,
        upload: BulkUpload,
        parts: &mut BulkParts<'_>,
    ) -> Result<Result<(), BulkRefusal>, CommError> {
        self.ask(&encode_upload(upload)).await?;
        if let Err(refusal) = self.next_upload_answer().await? {
            self.finish()?;
            return Ok(Err(refusal));
        }
        let mut left = upload.bytes;
        while left > 0 {
            let part = parts.next().await.ok_or_else(|| self.source_gone())?;
            left = left
                .checked_sub(part.len() as u64)
                .ok_or_else(|| self.source_gone())?;
            for bytes in part.chunks(STEP_BYTES) {
                step(&self.address, self.connection.write_all(bytes)).await?;
            }
        }
        step(&self.address, self.connection.flush()).await?;
        let outcome = self.next_upload_answer().await?;
        self.finish()?;
        Ok(outcome)
    }

    async fn next_upload_answer(&mut self) -> Result<Result<(), BulkRefusal>, CommError> {
        let header: [u8; UPLOAD_ANSWER_BYTES] = self.next_header().await?;
        decode_upload_answer(header).ok_or_else(|| self.nonsense("an answer has an unknown status"))
    }

    async fn ask(&mut self, request: &[u8]) -> Result<(), CommError> {
        self.has_answered = false;
        let writing = async {
            self.connection.write_all(request).await?;
            self.connection.flush().await
        };
        step(&self.address, writing).await
    }

    async fn next_answer(&mut self) -> Result<Answer, CommError> {
        let header: [u8; ANSWER_HEADER_BYTES] = self.next_header().await?;
        Answer::decode(header).ok_or_else(|| self.nonsense("an answer has an unknown status"))
    }

    async fn next_header<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], CommError> {
        while self.inbox.len() < BYTES {
            self.fill_inbox().await?;
        }
        let mut header = [0; BYTES];
        self.inbox.copy_to_slice(&mut header);
        Ok(header)
    }

    async fn read_parts(&mut self, bytes: u64) -> Result<Vec<Bytes>, CommError> {
        let mut left = bytes;
        let mut parts = Vec::with_capacity(1);
        while left > 0 {
            let part = self.read_part(to_size(left).min(PART_BYTES_MAX)).await?;
            left -= part.len() as u64;
            parts.push(part);
        }
        Ok(parts)
    }

    // Exactly `bytes` bytes in a buffer of their own.
    async fn read_part(&mut self, bytes: usize) -> Result<Bytes, CommError> {
        if bytes <= self.inbox.len() {
            let part = Bytes::copy_from_slice(&self.inbox[..bytes]);
            self.inbox.advance(bytes);
            return Ok(part);
        }
        let mut part = Vec::with_capacity(bytes);
        part.extend_from_slice(&self.inbox);
        self.inbox.clear();
        while part.len() < bytes {
            let left = bytes - part.len();
            let mut room = (&mut part).limit(left);
            let reading = self.connection.read_buf(&mut room);
            if step(&self.address, reading).await? == 0 {
                return Err(self.cut_off());
            }
        }
        Ok(part.into())
    }

    async fn fill_inbox(&mut self) -> Result<(), CommError> {
        self.inbox.reserve(INBOX_BYTES);
        let reading = self.connection.read_buf(&mut self.inbox);
        if step(&self.address, reading).await? == 0 {
            return Err(self.cut_off());
        }
        self.has_answered = true;
        Ok(())
    }

    async fn pass(&self, part: BulkPart, into: &mpsc::Sender<BulkPart>) -> Result<(), CommError> {
        into.send(part).await.map_err(|_| CommError::ReceiverGone {
            address: self.address.clone(),
        })
    }

    // Nothing may be left over, or the next answer would begin in the wrong place.
    fn finish(&mut self) -> Result<(), CommError> {
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
            return Ok(());
        }
        Err(self.nonsense("bytes follow the end of an answer"))
    }

    fn cut_off(&self) -> CommError {
        broken(&self.address, io::ErrorKind::UnexpectedEof.into())
    }

    fn source_gone(&self) -> CommError {
        CommError::SourceGone {
            address: self.address.clone(),
        }
    }

    fn nonsense(&self, what: &'static str) -> CommError {
        CommError::Nonsense {
            address: self.address.clone(),
            what,
        }
    }
}

fn to_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
