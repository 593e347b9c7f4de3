//! The connection of one graph, made again whenever it breaks.
//!
//! Owns the task that reads what the scheduler says, redials, opens the graph again by its name and
//! lets everything be said again that may be lost. Never decides what is said.
//!
//! Invariants: pauses grow from [`PAUSE_FIRST`] to [`PAUSE_MAX`]; a graph is never without a
//! scheduler for longer than its client allows; a scheduler that does not know the graph any more is
//! an error, never a graph that begins anew.

use std::sync::Arc;
use std::time::Duration;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use crate::commands::Commands;
use crate::error::{ClientError, may_pass, session_ended};
use crate::events::{EventQueue, GraphEvent};
use crate::pauses::Pauses;
use crate::session::{Client, Dialled};

/// Pause before the first try to connect again.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection that lasted so long was no accident: what was before it does not count.
const SESSION_WORTH: Duration = Duration::from_secs(2);

/// How a graph's connection is.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// The scheduler hears us.
    Connected,
    /// It is being made again.
    Reconnecting,
    /// It is over.
    Over(Diagnostic),
}

/// One graph's connection.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) graph: u32,
    /// Of the scheduler that took the graph.
    pub(crate) incarnation: u64,
    pub(crate) commands: Arc<Commands>,
    pub(crate) events: Arc<EventQueue>,
    pub(crate) standing: watch::Sender<Standing>,
}

/// How long there has been no connection, and when the next try is.
pub(crate) struct Patience {
    time: Duration,
    pauses: Pauses,
    alone_since: Instant,
}

impl Patience {
    /// Begins now.
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            time,
            pauses: Pauses::new(PAUSE_FIRST, PAUSE_MAX),
            alone_since: Instant::now(),
        }
    }

    /// A connection broke that had been there since then.
    pub(crate) fn broke(&mut self, since: Instant) {
        if since.elapsed() >= SESSION_WORTH {
            self.pauses.reset();
            self.alone_since = Instant::now();
        }
    }

    /// The pause before the next try; `None` if there is none.
    pub(crate) fn next_pause(&mut self) -> Option<Duration> {
        let left = self.time.saturating_sub(self.alone_since.elapsed());
        (!left.is_zero()).then(|| self.pauses.next_pause().min(left))
    }
}

impl Link {
    /// Reads, and connects again, until the session is over for good.
    pub(crate) async fn keep(self, mut inbound: Streaming<wire::SessionBatch>) {
        let mut patience = Patience::new(self.client.reconnect_time());
        let mut since = Instant::now();
        let reason = loop {
            let why = self.read(&mut inbound).await;
            if self.commands.is_ended() {
                break None;
            }
            if !may_pass(&why) || self.client.reconnect_time().is_zero() {
                break Some(why);
            }
            patience.broke(since);
            self.standing.send_replace(Standing::Reconnecting);
            self.events
                .push_event(GraphEvent::Reconnecting(why.clone()));
            let again = tokio::select! {
                again = self.reconnect(why, &mut patience) => again,
                () = self.commands.ended() => break None,
            };
            match again {
                Ok(again) => {
                    inbound = again;
                    since = Instant::now();
                }
                Err(reason) => break Some(reason),
            }
        };
        let over = reason.clone().unwrap_or_else(|| session_ended(None));
        self.standing.send_replace(Standing::Over(over));
        self.events.end(reason);
        self.commands.end();
    }

    /// Passes on what the scheduler says; the answer is why it stopped.
    async fn read(&self, inbound: &mut Streaming<wire::SessionBatch>) -> Diagnostic {
        loop {
            self.events.space(|| self.commands.is_waiting()).await;
            match inbound.message().await {
                Ok(Some(batch)) => self.take(batch),
                Ok(None) => return session_ended(None),
                Err(status) => return session_ended(Some(&status)),
            }
        }
    }

    fn take(&self, batch: wire::SessionBatch) {
        let accepted = batch.accepted.iter();
        let ours = accepted.filter(|accepted| accepted.graph == self.graph);
        if let Some(last) = ours.map(|accepted| accepted.number).max() {
            self.commands.acknowledged(last);
        }
        self.events.push(self.graph, batch);
    }

    async fn reconnect(
        &self,
        why: Diagnostic,
        patience: &mut Patience,
    ) -> Result<Streaming<wire::SessionBatch>, Diagnostic> {
        let mut last = why;
        loop {
            let Some(pause) = patience.next_pause() else {
                return Err(gave_up(self.client.reconnect_time(), &last));
            };
            sleep(pause).await;
            match self.attach_again().await {
                Ok(inbound) => return Ok(inbound),
                Err(error) if error.may_pass() => last = error.diagnostic(),
                Err(error) => return Err(error.diagnostic()),
            }
        }
    }

    async fn attach_again(&self) -> Result<Streaming<wire::SessionBatch>, ClientError> {
        let dialled = self.client.dial(&self.name, &self.commands).await?;
        let Dialled {
            inbound,
            incarnation,
            first,
            attached,
        } = dialled;
        if incarnation != self.incarnation {
            return Err(ClientError::JournalLost {
                graph: self.name.clone(),
            });
        }
        let forgotten = || ClientError::GraphForgotten {
            graph: self.name.clone(),
        };
        if attached.graph != self.graph {
            return Err(forgotten());
        }
        self.commands
            .attached(attached.graph, attached.next_chunk)
            .map_err(|_| forgotten())?;
        self.standing.send_replace(Standing::Connected);
        self.events.push_event(GraphEvent::Reconnected);
        self.take(first);
        Ok(inbound)
    }
}

/// Why there is no next try.
pub(crate) fn gave_up(time: Duration, last: &Diagnostic) -> Diagnostic {
    let seconds = time.as_secs();
    let message = format!("the scheduler did not come back within `{seconds}` s");
    let gave_up = Diagnostic::new(Code::SchedulerUnreachable, message);
    let gave_up = gave_up.with_cause(last.message.as_str());
    last.causes
        .iter()
        .fold(gave_up, |gave_up, cause| gave_up.with_cause(cause.as_str()))
}
