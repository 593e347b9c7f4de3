//! Who is told of backlog and workers whenever they change.
//!
//! Owns the listeners and the rule when they are told: at once when something changed, at most each
//! [`PAUSE`], and after [`SILENCE_MAX`] when nothing did. A listener that reads slowly misses what lies between, not the
//! newest. Without listeners nothing is computed; looking costs the loop at most one part in
//! [`COST_SHARE`] of its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use oxidask_comm::Credentials;
use oxidask_core::{GraphSummary, Timestamp};
use oxidask_proto::wire;
use tokio::sync::watch;
use tonic::Status;

use crate::grpc::{Shared, shutting_down};
use crate::look::TARGET_SECONDS;
use crate::main_loop::MainLoop;
use crate::views;

/// Time between two messages to a listener.
const PAUSE: Duration = Duration::from_millis(100);

/// A look that took a millisecond is not repeated for so many.
const COST_SHARE: u32 = 20;

/// A listener hears something at least so often: silence means that something is wrong.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Listeners at a time: operators and scalers, not users.
const LISTENERS_MAX: usize = 64;

/// Seconds of work for a worker that may be asked for.
const TARGET_SECONDS_MAX: u64 = 24 * 3_600;

type Told = Option<Arc<wire::TelemetryReply>>;

struct Listener {
    target_seconds: u64,
    /// When it was told something.
    told_at: Instant,
    sender: watch::Sender<Told>,
}

/// All who listen.
#[derive(Default)]
pub(crate) struct Listeners {
    all: Vec<Listener>,
    has_changed: bool,
    /// Not to look again before.
    next_look: Option<Instant>,
}

impl Listeners {
    /// Whether it is time to look, given whether something happened in this round.
    pub(crate) fn is_due(&mut self, has_changed: bool) -> bool {
        if self.all.is_empty() {
            return false;
        }
        let is_long_ago = |listener: &Listener| listener.told_at.elapsed() >= SILENCE_MAX;
        self.has_changed |= has_changed || self.all.iter().any(is_long_ago);
        self.has_changed && self.next_look.is_none_or(|next| Instant::now() >= next)
    }

    /// How many listen.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

impl MainLoop {
    /// Tells each listener for whom something is new.
    pub(crate) fn tell_listeners(&mut self) {
        let began = Instant::now();
        let mut all = std::mem::take(&mut self.watch.listeners.all);
        all.retain(|listener| !listener.sender.is_closed());
        let mut replies: Vec<(u64, Arc<wire::TelemetryReply>)> = Vec::new();
        let mut was_told = false;
        for listener in &mut all {
            let target = listener.target_seconds;
            let known = replies.iter().find(|(seconds, _)| *seconds == target);
            let reply = known.map(|(_, reply)| Arc::clone(reply));
            let reply = reply.unwrap_or_else(|| {
                let reply = Arc::new(self.telemetry(target));
                replies.push((target, Arc::clone(&reply)));
                reply
            });
            let is_silent = listener.told_at.elapsed() >= SILENCE_MAX;
            let is_told = listener.sender.send_if_modified(|told| {
                let is_new = told.as_ref().is_none_or(|told| differ(told, &reply));
                if is_new || is_silent {
                    *told = Some(reply);
                }
                is_new || is_silent
            });
            if is_told {
                listener.told_at = Instant::now();
            }
            was_told |= is_told;
        }
        let listeners = &mut self.watch.listeners;
        listeners.all = all;
        listeners.has_changed = false;
        let cost = began.elapsed() * COST_SHARE;
        let pause = if was_told { PAUSE.max(cost) } else { cost };
        listeners.next_look = Some(began + pause);
    }

    fn listen(&mut self, target_seconds: u64) -> Option<watch::Receiver<Told>> {
        let listeners = &mut self.watch.listeners;
        listeners
            .all
            .retain(|listener| !listener.sender.is_closed());
        if listeners.all.len() >= LISTENERS_MAX {
            return None;
        }
        let reply = Some(Arc::new(self.telemetry(target_seconds)));
        let (sender, receiver) = watch::channel(reply);
        self.watch.listeners.all.push(Listener {
            target_seconds,
            told_at: Instant::now(),
            sender,
        });
        Some(receiver)
    }

