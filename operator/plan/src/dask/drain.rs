//! Which workers go, and when each may.
//!
//! Owns the order, worst placed first: what holds nothing, then what its scheduler does not know,
//! then idle workers with the fewest bytes, then busy ones. A chosen worker is noted on its
//! Deployment, so that everything is found again after a restart of the operator.
//!
//! Invariants: without word from the scheduler nothing goes that could hold results; a worker that
//! the scheduler was told to retire never comes back, every other choice can be changed; a worker
//! of another group is never chosen.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{DRAIN_DEADLINE, DRAINING_SINCE, RETIRED, load};
use crate::build::labels::annotation;
use crate::signal::{Signal, Standing, WorkerSignal};
use crate::{Timestamp, owner, pods};

/// How long a worker is drained when nobody says otherwise.
pub(super) const DEADLINE_DEFAULT: Duration = Duration::from_mins(5);

/// The longest time that anybody may ask for.
const DEADLINE_MAX: Duration = Duration::from_hours(24);

/// A signal is never older: by then a worker that a scheduler does not list is not there.
const UNKNOWN_AFTER: Duration = Duration::from_secs(10);

/// A worker: its Deployment, its pods, and what the scheduler calls it.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) name: &'a str,
    pods: Vec<&'a Pod>,
    registered: Vec<(&'a str, &'a WorkerSignal)>,
    pub(super) is_ready: bool,
    /// Since when it is to go.
    pub(super) since: Option<Timestamp>,
    /// The scheduler was asked to retire it.
    pub(super) is_retired: bool,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        deployment: &'a Deployment,
        pods: &'a [Arc<Pod>],
        signal: Option<&'a Signal>,
    ) -> Self {
        let metadata = &deployment.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let own = pods
            .iter()
            .filter(|pod| load::deployment_of(pod) == Some(name));
        let own: Vec<&Pod> = own
            .filter(|pod| !pods::has_ended(pod))
            .map(Arc::as_ref)
            .collect();
        let known = signal.iter().flat_map(|signal| &signal.workers);
        let registered = known
            .filter(|(worker, signal)| is_of(worker, signal, name, &own))
            .map(|(worker, signal)| (worker.as_str(), signal))
            .collect();
        let note = |key| annotation(metadata.annotations.as_ref(), key);
        let since = note(DRAINING_SINCE).and_then(|text| text.parse().ok());
        Self {
            deployment,
            name,
            is_ready: own.iter().any(|pod| pods::is_ready(pod)),
            pods: own,
            registered,
            since: since.and_then(|second| Timestamp::from_second(second).ok()),
            is_retired: note(RETIRED).is_some(),
        }
    }

    pub(super) fn metadata(&self) -> &'a ObjectMeta {
        &self.deployment.metadata
    }

    /// Whether nothing of it runs, whatever the scheduler may think.
    pub(super) fn holds_nothing(&self) -> bool {
        let runs = |pod: &&&Pod| {
            let status = pod.status.as_ref();
            let containers = status.and_then(|status| status.container_statuses.as_ref());
            let mut states = containers
                .into_iter()
                .flatten()
                .filter_map(|it| it.state.as_ref());
            let is_up = states.any(|state| state.running.is_some());
            // A kubelet that says nothing of containers may still have some.
            is_up || (pods::phase(pod) != "Pending" && containers.is_none())
        };
        self.registered.is_empty() && !self.pods.iter().any(|pod| runs(&pod))
    }

    fn is_busy(&self) -> bool {
        self.registered.iter().any(|(_, signal)| signal.running > 0)
    }

    /// Whether it has had nothing to do for so long.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        let mut known = self.registered.iter();
        self.is_ready && !self.registered.is_empty() && known.all(|(_, it)| it.idle >= time)
    }

    fn held_bytes(&self) -> u64 {
        let bytes = self.registered.iter().map(|(_, signal)| signal.held_bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Smaller goes earlier. Among equals a choice that was made stays.
    pub(super) fn order(&self) -> impl Ord + use<'a> {
        let class = if self.holds_nothing() {
            0
        } else if self.registered.is_empty() {
            1
        } else if self.is_busy() {
            3
        } else {
            2
        };
        let created = self
            .metadata()
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let youngest = Reverse(created.filter(|_| class < 2));
        let is_new = self.since.is_none();
        (class, is_new, self.held_bytes(), youngest, self.name)
    }

    /// Whether it was given up: the scheduler was told.
    pub(super) fn is_committed(&self) -> bool {
        self.since.is_some() && self.is_retired
    }
}

