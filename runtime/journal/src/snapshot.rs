//! Writing a snapshot in slices, beside the records that are appended meanwhile.
//!
//! Owns the snapshot's segment until it is complete. Never removes an older segment before the end
//! of the snapshot and all records appended so far are durable. Invariant: a snapshot that is given
//! up leaves the journal as if it had not been begun.

use crate::disk::{Disk, DiskFile};
use crate::error::JournalError;
use crate::format::{Class, HEADER_BYTES, Header, Mark, Role, Salt};
use crate::sealed::SealedSegment;
use crate::writer::{Writer, push_record, record_length};

/// Slices are gathered to writes of this size.
const WRITE_BYTES: usize = 1024 * 1024;

/// After this much the snapshot is synced, so that its end has little left to wait for.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// A snapshot that is being written.
#[derive(Debug)]
pub(crate) struct Snapshot<F> {
    file: F,
    name: String,
    number: u64,
    salt: Salt,
    /// How many of the journal's tail segments it replaces.
    replaced: usize,
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
    records: u64,
}

/// What a complete snapshot consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// Its records.
    pub records: u64,
    /// The length of its segment.
    pub bytes: u64,
    /// How many tail segments it has replaced.
    pub replaced_segments: usize,
}

impl<F: DiskFile> Snapshot<F> {
    fn write(&mut self) -> std::io::Result<()> {
        self.file.write_at(self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(4 * WRITE_BYTES);
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync()?;
        self.synced = self.written;
        Ok(())
    }
}

impl<D: Disk> Writer<D> {
    /// Begins a snapshot of the state after all records that were appended so far.
    ///
    /// Records that are appended from now on are read after the snapshot. If its slices show the
    /// state of a later time, replaying those records on top must give the same state. A snapshot
    /// that is being written is given up.
    pub fn begin_snapshot(&mut self) -> Result<(), JournalError> {
        self.abort_snapshot();
        self.commit()?;
        self.leave_segment();
        let replaced = self.tail.len();
        let link = self.begin_segment()?;
        let header = Header {
            role: Role::Snapshot,
            incarnation: self.incarnation,
            epoch: self.epoch,
            number: self.next_number(),
            link,
            link_bytes: 0,
            sequence: self.durable() + 1,
            schema: self.settings.schema.current,
        };
        let (name, file) = self.create(&header)?;
        self.snapshot = Some(Snapshot {
            file,
            name,
            number: header.number,
            salt: Salt::snapshot(header.incarnation, header.number),
            replaced,
            buffer: Vec::new(),
            written: HEADER_BYTES as u64,
            synced: 0,
            records: 0,
        });
        Ok(())
    }

    /// The segments that the snapshot replaces, which is being written: none without one.
    pub fn sealed(&self) -> Vec<SealedSegment> {
        let replaced = self.snapshot.as_ref().map_or(0, |s| s.replaced);
        let base = self.base.iter().filter(|_| self.snapshot.is_some());
        let parts = base.chain(self.tail.iter().take(replaced));
        parts
            .map(|(name, end)| SealedSegment::new(name.clone(), *end))
            .collect()
    }

    /// Whether a snapshot is being written.
    pub fn is_in_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Adds a record to the snapshot. After an error in writing, the snapshot is given up.
    pub fn append_snapshot(&mut self, kind: u16, parts: &[&[u8]]) -> Result<(), JournalError> {
        record_length(parts)?;
        let snapshot = self.snapshot.as_mut().ok_or(JournalError::NoSnapshot)?;
        snapshot.records += 1;
        let place = (snapshot.salt, snapshot.records);
        push_record(&mut snapshot.buffer, place, kind, parts);
        if snapshot.buffer.len() < WRITE_BYTES {
            return Ok(());
        }
        let mut result = snapshot.write();
        if result.is_ok() && snapshot.written - snapshot.synced >= SYNC_BYTES {
            result = snapshot.sync();
        }
        result.map_err(|source| self.give_up("write", source))
    }

    /// Completes the snapshot, durably, then removes the segments that it replaces.
    ///
    /// Records that were appended meanwhile are committed first: slices may already show them. If
    /// that fails, the snapshot stays and can be finished later; if its own end cannot be written,
    /// it is given up.
    pub fn finish_snapshot(&mut self) -> Result<SnapshotSummary, JournalError> {
        if self.snapshot.is_none() {
            return Err(JournalError::NoSnapshot);
        }
        self.commit()?;
        let Some(snapshot) = &mut self.snapshot else {
            return Err(JournalError::NoSnapshot);
        };
        let end = Mark {
            number: snapshot.number,
            offset: snapshot.written + snapshot.buffer.len() as u64,
            sequence: snapshot.records,
        };
        let end = end.encode(Class::End, snapshot.salt);
        snapshot.buffer.extend_from_slice(&end);
        let result = snapshot.write().and_then(|()| snapshot.sync());
        if let Err(source) = result {
            return Err(self.give_up("finish", source));
        }
        let Some(snapshot) = self.snapshot.take() else {
            return Err(JournalError::NoSnapshot);
        };
        let replaced = self.tail.drain(..snapshot.replaced).map(|(name, _)| name);
        self.stale.extend(replaced);
        let base = (snapshot.name, snapshot.written);
        if let Some((older, _)) = self.base.replace(base) {
            self.stale.push(older);
        }
        self.remove_stale();
        Ok(SnapshotSummary {
            records: snapshot.records,
            bytes: snapshot.written,
            replaced_segments: snapshot.replaced,
        })
    }

    /// Gives up the snapshot that is being written, if there is one.
    pub fn abort_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            self.stale.push(snapshot.name);
            self.remove_stale();
        }
    }

    fn give_up(&mut self, operation: &'static str, source: std::io::Error) -> JournalError {
        let name = self.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
        let path = self.disk.path(&name.unwrap_or_default());
        self.abort_snapshot();
        JournalError::io(operation, path, source)
    }
}
