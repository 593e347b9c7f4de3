//! The status of a cluster.
//!
//! Owns its conditions, its phase and its events. `Ready` is true only when the scheduler is
//! available, every wanted worker is ready, and nothing is left to apply.

use std::sync::Arc;
use std::sync::LazyLock;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{CertificatesStatus, ClusterStatus, DaskCluster, Phase};

use super::Observed;
use super::certificates::Certificates;
use super::desired::Desired;
use crate::build::labels::RESTART_REASON;
use crate::build::{self, labels};
use crate::status::{
    Conditions, DRIFTED, OBJECTS_REFUSED, PODS_REFUSED, READY, SCHEDULER_READY, STALLED, SUSPENDED,
    TLS_READY, WORKERS_READY, joined, workers_ready,
};
use crate::{
    Deletion, DeletionReason, Plan, PlanError, PlannedEvent, Refusal, Timestamp, names, owner, pods,
};

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

fn count(observed: &Observed, only: Option<&str>, is_suspended: bool) -> Workers {
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
        let wanted = if is_suspended {
            0
        } else {
            build::group::replicas(&group.spec.worker) as usize
        };
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

/// The first group whose pods the API server refuses: nothing of it shows in pods.
fn refused_group(observed: &Observed) -> Option<String> {
    observed.groups.iter().find_map(|group| {
        let conditions = &group.status.as_ref()?.conditions;
        let ready = conditions.iter().find(|found| found.type_ == READY)?;
        let name = group.metadata.name.as_deref().unwrap_or_default();
        let is_refused = ready.status != "True" && ready.reason == PODS_REFUSED;
        is_refused.then(|| format!("group `{name}`: {}", ready.message))
    })
}

/// Why the scheduler's pod was replaced last.
fn restart_reason(scheduler: &Deployment) -> Option<String> {
    let reason = labels::annotation(scheduler.metadata.annotations.as_ref(), RESTART_REASON)?;
    Some(format!("restarts: {reason}"))
}

/// What the pods say.
struct Health {
    scheduler_is_ready: bool,
    scheduler_message: String,
    workers_are_ready: bool,
    workers_message: String,
}

/// Everything that the status follows from.
pub(super) struct Findings<'a> {
    cluster: &'a DaskCluster,
    name: &'a str,
    observed: &'a Observed,
    before: &'a ClusterStatus,
    conditions: Conditions<'a>,
    is_suspended: bool,
}

impl<'a> Findings<'a> {
    pub(super) fn new(
        cluster: &'a DaskCluster,
        name: &'a str,
        observed: &'a Observed,
        now: Timestamp,
    ) -> Self {
        static NONE: LazyLock<ClusterStatus> = LazyLock::new(ClusterStatus::default);
        let before = cluster.status.as_ref().unwrap_or(&NONE);
        Self {
            cluster,
            name,
            observed,
            before,
            conditions: Conditions::new(&before.conditions, cluster.metadata.generation, now),
            is_suspended: cluster.spec.suspend == Some(true),
        }
    }

