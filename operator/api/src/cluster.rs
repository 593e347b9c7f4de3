//! `DaskCluster` and the parts that a `DaskJob` shares with it.
//!
//! Owns the field names: a superset of what dask-kubernetes accepts. Parts that only Kubernetes
//! understands are kept as they are (`Value`). Checks that need more than one field live in
//! `validate`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Quantity;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::foreign;

/// A scheduler and its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaskCluster {
    /// Always `kubernetes.dask.org/v1`.
    pub api_version: String,
    /// Always `DaskCluster`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: ClusterSpec,
    /// Written by the operator; ignored in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// Metadata of an object or of the pods made for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name, a DNS label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The start of a name that the API server completes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_name: Option<String>,
    /// The namespace, a DNS label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<Value>,
    /// Finalizers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Written by the API server, as are all fields below; accepted from `kubectl get -o yaml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_link: Option<String>,
    /// See `uid`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<Value>,
}

/// Which programs the pods run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
pub enum Runtime {
    /// The scheduler and workers of oxidask.
    Rust,
    /// Dask for Python, exactly as the pod specs say.
    Dask,
}

/// The wanted cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Which programs the pods run. If absent: `Dask` when any pod spec is given, `Rust` when none is
    /// or when the work is of kind `sql`, `graph` or `script`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// The workers of the group `default`.
    pub worker: Worker,
    /// Further groups of workers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worker_groups: Vec<WorkerGroup>,
    /// Seconds without work after which the cluster is deleted; 0 or absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u64>,
    /// Certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// True removes the pods and keeps the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// How pods are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
}

impl ClusterSpec {
    /// The runtime: as given, otherwise `Dask` when any pod spec is given and `Rust` when none is.
    pub fn runtime(&self) -> Runtime {
        let scheduler_has_spec = self.scheduler.as_ref().is_some_and(|s| s.spec.is_some());
        let worker_has_spec =
            self.worker.spec.is_some() || self.worker_groups.iter().any(|g| g.spec.is_some());
        self.runtime
            .unwrap_or(if scheduler_has_spec || worker_has_spec {
                Runtime::Dask
            } else {
                Runtime::Rust
            })
    }
}

/// A Kubernetes resources block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What a pod may use at most.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
    /// What a pod is promised.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// Claims of dynamic resource allocation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::ResourceClaim>"))]
    pub claims: Vec<Value>,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where Kubernetes takes its value from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::EnvVarSource>")
    )]
    pub value_from: Option<Value>,
}

/// Bounds for the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Autoscale {
    /// Never fewer workers.
    #[serde(default)]
    pub minimum: u32,
    /// Never more workers.
    pub maximum: u32,
    /// Seconds for which fewer workers must be enough before there are fewer; 15 if absent, and
    /// never less than pods took to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down_window_seconds: Option<u32>,
    /// Seconds of work that each worker should have at most; 5 if absent. The smallest one of a
    /// cluster counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_seconds: Option<u32>,
    /// True: the status says how many workers there should be, and nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommend_only: Option<bool>,
}

/// Disk space for the journal or for spilled results; an emptyDir unless a claim is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Journal {
    /// A `PersistentVolumeClaim` spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::PersistentVolumeClaimSpec>")
    )]
    pub volume_claim: Option<Value>,
    /// The size limit of the emptyDir.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// Where certificates come from and how long they live.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Tls {
    /// A Secret with an authority of the user's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::SecretReference>")
    )]
    pub ca_secret_ref: Option<Value>,
    /// A cert-manager issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::IssuerReference>")
    )]
    pub issuer_ref: Option<Value>,
    /// Lifetime of a leaf, such as `24h`; `90d` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::Span>"))]
    pub certificate_lifetime: Option<String>,
    /// How long before its end a leaf is renewed; `7d` if absent, at most a third of the lifetime.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::Span>"))]
    pub renew_before: Option<String>,
}

