//! The file layer below the journal, and the real one.
//!
//! Owns the few operations that a journal needs of a folder. Never retries, never interprets an
//! error: that is the writer's and the recovery's work.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The name of the file whose lock says that a process uses the folder.
const LOCK_NAME: &str = "journal.lock";

/// Segments hold what users submitted: only their owner reads them.
const FILE_MODE: u32 = 0o600;

/// One folder of segments.
pub trait Disk: fmt::Debug + Send + 'static {
    /// An open segment.
    type File: DiskFile;

    /// Takes the folder for this process until the value is dropped; false if another has it.
    fn lock(&mut self) -> io::Result<bool>;

    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A new empty file for writing; one of that name is emptied.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;

    /// An existing file, for reading and, if `is_writable`, for writing.
    fn open(&self, name: &str, is_writable: bool) -> io::Result<Self::File>;

    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes creations and removals durable.
    fn sync_folder(&mut self) -> io::Result<()>;

    /// What errors call this file.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open segment.
pub trait DiskFile: fmt::Debug + Send + 'static {
    /// How long it is.
    fn length(&self) -> io::Result<u64>;

    /// Reads some bytes; 0 only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all bytes, or fails after any part of them.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file.
    fn truncate(&mut self, length: u64) -> io::Result<()>;

    /// Makes bytes and length durable. After an error, what was written since the last success may
    /// be lost although a later call succeeds.
    fn sync(&mut self) -> io::Result<()>;
}

/// A real folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: Option<File>,
}

impl Folder {
    /// The folder at this path; it is made when it is locked.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            lock: None,
        }
    }
}

impl Disk for Folder {
    type File = File;

    fn lock(&mut self) -> io::Result<bool> {
        if !self.path.is_dir() {
            fs::create_dir_all(&self.path)?;
            if let Some(parent) = self.path.parent().filter(|path| *path != Path::new("")) {
                File::open(parent)?.sync_all()?;
            }
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.mode(FILE_MODE).open(self.path.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<OsString>>>()?;
        // A name that is not UTF-8 is not ours.
        Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect())
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true);
        options.mode(FILE_MODE).open(self.path.join(name))
    }

    fn open(&self, name: &str, is_writable: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(is_writable);
        options.open(self.path.join(name))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Reads until the buffer is full or the file ends; how much was read.
pub(crate) fn read_full(file: &impl DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let read = file.read_at(offset + filled as u64, &mut buffer[filled..])?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    Ok(filled)
}
