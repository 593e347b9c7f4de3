//! The loop that owns the machine.
//!
//! Takes in orders, ends of runs and answers of peers, lets the machine decide, carries out what it
//! wants. Tiny tasks run right here. Whatever has to be told is sent as soon as the message before
//! was taken; no timer is involved.
//!
//! Invariant: between two looks at the outside it runs tasks for no longer than
//! [`AT_ONCE_MILLIS_MAX`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxidask_core::{Attempt, TaskReport, WorkerId};
use oxidask_diagnostic::Diagnostic;
use oxidask_exec::TaskError;
use oxidask_proto::{fault, wire};
use oxidask_store::{Gone, IdMap, PressureWatch, ResultKey, Store, StoreError};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::consumed::Freer;
use crate::copies::AwaitedCopies;
use crate::error::{Reported, WorkerError};
use crate::fetch::{Fetched, Fetcher};
use crate::inputs::Trouble;
use crate::machine::{
    Assignment, Effect, Event, Finished, Machine, Refusal, RunFailure, RunId, RunOutcome,
};
use crate::metrics::{Metrics, signed};
use crate::orders;
use crate::outbox::Outbox;
use crate::pieces::Peers;
use crate::registration::Session;
use crate::run::{Ended, Runner};
use crate::streams::StreamsEnd;

/// How long tasks run on the loop before reports are sent and orders are read.
const AT_ONCE_MILLIS_MAX: u64 = 2;
/// Ends of runs that are taken in at once.
const ENDS_AT_ONCE_MAX: usize = 256;
const HEARTBEAT_MILLIS: u64 = 1_000;
/// What is fetched may fill the memory up to this share of it: above it, no runs start.
const FETCH_PERMILLE_MAX: u64 = oxidask_store::PAUSE_PERMILLE;

/// The state of the loop.
pub(crate) struct EventLoop {
    machine: Machine,
    /// What the machine wants, not yet carried out.
    effects: Vec<Effect>,
    /// Runs that ended on the loop itself.
    ended_here: VecDeque<Ended>,
    /// Attempts of runs beside the loop, whose start may not have been told.
    beside: IdMap<RunId, (ResultKey, Attempt)>,
    /// Whether the machine has more to do than fitted into one turn.
    has_more: bool,
    retirement: Retirement,
    outbox: Outbox,
    runner: Runner,
    fetcher: Fetcher,
    freer: Freer,
    peers: Arc<Peers>,
    store: Arc<Store>,
    pressure: PressureWatch,
    /// Copies that attempts wait for.
    awaited: AwaitedCopies,
    /// Whether it has been told that the disk is full.
    is_disk_full: bool,
    metrics: Arc<Metrics>,
    orders: Streaming<wire::WorkBatch>,
    messages: mpsc::Sender<wire::WorkerBatch>,
    first: Option<wire::WorkBatch>,
}

/// What a loop works with.
pub(crate) struct Parts {
    pub(crate) runner: Runner,
    pub(crate) fetcher: Fetcher,
    pub(crate) freer: Freer,
    pub(crate) peers: Arc<Peers>,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Whether the worker is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retirement {
    NotAsked,
    Asked,
    /// The scheduler knows that nothing is held here any more.
    Told,
}

/// What comes from outside.
enum Happening {
    Shutdown,
    Room,
    SchedulerDeaf,
    Ended(Ended),
    Fetched(Fetched),
    Orders(Result<Option<wire::WorkBatch>, Status>),
    /// The memory has become tight, or wide again, or results have gone.
    Pressure,
    Beat,
    More,
}

impl EventLoop {
    /// How long the loop takes to end at most.
    pub(crate) const END_MAX: Duration = Duration::from_millis(600);

    pub(crate) fn new(session: Session, slots: u32, parts: Parts) -> Self {
        let Parts {
            runner,
            fetcher,
            freer,
            peers,
            store,
            metrics,
        } = parts;
        let Session {
            own,
            orders,
            messages,
            first,
        } = session;
        Self {
            machine: Machine::new(own, slots),
            effects: Vec::new(),
            ended_here: VecDeque::new(),
            beside: IdMap::default(),
            has_more: false,
            retirement: Retirement::NotAsked,
            outbox: Outbox::default(),
            runner,
            fetcher,
            freer,
            peers,
            pressure: store.watch_pressure(),
            awaited: AwaitedCopies::new(Arc::clone(&store)),
            is_disk_full: false,
            store,
            metrics,
            orders,
            messages,
            first: Some(first),
        }
    }

