//! Results that lie in memory shared with the children.
//!
//! Owns the mappings of files that children have written, and knows which bytes of the store lie in
//! which file, so that they travel on as that file. Also writes such files for values that lie
//! elsewhere.
//!
//! Invariants: a mapping lives as long as any bytes of it; a file that lies in memory is sealed, so
//! what is mapped never changes; the numbers of mappings and of open files are bounded: beyond, values
//! are copied.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::SharedMemory;

/// Mappings of a process; the system allows about 65,000.
const MAPPINGS_MAX: usize = 20_000;

/// Open files that we ask the system for.
const OPEN_FILES: u64 = 1 << 20;

/// One in so many open files may be a mapping's.
const OPEN_FILES_SHARE: u64 = 2;

/// Where a value begins within a file.
pub(crate) const ALIGNMENT_BYTES: u64 = 64;

const ZEROS: [u8; 64] = [0; 64];

/// The mappings of a process.
#[derive(Debug)]
pub(crate) struct Segments {
    by_start: Mutex<BTreeMap<usize, (usize, Weak<Segment>)>>,
    mappings_max: usize,
    shared_memory: SharedMemory,
    scratch_dir: PathBuf,
    has_said: AtomicBool,
}

/// One mapped file.
#[derive(Debug)]
pub(crate) struct Segment {
    map: Mmap,
    pub(crate) file: OwnedFd,
    segments: Arc<Segments>,
}

struct Owner(Arc<Segment>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Before the memory goes: somebody else may get the same address then.
        self.segments.lock().remove(&start_of(&self.map));
    }
}

fn start_of(bytes: &[u8]) -> usize {
    bytes.as_ptr().addr()
}

