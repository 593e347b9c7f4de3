//! Which objects have to be reconciled, on their way from watches and links to the controllers.
//!
//! Owns the ways, open only while this process leads, and what waits on them, since when, and
//! whether it is in a hurry. Bounded: a watch waits when a controller does not take its references,
//! which it always does unless it ends.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kube::runtime::reflector::ObjectRef;
use oxidask_operator_api::kubernetes::{DaskAutoscaler, DaskCluster, DaskJob, DaskWorkerGroup};
use tokio::sync::mpsc;

const QUEUED_MAX: usize = 1024;

/// Last turns that are remembered; then those of [`TURN_COUNTS`] ago are forgotten.
const TURNS_MAX: usize = 8192;

/// For so long a turn is remembered at least.
const TURN_COUNTS: Duration = Duration::from_secs(1);

/// An object to reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Cluster { namespace: String, name: String },
    Group { namespace: String, name: String },
    Job { namespace: String, name: String },
    Autoscaler { namespace: String, name: String },
}

impl Target {
    /// The label of metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Cluster { .. } => "DaskCluster",
            Self::Group { .. } => "DaskWorkerGroup",
            Self::Job { .. } => "DaskJob",
            Self::Autoscaler { .. } => "DaskAutoscaler",
        }
    }
}

/// The controllers' ends.
pub(crate) struct Receivers {
    pub(crate) clusters: mpsc::Receiver<ObjectRef<DaskCluster>>,
    pub(crate) groups: mpsc::Receiver<ObjectRef<DaskWorkerGroup>>,
    pub(crate) jobs: mpsc::Receiver<ObjectRef<DaskJob>>,
    pub(crate) autoscalers: mpsc::Receiver<ObjectRef<DaskAutoscaler>>,
}

#[derive(Debug, Clone)]
struct Senders {
    clusters: mpsc::Sender<ObjectRef<DaskCluster>>,
    groups: mpsc::Sender<ObjectRef<DaskWorkerGroup>>,
    jobs: mpsc::Sender<ObjectRef<DaskJob>>,
    autoscalers: mpsc::Sender<ObjectRef<DaskAutoscaler>>,
}

/// How an object waited for its reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waited {
    /// How long.
    pub(crate) time: Duration,
    /// Somebody is in a hurry: changes that may follow are not waited for.
    pub(crate) is_urgent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Instant,
    is_urgent: bool,
}

/// The watches' and links' ends.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    senders: RwLock<Option<Senders>>,
    /// Holds an object once, however often it is sent.
    waiting: Mutex<HashMap<Target, Waiting>>,
    /// When objects that were sent had their last turn. Bounded by [`TURNS_MAX`].
    turns: Mutex<HashMap<Target, Instant>>,
}

impl Queues {
    /// From now on targets are taken. Whoever opens sends every object once.
    pub(crate) fn open(&self) -> Receivers {
        let (clusters, clusters_receiver) = mpsc::channel(QUEUED_MAX);
        let (groups, groups_receiver) = mpsc::channel(QUEUED_MAX);
        let (jobs, jobs_receiver) = mpsc::channel(QUEUED_MAX);
        let (autoscalers, autoscalers_receiver) = mpsc::channel(QUEUED_MAX);
        let senders = Senders {
            clusters,
            groups,
            jobs,
            autoscalers,
        };
        *self.senders.write().unwrap_or_else(PoisonError::into_inner) = Some(senders);
        Receivers {
            clusters: clusters_receiver,
            groups: groups_receiver,
            jobs: jobs_receiver,
            autoscalers: autoscalers_receiver,
        }
    }

