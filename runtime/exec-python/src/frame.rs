//! Frames between a worker and its processes: a length, a kind, a body.
//!
//! Owns the layout that `python/oxidask/_executor/frames.py` also has, all numbers little endian.
//! Knows no sockets. Reading never fails hard: what is no frame is `None`.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of the length and the kind.
pub(crate) const HEADER_BYTES: usize = 5;

/// Bytes of the length, which a packet does not need.
pub(crate) const HEADER_LENGTH_BYTES: usize = 4;

/// More than this in one frame is nonsense.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;

/// Values above this travel as a file in memory.
pub(crate) const INLINE_BYTES_MAX: u64 = 32 << 10;

/// Values of one frame above this together travel as a file.
pub(crate) const INLINE_SUM_BYTES_MAX: u64 = 256 << 10;

/// Files that travel beside one frame.
pub(crate) const FILES_MAX: usize = 200;

/// Stands for the number of a file where the bytes are in the frame.
pub(crate) const INLINE: u32 = u32::MAX;

/// To a child.
pub(crate) mod to_child {
    pub(crate) const TABLE: u8 = 1;
    pub(crate) const DROP_TABLE: u8 = 2;
    pub(crate) const TASK: u8 = 3;
    /// Files of the next frame that do not fit beside it.
    pub(crate) const FILES: u8 = 4;
    pub(crate) const COMMAND: u8 = 5;
    /// In line: the next frame is on the stream.
    pub(crate) const STREAM: u8 = 6;
}

/// To the fork server.
pub(crate) mod to_server {
    pub(crate) const FORK: u8 = 1;
    pub(crate) const KILL: u8 = 2;
    /// A task waits: what is not loaded yet is loaded by whoever needs it.
    pub(crate) const HURRY: u8 = 3;
}

/// A frame that is being written.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(kind: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0, 0, 0, 0, kind]);
        Self { bytes }
    }

    pub(crate) fn byte(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes
    }
}

/// The run in a packet, if that is a task.
pub(crate) fn run_of_task(packet: &[u8]) -> Option<u64> {
    let (kind, body) = packet.split_first()?;
    let run = (*kind == to_child::TASK).then(|| body.first_chunk::<8>());
    run.flatten().map(|run| u64::from_le_bytes(*run))
}

/// Takes the next frame out of what was read; an error if it can be none.
pub(crate) fn next(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, TooLong> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(TooLong);
    }
    let Some(kind) = rest.first().copied() else {
        return Ok(None);
    };
    if buffer.len() < HEADER_BYTES + length {
        buffer.reserve(HEADER_BYTES + length - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(HEADER_BYTES + length).freeze();
    frame.advance(HEADER_BYTES);
    Ok(Some((kind, frame)))
}

/// A frame beyond all bounds.
#[derive(Debug)]
pub(crate) struct TooLong;

/// What a child says on its socket for tasks or commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromChild {
    Done {
        run: u64,
        kind: u8,
        value: Place,
    },
    Failed {
        run: u64,
        code: u16,
        is_retryable: bool,
        message: String,
        hint: String,
        attachment: Bytes,
    },
    Line {
        run: u64,
        is_error: bool,
        text: Bytes,
    },
    Secede {
        run: u64,
    },
    Rejoin {
        run: u64,
    },
    Ready,
    Notice(String),
    Answer {
        request: u64,
        is_well: bool,
        value: Place,
    },
}

/// Where a value is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here(Bytes),
    /// In the next file, with so many bytes.
    File(u64),
}

/// What the fork server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromServer {
    Forked { request: u64, pid: i32 },
    Exited { pid: i32, status: i32 },
    Loaded(Bytes),
    NotForked { request: u64, reason: String },
}

struct Reader(Bytes);

impl Reader {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let chunk = *self.0.first_chunk::<N>()?;
        self.0.advance(N);
        Some(chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<usize> {
        let number = self.chunk().map(u32::from_le_bytes)?;
        usize::try_from(number).ok()
    }

    fn i32(&mut self) -> Option<i32> {
        self.chunk().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_le_bytes)
    }

    fn take(&mut self, length: usize) -> Option<Bytes> {
        (self.0.len() >= length).then(|| self.0.split_to(length))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        self.take(length).map(|bytes| text(&bytes))
    }

