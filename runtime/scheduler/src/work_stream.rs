//! One worker's stream: hello, reports, heartbeats, end.
//!
//! Decodes on its own task and hands batches of events to the main loop. Never decides anything
//! about tasks. A worker that says nothing for [`SILENCE_TIME_MAX`], does not read, or sends
//! nonsense is gone.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use oxidask_core::{Event, TaskRef, WorkerId, WorkerLoss};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::fault::{error_to_status, to_status};
use oxidask_proto::{ProtoError, hello, ids, report, wire};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::grpc::{Cut, HELLO_TIME_MAX, Shared, shutting_down};
use crate::input::Input;
use crate::links::{Vitals, WorkerLink};
use crate::notice;
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};

/// Workers send a heartbeat a second.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of a worker's name, group, address and the like.
const NAME_BYTES_MAX: usize = 1024;

type WorkerOutbox = Outbox<wire::WorkBatch>;

/// Starts to serve a worker.
pub(crate) fn open(
    shared: Arc<Shared>,
    cut: Cut,
    inbound: Streaming<wire::WorkerBatch>,
) -> Arc<WorkerOutbox> {
    let outbox = Outbox::new(OUTBOX_BYTES_MAX, &shared.shutdown);
    let worker = Worker {
        number: WorkerId(shared.next_number()),
        shared,
        outbox: Arc::clone(&outbox),
        vitals: Arc::default(),
        is_drained: false,
    };
    tokio::spawn(worker.run(cut, inbound));
    outbox
}

struct Worker {
    number: WorkerId,
    shared: Arc<Shared>,
    outbox: Arc<WorkerOutbox>,
    vitals: Arc<Vitals>,
    is_drained: bool,
}

/// Why the stream is over.
enum Ending {
    /// The worker ended it, or it broke.
    Lost(&'static str),
    /// We end it and tell why.
    Closed(String, Status),
}

impl Worker {
    async fn run(mut self, cut: Cut, mut inbound: Streaming<wire::WorkerBatch>) {
        let first = match self.join(&mut inbound).await {
            Ok(first) => first,
            Err(status) => {
                self.outbox.finish(Err(status));
                return;
            }
        };
        let ending = self.read(first, &mut inbound).await;
        let (reason, status) = match ending {
            Ending::Lost(reason) => (reason.to_owned(), None),
            Ending::Closed(reason, status) => (reason, Some(status)),
        };
        let loss = if self.is_drained && status.is_none() {
            WorkerLoss::Retired
        } else {
            WorkerLoss::Died(reason)
        };
        let lost = Event::WorkerLost {
            worker: self.number,
            loss,
        };
        self.shared.inputs.events(vec![lost]).await;
        let was_closed = status.is_some() || self.outbox.failure().is_some();
        self.outbox.finish(status.map_or(Ok(()), Err));
        if was_closed {
            cut.after_farewell().await;
        }
    }

    /// The rest of the first batch, once the worker has joined.
    async fn join(
        &self,
        inbound: &mut Streaming<wire::WorkerBatch>,
    ) -> Result<wire::WorkerBatch, Status> {
        let mut first = match timeout(HELLO_TIME_MAX, inbound.message()).await {
            Ok(first) => first?.unwrap_or_default(),
            Err(_) => return Err(Status::deadline_exceeded("no hello came in time")),
        };
        let mut worker = first.hello.take().ok_or_else(|| {
            error_to_status(&ProtoError::FieldMissing {
                message: "WorkerBatch",
                field: "hello",
            })
        })?;
        hello::check(worker.hello.take()).map_err(|error| error_to_status(&error))?;
        check_names(&worker)?;
        let link = WorkerLink::new(worker, Arc::clone(&self.vitals), Arc::clone(&self.outbox));
        let joined = Input::WorkerJoined(self.number, Box::new(link));
        if self.shared.inputs.send(joined).await {
            Ok(first)
        } else {
            Err(shutting_down())
        }
    }

    async fn read(
        &mut self,
        first: wire::WorkerBatch,
        inbound: &mut Streaming<wire::WorkerBatch>,
    ) -> Ending {
        let outbox = Arc::clone(&self.outbox);
        let mut closed = pin!(outbox.closed().cancelled());
        let mut next = first;
        loop {
            match self.events(next) {
                Ok(events) => {
                    if !self.shared.inputs.events(events).await {
                        return Ending::Closed("scheduler ended".to_owned(), shutting_down());
                    }
                }
                Err(error) => {
                    return Ending::Closed(error.to_string(), error_to_status(&error));
                }
            }
            next = tokio::select! {
                biased;
                () = &mut closed => return self.closed_by_us(),
                received = timeout(SILENCE_TIME_MAX, inbound.message()) => match received {
                    Ok(Ok(Some(batch))) => batch,
                    Ok(Ok(None)) => return Ending::Lost("connection closed"),
                    Ok(Err(status)) => return Ending::Lost(notice::stream_ended(&status)),
                    Err(_) => return silent(),
                },
            };
        }
    }

    fn closed_by_us(&self) -> Ending {
        if self.shared.shutdown.is_cancelled() {
            return Ending::Closed("scheduler ended".to_owned(), shutting_down());
        }
        match self.outbox.failure() {
            Some(_) => Ending::Lost("it did not read its orders"),
            // Its response stream was dropped, or it was refused.
            None => Ending::Lost("connection closed"),
        }
    }

    fn events(&mut self, batch: wire::WorkerBatch) -> Result<Vec<Event>, ProtoError> {
        let worker = self.number;
        if let Some(heartbeat) = &batch.heartbeat {
            self.vitals.note(heartbeat);
        }
        self.is_drained = batch.is_drained;
        let mut events = Vec::new();
        // Copies first: a task that reports its end may be the last reader of a copy.
        if !batch.copies_added.is_empty() {
            let tasks = ids::tasks(batch.copies_added);
            events.push(Event::CopiesAdded { worker, tasks });
        }
        if !batch.reports.is_empty() {
            let reports = report::batch_from_wire(batch.reports)?;
            events.push(Event::TaskReported { worker, reports });
        }
        let mut missing: BTreeMap<WorkerId, Vec<TaskRef>> = BTreeMap::new();
        for (task, holder) in ids::copies_missing(batch.copies_missing)? {
            missing.entry(holder).or_default().push(task);
        }
        for (worker, tasks) in missing {
            events.push(Event::CopiesMissing { worker, tasks });
        }
        Ok(events)
    }
}

fn silent() -> Ending {
    let seconds = SILENCE_TIME_MAX.as_secs();
    let reason = format!("silent for {seconds} s");
    let error = Diagnostic::new(
        Code::WorkerRefused,
        format!("the scheduler heard nothing from this worker for `{seconds}` s"),
    );
    Ending::Closed(reason, to_status(&error))
}

fn check_names(worker: &wire::WorkerHello) -> Result<(), Status> {
    let texts = [
        &worker.name,
        &worker.group,
        &worker.pod_uid,
        &worker.node,
        &worker.data_address,
    ];
    let is_long = texts.iter().any(|text| text.len() > NAME_BYTES_MAX);
    if !is_long && !worker.name.is_empty() && !worker.data_address.is_empty() {
        return Ok(());
    }
    let message = if is_long {
        format!("a name or an address of the worker has more than `{NAME_BYTES_MAX}` bytes")
    } else {
        "the worker gave no name or no data address".to_owned()
    };
    Err(to_status(&Diagnostic::new(Code::WorkerRefused, message)))
}
