//! The ways to the schedulers of the runtime `Dask`.
//!
//! Owns one link for each such cluster: it asks the scheduler every few seconds how things are,
//! which becomes the cluster's signal, and has it retire workers. Never decides anything.
//!
//! Invariants: links exist only while this process leads; an answer that does not come or says
//! that something failed means that nobody knows, and then the scheduler is asked which workers it
//! has; every wait has an end; a worker is asked for once as long as its retirement goes on.

mod ask;
mod comm;
mod http;
mod msgpack;
mod poll;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::DaskCluster;
use oxidask_operator_plan::{Retirement, dask, names};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::ask::Address;
use self::poll::Shared;
use crate::cache::ClusterKey;
use crate::caches::Caches;
use crate::queue::Queues;
use crate::signals::Signals;

/// Clusters that are asked; further ones have no signal.
const LINKS_MAX: usize = 4096;

/// Schedulers that are asked at the same time.
const QUESTIONS_MAX: usize = 64;

/// What every link works with.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) caches: Arc<Caches>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) queues: Arc<Queues>,
    questions: Semaphore,
}

#[derive(Debug)]
struct Link {
    /// The UID of the cluster: another one of the same name has another link.
    uid: String,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// All links of a scope.
#[derive(Debug)]
pub(crate) struct DaskLinks {
    environment: Arc<Environment>,
    links: Mutex<HashMap<ClusterKey, Link>>,
}

impl DaskLinks {
    pub(crate) fn new(caches: Arc<Caches>, signals: Arc<Signals>, queues: Arc<Queues>) -> Self {
        let environment = Environment {
            caches,
            signals,
            queues,
            questions: Semaphore::new(QUESTIONS_MAX),
        };
        Self {
            environment: Arc::new(environment),
            links: Mutex::default(),
        }
    }

    /// Keeps a link to a cluster's scheduler as long as one runs.
    pub(crate) fn follow(&self, cluster: &DaskCluster, scheduler_pods: &[Arc<Pod>]) {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let key = ClusterKey::new(namespace.clone(), name.clone());
        let is_there = cluster.metadata.deletion_timestamp.is_none()
            && cluster.spec.runtime() == Runtime::Dask
            && scheduler_pods.iter().any(|pod| is_running(pod));
        if !is_there {
            self.forget(&key);
            return;
        }
        let (comm_port, http_port) = dask::ports(cluster);
        let address = Address {
            host: names::scheduler_host(&name, &namespace),
            comm_port,
            http_port,
        };
        self.watch(key, &cluster.uid().unwrap_or_default(), address);
    }

    /// Asks the scheduler at the address from now on.
    fn watch(&self, key: ClusterKey, uid: &str, address: Address) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |link: &&Link| link.uid == uid && link.shared.address == address;
        if links.get(&key).as_ref().is_some_and(same) {
            return;
        }
        if links.len() >= LINKS_MAX && !links.contains_key(&key) {
            let object = format!("{}/{}", key.namespace, key.cluster);
            tracing::warn!(object, LINKS_MAX, "too many schedulers to ask this one");
            return;
        }
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(key.clone(), address, stop.clone()));
        tokio::spawn(poll::run(
            Arc::clone(&self.environment),
            Arc::clone(&shared),
        ));
        let link = Link {
            uid: uid.to_owned(),
            shared,
            _stop: stop.drop_guard(),
        };
        links.insert(key, link);
    }

    /// The cluster is gone, or its scheduler.
    pub(crate) fn forget(&self, key: &ClusterKey) {
        let forgotten = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.remove(key)
        };
        if forgotten.is_some() {
            self.environment.signals.silence(key);
        }
    }

    /// This process does not lead any more.
    pub(crate) fn clear(&self) {
        let forgotten: Vec<ClusterKey> = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.drain().map(|(key, _)| key).collect()
        };
        for key in forgotten {
            self.environment.signals.silence(&key);
        }
    }

    /// Has the scheduler retire the workers of its cluster that are among these, without waiting
    /// for the end. The others are of other runtimes; they come back.
    pub(crate) fn retire(&self, retirements: &[Retirement]) -> Vec<Retirement> {
        let mut orders: HashMap<ClusterKey, Vec<String>> = HashMap::new();
        let mut others = Vec::new();
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for retirement in retirements {
            let key = ClusterKey::new(&retirement.namespace, &retirement.cluster);
            if links.contains_key(&key) {
                // A scheduler of Dask's cannot take a retirement back; nobody plans that.
                if !retirement.is_cancelled {
                    let workers = orders.entry(key).or_default();
                    workers.push(retirement.worker.clone());
                }
            } else {
                others.push(retirement.clone());
            }
        }
        for (key, workers) in orders {
            if let Some(link) = links.get(&key) {
                poll::retire(&link.shared, workers);
            }
        }
        others
    }
}

/// Whether the pod's program may answer. Its own probe may be slower than that.
fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
}
