//! The plan for a `DaskCluster`: its certificates, its scheduler, its groups of workers.
//!
//! Owns the cluster's conditions and phase. What the objects are follows in `desired`. The pods of
//! workers are planned in `group`; here they are only counted.

mod certificates;
mod desired;
mod issuer;
mod report;
mod restart;
mod rotation;
pub mod secrets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{ClusterStatus, DaskCluster, DaskWorkerGroup};

use crate::signal::Signal;
use crate::{
    Deletion, DeletionReason, ObjectKind, Plan, PlannedEvent, Refusal, Settings, Timestamp, dask,
    owner,
};

pub use certificates::RENEW_BEFORE;
pub use rotation::{ROTATE_BEFORE, SETTLE};
pub use secrets::{AuthorityState, IssuedState, Origin, SecretState};

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The Service `{cluster}-scheduler`, whoever owns it.
    pub service: Option<Service>,
    /// The Deployment `{cluster}-scheduler`, whoever owns it.
    pub scheduler: Option<Deployment>,
    /// The metadata of the claim `{cluster}-journal`, whoever owns it.
    pub journal_claim: Option<ObjectMeta>,
    /// Every `DaskWorkerGroup` of the namespace whose `spec.cluster` is the cluster or that has the
    /// cluster as an owner, or the name of one of its groups.
    pub groups: Vec<DaskWorkerGroup>,
    /// By name, the Secrets `{cluster}-ca`, `{cluster}-tls-{role}` and `{cluster}-http-token` that
    /// the cluster owns, or cert-manager writes for it, and the one that its spec takes an authority
    /// from.
    pub secrets: BTreeMap<String, SecretState>,
    /// Pods with the labels of the cluster's scheduler, for what keeps them from starting.
    pub scheduler_pods: Vec<Arc<Pod>>,
    /// Pods whose owner is one of the groups.
    pub worker_pods: Vec<Arc<Pod>>,
    /// Pods of runners of the cluster's job, which load the clients' certificate.
    pub runner_pods: Vec<Arc<Pod>>,
    /// The disruption budgets, network policies and accounts with the cluster's label.
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    /// See `disruption_budgets`.
    pub network_policies: Vec<NetworkPolicy>,
    /// See `disruption_budgets`.
    pub service_accounts: Vec<ServiceAccount>,
    /// What the scheduler says; `None` while it is silent.
    pub signal: Option<Signal>,
    /// What the API server refused in the last round.
    pub refusals: Vec<Refusal>,
}

/// What has to be done for the cluster.
pub fn plan(
    cluster: &DaskCluster,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<ClusterStatus> {
    if cluster.spec.runtime() == Runtime::Dask {
        return dask::cluster::plan(cluster, observed, now);
    }
    let mut plan = Plan::default();
    if owner::is_terminating(&cluster.metadata) {
        return plan;
    }
    let idle = Idle::of(cluster, observed, now);
    if let Some((deletion, event)) = idle.end(cluster) {
        plan.delete.push(deletion);
        plan.events.push(event);
        return plan;
    }
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let certificates = certificates::certificates(cluster, name, observed, now);
    match desired::desired(cluster, name, observed, settings, &certificates, now) {
        Ok(desired) => {
            plan.wake_after = certificates.wake_after;
            plan.certificates = Some(certificates.request.clone());
            plan.certificates.take_if(|request| request.is_empty());
            let findings = report::Findings::new(cluster, name, observed, now);
            findings.report(&certificates, desired, &mut plan);
        }
        Err(error) => {
            let findings = report::Findings::new(cluster, name, observed, now);
            findings.report_error(&error, &mut plan);
        }
    }
    let waits = [plan.wake_after, idle.wake_after];
    plan.wake_after = waits.into_iter().flatten().min();
    plan
}

/// How long the cluster has had nothing to do, where its spec sets a limit.
#[derive(Debug, Default)]
struct Idle {
    past: Duration,
    limit: Option<Duration>,
    wake_after: Option<Duration>,
}

impl Idle {
    /// The cluster of a job ends with the job and not before. A scheduler that is silent, or has
    /// something to do, says nothing about idleness.
    fn of(cluster: &DaskCluster, observed: &Observed, now: Timestamp) -> Self {
        let limit = cluster.spec.idle_timeout.filter(|seconds| *seconds > 0);
        let references = cluster.metadata.owner_references.iter().flatten();
        let is_of_job = references
            .into_iter()
            .any(|owner| owner.kind == "DaskJob" && owner.controller == Some(true));
        let (Some(seconds), false) = (limit, is_of_job) else {
            return Self::default();
        };
        let said = observed.signal.as_ref().and_then(|signal| {
            let since = Duration::try_from(now.duration_since(signal.heard_at));
            Some(signal.idle?.saturating_add(since.unwrap_or_default()))
        });
        let Some(past) = said else {
            return Self::default();
        };
        let limit = Duration::from_secs(seconds);
        let left = limit.saturating_sub(past);
        Self {
            past,
            limit: Some(limit),
            wake_after: (!left.is_zero()).then_some(left.max(Duration::from_secs(1))),
        }
    }

    fn end(&self, cluster: &DaskCluster) -> Option<(Deletion, PlannedEvent)> {
        let limit = self.limit.filter(|limit| self.past >= *limit)?;
        let (kind, reason) = (ObjectKind::Cluster, DeletionReason::IdleTimeout);
        let note = format!(
            "deletes the cluster, which had nothing to do for {} s; its `idleTimeout` is {} s",
            self.past.as_secs(),
            limit.as_secs()
        );
        let event = PlannedEvent::normal("IdleTimeout", "Delete", &note);
        Some((Deletion::new(kind, &cluster.metadata, reason), event))
    }
}

fn find_group<'a>(observed: &'a Observed, name: &str) -> Option<&'a DaskWorkerGroup> {
    let mut groups = observed.groups.iter();
    groups.find(|group| group.metadata.name.as_deref() == Some(name))
}
