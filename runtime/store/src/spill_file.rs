//! One result in one file.
//!
//! ```text
//! header   64 bytes: magic, version, kind, key, bytes of the result, number of units, place of the
//!          data, checksum of the index, checksum of the header
//! index    16 bytes a unit: where it begins in the result, its length, its checksum
//! data     from the next page on: the bytes of the result at their places; freed slices are gaps
//! ```
//!
//! A unit is at most [`UNIT_BYTES_MAX`] long and lies in one slice, so that a slice is read without
//! its neighbours, and what is read is always checked as a whole. A file is written under another
//! name and renamed when it is whole. Numbers are little endian, checksums CRC-32.
//!
//! Invariant: no byte of a result is given out that was not checked.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::error::Damage;
use crate::key::ResultKey;
use crate::layout::{Body, Layout, SliceSet};
use crate::spill_folder::Chores;

const MAGIC: &[u8; 8] = b"OXSPILL\n";

/// Changes whenever the format does. Files never outlive their process, so no other is read.
const FORMAT_VERSION: u32 = 1;

const HEADER_BYTES: usize = 64;

const UNIT_ENTRY_BYTES: usize = 16;

/// The longest stretch under one checksum.
pub const UNIT_BYTES_MAX: u64 = 256 * 1024;

/// The data begins at a multiple of this, so that freed pages can be given back.
const PAGE_BYTES: u64 = 4096;

/// Small parts are gathered up to this size before they are written.
const WRITE_BYTES: usize = 256 * 1024;

/// The name of a file while it is written ends so.
pub(crate) const PARTIAL_SUFFIX: &str = "part";

/// A stretch of the result under one checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unit {
    start: u64,
    length: u32,
    checksum: u32,
}

impl Unit {
    fn end(self) -> u64 {
        self.start + u64::from(self.length)
    }
}

/// Why a file could not be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Damage(Damage),
    Io(io::Error),
    /// The range was freed before the file was written.
    Freed,
}

impl From<io::Error> for ReadFailure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Damage(Damage::Length)
        } else {
            Self::Io(error)
        }
    }
}

/// A result on the disk. The file goes with this.
#[derive(Debug)]
pub(crate) struct SpillFile {
    pub(crate) path: PathBuf,
    header: [u8; HEADER_BYTES],
    data_start: u64,
    units: Vec<Unit>,
    disk: Arc<dyn Disk>,
    chores: Arc<Chores>,
}

/// What goes into a file.
#[derive(Debug)]
pub(crate) struct SpillContent {
    pub(crate) key: ResultKey,
    pub(crate) layout: Arc<Layout>,
    pub(crate) freed: SliceSet,
    pub(crate) body: Body,
}

impl SpillFile {
    /// Writes a result. Returns the bytes that were written; nothing is left after an error.
    pub(crate) fn write(
        content: &SpillContent,
        path: PathBuf,
        disk: &Arc<dyn Disk>,
        chores: &Arc<Chores>,
    ) -> io::Result<(Self, u64)> {
        let partial = path.with_extension(PARTIAL_SUFFIX);
        let written = Self::write_partial(content, &partial, disk.as_ref())
            .and_then(|written| disk.rename(&partial, &path).map(|()| written));
        let (header, units, data_start) = match written {
            Ok(written) => written,
            Err(error) => {
                // What is left of it takes space that is short already. If this fails too, the
                // folder's end takes it away.
                let _ = disk.remove(&partial);
                return Err(error);
            }
        };
        let bytes = units.iter().map(|unit| u64::from(unit.length)).sum::<u64>() + data_start;
        let file = Self {
            path,
            header,
            data_start,
            units,
            disk: Arc::clone(disk),
            chores: Arc::clone(chores),
        };
        Ok((file, bytes))
    }

    fn write_partial(
        content: &SpillContent,
        path: &Path,
        disk: &dyn Disk,
    ) -> io::Result<([u8; HEADER_BYTES], Vec<Unit>, u64)> {
        let units = units_of(content)?;
        let index = encode_index(&units);
        let data_start = (HEADER_BYTES as u64 + index.len() as u64).next_multiple_of(PAGE_BYTES);
        let header = encode_header(content, units.len() as u64, data_start, &index);
        let file = disk.create(path)?;
        file.write_all_at(&header, 0)?;
        file.write_all_at(&index, HEADER_BYTES as u64)?;
        for run in runs_of(&units) {
            let parts = content.body.range(run.clone()).ok_or_else(gap)?;
            write_parts(file.as_ref(), &parts, data_start + run.start)?;
        }
        Ok((header, units, data_start))
    }

