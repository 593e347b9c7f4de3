//! A pod as it is watched: only what planners read is taken out of the API server's answer.
//!
//! With ten thousand pods, each of which changes several times while it starts, the rest would be most
//! of the memory and a good part of the processor time: fields of other managers alone are larger than
//! what is kept.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::Deserialize;

/// A pod without what nobody reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Answer")]
pub(crate) struct SeenPod(pub(crate) Pod);

#[derive(Deserialize)]
struct Answer {
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    termination_grace_period_seconds: Option<i64>,
    scheduling_gates: Option<Vec<PodSchedulingGate>>,
}

impl From<Answer> for SeenPod {
    fn from(answer: Answer) -> Self {
        let mut status = answer.status;
        if let Some(status) = &mut status {
            prune(status);
        }
        Self(Pod {
            metadata: answer.metadata.into(),
            spec: answer.spec.map(Into::into),
            status,
        })
    }
}

impl From<Metadata> for ObjectMeta {
    fn from(seen: Metadata) -> Self {
        Self {
            name: seen.name,
            namespace: seen.namespace,
            uid: seen.uid,
            resource_version: seen.resource_version,
            generation: seen.generation,
            labels: seen.labels,
            annotations: seen.annotations,
            owner_references: seen.owner_references,
            finalizers: seen.finalizers,
            creation_timestamp: seen.creation_timestamp,
            deletion_timestamp: seen.deletion_timestamp,
            deletion_grace_period_seconds: seen.deletion_grace_period_seconds,
            ..Self::default()
        }
    }
}

impl From<Spec> for PodSpec {
    fn from(seen: Spec) -> Self {
        Self {
            node_name: seen.node_name,
            termination_grace_period_seconds: seen.termination_grace_period_seconds,
            scheduling_gates: seen.scheduling_gates,
            ..Self::default()
        }
    }
}

fn prune(status: &mut PodStatus) {
    status.pod_ips = None;
    status.host_ips = None;
    for container in status.container_statuses.iter_mut().flatten() {
        container.volume_mounts = None;
        container.container_id = None;
        container.resources = None;
    }
}

impl Resource for SeenPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_only_what_planners_read_is_kept() {
        let pod: SeenPod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "p", "labels": {"a": "b"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "nodeName": "n",
                "containers": [{"name": "worker", "image": "i", "env": [{"name": "A", "value": "b"}]}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "schedulingGates": [{"name": "g"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "containerStatuses": [{
                    "name": "worker", "image": "i", "imageID": "", "ready": true,
                    "restartCount": 1, "containerID": "containerd://0",
                }],
            },
        }))
        .unwrap();
        let kept = serde_json::to_value(&pod.0).unwrap();
        assert_eq!(kept["metadata"]["labels"]["a"], "b");
        assert!(kept["metadata"]["managedFields"].is_null());
        assert_eq!(kept["spec"]["nodeName"], "n");
        assert_eq!(kept["spec"]["schedulingGates"][0]["name"], "g");
        assert_eq!(kept["spec"]["containers"], serde_json::json!([]));
        assert!(kept["spec"]["volumes"].is_null());
        assert_eq!(kept["status"]["podIP"], "10.0.0.1");
        assert!(kept["status"]["podIPs"].is_null());
        assert_eq!(kept["status"]["containerStatuses"][0]["restartCount"], 1);
        assert!(kept["status"]["containerStatuses"][0]["containerID"].is_null());
    }

    #[test]
    fn a_list_without_specs_can_be_read() {
        let pod: SeenPod = serde_json::from_str(r#"{"metadata": {"name": "p"}}"#).unwrap();
        assert_eq!(pod.meta().name.as_deref(), Some("p"));
    }
}
