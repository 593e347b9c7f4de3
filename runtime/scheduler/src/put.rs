//! Values that clients give: from the client's stream to one worker, or into the task itself.
//!
//! Chooses the worker with the least of its memory taken, among those that are named if any are, and
//! passes the bytes on as they come. Runs on the task of the call. Never looks into a value, and
//! keeps none.
//!
//! Invariants: no more than one part of a value is in memory here; nothing is read from the client
//! before a worker has made room for all of it; every wait has an end. What was brought and is not
//! adopted by a task goes at the worker by itself.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use oxidask_comm::{BulkRefusal, BulkUpload};
use oxidask_core::{Effect, Event, TaskIndex, TaskRef, WorkerId, WorkerStanding};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::upload::{BODY, UploadArguments};
use oxidask_proto::{fault, wire};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::commands::SCHEME;
use crate::grpc::{Shared, shutting_down};
use crate::links::{Hearing, WorkerLink};
use crate::main_loop::MainLoop;

/// Values up to this size are given with their task: they outlive any worker.
pub(crate) const WITH_TASK_BYTES_MAX: u64 = 64 * 1024 - 1;

/// Values on their way at a time; further ones wait.
const PUTS_MAX: usize = 64;

/// How long the client may take for the next part.
const PART_TIME_MAX: Duration = Duration::from_secs(20);

/// How long a worker is waited for, if there is none.
const WORKER_TIME_MAX: Duration = Duration::from_secs(30);

/// How long is tried to find room: workers spill when they are asked for more than they have.
const ROOM_TIME_MAX: Duration = Duration::from_secs(10);

/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// How long after a worker has gone its tasks are looked for with each tick.
const WATCH_TIME: Duration = Duration::from_secs(2);

/// Workers that are asked in a row.
const CANDIDATES_MAX: usize = 8;

/// How long copies of a value that all are to have are waited for.
const SPREAD_TIME_MAX: Duration = Duration::from_mins(1);

/// Time between two looks at them.
const SPREAD_PAUSE: Duration = Duration::from_millis(5);

static PUTS: Semaphore = Semaphore::const_new(PUTS_MAX);

/// Where a value is, and the task that makes it the result of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Uploaded {
    /// The task's body: that of all such tasks.
    pub(crate) body: Bytes,
    /// The task's arguments.
    pub(crate) arguments: Bytes,
    /// Names of the workers of which one has to run it; empty: any. One name if the value is there.
    pub(crate) workers: Vec<String>,
    /// Whether the value is at that worker only, so that it is lost with it.
    pub(crate) is_at_worker: bool,
    /// The value's length.
    pub(crate) bytes: u64,
}

/// Takes a value from a client. The task for it has to be there within a minute.
pub(crate) async fn relay(
    shared: &Shared,
    first: wire::PutPart,
    rest: impl Stream<Item = Result<wire::PutPart, Status>> + Send + Unpin,
) -> Result<Uploaded, Box<Diagnostic>> {
    let stopped = || Box::new(fault::from_status(&shutting_down()));
    tokio::select! {
        uploaded = take(shared, first, rest) => uploaded,
        () = shared.shutdown.cancelled() => Err(stopped()),
    }
}

async fn take(
    shared: &Shared,
    first: wire::PutPart,
    rest: impl Stream<Item = Result<wire::PutPart, Status>> + Send + Unpin,
) -> Result<Uploaded, Box<Diagnostic>> {
    let wire::PutPart {
        key,
        kind,
        total_bytes,
        workers,
        data,
        ..
    } = first;
    let kind = u8::try_from(kind)
        .map_err(|_| refused(format!("the value for `{key}` is of an unknown kind")))?;
    let mut source = Source {
        key,
        first: Some(data),
        rest,
        left: total_bytes,
        trouble: None,
    };
    if total_bytes > WITH_TASK_BYTES_MAX {
        // It is never closed.
        let _permit = PUTS.acquire().await;
        return bring(shared, kind, &workers, &mut source).await;
    }
    let mut data = BytesMut::new();
    while let Some(part) = source.next().await? {
        data.extend_from_slice(&part);
    }
    let data = data.freeze();
    let arguments = UploadArguments::Value { kind, data };
    Ok(Uploaded {
        body: Bytes::from_static(BODY),
        arguments: arguments.encode(),
        workers,
        is_at_worker: false,
        bytes: total_bytes,
    })
}

/// A value that is lost with its worker.
fn lost(key: &str, worker: &str) -> Diagnostic {
    Diagnostic::new(
        Code::UploadLost,
        format!("the value that a client gave for `{key}` was lost with worker `{worker}`"),
    )
}

impl MainLoop {
    /// A worker is gone, or may have gone before this process began.
    pub(crate) fn watch_uploads(&mut self) {
        self.uploads_watched_until = Some(std::time::Instant::now() + WATCH_TIME);
    }

