//! The pod of a worker.
//!
//! Owns what a worker is told: its name, its group, its slots, its memory, where the scheduler is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, EnvVar, EnvVarSource, EphemeralVolumeSource, ObjectFieldSelector,
    PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, Pod, PodSpec,
    TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use oxidask_operator_api::kubernetes::DaskWorkerGroup;
use oxidask_operator_api::{DEFAULT_SLOTS, Journal, Quantity, THREADS_MAX, Worker};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::extras::Extras;
use super::labels::{self, CLUSTER_NAME, COMPONENT, TEMPLATE_HASH, WORKER_GROUP_NAME};
use super::pod::{self, HTTP_PORT, Part, Probes, variable};
use super::program;
use super::template::Template;
use crate::{Object, PlanError, Settings, hash, names, owner};
use oxidask_identity::Role;

/// A worker's ports.
const PORTS: [(&str, i32); 2] = [(HTTP_PORT, 8788), ("tcp-data", 8789)];

/// The folder where relative locations start: the runtime's image has it.
pub(super) const WORKING_DIR: &str = "/data";

/// The resource that a GPU's limit has.
const GPU_LIMIT: &str = "nvidia.com/gpu";

/// Where a worker keeps temporary files and what does not fit into its memory, if it has a volume
/// of its own for that.
const SCRATCH_DIR: &str = "/scratch";

/// That volume.
const SCRATCH_VOLUME: &str = "oxidask-scratch";

/// What one worker needs of a volume.
const ACCESS_MODE: &str = "ReadWriteOnce";

/// Seconds that a worker has to hand over what only it holds, and to end, before it is killed.
const GRACE_SECONDS: i64 = 300;

/// Seconds of them that are left for ending.
const END_SECONDS: i64 = 10;

/// Hex digits of a template's hash.
const HASH_DIGITS: usize = 16;

/// What all pods of a group share; a pod is this and a name.
#[derive(Debug)]
pub(crate) struct WorkerPods {
    pod: Pod,
    extras: Extras,
    /// The hash of what they were made from.
    pub(crate) hash: String,
}

/// The labels of a group's pods, by which they are selected.
pub(crate) fn selecting_labels<'a>(
    cluster: &'a str,
    group: &'a str,
) -> [(&'static str, &'a str); 3] {
    [
        (CLUSTER_NAME, cluster),
        (WORKER_GROUP_NAME, group),
        (COMPONENT, labels::WORKER),
    ]
}

impl WorkerPods {
    /// The pods of the group.
    pub(crate) fn new(group: &DaskWorkerGroup, settings: &Settings) -> Result<Self, PlanError> {
        let worker = &group.spec.worker;
        let cluster = group.spec.cluster.as_str();
        let name = group.metadata.name.as_deref().unwrap_or_default();
        let namespace = group.metadata.namespace.as_deref().unwrap_or_default();
        let template = Template::of_worker("spec.worker", worker);
        let part = Part {
            container: labels::WORKER,
            arguments: vec!["worker".to_owned()],
            certificate: names::certificate_secret(cluster, Role::Worker),
            ports: &PORTS,
            probes: Probes::WithoutStartup,
        };
        let mut spec = pod::pod_spec(&template, part, settings)?;
        spec.restart_policy = Some("Always".to_owned());
        let has_own_grace = worker.spec.as_ref().is_some_and(has_grace);
        if !has_own_grace {
            spec.termination_grace_period_seconds = Some(GRACE_SECONDS);
        }
        let grace = spec
            .termination_grace_period_seconds
            .unwrap_or(GRACE_SECONDS);
        spread(&mut spec, name);
        if let Some(spill) = &worker.spill {
            scratch_volume(&mut spec, &template, spill)?;
        }
        if let Some(container) = pod::main_container(&mut spec, labels::WORKER) {
            let folder = container
                .working_dir
                .get_or_insert_with(|| WORKING_DIR.to_owned());
            let mut variables = identity(cluster, namespace, name);
            variables.push(variable("OXIDASK_BASE_DIR", folder.clone()));
            let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
            variables.extend(capacity(worker, limits));
            let seconds = (grace - END_SECONDS.min(grace / 2)).max(0);
            variables.push(variable("OXIDASK_GRACE_SECONDS", seconds.to_string()));
            if worker.spill.is_some() {
                variables.push(variable("OXIDASK_SCRATCH_DIR", SCRATCH_DIR));
            }
            pod::append_environment(container, variables);
        }
        program::bring(&mut spec, labels::WORKER, settings);
        let mut metadata = owner::metadata(String::new(), "DaskWorkerGroup", &group.metadata);
        let own = template.metadata;
        let reserved = selecting_labels(cluster, name);
        metadata.labels = Some(labels::pod_labels(
            group.metadata.labels.as_ref(),
            own,
            &reserved,
        ));
        metadata.annotations = labels::annotations(group.metadata.annotations.as_ref(), own);
        let hash = template_hash(worker, settings);
        if let Some(labels) = &mut metadata.labels {
            labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        }
        let pod = Pod {
            metadata,
            spec: Some(spec),
            status: None,
        };
        let extras = template.extras("/spec", labels::WORKER);
        Ok(Self { pod, extras, hash })
    }

