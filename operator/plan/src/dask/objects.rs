//! The objects of a Dask cluster: the scheduler's Deployment and Service, a Deployment a worker.
//!
//! Owns their names, labels and annotations, which are those of dask-kubernetes. The labels by
//! which Deployments select are only the reserved ones, because a selector can never be changed;
//! one that exists keeps the selector that it has.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use oxidask_operator_api::Metadata;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup};
use serde::Deserialize as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::pod::{self, Part};
use super::{ADOPTED, COMM_PORT, HTTP_PORT, TEMPLATE_HASH};
use crate::build::labels::{self, CLUSTER_NAME, COMPONENT, WORKER_GROUP_NAME};
use crate::{PlanError, hash, names, owner};

/// Hex digits of a template's hash.
const HASH_DIGITS: usize = 16;

type Pairs = BTreeMap<String, String>;

/// Where workers and clients find the scheduler. Without the domain of the cluster, which is not
/// `cluster.local` everywhere.
pub(super) fn scheduler_address(cluster: &DaskCluster) -> String {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let host = names::scheduler_host(name, namespace);
    format!("tcp://{host}:{}", service_port(cluster, COMM_PORT, 8786))
}

/// The ports of the scheduler's Service: for workers and clients, and for HTTP.
pub fn ports(cluster: &DaskCluster) -> (u16, u16) {
    (
        service_port(cluster, COMM_PORT, 8786),
        service_port(cluster, HTTP_PORT, 8787),
    )
}

/// The number of a port of the user's Service.
fn service_port(cluster: &DaskCluster, name: &str, default: u16) -> u16 {
    let service = cluster.spec.scheduler.as_ref();
    let service = service.and_then(|scheduler| scheduler.service.as_ref());
    let ports = service.and_then(|service| service["ports"].as_array());
    let mut ports = ports.into_iter().flatten();
    let port = ports.find(|port| port["name"] == name);
    let number = port.and_then(|port| port["port"].as_u64());
    number
        .and_then(|number| u16::try_from(number).ok())
        .unwrap_or(default)
}

/// The scheduler.
pub(super) fn scheduler(
    cluster: &DaskCluster,
    name: &str,
    there: Option<&Deployment>,
) -> Result<Deployment, PlanError> {
    let fields = cluster.spec.scheduler.clone().unwrap_or_default();
    let spec = pod::scheduler(&fields)?;
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, Part::Scheduler.name())];
    let own = fields.metadata.as_ref();
    let of_cluster = &cluster.metadata;
    let all = labels::pod_labels(of_cluster.labels.as_ref(), own, &reserved);
    let annotations = labels::annotations(of_cluster.annotations.as_ref(), own);
    let mut metadata = owner::metadata(names::scheduler(name), "DaskCluster", of_cluster);
    metadata.labels = Some(all.clone());
    metadata.annotations.clone_from(&annotations);
    let mark = (TEMPLATE_HASH.to_owned(), template_hash(&spec, own));
    metadata.annotations.get_or_insert_default().extend([mark]);
    let selector = selector_of(there).unwrap_or_else(|| selecting(&reserved));
    let mut deployment = deployment(metadata, selector, spec, all, annotations);
    if let Some(spec) = &mut deployment.spec {
        // Two schedulers at the same time would answer under one name.
        spec.strategy = Some(DeploymentStrategy {
            type_: Some("Recreate".to_owned()),
            rolling_update: None,
        });
    }
    Ok(keeping(deployment, there))
}

/// The Deployment without what would restart its pod for nothing. Labels that are handed down may
/// change at any time; a pod gets them when it is made anew. What dask-kubernetes made stays whole
/// until the manifest's pods change.
fn keeping(mut wanted: Deployment, there: Option<&Deployment>) -> Deployment {
    let Some(there) = there else {
        return wanted;
    };
    let hash = template_mark(&wanted.metadata).map(str::to_owned);
    let before = template_mark(&there.metadata).map(str::to_owned);
    if before.is_some() && before != hash {
        return wanted;
    }
    if is_adopted(&there.metadata) {
        wanted.spec.clone_from(&there.spec);
        let note = hash.map(|hash| (ADOPTED.to_owned(), hash));
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        annotations.extend(note);
    } else if let (Some(wanted), Some(there)) = (&mut wanted.spec, &there.spec) {
        wanted
            .template
            .metadata
            .clone_from(&there.template.metadata);
    }
    wanted
}

/// Whether a Deployment still is as dask-kubernetes made it.
pub(super) fn is_adopted(there: &ObjectMeta) -> bool {
    let adopted = labels::annotation(there.annotations.as_ref(), ADOPTED);
    template_mark(there).is_none_or(|mark| Some(mark) == adopted)
}

/// The pods that a Deployment was made for.
pub(super) fn template_mark(metadata: &ObjectMeta) -> Option<&str> {
    labels::annotation(metadata.annotations.as_ref(), TEMPLATE_HASH)
}

fn selector_of(there: Option<&Deployment>) -> Option<LabelSelector> {
    Some(there?.spec.as_ref()?.selector.clone())
}

