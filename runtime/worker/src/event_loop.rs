//! The loop that owns the machine.
//!
//! Takes in orders, ends of runs and answers of peers, lets the machine decide, carries out what it
//! wants. Tiny tasks run right here. Whatever somebody may wait for is told as soon as the message
//! before was taken; see `linger` for what is not.
//!
//! Invariants: between two looks at the outside it runs tasks for no longer than
//! [`AT_ONCE_MILLIS_MAX`]; it goes on without a scheduler, and only a scheduler that knows nothing
//! of this worker makes it begin anew.

mod intake;
mod linger;
mod standing;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oxidask_core::{TaskReport, WorkerId};
use oxidask_proto::wire;
use oxidask_store::{PressureWatch, Store};
use oxidask_worker_machine::{Effect, Event};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::fetch::Fetched;
use crate::http::Shown;
use crate::leaving::Leaving;
use crate::link::{Link, News};
use crate::logs::LogShipper;
use crate::memory::watch::Strain;
use crate::metrics::{Metrics, signed};
use crate::outbox::Outbox;
use crate::run::Ended;
use crate::serve::Ends;
use linger::Linger;

/// How long tasks run on the loop before reports are sent and orders are read.
const AT_ONCE_MILLIS_MAX: u64 = 2;
const HEARTBEAT_MILLIS: u64 = 1_000;
/// For so long the store must have had no room before the scheduler is told: what goes to the disk
/// in a moment is not worth moving tasks.
const SHORT_MILLIS_MIN: u64 = 300;
/// What is fetched may fill the memory up to this share of it: above it, no runs start.
const FETCH_PERMILLE_MAX: u64 = oxidask_store::PAUSE_PERMILLE;
/// How long a worker that leaves looks for room for its last message.
const LAST_WORDS_MILLIS_MAX: u64 = 100;

/// The state of the loop.
pub(crate) struct EventLoop {
    config: Arc<WorkerConfig>,
    shown: Arc<Shown>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    link: Link,
    body: Body,
    /// Number of the body.
    number: u32,
    outbox: Outbox,
    /// Whether the scheduler waits for an inventory.
    is_inventory_wanted: bool,
    /// Whether the machine has more to do than fitted into one turn.
    has_more: bool,
    pressure: PressureWatch,
    /// How the whole process stands with its memory.
    strain: watch::Receiver<Strain>,
    /// Since when the store has had no room.
    short_since: Option<Instant>,
    logs: LogShipper,
    /// Whether it has been told that the disk is full.
    is_disk_full: bool,
    ends: Ends,
    /// There once the worker wants to go.
    leaving: Option<Leaving>,
    linger: Linger,
}

/// What comes from outside.
enum Happening {
    Shutdown,
    Leave,
    LeavingAlarm,
    News(News),
    Ended(Ended),
    Fetched(Fetched),
    Commanded(wire::CommandResult),
    /// Runs have begun in their turn, given their slots to others, or have them again.
    Slots,
    /// The memory has become tight, or wide again, or results have gone.
    Pressure,
    Beat,
    More,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    GoesOn,
    Ends,
}

impl EventLoop {
    /// How long the loop takes to end at most.
    pub(crate) const END_MAX: Duration = Duration::from_secs(1);

    pub(crate) fn new(config: Arc<WorkerConfig>, shown: Arc<Shown>, ends: Ends) -> Self {
        let store = Arc::clone(&shown.store);
        Self {
            // Nobody gives orders before the worker has a number.
            body: Body::new(WorkerId(0), &config, &shown, 0),
            number: 0,
            link: Link::new(Arc::clone(&config)),
            outbox: Outbox::offline(),
            is_inventory_wanted: false,
            has_more: false,
            pressure: store.watch_pressure(),
            strain: shown.watch.strain(),
            short_since: None,
            logs: LogShipper::new(Arc::clone(&config.logbook)),
            is_disk_full: false,
            leaving: None,
            linger: Linger::default(),
            metrics: Arc::clone(&shown.metrics),
            store,
            config,
            shown,
            ends,
        }
    }

