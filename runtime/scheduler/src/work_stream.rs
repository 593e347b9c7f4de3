//! One worker's stream: hello, reports, heartbeats, what it has, end.
//!
//! Decodes on its own task and hands batches of what was said to the main loop. Never decides
//! anything about tasks or about the worker. Watches over silence: a worker that says nothing for
//! [`BEAT_TIME_MAX`] is said to be silent, whether its connection is broken or half open; the loop
//! is told when it speaks again, and when the stream is over.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use oxidask_core::{Digest, Event, Inventory, TaskRef, WorkerId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::fault::{error_to_status, to_status};
use oxidask_proto::{ProtoError, hello, ids, inventory, report, wire};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::dial;
use crate::grpc::{Cut, HELLO_TIME_MAX, Shared, shutting_down};
use crate::input::{Arrival, Input, Said};
use crate::notice;
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};
use crate::values::ReportedValues;
use crate::vitals::Vitals;

/// Workers send a heartbeat a second.
const BEAT_TIME_MAX: Duration = Duration::from_millis(2_500);

/// Time in which what has come already is read, if it was this process that was held up.
const CATCH_UP_TIME: Duration = Duration::from_millis(100);

/// A stream that says nothing for this long is over.
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
    let stream = shared.next_number();
    let worker = Worker {
        stream,
        number: WorkerId(stream),
        name: Arc::from(""),
        address: Arc::from(""),
        shared,
        outbox: Arc::clone(&outbox),
        vitals: Arc::default(),
        inventory: Inventory::default(),
        is_silent: false,
    };
    tokio::spawn(worker.run(cut, inbound));
    outbox
}

struct Worker {
    stream: u32,
    /// As which worker it speaks.
    number: WorkerId,
    name: Arc<str>,
    /// Its data plane.
    address: Arc<str>,
    shared: Arc<Shared>,
    outbox: Arc<WorkerOutbox>,
    vitals: Arc<Vitals>,
    /// What has come of it.
    inventory: Inventory,
    is_silent: bool,
}

/// Why the stream is over.
enum Ending {
    /// The worker ended it.
    Clean,
    /// It broke.
    Lost(&'static str),
    /// It said what it must not.
    Nonsense(ProtoError),
    /// We stop.
    Shutdown,
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
        let said = match self.read(first, &mut inbound).await {
            // Workers that we leave are not lost.
            Ending::Shutdown => {
                self.outbox.finish(Err(shutting_down()));
                return;
            }
            Ending::Clean => Said::Broken {
                reason: "connection closed",
                is_clean: true,
            },
            Ending::Lost(reason) => Said::Broken {
                reason,
                is_clean: false,
            },
            Ending::Nonsense(error) => {
                self.outbox.finish(Err(error_to_status(&error)));
                let reason = error.to_string();
                Said::Nonsense { reason }
            }
        };
        let was_closed = self.outbox.is_finished();
        self.say(vec![said]).await;
        self.outbox.finish(Ok(()));
        if was_closed {
            cut.after_farewell().await;
        } else {
            self.look_after();
        }
    }