/// Whether what a scheduler calls a worker runs in one of the pods. By name; a worker that was
/// started under a name of its own is found by the address of its pod, unless that is the node's.
fn is_of(worker: &str, signal: &WorkerSignal, deployment: &str, own: &[&Pod]) -> bool {
    if load::is_named(worker, deployment) {
        return true;
    }
    if load::looks_given(worker) || signal.host.is_empty() {
        return false;
    }
    own.iter()
        .any(|pod| load::address(pod) == Some(signal.host.as_str()))
}

/// What is done with a worker that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Note that it is to go, and since when.
    Choose,
    /// Have the scheduler retire it; these are its names there.
    Retire(Vec<String>),
    /// Nothing but to wait.
    Wait,
    /// Delete its Deployment.
    Delete,
    /// The same, although it was not drained.
    GiveUp,
}

/// How long a worker that is to go may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// How long running work is waited for.
    busy: Duration,
    /// After that the worker goes.
    deadline: Duration,
}

impl Limits {
    /// What the group says, or its cluster.
    pub(super) fn new(group: &ObjectMeta, cluster: Option<&ObjectMeta>) -> Self {
        let said = |metadata: &ObjectMeta| {
            let text = annotation(metadata.annotations.as_ref(), DRAIN_DEADLINE)?;
            text.trim().parse().ok().map(Duration::from_secs)
        };
        let deadline = said(group).or_else(|| cluster.and_then(said));
        Self::of(deadline.unwrap_or(DEADLINE_DEFAULT))
    }

    /// Most of the time belongs to the running work, the rest to moving its results.
    pub(super) fn of(deadline: Duration) -> Self {
        let deadline = deadline.min(DEADLINE_MAX);
        Self {
            busy: deadline.mul_f64(0.8),
            deadline,
        }
    }
}

/// What is next for a worker that is to go.
pub(super) fn step(
    worker: &Worker<'_>,
    signal: Option<&Signal>,
    limits: Limits,
    now: Timestamp,
) -> Step {
    if worker.holds_nothing() {
        return Step::Delete;
    }
    if signal.is_none() {
        return Step::Wait;
    }
    let is_known = !worker.registered.is_empty();
    let (since, is_new) = (worker.since.unwrap_or(now), worker.since.is_none());
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    // What was known when it was asked for has gone: that is new. What was never known may have
    // come since the scheduler spoke.
    let is_told = worker.is_retired || passed >= UNKNOWN_AFTER;
    let is_drained = worker
        .registered
        .iter()
        .all(|(_, signal)| signal.standing == Standing::Empty);
    if is_drained && !is_new && is_told {
        return Step::Delete;
    }
    if passed >= limits.deadline {
        return Step::GiveUp;
    }
    // Also if it was asked for before: it was not retired, because it had got work meanwhile.
    if !is_known || (worker.is_busy() && passed < limits.busy) {
        return if is_new { Step::Choose } else { Step::Wait };
    }
    let unasked = |standing| matches!(standing, Standing::Active | Standing::Paused);
    let names = worker.registered.iter();
    let names = names.filter(|(_, signal)| unasked(signal.standing));
    let names: Vec<String> = names.map(|(name, _)| (*name).to_owned()).collect();
    if names.is_empty() {
        return if is_new { Step::Choose } else { Step::Wait };
    }
    Step::Retire(names)
}

/// The Deployments of a group that are there.
pub(super) fn workers<'a>(
    group: &ObjectMeta,
    deployments: &'a [Deployment],
    pods: &'a [Arc<Pod>],
    signal: Option<&'a Signal>,
) -> Vec<Worker<'a>> {
    let own = deployments.iter().filter(|deployment| {
        let metadata = &deployment.metadata;
        owner::owns(group, metadata) && !owner::is_terminating(metadata)
    });
    own.map(|deployment| Worker::new(deployment, pods, signal))
        .collect()
}
