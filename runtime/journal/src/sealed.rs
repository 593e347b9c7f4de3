//! Reading segments that are not written any more, beside the writer.
//!
//! Owns the order of the segments that a snapshot replaces. Never locks, never changes a file.
//! Invariant: what is read is what a recovery would read of them, and a broken record is an error.

use crate::disk::Disk;
use crate::error::{Damage, JournalError};
use crate::format::Role;
use crate::recovered::{Origin, Record};
use crate::segment::{Next, Segment};
use crate::survey::{damaged, read_header};

/// A segment that is not written any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    name: String,
    end: u64,
}

impl SealedSegment {
    pub(crate) fn new(name: String, end: u64) -> Self {
        Self { name, end }
    }

    /// Bytes of it that count.
    pub fn bytes(&self) -> u64 {
        self.end
    }
}

/// The records of sealed segments, one after the other.
#[derive(Debug)]
pub struct Sealed<'a, D: Disk> {
    disk: &'a D,
    rest: std::slice::Iter<'a, SealedSegment>,
    segment: Option<(&'a SealedSegment, Origin, u32, Segment<D::File>)>,
}

impl<'a, D: Disk> Sealed<'a, D> {
    /// Reads these segments of this folder, whose lock the writer has.
    pub fn new(disk: &'a D, segments: &'a [SealedSegment]) -> Self {
        Self {
            disk,
            rest: segments.iter(),
            segment: None,
        }
    }

    /// The next record, None after the last one.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, JournalError> {
        let frame = loop {
            if self.segment.is_none() && !self.begin_segment()? {
                return Ok(None);
            }
            let Some((sealed, _, _, segment)) = &mut self.segment else {
                return Ok(None);
            };
            let next = segment
                .next()
                .map_err(|source| JournalError::io("read", self.disk.path(&sealed.name), source))?;
            match next {
                Next::Record(frame) => break frame,
                Next::End => self.segment = None,
                Next::Broken { offset, damage } => {
                    return Err(damaged(self.disk, &sealed.name, offset, damage));
                }
            }
        };
        Ok(self
            .segment
            .as_ref()
            .map(|(_, origin, schema, segment)| Record {
                origin: *origin,
                schema: *schema,
                kind: frame.kind,
                sequence: match origin {
                    Origin::Snapshot => segment.sequence(),
                    Origin::Tail => segment.sequence() - 1,
                },
                payload: segment.payload(&frame),
            }))
    }

    fn begin_segment(&mut self) -> Result<bool, JournalError> {
        let Some(sealed) = self.rest.next() else {
            return Ok(false);
        };
        let Some(found) = read_header(self.disk, &sealed.name)? else {
            return Err(damaged(self.disk, &sealed.name, 0, Damage::Header));
        };
        let file = self.disk.open(&sealed.name, false);
        let file =
            file.map_err(|source| JournalError::io("open", self.disk.path(&sealed.name), source))?;
        let origin = match found.header.role {
            Role::Snapshot => Origin::Snapshot,
            Role::Tail => Origin::Tail,
        };
        let segment = Segment::new(file, &found.header, sealed.end);
        self.segment = Some((sealed, origin, found.header.schema, segment));
        Ok(true)
    }
}
