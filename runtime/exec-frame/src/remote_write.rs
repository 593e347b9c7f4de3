//! A write to an object store, held back until all of it is whole.
//!
//! Owns the objects of a write between their last byte and the step that shows them. An upload is
//! known by the key, the store's number for it and the numbers of its parts: these travel, so the
//! last step may be made by another process. Invariants: nothing is seen before the last step; an
//! upload that is given up is removed from the store too, for parts cost money.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Error, MultipartId, ObjectStore, ObjectStoreExt, PutPayload, Result, UploadPart,
};
use serde::{Deserialize, Serialize};

use crate::remote_store::{Step, told};

/// Uploads that are given up have this long to end.
const UPLOADS_END_MS_MAX: u64 = 10_000;
const UPLOADS_POLL_MS: u64 = 20;

/// The two ways to one bucket.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) uploads: Arc<dyn MultipartStore>,
}

impl Bucket {
    pub(crate) fn new<S: ObjectStore + MultipartStore>(store: S) -> Self {
        let store = Arc::new(store);
        Self {
            objects: Arc::clone(&store) as Arc<dyn ObjectStore>,
            uploads: store,
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

/// An object that lacks only the last step. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenUpload {
    /// Its path inside the bucket.
    pub(crate) key: String,
    /// The store's number for the upload.
    pub(crate) id: String,
    /// The store's numbers of the parts, in order; none for an object without bytes.
    pub(crate) parts: Vec<String>,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
}

impl OpenUpload {
    /// Makes the object seen. May be done again: an object that is there with its size is done.
    pub(crate) async fn complete(self, bucket: &Bucket, root: &str) -> Result<()> {
        let path = Path::parse(&self.key)?;
        let telling = |error| told(Step::Write, format!("{root}/{}", self.key), error);
        if self.parts.is_empty() {
            // Some stores take no part without bytes.
            let put = bucket.objects.put(&path, PutPayload::default()).await;
            return put.map(drop).map_err(telling);
        }
        let parts = self.parts.into_iter();
        let parts = parts.map(|content_id| PartId { content_id }).collect();
        let completed = bucket.uploads.complete_multipart(&path, &self.id, parts);
        let Err(error) = completed.await else {
            return Ok(());
        };
        // The store knows the upload no more when an earlier attempt has ended it.
        match bucket.objects.head(&path).await {
            Ok(object) if object.size == self.bytes => Ok(()),
            _ => Err(telling(error)),
        }
    }

    /// Gives the upload up.
    pub(crate) async fn abort(&self, bucket: &Bucket) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let path = Path::parse(&self.key)?;
        bucket.uploads.abort_multipart(&path, &self.id).await
    }
}

/// What one task writes to object stores. Nothing of it is seen before it is completed: the engine
/// ends its files even when the rows for them end with an error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    state: Arc<Mutex<WritesState>>,
    /// Uploads that are neither whole nor ended.
    live: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct WritesState {
    held: Vec<Parts>,
    /// The name of all files, up to the first dot; the engine's own names are random.
    stem: Option<String>,
    /// By scheme and name.
    buckets: HashMap<String, Bucket>,
}

impl Writes {
    fn with<T>(&self, change: impl FnOnce(&mut WritesState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a bucket known.
    pub(crate) fn know(&self, root: &str, bucket: &Bucket) {
        self.with(|state| state.buckets.insert(root.to_owned(), bucket.clone()));
    }

    /// A bucket that has been used.
    pub(crate) fn bucket(&self, root: &str) -> Option<Bucket> {
        self.with(|state| state.buckets.get(root).cloned())
    }

    /// From now on files get this name before their ending.
    pub(crate) fn name_files(&self, stem: Option<String>) {
        self.with(|state| state.stem = stem);
    }

    /// Where a file that the engine names so is to be.
    pub(crate) fn named(&self, location: &Path) -> Path {
        let Some(stem) = self.with(|state| state.stem.clone()) else {
            return location.clone();
        };
        let text = location.as_ref();
        let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
        let ending = name.split_once('.').map_or("", |(_, ending)| ending);
        let named = format!("{folder}/{stem}.{ending}");
        // Already escaped, so it is taken as it is.
        Path::parse(named.trim_start_matches('/')).unwrap_or_else(|_| location.clone())
    }

    pub(crate) fn begin(&self, bucket: &Bucket, key: Path, id: MultipartId) -> Parts {
        Parts {
            bucket: bucket.clone(),
            key,
            id,
            ids: Arc::default(),
            bytes: 0,
            live: Some(Live::new(&self.live)),
        }
    }

    /// An object without bytes.
    pub(crate) fn empty(&self, bucket: &Bucket, key: Path) -> Parts {
        let mut parts = self.begin(bucket, key, String::new());
        parts.live = None;
        parts
    }

    pub(crate) fn hold(&self, parts: Parts) {
        self.with(|state| state.held.push(parts));
    }

    /// All that is held, for whoever makes the last step. It is not given up here any more.
    pub(crate) fn take(&self) -> Vec<OpenUpload> {
        let held = self.with(|state| std::mem::take(&mut state.held));
        held.into_iter().map(Parts::detach).collect()
    }

    /// Gives up what is held and waits for the end of its uploads, but not for ever.
    pub(crate) async fn discard(&self) {
        for _ in 0..UPLOADS_END_MS_MAX / UPLOADS_POLL_MS {
            // A file may still be ended by the engine while this waits.
            drop(self.with(|state| std::mem::take(&mut state.held)));
            if self.live.load(Ordering::Acquire) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(UPLOADS_POLL_MS)).await;
        }
        tracing::warn!("an upload to an object store was not ended");
    }
}

/// Counts one upload.
#[derive(Debug)]
struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The parts of an object. Dropped before they are handed on, they are removed from the store too.
#[derive(Debug)]
pub(crate) struct Parts {
    bucket: Bucket,
    key: Path,
    id: MultipartId,
    ids: Arc<Mutex<Vec<String>>>,
    bytes: u64,
    /// There while a drop ends the upload.
    live: Option<Live>,
}

impl Parts {
    pub(crate) fn put(&mut self, data: PutPayload) -> UploadPart {
        let parts = Arc::clone(&self.ids);
        let index = {
            let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.push(String::new());
            parts.len() - 1
        };
        self.bytes += data.content_length() as u64;
        let (uploads, key, id) = (
            Arc::clone(&self.bucket.uploads),
            self.key.clone(),
            self.id.clone(),
        );
        async move {
            let put = uploads.put_part(&key, &id, index, data).await?;
            let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(part) = parts.get_mut(index) {
                *part = put.content_id;
            }
            Ok(())
        }
        .boxed()
    }

