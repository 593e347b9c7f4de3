//! What a Dask scheduler says, as the planners want to hear it.
//!
//! Owns the matching of workers to pods, by name and by address, and how the one number of workers
//! that a Dask scheduler wants is divided among the groups of its cluster. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::build::labels::WORKER_GROUP_NAME;
use crate::signal::{GroupSignal, Signal, Standing, WorkerSignal};
use crate::{Timestamp, names};

/// What stands between a group's name and the digits of a worker's.
const MIDDLE: &str = "-worker-";

/// Hex digits at the end of the name of a worker's Deployment.
const DIGITS: usize = 10;

/// The label of a pod that its Deployment's name lacks.
const POD_HASH: &str = "pod-template-hash";

/// What a scheduler answered.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerReport {
    /// When.
    pub heard_at: Timestamp,
    /// How many workers it wants in all; `None` if it does not say.
    pub workers_wanted: Option<u64>,
    /// Since when it has nothing to do; `None` while it has.
    pub idle_since: Option<Timestamp>,
    /// Every worker that it knows.
    pub workers: Vec<ReportedWorker>,
}

/// A worker, as its scheduler knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportedWorker {
    /// Its name there; unique, and often that of its Deployment.
    pub name: String,
    /// The address of its pod.
    pub host: String,
    /// Tasks that run on it or wait on it.
    pub running: u32,
    /// Bytes of results that it holds.
    pub held_bytes: u64,
    /// How the scheduler regards it.
    pub standing: Standing,
    /// How long it has had nothing to do.
    pub idle: Duration,
}

/// The report as a signal. `pods` are those of the cluster's workers.
pub fn signal(report: &SchedulerReport, cluster: &str, pods: &[&Pod], now: Timestamp) -> Signal {
    let groups = Groups::new(cluster, pods);
    let mut workers = BTreeMap::new();
    for worker in &report.workers {
        let signal = WorkerSignal {
            group: groups.of(&worker.name, &worker.host),
            pod_uid: groups.pod_uid(&worker.name, &worker.host),
            host: worker.host.clone(),
            standing: worker.standing,
            running: worker.running,
            held_bytes: worker.held_bytes,
            idle: worker.idle,
            loaded: None,
        };
        workers.insert(worker.name.clone(), signal);
    }
    let idle = report.idle_since.map(|since| {
        let passed = now.duration_since(since);
        Duration::try_from(passed).unwrap_or_default()
    });
    Signal {
        heard_at: report.heard_at,
        graphs: u32::from(idle.is_none()),
        clients: 0,
        unfinished_tasks: workers
            .values()
            .map(|worker| u64::from(worker.running))
            .sum(),
        idle,
        groups: divided(report.workers_wanted, &workers, &groups),
        workers,
        loaded: None,
        clients_loaded: Vec::new(),
        unplaced: Vec::new(),
    }
}

/// A scheduler says how many workers it wants, not of which group. Each group gets the part of
/// the work that it has; without work, of the results that it holds; without either, it is the
/// default group that grows.
fn divided(
    wanted: Option<u64>,
    workers: &BTreeMap<String, WorkerSignal>,
    groups: &Groups<'_>,
) -> BTreeMap<String, GroupSignal> {
    let Some(wanted) = wanted else {
        return BTreeMap::new();
    };
    let mut loads: BTreeMap<&str, Load> = BTreeMap::new();
    for group in groups.all() {
        loads.entry(group).or_default();
    }
    for worker in workers.values() {
        let load = loads.entry(&worker.group).or_default();
        load.tasks += u64::from(worker.running);
        load.bytes = load.bytes.saturating_add(worker.held_bytes);
        load.idle = Some(load.idle.map_or(worker.idle, |idle| idle.min(worker.idle)));
    }
    let weight = |of: fn(&Load) -> u64| -> Vec<u64> { loads.values().map(of).collect() };
    let default = || -> Vec<u64> {
        let groups = loads.keys();
        groups
            .map(|group| u64::from(*group == names::DEFAULT_GROUP))
            .collect()
    };
    let weights = [
        weight(|load| load.tasks),
        weight(|load| load.bytes),
        default(),
    ];
    let weights = weights
        .into_iter()
        .find(|weights| weights.iter().any(|it| *it > 0));
    let parts = shares(wanted, &weights.unwrap_or_default());
    let signals = loads.iter().enumerate().map(|(index, (group, load))| {
        let part = parts.get(index).copied().unwrap_or_default();
        let reason = format!(
            "Dask wants {wanted} workers in all; {} tasks and {} bytes are on the group's",
            load.tasks, load.bytes
        );
        let signal = GroupSignal {
            workers_wanted: part,
            waiting: Duration::ZERO,
            idle: load.idle.unwrap_or_default(),
            reason,
        };
        ((*group).to_owned(), signal)
    });
    signals.collect()
}

#[derive(Debug, Default)]
struct Load {
    tasks: u64,
    bytes: u64,
    idle: Option<Duration>,
}

