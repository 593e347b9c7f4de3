//! Reading the records of one segment, with everything that can be checked about their order.
//!
//! Owns the rules of what may follow what in a segment. Never opens a file, never decides what a
//! broken place means.

use std::io;

use crate::disk::DiskFile;
use crate::error::Damage;
use crate::format::{Class, Header, Mark, Role, Salt};
use crate::frames::{Frame, Frames, Step};

/// A reader over the records of a segment.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    frames: Frames<F>,
    role: Role,
    number: u64,
    /// The sequence number of the next record; in a snapshot, how many there were.
    sequence: u64,
    /// Where the last mark is: all before it was durable.
    proven: u64,
    /// Whether the end of the snapshot was read.
    has_ended: bool,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Record(Frame),
    End,
    Broken { offset: u64, damage: Damage },
}

impl<F: DiskFile> Segment<F> {
    pub(crate) fn new(file: F, header: &Header, end: u64) -> Self {
        let Header {
            incarnation,
            number,
            ..
        } = *header;
        let (sequence, salt) = match header.role {
            Role::Tail => (header.sequence, Salt::tail(incarnation)),
            Role::Snapshot => (0, Salt::snapshot(incarnation, number)),
        };
        Self {
            frames: Frames::new(file, salt, end),
            role: header.role,
            number: header.number,
            sequence,
            proven: 0,
            has_ended: false,
        }
    }

    pub(crate) fn next(&mut self) -> io::Result<Next> {
        loop {
            let place = match self.role {
                Role::Tail => self.sequence,
                Role::Snapshot => self.sequence + 1,
            };
            let frame = match self.frames.step(place)? {
                Step::Frame(frame) => frame,
                Step::End => return Ok(self.end()),
                Step::Broken { offset, damage } => return Ok(Next::Broken { offset, damage }),
            };
            let offset = frame.offset;
            let checked = match (self.role, frame.class) {
                _ if self.has_ended => Err(Damage::Misplaced),
                // Every commit begins with a mark, so no record comes before the first one.
                (Role::Tail, Class::Record) if self.proven == 0 => Err(Damage::Misplaced),
                (_, Class::Record) => Ok(()),
                (Role::Tail, Class::Mark) | (Role::Snapshot, Class::End) => self.check(&frame),
                _ => Err(Damage::Misplaced),
            };
            if let Err(damage) = checked {
                return Ok(Next::Broken { offset, damage });
            }
            match frame.class {
                Class::Record => {
                    self.sequence += 1;
                    return Ok(Next::Record(frame));
                }
                Class::Mark => self.proven = offset,
                Class::End => self.has_ended = true,
            }
        }
    }

    fn end(&self) -> Next {
        if self.role == Role::Snapshot && !self.has_ended {
            return Next::Broken {
                offset: self.frames.offset(),
                damage: Damage::NoEnd,
            };
        }
        Next::End
    }

    fn check(&self, frame: &Frame) -> Result<(), Damage> {
        let here = Mark {
            number: self.number,
            offset: frame.offset,
            sequence: self.sequence,
        };
        let mark = Mark::decode(self.frames.payload(frame));
        if mark == Some(here) {
            Ok(())
        } else {
            Err(Damage::Mark)
        }
    }

    pub(crate) fn payload(&self, frame: &Frame) -> &[u8] {
        self.frames.payload(frame)
    }

    /// The sequence number of the next record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// All before this offset is known to be durable; 0 if nothing is.
    pub(crate) fn proven(&self) -> u64 {
        self.proven
    }

    pub(crate) fn file(&self) -> &F {
        self.frames.file()
    }
}