    /// The pod of that name as it is applied, with what our types lost of its template.
    pub(crate) fn object(&self, name: &str) -> Object {
        Object::Pod(Box::new(self.named(name))).extended(self.extras.clone())
    }

    /// The pod of that name.
    pub(crate) fn named(&self, name: &str) -> Pod {
        let mut pod = self.pod.clone();
        pod.metadata.name = Some(name.to_owned());
        let spec = pod.spec.as_mut();
        if let Some(container) = spec.and_then(|spec| pod::main_container(spec, labels::WORKER)) {
            pod::append_environment(container, vec![variable("DASK_WORKER_NAME", name)]);
        }
        pod
    }
}

/// Over what a manifest and the operator's settings say about the pods. Not over the pods as they
/// come out: another version of the operator may make them otherwise, and that is no reason to
/// replace pods that run. Nor over labels that come from the cluster, which tools may change often.
fn template_hash(worker: &Worker, settings: &Settings) -> String {
    let mut worker = worker.clone();
    worker.replicas = None;
    worker.autoscale = None;
    // Of an image of ours the user says the version, else it is the operator's.
    let is_pinned = |image: &String| program::is_in(image, settings);
    let image = Some(settings.runtime_image.as_str());
    let image = image.filter(|_| !worker.image.as_ref().is_some_and(is_pinned));
    let text = serde_json::json!({"worker": worker, "image": image}).to_string();
    hash::hex(&Sha256::digest(text.as_bytes()), HASH_DIGITS)
}

/// Whether a pod spec says itself how long its end may take.
fn has_grace(spec: &Value) -> bool {
    let given = spec.get("terminationGracePeriodSeconds");
    given.is_some_and(|given| !given.is_null())
}

/// The volume for temporary files and spilled results: a claim that lives as long as the pod, or a
/// folder on the node.
fn scratch_volume(
    spec: &mut PodSpec,
    template: &Template<'_>,
    spill: &Journal,
) -> Result<(), PlanError> {
    let mut volume = Volume {
        name: SCRATCH_VOLUME.to_owned(),
        ..Volume::default()
    };
    if let Some(claim) = &spill.volume_claim {
        let mut claim: PersistentVolumeClaimSpec = template.read("spill.volumeClaim", claim)?;
        let modes = claim.access_modes.get_or_insert_default();
        if modes.is_empty() {
            modes.push(ACCESS_MODE.to_owned());
        }
        volume.ephemeral = Some(EphemeralVolumeSource {
            volume_claim_template: Some(PersistentVolumeClaimTemplate {
                metadata: None,
                spec: claim,
            }),
        });
    } else {
        let size_limit = spill.size_limit.as_ref();
        volume.empty_dir = Some(EmptyDirVolumeSource {
            size_limit: size_limit.map(|size| Amount(size.as_str().to_owned())),
            medium: None,
        });
    }
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|present| present.name != SCRATCH_VOLUME);
    volumes.push(volume);
    if let Some(container) = pod::main_container(spec, labels::WORKER) {
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.retain(|present| present.mount_path != SCRATCH_DIR);
        mounts.push(pod::mount(SCRATCH_VOLUME, SCRATCH_DIR, false));
    }
    Ok(())
}