impl Segments {
    pub(crate) fn new(shared_memory: SharedMemory, scratch_dir: PathBuf) -> Arc<Self> {
        let by_files = usize::try_from(raise_open_files() / OPEN_FILES_SHARE);
        Arc::new(Self {
            by_start: Mutex::default(),
            mappings_max: by_files.unwrap_or(MAPPINGS_MAX).min(MAPPINGS_MAX),
            shared_memory,
            scratch_dir,
            has_said: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, (usize, Weak<Segment>)>> {
        self.by_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a file that a child has handed over.
    pub(crate) fn take(self: &Arc<Self>, file: OwnedFd, length: u64) -> io::Result<Bytes> {
        let mut file = File::from(file);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if file.metadata()?.len() < length as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.lock().len() < self.mappings_max {
            match map(&file, length) {
                Ok(map) => return Ok(self.enter(map, file.into())),
                Err(error) => tracing::debug!(%error, "a result is copied: it cannot be mapped"),
            }
        }
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }

    fn enter(self: &Arc<Self>, map: Mmap, file: OwnedFd) -> Bytes {
        let (start, length) = (start_of(&map), map.len());
        let segments = Arc::clone(self);
        let segment = Arc::new(Segment {
            map,
            file,
            segments,
        });
        self.lock()
            .insert(start, (length, Arc::downgrade(&segment)));
        Bytes::from_owner(Owner(segment))
    }

    /// The file in which the bytes lie, and where, if they lie in one.
    pub(crate) fn find(&self, bytes: &Bytes) -> Option<(Arc<Segment>, u64)> {
        let start = start_of(bytes);
        let (segment_start, segment) = {
            let by_start = self.lock();
            let (segment_start, (length, segment)) = by_start.range(..=start).next_back()?;
            let is_within = start + bytes.len() <= segment_start + length;
            is_within.then(|| (*segment_start, segment.upgrade()))?
        };
        Some((segment?, (start - segment_start) as u64))
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// A file with these values, each behind the other at a multiple of [`ALIGNMENT_BYTES`].
    pub(crate) fn write(&self, values: &[Vec<Bytes>]) -> io::Result<OwnedFd> {
        if self.shared_memory == SharedMemory::Memory {
            match write_sealed(values) {
                Ok(file) => return Ok(file),
                Err(error) => self.say(&error),
            }
        }
        write_file(&self.scratch_dir, values)
    }

    fn say(&self, error: &io::Error) {
        if !self.has_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %error,
                folder = %self.scratch_dir.display(),
                "values go to files instead of shared memory"
            );
        }
    }
}

/// What is written to the mapping or the file by others is not seen here, if it can be at all.
#[allow(unsafe_code, reason = "mapping memory is unsafe by nature; see below")]
fn map(file: &File, length: usize) -> io::Result<Mmap> {
    // SAFETY: the bytes must not change while they are mapped. A file in memory was sealed by the
    // child against writing, shrinking and growing before it was handed over, and the system refuses to
    // take a seal back. A file in the scratch folder has no name, and the child has closed its only
    // other handle, so nobody can change or shorten it. Its length was checked by the caller.
    unsafe { MmapOptions::new().len(length).map_copy_read_only(file) }
}

/// Bytes of a mark: the number of a run.
const MARK_BYTES: usize = 8;

/// A file in memory where a child says which run it is at. It can be read when the child has died.
pub(crate) fn mark() -> io::Result<OwnedFd> {
    let file = File::from(memfd_create("oxidask-mark", MemfdFlags::CLOEXEC)?);
    file.set_len(MARK_BYTES as u64)?;
    Ok(file.into())
}

/// The run that a child was at last; 0 for none.
pub(crate) fn read_mark(mark: &OwnedFd) -> u64 {
    let mut bytes = [0; MARK_BYTES];
    match rustix::io::pread(mark, &mut bytes, 0) {
        Ok(MARK_BYTES) => u64::from_le_bytes(bytes),
        _ => 0,
    }
}

fn write_sealed(values: &[Vec<Bytes>]) -> io::Result<OwnedFd> {
    let file = memfd_create("oxidask", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    write_values(&mut file, values)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn write_file(folder: &Path, values: &[Vec<Bytes>]) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::tempfile_in(folder)?;
    write_values(&mut file, values)?;
    Ok(file.into())
}

fn write_values(file: &mut File, values: &[Vec<Bytes>]) -> io::Result<()> {
    for parts in values {
        let mut length = 0;
        for part in parts {
            file.write_all(part)?;
            length += part.len() as u64;
        }
        let padding = length.next_multiple_of(ALIGNMENT_BYTES) - length;
        file.write_all(&ZEROS[..usize::try_from(padding).unwrap_or(0)])?;
    }
    Ok(())
}

/// Every value in shared memory is an open file. How many there may be.
fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else {
        return OPEN_FILES;
    };
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if wanted <= current {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(shared_memory: SharedMemory) -> (Arc<Segments>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (
            Segments::new(shared_memory, folder.path().join("scratch")),
            folder,
        )
    }

    #[test]
    fn values_are_found_in_their_file_as_long_as_they_live() {
        for kind in [SharedMemory::Memory, SharedMemory::Files] {
            let (segments, _folder) = segments(kind);
            let first = vec![Bytes::from_static(b"abc"), Bytes::from(vec![7; 100_000])];
            let second = vec![Bytes::from_static(b"second")];
            let file = segments.write(&[first, second]).unwrap();
            let length = 100_003_u64.next_multiple_of(64) + 6;
            let bytes = segments.take(file, length).unwrap();
            assert_eq!(&bytes[..4], b"abc\x07");
            let second = bytes.slice(100_032..);
            assert_eq!(&second[..], b"second");
            let (segment, offset) = segments.find(&second).unwrap();
            assert_eq!((offset, segment.map.len()), (100_032, 100_038));
            assert!(segments.find(&Bytes::from(vec![0; 100])).is_none());
            drop((bytes, second));
            assert_eq!(segments.count(), 1);
            drop(segment);
            assert_eq!(segments.count(), 0);
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let (segments, _folder) = segments(SharedMemory::Memory);
        let file = segments.write(&[vec![Bytes::from_static(b"abc")]]).unwrap();
        assert!(segments.take(file, 1 << 20).is_err());
    }

    #[test]
    fn too_many_mappings_are_copies() {
        let (mut segments, _folder) = segments(SharedMemory::Memory);
        Arc::get_mut(&mut segments).unwrap().mappings_max = 1;
        let value = || vec![Bytes::from(vec![3; 100_000])];
        let take = |segments: &Arc<Segments>| {
            let file = segments.write(&[value()]).unwrap();
            segments.take(file, 100_000).unwrap()
        };
        let (mapped, copied) = (take(&segments), take(&segments));
        assert!(segments.find(&mapped).is_some() && segments.find(&copied).is_none());
        assert_eq!(mapped, copied);
    }
}
