//! The side that asks: one request and its answer on one connection.
//!
//! Invariant: memory follows the bytes that arrive, not the lengths that a peer announces.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frame::{ANSWER_HEADER_BYTES, Answer, TLS_BUFFER_BYTES, encode_request};
use super::transfer::{broken, step};
use super::{BulkObject, BulkPart};
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
        self.ask(keys).await?;
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
        self.ask(keys).await?;
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

    async fn ask(&mut self, keys: &[u64]) -> Result<(), CommError> {
        self.has_answered = false;
        let request = encode_request(keys);
        let writing = async {
            self.connection.write_all(&request).await?;
            self.connection.flush().await
        };
        step(&self.address, writing).await
    }

    async fn next_answer(&mut self) -> Result<Answer, CommError> {
        while self.inbox.len() < ANSWER_HEADER_BYTES {
            self.fill_inbox().await?;
        }
        let mut header = [0; ANSWER_HEADER_BYTES];
        self.inbox.copy_to_slice(&mut header);
        Answer::decode(header).ok_or_else(|| self.nonsense("an answer has an unknown status"))
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