/// Divides a number by weights: the parts add up to it, and whoever has weight gets something as
/// long as there is enough.
fn shares(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u64| u128::from(total) * u128::from(weight);
    let mut parts: Vec<u64> = weights
        .iter()
        .map(|weight| u64::try_from(exact(*weight) / sum).unwrap_or(total))
        .collect();
    let mut left = total.saturating_sub(parts.iter().sum());
    let mut order: Vec<usize> = (0..weights.len()).filter(|it| weights[*it] > 0).collect();
    order.sort_by_key(|index| {
        let rest = exact(weights[*index]) % sum;
        (parts[*index] > 0, std::cmp::Reverse(rest), *index)
    });
    for index in order {
        if left == 0 {
            break;
        }
        parts[index] += 1;
        left -= 1;
    }
    parts
}

/// The groups of the pods.
struct Groups<'a> {
    cluster: &'a str,
    pods: Vec<(&'a Pod, &'a str)>,
}

impl<'a> Groups<'a> {
    fn new(cluster: &'a str, pods: &[&'a Pod]) -> Self {
        let label = |pod: &'a Pod| pod.metadata.labels.as_ref()?.get(WORKER_GROUP_NAME);
        let pods = pods.iter().filter_map(|pod| {
            let group = names::short_group(cluster, label(pod)?);
            Some((*pod, group))
        });
        let pods = pods.collect();
        Self { cluster, pods }
    }

    fn all(&self) -> impl Iterator<Item = &'a str> {
        let known = self.pods.iter().map(|(_, group)| *group);
        known.chain(std::iter::once(names::DEFAULT_GROUP))
    }

    fn pod(&self, worker: &str, host: &str) -> Option<&(&'a Pod, &'a str)> {
        let named = |(pod, _): &&(&Pod, &str)| {
            deployment_of(pod).is_some_and(|deployment| is_named(worker, deployment))
        };
        let at = |(pod, _): &&(&Pod, &str)| !host.is_empty() && address(pod) == Some(host);
        let found = self.pods.iter().find(named);
        found.or_else(|| self.pods.iter().find(at).filter(|_| !looks_given(worker)))
    }

    /// Of a worker whose pod nobody has seen yet, the name says it.
    fn of(&self, worker: &str, host: &str) -> String {
        let by_pod = self.pod(worker, host).map(|(_, group)| *group);
        let by_name = || {
            let (group, _) = worker.rsplit_once(MIDDLE)?;
            Some(names::short_group(self.cluster, group))
        };
        let group = by_pod.map(str::to_owned);
        group
            .or_else(|| by_name().map(str::to_owned))
            .unwrap_or_else(|| names::DEFAULT_GROUP.to_owned())
    }

    fn pod_uid(&self, worker: &str, host: &str) -> String {
        let pod = self.pod(worker, host);
        pod.and_then(|(pod, _)| pod.metadata.uid.clone())
            .unwrap_or_default()
    }
}

/// The Deployment that a pod belongs to, through its `ReplicaSet`.
pub(super) fn deployment_of(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.iter().flatten();
    let set = owners
        .into_iter()
        .find(|owner| owner.kind == "ReplicaSet")?;
    let hash = pod.metadata.labels.as_ref()?.get(POD_HASH)?;
    set.name.strip_suffix(hash.as_str())?.strip_suffix('-')
}

/// Whether a scheduler's name for a worker is that of the Deployment. Several workers in one pod
/// have a number behind it.
pub(super) fn is_named(worker: &str, deployment: &str) -> bool {
    let Some(rest) = worker.strip_prefix(deployment) else {
        return false;
    };
    let number = rest.strip_prefix('-');
    rest.is_empty()
        || number.is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a worker has a name as Deployments of workers have: then the address says nothing, for
/// it may be that of a node.
pub(super) fn looks_given(worker: &str) -> bool {
    let Some((_, rest)) = worker.rsplit_once(MIDDLE) else {
        return false;
    };
    let digits = rest.get(..DIGITS).unwrap_or_default();
    digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The address of a pod's own.
pub(super) fn address(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let own = status.pod_ip.as_deref();
    own.filter(|_| status.pod_ip != status.host_ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_nobody_with_work_is_left_out() {
        assert_eq!(shares(10, &[3, 1]), [8, 2]);
        assert_eq!(shares(3, &[1000, 1, 0]), [2, 1, 0]);
        assert_eq!(shares(1, &[1, 1]), [1, 0]);
        assert_eq!(shares(5, &[0, 0]), [0, 0]);
        assert_eq!(shares(0, &[4]), [0]);
        let many = shares(u64::MAX, &[u64::MAX, u64::MAX]);
        assert_eq!(
            many.iter().map(|it| u128::from(*it)).sum::<u128>(),
            u128::from(u64::MAX)
        );
    }

    #[test]
    fn names_are_matched_whole() {
        assert!(is_named(
            "a-default-worker-0123456789",
            "a-default-worker-0123456789"
        ));
        assert!(is_named(
            "a-default-worker-0123456789-1",
            "a-default-worker-0123456789"
        ));
        assert!(!is_named(
            "a-default-worker-01234567890",
            "a-default-worker-0123456789"
        ));
        assert!(looks_given("a-default-worker-0123456789-1"));
        assert!(!looks_given("tcp://10.0.0.1:4000") && !looks_given("my-worker-1"));
    }
}
