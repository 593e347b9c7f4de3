//! Appending records and making them durable.
//!
//! Owns the segment that is written and the records that wait for it. Never waits, never retries on
//! its own but once after a failed sync, in a new segment. Invariants: a segment is only written
//! behind what is durable in it; a segment after which another was begun is never written again;
//! records become durable in the order of their sequence numbers.

use crate::disk::{Disk, DiskFile};
use crate::error::JournalError;
use crate::format::{
    Class, FRAME_HEAD_BYTES, HEADER_BYTES, Header, Incarnation, MARK_FRAME_BYTES, Mark,
    RECORD_BYTES_MAX, Role, Salt, frame_head, segment_name,
};
use crate::snapshot::Snapshot;

/// A segment is left for a new one at this size, unless set otherwise.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// As much may wait for a commit, unless set otherwise.
pub const BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The versions of the caller's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// What is written, and the newest that is read.
    pub current: u32,
    /// The oldest that is read.
    pub oldest: u32,
}

/// Bounds and versions of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// At this size a segment is left for a new one. One commit is never divided.
    pub segment_bytes: u64,
    /// Bytes that may wait for a commit. One record may always wait.
    pub buffer_bytes_max: usize,
    /// The versions of the caller's records.
    pub schema: Schema,
}

impl Settings {
    /// The usual bounds.
    pub fn new(schema: Schema) -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            buffer_bytes_max: BUFFER_BYTES_MAX,
            schema,
        }
    }
}

/// Where a writer goes on.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    /// The number of the next file.
    pub(crate) number: u64,
    /// Number and durable length of the last tail segment, or zeros.
    pub(crate) link: (u64, u64),
    pub(crate) sequence: u64,
    /// Names and lengths of the tail segments that count.
    pub(crate) tail: Vec<(String, u64)>,
    pub(crate) snapshot: Option<(String, u64)>,
    pub(crate) stale: Vec<String>,
}

/// The only writer of a journal.
#[derive(Debug)]
pub struct Writer<D: Disk> {
    pub(crate) disk: D,
    pub(crate) settings: Settings,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    salt: Salt,
    /// None after a segment was left, until the next commit.
    segment: Option<Open<D::File>>,
    /// The segment before that.
    link: (u64, u64),
    next_number: u64,
    batch: Batch,
    appended: u64,
    durable: u64,
    pub(crate) snapshot: Option<Snapshot<D::File>>,
    /// Tail segments that count, with the bytes of the ones that are complete.
    pub(crate) tail: Vec<(String, u64)>,
    /// The newest complete snapshot.
    pub(crate) base: Option<(String, u64)>,
    /// Files that count no more but could not be removed yet.
    pub(crate) stale: Vec<String>,
    abandoned: u64,
}

/// The segment that is written.
#[derive(Debug)]
struct Open<F> {
    file: F,
    name: String,
    number: u64,
    /// All before it is durable, nothing behind it counts.
    end: u64,
    /// Whether a part of a failed write may be behind the end.
    is_torn: bool,
}

/// Framed records that wait, behind room for the mark with which a commit begins.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    fn new() -> Self {
        Self {
            bytes: vec![0; MARK_FRAME_BYTES],
        }
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - MARK_FRAME_BYTES
    }

    fn clear(&mut self, keep: usize) {
        self.bytes.truncate(MARK_FRAME_BYTES);
        // One very long record does not hold its memory for ever.
        self.bytes.shrink_to(keep);
    }
}

/// How one attempt to commit ended badly.
enum Failure {
    /// Nothing is known to be written, and it may be tried again at the same place.
    Write(JournalError),
    /// The segment was left: what a failed sync has written may be lost silently.
    Sync(JournalError),
}

