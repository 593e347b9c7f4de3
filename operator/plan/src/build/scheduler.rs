//! The Deployment of a scheduler.
//!
//! Owns its one pod. Invariant: at most one scheduler of a cluster runs at a time, so an old pod
//! has gone before a new one starts.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use oxidask_operator_api::kubernetes::DaskCluster;

use super::labels::{self, CLUSTER_NAME, COMPONENT};
use super::pod::{self, HTTP_PORT, Part, Probes};
use super::template::Template;
use crate::{PlanError, Settings, names, owner};
use oxidask_identity::Role;

/// The scheduler's ports, in the pod and in the Service.
pub(crate) const PORTS: [(&str, i32); 2] = [("tcp-comm", names::COMM_PORT), (HTTP_PORT, 8787)];

/// The short fields of the scheduler.
pub(crate) fn template(cluster: &DaskCluster) -> Template<'_> {
    const PATH: &str = "spec.scheduler";
    match &cluster.spec.scheduler {
        Some(scheduler) => Template::of_scheduler(PATH, scheduler),
        None => Template::empty(PATH),
    }
}

/// The Deployment of the cluster.
pub(crate) fn deployment(
    cluster: &DaskCluster,
    name: &str,
    settings: &Settings,
) -> Result<Deployment, PlanError> {
    let template = template(cluster);
    let part = Part {
        container: labels::SCHEDULER,
        arguments: vec!["scheduler".to_owned()],
        certificate: names::certificate_secret(name, Role::Scheduler),
        ports: &PORTS,
        probes: Probes::WithStartup,
    };
    let mut spec = pod::pod_spec(&template, part, settings)?;
    spec.restart_policy = Some("Always".to_owned());
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, labels::SCHEDULER)];
    let (owner_labels, own) = (cluster.metadata.labels.as_ref(), template.metadata);
    let pod_labels = labels::pod_labels(owner_labels, own, &reserved);
    let annotations = labels::annotations(cluster.metadata.annotations.as_ref(), own);
    let mut metadata = owner::metadata(names::scheduler(name), "DaskCluster", &cluster.metadata);
    metadata.labels = Some(pod_labels.clone());
    metadata.annotations.clone_from(&annotations);
    let selector = reserved
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Ok(Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            // Only the reserved labels: a selector can never be changed.
            selector: LabelSelector {
                match_labels: Some(selector.collect()),
                match_expressions: None,
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                rolling_update: None,
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations,
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    })
}
