//! An object store that fails in plain words and shows a write only when all of it is whole.
//!
//! Owns what a user reads when a store fails: the URL, the step and the reason. A store's own words
//! are not passed on, for they may hold a key or a signature; only its code and its sentence are.
//! Invariants: nothing that is written is seen before the write is committed; an upload that is
//! given up is ended in the store too.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, coalesce_ranges,
};

use crate::error::{find, io_error};
use crate::freshness::{ExpectedFiles, FileFault};
use crate::read_memory::ReadMemory;
use crate::remote_write::{Bucket, Parts, Writes, gone};

/// What is known of an object that is not there yet.
const HELD: PutResult = PutResult {
    e_tag: None,
    version: None,
};

/// A store's sentence is cut here.
const SENTENCE_CHARS_MAX: usize = 300;

/// Addresses that are asked for credentials when the environment has none.
const CREDENTIAL_SOURCES: [&str; 5] = [
    "/latest/api/token",
    "/latest/meta-data",
    "169.254.170.2",
    "computeMetadata",
    "metadata/identity",
];

const CREDENTIALS_HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_…, \
    AZURE_…) in the environment, or give the service account a role";
const ACCESS_HINT: &str =
    "check the credentials in the environment or the service account, and what they allow";
const ENDPOINT_HINT: &str = "check the endpoint in the environment, such as AWS_ENDPOINT, and that \
    the workers can reach it";
const HTTP_HINT: &str = "set AWS_ALLOW_HTTP=true in the environment if the endpoint has no TLS";
const REGION_HINT: &str = "set the bucket's region in the environment, such as AWS_REGION";
const NAME_HINT: &str = "check the bucket and the path in the URL";

/// The step of a store that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    Look,
    Read,
    Write,
    Remove,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Open => "use",
            Self::Look => "look up",
            Self::Read => "read",
            Self::Write => "write",
            Self::Remove => "remove",
        }
    }
}

/// Why a store failed, without any secret.
#[derive(Debug)]
pub(crate) struct StoreFault {
    pub(crate) step: Step,
    url: String,
    reason: String,
    pub(crate) hint: &'static str,
    pub(crate) is_transient: bool,
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, url, reason) = (self.step.words(), &self.url, &self.reason);
        write!(f, "cannot {step} `{url}`: {reason}")
    }
}

impl StdError for StoreFault {}

impl StoreFault {
    fn new(step: Step, url: String, error: &Error) -> Self {
        let (reason, hint, is_transient) = reason(error);
        Self {
            step,
            url,
            reason,
            hint,
            is_transient,
        }
    }
}

/// The same error in plain words, of the same kind: callers tell what is missing by the kind.
pub(crate) fn told(step: Step, url: String, error: Error) -> Error {
    if find::<FileFault>(&error).is_some() {
        return error;
    }
    let source = Box::new(StoreFault::new(step, url, &error));
    match error {
        Error::NotFound { path, .. } => Error::NotFound { path, source },
        Error::AlreadyExists { path, .. } => Error::AlreadyExists { path, source },
        Error::Precondition { path, .. } => Error::Precondition { path, source },
        Error::NotModified { path, .. } => Error::NotModified { path, source },
        Error::PermissionDenied { path, .. } => Error::PermissionDenied { path, source },
        Error::Unauthenticated { path, .. } => Error::Unauthenticated { path, source },
        Error::NotSupported { .. } => Error::NotSupported { source },
        _ => Error::Generic {
            store: "object store",
            source,
        },
    }
}

/// Reason, hint, and whether it may pass.
fn reason(error: &Error) -> (String, &'static str, bool) {
    let text = error.to_string();
    if CREDENTIAL_SOURCES
        .iter()
        .any(|source| text.contains(source))
    {
        return (
            "no credentials were found".to_owned(),
            CREDENTIALS_HINT,
            false,
        );
    }
    if let Some(http) = find::<HttpError>(error) {
        return unreached(http);
    }
    let code = element(&text, "Code").unwrap_or_default();
    let status = text
        .split_once("status code: ")
        .map(|(_, rest)| rest.split([':', '<']).next().unwrap_or_default().trim());
    let said = match (element(&text, "Message"), code, status) {
        (Some(sentence), code, _) => format!("`{code}`, {sentence}"),
        (None, "", Some(status)) => format!("`{status}`"),
        (None, code, _) => format!("`{code}`"),
    };
    match error {
        _ if code == "NoSuchBucket" => ("the bucket does not exist".to_owned(), NAME_HINT, false),
        Error::NotFound { .. } => ("it does not exist".to_owned(), NAME_HINT, false),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            (format!("access is refused: {said}"), ACCESS_HINT, false)
        }
        _ if text.contains("redirect") => (
            "the bucket is in another region".to_owned(),
            REGION_HINT,
            false,
        ),
        _ if status.is_some() || !code.is_empty() => {
            let passes = status.is_none_or(|status| status.starts_with('5') || status == "429");
            let hint = if passes { ENDPOINT_HINT } else { ACCESS_HINT };
            (format!("the object store answers {said}"), hint, passes)
        }
        _ => (innermost(error), ENDPOINT_HINT, true),
    }
}