    /// Works until it is to end, or until no scheduler is to be had.
    pub(crate) async fn run(mut self) -> Result<(), WorkerError> {
        let stop = self.ends.shutdown.clone();
        let leave = self.ends.leave.clone();
        let outcome = self.work(&stop, &leave).await;
        self.body.runner.end().await;
        outcome
    }

    async fn work(
        &mut self,
        stop: &CancellationToken,
        leave: &CancellationToken,
    ) -> Result<(), WorkerError> {
        let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MILLIS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.settle();
            self.begin_inventory();
            let may_wait = self.may_wait();
            let lingers_until = self.linger.until(may_wait, Instant::now());
            if lingers_until.is_none() {
                self.send();
            }
            let wants_room = lingers_until.is_none() && !self.outbox.is_empty();
            let may_leave = self.leaving.is_none();
            let alarm = self.leaving.as_ref();
            let alarm = alarm.map(|leaving| leaving.alarm(Instant::now()));
            let slots = Arc::clone(&self.body.runner.slots);
            let happening = tokio::select! {
                () = stop.cancelled() => Happening::Shutdown,
                () = leave.cancelled(), if may_leave => Happening::Leave,
                () = at(alarm) => Happening::LeavingAlarm,
                news = self.link.next(wants_room, !self.outbox.is_full()) => {
                    Happening::News(news)
                }
                ended = self.body.runner.next_ended() => Happening::Ended(ended),
                fetched = self.body.fetcher.next_fetched() => Happening::Fetched(fetched),
                answer = self.body.commands.next_answer() => Happening::Commanded(answer),
                () = slots.changed() => Happening::Slots,
                () = self.pressure.changed() => Happening::Pressure,
                Ok(()) = self.strain.changed() => Happening::Pressure,
                _ = heartbeat.tick() => Happening::Beat,
                () = at(lingers_until) => Happening::More,
                () = yield_now(), if self.has_more => Happening::More,
            };
            let course = match happening {
                Happening::Shutdown => return Ok(()),
                Happening::News(news) => self.take_news(news).await?,
                Happening::Leave => self.leave(),
                Happening::LeavingAlarm => self.look_at_leaving(),
                inside => self.take_in(inside),
            };
            if course == Course::Ends {
                self.end_in_order().await;
                return Ok(());
            }
        }
    }

    /// What does not come from the scheduler.
    fn take_in(&mut self, happening: Happening) -> Course {
        match happening {
            Happening::Ended(ended) => self.take_ends(ended),
            Happening::Fetched(fetched) => self.take_fetched(fetched),
            Happening::Commanded(answer) => self.outbox.command_result(answer),
            Happening::Slots => self.take_slot_changes(),
            Happening::Pressure => self.take_gone(),
            Happening::Beat => {
                self.body.awaited.sweep(|| self.body.machine.awaited());
                self.shown.uploads.sweep(Instant::now());
                self.beat();
                return self.look_at_leaving();
            }
            _ => {}
        }
        Course::GoesOn
    }

    /// Lets the machine decide and carries it out, until nothing is left or the turn is over.
    fn settle(&mut self) {
        let start = Instant::now();
        self.has_more = false;
        loop {
            self.tell_pressure();
            self.body.machine.advance(&mut self.body.effects);
            if self.body.effects.is_empty() {
                break;
            }
            self.carry_out();
            while let Some(ended) = self.body.ended_here.pop_front() {
                self.finish(ended);
            }
            if start.elapsed() >= Duration::from_millis(AT_ONCE_MILLIS_MAX) {
                // Ends have made effects that are not runs: reports must not wait.
                self.carry_out();
                self.has_more = true;
                break;
            }
        }
        let machine = &self.body.machine;
        self.metrics.tasks_running.set(signed(machine.running()));
        self.metrics.tasks_queued.set(signed(machine.queued()));
    }

    /// How much room there is decides what starts and what is fetched.
    fn tell_pressure(&mut self) {
        let pressure = self.store.pressure();
        let usable = u128::from(pressure.limit_bytes) * u128::from(FETCH_PERMILLE_MAX) / 1_000;
        let usable = u64::try_from(usable).unwrap_or(u64::MAX);
        let strain = *self.strain.borrow();
        // Paused although no run has memory: then the store is making room.
        let is_easing = pressure.is_spilling || pressure.runs == 0;
        let is_short = pressure.is_paused && {
            let since = *self.short_since.get_or_insert_with(Instant::now);
            since.elapsed() >= Duration::from_millis(SHORT_MILLIS_MIN)
        };
        if !pressure.is_paused {
            self.short_since = None;
        }
        self.outbox.paused(strain.is_paused || is_short);
        // Whatever standing commands bring must be there before tasks start.
        let is_held = self.body.commands.hold_tasks();
        self.body.react(Event::PressureChanged {
            is_paused: is_held || pressure.is_paused || strain.is_paused,
            is_easing: is_held || is_easing && !strain.is_stuck,
            free_bytes: usable.saturating_sub(pressure.memory_bytes),
        });
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.body.effects);
        let body = &mut self.body;
        for effect in effects.drain(..) {
            match effect {
                Effect::Run(run) => {
                    let (id, task, attempt) = (run.run, run.task, run.attempt);
                    match body.runner.begin(run) {
                        Some(ended) => body.ended_here.push_back(ended),
                        None => {
                            body.beside.insert(id, (task, attempt));
                        }
                    }
                }
                Effect::Fetch {
                    request,
                    peer,
                    keys,
                } => body.fetcher.begin(request, peer, &keys),
                Effect::CancelRun { run } => {
                    body.runner.cancel(run);
                    if let Some((task, attempt)) = body.beside.get(&run) {
                        self.outbox.forget_start(*task, *attempt);
                    }
                }
                Effect::Drop { key } => {
                    body.awaited.forget(key);
                    self.store.remove(key);
                }
                Effect::DropGraph { graph } => {
                    body.awaited.forget_graph(graph);
                    body.values.forget_graph(graph);
                    self.store.remove_graph(graph);
                    body.runner.programs.forget(graph);
                }
                Effect::Report {
                    task,
                    attempt,
                    report,
                } => {
                    count(&self.metrics, &report);
                    let id = (task, attempt);
                    let value = body.values.reported(&self.store, id, &report);
                    self.outbox.report(task, attempt, report);
                    if let Some(value) = value {
                        self.outbox.value(id, value);
                    }
                }
                Effect::CopyAdded { key } => self.outbox.copy_added(key),
                Effect::CopyFailed { key } => self.outbox.copy_failed(key),
                Effect::CopyMissing { key, peer } => self.outbox.copy_missing(key, peer),
            }
        }
        // The buffer is used again; carrying out makes no effects of its own.
        self.body.effects = effects;
    }

    /// Whether nobody needs to know yet what is to be told. Tasks that run on the loop fill messages
    /// by themselves.
    fn may_wait(&self) -> bool {
        !self.body.beside.is_empty()
            && self.outbox.is_patient()
            && linger::has_plenty(self.body.machine.queued(), self.config.slots)
    }

    /// Sends what there is room for. The digest is made now: everything that happened before it is
    /// in this message or in an earlier one.
    fn send(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        if let Some(room) = self.link.room() {
            self.linger.sent();
            let mut message = self.outbox.take();
            if let Some(beat) = &mut message.heartbeat {
                let digest = self.body.machine.digest();
                (beat.digest, beat.digest_count) = (digest.sum, digest.count);
                self.logs.fill(&mut message);
            }
            room.send(message);
        }
    }

    fn beat(&mut self) {
        let held = self.store.held();
        let machine = &self.body.machine;
        let figures = &self.shown.watch.figures;
        self.outbox.beat(wire::Heartbeat {
            held_bytes: held.bytes(),
            spilled_bytes: held.disk_bytes,
            reserved_bytes: held.reserved_bytes,
            resident_bytes: figures.resident_bytes.load(Ordering::Relaxed),
            limit_bytes: figures.limit_bytes.load(Ordering::Relaxed),
            running: machine.running(),
            queued: u32::try_from(machine.queued()).unwrap_or(u32::MAX),
            loaded: Some(self.link.loaded()),
            ..wire::Heartbeat::default()
        });
    }
}

/// Never, if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn count(metrics: &Metrics, report: &TaskReport) {
    match report {
        TaskReport::Finished { .. } => {
            metrics.tasks_finished.inc();
        }
        TaskReport::Failed { .. } => {
            metrics.tasks_failed.inc();
        }
        _ => {}
    }
}