    /// Tasks that should adopt a value from a worker that is gone fail: they would wait for a worker
    /// of its name for ever. Also those that come a moment later, because they were on their way.
    pub(crate) fn look_for_lost_uploads(&mut self) {
        let Some(until) = self.uploads_watched_until else {
            return;
        };
        if std::time::Instant::now() >= until {
            self.uploads_watched_until = None;
        }
        for (task, error) in self.lost_uploads() {
            let error = Arc::new(error);
            self.react(Event::TaskHopeless { task, error });
        }
    }

    fn lost_uploads(&self) -> Vec<(TaskRef, Diagnostic)> {
        let links = self.workers.values();
        let names: HashSet<&str> = links.map(|link| link.hello.name.as_str()).collect();
        let mut found = Vec::new();
        for (graph, link) in &self.graphs {
            let bodies = link.bodies.with_content(BODY);
            if bodies.is_empty() {
                continue;
            }
            for task in 0..link.parts.tasks() {
                let reference = TaskRef {
                    graph: *graph,
                    task: TaskIndex(task),
                };
                let body = self.core.body(reference);
                let is_upload = body.is_some_and(|body| bodies.binary_search(&body).is_ok());
                let state = self.core.state(reference);
                if !is_upload
                    || !state.is_some_and(|state| state.is_pending() && !state.is_placed())
                {
                    continue;
                }
                let arguments = UploadArguments::decode(&link.parts.arguments(task));
                let requirement = self.core.requirement(reference);
                let Some([worker]) = requirement.map(|asked| asked.workers.as_slice()) else {
                    continue;
                };
                if matches!(arguments, Some(UploadArguments::Number(_)))
                    && !names.contains(worker.as_str())
                {
                    let key = self.core.key(reference).unwrap_or_default();
                    found.push((reference, lost(key, worker)));
                }
            }
        }
        found
    }
}

/// Brings the value to a worker.
async fn bring<S>(
    shared: &Shared,
    kind: u8,
    workers: &[String],
    source: &mut Source<S>,
) -> Result<Uploaded, Box<Diagnostic>>
where
    S: Stream<Item = Result<wire::PutPart, Status>> + Send + Unpin,
{
    let (began, bytes) = (Instant::now(), source.left);
    loop {
        let candidates = candidates(shared, workers).await?;
        let was_there = !candidates.is_empty();
        for (name, address) in candidates {
            let number = number();
            let upload = BulkUpload {
                number,
                kind,
                bytes,
            };
            if offer(shared, (&name, &address), upload, source).await? {
                return Ok(Uploaded {
                    body: Bytes::from_static(BODY),
                    arguments: UploadArguments::Number(number).encode(),
                    workers: vec![name],
                    is_at_worker: true,
                    bytes,
                });
            }
        }
        let (time_max, text) = if was_there {
            let text = format!("no worker has room for a value of `{bytes}` bytes");
            (ROOM_TIME_MAX, text)
        } else if workers.is_empty() {
            let text = "there is no worker that could hold the value".to_owned();
            (WORKER_TIME_MAX, text)
        } else {
            let text = format!("none of the workers is there: `{}`", workers.join("`, `"));
            (WORKER_TIME_MAX, text)
        };
        if began.elapsed() >= time_max {
            return Err(refused(text).into());
        }
        sleep(PAUSE).await;
    }
}

/// Offers the value to a worker. True if it is there now; false if another one is to be asked.
async fn offer<S>(
    shared: &Shared,
    (name, address): (&str, &str),
    upload: BulkUpload,
    source: &mut Source<S>,
) -> Result<bool, Box<Diagnostic>>
where
    S: Stream<Item = Result<wire::PutPart, Status>> + Send + Unpin,
{
    let outcome = {
        let mut parts = Box::pin(stream::unfold(&mut *source, |source| async {
            match source.next().await {
                Ok(part) => part.map(|part| (part, source)),
                Err(trouble) => {
                    source.trouble = Some(trouble);
                    None
                }
            }
        }));
        shared.bulk.upload(address, upload, &mut parts).await
    };
    if let Some(trouble) = source.trouble.take() {
        return Err(trouble);
    }
    match outcome {
        Ok(Ok(())) => Ok(true),
        Ok(Err(BulkRefusal::NotTaken)) => {
            let text = format!("worker `{name}` does not take values of this kind");
            Err(refused(text).into())
        }
        // Some of it has gone already, and is not to be had again.
        Ok(Err(_)) if source.left < upload.bytes => Err(broken(name, &source.key).into()),
        Err(error) if source.left < upload.bytes => {
            let mut lost = broken(name, &source.key);
            lost.causes.push(error.to_string());
            Err(lost.into())
        }
        Ok(Err(BulkRefusal::NoRoom | BulkRefusal::TooMany)) => Ok(false),
        Err(error) => {
            tracing::debug!(worker = name, %error, "a worker was not reached with a value");
            Ok(false)
        }
    }
}

