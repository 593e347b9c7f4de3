//! A journal that was opened: its records, then a writer that goes on with it.
//!
//! Owns the order of recovery. Never changes a file before every record was read and checked.
//! Invariants: the records are those of the newest complete snapshot and all that follow, in order.

use crate::disk::{Disk, DiskFile, read_full};
use crate::error::{Damage, JournalError};
use crate::format::{Incarnation, Role};
use crate::segment::{Next, Segment};
use crate::survey::{CutTail, Part, Plan, damaged, survey};
use crate::writer::{Resume, Settings, Writer};

/// Copied at once when the end of the last segment is written anew.
const COPY_BYTES: usize = 1024 * 1024;

/// An opened journal whose records can be read.
#[derive(Debug)]
pub struct Recovered<D: Disk> {
    disk: D,
    settings: Settings,
    plan: Plan,
    incarnation: Incarnation,
    /// How many parts were begun, of the snapshot and the tail together.
    parts_begun: usize,
    segment: Option<(Part, Segment<D::File>)>,
}

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the newest complete snapshot.
    Snapshot,
    /// Appended after that snapshot was begun.
    Tail,
}

/// One record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it comes from.
    pub origin: Origin,
    /// The version of the caller's records when it was written.
    pub schema: u32,
    /// The kind that was given when it was appended.
    pub kind: u16,
    /// Its sequence number. In a snapshot: its place, from 1.
    pub sequence: u64,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl<D: Disk> Recovered<D> {
    /// Locks the folder and finds out what is in it. Changes nothing.
    ///
    /// `incarnation` is given to a new journal; with `expected`, an older one must have that one.
    pub fn open(
        mut disk: D,
        settings: Settings,
        incarnation: Incarnation,
        expected: Option<Incarnation>,
    ) -> Result<Self, JournalError> {
        let locked = disk.lock();
        if !locked.map_err(|source| JournalError::io("lock", disk.path(""), source))? {
            return Err(JournalError::Locked {
                path: disk.path(""),
            });
        }
        let plan = survey(&disk, expected)?;
        for part in plan.snapshot.iter().chain(&plan.tail) {
            let schema = settings.schema;
            let found = part.header.schema;
            if found < schema.oldest || found > schema.current {
                return Err(JournalError::Schema {
                    path: disk.path(&part.name),
                    found,
                    oldest: schema.oldest,
                    current: schema.current,
                });
            }
        }
        Ok(Self {
            incarnation: plan.incarnation.unwrap_or(incarnation),
            disk,
            settings,
            plan,
            parts_begun: 0,
            segment: None,
        })
    }

    /// Whether there was nothing, not even an epoch.
    pub fn is_new(&self) -> bool {
        self.plan.incarnation.is_none()
    }

    /// The journal's incarnation: that of its segments, or the one given for a new journal.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The epoch that the writer will have: larger than every one before.
    pub fn epoch(&self) -> u64 {
        self.plan.epoch + 1
    }

    /// The torn write at the end that was cut, if there was one.
    pub fn cut(&self) -> Option<&CutTail> {
        self.plan.cut.as_ref()
    }

    /// Bytes of all segments that are read: what recovery costs.
    pub fn bytes(&self) -> u64 {
        let parts = self.plan.snapshot.iter().chain(&self.plan.tail);
        parts.map(|part| part.end).sum()
    }

    /// The next record, None after the last one.
    ///
    /// Records of the snapshot come first. After an error, nothing more can be read.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, JournalError> {
        let frame = loop {
            if self.segment.is_none() && !self.begin_part()? {
                return Ok(None);
            }
            let Some((part, segment)) = &mut self.segment else {
                return Ok(None);
            };
            let next = segment
                .next()
                .map_err(|source| JournalError::io("read", self.disk.path(&part.name), source))?;
            match next {
                Next::Record(frame) => break frame,
                Next::Broken { offset, damage } => {
                    return Err(damaged(&self.disk, &part.name, offset, damage));
                }
                Next::End => {
                    let sequence = segment.sequence();
                    let is_tail = part.header.role == Role::Tail;
                    let mut parts = self.plan.snapshot.iter().chain(&self.plan.tail);
                    let following = parts.nth(self.parts_begun);
                    let skips = following.is_some_and(|next| next.header.sequence != sequence);
                    if is_tail && skips {
                        let error = damaged(&self.disk, &part.name, part.end, Damage::Short);
                        return Err(error);
                    }
                    self.segment = None;
                }
            }
        };
        Ok(self.segment.as_ref().map(|(part, segment)| Record {
            origin: match part.header.role {
                Role::Snapshot => Origin::Snapshot,
                Role::Tail => Origin::Tail,
            },
            schema: part.header.schema,
            kind: frame.kind,
            sequence: match part.header.role {
                Role::Snapshot => segment.sequence(),
                Role::Tail => segment.sequence() - 1,
            },
            payload: segment.payload(&frame),
        }))
    }

    fn part(&self, index: usize) -> Option<&Part> {
        self.plan.snapshot.iter().chain(&self.plan.tail).nth(index)
    }

    fn begin_part(&mut self) -> Result<bool, JournalError> {
        let Some(part) = self.part(self.parts_begun).cloned() else {
            return Ok(false);
        };
        let file = self.disk.open(&part.name, false);
        let file =
            file.map_err(|source| JournalError::io("open", self.disk.path(&part.name), source))?;
        let segment = Segment::new(file, &part.header, part.end);
        self.segment = Some((part, segment));
        self.parts_begun += 1;
        Ok(true)
    }

    /// Reads what was not read yet, begins a new epoch durably, and removes what does not count.
    pub fn start(mut self) -> Result<Writer<D>, JournalError> {
        while self.next_record()?.is_some() {}
        self.prove()?;
        let epoch = self.epoch();
        let last = self.plan.tail.last();
        let sequence = self.plan.sequence;
        let resume = Resume {
            incarnation: self.incarnation,
            epoch,
            number: self.plan.number + 1,
            link: last.map_or((0, 0), |part| (part.header.number, part.end)),
            sequence,
            tail: self
                .plan
                .tail
                .iter()
                .map(|part| (part.name.clone(), part.end))
                .collect(),
            snapshot: self.plan.snapshot.map(|part| (part.name, part.end)),
            stale: self.plan.leftovers,
        };
        Writer::resume(self.disk, self.settings, resume)
    }

    /// Makes durable what was read: it may have been read from the page cache only, after a process
    /// was killed or a sync had failed.
    fn prove(&mut self) -> Result<(), JournalError> {
        if let Some(last) = self.plan.tail.last() {
            rewrite(&self.disk, last, self.plan.proven)?;
        }
        if let Some(snapshot) = self.plan.snapshot.as_ref()
            && self.plan.is_snapshot_fresh
        {
            rewrite(&self.disk, snapshot, 0)?;
        }
        if self.plan.tail.is_empty() {
            return Ok(());
        }
        let synced = self.disk.sync_folder();
        synced.map_err(|source| JournalError::io("sync", self.disk.path(""), source))
    }
}

/// Writes the same bytes at the same place again, then syncs. A sync alone is not enough: after one
/// that failed, the next may succeed without writing anything.
fn rewrite<D: Disk>(disk: &D, part: &Part, from: u64) -> Result<(), JournalError> {
    let failed = |source| JournalError::io("write", disk.path(&part.name), source);
    let mut file = disk.open(&part.name, true).map_err(failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = from;
    while offset < part.end {
        let left = usize::try_from(part.end - offset).unwrap_or(usize::MAX);
        let chunk = &mut buffer[..left.min(COPY_BYTES)];
        let read = read_full(&file, offset, chunk).map_err(failed)?;
        if read == 0 {
            return Err(damaged(disk, &part.name, offset, Damage::Short));
        }
        file.write_at(offset, &chunk[..read]).map_err(failed)?;
        offset += read as u64;
    }
    file.sync().map_err(failed)
}