    /// Backlog and workers at this moment.
    pub(crate) fn telemetry(&self, target_seconds: u64) -> wire::TelemetryReply {
        let cluster = self.core.cluster();
        let backlog = self.core.backlog(target_seconds);
        let now = self.now();
        let graphs = self.core.graphs();
        let open = graphs.iter().filter(|graph| is_open(graph)).count();
        let groups = backlog.groups.into_iter();
        wire::TelemetryReply {
            ready: cluster.ready,
            running: cluster.running,
            parked: cluster.parked,
            backlog_micros: cluster.backlog_micros,
            workers: self.worker_statuses(),
            groups: groups.map(|group| views::group(group, now)).collect(),
            unplaceable: backlog.unplaceable.into_iter().map(views::class).collect(),
            graphs: u32::try_from(open).unwrap_or(u32::MAX),
            clients: u32::try_from(self.sessions()).unwrap_or(u32::MAX),
            idle_ms: views::milliseconds(self.unneeded_for()),
            incarnation: self.hello.incarnation,
            epoch: self.hello.epoch,
            loaded: self.watch.credentials.as_ref().map(Credentials::loaded),
        }
    }
}

fn is_open(graph: &GraphSummary) -> bool {
    !graph.is_done
}

/// Whether there is news. Time that passes is none, nor is memory that breathes: both are sent along
/// with what is.
fn differ(old: &wire::TelemetryReply, new: &wire::TelemetryReply) -> bool {
    settled(old) != settled(new)
}

fn settled(reply: &wire::TelemetryReply) -> wire::TelemetryReply {
    let mut reply = reply.clone();
    // Only whether it is idle.
    reply.idle_ms = 0;
    for worker in &mut reply.workers {
        worker.idle_ms = u64::from(worker.idle_ms > 0);
        worker.silent_ms = 0;
        worker.resident_bytes = 0;
    }
    for group in &mut reply.groups {
        group.idle_ms = u64::from(group.idle_ms > 0);
    }
    reply
}

/// Milliseconds since then; at least 1, because 0 means that it is not so.
pub(crate) fn since_ms(since: Option<Timestamp>, now: Timestamp) -> u64 {
    since.map_or(0, |since| (now.0.saturating_sub(since.0) / 1_000).max(1))
}

/// A stream that begins with how it is and goes on with each change.
pub(crate) async fn open(
    shared: &Shared,
    target_seconds: u64,
) -> Result<impl Stream<Item = Result<Arc<wire::TelemetryReply>, Status>> + Send + use<>, Status> {
    let target = match target_seconds {
        0 => TARGET_SECONDS,
        seconds => seconds.min(TARGET_SECONDS_MAX),
    };
    let listening = shared
        .inputs
        .look(move |main_loop| main_loop.listen(target));
    let Some(mut receiver) = listening.await? else {
        let message = format!("`{LISTENERS_MAX}` listen to telemetry already");
        return Err(Status::resource_exhausted(message));
    };
    receiver.mark_changed();
    let shutdown = shared.shutdown.clone();
    Ok(futures::stream::unfold(
        Some((receiver, shutdown)),
        |state| async move {
            let (mut receiver, shutdown) = state?;
            loop {
                let changed = tokio::select! {
                    () = shutdown.cancelled() => return Some((Err(shutting_down()), None)),
                    changed = receiver.changed() => changed,
                };
                if changed.is_err() {
                    return Some((Err(shutting_down()), None));
                }
                let told = receiver.borrow_and_update().clone();
                if let Some(told) = told {
                    return Some((Ok(told), Some((receiver, shutdown))));
                }
            }
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> wire::TelemetryReply {
        wire::TelemetryReply {
            workers: vec![wire::WorkerStatus {
                name: "default-0".to_owned(),
                idle_ms: 5,
                silent_ms: 100,
                resident_bytes: 7,
                ..Default::default()
            }],
            groups: vec![wire::GroupBacklog::default()],
            ..Default::default()
        }
    }

    #[test]
    fn time_that_passes_is_no_news_and_everything_else_is() {
        let old = reply();
        let mut new = reply();
        new.idle_ms = 10;
        new.workers[0].idle_ms = 9;
        new.workers[0].silent_ms = 1;
        new.workers[0].resident_bytes = 8;
        assert!(!differ(&old, &new));
        new.workers[0].idle_ms = 0;
        assert!(differ(&old, &new), "it has something to do");
        let mut new = reply();
        new.workers[0].standing = wire::Standing::Empty.into();
        assert!(differ(&old, &new));
        let mut new = reply();
        new.groups[0].workers_wanted = 1;
        assert!(differ(&old, &new));
    }

    #[test]
    fn without_listeners_nothing_is_due() {
        let mut listeners = Listeners::default();
        assert!(!listeners.is_due(true));
        let (sender, _receiver) = watch::channel(None);
        listeners.all.push(Listener {
            target_seconds: 5,
            told_at: Instant::now(),
            sender,
        });
        assert!(!listeners.is_due(false), "nothing happened");
        assert!(listeners.is_due(true));
        listeners.next_look = Some(Instant::now() + Duration::from_mins(1));
        assert!(!listeners.is_due(true), "too early");
        let mut listeners = Listeners {
            all: listeners.all,
            ..Listeners::default()
        };
        listeners.all[0].told_at -= SILENCE_MAX;
        assert!(listeners.is_due(false), "silent for too long");
    }
}
