//! What the operator says about each object.
//!
//! Owns the fields of the statuses. `phase` and `jobStatus` have the words of dask-kubernetes, as
//! its clients wait for them; how things really are stands in the conditions. Nothing here changes
//! from tick to tick.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a cluster has come, in the words of dask-kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The operator has seen the object.
    Created,
    /// The scheduler's Service has no address yet.
    Pending,
    /// The scheduler's Service is there; the conditions say whether the cluster is ready.
    Running,
    /// The object cannot be operated, for instance because of its name.
    Error,
}

/// The state of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// How far it has come; see the conditions for its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Workers of the group `default` that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Workers of the group `default` that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Selects the pods of the workers of the group `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where clients find the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_address: Option<String>,
    /// The certificates: until when they are valid, and whether the authority is being replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificatesStatus>,
    /// The generation of the object that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `SchedulerReady`, `WorkersReady`, `TLSReady`, and where
    /// they apply `Suspended`, `ObjectsRefused`, `Drifted`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How far the replacement of an authority has come.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum RotationPhase {
    /// There is one authority.
    #[default]
    Stable,
    /// Every pod learns to trust the new authority beside the old one.
    Distribute,
    /// Every pod gets a certificate of the new authority.
    Issue,
    /// Every pod ceases to trust the old authority.
    Retire,
}

/// The state of a cluster's certificates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificatesStatus {
    /// When the authority ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority_not_after: Option<Time>,
    /// When the first of the roles' certificates ends; it is renewed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// How far the replacement of the authority has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RotationPhase>,
}

/// The state of a group of workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerGroupStatus {
    /// Workers that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Workers that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Workers that were made from the newest template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_replicas: Option<i32>,
    /// Workers that are drained, or wait for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining_replicas: Option<i32>,
    /// Workers whose pods have not been able to start for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stuck_replicas: Option<i32>,
    /// Seconds that the slowest of the workers took from its pod's creation to being ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_seconds: Option<i32>,
    /// What the group's own `autoscale` decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
    /// Selects the pods of the workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The generation of the object that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What was decided about the number of workers of a group, and why. Written when the decision
/// changes, not when the load does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScalingStatus {
    /// The number that the operator writes to `replicas`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// The number before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<i32>,
    /// The number that it would write, if it only recommends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<i32>,
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, with what the decision was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the number changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Since when fewer workers would be enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewer_since: Option<Time>,
    /// The most that was needed since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewer_most: Option<i32>,
}

/// What an autoscaler decided about one group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupScaling {
    /// The name of the `DaskWorkerGroup`.
    pub name: String,
    /// The decision.
    pub scaling: ScalingStatus,
}

/// How far a job has come, in the words of dask-kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JobState {
    /// The operator has seen the object.
    JobCreated,
    /// The cluster and the runner are made.
    ClusterCreated,
    /// The runner runs.
    Running,
    /// The work is done.
    Successful,
    /// The work failed.
    Failed,
}

impl JobState {
    /// Whether nothing comes after it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Successful | Self::Failed)
    }
}

/// The state of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// How far it has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_status: Option<JobState>,
    /// The name of its cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// The name of the pod that runs or submits the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_runner_pod_name: Option<String>,
    /// When the runner was first seen running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the job was seen finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
    /// The number of the newest pod of the runner, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_starts: Option<u32>,
    /// The number of the newest pod whose end needs no other one: it failed, or the job was
    /// suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runners_ended: Option<u32>,
    /// The number of the attempt, from 1; above 1 if work failed and was started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Pods of the runner that were evicted, deleted, or went away with their node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_runners: Option<u32>,
    /// When failed work is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
    /// Since when the job has not been suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_since: Option<Time>,
    /// Seconds that it was active before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_seconds: Option<u64>,
    /// Of a schedule: the time of the newest run that was started or given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Of a schedule: when a run was last seen successful.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// Of a schedule: the runs that have not ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<String>,
    /// The generation of the object that this status is about; not for a job that has only fields of
    /// dask-kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Complete`, `Failed`, `Suspended`, `Reconciling`, `Stalled`; not for a job that has only
    /// fields of dask-kubernetes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The state of an autoscaler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoscalerStatus {
    /// Workers that it wants in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<i32>,
    /// Workers that its groups ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<i32>,
    /// Workers that it would want, if it only recommends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<i32>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When `desired` or the recommendation changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The decision about each group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupScaling>,
    /// The generation of the object that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl fmt::Display for RotationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