/// A cert-manager issuer, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Its name.
    pub name: String,
    /// `Issuer` or `ClusterIssuer`, or what an external issuer is called.
    pub kind: String,
    /// Its API group.
    pub group: String,
}

impl Tls {
    /// The name of the Secret with an authority of the user's own.
    pub fn authority_secret(&self) -> Option<&str> {
        self.ca_secret_ref.as_ref()?.get("name")?.as_str()
    }

    /// The cert-manager issuer.
    pub fn issuer(&self) -> Option<Issuer> {
        let reference = self.issuer_ref.as_ref()?;
        let text = |key: &str, default: &str| {
            let given = reference.get(key).and_then(Value::as_str);
            given
                .filter(|text| !text.is_empty())
                .unwrap_or(default)
                .to_owned()
        };
        Some(Issuer {
            name: reference.get("name")?.as_str()?.to_owned(),
            kind: text("kind", "Issuer"),
            group: text("group", "cert-manager.io"),
        })
    }

    /// How long a leaf is valid; none if it is not given or not a span.
    pub fn lifetime(&self) -> Option<Duration> {
        crate::duration::duration(self.certificate_lifetime.as_deref()?)
    }

    /// How long before its end a leaf is renewed; none if it is not given or not a span.
    pub fn renewal(&self) -> Option<Duration> {
        crate::duration::duration(self.renew_before.as_deref()?)
    }
}

/// How many pods of a group may be added or missing while pods are replaced, and how long a worker
/// may take to go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// Pods above the wanted number, a number or a percentage; `25%` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::IntOrString>")
    )]
    pub max_surge: Option<Value>,
    /// Workers that may be missing, a number or a percentage; 0 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::IntOrString>")
    )]
    pub max_unavailable: Option<Value>,
    /// Seconds that a worker gets to hand over its work; 0 or absent: as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_seconds: Option<u32>,
}

/// Writes a struct with the fields that every pod template of ours has, besides its own. One list
/// of fields, because `serde(flatten)` would lose the names that the messages about unknown fields
/// need.
macro_rules! pod_template {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($own)*
            /// Labels and annotations of the pods.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::TemplateMetadata>"))]
            pub metadata: Option<Metadata>,
            /// The usual Kubernetes block.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub resources: Option<Resources>,
            /// The container image.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub image: Option<String>,
            /// Environment variables.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub env: Vec<EnvironmentVariable>,
            /// Environment variables from `ConfigMaps` and Secrets.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::EnvFromSource>"))]
            pub env_from: Vec<Value>,
            /// Volumes of the pod.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::Volume>"))]
            pub volumes: Vec<Value>,
            /// Where the volumes are mounted.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::VolumeMount>"))]
            pub volume_mounts: Vec<Value>,
            /// Labels that a node must have.
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            pub node_selector: BTreeMap<String, String>,
            /// Taints that are tolerated.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::Toleration>"))]
            pub tolerations: Vec<Value>,
            /// Wishes about nodes and neighbours.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::Affinity>"))]
            pub affinity: Option<Value>,
            /// The service account.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub service_account_name: Option<String>,
            /// Secrets for pulling the image.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Vec<foreign::LocalObjectReference>"))]
            pub image_pull_secrets: Vec<Value>,
            /// The folder where relative locations start in a pod; `/data` if absent.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub working_dir: Option<String>,
            /// A whole pod spec, onto which the runtime is laid.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::PodSpec>"))]
            pub spec: Option<Value>,
        }
    };
}