impl<D: Disk> Writer<D> {
    pub(crate) fn resume(
        disk: D,
        settings: Settings,
        resume: Resume,
    ) -> Result<Self, JournalError> {
        let mut writer = Self {
            disk,
            settings,
            incarnation: resume.incarnation,
            epoch: resume.epoch,
            salt: Salt::tail(resume.incarnation),
            segment: None,
            link: resume.link,
            next_number: resume.number,
            batch: Batch::new(),
            appended: resume.sequence - 1,
            durable: resume.sequence - 1,
            snapshot: None,
            tail: resume.tail,
            base: resume.snapshot,
            stale: resume.stale,
            abandoned: 0,
        };
        writer.begin_segment()?;
        writer.remove_stale();
        Ok(writer)
    }

    /// The journal's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The epoch of this writer, durable since it exists: larger than every one before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The sequence number of the last appended record, 0 before the first one.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// All records up to this sequence number are durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Bytes that wait for a commit.
    pub fn waiting_bytes(&self) -> usize {
        self.batch.waiting()
    }

    /// Bytes of the newest complete snapshot.
    pub fn snapshot_bytes(&self) -> u64 {
        self.base.as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// Bytes of the tail that follows that snapshot. What a recovery reads is both together.
    pub fn tail_bytes(&self) -> u64 {
        let complete: u64 = self.tail.iter().map(|(_, bytes)| *bytes).sum();
        complete + self.segment.as_ref().map_or(0, |segment| segment.end)
    }

    /// Segments that were left because a sync failed.
    pub fn abandoned_segments(&self) -> u64 {
        self.abandoned
    }

    /// Files that count no more but could not be removed yet.
    pub fn stale_files(&self) -> usize {
        self.stale.len()
    }

    /// Appends a record whose payload is these parts together; its sequence number.
    ///
    /// It is durable once a commit says so. Refused with [`JournalError::Behind`] when too much
    /// waits: commit first.
    pub fn append(&mut self, kind: u16, parts: &[&[u8]]) -> Result<u64, JournalError> {
        let length = record_length(parts)?;
        let waiting = self.batch.waiting();
        let limit = self.settings.buffer_bytes_max;
        if waiting > 0 && waiting + FRAME_HEAD_BYTES + length > limit {
            return Err(JournalError::Behind { waiting, limit });
        }
        self.appended += 1;
        let place = (self.salt, self.appended);
        push_record(&mut self.batch.bytes, place, kind, parts);
        Ok(self.appended)
    }

    /// Makes all appended records durable; the sequence number of the last one.
    ///
    /// After an error the records still wait, and the next commit tries again: behind the same
    /// durable place if writing failed (the disk was full), in a new segment if a sync failed.
    pub fn commit(&mut self) -> Result<u64, JournalError> {
        if self.batch.waiting() == 0 {
            return Ok(self.durable);
        }
        match self.write_batch() {
            Ok(()) => {}
            Err(Failure::Write(error)) => return Err(error),
            Err(Failure::Sync(_)) => match self.write_batch() {
                Ok(()) => {}
                Err(Failure::Write(error) | Failure::Sync(error)) => return Err(error),
            },
        }
        self.durable = self.appended;
        self.batch.clear(self.settings.buffer_bytes_max);
        Ok(self.durable)
    }

    /// Commits, and proves the end of the journal, so that later damage of the last records is not
    /// taken for a torn write. A snapshot that is not finished is given up.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.abort_snapshot();
        self.commit()?;
        match self.write_batch() {
            Ok(()) => Ok(()),
            Err(Failure::Write(error) | Failure::Sync(error)) => Err(error),
        }
    }