    /// Looks at the pods, and sets the conditions that are about them.
    fn health(&mut self, is_operated: bool, events: &mut Vec<PlannedEvent>) -> Health {
        let conditions = &mut self.conditions;
        let scheduler = self.observed.scheduler.as_ref();
        let scheduler_is_ready =
            is_operated && !self.is_suspended && scheduler.is_some_and(is_available);
        let troubles = pods::troubles(self.observed.scheduler_pods.iter().map(Arc::as_ref));
        let scheduler_message = if scheduler_is_ready {
            "the scheduler is available".to_owned()
        } else {
            let text = if self.is_suspended {
                "the cluster is suspended"
            } else {
                "the scheduler is not available yet"
            };
            joined(&[
                Some(text.to_owned()),
                scheduler
                    .and_then(restart_reason)
                    .filter(|_| !self.is_suspended),
                scheduler.and_then(replica_failure),
                pods::summary(&troubles),
            ])
        };
        events.extend(pods::new_trouble(&troubles, conditions, SCHEDULER_READY));
        let reason = match (scheduler_is_ready, self.is_suspended) {
            (true, _) => "Available",
            (false, true) => SUSPENDED,
            (false, false) => "NotAvailable",
        };
        conditions.set(
            SCHEDULER_READY,
            scheduler_is_ready,
            reason,
            &scheduler_message,
        );
        let workers = count(self.observed, None, self.is_suspended);
        let workers_are_ready = is_operated && workers.are_all_ready && workers.are_observed;
        let troubles = pods::troubles(self.observed.worker_pods.iter().map(Arc::as_ref));
        let counts = Some(workers_ready(workers.ready, workers.wanted));
        let stalled = stalled_group(self.observed).or_else(|| refused_group(self.observed));
        let workers_message = joined(&[counts, stalled, pods::summary(&troubles)]);
        events.extend(pods::new_trouble(&troubles, conditions, WORKERS_READY));
        let reason = if workers_are_ready {
            "AllReady"
        } else {
            "NotAllReady"
        };
        conditions.set(WORKERS_READY, workers_are_ready, reason, &workers_message);
        Health {
            scheduler_is_ready,
            scheduler_message,
            workers_are_ready,
            workers_message,
        }
    }

    /// Status and events about a spec that cannot be operated.
    pub(super) fn report_error(mut self, error: &PlanError, plan: &mut Plan<ClusterStatus>) {
        plan.events.extend(self.conditions.set_stalled(Some(error)));
        self.health(false, &mut plan.events);
        let (code, line) = (error.code().to_string(), error.line());
        self.conditions
            .set(TLS_READY, false, STALLED, "the spec cannot be operated");
        plan.events
            .extend(readiness_event(&self.conditions, false, &line));
        self.conditions.set(READY, false, &code, &line);
        self.conditions.set_reconciling(false, true, &code, &line);
        let certificates = self.before.certificates.clone();
        self.finish(false, certificates, plan);
    }

    /// Status and events about what is done.
    pub(super) fn report(
        mut self,
        certificates: &Certificates,
        desired: Desired,
        plan: &mut Plan<ClusterStatus>,
    ) {
        plan.events.extend(self.conditions.set_stalled(None));
        let health = self.health(true, &mut plan.events);
        self.tls(certificates, &mut plan.events);
        self.drift(&desired, plan);
        self.refusals();
        let is_applied = !desired.is_new && desired.delete.is_empty();
        let has_pods =
            !self.observed.scheduler_pods.is_empty() || !self.observed.worker_pods.is_empty();
        let is_ready = health.scheduler_is_ready && health.workers_are_ready && is_applied;
        let is_held = self.observed.scheduler.is_none() && !certificates.is_ready;
        let refused = self.observed.refusals.first();
        let (reason, message) = match refused {
            _ if self.is_suspended => (SUSPENDED, health.scheduler_message),
            _ if is_held && !certificates.request.roles.contains(&Role::Scheduler) => {
                (certificates.reason.as_str(), certificates.message.clone())
            }
            Some(refusal) if !is_ready => ("ObjectsRefused", refused_line(refusal)),
            _ if !health.scheduler_is_ready => ("SchedulerNotReady", health.scheduler_message),
            _ if !health.workers_are_ready => ("WorkersNotReady", health.workers_message),
            _ if !is_applied => ("Applying", "objects are being applied".to_owned()),
            _ => ("Ready", health.workers_message),
        };
        if self.is_suspended {
            self.suspended(has_pods);
        }
        plan.events
            .extend(readiness_event(&self.conditions, is_ready, &message));
        self.conditions.set(READY, is_ready, reason, &message);
        let is_at_rest = is_ready || self.is_suspended && !has_pods && is_applied;
        self.conditions
            .set_reconciling(is_at_rest, false, reason, &message);
        plan.events.extend(deletion_events(&desired.delete));
        (plan.apply, plan.delete) = (desired.apply, desired.delete);
        self.finish(true, Some(certificates.status.clone()), plan);
    }