    /// Works until `stop`, or until the stream to the scheduler ends.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), WorkerError> {
        let outcome = self.work(&stop).await;
        self.runner.end().await;
        outcome
    }

    async fn work(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MILLIS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Some(first) = self.first.take() {
            self.take_orders(first)?;
        }
        loop {
            self.settle();
            if !self.outbox.is_empty()
                && let Ok(room) = self.messages.try_reserve()
            {
                room.send(self.outbox.take());
            }
            let happening = tokio::select! {
                () = stop.cancelled() => Happening::Shutdown,
                room = self.messages.reserve(), if !self.outbox.is_empty() => match room {
                    Ok(room) => {
                        room.send(self.outbox.take());
                        Happening::Room
                    }
                    Err(_) => Happening::SchedulerDeaf,
                },
                ended = self.runner.next_ended() => Happening::Ended(ended),
                fetched = self.fetcher.next_fetched() => Happening::Fetched(fetched),
                batch = self.orders.message(), if !self.outbox.is_full() => {
                    Happening::Orders(batch)
                }
                () = self.pressure.changed() => Happening::Pressure,
                _ = heartbeat.tick() => Happening::Beat,
                () = yield_now(), if self.has_more => Happening::More,
            };
            match happening {
                Happening::Shutdown => return Ok(()),
                Happening::Room | Happening::More => {}
                Happening::SchedulerDeaf => return Err(self.last_words().await),
                Happening::Ended(ended) => self.take_ends(ended),
                Happening::Fetched(fetched) => self.take_fetched(fetched),
                Happening::Orders(batch) => self.take_orders(received(batch)?)?,
                Happening::Pressure => self.take_gone(),
                Happening::Beat => {
                    self.awaited.sweep(|| self.machine.awaited());
                    self.beat();
                }
            }
        }
    }

    /// The sending half of the stream is gone; the receiving half knows why.
    async fn last_words(&mut self) -> WorkerError {
        match received(self.orders.message().await) {
            Err(error) => error,
            Ok(_) => WorkerError::SchedulerGone { source: None },
        }
    }

    fn take_orders(&mut self, batch: wire::WorkBatch) -> Result<(), WorkerError> {
        if let Some(fault) = batch.refused {
            return Err(WorkerError::SchedulerGone {
                source: Some(Reported(Box::new(fault.into()))),
            });
        }
        for peer in batch.peers {
            let (id, address) = (WorkerId(peer.worker), peer.data_address);
            if address.is_empty() {
                self.peers.remove(id);
                self.machine
                    .react(Event::PeerGone { peer: id }, &mut self.effects);
            } else {
                self.peers.add(id, &address);
                self.machine
                    .react(Event::PeerAdded { peer: id }, &mut self.effects);
            }
        }
        for body in batch.bodies {
            self.runner
                .programs
                .add(body.graph, body.body, &body.content);
        }
        for order in batch.orders {
            let mut event = orders::event(order)?;
            if let Event::Assigned(assignment) = &mut event {
                self.leave_out_unread_inputs(assignment);
                for input in &assignment.inputs {
                    if self.machine.is_copy(input.key) {
                        self.awaited.keep(input.key);
                    }
                }
            }
            self.machine.react(event, &mut self.effects);
        }
        for graph in batch.graphs_forgotten {
            self.machine
                .react(Event::GraphForgotten { graph }, &mut self.effects);
        }
        if batch.retire && self.retirement == Retirement::NotAsked {
            self.retirement = Retirement::Asked;
        }
        Ok(())
    }

    /// Inputs that only give order have done so when the task is assigned: nobody fetches them. A
    /// body that cannot be understood shows when the task runs.
    fn leave_out_unread_inputs(&mut self, assignment: &mut Assignment) {
        if assignment.inputs.is_empty() {
            return;
        }
        let graph = assignment.task.graph();
        if let Ok(program) = self.runner.programs.get(graph, &assignment.body)
            && !program.reads_inputs()
        {
            assignment.inputs.clear();
        }
    }

