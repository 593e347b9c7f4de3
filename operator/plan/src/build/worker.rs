//! The pod of a worker.
//!
//! Owns what a worker is told: its name, its group, its slots, its memory, where the scheduler is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use oxidask_operator_api::kubernetes::DaskWorkerGroup;
use oxidask_operator_api::{DEFAULT_SLOTS, Quantity, THREADS_MAX, Worker};

use super::labels::{self, CLUSTER_NAME, COMPONENT, WORKER_GROUP_NAME};
use super::pod::{self, HTTP_PORT, Part, Probes, variable};
use super::template::Template;
use crate::{PlanError, Settings, names, owner};
use oxidask_identity::Role;

/// A worker's ports.
const PORTS: [(&str, i32); 2] = [(HTTP_PORT, 8788), ("tcp-data", 8789)];

/// The folder where relative locations start: the runtime's image has it.
const WORKING_DIR: &str = "/data";

/// The resource that a GPU's limit has.
const GPU_LIMIT: &str = "nvidia.com/gpu";

/// What all pods of a group share; a pod is this and a name.
#[derive(Debug)]
pub(crate) struct WorkerPods {
    pod: Pod,
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
        spread(&mut spec, name);
        if let Some(container) = pod::main_container(&mut spec, labels::WORKER) {
            let folder = container
                .working_dir
                .get_or_insert_with(|| WORKING_DIR.to_owned());
            let mut variables = identity(cluster, namespace, name);
            variables.push(variable("OXIDASK_BASE_DIR", folder.clone()));
            let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
            variables.extend(capacity(worker, limits));
            pod::append_environment(container, variables);
        }
        let mut metadata = owner::metadata(String::new(), "DaskWorkerGroup", &group.metadata);
        let own = template.metadata;
        let reserved = selecting_labels(cluster, name);
        metadata.labels = Some(labels::pod_labels(
            group.metadata.labels.as_ref(),
            own,
            &reserved,
        ));
        metadata.annotations = labels::annotations(group.metadata.annotations.as_ref(), own);
        let pod = Pod {
            metadata,
            spec: Some(spec),
            status: None,
        };
        Ok(Self { pod })
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
