//! The files of this machine, as a store that remembers why a write failed.
//!
//! Owns that memory: the engine reports some failed writes without their cause, and a full disk
//! must be told from a defect. A file that a plan named is compared with it when it is opened.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

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

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.expected.knows(ROOT, location) {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let opened = self.files.get_opts(location, options).await;
            self.checked(location, opened)?;
        }
        let read = self.files.get_ranges(location, ranges);
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
