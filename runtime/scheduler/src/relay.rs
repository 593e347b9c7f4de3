//! Results on their way from workers to a client.
//!
//! Reads from the workers' bulk port and writes into one gRPC answer, in the order of the request. A
//! client that can read large results by itself is told where they are instead.
//! Bytes never pass through the main loop and are never decoded. Runs on a task of its own per call.
//!
//! Invariants: each task of the request is answered exactly once: a payload, a place or a fault. A start for
//! the task of the payload before it means that the payload begins again. Memory is bounded by
//! [`WINDOW_BYTES_MAX`] and [`CHUNKS_WAITING_MAX`] parts; a client that does not read makes the
//! workers wait, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use oxidask_comm::{BulkObject, BulkPart};
use oxidask_core::{Event, TaskRef, WorkerId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::fault::to_status;
use oxidask_proto::ids::{self, bulk_key};
use oxidask_proto::wire;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::grpc::Shared;
use crate::input::{Question, Whereabouts};

/// Tasks in one request.
const TASKS_PER_REQUEST_MAX: usize = 100_000;

/// Larger results are streamed alone.
const SMALL_BYTES_MAX: u64 = 64 * 1024;

/// Small results read from the workers at once.
const WINDOW_TASKS_MAX: usize = 4096;

/// Bytes of small results read from the workers at once.
const WINDOW_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of data in one message.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// Messages that wait for the client, and parts that wait between worker and client.
const CHUNKS_WAITING_MAX: usize = 4;

/// How often a result is looked for, each time where the core then says it is.
const ATTEMPTS_MAX: u32 = 8;

/// How long a relay waits for a result that is computed again.
const RECOMPUTE_TIME_MAX: Duration = Duration::from_mins(10);

/// A client that does not read for this long does not keep a worker's connection any longer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// A worker that cannot be reached, but is heard, is asked for this long: it may just have fallen
/// silent, and what a silent worker holds may come back.
const UNREACHABLE_TIME_MAX: Duration = Duration::from_secs(4);

/// First and longest pause between two looks for a result.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

type Chunks = mpsc::Sender<Result<wire::FetchChunk, Status>>;

/// Starts to answer a request.
pub(crate) fn open(
    shared: Arc<Shared>,
    request: wire::FetchRequest,
) -> Result<mpsc::Receiver<Result<wire::FetchChunk, Status>>, Status> {
    let tasks = request.tasks;
    if tasks.len() > TASKS_PER_REQUEST_MAX {
        let message = format!(
            "`{}` results were asked for at once, more than 100,000",
            tasks.len()
        );
        return Err(to_status(&Diagnostic::new(Code::LimitPassed, message)));
    }
    let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let relay = Relay {
        shared,
        chunks,
        tells_places: request.places_wanted,
    };
    tokio::spawn(relay.run(ids::tasks(tasks)));
    Ok(receiver)
}

struct Relay {
    shared: Arc<Shared>,
    chunks: Chunks,
    /// Large results that a worker has are answered with where that is.
    tells_places: bool,
}

/// The relay is over: the client is gone or the scheduler stops.
struct Over;

/// A result was not delivered.
enum Trouble {
    /// The worker says that it does not have the result.
    Missing,
    /// The worker cannot be reached.
    Unreachable,
    /// The transfer broke off.
    Broken,
    /// The client does not read at the moment; meanwhile others may use the worker's connection.
    Stalled,
    /// Nobody wants it any more.
    Over,
}

/// Who should have a result.
struct Found {
    worker: WorkerId,
    address: Arc<str>,
    /// Nobody hears of it.
    is_suspect: bool,
}

/// A result that a worker should have.
struct Holding {
    position: usize,
    task: TaskRef,
    worker: WorkerId,
    address: Arc<str>,
}

impl Relay {
    async fn run(self, tasks: Vec<TaskRef>) {
        let ended = tokio::select! {
            ended = self.relay_all(&tasks) => ended,
            () = self.shared.shutdown.cancelled() => Err(Over),
        };
        if ended.is_err() && self.shared.shutdown.is_cancelled() {
            let _ = self.chunks.send(Err(crate::grpc::shutting_down())).await;
        }
    }

    async fn relay_all(&self, tasks: &[TaskRef]) -> Result<(), Over> {
        let mut places = self.ask(tasks.to_vec()).await?.into_iter();
        let mut position = 0;
        let mut window = Vec::new();
        let mut window_bytes = 0;
        while let Some(task) = tasks.get(position).copied() {
            let place = places.next().ok_or(Over)?;
            match place {
                Whereabouts::Held {
                    worker,
                    address,
                    bytes,
                    is_suspect: false,
                } if bytes <= SMALL_BYTES_MAX => {
                    window.push(Holding {
                        position: window.len(),
                        task,
                        worker,
                        address,
                    });
                    window_bytes += bytes;
                }
                Whereabouts::Held {
                    address,
                    bytes,
                    is_suspect: false,
                    ..
                } if self.tells_places => {
                    self.relay_window(&mut window).await?;
                    window_bytes = 0;
                    self.tell_place(task, bytes, &address).await?;
                }
                _ => {
                    self.relay_window(&mut window).await?;
                    window_bytes = 0;
                    self.relay_one(task).await?;
                }
            }
            if window.len() >= WINDOW_TASKS_MAX || window_bytes >= WINDOW_BYTES_MAX {
                self.relay_window(&mut window).await?;
                window_bytes = 0;
            }
            position += 1;
        }
        self.relay_window(&mut window).await
    }

    /// Small results, from all their workers at once.
    async fn relay_window(&self, window: &mut Vec<Holding>) -> Result<(), Over> {
        if window.is_empty() {
            return Ok(());
        }
        let mut by_worker: BTreeMap<WorkerId, Vec<&Holding>> = BTreeMap::new();
        for holding in window.iter() {
            by_worker.entry(holding.worker).or_default().push(holding);
        }
        let reads = by_worker
            .into_iter()
            .map(|(worker, held)| self.read_small(worker, held));
        let mut found: Vec<Option<BulkObject>> = window.iter().map(|_| None).collect();
        for (position, object) in join_all(reads).await.into_iter().flatten() {
            if let Some(slot) = found.get_mut(position) {
                *slot = object;
            }
        }
        let mut small = Vec::new();
        let mut small_bytes = 0;
        for (holding, object) in window.drain(..).zip(found) {
            if let Some(object) = object {
                let data = joined(object.parts);
                small_bytes += data.len();
                let kind = u32::from(object.kind);
                small.push(wire::SmallResult {
                    task: Some(holding.task.into()),
                    kind,
                    data,
                });
            } else {
                self.send_small(&mut small, &mut small_bytes).await?;
                self.relay_one(holding.task).await?;
            }
            if small_bytes >= PART_BYTES_MAX {
                self.send_small(&mut small, &mut small_bytes).await?;
            }
        }
        self.send_small(&mut small, &mut small_bytes).await
    }

    async fn read_small(
        &self,
        worker: WorkerId,
        held: Vec<&Holding>,
    ) -> Vec<(usize, Option<BulkObject>)> {
        let Some(address) = held.first().map(|holding| Arc::clone(&holding.address)) else {
            return Vec::new();
        };
        let keys: Vec<u64> = held.iter().map(|holding| bulk_key(holding.task)).collect();
        let objects = match self.shared.bulk.fetch(&address, &keys).await {
            Ok(objects) => objects,
            Err(error) => {
                tracing::debug!(%worker, %error, "results cannot be read");
                return Vec::new();
            }
        };
        let lacking: Vec<TaskRef> = held
            .iter()
            .zip(&objects)
            .filter(|(_, (_, object))| object.is_none())
            .map(|(holding, _)| holding.task)
            .collect();
        self.report_missing(worker, lacking).await;
        held.iter()
            .zip(objects)
            .map(|(holding, (_, object))| (holding.position, object))
            .collect()
    }

    async fn send_small(
        &self,
        small: &mut Vec<wire::SmallResult>,
        small_bytes: &mut usize,
    ) -> Result<(), Over> {
        if small.is_empty() {
            return Ok(());
        }
        self.shared
            .metrics
            .count_relayed(std::mem::take(small_bytes));
        let small = std::mem::take(small);
        self.send(wire::FetchChunk {
            small,
            ..wire::FetchChunk::default()
        })
        .await
    }

    /// Where a result is, for a client that tries to read it there.
    async fn tell_place(&self, task: TaskRef, bytes: u64, address: &str) -> Result<(), Over> {
        self.send(wire::FetchChunk {
            task: Some(task.into()),
            total_bytes: bytes,
            data_address: address.to_owned(),
            ..wire::FetchChunk::default()
        })
        .await
    }

    /// One result of any size, from wherever it is, waiting for it if it is computed again.
    async fn relay_one(&self, task: TaskRef) -> Result<(), Over> {
        let mut unreachable: Option<(WorkerId, Instant)> = None;
        let mut attempts = 0;
        let deadline = Instant::now() + RECOMPUTE_TIME_MAX;
        while attempts < ATTEMPTS_MAX && Instant::now() < deadline {
            let Some(found) = self.locate(task).await? else {
                break;
            };
            let worker = found.worker;
            match self.stream(task, &found.address).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Over) => return Err(Over),
                Err(Trouble::Stalled) => {
                    // Waits for as long as the client likes, and begins again.
                    let room = self.chunks.reserve().await;
                    drop(room.map_err(|_| Over)?);
                    continue;
                }
                Err(Trouble::Missing) => self.report_missing(worker, vec![task]).await,
                // It comes back, or the core gives it up.
                Err(Trouble::Unreachable) if found.is_suspect => {
                    sleep(PAUSE_MAX).await;
                    continue;
                }
                // The core hears soon if the worker died; if it did not, its data is no good.
                Err(Trouble::Unreachable) => {
                    let since = match unreachable {
                        Some((before, since)) if before == worker => since,
                        _ => Instant::now(),
                    };
                    unreachable = Some((worker, since));
                    if since.elapsed() < UNREACHABLE_TIME_MAX {
                        sleep(PAUSE_MAX).await;
                        continue;
                    }
                    self.report_missing(worker, vec![task]).await;
                }
                Err(Trouble::Broken) => sleep(PAUSE_MAX).await,
            }
            attempts += 1;
        }
        let error = Diagnostic::new(
            Code::ResultUnavailable,
            format!("the result of task `{task}` is not available"),
        );
        let fault = Some(wire::Fault::from(error));
        let task = Some(task.into());
        self.send(wire::FetchChunk {
            task,
            fault,
            ..wire::FetchChunk::default()
        })
        .await
    }

    /// Where the result is; `None` if it is gone or does not come in time.
    async fn locate(&self, task: TaskRef) -> Result<Option<Found>, Over> {
        let deadline = Instant::now() + RECOMPUTE_TIME_MAX;
        let mut pause = PAUSE_MIN;
        loop {
            match self.ask(vec![task]).await?.pop() {
                Some(Whereabouts::Held {
                    worker,
                    address,
                    is_suspect,
                    ..
                }) => {
                    return Ok(Some(Found {
                        worker,
                        address,
                        is_suspect,
                    }));
                }
                Some(Whereabouts::Pending) if Instant::now() < deadline => {}
                _ => return Ok(None),
            }
            tokio::select! {
                () = self.chunks.closed() => return Err(Over),
                () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// One result, part by part.
    async fn stream(&self, task: TaskRef, address: &str) -> Result<(), Trouble> {
        let (parts, mut received) = mpsc::channel(CHUNKS_WAITING_MAX);
        let read = self
            .shared
            .bulk
            .fetch_parts(address, vec![bulk_key(task)], parts);
        let forward = async move {
            let mut ended = Err(Trouble::Unreachable);
            while let Some(part) = received.recv().await {
                ended = match part {
                    BulkPart::Whole { .. } | BulkPart::End { .. } => Ok(()),
                    BulkPart::Missing { .. } => Err(Trouble::Missing),
                    BulkPart::Start { .. } | BulkPart::Data(_) => Err(Trouble::Broken),
                };
                self.forward(task, part).await?;
            }
            ended
        };
        let (read, forwarded) = tokio::join!(read, forward);
        if let Err(error) = read {
            tracing::debug!(%task, %error, "a result cannot be read");
        }
        forwarded
    }

    async fn forward(&self, task: TaskRef, part: BulkPart) -> Result<(), Trouble> {
        let id = Some(wire::TaskId::from(task));
        let mut chunk = wire::FetchChunk::default();
        match part {
            BulkPart::Missing { .. } => return Ok(()),
            BulkPart::Whole { kind, data, .. } => {
                self.shared.metrics.count_relayed(data.len());
                chunk.small.push(wire::SmallResult {
                    task: id,
                    kind: u32::from(kind),
                    data,
                });
            }
            BulkPart::Start { kind, bytes, .. } => {
                chunk.task = id;
                chunk.is_start = true;
                chunk.kind = u32::from(kind);
                chunk.total_bytes = bytes;
            }
            BulkPart::Data(data) => {
                self.shared.metrics.count_relayed(data.len());
                chunk.data = data;
            }
            BulkPart::End { .. } => chunk.is_end = true,
        }
        match timeout(CLIENT_PATIENCE, self.chunks.send(Ok(chunk))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Trouble::Over),
            Err(_) => Err(Trouble::Stalled),
        }
    }

    async fn report_missing(&self, worker: WorkerId, tasks: Vec<TaskRef>) {
        if !tasks.is_empty() {
            let missing = Event::CopiesMissing { worker, tasks };
            self.shared.inputs.events(vec![missing]).await;
        }
    }

    async fn ask(&self, tasks: Vec<TaskRef>) -> Result<Vec<Whereabouts>, Over> {
        let question = |reply| Question::Whereabouts(tasks, reply);
        self.shared.inputs.ask(question).await.map_err(|_| Over)
    }

    async fn send(&self, chunk: wire::FetchChunk) -> Result<(), Over> {
        self.chunks.send(Ok(chunk)).await.map_err(|_| Over)
    }
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        0 | 1 => parts.pop().unwrap_or_default(),
        _ => Bytes::from(parts.concat()),
    }
}