    /// Reads a range of the result, as one buffer.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Bytes, ReadFailure> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let first = self.units.partition_point(|unit| unit.end() <= range.start);
        let last = self.units.partition_point(|unit| unit.start < range.end);
        let units = self.units.get(first..last).unwrap_or_default();
        let (Some(start), Some(end)) = (
            units.first().map(|unit| unit.start),
            units.last().map(|unit| unit.end()),
        ) else {
            return Err(ReadFailure::Freed);
        };
        let has_gaps = units.windows(2).any(|pair| pair[0].end() != pair[1].start);
        if start > range.start || end < range.end || has_gaps {
            return Err(ReadFailure::Freed);
        }
        let file = self.disk.open(&self.path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        if header != self.header {
            return Err(ReadFailure::Damage(Damage::Header));
        }
        let mut buffer = vec![0; in_memory(end - start)];
        file.read_exact_at(&mut buffer, self.data_start + start)?;
        check(&buffer, start, units)?;
        let wanted = in_memory(range.start - start)..in_memory(range.end - start);
        Ok(Bytes::from(buffer).slice(wanted))
    }

    /// Gives the disk space of a range back.
    pub(crate) fn punch(&self, range: &Range<u64>) -> io::Result<()> {
        let start = (self.data_start + range.start).next_multiple_of(PAGE_BYTES);
        let end = (self.data_start + range.end) / PAGE_BYTES * PAGE_BYTES;
        if end <= start {
            return Ok(());
        }
        self.disk.open(&self.path)?.punch(start, end - start)
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.chores.remove_later(std::mem::take(&mut self.path));
    }
}

/// The units of all bytes that are still there.
fn units_of(content: &SpillContent) -> io::Result<Vec<Unit>> {
    let mut units = Vec::new();
    for stretch in content.layout.stretches(&content.freed) {
        let mut start = stretch.start;
        while start < stretch.end {
            let end = stretch.end.min(start + UNIT_BYTES_MAX);
            let parts = content.body.range(start..end).ok_or_else(gap)?;
            let mut checksum = crc32fast::Hasher::new();
            for part in &parts {
                checksum.update(part);
            }
            let length = u32::try_from(end - start).map_err(io::Error::other)?;
            let checksum = checksum.finalize();
            units.push(Unit {
                start,
                length,
                checksum,
            });
            start = end;
        }
    }
    Ok(units)
}

/// Neighbouring units, as one range each.
fn runs_of(units: &[Unit]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for unit in units {
        match runs.last_mut() {
            Some(run) if run.end == unit.start => run.end = unit.end(),
            _ => runs.push(unit.start..unit.end()),
        }
    }
    runs
}

fn encode_index(units: &[Unit]) -> Vec<u8> {
    let mut index = Vec::with_capacity(units.len() * UNIT_ENTRY_BYTES);
    for unit in units {
        index.extend_from_slice(&unit.start.to_le_bytes());
        index.extend_from_slice(&unit.length.to_le_bytes());
        index.extend_from_slice(&unit.checksum.to_le_bytes());
    }
    index
}

fn encode_header(
    content: &SpillContent,
    units: u64,
    data_start: u64,
    index: &[u8],
) -> [u8; HEADER_BYTES] {
    let mut fields = Vec::with_capacity(HEADER_BYTES);
    fields.extend_from_slice(MAGIC);
    fields.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    fields.extend_from_slice(&(content.layout.kind as u32).to_le_bytes());
    for number in [content.key.0, content.layout.bytes, units, data_start] {
        fields.extend_from_slice(&number.to_le_bytes());
    }
    fields.extend_from_slice(&crc32fast::hash(index).to_le_bytes());
    let checksum = crc32fast::hash(&fields);
    fields.extend_from_slice(&checksum.to_le_bytes());
    let mut header = [0; HEADER_BYTES];
    header
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    header
}

/// Writes parts one after the other, small ones together.
fn write_parts(file: &dyn DiskFile, parts: &[Bytes], mut offset: u64) -> io::Result<()> {
    let mut gathered: Vec<u8> = Vec::new();
    for part in parts {
        if gathered.len() + part.len() > WRITE_BYTES && !gathered.is_empty() {
            file.write_all_at(&gathered, offset)?;
            offset += gathered.len() as u64;
            gathered.clear();
        }
        if part.len() >= WRITE_BYTES {
            file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        } else {
            gathered.extend_from_slice(part);
        }
    }
    if gathered.is_empty() {
        return Ok(());
    }
    file.write_all_at(&gathered, offset)
}

/// Compares what was read, from `start` on, with the checksums.
fn check(buffer: &[u8], start: u64, units: &[Unit]) -> Result<(), ReadFailure> {
    for unit in units {
        let offset = unit.start;
        let within = in_memory(offset - start)..in_memory(unit.end() - start);
        let is_right = buffer.get(within).map(crc32fast::hash) == Some(unit.checksum);
        if !is_right {
            return Err(ReadFailure::Damage(Damage::Checksum { offset }));
        }
    }
    Ok(())
}

/// A slice was freed while its result was about to be written.
fn gap() -> io::Error {
    io::Error::other("a part of the result was freed")
}

/// Only 64-bit machines are supported, and what is read was in memory before.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
