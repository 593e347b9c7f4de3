//! Which objects have to be reconciled, on their way from the watches to the controllers.
//!
//! Bounded: a watch waits when a controller does not take its references, which it always does
//! unless it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use kube::runtime::reflector::ObjectRef;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, DaskWorkerGroup};
use tokio::sync::mpsc;

const QUEUED_MAX: usize = 1024;

/// An object to reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Cluster { namespace: String, name: String },
    Group { namespace: String, name: String },
    Job { namespace: String, name: String },
}

/// The controllers' ends.
pub(crate) struct Receivers {
    pub(crate) clusters: mpsc::Receiver<ObjectRef<DaskCluster>>,
    pub(crate) groups: mpsc::Receiver<ObjectRef<DaskWorkerGroup>>,
    pub(crate) jobs: mpsc::Receiver<ObjectRef<DaskJob>>,
}

/// The watches' ends.
#[derive(Debug)]
pub(crate) struct Queues {
    clusters: mpsc::Sender<ObjectRef<DaskCluster>>,
    groups: mpsc::Sender<ObjectRef<DaskWorkerGroup>>,
    jobs: mpsc::Sender<ObjectRef<DaskJob>>,
    is_open: AtomicBool,
}

impl Queues {
    /// Closed at first: before everything was listed once, nothing is reconciled.
    pub(crate) fn new() -> (Self, Receivers) {
        let (clusters, clusters_receiver) = mpsc::channel(QUEUED_MAX);
        let (groups, groups_receiver) = mpsc::channel(QUEUED_MAX);
        let (jobs, jobs_receiver) = mpsc::channel(QUEUED_MAX);
        let queues = Self {
            clusters,
            groups,
            jobs,
            is_open: AtomicBool::new(false),
        };
        let receivers = Receivers {
            clusters: clusters_receiver,
            groups: groups_receiver,
            jobs: jobs_receiver,
        };
        (queues, receivers)
    }

    /// From now on targets are taken. Whoever opens sends every object once.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Sends targets on; drops them while closed and after the controllers have ended.
    pub(crate) async fn send(&self, targets: impl IntoIterator<Item = Target>) {
        if !self.is_open.load(Ordering::Acquire) {
            return;
        }
        for target in targets {
            // Fails only when the controller has ended, and then nobody needs the target.
            match target {
                Target::Cluster { namespace, name } => {
                    let _ = self
                        .clusters
                        .send(ObjectRef::new(&name).within(&namespace))
                        .await;
                }
                Target::Group { namespace, name } => {
                    let _ = self
                        .groups
                        .send(ObjectRef::new(&name).within(&namespace))
                        .await;
                }
                Target::Job { namespace, name } => {
                    let _ = self
                        .jobs
                        .send(ObjectRef::new(&name).within(&namespace))
                        .await;
                }
            }
        }
    }
}