fn identity(cluster: &str, namespace: &str, group: &str) -> Vec<EnvVar> {
    vec![
        variable(
            "DASK_SCHEDULER_ADDRESS",
            names::scheduler_address(cluster, namespace),
        ),
        variable("OXIDASK_GROUP", names::short_group(cluster, group)),
        field("OXIDASK_POD_UID", "metadata.uid"),
        field("OXIDASK_NODE", "spec.nodeName"),
    ]
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                // Given, because the API server would add it and hashes are over what we give.
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

/// Slots and task resources of a worker, as far as its own fields say.
pub(crate) fn offers(worker: &Worker) -> (u32, BTreeMap<String, u64>) {
    let limit = |name: &str| Some(worker.resources.as_ref()?.limits.get(name)?.rounded_up());
    let cores = limit("cpu").and_then(|cores| u32::try_from(cores).ok());
    let slots = worker.threads.or(cores).unwrap_or(DEFAULT_SLOTS);
    let mut offers = worker.task_resources.clone();
    if let Some(devices) = limit(GPU_LIMIT) {
        offers.entry("gpu".to_owned()).or_insert(devices);
    }
    (slots.clamp(1, THREADS_MAX), offers)
}

/// Slots, memory and task resources, by the same rules as in a local run.
fn capacity(worker: &Worker, limits: Option<&BTreeMap<String, Amount>>) -> Vec<EnvVar> {
    let limit = |name: &str| {
        let amount = limits?.get(name)?;
        Quantity::parse(&amount.0)
            .ok()
            .map(|amount| amount.rounded_up())
    };
    let cores = limit("cpu").and_then(|cores| u32::try_from(cores).ok());
    let slots = worker.threads.or(cores).unwrap_or(DEFAULT_SLOTS);
    let slots = slots.clamp(1, THREADS_MAX);
    let mut variables = vec![variable("OXIDASK_THREADS", slots.to_string())];
    if let Some(bytes) = limit("memory") {
        variables.push(variable("OXIDASK_MEMORY", bytes.to_string()));
    }
    let mut offers = worker.task_resources.clone();
    if let Some(devices) = limit(GPU_LIMIT) {
        offers.entry("gpu".to_owned()).or_insert(devices);
    }
    if !offers.is_empty() {
        let offers: Vec<String> = offers
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        variables.push(variable("OXIDASK_RESOURCES", offers.join(",")));
    }
    variables
}

/// One node's end should cost as few workers as possible.
fn spread(spec: &mut PodSpec, group: &str) {
    spec.topology_spread_constraints.get_or_insert_with(|| {
        let labels = [(WORKER_GROUP_NAME.to_owned(), group.to_owned())];
        vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(labels.into()),
                match_expressions: None,
            }),
            ..TopologySpreadConstraint::default()
        }]
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_version_of_what_is_brought_is_another_template() {
        let hash = |image: Value, version: &str| {
            let worker: Worker = serde_json::from_value(json!({"image": image})).unwrap();
            let image = format!("docker.io/oxidask/oxidask-runtime:{version}");
            template_hash(&worker, &Settings::new(image))
        };
        for image in [json!("tools:1"), json!(null)] {
            assert_ne!(hash(image.clone(), "1"), hash(image, "2"));
        }
        // It has a version of its own.
        let image = json!("registry/oxidask-runtime:1");
        assert_eq!(hash(image.clone(), "1"), hash(image, "2"));
    }
}
