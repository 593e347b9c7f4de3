//! Reading a segment frame by frame, with a bounded buffer.
//!
//! Owns the buffer and the checks of one frame. Never decides what a broken frame means: at the end
//! of the last segment it is a torn write, anywhere else it is damage.

use std::io;
use std::ops::Range;

use crate::disk::{DiskFile, read_full};
use crate::error::Damage;
use crate::format::{
    Class, FRAME_HEAD_BYTES, FrameHead, HEADER_BYTES, MARK_FRAME_BYTES, MARK_MAGIC, Mark, NO_PLACE,
    Salt,
};

/// Read at once, unless one record is longer.
const CHUNK_BYTES: usize = 1024 * 1024;

/// A reader over the frames of a segment.
#[derive(Debug)]
pub(crate) struct Frames<F> {
    file: F,
    salt: Salt,
    /// Frames end here.
    end: u64,
    /// The offset in the file of the next frame.
    offset: u64,
    /// Where the next frame is in the buffer.
    at: usize,
    buffer: Vec<u8>,
}

/// An undamaged frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) offset: u64,
    pub(crate) class: Class,
    pub(crate) kind: u16,
    payload: Range<usize>,
}

/// What comes next in a segment.
#[derive(Debug)]
pub(crate) enum Step {
    Frame(Frame),
    End,
    Broken { offset: u64, damage: Damage },
}

impl<F: DiskFile> Frames<F> {
    /// Begins after the header.
    pub(crate) fn new(file: F, salt: Salt, end: u64) -> Self {
        Self {
            file,
            salt,
            end,
            offset: HEADER_BYTES as u64,
            at: 0,
            buffer: Vec::new(),
        }
    }

    /// The next frame; if it is a record, it must be the one of this place.
    pub(crate) fn step(&mut self, place: u64) -> io::Result<Step> {
        let offset = self.offset;
        if offset >= self.end {
            return Ok(Step::End);
        }
        let broken = |damage| Ok(Step::Broken { offset, damage });
        if !self.fill(FRAME_HEAD_BYTES)? {
            return broken(Damage::Short);
        }
        let head = match FrameHead::decode(&self.buffer[self.at..self.at + FRAME_HEAD_BYTES]) {
            Ok(head) => head,
            Err(damage) => return broken(damage),
        };
        let length = FRAME_HEAD_BYTES + head.length;
        if !self.fill(length)? {
            return broken(Damage::Short);
        }
        let payload = self.at + FRAME_HEAD_BYTES..self.at + length;
        let checked = &self.buffer[self.at..self.at + 8];
        let place = match head.class {
            Class::Record => place,
            Class::Mark | Class::End => NO_PLACE,
        };
        let bytes = &self.buffer[payload.clone()];
        if self.salt.checksum(place, checked, &[bytes]) != head.checksum {
            return broken(Damage::Checksum);
        }
        self.at += length;
        self.offset += length as u64;
        Ok(Step::Frame(Frame {
            offset,
            class: head.class,
            kind: head.kind,
            payload,
        }))
    }

    /// Where the next frame is.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn file(&self) -> &F {
        &self.file
    }

    /// The payload of the frame of the last step.
    pub(crate) fn payload(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.payload.clone()]
    }

    /// Makes this many bytes of the next frame available; false if the segment ends before.
    fn fill(&mut self, needed: usize) -> io::Result<bool> {
        let available = self.buffer.len() - self.at;
        if available >= needed {
            return Ok(true);
        }
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        if left < needed {
            return Ok(false);
        }
        self.buffer.copy_within(self.at.., 0);
        self.at = 0;
        self.buffer.resize(needed.max(CHUNK_BYTES).min(left), 0);
        let from = self.offset + available as u64;
        let read = read_full(&self.file, from, &mut self.buffer[available..])?;
        self.buffer.truncate(available + read);
        Ok(self.buffer.len() >= needed)
    }
}

/// The offset of the first valid commit mark behind an offset.
///
/// There is one exactly if what was broken had been durable: a mark is only written once all before
/// it is.
pub(crate) fn find_mark<F: DiskFile>(
    file: &F,
    number: u64,
    salt: Salt,
    behind: u64,
) -> io::Result<Option<u64>> {
    let mut window = vec![0; CHUNK_BYTES];
    let mut from = behind;
    loop {
        let read = read_full(file, from, &mut window)?;
        let found = &window[..read];
        for at in memchr::memmem::find_iter(found, &MARK_MAGIC) {
            let Some(start) = at.checked_sub(FRAME_HEAD_BYTES) else {
                continue;
            };
            let offset = from + start as u64;
            let mark = Mark::decode_frame(&found[start..], Class::Mark, salt);
            if mark.is_some_and(|mark| mark.number == number && mark.offset == offset) {
                return Ok(Some(offset));
            }
        }
        if read < window.len() {
            return Ok(None);
        }
        from += (window.len() - MARK_FRAME_BYTES) as u64;
    }
}

/// Whether the last frame of a snapshot is its end.
pub(crate) fn has_end<F: DiskFile>(
    file: &F,
    number: u64,
    salt: Salt,
    length: u64,
) -> io::Result<bool> {
    let Some(offset) = length.checked_sub(MARK_FRAME_BYTES as u64) else {
        return Ok(false);
    };
    let mut frame = [0; MARK_FRAME_BYTES];
    if read_full(file, offset, &mut frame)? < frame.len() {
        return Ok(false);
    }
    let end = Mark::decode_frame(&frame, Class::End, salt);
    Ok(end.is_some_and(|end| end.number == number && end.offset == offset))
}