    /// A copy: the frame's buffer may be much larger, and a value may be kept for long.
    fn place(&mut self) -> Option<Place> {
        let is_file = self.byte()? != 0;
        let length = self.u64()?;
        if is_file {
            return Some(Place::File(length));
        }
        let bytes = self.take(usize::try_from(length).ok()?)?;
        Some(Place::Here(Bytes::copy_from_slice(&bytes)))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads what a child says; `None` if it makes no sense.
pub(crate) fn from_child(kind: u8, body: Bytes) -> Option<FromChild> {
    let mut reader = Reader(body);
    Some(match kind {
        1 => {
            let (run, kind) = (reader.u64()?, reader.byte()?);
            let value = reader.place()?;
            FromChild::Done { run, kind, value }
        }
        2 => {
            let (run, code) = (reader.u64()?, reader.u16()?);
            let is_retryable = reader.byte()? != 0;
            let (message, hint) = (reader.u32()?, reader.u32()?);
            let attachment = reader.u32()?;
            FromChild::Failed {
                run,
                code,
                is_retryable,
                message: reader.text(message)?,
                hint: reader.text(hint)?,
                attachment: reader.take(attachment)?,
            }
        }
        3 => FromChild::Line {
            run: reader.u64()?,
            is_error: reader.byte()? != 0,
            text: reader.0,
        },
        4 => FromChild::Secede { run: reader.u64()? },
        5 => FromChild::Rejoin { run: reader.u64()? },
        6 => FromChild::Ready,
        7 => FromChild::Notice(text(&reader.0)),
        8 => {
            let (request, is_well) = (reader.u64()?, reader.byte()? != 0);
            let value = reader.place()?;
            FromChild::Answer {
                request,
                is_well,
                value,
            }
        }
        _ => return None,
    })
}

/// Reads what the fork server says; `None` if it makes no sense.
pub(crate) fn from_server(kind: u8, body: Bytes) -> Option<FromServer> {
    let mut reader = Reader(body);
    Some(match kind {
        1 => {
            let (request, pid) = (reader.u64()?, reader.i32()?);
            FromServer::Forked { request, pid }
        }
        2 => {
            let (pid, status) = (reader.i32()?, reader.i32()?);
            FromServer::Exited { pid, status }
        }
        3 => FromServer::Loaded(reader.0),
        4 => {
            let request = reader.u64()?;
            let reason = text(&reader.0);
            FromServer::NotForked { request, reason }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_whatever_comes_in() {
        let mut writer = Writer::new(7);
        writer.u32(9).raw(b"abc").byte(1).u64(2);
        let frame = writer.finish();
        let mut stream = [frame.clone(), frame.clone()].concat();
        stream.extend_from_slice(&frame[..3]);
        let mut buffer = BytesMut::new();
        let mut bodies = Vec::new();
        for byte in stream {
            buffer.extend_from_slice(&[byte]);
            while let Some((kind, body)) = next(&mut buffer).unwrap() {
                assert_eq!(kind, 7);
                bodies.push(body);
            }
        }
        assert_eq!(bodies, [&frame[HEADER_BYTES..], &frame[HEADER_BYTES..]]);
        let mut nonsense = BytesMut::from(&[0xff_u8; 8][..]);
        assert!(next(&mut nonsense).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_no_frame() {
        let mut random = 12345_u64;
        for kind in 0..=10 {
            for length in 0..64 {
                let bytes: Vec<u8> = (0..length)
                    .map(|_| {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        random.to_be_bytes()[0]
                    })
                    .collect();
                let _ = from_child(kind, bytes.clone().into());
                let _ = from_server(kind, bytes.into());
            }
        }
        assert_eq!(from_child(1, Bytes::from_static(b"short")), None);
        let mut done = Writer::new(1);
        done.u64(5).byte(5).byte(0).u64(100).raw(b"less");
        assert_eq!(
            from_child(1, Bytes::from(done.finish()).slice(HEADER_BYTES..)),
            None
        );
    }

    #[test]
    fn a_result_is_read() {
        let mut done = Writer::new(1);
        done.u64(5).byte(2).byte(0).u64(2).raw(b"ab");
        let body = Bytes::from(done.finish()).slice(HEADER_BYTES..);
        let value = Place::Here(Bytes::from_static(b"ab"));
        assert_eq!(
            from_child(1, body),
            Some(FromChild::Done {
                run: 5,
                kind: 2,
                value
            })
        );
    }
}
