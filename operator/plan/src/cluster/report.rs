//! The status of a cluster.
//!
//! Owns its conditions, its phase and its events. `Ready` is true only when the scheduler is
//! available, every wanted worker is ready, and nothing is left to apply.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use oxidask_diagnostic::{Code, Coded};
use oxidask_operator_api::kubernetes::{ClusterStatus, DaskCluster, Phase};

use super::Observed;
use crate::build::{self, labels};
use crate::status::{
    Conditions, READY, SCHEDULER_READY, STALLED, WORKERS_READY, joined, workers_ready,
};
use crate::{Deletion, Plan, PlanError, PlannedEvent, Timestamp, names, owner, pods};

/// How many workers there are of how many.
#[derive(Default)]
struct Workers {
    wanted: usize,
    existing: usize,
    ready: usize,
    are_all_ready: bool,
    /// Whether each group's planner has seen the group's newest spec.
    are_observed: bool,
}

fn count(observed: &Observed, only: Option<&str>) -> Workers {
    let mut workers = Workers {
        are_all_ready: true,
        are_observed: true,
        ..Workers::default()
    };
    for group in &observed.groups {
        let metadata = &group.metadata;
        let name = metadata.name.as_deref();
        if owner::is_terminating(metadata) || only.is_some_and(|only| name != Some(only)) {
            continue;
        }
        let own = observed
            .worker_pods
            .iter()
            .filter(|pod| owner::owns(metadata, &pod.metadata));
        let live = own.filter(|pod| !pods::is_terminating(pod) && !pods::has_ended(pod));
        let wanted = build::group::replicas(&group.spec.worker) as usize;
        let (mut existing, mut ready) = (0, 0);
        for pod in live {
            existing += 1;
            ready += usize::from(pods::is_ready(pod));
        }
        workers.wanted += wanted;
        workers.existing += existing;
        workers.ready += ready.min(wanted);
        workers.are_all_ready &= ready >= wanted;
        let seen = group
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        workers.are_observed &= seen == metadata.generation;
    }
    workers
}

fn is_available(scheduler: &Deployment) -> bool {
    let Some(status) = &scheduler.status else {
        return false;
    };
    let is_current = status.observed_generation >= scheduler.metadata.generation;
    let is_updated = status.updated_replicas.unwrap_or_default() > 0;
    is_current && is_updated && status.available_replicas.unwrap_or_default() > 0
}

/// Why the Deployment cannot make its pod, such as a quota.
fn replica_failure(scheduler: &Deployment) -> Option<String> {
    let conditions = scheduler.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let message = failure.message.as_deref().unwrap_or_default();
    Some(format!("the scheduler's pod cannot be made: {message}"))
}

/// The first group that cannot be operated.
fn stalled_group(observed: &Observed) -> Option<String> {
    observed.groups.iter().find_map(|group| {
        let conditions = &group.status.as_ref()?.conditions;
        let stalled = conditions
            .iter()
            .find(|condition| condition.type_ == STALLED)?;
        let name = group.metadata.name.as_deref().unwrap_or_default();
        (stalled.status == "True").then(|| format!("group `{name}`: {}", stalled.message))
    })
}

/// What the pods say.
struct Health {
    scheduler_is_ready: bool,
    scheduler_message: String,
    workers_are_ready: bool,
    workers_message: String,
}

impl Health {
    /// Looks at the pods, and sets the conditions that are about them.
    fn report(
        observed: &Observed,
        is_operated: bool,
        conditions: &mut Conditions<'_>,
        events: &mut Vec<PlannedEvent>,
    ) -> Self {
        let scheduler = observed.scheduler.as_ref();
        let scheduler_is_ready = is_operated && scheduler.is_some_and(is_available);
        let troubles = pods::troubles(&observed.scheduler_pods);
        let scheduler_message = if scheduler_is_ready {
            "the scheduler is available".to_owned()
        } else {
            let text = Some("the scheduler is not available yet".to_owned());
            joined(&[
                text,
                scheduler.and_then(replica_failure),
                pods::summary(&troubles),
            ])
        };
        events.extend(pods::new_trouble(&troubles, conditions, SCHEDULER_READY));
        let reason = if scheduler_is_ready {
            "Available"
        } else {
            "NotAvailable"
        };
        conditions.set(
            SCHEDULER_READY,
            scheduler_is_ready,
            reason,
            &scheduler_message,
        );
        let workers = count(observed, None);
        let workers_are_ready = is_operated && workers.are_all_ready && workers.are_observed;
        let troubles = pods::troubles(&observed.worker_pods);
        let counts = Some(workers_ready(workers.ready, workers.wanted));
        let workers_message = joined(&[counts, stalled_group(observed), pods::summary(&troubles)]);
        events.extend(pods::new_trouble(&troubles, conditions, WORKERS_READY));
        let reason = if workers_are_ready {
            "AllReady"
        } else {
            "NotAllReady"
        };
        conditions.set(WORKERS_READY, workers_are_ready, reason, &workers_message);
        Self {
            scheduler_is_ready,
            scheduler_message,
            workers_are_ready,
            workers_message,
        }
    }
}

