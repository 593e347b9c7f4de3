//! What a planner returns.
//!
//! Owns the plain values that the controller carries out. Knows nothing about how they come about.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use oxidask_identity::Role;

use serde_json::Value;

use crate::object::{Object, ObjectKey, ObjectKind};

/// What the operator is told when it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The image of schedulers, workers and runners whose manifest names none.
    pub runtime_image: String,
    /// The pull policy of pods whose manifest names none.
    pub image_pull_policy: Option<String>,
    /// Whether each cluster gets a network policy.
    pub network_policies: bool,
    /// The namespace of the operator, which network policies let in.
    pub operator_namespace: Option<String>,
    /// The only namespace that network policies let look at metrics; none: every one.
    pub metrics_namespace: Option<String>,
}

impl Settings {
    /// The settings of an operator that is told nothing but the image.
    pub fn new(runtime_image: impl Into<String>) -> Self {
        Self {
            runtime_image: runtime_image.into(),
            ..Self::default()
        }
    }
}

/// What has to be done, carried out in the order of the fields. A step that fails ends the round;
/// the next one starts from a new snapshot.
#[derive(Debug, Clone)]
pub struct Plan<S> {
    /// Finalizers and annotations to add to or to take from objects.
    pub metadata: Vec<MetadataChange>,
    /// The whole desired status, if it differs from the observed one.
    pub status: Option<S>,
    /// Certificates to issue.
    pub certificates: Option<CertificateRequest>,
    /// Objects to apply on the server's side, in this order.
    pub apply: Vec<Object>,
    /// New numbers of workers for groups.
    pub scale: Vec<Scaling>,
    /// Workers that the scheduler is asked to drain. Asking again changes nothing.
    pub retire: Vec<Retirement>,
    /// Workers of which the scheduler is told that they have ended.
    pub ended: Vec<WorkerEnd>,
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
            metadata: Vec::new(),
            status: None,
            certificates: None,
            apply: Vec::new(),
            scale: Vec::new(),
            retire: Vec::new(),
            ended: Vec::new(),
            delete: Vec::new(),
            events: Vec::new(),
            wake_after: None,
        }
    }
}

impl<S> Plan<S> {
    /// True when there is nothing to do before something changes or `wake_after` has passed.
    pub fn is_empty(&self) -> bool {
        self.status.is_none() && self.does_nothing()
    }

    fn does_nothing(&self) -> bool {
        self.metadata.is_empty()
            && self.certificates.is_none()
            && self.apply.is_empty()
            && self.scale.is_empty()
            && self.retire.is_empty()
            && self.ended.is_empty()
            && self.delete.is_empty()
            && self.events.is_empty()
    }

    /// True when all there is to do is to say how things stand.
    pub fn is_status_only(&self) -> bool {
        self.status.is_some() && self.does_nothing()
    }

    /// Plans again no later than that.
    pub fn wake(&mut self, after: Duration) {
        self.wake_after = Some(self.wake_after.map_or(after, |before| before.min(after)));
    }
}

/// Finalizers and annotations of an object that change, by a merge patch under its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataChange {
    /// Which object.
    pub object: ObjectKey,
    /// The version that was seen: another one is a conflict, and the next plan decides.
    pub resource_version: Option<String>,
    /// The finalizers that it has then, if they change.
    pub finalizers: Option<Vec<String>>,
    /// Annotations that change: `None` removes one.
    pub annotations: BTreeMap<String, Option<String>>,
}

impl MetadataChange {
    /// A change of nothing yet.
    pub(crate) fn new(kind: ObjectKind, metadata: &ObjectMeta) -> Self {
        Self {
            object: ObjectKey::new(kind, metadata),
            resource_version: metadata.resource_version.clone(),
            finalizers: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A new `spec.worker.replicas` of a group, written by a patch under the version that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// The group.
    pub object: ObjectKey,
    /// Its version in the snapshot.
    pub resource_version: Option<String>,
    /// How many workers it has now, by its spec.
    pub from: u32,
    /// How many it shall have.
    pub to: u32,
    /// Why, in words.
    pub reason: String,
}

/// A worker to drain: no new work, what runs may finish, what only it holds goes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// The namespace of its cluster.
    pub namespace: String,
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub worker: String,
    /// What still runs after this time is stopped and runs elsewhere; zero: it is waited for.
    pub deadline: Duration,
    /// The worker stays after all.
    pub is_cancelled: bool,
}

/// A worker that has ended for good, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEnd {
    /// The namespace of its cluster.
    pub namespace: String,
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub worker: String,
    /// The UID of its pod.
    pub pod_uid: String,
    /// In words: exit status, signal, out of memory, evicted.
    pub reason: String,
}

/// What the API server refused when the object's last plan was carried out, such as a pod for
/// which a quota has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was refused: `Pod a-default-worker-0123456789`.
    pub object: String,
    /// The API server's words.
    pub message: String,
}

