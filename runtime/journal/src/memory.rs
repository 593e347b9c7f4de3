//! A disk in memory that fails on purpose, for tests and for simulations.
//!
//! Owns the difference between what was written and what is durable. Never takes a lock between
//! processes. Invariant: after a power loss, a byte is either what was last durable or what was last
//! written, in pieces of 16 bytes, and so is each name; a length is anything between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::{Disk, DiskFile};

/// A power loss keeps or loses this much at a time. Smaller than on real disks, so that small tests
/// meet tears everywhere.
pub(crate) const PIECE_BYTES: u64 = 16;

/// Time between two looks whether a disk still hangs.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A folder in memory. Clones are the same folder.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

/// A file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    state: Arc<Mutex<State>>,
    index: usize,
    is_writable: bool,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    files: Vec<Content>,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    /// Changing operations so far.
    operations: u64,
    /// The power goes off in the middle of this operation.
    off_at: Option<u64>,
    is_off: bool,
    /// So many of the next syncs of files fail.
    failing_syncs: u32,
    /// Syncs of files do not come to an end.
    is_hanging: bool,
    random: u64,
}

#[derive(Debug, Default, Clone)]
struct Content {
    /// What a reader sees.
    bytes: Vec<u8>,
    /// What is on the disk.
    durable: Vec<u8>,
    /// Pieces that the next sync writes.
    dirty: BTreeSet<u64>,
}

impl MemoryDisk {
    /// An empty folder without limits and faults. The seed decides what a power loss keeps.
    pub fn new(seed: u64) -> Self {
        let disk = Self::default();
        disk.state().random = seed;
        disk
    }

    /// From now on all files together have at most this many bytes; None for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// So many of the next syncs of files fail, and what they should have written stays unwritten.
    pub fn fail_syncs(&self, count: u32) {
        self.state().failing_syncs = count;
    }

    /// While this holds, syncs of files do not come to an end, as on a disk that does not answer.
    pub fn set_hanging(&self, is_hanging: bool) {
        self.state().is_hanging = is_hanging;
    }

    /// How many operations have changed something.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power goes off in the middle of the operation of this number, as counted by
    /// [`Self::operations`]; None takes it back.
    pub fn cut_power_at(&self, operation: Option<u64>) {
        self.state().off_at = operation;
    }

    /// Whether the power went off.
    pub fn is_off(&self) -> bool {
        self.state().is_off
    }

    /// A power loss and the start after it: of all that was not synced, anything may be lost.
    pub fn lose_power(&self) {
        self.state().lose_power();
    }

    /// The process has ended, the machine has not: nothing is lost, and all faults are over.
    pub fn restart(&self) {
        let mut state = self.state();
        state.is_off = false;
        state.off_at = None;
        state.failing_syncs = 0;
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.state().used()
    }

    /// What is in a file now.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let index = *state.names.get(name)?;
        Some(state.files[index].bytes.clone())
    }

    /// Replaces what is in a file, durably.
    pub fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let index = state.files.len();
        state.files.push(Content {
            durable: bytes.clone(),
            bytes,
            dirty: BTreeSet::new(),
        });
        state.names.insert(name.to_owned(), index);
        state.durable_names.insert(name.to_owned(), index);
    }

    /// A folder with the same content that shares nothing with this one.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.state();
        let copy = Self::new(state.random);
        for (name, index) in &state.names {
            copy.set_bytes(name, state.files[*index].bytes.clone());
        }
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a changing operation; whether the power goes off in the middle of it.
    fn operate(&mut self) -> io::Result<bool> {
        self.check_power()?;
        self.operations += 1;
        self.is_off = self.off_at == Some(self.operations);
        Ok(self.is_off)
    }

    fn check_power(&self) -> io::Result<()> {
        if self.is_off {
            return Err(power_off());
        }
        Ok(())
    }

    /// An xorshift generator: enough to choose pieces.
    fn next(&mut self) -> u64 {
        let mut value = self.random | 1;
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        self.random = value;
        value >> 8
    }

    fn used(&self) -> u64 {
        let sizes = self
            .names
            .values()
            .map(|index| self.files[*index].bytes.len() as u64);
        sizes.sum()
    }

    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let is_off = self.operate()?;
        let mut count = bytes.len();
        let start = to_index(offset);
        let end = self.files[index].bytes.len();
        if let Some(capacity) = self.capacity {
            let room = to_index(capacity.saturating_sub(self.used()));
            count = count.min(end.saturating_sub(start) + room);
        }
        if is_off {
            count = to_index(self.next()) % (count + 1);
        }
        let content = &mut self.files[index];
        if count > 0 {
            content.bytes.resize(end.max(start + count), 0);
            content.bytes[start..start + count].copy_from_slice(&bytes[..count]);
            let last = offset + count as u64 - 1;
            content
                .dirty
                .extend(offset / PIECE_BYTES..=last / PIECE_BYTES);
        }
        if is_off {
            Err(power_off())
        } else if count < bytes.len() {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn sync(&mut self, index: usize) -> io::Result<()> {
        if self.operate()? {
            // A part of it may have been written, as a power loss decides.
            return Err(power_off());
        }
        if self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            // As Linux does: the pages count as clean although they were not written.
            let content = &mut self.files[index];
            content.dirty.clear();
            content.durable.resize(content.bytes.len(), 0);
            return Err(io::Error::other("input/output error"));
        }
        let content = &mut self.files[index];
        content.durable.resize(content.bytes.len(), 0);
        for piece in std::mem::take(&mut content.dirty) {
            content.keep(piece);
        }
        Ok(())
    }

    fn lose_power(&mut self) {
        self.is_off = false;
        self.off_at = None;
        self.failing_syncs = 0;
        for index in 0..self.files.len() {
            let content = &self.files[index];
            let (written, durable) = (content.bytes.len(), content.durable.len());
            let (low, high) = (written.min(durable), written.max(durable));
            let length = low + to_index(self.next()) % (high - low + 1);
            let dirty = std::mem::take(&mut self.files[index].dirty);
            self.files[index].durable.resize(length, 0);
            for piece in dirty {
                if self.next() & 1 == 0 {
                    self.files[index].keep(piece);
                }
            }
            let content = &mut self.files[index];
            content.bytes.clone_from(&content.durable);
        }
        let names: BTreeSet<String> = self
            .names
            .keys()
            .chain(self.durable_names.keys())
            .cloned()
            .collect();
        for name in names {
            let (now, durable) = (self.names.get(&name), self.durable_names.get(&name));
            if now == durable {
                continue;
            }
            let keeps = if self.next() & 1 == 0 {
                self.names.get(&name)
            } else {
                self.durable_names.get(&name)
            };
            match keeps.copied() {
                Some(index) => self.durable_names.insert(name, index),
                None => self.durable_names.remove(&name),
            };
        }
        self.names.clone_from(&self.durable_names);
    }
}

