//! The commit of an output in an object store.
//!
//! Owns the last step of the uploads of a write and the removal of what they replace. Uploads in
//! parts are chosen over temporary keys: s3, gs and az show nothing of an upload before its last
//! step, and that step moves no byte, while a copy from a temporary key would move all of them
//! again. Objects of one output appear one after the other; no store can do better.
//! Invariant: a commit that was killed may be done again; only then are old objects removed.

use std::collections::HashSet;

use datafusion::datasource::listing::ListingTableUrl;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::output::Output;
use crate::FrameError;
use crate::error::Stage;
use crate::remote_store::remove;
use crate::remote_write::{Bucket, OpenUpload};
use crate::session::Session;
use crate::stores::bucket;

/// Objects that a write may replace.
const REPLACED_MAX: usize = 100_000;

/// Last steps of objects beside each other.
const COMMITS_AT_ONCE: usize = 16;

fn failed(error: impl Into<datafusion::error::DataFusionError>) -> FrameError {
    FrameError::engine(Stage::Write, error.into())
}

/// Whether the output may be written.
pub(super) async fn check(
    session: &Session,
    url: &str,
    may_replace: bool,
) -> Result<(), FrameError> {
    let existing = list(session, url).await?;
    if !existing.is_empty() && !may_replace {
        return Err(FrameError::OutputExists {
            location: url.to_owned(),
        });
    }
    if existing.len() > REPLACED_MAX {
        let reason = format!("it has more than {REPLACED_MAX} files");
        return Err(FrameError::OutputKept {
            location: url.to_owned(),
            reason,
        });
    }
    Ok(())
}

/// What is at the location.
async fn list(session: &Session, url: &str) -> Result<Vec<Path>, FrameError> {
    let url = ListingTableUrl::parse(url).map_err(failed)?;
    let state = session.context.state();
    let store = state.runtime_env().object_store(&url).map_err(failed)?;
    let listing = url.list_all_files(&state, store.as_ref(), "").await;
    let listing = listing.map_err(failed)?;
    let paths = listing.map_ok(|file| file.location).try_collect();
    paths.await.map_err(failed)
}

/// Makes the objects of a write seen and removes what they replace.
pub(super) async fn commit(
    session: &Session,
    output: &Output,
    uploads: &[OpenUpload],
) -> Result<(), FrameError> {
    let (root, bucket) = connected(session, output)?;
    let mut completed = stream::iter(uploads.to_vec())
        .map(|upload| upload.complete(&bucket, &root))
        .buffer_unordered(COMMITS_AT_ONCE);
    while let Some(completed) = completed.next().await {
        completed.map_err(failed)?;
    }
    let keys: HashSet<&str> = uploads.iter().map(|upload| upload.key.as_str()).collect();
    let surplus: Vec<Path> = list(session, &output.location)
        .await?
        .into_iter()
        .filter(|path| !keys.contains(path.as_ref()))
        // Without leave to replace, nothing was here when the write began. What is here now under
        // such a name was left by an attempt whose work was done again.
        .filter(|path| output.may_replace || is_part(path))
        .collect();
    if surplus.is_empty() {
        return Ok(());
    }
    let removed = remove(bucket.objects.as_ref(), surplus).await;
    removed.map_err(failed)
}

/// Ends uploads that are not to be seen.
pub(super) async fn abort(session: &Session, output: &Output, uploads: &[OpenUpload]) {
    let Ok((_, bucket)) = connected(session, output) else {
        return;
    };
    for upload in uploads {
        if upload.abort(&bucket).await.is_err() {
            tracing::warn!(
                key = upload.key,
                "an upload to an object store is not ended"
            );
        }
    }
}

/// Gives up what the parts have made; objects that can be seen already go, too.
pub(super) async fn give_up(session: &Session, output: &Output, uploads: &[OpenUpload]) {
    abort(session, output, uploads).await;
    let Ok((_, bucket)) = connected(session, output) else {
        return;
    };
    if output.may_replace {
        // Some of what is there may be the old output: better kept than lost.
        return;
    }
    let paths = uploads
        .iter()
        .filter_map(|upload| Path::parse(&upload.key).ok());
    if remove(bucket.objects.as_ref(), paths.collect())
        .await
        .is_err()
    {
        tracing::warn!(
            output = output.location,
            "objects of a failed write may be left"
        );
    }
}

fn connected(session: &Session, output: &Output) -> Result<(String, Bucket), FrameError> {
    let url = url::Url::parse(&output.location).map_err(|error| FrameError::Argument {
        what: format!("the output `{}` is not a URL: {error}", output.location),
    })?;
    // Connects, if nothing has yet.
    let store = ListingTableUrl::parse(&output.location).map_err(failed)?;
    let state = session.context.state();
    state.runtime_env().object_store(&store).map_err(failed)?;
    let root = bucket(&url);
    let known = session.writes.bucket(&root);
    let known = known.ok_or_else(|| FrameError::Argument {
        what: format!("there is no store for `{root}`"),
    })?;
    Ok((root, known))
}

/// Whether a file's name is one that writes give.
fn is_part(path: &Path) -> bool {
    let number = path
        .filename()
        .and_then(|name| name.split('.').next()?.strip_prefix("part-"));
    number
        .is_some_and(|number| number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        for name in ["a/part-00000.csv", "part-123456.json.gz"] {
            assert!(is_part(&Path::from(name)), "{name}");
        }
        for name in [
            "a/part-1.csv",
            "a/apart-00000.csv",
            "part-0000x.csv",
            "part-00000/a",
        ] {
            assert!(!is_part(&Path::from(name)), "{name}");
        }
    }
}