/// The names of the given fields that all pods share but a local run has no use for.
macro_rules! shared_pod_fields {
    ($pod:expr) => {{
        let pod = $pod;
        let given = [
            ("metadata", pod.metadata.is_some()),
            ("image", pod.image.is_some()),
            ("envFrom", !pod.env_from.is_empty()),
            ("volumes", !pod.volumes.is_empty()),
            ("volumeMounts", !pod.volume_mounts.is_empty()),
            ("nodeSelector", !pod.node_selector.is_empty()),
            ("tolerations", !pod.tolerations.is_empty()),
            ("affinity", pod.affinity.is_some()),
            ("serviceAccountName", pod.service_account_name.is_some()),
            ("imagePullSecrets", !pod.image_pull_secrets.is_empty()),
            ("spec", pod.spec.is_some()),
        ];
        given
            .into_iter()
            .filter(|(_, given)| *given)
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    }};
}

pod_template! {
    /// The scheduler's pod.
    Scheduler {
        /// The Service in front of it, for dask-kubernetes manifests.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "kubernetes", schemars(with = "Option<foreign::ServiceSpec>"))]
        pub service: Option<Value>,
        /// Where the journal is kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub journal: Option<Journal>,
    }
}

impl Scheduler {
    /// Fields that are given and that a local run has no use for.
    pub(crate) fn pod_fields(&self) -> Vec<&'static str> {
        let mut fields = shared_pod_fields!(self);
        fields.extend(self.resources.as_ref().map(|_| "resources"));
        fields.extend((!self.env.is_empty()).then_some("env"));
        fields.extend(self.service.as_ref().map(|_| "service"));
        fields.extend(self.journal.as_ref().map(|_| "journal"));
        fields
    }
}

/// A group of workers has the fields of `Worker` and a name; written by one macro so that they
/// cannot drift apart.
macro_rules! worker_template {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        pod_template! {
            $(#[$about])*
            $name {
                $($own)*
                /// How many workers; 1 if absent.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub replicas: Option<u32>,
                /// Slots for tasks; the CPU limit, rounded up, if absent.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub threads: Option<u32>,
                /// Bounds within which the number of workers follows the load.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub autoscale: Option<Autoscale>,
                /// Abstract amounts that each worker offers to tasks.
                #[serde(skip_serializing_if = "BTreeMap::is_empty")]
                pub task_resources: BTreeMap<String, u64>,
                /// Where results go that do not fit into memory.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub spill: Option<Journal>,
            }
        }
    };
}

worker_template! {
    /// The workers of one group.
    Worker {}
}

worker_template! {
    /// A further group of workers.
    WorkerGroup {
        /// Its name, unique in the cluster; `default` is taken.
        pub name: String,
    }
}

impl Worker {
    /// Fields that are given and that a local run has no use for.
    pub(crate) fn pod_fields(&self) -> Vec<&'static str> {
        let mut fields = shared_pod_fields!(self);
        fields.extend(self.autoscale.map(|_| "autoscale"));
        fields.extend(self.spill.as_ref().map(|_| "spill"));
        let is_from_elsewhere = self
            .env
            .iter()
            .any(|variable| variable.value_from.is_some());
        fields.extend(is_from_elsewhere.then_some("env[].valueFrom"));
        fields
    }

    /// The resources of the first container of the pod template.
    pub(crate) fn template_resources(&self) -> Option<Resources> {
        let resources = self.spec.as_ref()?.pointer("/containers/0/resources")?;
        serde_json::from_value(resources.clone()).ok()
    }
}

impl WorkerGroup {
    /// The group without its name.
    pub fn to_worker(&self) -> Worker {
        let group = self.clone();
        Worker {
            replicas: group.replicas,
            threads: group.threads,
            autoscale: group.autoscale,
            task_resources: group.task_resources,
            spill: group.spill,
            metadata: group.metadata,
            resources: group.resources,
            image: group.image,
            env: group.env,
            env_from: group.env_from,
            volumes: group.volumes,
            volume_mounts: group.volume_mounts,
            node_selector: group.node_selector,
            tolerations: group.tolerations,
            affinity: group.affinity,
            service_account_name: group.service_account_name,
            image_pull_secrets: group.image_pull_secrets,
            working_dir: group.working_dir,
            spec: group.spec,
        }
    }
}