    /// From now on targets are dropped.
    pub(crate) fn close(&self) {
        *self.senders.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Sends targets on; drops them while closed and after the controllers have ended.
    pub(crate) async fn send(&self, targets: impl IntoIterator<Item = Target>) {
        self.send_all(targets, false).await;
    }

    /// The same for news that cannot wait for further changes, such as a new backlog.
    pub(crate) async fn hurry(&self, targets: impl IntoIterator<Item = Target>) {
        self.send_all(targets, true).await;
    }

    async fn send_all(&self, targets: impl IntoIterator<Item = Target>, is_urgent: bool) {
        let senders = {
            let senders = self.senders.read().unwrap_or_else(PoisonError::into_inner);
            senders.clone()
        };
        let Some(senders) = senders else { return };
        for target in targets {
            self.note(&target, is_urgent);
            // Fails only when the controller has ended, and then nobody needs the target.
            match target {
                Target::Cluster { namespace, name } => {
                    let object = ObjectRef::new(&name).within(&namespace);
                    let _ = senders.clusters.send(object).await;
                }
                Target::Group { namespace, name } => {
                    let object = ObjectRef::new(&name).within(&namespace);
                    let _ = senders.groups.send(object).await;
                }
                Target::Job { namespace, name } => {
                    let object = ObjectRef::new(&name).within(&namespace);
                    let _ = senders.jobs.send(object).await;
                }
                Target::Autoscaler { namespace, name } => {
                    let object = ObjectRef::new(&name).within(&namespace);
                    let _ = senders.autoscalers.send(object).await;
                }
            }
        }
    }

    fn note(&self, target: &Target, is_urgent: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = waiting.get_mut(target) {
            known.is_urgent |= is_urgent;
        } else {
            let since = Instant::now();
            waiting.insert(target.clone(), Waiting { since, is_urgent });
        }
    }

    /// An object's turn has come, or it is gone. None if only its own timer woke it.
    pub(crate) fn taken(&self, target: &Target) -> Option<Waited> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Waiting { since, is_urgent } = waiting.remove(target)?;
        drop(waiting);
        self.note_turn(target);
        let time = since.elapsed();
        Some(Waited { time, is_urgent })
    }

    fn note_turn(&self, target: &Target) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= TURNS_MAX {
            turns.retain(|_, at| at.elapsed() < TURN_COUNTS);
        }
        turns.insert(target.clone(), Instant::now());
    }

    /// The time since the last turn of an object that was sent, if it is remembered.
    pub(crate) fn since_last(&self, target: &Target) -> Option<Duration> {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(target).map(Instant::elapsed)
    }

    /// Whether somebody became impatient while the object gathers changes.
    pub(crate) fn is_urgent(&self, target: &Target) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.get(target).is_some_and(|waiting| waiting.is_urgent)
    }

    /// How many objects of each kind wait.
    pub(crate) fn lengths(&self) -> [(&'static str, usize); 4] {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lengths = [
            ("DaskCluster", 0),
            ("DaskWorkerGroup", 0),
            ("DaskJob", 0),
            ("DaskAutoscaler", 0),
        ];
        for target in waiting.keys() {
            let kind = target.kind();
            if let Some((_, length)) = lengths.iter_mut().find(|(name, _)| *name == kind) {
                *length += 1;
            }
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Target {
        Target::Group {
            namespace: "n".to_owned(),
            name: "g".to_owned(),
        }
    }

    #[tokio::test]
    async fn an_object_waits_once_and_the_hurry_stays() {
        let queues = Queues::default();
        queues.send([group()]).await;
        assert_eq!(queues.taken(&group()), None, "closed");
        let mut receivers = queues.open();
        queues.send([group()]).await;
        queues.hurry([group()]).await;
        queues.send([group()]).await;
        assert_eq!(queues.lengths()[1], ("DaskWorkerGroup", 1));
        assert!(queues.is_urgent(&group()));
        assert!(queues.taken(&group()).unwrap().is_urgent);
        assert_eq!(queues.taken(&group()), None);
        assert_eq!(receivers.groups.recv().await.unwrap().name, "g");
        queues.close();
        queues.send([group()]).await;
        assert_eq!(queues.lengths()[1].1, 0);
    }
}