/// Writes status and events into the plan, whose other parts are complete.
pub(super) fn report(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    error: Option<&PlanError>,
    now: Timestamp,
    plan: &mut Plan<ClusterStatus>,
) {
    let none = ClusterStatus::default();
    let before = cluster.status.as_ref().unwrap_or(&none);
    let mut conditions = Conditions::new(&before.conditions, cluster.metadata.generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let is_operated = error.is_none();
    let health = Health::report(observed, is_operated, &mut conditions, &mut plan.events);
    let is_applied = plan.apply.is_empty() && plan.certificates.is_none() && plan.delete.is_empty();
    let is_ready = health.scheduler_is_ready && health.workers_are_ready && is_applied;
    let (reason, message) = match error {
        Some(error) => (error.code().to_string(), error.line()),
        None if !health.scheduler_is_ready => {
            ("SchedulerNotReady".to_owned(), health.scheduler_message)
        }
        None if !health.workers_are_ready => ("WorkersNotReady".to_owned(), health.workers_message),
        None if !is_applied => (
            "Applying".to_owned(),
            "objects are being applied".to_owned(),
        ),
        None => ("Ready".to_owned(), health.workers_message),
    };
    plan.events
        .extend(readiness_event(&conditions, is_ready, &message));
    conditions.set(READY, is_ready, &reason, &message);
    conditions.set_reconciling(is_ready, error.is_some(), &reason, &message);
    plan.events.extend(ignored_event(cluster, before, error));
    plan.events.extend(deletion_events(&plan.delete));
    let status = status(name, cluster, observed, is_operated, conditions);
    plan.status = (cluster.status.as_ref() != Some(&status)).then_some(status);
}

fn status(
    name: &str,
    cluster: &DaskCluster,
    observed: &Observed,
    is_operated: bool,
    conditions: Conditions<'_>,
) -> ClusterStatus {
    let group = names::group(name, names::DEFAULT_GROUP);
    let workers = count(observed, Some(&group));
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let amount = |count: usize| is_operated.then(|| i32::try_from(count).unwrap_or(i32::MAX));
    let selector = || labels::selector(&build::worker::selecting_labels(name, &group));
    ClusterStatus {
        phase: Some(phase(cluster, name, observed, is_operated)),
        replicas: amount(workers.existing),
        ready_replicas: amount(workers.ready),
        selector: is_operated.then(selector),
        scheduler_address: is_operated.then(|| names::scheduler_address(name, namespace)),
        observed_generation: cluster.metadata.generation,
        conditions: conditions.into_desired(),
    }
}

/// The phase in the words of dask-kubernetes: `Running` says that the Service has an address, not
/// that anybody answers there.
fn phase(cluster: &DaskCluster, name: &str, observed: &Observed, is_operated: bool) -> Phase {
    if !is_operated {
        return Phase::Error;
    }
    let group = names::group(name, names::DEFAULT_GROUP);
    let is_complete = observed.scheduler.is_some() && super::find_group(observed, &group).is_some();
    let before = cluster.status.as_ref().and_then(|status| status.phase);
    let was_complete = matches!(before, Some(Phase::Pending | Phase::Running));
    match &observed.service {
        Some(service) if is_complete && has_address(service) => Phase::Running,
        Some(_) if is_complete => Phase::Pending,
        _ if was_complete => Phase::Pending,
        _ => Phase::Created,
    }
}

fn has_address(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    if kind != Some("LoadBalancer") {
        return true;
    }
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    balancer.is_some_and(|balancer| {
        balancer
            .ingress
            .as_ref()
            .is_some_and(|list| !list.is_empty())
    })
}

fn readiness_event(
    conditions: &Conditions<'_>,
    is_ready: bool,
    message: &str,
) -> Option<PlannedEvent> {
    match (conditions.was(READY), is_ready) {
        (false, true) => {
            let note = format!("the scheduler is available, {message}");
            Some(PlannedEvent::normal("Ready", "Reconcile", &note))
        }
        (true, false) => Some(PlannedEvent::normal("NotReady", "Reconcile", message)),
        _ => None,
    }
}

fn deletion_events(deletions: &[Deletion]) -> Vec<PlannedEvent> {
    let removals = deletions.iter().map(|deletion| {
        let note = format!(
            "deletes the group `{}`, which the spec no longer has",
            deletion.object.name
        );
        PlannedEvent::normal("GroupRemoved", "Delete", &note)
    });
    removals.collect()
}

/// Fields that are left out of account, named once for each generation.
fn ignored_event(
    cluster: &DaskCluster,
    before: &ClusterStatus,
    error: Option<&PlanError>,
) -> Option<PlannedEvent> {
    if error.is_some() || before.observed_generation == cluster.metadata.generation {
        return None;
    }
    let spec = &cluster.spec;
    let workers = || {
        let further = spec.worker_groups.iter();
        let further = further.map(|group| (group.autoscale.is_some(), group.spill.is_some()));
        let default = (spec.worker.autoscale.is_some(), spec.worker.spill.is_some());
        std::iter::once(default).chain(further)
    };
    let journal = spec
        .scheduler
        .as_ref()
        .is_some_and(|scheduler| scheduler.journal.is_some());
    let given = [
        ("autoscale", workers().any(|(autoscale, _)| autoscale)),
        ("spill", workers().any(|(_, spill)| spill)),
        (
            "idleTimeout",
            spec.idle_timeout.is_some_and(|seconds| seconds > 0),
        ),
        ("tls", spec.tls.is_some()),
        ("suspend", spec.suspend == Some(true)),
        ("updateStrategy", spec.update_strategy.is_some()),
        ("scheduler.journal", journal),
    ];
    ignored(&given)
}

/// The event about fields that this version leaves out of account.
pub(crate) fn ignored(given: &[(&str, bool)]) -> Option<PlannedEvent> {
    let names: Vec<String> = given
        .iter()
        .filter(|(_, is_given)| *is_given)
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    let code = Code::NotOperated;
    let note = format!(
        "{code}: this version leaves out of account: {}",
        names.join(", ")
    );
    (!names.is_empty()).then(|| PlannedEvent::warning("FieldIgnored", "Plan", &note))
}