fn unreached(error: &HttpError) -> (String, &'static str, bool) {
    let cause = io_error(error).map_or_else(|| innermost(error), ToString::to_string);
    let cause = crate::error::lowered(cause.split(" (os error").next().unwrap_or_default());
    if cause.contains("scheme is not allowed") {
        let reason = "the endpoint is `http://`, which is not allowed".to_owned();
        return (reason, HTTP_HINT, false);
    }
    let reason = match error.kind() {
        HttpErrorKind::Timeout => "the object store does not answer in time".to_owned(),
        HttpErrorKind::Connect => format!("the object store cannot be reached: {cause}"),
        _ => format!("the connection to the object store failed: {cause}"),
    };
    (reason, ENDPOINT_HINT, true)
}

/// The deepest cause; an answer's body, which may follow, is left out.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let words = deepest.to_string();
    cut(words.split('<').next().unwrap_or_default())
}

/// The text of an element of a store's answer.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let end = inner.char_indices().nth(SENTENCE_CHARS_MAX);
    Some(&inner[..end.map_or(inner.len(), |(index, _)| index)])
}

fn cut(words: &str) -> String {
    words.trim().chars().take(SENTENCE_CHARS_MAX).collect()
}

/// Removes objects.
pub(crate) async fn remove(store: &dyn ObjectStore, paths: Vec<Path>) -> Result<()> {
    let removed = store.delete_stream(stream::iter(paths).map(Ok).boxed());
    removed.try_for_each(|_| async { Ok(()) }).await
}

/// A bucket.
#[derive(Debug)]
pub(crate) struct RemoteStore {
    store: Arc<dyn ObjectStore>,
    bucket: Bucket,
    /// Scheme and bucket.
    root: String,
    writes: Writes,
    expected: ExpectedFiles,
    memory: ReadMemory,
}

impl RemoteStore {
    pub(crate) fn new(
        bucket: Bucket,
        root: String,
        writes: Writes,
        expected: ExpectedFiles,
        memory: ReadMemory,
    ) -> Self {
        writes.know(&root, &bucket);
        Self {
            store: Arc::clone(&bucket.objects),
            bucket,
            root,
            writes,
            expected,
            memory,
        }
    }

    /// An upload in parts to where the write wants the file.
    async fn begin(&self, location: &Path) -> Result<Parts> {
        let begun = self.bucket.uploads.create_multipart(location).await;
        let id = self.telling(Step::Write, Some(location), begun)?;
        Ok(self.writes.begin(&self.bucket, location.clone(), id))
    }

    fn url(&self, path: Option<&Path>) -> String {
        format!("{}/{}", self.root, path.map_or("", AsRef::as_ref))
    }

    fn telling<T>(&self, step: Step, path: Option<&Path>, result: Result<T>) -> Result<T> {
        result.map_err(|error| told(step, self.url(path), error))
    }

    fn telling_stream<T: Send + 'static>(
        &self,
        step: Step,
        path: Option<&Path>,
        results: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let url = self.url(path);
        results
            .map_err(move |error| told(step, url.clone(), error))
            .boxed()
    }
}

impl fmt::Display for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.root)
    }
}