    /// Writes a mark and the batch, if there is one, behind what is durable.
    fn write_batch(&mut self) -> Result<(), Failure> {
        let is_full = |segment: &Open<D::File>| segment.end >= self.settings.segment_bytes;
        if self.segment.as_ref().is_some_and(is_full) {
            self.leave_segment();
        }
        if self.segment.is_none() {
            self.begin_segment().map_err(Failure::Write)?;
        }
        let Some(segment) = &mut self.segment else {
            return Ok(());
        };
        let path = self.disk.path(&segment.name);
        if segment.is_torn {
            if let Err(source) = segment.file.truncate(segment.end) {
                self.abandon();
                return Err(Failure::Sync(JournalError::io("truncate", path, source)));
            }
            segment.is_torn = false;
        }
        let mark = Mark {
            number: segment.number,
            offset: segment.end,
            sequence: self.durable + 1,
        };
        let mark = mark.encode(Class::Mark, self.salt);
        self.batch.bytes[..MARK_FRAME_BYTES].copy_from_slice(&mark);
        if let Err(source) = segment.file.write_at(segment.end, &self.batch.bytes) {
            // The space is given back at once, others may need it.
            segment.is_torn = segment.file.truncate(segment.end).is_err();
            return Err(Failure::Write(JournalError::io("write", path, source)));
        }
        if let Err(source) = segment.file.sync() {
            self.abandon();
            return Err(Failure::Sync(JournalError::io("sync", path, source)));
        }
        segment.end += self.batch.bytes.len() as u64;
        Ok(())
    }

    fn abandon(&mut self) {
        self.abandoned += 1;
        self.leave_segment();
    }

    /// From now on nothing is written to the segment: the next one's header says where it ends.
    pub(crate) fn leave_segment(&mut self) {
        if let Some(segment) = self.segment.take() {
            self.link = (segment.number, segment.end);
            self.tail.push((segment.name, segment.end));
        }
    }

    /// Begins the next tail segment, durably; its number.
    pub(crate) fn begin_segment(&mut self) -> Result<u64, JournalError> {
        let header = Header {
            role: Role::Tail,
            incarnation: self.incarnation,
            epoch: self.epoch,
            number: self.next_number,
            link: self.link.0,
            link_bytes: self.link.1,
            sequence: self.durable + 1,
            schema: self.settings.schema.current,
        };
        let (name, file) = self.create(&header)?;
        self.segment = Some(Open {
            file,
            name,
            number: header.number,
            end: HEADER_BYTES as u64,
            is_torn: false,
        });
        Ok(header.number)
    }

    /// Creates a segment with nothing but its header, durably, and uses up its number.
    ///
    /// When that fails, the file may stay: a header alone says nothing that is wrong.
    pub(crate) fn create(&mut self, header: &Header) -> Result<(String, D::File), JournalError> {
        let name = segment_name(self.incarnation, header.number);
        let path = self.disk.path(&name);
        let result = (|| {
            let mut file = self.disk.create(&name)?;
            file.write_at(0, &header.encode())?;
            file.sync()?;
            self.disk.sync_folder()?;
            Ok(file)
        })();
        match result {
            Ok(file) => {
                self.next_number = header.number + 1;
                Ok((name, file))
            }
            Err(source) => {
                // If it cannot be removed, the next attempt uses another number.
                if self.disk.remove(&name).is_err() {
                    self.stale.push(name);
                    self.next_number = header.number + 1;
                }
                Err(JournalError::io("create", path, source))
            }
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Removes what counts no more. What cannot be removed now is tried again later.
    pub(crate) fn remove_stale(&mut self) {
        if self.stale.is_empty() {
            return;
        }
        let disk = &mut self.disk;
        self.stale.retain(|name| match disk.remove(name) {
            Ok(()) => false,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        });
        // If that fails, a removed file may come back after a crash, and is removed again.
        let _ = self.disk.sync_folder();
    }
}

/// The length of a record that has these parts, if it is allowed.
pub(crate) fn record_length(parts: &[&[u8]]) -> Result<usize, JournalError> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    if bytes > RECORD_BYTES_MAX {
        return Err(JournalError::RecordTooLarge {
            bytes,
            limit: RECORD_BYTES_MAX,
        });
    }
    Ok(bytes)
}

/// Appends the frame of a record.
pub(crate) fn push_record(
    buffer: &mut Vec<u8>,
    (salt, place): (Salt, u64),
    kind: u16,
    parts: &[&[u8]],
) {
    buffer.extend_from_slice(&frame_head(salt, place, (Class::Record, kind), parts));
    for part in parts {
        buffer.extend_from_slice(part);
    }
}
