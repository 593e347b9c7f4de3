//! The objects that plans apply or delete, and how each is called.
//!
//! Owns their kinds and the one form in which they are sent. Knows nothing about what stands in them.

use std::fmt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::API_VERSION;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, DaskWorkerGroup};
use serde_json::{Value, json};

use crate::build::extras::Extras;

/// An object in its desired form. `metadata.resourceVersion` is set where an old snapshot must
/// not overwrite what somebody else has changed meanwhile: a conflict then means plan again.
#[derive(Debug, Clone)]
pub enum Object {
    /// The Service in front of a scheduler.
    Service(Box<Service>),
    /// The scheduler.
    Deployment(Box<Deployment>),
    /// The volume of a scheduler's journal.
    VolumeClaim(Box<PersistentVolumeClaim>),
    /// The work of a job.
    ConfigMap(Box<ConfigMap>),
    /// A worker or a runner.
    Pod(Box<Pod>),
    /// A group of workers.
    WorkerGroup(Box<DaskWorkerGroup>),
    /// The cluster of a job.
    Cluster(Box<DaskCluster>),
    /// One run of a scheduled job.
    Job(Box<DaskJob>),
    /// How many pods may be evicted at the same time.
    DisruptionBudget(Box<PodDisruptionBudget>),
    /// Who may speak to the pods.
    NetworkPolicy(Box<NetworkPolicy>),
    /// The account of the pods, without rights.
    ServiceAccount(Box<ServiceAccount>),
    /// An object that a user made gets its cluster as owner, and nothing else of it is touched.
    Adoption(Box<Adoption>),
    /// One of the above with fields of a user's template that our types do not know.
    Extended(Box<Extended>),
}

/// An object and what our types lost of the template that it comes from.
#[derive(Debug, Clone)]
pub struct Extended {
    /// The object; never itself an extended one.
    pub object: Object,
    /// What is laid into its body.
    pub(crate) extras: Extras,
}

/// A group of workers or an autoscaler, and its future owner.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// What is adopted.
    pub kind: ObjectKind,
    /// Name, namespace and the owner reference; nothing else.
    pub metadata: ObjectMeta,
}

impl Object {
    /// The object with what our types lost of its template.
    pub(crate) fn extended(self, extras: Extras) -> Self {
        if extras.is_empty() {
            return self;
        }
        let object = self;
        Self::Extended(Box::new(Extended { object, extras }))
    }

    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::Deployment(_) => ObjectKind::Deployment,
            Self::VolumeClaim(_) => ObjectKind::VolumeClaim,
            Self::ConfigMap(_) => ObjectKind::ConfigMap,
            Self::Pod(_) => ObjectKind::Pod,
            Self::WorkerGroup(_) => ObjectKind::WorkerGroup,
            Self::Cluster(_) => ObjectKind::Cluster,
            Self::Job(_) => ObjectKind::Job,
            Self::DisruptionBudget(_) => ObjectKind::DisruptionBudget,
            Self::NetworkPolicy(_) => ObjectKind::NetworkPolicy,
            Self::ServiceAccount(_) => ObjectKind::ServiceAccount,
            Self::Adoption(adoption) => adoption.kind,
            Self::Extended(extended) => extended.object.kind(),
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::VolumeClaim(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::WorkerGroup(object) => &object.metadata,
            Self::Cluster(object) => &object.metadata,
            Self::Job(object) => &object.metadata,
            Self::DisruptionBudget(object) => &object.metadata,
            Self::NetworkPolicy(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Adoption(object) => &object.metadata,
            Self::Extended(extended) => extended.object.metadata(),
        }
    }