impl Content {
    /// Makes one piece durable, as far as both lengths reach.
    fn keep(&mut self, piece: u64) {
        let start = to_index(piece * PIECE_BYTES);
        let end = (start + to_index(PIECE_BYTES))
            .min(self.bytes.len())
            .min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.bytes[start..end]);
        }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn lock(&mut self) -> io::Result<bool> {
        self.state().check_power()?;
        Ok(true)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&mut self, name: &str) -> io::Result<MemoryFile> {
        let mut state = self.state();
        let is_off = state.operate()?;
        let index = state.files.len();
        state.files.push(Content::default());
        state.names.insert(name.to_owned(), index);
        if is_off {
            return Err(power_off());
        }
        drop(state);
        Ok(self.file(index, true))
    }

    fn open(&self, name: &str, is_writable: bool) -> io::Result<MemoryFile> {
        let state = self.state();
        state.check_power()?;
        let index = state.names.get(name).copied();
        drop(state);
        let index = index.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(self.file(index, is_writable))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let is_off = state.operate()?;
        let removed = state.names.remove(name);
        if is_off {
            return Err(power_off());
        }
        match removed {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        let mut state = self.state();
        if state.operate()? {
            return Err(power_off());
        }
        let names = state.names.clone();
        state.durable_names = names;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }
}

impl MemoryDisk {
    fn file(&self, index: usize, is_writable: bool) -> MemoryFile {
        MemoryFile {
            state: Arc::clone(&self.state),
            index,
            is_writable,
        }
    }
}

impl MemoryFile {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable {
            return Ok(());
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.state();
        state.check_power()?;
        Ok(state.files[self.index].bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.state();
        state.check_power()?;
        let bytes = &state.files[self.index].bytes;
        let rest = bytes.get(to_index(offset)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.state().write(self.index, offset, bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state();
        let is_off = state.operate()?;
        let bytes = &mut state.files[self.index].bytes;
        bytes.truncate(to_index(length));
        if is_off { Err(power_off()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        while self.state().is_hanging {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.state().sync(self.index)
    }
}

fn power_off() -> io::Error {
    io::Error::other("the power is off")
}

fn to_index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_keeps_what_was_synced_and_may_lose_the_rest() {
        let mut losses = 0;
        for seed in 0..50 {
            let mut disk = MemoryDisk::new(seed);
            let mut file = disk.create("a").unwrap();
            file.write_at(0, &[1; 100]).unwrap();
            file.sync().unwrap();
            disk.sync_folder().unwrap();
            file.write_at(100, &[2; 100]).unwrap();
            disk.lose_power();
            let bytes = disk.bytes("a").unwrap();
            assert_eq!(bytes[..96], [1; 96]);
            losses += usize::from(bytes.len() < 200 || bytes[112..].contains(&0));
        }
        assert!(losses > 10);
    }

    #[test]
    fn a_sync_after_a_failed_one_succeeds_and_writes_nothing() {
        let mut disk = MemoryDisk::new(1);
        let mut file = disk.create("a").unwrap();
        disk.sync_folder().unwrap();
        file.write_at(0, &[1; 64]).unwrap();
        disk.fail_syncs(1);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        disk.lose_power();
        assert_eq!(disk.bytes("a"), Some(vec![0; 64]));
    }

    #[test]
    fn a_full_disk_takes_a_part() {
        let mut disk = MemoryDisk::new(1);
        disk.set_capacity(Some(40));
        let mut file = disk.create("a").unwrap();
        let error = file.write_at(0, &[1; 64]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.length().unwrap(), 40);
        file.truncate(0).unwrap();
        file.write_at(0, &[1; 40]).unwrap();
    }
}
