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
    /// The generation of the object that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `SchedulerReady`, `WorkersReady`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
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
    /// The number of the newest pod of the runner, from 1: above 1 if pods were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_starts: Option<u32>,
    /// The generation of the object that this status is about; only for work of kind `sql`, `graph`
    /// or `script`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Complete`, `Failed`, `Reconciling`, `Stalled`; only for work of kind `sql`, `graph` or
    /// `script`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The state of an autoscaler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoscalerStatus {
    /// The generation of the object that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Stalled`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
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
