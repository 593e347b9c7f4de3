//! What a planner returns.
//!
//! Owns the plain values that the controller carries out. Knows nothing about how they come about.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use oxidask_identity::Role;
use oxidask_operator_api::API_VERSION;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup};
use serde_json::{Value, json};

/// What the operator is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image of schedulers, workers and runners whose manifest names none.
    pub runtime_image: String,
    /// The pull policy of pods whose manifest names none.
    pub image_pull_policy: Option<String>,
}

/// What has to be done, carried out in this order: status, certificates, apply, delete, events.
/// A step that fails ends the round; the next one starts from a new snapshot.
#[derive(Debug, Clone)]
pub struct Plan<S> {
    /// The whole desired status, if it differs from the observed one.
    pub status: Option<S>,
    /// Certificates to issue.
    pub certificates: Option<CertificateRequest>,
    /// Objects to apply on the server's side, in this order.
    pub apply: Vec<Object>,
    /// Objects to delete, in the background, with the UID as precondition.
    pub delete: Vec<Deletion>,
    /// Events about the planned object.
    pub events: Vec<PlannedEvent>,
    /// When to plan again although nothing has changed.
    pub wake_after: Option<Duration>,
}

impl<S> Default for Plan<S> {
    fn default() -> Self {
        Self {
            status: None,
            certificates: None,
            apply: Vec::new(),
            delete: Vec::new(),
            events: Vec::new(),
            wake_after: None,
        }
    }
}

impl<S> Plan<S> {
    /// True when there is nothing to do before something changes or `wake_after` has passed.
    pub fn is_empty(&self) -> bool {
        self.status.is_none()
            && self.certificates.is_none()
            && self.apply.is_empty()
            && self.delete.is_empty()
            && self.events.is_empty()
    }
}

/// Secrets of a cluster that are missing or about to end.
#[derive(Debug, Clone, PartialEq)]
pub struct CertificateRequest {
    /// The cluster's name.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// The authority is missing: make one first. `roles` then holds all roles.
    pub needs_authority: bool,
    /// The roles that need a new certificate.
    pub roles: Vec<Role>,
    /// The owner of the Secrets.
    pub owner: OwnerReference,
    /// The labels of the Secrets.
    pub labels: BTreeMap<String, String>,
    /// Names that foreign tools look for in the scheduler's certificate.
    pub scheduler_dns_names: Vec<String>,
}

/// An object in its desired form. `metadata.resourceVersion` is set where an old snapshot must
/// not overwrite what somebody else has changed meanwhile: a conflict then means plan again.
#[derive(Debug, Clone)]
pub enum Object {
    /// The Service in front of a scheduler.
    Service(Box<Service>),
    /// The scheduler.
    Deployment(Box<Deployment>),
    /// The work of a job.
    ConfigMap(Box<ConfigMap>),
    /// A worker or a runner.
    Pod(Box<Pod>),
    /// A group of workers.
    WorkerGroup(Box<DaskWorkerGroup>),
    /// The cluster of a job.
    Cluster(Box<DaskCluster>),
    /// A group that a user made gets its cluster as owner, and nothing else of it is touched.
    Adoption(Box<Adoption>),
}

/// A group of workers and its future owner.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// Name, namespace and the owner reference; nothing else.
    pub metadata: ObjectMeta,
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::Deployment(_) => ObjectKind::Deployment,
            Self::ConfigMap(_) => ObjectKind::ConfigMap,
            Self::Pod(_) => ObjectKind::Pod,
            Self::WorkerGroup(_) | Self::Adoption(_) => ObjectKind::WorkerGroup,
            Self::Cluster(_) => ObjectKind::Cluster,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::WorkerGroup(object) => &object.metadata,
            Self::Cluster(object) => &object.metadata,
            Self::Adoption(object) => &object.metadata,
        }
    }

    pub(crate) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::Deployment(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::WorkerGroup(object) => &mut object.metadata,
            Self::Cluster(object) => &mut object.metadata,
            Self::Adoption(object) => &mut object.metadata,
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
            Self::ConfigMap(object) => serde_json::to_value(object),
            Self::Pod(object) => serde_json::to_value(object),
            Self::WorkerGroup(object) => serde_json::to_value(object),
            Self::Cluster(object) => serde_json::to_value(object),
            Self::Adoption(object) => Ok(json!({
                "apiVersion": API_VERSION,
                "kind": ObjectKind::WorkerGroup.kind(),
                "metadata": object.metadata,
            })),
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
    /// `v1` `ConfigMap`.
    ConfigMap,
    /// `v1` Pod.
    Pod,
    /// `DaskWorkerGroup`.
    WorkerGroup,
    /// `DaskCluster`.
    Cluster,
}

impl ObjectKind {
    /// The `kind` of a manifest.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::ConfigMap => "ConfigMap",
            Self::Pod => "Pod",
            Self::WorkerGroup => "DaskWorkerGroup",
            Self::Cluster => "DaskCluster",
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Service | Self::ConfigMap | Self::Pod => "",
            Self::Deployment => "apps",
            Self::WorkerGroup | Self::Cluster => "kubernetes.dask.org",
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
            Self::ConfigMap => "configmaps",
            Self::Pod => "pods",
            Self::WorkerGroup => "daskworkergroups",
            Self::Cluster => "daskclusters",
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

/// An object to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Which.
    pub object: ObjectKey,
    /// Why.
    pub reason: DeletionReason,
}

impl Deletion {
    pub(crate) fn new(kind: ObjectKind, metadata: &ObjectMeta, reason: DeletionReason) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let object = ObjectKey {
            kind,
            namespace: text(&metadata.namespace),
            name: text(&metadata.name),
            uid: text(&metadata.uid),
        };
        Self { object, reason }
    }
}

/// Why an object is deleted: the label of a metric, and part of an event's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeletionReason {
    /// The group has more workers than are wanted.
    ScaledDown,
    /// The pod has ended for good; workers never end by themselves.
    WorkerEnded,
    /// The cluster's spec no longer has the group.
    GroupRemoved,
    /// The job has its final status.
    JobFinished,
    /// The runner's pod was evicted or its node went away.
    RunnerLost,
}

impl DeletionReason {
    /// The reason in `CamelCase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaledDown => "ScaledDown",
            Self::WorkerEnded => "WorkerEnded",
            Self::GroupRemoved => "GroupRemoved",
            Self::JobFinished => "JobFinished",
            Self::RunnerLost => "RunnerLost",
        }
    }
}

impl fmt::Display for DeletionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An event about the planned object. The note is at most 1,024 bytes, as the API server asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedEvent {
    /// What happened, in `CamelCase`.
    pub reason: &'static str,
    /// Normal or Warning.
    pub kind: EventKind,
    /// What the operator did about it, in `CamelCase`.
    pub action: &'static str,
    /// The text for people.
    pub note: String,
}

/// Bytes of an event's note.
const NOTE_BYTES_MAX: usize = 1024;

impl PlannedEvent {
    pub(crate) fn normal(reason: &'static str, action: &'static str, note: &str) -> Self {
        let note = crate::status::cut(note, NOTE_BYTES_MAX);
        Self {
            reason,
            kind: EventKind::Normal,
            action,
            note,
        }
    }

    pub(crate) fn warning(reason: &'static str, action: &'static str, note: &str) -> Self {
        let kind = EventKind::Warning;
        Self {
            kind,
            ..Self::normal(reason, action, note)
        }
    }
}
