//! The Deployment of a scheduler.
//!
//! Owns its one pod. Invariant: at most one scheduler of a cluster runs at a time, so an old pod
//! has gone before a new one starts.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, SecretVolumeSource, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use oxidask_operator_api::kubernetes::DaskCluster;

use super::journal::{self, JOURNAL_DIR};
use super::labels::{self, CLUSTER_NAME, COMPONENT, Pairs};
use super::pod::{self, HTTP_PORT, Part, Probes, variable};
use super::template::Template;
use crate::cluster::secrets::{HTTP_OPERATOR_TOKEN_KEY, HTTP_TOKEN_KEY};
use crate::{Object, PlanError, Settings, names, owner};
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

/// Seconds that a scheduler has to bring its journal to the disk.
const GRACE_SECONDS: i64 = 30;

/// Where the tokens of the HTTP port are mounted.
const TOKEN_DIR: &str = "/etc/oxidask/http-token";

/// The volume with them.
const TOKEN_VOLUME: &str = "oxidask-http-token";

/// Annotations by which autoscalers of nodes leave a pod where it is. They do not keep anybody from
/// draining the node.
const STAY: [(&str, &str); 2] = [
    ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ("karpenter.sh/do-not-disrupt", "true"),
];

/// The Deployment of the cluster.
pub(crate) fn deployment(
    cluster: &DaskCluster,
    name: &str,
    settings: &Settings,
) -> Result<Object, PlanError> {
    let template = template(cluster);
    let part = Part {
        container: labels::SCHEDULER,
        arguments: vec![
            "scheduler".to_owned(),
            "--journal-dir".to_owned(),
            JOURNAL_DIR.to_owned(),
        ],
        certificate: names::certificate_secret(name, Role::Scheduler),
        ports: &PORTS,
        probes: Probes::WithStartup,
    };
    let mut spec = pod::pod_spec(&template, part, settings)?;
    journal::lay(&mut spec, cluster, name);
    lay_tokens(&mut spec, name);
    spec.restart_policy = Some("Always".to_owned());
    let given = template.spec;
    if given.is_none_or(|spec| spec.get("terminationGracePeriodSeconds").is_none()) {
        spec.termination_grace_period_seconds = Some(GRACE_SECONDS);
    }
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
    let is_suspended = cluster.spec.suspend == Some(true);
    let extras = template.extras("/spec/template/spec", labels::SCHEDULER);
    let deployment = Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(i32::from(!is_suspended)),
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
                    annotations: pod_annotations(cluster, annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    Ok(Object::Deployment(Box::new(deployment)).extended(extras))
}

/// A scheduler whose journal would be lost with its pod stays where it is if it can.
fn pod_annotations(cluster: &DaskCluster, given: Option<Pairs>) -> Option<Pairs> {
    if journal::is_claimed(cluster) {
        return given;
    }
    let mut annotations = given.unwrap_or_default();
    for (key, value) in STAY {
        let entry = annotations.entry(key.to_owned());
        entry.or_insert_with(|| value.to_owned());
    }
    Some(annotations)
}

/// The tokens of the HTTP port, as files.
fn lay_tokens(spec: &mut PodSpec, name: &str) {
    let Some(container) = pod::main_container(spec, labels::SCHEDULER) else {
        return;
    };
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.retain(|mount| mount.mount_path != TOKEN_DIR && mount.name != TOKEN_VOLUME);
    mounts.push(pod::mount(TOKEN_VOLUME, TOKEN_DIR, true));
    let file = |key: &str| format!("{TOKEN_DIR}/{key}");
    let variables = vec![
        variable("OXIDASK_HTTP_TOKEN_FILE", file(HTTP_TOKEN_KEY)),
        variable(
            "OXIDASK_HTTP_OPERATOR_TOKEN_FILE",
            file(HTTP_OPERATOR_TOKEN_KEY),
        ),
    ];
    pod::append_environment(container, variables);
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| volume.name != TOKEN_VOLUME);
    volumes.push(Volume {
        name: TOKEN_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(names::http_token_secret(name)),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
}