    fn tls(&mut self, certificates: &Certificates, events: &mut Vec<PlannedEvent>) {
        let (is_ready, reason) = (certificates.is_ready, certificates.reason.as_str());
        let message = certificates.message.as_str();
        let is_fault = reason.starts_with("OX");
        if is_fault && !self.conditions.said(TLS_READY, message) {
            let note = format!("{reason}: {message}");
            events.push(PlannedEvent::warning("CertificatesFailed", "Issue", &note));
        }
        self.conditions.set(TLS_READY, is_ready, reason, message);
        events.extend(certificates.events.iter().cloned());
    }

    /// What others changed: undone with an event, or left with a condition.
    fn drift(&mut self, desired: &Desired, plan: &mut Plan<ClusterStatus>) {
        for notice in &desired.repaired {
            let note = format!("undoes a change by others: {}", notice.line());
            plan.events
                .push(PlannedEvent::normal("Repaired", "Apply", &note));
        }
        if let Some(reason) = &desired.restart {
            let note = format!("the scheduler restarts: {reason}");
            plan.events
                .push(PlannedEvent::normal("SchedulerRestarts", "Apply", &note));
        }
        let Some((notice, _)) = desired.kept.first() else {
            return;
        };
        let waits = desired
            .kept
            .iter()
            .map(|(_, wait)| *wait)
            .chain(plan.wake_after);
        plan.wake_after = waits.min();
        let code = Code::DriftKept;
        let message = format!(
            "somebody changes it again each time: {}; hint: {}",
            notice.line(),
            code.hint()
        );
        if !self.conditions.said(DRIFTED, &message) {
            let note = format!("{code}: {message}");
            plan.events
                .push(PlannedEvent::warning("Drifted", "Wait", &note));
        }
        self.conditions
            .set(DRIFTED, true, &code.to_string(), &message);
    }

    /// What the API server refused.
    fn refusals(&mut self) {
        let Some(first) = self.observed.refusals.first() else {
            return;
        };
        let more = self.observed.refusals.len() - 1;
        let line = refused_line(first);
        let message = match more {
            0 => line,
            more => format!("{line} (and {more} more)"),
        };
        let code = Code::ObjectRejected.to_string();
        self.conditions.set(OBJECTS_REFUSED, true, &code, &message);
    }

    fn suspended(&mut self, has_pods: bool) {
        let (reason, message) = if has_pods {
            ("Suspending", "its pods are being removed")
        } else {
            (
                SUSPENDED,
                "it has no pods; its objects and its journal are kept",
            )
        };
        self.conditions.set(SUSPENDED, true, reason, message);
    }

    fn finish(
        self,
        is_operated: bool,
        certificates: Option<CertificatesStatus>,
        plan: &mut Plan<ClusterStatus>,
    ) {
        let (cluster, name, observed) = (self.cluster, self.name, self.observed);
        let group = names::group(name, names::DEFAULT_GROUP);
        let workers = count(observed, Some(&group), self.is_suspended);
        let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
        let amount = |count: usize| is_operated.then(|| i32::try_from(count).unwrap_or(i32::MAX));
        let selector = || labels::selector(&build::worker::selecting_labels(name, &group));
        let status = ClusterStatus {
            phase: Some(phase(cluster, name, observed, is_operated)),
            replicas: amount(workers.existing),
            ready_replicas: amount(workers.ready),
            selector: is_operated.then(selector),
            scheduler_address: is_operated.then(|| names::scheduler_address(name, namespace)),
            certificates: certificates.filter(|status| *status != CertificatesStatus::default()),
            observed_generation: cluster.metadata.generation,
            conditions: self.conditions.into_desired(),
        };
        plan.status = (cluster.status.as_ref() != Some(&status)).then_some(status);
    }
}

fn refused_line(refusal: &Refusal) -> String {
    format!(
        "the API server refuses {}: {}",
        refusal.object, refusal.message
    )
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
    let removals = deletions
        .iter()
        .filter(|deletion| deletion.reason == DeletionReason::GroupRemoved);
    let removals = removals.map(|deletion| {
        let note = format!(
            "deletes the group `{}`, which the spec no longer has",
            deletion.object.name
        );
        PlannedEvent::normal("GroupRemoved", "Delete", &note)
    });
    removals.collect()
}