#[async_trait]
impl ObjectStore for RemoteStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if options.mode != PutMode::Overwrite {
            let put = self.store.put_opts(location, payload, options).await;
            return self.telling(Step::Write, Some(location), put);
        }
        let location = self.writes.named(location);
        let held = if payload.content_length() == 0 {
            self.writes.empty(&self.bucket, location)
        } else {
            let mut parts = self.begin(&location).await?;
            let put = parts.put(payload).await;
            self.telling(Step::Write, Some(&location), put)?;
            parts
        };
        self.writes.hold(held);
        Ok(HELD)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let location = self.writes.named(location);
        Ok(Box::new(Upload {
            parts: Some(self.begin(&location).await?),
            url: self.url(Some(&location)),
            writes: self.writes.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let step = if options.head { Step::Look } else { Step::Read };
        let got = self.store.get_opts(location, options).await;
        let got = got.map_err(|error| {
            let url = self.url(Some(location));
            self.expected.missing(&self.root, &url, location, error)
        });
        let mut got = self.telling(step, Some(location), got)?;
        if self.expected.knows(&self.root, location) {
            let url = self.url(Some(location));
            self.expected.check(&self.root, &url, &got.meta)?;
        }
        got.payload = match got.payload {
            GetResultPayload::Stream(bytes) => {
                GetResultPayload::Stream(self.telling_stream(Step::Read, Some(location), bytes))
            }
            file @ GetResultPayload::File(..) => file,
        };
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.expected.knows(&self.root, location) {
            // Each answer tells which object it is of.
            let get = |range| self.get_range(location, range);
            let read = coalesce_ranges(ranges, get, OBJECT_STORE_COALESCE_DEFAULT);
            return self.memory.counted(ranges, read).await;
        }
        let read = self.store.get_ranges(location, ranges);
        let got = self.memory.counted(ranges, read).await;
        self.telling(Step::Read, Some(location), got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.telling_stream(Step::Remove, None, self.store.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.telling_stream(Step::Look, prefix, self.store.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.store.list_with_offset(prefix, offset);
        self.telling_stream(Step::Look, prefix, listed)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let listed = self.store.list_with_delimiter(prefix).await;
        self.telling(Step::Look, prefix, listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copied = self.store.copy_opts(from, to, options).await;
        self.telling(Step::Write, Some(to), copied)
    }
}

/// An upload whose last step is held back.
#[derive(Debug)]
struct Upload {
    parts: Option<Parts>,
    url: String,
    writes: Writes,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let url = self.url.clone();
        let put = match &mut self.parts {
            Some(parts) => parts.put(data),
            None => futures::future::ready(Err(gone())).boxed(),
        };
        put.map(move |put| put.map_err(|error| told(Step::Write, url, error)))
            .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let Some(parts) = self.parts.take() else {
            return Err(told(Step::Write, self.url.clone(), gone()));
        };
        self.writes.hold(parts);
        Ok(HELD)
    }

    async fn abort(&mut self) -> Result<()> {
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        let ended = parts.abort().await;
        ended.map_err(|error| told(Step::Write, self.url.clone(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(String);

    fn fault(text: &str, wrap: impl FnOnce(Box<Said>) -> Error) -> String {
        let error = wrap(Box::new(Said(text.to_owned())));
        let told = told(Step::Read, "s3://b/x".to_owned(), error);
        find::<StoreFault>(&told).unwrap().to_string()
    }

    fn generic(source: Box<Said>) -> Error {
        Error::Generic {
            store: "S3",
            source,
        }
    }

    #[test]
    fn an_answer_is_told_without_its_body() {
        let body = "Error performing GET http://h/b/x in 1ms - Server returned non-2xx status \
            code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code>\
            <Message>Unknown key</Message><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>";
        let denied = fault(body, |source| Error::PermissionDenied {
            path: "x".to_owned(),
            source,
        });
        assert_eq!(
            denied,
            "cannot read `s3://b/x`: access is refused: `InvalidAccessKeyId`, Unknown key"
        );
        let broken = fault("non-2xx status code: 500 Internal Server Error: ", generic);
        assert_eq!(
            broken,
            "cannot read `s3://b/x`: the object store answers `500 Internal Server Error`"
        );
        let other = fault("odd <Signature>secret</Signature>", generic);
        assert_eq!(other, "cannot read `s3://b/x`: odd");
    }

    #[test]
    fn missing_things_and_missing_credentials_are_told_apart() {
        let missing = |text: &str| {
            fault(text, |source| Error::NotFound {
                path: "x".to_owned(),
                source,
            })
        };
        assert_eq!(missing(""), "cannot read `s3://b/x`: it does not exist");
        assert_eq!(
            missing("<Code>NoSuchBucket</Code>"),
            "cannot read `s3://b/x`: the bucket does not exist"
        );
        assert_eq!(
            fault("PUT http://169.254.169.254/latest/api/token", generic),
            "cannot read `s3://b/x`: no credentials were found"
        );
    }
}
