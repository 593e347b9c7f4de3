//! Disruption budgets: how many pods an eviction may take at the same time.
//!
//! Owns their amounts. Workers hand over what they hold before they go, so a drain takes a part of a
//! group at a time. A scheduler is one pod: a budget that protects it would block a drain as long as
//! it lives, so it has none; with a journal in a claim it goes on elsewhere, and one whose journal
//! would be lost asks autoscalers of nodes, by annotation, to leave it where it is.
//!
//! Invariant: no budget blocks a drain for ever: one pod of each group may always go, and pods that
//! are not ready are never protected.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use oxidask_operator_api::kubernetes::DaskCluster;

use super::labels::{self, CLUSTER_NAME, COMPONENT};
use super::worker;
use crate::owner;

/// The part of a group that may be evicted at the same time. Rounded up, so never zero.
const WORKERS_AT_ONCE: &str = "25%";

/// The budget of a group's workers; `group` is the name of its object.
pub(crate) fn workers(cluster: &DaskCluster, name: &str, group: &str) -> PodDisruptionBudget {
    let selector = worker::selecting_labels(name, group);
    let selector = selector.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut metadata = owner::metadata(group.to_owned(), "DaskCluster", &cluster.metadata);
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, labels::WORKER_GROUP)];
    let owner_labels = cluster.metadata.labels.as_ref();
    metadata.labels = Some(labels::labels(owner_labels, None, &reserved));
    PodDisruptionBudget {
        metadata,
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::String(WORKERS_AT_ONCE.to_owned())),
            min_available: None,
            selector: Some(LabelSelector {
                match_labels: Some(selector.into()),
                match_expressions: None,
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        status: None,
    }
}
