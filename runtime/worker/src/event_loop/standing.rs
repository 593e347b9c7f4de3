//! How the worker stands with its scheduler: there, gone, back again, left.
//!
//! A scheduler that comes back and knows the worker gets what it has missed, then the inventory. One
//! that does not know it makes it drop everything: numbers of graphs and tasks mean nothing then.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oxidask_core::{Inventory, WorkerId};
use oxidask_proto::wire;
use tokio::time::timeout;

use super::{Course, EventLoop, LAST_WORDS_MILLIS_MAX};
use crate::body::Body;
use crate::error::WorkerError;
use crate::leaving::{Leaving, Reason, Step};
use crate::link::News;
use crate::outbox::Outbox;
use crate::registration::Stream;

impl EventLoop {
    /// What has come of the link.
    pub(super) async fn take_news(&mut self, news: News) -> Result<Course, WorkerError> {
        match news {
            News::Room => Ok(Course::GoesOn),
            News::Orders(batch) => self.take_batch(*batch),
            News::Reached(stream) => self.take_stream(*stream).await,
            News::Failed(error) => self.lose_scheduler(error),
        }
    }

    fn take_batch(&mut self, batch: wire::WorkBatch) -> Result<Course, WorkerError> {
        let is_empty = batch.is_empty;
        if !batch.leaving_refused.is_empty() {
            self.take_refusal(&batch.leaving_refused);
        }
        self.take_orders(batch)?;
        if is_empty {
            tracing::info!("nothing is held here that is not elsewhere: the worker ends");
            return Ok(Course::Ends);
        }
        Ok(Course::GoesOn)
    }

    async fn take_stream(&mut self, stream: Stream) -> Result<Course, WorkerError> {
        let own = stream.met.own;
        let (first, continues) = self.link.take(stream);
        if continues {
            self.go_on();
        } else {
            self.begin_anew(own).await;
        }
        self.is_inventory_wanted = first.is_resumed;
        self.shown.is_registered.store(true, Ordering::Relaxed);
        if let Some(leaving) = &mut self.leaving {
            let step = leaving.opened(Instant::now());
            self.carry_out_step(step);
        }
        self.take_batch(first)
    }

    /// The scheduler knows what is here, or will. It has forgotten which bodies it has sent, and may
    /// have forgotten graphs without saying so.
    fn go_on(&mut self) {
        self.outbox.opened();
        let inventory = self.body.machine.inventory();
        let (running, results) = (inventory.running.len(), inventory.held.len());
        tracing::info!(running, results, "the scheduler goes on with what is here");
        let waiting = inventory.queued.iter().map(|(task, _)| task.graph.0);
        self.body.runner.programs.keep_only(&waiting.collect());
    }

    /// Everything that is here goes.
    async fn begin_anew(&mut self, own: WorkerId) {
        self.body.runner.end().await;
        self.body.commands.forget();
        self.store.clear();
        self.shown.uploads.clear();
        // What has gone by itself is nobody's concern any more.
        drop(self.store.take_gone());
        self.metrics.nothing_runs();
        self.number = self.number.wrapping_add(1);
        self.body = Body::new(own, &self.config, &self.shown, self.number);
        self.outbox = Outbox::default();
    }

    /// Runs, fetches and readers go on while another stream is looked for.
    fn lose_scheduler(&mut self, error: WorkerError) -> Result<Course, WorkerError> {
        self.shown.is_registered.store(false, Ordering::Relaxed);
        self.is_inventory_wanted = false;
        self.outbox.closed();
        let was_open = self.link.is_open();
        let tries_again = self.link.fail(error);
        let Some(leaving) = &mut self.leaving else {
            return tries_again.map(|()| Course::GoesOn);
        };
        if tries_again.is_err() {
            // It was about to end anyway.
            return Ok(Course::Ends);
        }
        if was_open {
            leaving.closed(Instant::now());
        }
        Ok(self.look_at_leaving())
    }

    /// Tells what is here, if that is awaited. Everything that has happened is in the outbox.
    pub(super) fn begin_inventory(&mut self) {
        if !self.is_inventory_wanted || !self.link.is_open() || self.outbox.has_inventory() {
            return;
        }
        self.take_gone();
        self.settle();
        let inventory = self.body.machine.inventory();
        let Inventory {
            held,
            running,
            queued,
            ..
        } = &inventory;
        let (held, running, queued) = (held.len(), running.len(), queued.len());
        tracing::debug!(held, running, queued, "inventory");
        self.is_inventory_wanted = !self.outbox.begin_inventory(inventory);
    }

    // ---- leaving ----

    /// The worker is to go.
    pub(super) fn leave(&mut self) -> Course {
        let now = Instant::now();
        let mut leaving = Leaving::new(self.ends.grace, now);
        let step = if self.link.is_open() {
            leaving.opened(now)
        } else {
            Step::Wait
        };
        tracing::info!(grace = ?self.ends.grace, "the worker hands over what only it has, and ends");
        self.leaving = Some(leaving);
        self.carry_out_step(step);
        self.look_at_leaving()
    }

    /// Whether it is time to go.
    pub(super) fn look_at_leaving(&mut self) -> Course {
        let has_nothing = self.body.has_nothing();
        let step = match &mut self.leaving {
            Some(leaving) => leaving.step(has_nothing, Instant::now()),
            None => Step::Wait,
        };
        self.carry_out_step(step)
    }

    fn carry_out_step(&mut self, step: Step) -> Course {
        match step {
            Step::Wait => Course::GoesOn,
            Step::Ask(within) => {
                let milliseconds = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                // Zero would mean no end.
                self.outbox.leaving(milliseconds.max(1));
                Course::GoesOn
            }
            Step::End(reason) => {
                self.say_why(reason);
                Course::Ends
            }
        }
    }

    fn say_why(&self, reason: Reason) {
        let (running, results) = (self.body.machine.running(), self.store.held().results);
        match reason {
            Reason::Empty => tracing::info!("the worker ends: it has nothing"),
            Reason::Alone => tracing::warn!(
                running,
                results,
                "the worker ends: there is no scheduler that could have its results copied"
            ),
            Reason::Late => tracing::warn!(
                running,
                results,
                "the worker ends: its grace period is over"
            ),
        }
    }

    fn take_refusal(&mut self, reason: &str) {
        tracing::warn!(reason, "nobody takes what this worker has");
        if let Some(leaving) = &mut self.leaving {
            leaving.refused(Instant::now());
        }
    }

    /// Says what is left to say, and closes the stream.
    pub(super) async fn end_in_order(&mut self) {
        let rest = async {
            while self.link.is_open() && !self.outbox.is_empty() {
                self.send();
                if !matches!(self.link.next(true, false).await, News::Room) {
                    return;
                }
            }
        };
        let patience = Duration::from_millis(LAST_WORDS_MILLIS_MAX);
        if timeout(patience, rest).await.is_err() {
            tracing::debug!("the last reports were not taken in time");
        }
        self.link.close().await;
        self.shown.is_registered.store(false, Ordering::Relaxed);
    }
}