/// Secrets of a cluster that are missing, about to end, or to be changed: one step.
#[derive(Debug, Clone, PartialEq)]
pub struct CertificateRequest {
    /// The cluster's name.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// What happens to the authority. Done before anything else.
    pub authority: Option<AuthorityStep>,
    /// The version of the authority's Secret in the snapshot: another one is a conflict.
    pub authority_version: Option<String>,
    /// The user's Secret that a new authority is taken from; none: it is generated.
    pub authority_source: Option<String>,
    /// The text of the annotation that asks for a rotation, to be remembered with the authority.
    pub rotated_for: Option<String>,
    /// The roles that need a new certificate.
    pub roles: Vec<Role>,
    /// The roles whose Secret needs the authority's present bundle, and nothing else.
    pub bundles: Vec<Role>,
    /// How long a certificate of a role is valid.
    pub lifetime: Duration,
    /// Whether the Secret with the HTTP tokens is missing.
    pub needs_http_token: bool,
    /// Objects of cert-manager to apply, complete.
    pub issued: Vec<Value>,
    /// The owner of the Secrets.
    pub owner: OwnerReference,
    /// The labels of the Secrets.
    pub labels: BTreeMap<String, String>,
    /// Names that foreign tools look for in the scheduler's certificate.
    pub scheduler_dns_names: Vec<String>,
}

impl CertificateRequest {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.authority.is_none()
            && self.roles.is_empty()
            && self.bundles.is_empty()
            && self.issued.is_empty()
            && !self.needs_http_token
    }
}

/// What happens to the authority of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityStep {
    /// There is none: one is made. What the roles' Secrets trust now stays trusted for a while.
    Create,
    /// Somebody put another one into the Secret: what the roles' Secrets trust now stays trusted
    /// for a while.
    Adopt,
    /// A new one is made beside the present one, and trusted from now on.
    Begin,
    /// The new one issues from now on.
    Issue,
    /// The old one is not trusted any more.
    Retire,
    /// The rotation is over.
    Finish,
}

/// An object to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Which.
    pub object: ObjectKey,
    /// The version that it must still have: what was decided from its state is not done to another
    /// one. `None`: whatever its state.
    pub resource_version: Option<String>,
    /// Why.
    pub reason: DeletionReason,
}

impl Deletion {
    pub(crate) fn new(kind: ObjectKind, metadata: &ObjectMeta, reason: DeletionReason) -> Self {
        Self {
            object: ObjectKey::new(kind, metadata),
            resource_version: None,
            reason,
        }
    }

    /// The same, but only while the object is as it was seen.
    pub(crate) fn as_seen(kind: ObjectKind, metadata: &ObjectMeta, reason: DeletionReason) -> Self {
        let resource_version = metadata.resource_version.clone();
        Self {
            resource_version,
            ..Self::new(kind, metadata, reason)
        }
    }
}

/// Why an object is deleted: the label of a metric, and part of an event's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeletionReason {
    /// The group has more workers than are wanted.
    ScaledDown,
    /// The pod has ended for good; workers never end by themselves.
    WorkerEnded,
    /// The group's template has changed since the pod was made.
    TemplateChanged,
    /// Somebody has asked the scheduler to drain the worker, and another one takes its place.
    Drained,
    /// The worker took longer to hand over its work than the manifest allows.
    DrainTimeout,
    /// The cluster or the job is suspended.
    Suspended,
    /// The group is being deleted.
    GroupDeleted,
    /// The cluster's spec no longer has the group.
    GroupRemoved,
    /// The cluster has had nothing to do for as long as its spec allows.
    IdleTimeout,
    /// The job has its final status.
    JobFinished,
    /// The runner's pod was evicted or its node went away.
    RunnerLost,
    /// The work failed and is started again.
    AttemptFailed,
    /// The job ended longer ago than it is to be kept.
    Expired,
    /// A new run of the schedule takes its place.
    Replaced,
    /// The schedule keeps only so many ended runs.
    HistoryLimit,
    /// Nothing asks for the object any more.
    NotWanted,
}

impl DeletionReason {
    /// The reason in `CamelCase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaledDown => "ScaledDown",
            Self::WorkerEnded => "WorkerEnded",
            Self::TemplateChanged => "TemplateChanged",
            Self::Drained => "Drained",
            Self::DrainTimeout => "DrainTimeout",
            Self::Suspended => "Suspended",
            Self::GroupDeleted => "GroupDeleted",
            Self::GroupRemoved => "GroupRemoved",
            Self::IdleTimeout => "IdleTimeout",
            Self::JobFinished => "JobFinished",
            Self::RunnerLost => "RunnerLost",
            Self::AttemptFailed => "AttemptFailed",
            Self::Expired => "Expired",
            Self::Replaced => "Replaced",
            Self::HistoryLimit => "HistoryLimit",
            Self::NotWanted => "NotWanted",
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