/// The Service in front of it: the user's spec as it is.
pub(super) fn service(cluster: &DaskCluster, name: &str) -> Result<Service, PlanError> {
    let scheduler = cluster.spec.scheduler.as_ref();
    let given = scheduler.and_then(|scheduler| scheduler.service.clone());
    let given = given.unwrap_or_else(|| default_service(name));
    let spec = ServiceSpec::deserialize(&given).map_err(|source| PlanError::Template {
        path: format!("{}.service", Part::Scheduler.path()),
        source,
    })?;
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, Part::Scheduler.name())];
    let own = scheduler.and_then(|scheduler| scheduler.metadata.as_ref());
    let of_cluster = &cluster.metadata;
    let mut metadata = owner::metadata(names::scheduler(name), "DaskCluster", of_cluster);
    metadata.labels = Some(labels::labels(of_cluster.labels.as_ref(), own, &reserved));
    metadata.annotations = labels::annotations(of_cluster.annotations.as_ref(), own);
    Ok(Service {
        metadata,
        spec: Some(spec),
        status: None,
    })
}

fn default_service(cluster: &str) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": name, "protocol": "TCP"});
    json!({
        "type": "ClusterIP",
        "selector": {CLUSTER_NAME: cluster, COMPONENT: Part::Scheduler.name()},
        "ports": [port(COMM_PORT, 8786), port(HTTP_PORT, 8787)],
    })
}

/// The labels of the pods of a group, by which they are selected.
pub(super) fn selecting_labels<'a>(
    cluster: &'a str,
    group: &'a str,
) -> [(&'static str, &'a str); 3] {
    [
        (CLUSTER_NAME, cluster),
        (WORKER_GROUP_NAME, group),
        (COMPONENT, Part::Worker.name()),
    ]
}

/// What all Deployments of a group share; one is this and a name.
#[derive(Debug)]
pub(super) struct Workers<'a> {
    group: &'a DaskWorkerGroup,
    address: String,
    labels: Pairs,
    annotations: Option<Pairs>,
    /// Of the pods, whatever their names and the labels that are handed down.
    pub(super) hash: String,
}

impl<'a> Workers<'a> {
    pub(super) fn new(
        group: &'a DaskWorkerGroup,
        cluster: &DaskCluster,
    ) -> Result<Self, PlanError> {
        let name = group.metadata.name.as_deref().unwrap_or_default();
        names::check_group(name)?;
        let own = group.spec.worker.metadata.as_ref();
        let handed = |of_cluster: Option<&Pairs>, of_group: Option<&Pairs>| {
            let mut pairs = labels::handed_down(of_cluster);
            pairs.extend(labels::handed_down(of_group));
            pairs
        };
        let (cluster_meta, group_meta) = (&cluster.metadata, &group.metadata);
        let inherited = handed(cluster_meta.labels.as_ref(), group_meta.labels.as_ref());
        let reserved = selecting_labels(&group.spec.cluster, name);
        let annotations = handed(None, group_meta.annotations.as_ref());
        let address = scheduler_address(cluster);
        let spec = pod::worker(&group.spec.worker, "", &address)?;
        Ok(Self {
            group,
            labels: labels::pod_labels(Some(&inherited), own, &reserved),
            annotations: labels::annotations(Some(&annotations), own),
            hash: template_hash(&spec, own),
            address,
        })
    }

    /// The worker of that name.
    pub(super) fn named(
        &self,
        name: &str,
        there: Option<&Deployment>,
    ) -> Result<Deployment, PlanError> {
        let spec = pod::worker(&self.group.spec.worker, name, &self.address)?;
        let group = self.group.metadata.name.as_deref().unwrap_or_default();
        let reserved = selecting_labels(&self.group.spec.cluster, group);
        let selector = selector_of(there).unwrap_or_else(|| selecting(&reserved));
        let owner = &self.group.metadata;
        let mut metadata = owner::metadata(name.to_owned(), "DaskWorkerGroup", owner);
        metadata.labels = Some(self.labels.clone());
        let mut annotations = self.annotations.clone().unwrap_or_default();
        annotations.insert(TEMPLATE_HASH.to_owned(), self.hash.clone());
        metadata.annotations = Some(annotations);
        let (labels, annotations) = (self.labels.clone(), self.annotations.clone());
        let wanted = deployment(metadata, selector, spec, labels, annotations);
        Ok(keeping(wanted, there))
    }
}

fn template_hash(spec: &PodSpec, own: Option<&Metadata>) -> String {
    let text = json!({"spec": spec, "metadata": own}).to_string();
    hash::hex(&Sha256::digest(text.as_bytes()), HASH_DIGITS)
}

fn selecting(pairs: &[(&str, &str)]) -> LabelSelector {
    let pairs = pairs.iter();
    let labels = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    LabelSelector {
        match_labels: Some(labels.collect()),
        match_expressions: None,
    }
}

fn deployment(
    metadata: ObjectMeta,
    selector: LabelSelector,
    spec: PodSpec,
    mut labels: Pairs,
    annotations: Option<Pairs>,
) -> Deployment {
    // The pods of a Deployment must have the labels that it selects by.
    labels.extend(selector.match_labels.clone().unwrap_or_default());
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            selector,
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations,
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}
