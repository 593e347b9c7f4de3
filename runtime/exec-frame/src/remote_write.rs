//! A write to an object store, held back until all of it is whole.
//!
//! Owns the objects of a write between their last byte and the step that shows them, and the end of
//! uploads that are given up. Invariants: nothing is seen before the commit; parts of an object that
//! will never be whole are removed from the store.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    Error, MultipartUpload, ObjectStore, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::remote_store::{Step, told};

/// Uploads that are given up have this long to end.
const UPLOADS_END_MS_MAX: u64 = 10_000;
const UPLOADS_POLL_MS: u64 = 20;

/// Last steps of objects beside each other.
const COMMITS_AT_ONCE: usize = 16;

/// What one task writes to object stores. Nothing of it is seen before it is committed: the engine
/// ends its files even when the rows for them end with an error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    state: Arc<Mutex<WritesState>>,
    /// Uploads that are neither whole nor ended.
    pub(crate) live: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct WritesState {
    held: Vec<Held>,
    written: Vec<Path>,
}

/// An object that lacks only the last step.
#[derive(Debug)]
struct Held {
    location: Path,
    url: String,
    object: HeldObject,
}

#[derive(Debug)]
pub(crate) enum HeldObject {
    Parts(Parts),
    /// Some stores take no part without bytes.
    Empty(Arc<dyn ObjectStore>),
}

impl Held {
    async fn commit(self) -> Result<Path> {
        let done = match self.object {
            HeldObject::Parts(parts) => parts.complete().await,
            HeldObject::Empty(store) => {
                let put = PutOptions::default();
                store
                    .put_opts(&self.location, PutPayload::default(), put)
                    .await
            }
        };
        done.map(|_| self.location)
            .map_err(|error| told(Step::Write, self.url, error))
    }
}

impl Writes {
    fn with<T>(&self, change: impl FnOnce(&mut WritesState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn hold(&self, location: Path, url: String, object: HeldObject) {
        let held = Held {
            location,
            url,
            object,
        };
        self.with(|state| state.held.push(held));
    }

    /// Makes all that is held seen.
    pub(crate) async fn commit(&self) -> Result<()> {
        let held = self.with(|state| std::mem::take(&mut state.held));
        let mut commits = stream::iter(held)
            .map(Held::commit)
            .buffer_unordered(COMMITS_AT_ONCE);
        while let Some(committed) = commits.next().await {
            let location = committed?;
            self.with(|state| state.written.push(location));
        }
        Ok(())
    }

    /// Objects that are seen.
    pub(crate) fn written(&self) -> Vec<Path> {
        self.with(|state| state.written.clone())
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

/// The parts of an object. Dropped before they are whole, they are removed from the store too:
/// parts cost money.
#[derive(Debug)]
pub(crate) struct Parts {
    inner: Option<(Box<dyn MultipartUpload>, Live)>,
}

impl Parts {
    pub(crate) fn new(upload: Box<dyn MultipartUpload>, count: &Arc<AtomicUsize>) -> Self {
        Self {
            inner: Some((upload, Live::new(count))),
        }
    }

    pub(crate) fn put(&mut self, data: PutPayload) -> UploadPart {
        match &mut self.inner {
            Some((upload, _)) => upload.put_part(data),
            None => futures::future::ready(Err(gone())).boxed(),
        }
    }

    async fn complete(mut self) -> Result<PutResult> {
        let Some((upload, _)) = &mut self.inner else {
            return Err(gone());
        };
        let put = upload.complete().await?;
        self.inner = None;
        Ok(put)
    }

    pub(crate) async fn abort(mut self) -> Result<()> {
        match self.inner.take() {
            Some((mut upload, _live)) => upload.abort().await,
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
        let Some((mut upload, live)) = self.inner.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if upload.abort().await.is_err() {
                tracing::warn!("an upload to an object store could not be ended");
            }
            drop(live);
        });
    }
}
