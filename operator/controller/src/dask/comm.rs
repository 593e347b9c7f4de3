//! A connection to a Dask scheduler's port for workers and clients.
//!
//! Owns Dask's framing: eight bytes of length, then the number of frames, their lengths and the
//! frames; all numbers little-endian. Small messages have one frame of msgpack. Speaks no TLS.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ask::AskError;
use super::msgpack::{self, Value};

/// Bytes of an answer: what a scheduler says about ten thousand workers is about ten megabytes.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Frames of a message.
const FRAMES_MAX: u64 = 1024;

/// Bytes of a number.
const NUMBER: usize = 8;

/// A connection on which one question is asked after the other.
#[derive(Debug)]
pub(super) struct Comm {
    stream: TcpStream,
}

impl Comm {
    /// Connects and shakes hands.
    pub(super) async fn connect(host: &str, port: u16) -> Result<Self, AskError> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let mut comm = Self { stream };
        let python = [3, 11, 0].map(Value::Int);
        let hello = Value::map([
            ("compression", Value::Nil),
            ("python", Value::List(python.into())),
            ("pickle-protocol", Value::Int(5)),
        ]);
        comm.write(&hello).await?;
        let answer = comm.read().await?;
        match answer.get("pickle-protocol") {
            Some(_) => Ok(comm),
            None => Err(AskError::Protocol("its greeting is not that of Dask")),
        }
    }

    /// Asks for something; the answer. An answer that is an error of Dask's is ours as well.
    pub(super) async fn ask<const N: usize>(
        &mut self,
        operation: &str,
        arguments: [(&str, Value); N],
    ) -> Result<Value, AskError> {
        let mut message = Value::map(arguments);
        if let Value::Map(fields) = &mut message {
            fields.push((Value::text("op"), Value::text(operation)));
            fields.push((Value::text("reply"), Value::Bool(true)));
        }
        self.write(&message).await?;
        let answer = self.read().await?;
        let is_error = matches!(
            answer.get("status"),
            Some(Value::Text(status)) if status == "error" || status == "uncaught-error"
        );
        if is_error {
            return Err(AskError::Failed);
        }
        Ok(answer)
    }

    async fn write(&mut self, message: &Value) -> Result<(), AskError> {
        let mut frame = Vec::new();
        msgpack::write(message, &mut frame);
        let length = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        let mut bytes = Vec::with_capacity(frame.len() + 3 * NUMBER);
        for number in [length.saturating_add(16), 1, length] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(frame);
        self.stream.write_all(&bytes).await?;
        Ok(())
    }

    async fn read(&mut self) -> Result<Value, AskError> {
        let total = self.stream.read_u64_le().await?;
        if total > MESSAGE_BYTES_MAX {
            return Err(AskError::Protocol("its answer is too long"));
        }
        let mut bytes = Vec::new();
        let read = (&mut self.stream)
            .take(total)
            .read_to_end(&mut bytes)
            .await?;
        if u64::try_from(read).ok() != Some(total) {
            return Err(AskError::Protocol("its answer ends too early"));
        }
        let number = |index: usize| {
            let start = index.checked_mul(NUMBER)?;
            let number = bytes.get(start..start.checked_add(NUMBER)?)?;
            Some(u64::from_le_bytes(number.try_into().ok()?))
        };
        let broken = || AskError::Protocol("its answer has no frames");
        let frames = number(0)
            .filter(|it| (1..=FRAMES_MAX).contains(it))
            .ok_or_else(broken)?;
        let frames = usize::try_from(frames).map_err(|_| broken())?;
        let length = number(1)
            .and_then(|it| usize::try_from(it).ok())
            .ok_or_else(broken)?;
        // Large frames stand behind the message that they are counted in.
        let mut behind: u64 = 0;
        let head = NUMBER * (frames + 1);
        let mut place = head;
        for index in 1..=frames {
            let own = number(index).ok_or_else(broken)?;
            let end = usize::try_from(own)
                .ok()
                .and_then(|own| place.checked_add(own));
            match end.filter(|end| *end <= bytes.len()) {
                Some(end) => place = end,
                None => behind = behind.saturating_add(own),
            }
        }
        if behind > 0 {
            if behind > MESSAGE_BYTES_MAX {
                return Err(AskError::Protocol("its answer is too long"));
            }
            (&mut self.stream)
                .take(behind)
                .read_to_end(&mut bytes)
                .await?;
        }
        let frame = bytes.get(head..head.saturating_add(length));
        let value = frame.and_then(msgpack::read);
        value.ok_or(AskError::Protocol("its answer cannot be read"))
    }
}
