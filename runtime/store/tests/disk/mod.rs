//! A disk that fails as it is told.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use oxidask_store::{Disk, DiskFile, LocalDisk};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    Create,
    Write,
    /// Half of the bytes arrive.
    TornWrite,
    Rename,
    Read,
    /// The disk holds this many bytes more.
    NoSpaceAfter(u64),
}

#[derive(Debug, Default)]
struct State {
    fault: Mutex<Fault>,
    written: AtomicU64,
}

impl State {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }
}

#[derive(Debug, Default)]
pub(crate) struct FaultyDisk {
    state: Arc<State>,
}

impl FaultyDisk {
    pub(crate) fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    fn fail_on(&self, fault: Fault) -> io::Result<()> {
        if self.state.fault() == fault {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let state = Arc::clone(&self.state);
        Box::new(FaultyFile { file, state })
    }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.fail_on(Fault::Create)?;
        Ok(self.wrap(LocalDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.wrap(LocalDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fail_on(Fault::Rename)?;
        LocalDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)
    }
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    state: Arc<State>,
}

impl DiskFile for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.state.fault() {
            Fault::Write => return Err(io::Error::from_raw_os_error(EIO)),
            Fault::TornWrite => {
                self.file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Fault::NoSpaceAfter(room) => {
                let before = self
                    .state
                    .written
                    .fetch_add(bytes.len() as u64, Ordering::SeqCst);
                if before + bytes.len() as u64 > room {
                    let fits = usize::try_from(room.saturating_sub(before)).unwrap();
                    self.file
                        .write_all_at(&bytes[..fits.min(bytes.len())], offset)?;
                    return Err(io::Error::from_raw_os_error(ENOSPC));
                }
            }
            _ => {}
        }
        self.file.write_all_at(bytes, offset)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if self.state.fault() == Fault::Read {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.file.read_exact_at(bytes, offset)
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.punch(offset, bytes)
    }
}