    fn detach(mut self) -> OpenUpload {
        self.live = None;
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        OpenUpload {
            key: self.key.to_string(),
            id: std::mem::take(&mut self.id),
            parts: std::mem::take(&mut *ids),
            bytes: self.bytes,
        }
    }

    pub(crate) async fn abort(mut self) -> Result<()> {
        match self.live.take() {
            Some(_live) => {
                let uploads = &self.bucket.uploads;
                uploads.abort_multipart(&self.key, &self.id).await
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn gone() -> Error {
    let source = Box::new(io::Error::other("the upload has ended"));
    Error::Generic {
        store: "object store",
        source,
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let id = std::mem::take(&mut self.id);
        runtime.spawn(async move {
            if bucket.uploads.abort_multipart(&key, &id).await.is_err() {
                tracing::warn!("an upload to an object store could not be ended");
            }
            drop(live);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use object_store::memory::InMemory;

    fn bucket() -> Bucket {
        Bucket::new(InMemory::new())
    }

    #[test]
    fn files_are_named_by_their_part() {
        let writes = Writes::default();
        let path = Path::from("out/month=1/Xy3.csv.gz");
        assert_eq!(writes.named(&path), path);
        writes.name_files(Some("part-00007".to_owned()));
        assert_eq!(
            writes.named(&path).as_ref(),
            "out/month=1/part-00007.csv.gz"
        );
        let path = Path::from("a%b.json");
        assert_eq!(writes.named(&path).as_ref(), "part-00007.json");
    }

    #[tokio::test]
    async fn an_upload_is_completed_by_whoever_knows_it_and_more_than_once() {
        let (writes, bucket) = (Writes::default(), bucket());
        let key = Path::from("out/a.csv");
        let id = bucket.uploads.create_multipart(&key).await.unwrap();
        let mut parts = writes.begin(&bucket, key.clone(), id);
        for text in ["one,", "two"] {
            parts
                .put(PutPayload::from_static(text.as_bytes()))
                .await
                .unwrap();
        }
        writes.hold(parts);
        let uploads = writes.take();
        assert!(bucket.objects.head(&key).await.is_err(), "seen too early");
        let text = serde_json::to_string(&uploads[0]).unwrap();
        let upload: OpenUpload = serde_json::from_str(&text).unwrap();
        for _ in 0..2 {
            upload.clone().complete(&bucket, "s3://b").await.unwrap();
        }
        let got = bucket.objects.get(&key).await.unwrap();
        assert_eq!(got.bytes().await.unwrap(), "one,two");
    }

    #[tokio::test]
    async fn what_is_not_taken_is_given_up() {
        let (writes, bucket) = (Writes::default(), bucket());
        let key = Path::from("out/a.csv");
        let id = bucket.uploads.create_multipart(&key).await.unwrap();
        let mut parts = writes.begin(&bucket, key, id);
        parts.put(PutPayload::from_static(b"x")).await.unwrap();
        writes.hold(parts);
        writes.discard().await;
        assert_eq!(writes.live.load(Ordering::Acquire), 0);
        assert!(writes.take().is_empty());
    }
}
