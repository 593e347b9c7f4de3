//! The files of this machine, as a store that remembers why a write failed.
//!
//! Owns that memory: the engine reports some failed writes without their cause, and a full disk
//! must be told from a defect. A file that a plan named is compared with it when it is opened.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rustix::buffer::spare_capacity;

use crate::error::io_error;
use crate::freshness::ExpectedFiles;
use crate::read_memory::ReadMemory;

/// The system error of the first write that failed.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteFault(Arc<Mutex<Option<i32>>>);

impl WriteFault {
    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && let Some(number) = io_error(error).and_then(io::Error::raw_os_error)
        {
            let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(number);
        }
        result
    }

    /// What the system said.
    pub(crate) fn get(&self) -> Option<io::Error> {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.map(io::Error::from_raw_os_error)
    }
}

/// As [`ExpectedFiles`] knows this store.
const ROOT: &str = "file:";

/// All files of this machine.
#[derive(Debug)]
pub(crate) struct LocalStore {
    files: LocalFileSystem,
    fault: WriteFault,
    expected: ExpectedFiles,
    memory: ReadMemory,
}

impl LocalStore {
    pub(crate) fn new(fault: WriteFault, expected: ExpectedFiles, memory: ReadMemory) -> Self {
        Self {
            files: LocalFileSystem::new(),
            fault,
            expected,
            memory,
        }
    }

    /// What was opened, if it is what was planned.
    fn checked(&self, location: &Path, opened: Result<GetResult>) -> Result<GetResult> {
        let name = format!("/{location}");
        match opened {
            Ok(opened) => {
                self.expected.check(ROOT, &name, &opened.meta)?;
                Ok(opened)
            }
            Err(error) => Err(self.expected.missing(ROOT, &name, location, error)),
        }
    }

    /// Reads step by step. What is wrong with the file is told in the usual words.
    async fn get_ranges_again(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.expected.knows(ROOT, location) {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let opened = self.files.get_opts(location, options).await;
            self.checked(location, opened)?;
        }
        self.files.get_ranges(location, ranges).await
    }
}

/// Parts of a file, and which file they are of. Blocks.
fn read_ranges(
    path: &std::path::Path,
    location: Path,
    ranges: &[Range<u64>],
) -> io::Result<(ObjectMeta, Vec<Bytes>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let meta = ObjectMeta {
        location,
        last_modified: metadata.modified()?.into(),
        size: metadata.len(),
        e_tag: file_tag(&metadata),
        version: None,
    };
    let pieces = ranges.iter().map(|range| read_range(&file, range));
    Ok((meta, pieces.collect::<io::Result<_>>()?))
}

fn read_range(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let bytes = range.end.saturating_sub(range.start);
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // Not filled with zeros first, as a plain read would want it.
    let mut piece = Vec::with_capacity(bytes);
    while piece.len() < bytes {
        let offset = range.start + piece.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut piece), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    piece.truncate(bytes);
    Ok(piece.into())
}

/// The tag of a file of this machine, as the store makes it: its number, its time of change and its
/// size.
pub(crate) fn file_tag(metadata: &Metadata) -> Option<String> {
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let (number, changed, size) = (metadata.ino(), changed.as_micros(), metadata.len());
    Some(format!("{number:x}-{changed:x}-{size:x}"))
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.fault
            .note(self.files.put_opts(location, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self
            .fault
            .note(self.files.put_multipart_opts(location, options).await)?;
        Ok(Box::new(Upload {
            upload,
            fault: self.fault.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let opened = self.files.get_opts(location, options).await;
        self.checked(location, opened)
    }

    /// Opens the file once, compares it and reads it, on one other thread.
    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.files.path_to_filesystem(location)?;
        let (place, wanted) = (location.clone(), ranges.to_vec());
        let read = async {
            let reading = move || read_ranges(&path, place, &wanted).ok();
            match tokio::task::spawn_blocking(reading).await {
                Ok(Some((file, pieces))) => {
                    self.expected.check(ROOT, &format!("/{location}"), &file)?;
                    Ok(pieces)
                }
                _ => self.get_ranges_again(location, ranges).await,
            }
        };
        self.memory.counted(ranges, read).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.fault
            .note(self.files.copy_opts(from, to, options).await)
    }
}

#[derive(Debug)]
struct Upload {
    upload: Box<dyn MultipartUpload>,
    fault: WriteFault,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let fault = self.fault.clone();
        self.upload
            .put_part(data)
            .map(move |result| fault.note(result))
            .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.upload.complete().await;
        self.fault.note(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
