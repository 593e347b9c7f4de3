//! Values that a client sends into the cluster.
//!
//! Owns the cutting into parts and the tries. A value is read part by part as the transport takes
//! it, and again from its beginning if the stream breaks.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use tokio::time::sleep;

use super::Shared;
use super::asking::was_not_sent;
use super::keeping::{CALL_PAUSE, client};
use crate::error::{may_pass, session_ended};

/// Bytes of one part.
const PART_BYTES: usize = 1 << 20;
/// How often an upload that broke is begun again.
const TRIES_MAX: u32 = 5;
/// How often one that could not begin is tried.
const STARTS_MAX: u32 = 100;

/// The bytes of a value.
pub trait PutSource: Send + Sync + 'static {
    /// So many bytes from there, which are there.
    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, String>;
}

/// Sends the value behind its first part, which says how large it is.
pub(super) async fn put(
    shared: &Shared,
    mut first: wire::PutPart,
    source: Arc<dyn PutSource>,
) -> Result<(), Diagnostic> {
    let turn = shared.puts.acquire().await;
    first.client.clone_from(&shared.config.client);
    let (mut breaks, mut starts) = (0, 0);
    loop {
        let channel = shared.connected().await?;
        let failure = Arc::default();
        let parts = parts(first.clone(), Arc::clone(&source), Arc::clone(&failure));
        let status = match client(channel).put(parts).await {
            Ok(reply) => {
                drop(turn);
                return reply
                    .into_inner()
                    .fault
                    .map_or(Ok(()), |fault| Err(fault.into()));
            }
            Err(status) => status,
        };
        if let Some(text) = failure.get() {
            let message = format!("a value that is sent cannot be read: {text}");
            return Err(Diagnostic::new(Code::LimitPassed, message));
        }
        let why = session_ended(Some(&status));
        let may_begin = if was_not_sent(&status) {
            starts += 1;
            starts < STARTS_MAX
        } else {
            breaks += 1;
            breaks < TRIES_MAX
        };
        if !may_begin || !may_pass(&why) {
            return Err(why);
        }
        sleep(CALL_PAUSE).await;
    }
}

type Failure = Arc<std::sync::OnceLock<String>>;

/// First the part without data, then the data. It ends early if the value cannot be read: the
/// scheduler counts.
fn parts(
    first: wire::PutPart,
    source: Arc<dyn PutSource>,
    failure: Failure,
) -> impl futures::Stream<Item = wire::PutPart> + Send + 'static {
    let total = first.total_bytes;
    let begin = (Some(first), 0_u64);
    futures::stream::unfold(begin, move |(first, offset)| {
        let part = first.or_else(|| {
            let bytes = (total - offset).min(PART_BYTES as u64);
            if bytes == 0 {
                return None;
            }
            // At most a part's length.
            let bytes = usize::try_from(bytes).unwrap_or(PART_BYTES);
            match source.read(offset, bytes) {
                Ok(data) if data.len() == bytes => Some(wire::PutPart {
                    data,
                    ..wire::PutPart::default()
                }),
                Ok(_) => {
                    let _ = failure.set("it has changed its length".to_owned());
                    None
                }
                Err(text) => {
                    let _ = failure.set(text);
                    None
                }
            }
        });
        let next = part.map(|part| {
            let offset = offset + part.data.len() as u64;
            (part, (None, offset))
        });
        std::future::ready(next)
    })
}