/// Workers that can be asked, those with the least of their memory taken first.
async fn candidates(
    shared: &Shared,
    workers: &[String],
) -> Result<Vec<(String, Arc<str>)>, Box<Diagnostic>> {
    let workers = workers.to_vec();
    let found = shared
        .inputs
        .look(move |main_loop| list(main_loop, &workers));
    found
        .await
        .map_err(|status| Box::new(fault::from_status(&status)))
}

fn list(main_loop: &MainLoop, workers: &[String]) -> Vec<(String, Arc<str>)> {
    let mut found: Vec<(u64, String, Arc<str>)> = Vec::new();
    for summary in main_loop.core.workers() {
        let Some(link) = main_loop.workers.get(&summary.worker) else {
            continue;
        };
        let is_asked = |asked: &String| {
            *asked == summary.name || asked.strip_prefix(SCHEME).unwrap_or(asked) == &*link.address
        };
        if summary.standing == WorkerStanding::Active
            && link.hearing() == Hearing::Heard
            && (workers.is_empty() || workers.iter().any(is_asked))
        {
            let permille = summary.held_bytes.saturating_mul(1_000) / summary.memory_bytes.max(1);
            found.push((permille, summary.name, Arc::clone(&link.address)));
        }
    }
    found.sort();
    let found = found.into_iter().take(CANDIDATES_MAX);
    found.map(|(_, name, address)| (name, address)).collect()
}

/// Any number, and another one each time.
fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn refused(text: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Code::UploadRefused, text)
}

fn broken(worker: &str, key: &str) -> Diagnostic {
    let text = format!("the value for `{key}` broke off on its way to worker `{worker}`");
    Diagnostic::new(Code::UploadLost, text)
}

/// What the client sends.
struct Source<S> {
    key: String,
    first: Option<Bytes>,
    rest: S,
    left: u64,
    /// Why no more comes.
    trouble: Option<Box<Diagnostic>>,
}

impl<S> Source<S>
where
    S: Stream<Item = Result<wire::PutPart, Status>> + Send + Unpin,
{
    /// The next bytes; none when all are there.
    async fn next(&mut self) -> Result<Option<Bytes>, Box<Diagnostic>> {
        let key = &self.key;
        loop {
            let data = match self.first.take() {
                Some(data) => data,
                None if self.left == 0 => return Ok(None),
                None => match timeout(PART_TIME_MAX, self.rest.next()).await {
                    Ok(Some(Ok(part))) => part.data,
                    Ok(Some(Err(status))) => return Err(Box::new(fault::from_status(&status))),
                    Ok(None) => {
                        let left = self.left;
                        let text = format!("the value for `{key}` lacks `{left}` bytes at its end");
                        return Err(refused(text).into());
                    }
                    Err(_) => {
                        let seconds = PART_TIME_MAX.as_secs();
                        let text = format!("nothing came of the value for `{key}` for {seconds} s");
                        return Err(refused(text).into());
                    }
                },
            };
            self.left = self.left.checked_sub(data.len() as u64).ok_or_else(|| {
                refused(format!(
                    "the value for `{key}` is longer than was announced"
                ))
            })?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// Brings copies of a value to each of these workers, by name or address, or to all that there are.
/// Ends when they have it, or when it takes too long: whoever lacks it reads it when a task needs it.
pub(crate) async fn spread(shared: &Shared, task: TaskRef, workers: Vec<String>) {
    let end = Instant::now() + SPREAD_TIME_MAX;
    let workers = Arc::new(workers);
    let mut asked = HashSet::new();
    while Instant::now() < end {
        let (names, before) = (Arc::clone(&workers), asked.clone());
        let looked = shared
            .inputs
            .look(move |main_loop| main_loop.ask_for_copies(task, &names, before));
        match looked.await {
            Ok((now, lacking)) if lacking > 0 => asked = now,
            _ => return,
        }
        sleep(SPREAD_PAUSE).await;
    }
}

impl MainLoop {
    /// Asks the workers that lack the result to fetch it, each once; how many lack it.
    fn ask_for_copies(
        &mut self,
        task: TaskRef,
        names: &[String],
        mut asked: HashSet<WorkerId>,
    ) -> (HashSet<WorkerId>, usize) {
        let holders = self.core.holders(task).to_vec();
        let is_meant = |link: &WorkerLink| {
            let is_named = |name: &String| *name == link.hello.name || **name == *link.address;
            link.hearing() == Hearing::Heard && (names.is_empty() || names.iter().any(is_named))
        };
        let meant = self.workers.iter().filter(|(_, link)| is_meant(link));
        let lacking: Vec<WorkerId> = meant
            .map(|(worker, _)| *worker)
            .filter(|worker| !holders.contains(worker))
            .collect();
        if let Some(from) = holders.first().copied() {
            for worker in &lacking {
                if asked.insert(*worker) {
                    let worker = *worker;
                    self.perform(Effect::Copy { worker, task, from });
                }
            }
        }
        (asked, lacking.len())
    }
}

#[cfg(test)]
mod tests;