    pub(crate) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::Deployment(object) => &mut object.metadata,
            Self::VolumeClaim(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::WorkerGroup(object) => &mut object.metadata,
            Self::Cluster(object) => &mut object.metadata,
            Self::Job(object) => &mut object.metadata,
            Self::DisruptionBudget(object) => &mut object.metadata,
            Self::NetworkPolicy(object) => &mut object.metadata,
            Self::ServiceAccount(object) => &mut object.metadata,
            Self::Adoption(object) => &mut object.metadata,
            Self::Extended(extended) => extended.object.metadata_mut(),
        }
    }

    /// Its name; every object of a plan has one.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// The body of the apply request, with `apiVersion` and `kind` and without a status.
    pub fn to_value(&self) -> Value {
        let value = match self {
            Self::Service(object) => serde_json::to_value(object),
            Self::Deployment(object) => serde_json::to_value(object),
            Self::VolumeClaim(object) => serde_json::to_value(object),
            Self::ConfigMap(object) => serde_json::to_value(object),
            Self::Pod(object) => serde_json::to_value(object),
            Self::WorkerGroup(object) => serde_json::to_value(object),
            Self::Cluster(object) => serde_json::to_value(object),
            Self::Job(object) => serde_json::to_value(object),
            Self::DisruptionBudget(object) => serde_json::to_value(object),
            Self::NetworkPolicy(object) => serde_json::to_value(object),
            Self::ServiceAccount(object) => serde_json::to_value(object),
            Self::Adoption(object) => Ok(json!({
                "apiVersion": API_VERSION,
                "kind": object.kind.kind(),
                "metadata": object.metadata,
            })),
            Self::Extended(extended) => {
                let mut value = extended.object.to_value();
                extended.extras.lay(&mut value);
                Ok(value)
            }
        };
        // These types are maps with string keys, which always have a JSON form.
        let mut value = value.unwrap_or(Value::Null);
        if let Some(object) = value.as_object_mut() {
            object.remove("status");
        }
        value
    }
}

/// The kinds that a plan applies or deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `apps/v1` Deployment.
    Deployment,
    /// `v1` `PersistentVolumeClaim`.
    VolumeClaim,
    /// `v1` `ConfigMap`.
    ConfigMap,
    /// `v1` Pod.
    Pod,
    /// `DaskWorkerGroup`.
    WorkerGroup,
    /// `DaskCluster`.
    Cluster,
    /// `DaskJob`.
    Job,
    /// `DaskAutoscaler`.
    Autoscaler,
    /// `policy/v1` `PodDisruptionBudget`.
    DisruptionBudget,
    /// `networking.k8s.io/v1` `NetworkPolicy`.
    NetworkPolicy,
    /// `v1` `ServiceAccount`.
    ServiceAccount,
}

impl ObjectKind {
    /// The `kind` of a manifest.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::VolumeClaim => "PersistentVolumeClaim",
            Self::ConfigMap => "ConfigMap",
            Self::Pod => "Pod",
            Self::WorkerGroup => "DaskWorkerGroup",
            Self::Cluster => "DaskCluster",
            Self::Job => "DaskJob",
            Self::Autoscaler => "DaskAutoscaler",
            Self::DisruptionBudget => "PodDisruptionBudget",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ServiceAccount => "ServiceAccount",
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Service
            | Self::VolumeClaim
            | Self::ConfigMap
            | Self::Pod
            | Self::ServiceAccount => "",
            Self::Deployment => "apps",
            Self::DisruptionBudget => "policy",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::WorkerGroup | Self::Cluster | Self::Job | Self::Autoscaler => {
                "kubernetes.dask.org"
            }
        }
    }

    /// The version within the group.
    pub fn version(self) -> &'static str {
        "v1"
    }

    /// The plural in addresses.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Deployment => "deployments",
            Self::VolumeClaim => "persistentvolumeclaims",
            Self::ConfigMap => "configmaps",
            Self::Pod => "pods",
            Self::WorkerGroup => "daskworkergroups",
            Self::Cluster => "daskclusters",
            Self::Job => "daskjobs",
            Self::Autoscaler => "daskautoscalers",
            Self::DisruptionBudget => "poddisruptionbudgets",
            Self::NetworkPolicy => "networkpolicies",
            Self::ServiceAccount => "serviceaccounts",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// Exactly one object, and not another one that has taken its name since.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl ObjectKey {
    pub(crate) fn new(kind: ObjectKind, metadata: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self {
            kind,
            namespace: text(&metadata.namespace),
            name: text(&metadata.name),
            uid: text(&metadata.uid),
        }
    }
}