    /// The rest of the first batch, once the worker is known to the loop.
    async fn join(
        &mut self,
        inbound: &mut Streaming<wire::WorkerBatch>,
    ) -> Result<wire::WorkerBatch, Status> {
        let mut first = match timeout(HELLO_TIME_MAX, inbound.message()).await {
            Ok(first) => first?.unwrap_or_default(),
            Err(_) => return Err(Status::deadline_exceeded("no hello came in time")),
        };
        let worker = first.hello.take().ok_or_else(|| {
            error_to_status(&ProtoError::FieldMissing {
                message: "WorkerBatch",
                field: "hello",
            })
        })?;
        hello::check(worker.hello.clone()).map_err(|error| error_to_status(&error))?;
        check_names(&worker)?;
        self.name = Arc::from(worker.name.as_str());
        self.address = Arc::from(worker.data_address.as_str());
        self.vitals.heard();
        let (admitted, answer) = oneshot::channel();
        let arrival = Arrival {
            number: self.stream,
            hello: worker,
            vitals: Arc::clone(&self.vitals),
            outbox: Arc::clone(&self.outbox),
            admitted,
        };
        let arrived = Input::WorkerArrived(Box::new(arrival));
        self.shared.inputs.send(arrived).await;
        self.number = answer.await.map_err(|_| shutting_down())?;
        Ok(first)
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
            match self.understand(next) {
                Ok(said) => {
                    if !self.say(said).await {
                        return Ending::Shutdown;
                    }
                }
                Err(error) => return Ending::Nonsense(error),
            }
            next = tokio::select! {
                biased;
                () = &mut closed => return self.closed_by_us(),
                received = self.next(inbound) => match received {
                    Ok(batch) => batch,
                    Err(ending) => return ending,
                },
            };
        }
    }

    /// The next message, however long it takes.
    async fn next(
        &mut self,
        inbound: &mut Streaming<wire::WorkerBatch>,
    ) -> Result<wire::WorkerBatch, Ending> {
        loop {
            let patience = if self.is_silent {
                SILENCE_TIME_MAX
            } else {
                BEAT_TIME_MAX
            };
            let received = match timeout(patience, inbound.message()).await {
                Err(_) => timeout(CATCH_UP_TIME, inbound.message()).await,
                received => received,
            };
            match received {
                Ok(Ok(Some(batch))) => return Ok(batch),
                Ok(Ok(None)) => return Err(Ending::Clean),
                Ok(Err(status)) => return Err(Ending::Lost(notice::stream_ended(&status))),
                Err(_) if self.is_silent => return Err(Ending::Lost("silent for too long")),
                Err(_) => {
                    self.is_silent = true;
                    self.say(vec![Said::Silent]).await;
                    self.look_after();
                }
            }
        }
    }

    fn closed_by_us(&self) -> Ending {
        if self.shared.shutdown.is_cancelled() {
            Ending::Shutdown
        } else if self.outbox.is_overflown() {
            Ending::Lost("it did not read its orders")
        } else {
            // Its response stream was dropped, or the loop has ended it.
            Ending::Lost("connection closed")
        }
    }

    async fn say(&self, said: Vec<Said>) -> bool {
        let inputs = &self.shared.inputs;
        inputs.said(self.number, self.stream, said).await
    }

    /// Finds out whether the worker's process is dead.
    fn look_after(&self) {
        let shared = Arc::clone(&self.shared);
        let address = Arc::clone(&self.address);
        tokio::spawn(dial::look_after(shared, self.number, address));
    }

    fn understand(&mut self, mut batch: wire::WorkerBatch) -> Result<Vec<Said>, ProtoError> {
        let worker = self.number;
        self.vitals.heard();
        let mut said = Vec::new();
        if std::mem::take(&mut self.is_silent) {
            said.push(Said::Heard);
        }
        // Copies first: a task that reports its end may be the last reader of a copy.
        if !batch.copies_added.is_empty() {
            let tasks = ids::tasks(std::mem::take(&mut batch.copies_added));
            said.push(Said::Event(Event::CopiesAdded { worker, tasks }));
        }
        if !batch.reports.is_empty() {
            let values = ReportedValues::of(&mut batch);
            let reports = report::batch_from_wire(std::mem::take(&mut batch.reports))?;
            said.push(Said::Reported(
                Event::TaskReported { worker, reports },
                values,
            ));
        }
        let mut happened = |event| said.push(Said::Event(event));
        if !batch.copies_missing.is_empty() {
            let mut missing: BTreeMap<WorkerId, Vec<TaskRef>> = BTreeMap::new();
            for (task, holder) in ids::copies_missing(batch.copies_missing)? {
                missing.entry(holder).or_default().push(task);
            }
            for (worker, tasks) in missing {
                happened(Event::CopiesMissing { worker, tasks });
            }
        }
        if !batch.copies_failed.is_empty() {
            let tasks = ids::tasks(batch.copies_failed);
            happened(Event::CopiesFailed { worker, tasks });
        }
        if let Some(is_paused) = batch.is_paused {
            happened(Event::WorkerPaused { worker, is_paused });
        }
        if !batch.command_results.is_empty() {
            said.push(Said::CommandResults(batch.command_results));
        }
        if let Some(part) = batch.inventory
            && let Some(inventory) = self.gather(part)?
        {
            said.push(Said::Inventory(Box::new(inventory)));
        }
        if let Some(milliseconds) = batch.leaving_ms {
            let deadline_micros = milliseconds.saturating_mul(1_000);
            said.push(Said::Leaving { deadline_micros });
        }
        if !batch.log_lines.is_empty() || batch.log_lines_dropped > 0 {
            let count = batch.log_lines.len() as u64;
            let metrics = &self.shared.metrics;
            metrics.count_log_lines(count, batch.log_lines_dropped);
            let logs = &self.shared.logs;
            logs.take(&self.name, batch.log_lines, batch.log_lines_dropped);
        }
        if let Some(heartbeat) = &batch.heartbeat {
            self.vitals.note(heartbeat);
            said.push(Said::Beat(Digest {
                sum: heartbeat.digest,
                count: heartbeat.digest_count,
            }));
        }
        Ok(said)
    }

    /// Appends a part of an inventory; all of it after the last one.
    fn gather(&mut self, part: wire::Inventory) -> Result<Option<Inventory>, ProtoError> {
        let is_last = part.is_last;
        inventory::append(&mut self.inventory, part)?;
        Ok(is_last.then(|| std::mem::take(&mut self.inventory)))
    }
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