    fn take_ends(&mut self, first: Ended) {
        let mut next = Some(first);
        for _ in 0..ENDS_AT_ONCE_MAX {
            let Some(ended) = next else { return };
            self.beside.remove(&ended.run);
            self.finish(ended);
            next = self.runner.try_next_ended();
        }
        // The one that is in hand must not get lost.
        if let Some(ended) = next {
            self.beside.remove(&ended.run);
            self.finish(ended);
        }
    }

    fn take_fetched(&mut self, fetched: Fetched) {
        let Fetched { request, delivery } = fetched;
        let Some(delivery) = delivery else {
            self.machine
                .react(Event::FetchFailed { request }, &mut self.effects);
            return;
        };
        let (mut kept, mut missing, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (key, payload) in delivery {
            let Some(payload) = payload else {
                missing.push(key);
                continue;
            };
            self.metrics.fetched_bytes.inc_by(payload.len());
            if !self.machine.wants_copy(key) {
                continue;
            }
            match self.store.insert_pinned_copy(key, payload) {
                Ok(pins) => {
                    self.awaited.add(key, pins);
                    kept.push(key);
                }
                Err(error) => {
                    let is_retryable = error.may_fit_later();
                    let error = Arc::new(Diagnostic::from_error(&error));
                    refused.push(Refusal {
                        key,
                        failure: RunFailure {
                            error,
                            is_retryable,
                        },
                    });
                }
            }
        }
        let event = Event::FetchDone {
            request,
            kept,
            missing,
            refused,
        };
        self.machine.react(event, &mut self.effects);
    }

    /// Lets the machine decide and carries it out, until nothing is left or the turn is over.
    fn settle(&mut self) {
        let start = Instant::now();
        self.has_more = false;
        loop {
            self.tell_pressure();
            self.machine.advance(&mut self.effects);
            if self.effects.is_empty() {
                break;
            }
            self.carry_out();
            while let Some(ended) = self.ended_here.pop_front() {
                self.finish(ended);
            }
            if start.elapsed() >= Duration::from_millis(AT_ONCE_MILLIS_MAX) {
                // Ends have made effects that are not runs: reports must not wait.
                self.carry_out();
                self.has_more = true;
                break;
            }
        }
        self.metrics
            .tasks_running
            .set(signed(self.machine.running()));
        self.metrics.tasks_queued.set(signed(self.machine.queued()));
        let is_drained = self.retirement == Retirement::Asked
            && self.machine.is_idle()
            && self.store.held().results == 0;
        if is_drained {
            self.retirement = Retirement::Told;
            self.outbox.drained();
        }
    }

    /// How much room there is decides what starts and what is fetched.
    fn tell_pressure(&mut self) {
        let pressure = self.store.pressure();
        let usable = u128::from(pressure.limit_bytes) * u128::from(FETCH_PERMILLE_MAX) / 1_000;
        let usable = u64::try_from(usable).unwrap_or(u64::MAX);
        let event = Event::PressureChanged {
            is_paused: pressure.is_paused,
            // Paused although no run has memory: then the store is making room.
            is_easing: pressure.is_spilling || pressure.runs == 0,
            free_bytes: usable.saturating_sub(pressure.memory_bytes),
        };
        self.machine.react(event, &mut self.effects);
    }

    /// Results that are not here any more although nobody released them.
    fn take_gone(&mut self) {
        self.awaited.sweep(|| self.machine.awaited());
        for Gone { key, reason } in self.store.take_gone() {
            self.awaited.forget(key);
            // It may have come again in the meantime.
            if !self.store.contains(key) {
                tracing::debug!(%key, ?reason, "a result has gone");
                self.machine
                    .react(Event::ObjectGone { key }, &mut self.effects);
            }
        }
        let is_disk_full = self.store.pressure().is_disk_full;
        if is_disk_full && !self.is_disk_full {
            let disk_bytes = self.store.held().disk_bytes;
            tracing::warn!(disk_bytes, "the disk takes no more spilled results");
        }
        self.is_disk_full = is_disk_full;
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Run(run) => {
                    let (id, task, attempt) = (run.run, run.task, run.attempt);
                    match self.runner.begin(run) {
                        Some(ended) => self.ended_here.push_back(ended),
                        None => {
                            self.beside.insert(id, (task, attempt));
                        }
                    }
                }
                Effect::Fetch {
                    request,
                    peer,
                    keys,
                } => self.fetcher.begin(request, peer, &keys),
                Effect::CancelRun { run } => {
                    self.runner.cancel(run);
                    if let Some((task, attempt)) = self.beside.get(&run) {
                        self.outbox.forget_start(*task, *attempt);
                    }
                }
                Effect::Drop { key } => {
                    self.awaited.forget(key);
                    self.store.remove(key);
                }
                Effect::DropGraph { graph } => {
                    self.awaited.forget_graph(graph);
                    self.store.remove_graph(graph);
                    self.runner.programs.forget(graph);
                }
                Effect::Report {
                    task,
                    attempt,
                    report,
                } => self.report(task, attempt, report),
                Effect::CopyAdded { key } => self.outbox.copy_added(key),
                Effect::CopyMissing { key, peer } => self.outbox.copy_missing(key, peer),
            }
        }
        // The buffer is used again; carrying out makes no effects of its own.
        self.effects = effects;
    }

    fn report(&mut self, task: ResultKey, attempt: Attempt, report: TaskReport) {
        match &report {
            TaskReport::Finished { .. } => {
                self.metrics.tasks_finished.inc();
            }
            TaskReport::Failed { .. } => {
                self.metrics.tasks_failed.inc();
            }
            _ => {}
        }
        self.outbox.report(task, attempt, report);
    }

    /// Keeps what a run has made, if anybody still wants it, and tells the machine.
    fn finish(&mut self, ended: Ended) {
        let Ended {
            run,
            task,
            key,
            outcome,
            duration_micros,
            rows,
            streams,
        } = ended;
        let StreamsEnd {
            is_lost,
            lost,
            lacking,
            consumed,
        } = streams;
        for (key, peer) in lacking {
            self.outbox.copy_missing(key, peer);
        }
        let finished = |bytes| {
            RunOutcome::Finished(Finished {
                bytes,
                duration_micros,
                rows,
            })
        };
        let outcome = match outcome {
            // Whatever it made is dropped; the machine does not look at it.
            Ok(_) if !self.machine.is_current(run) => finished(0),
            Ok(payload) => match self.store.insert_result(task, payload) {
                Ok(bytes) => {
                    self.freer.free(consumed);
                    finished(bytes)
                }
                Err(error) => RunOutcome::Failed(does_not_fit(&key, &error)),
            },
            Err(Trouble::Lost(lost)) => RunOutcome::InputsLost(lost),
            Err(Trouble::Failed(_)) if is_lost => RunOutcome::InputsLost(lost),
            Err(Trouble::Failed(TaskError {
                diagnostic,
                is_retryable,
            })) => RunOutcome::Failed(RunFailure {
                error: Arc::new(diagnostic),
                is_retryable,
            }),
        };
        self.machine
            .react(Event::RunEnded { run, outcome }, &mut self.effects);
    }

    fn beat(&mut self) {
        let held = self.store.held();
        self.outbox.beat(wire::Heartbeat {
            held_bytes: held.bytes(),
            spilled_bytes: held.disk_bytes,
            reserved_bytes: held.reserved_bytes,
            resident_bytes: resident_bytes(),
            running: self.machine.running(),
            queued: u32::try_from(self.machine.queued()).unwrap_or(u32::MAX),
        });
    }
}

fn received(
    batch: Result<Option<wire::WorkBatch>, Status>,
) -> Result<wire::WorkBatch, WorkerError> {
    match batch {
        Ok(Some(batch)) => Ok(batch),
        Ok(None) => Err(WorkerError::SchedulerGone { source: None }),
        Err(status) => {
            let source = Some(Reported(Box::new(fault::from_status(&status))));
            Err(WorkerError::SchedulerGone { source })
        }
    }
}

fn does_not_fit(key: &str, error: &StoreError) -> RunFailure {
    let mut diagnostic = Diagnostic::from_error(error);
    let cause = std::mem::take(&mut diagnostic.message);
    diagnostic.message = format!("the result of task `{key}` does not fit: {cause}");
    RunFailure {
        error: Arc::new(diagnostic),
        is_retryable: error.may_fit_later(),
    }
}

/// Memory of this process in use, 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}
