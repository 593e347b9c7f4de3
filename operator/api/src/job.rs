//! `DaskJob`: a cluster and the work to run on it.
//!
//! Owns the field names. That exactly one kind of work from exactly one source is given is
//! checked in `validate`.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::{ClusterSpec, EnvironmentVariable, Metadata, Runtime};
#[cfg(feature = "kubernetes")]
use crate::kubernetes::foreign;

/// A cluster that lives as long as its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaskJob {
    /// Always `kubernetes.dask.org/v1`.
    pub api_version: String,
    /// Always `DaskJob`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: JobSpec,
    /// Written by the operator; ignored in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// The wanted job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// The cluster to run on.
    pub cluster: JobCluster,
    /// SQL statements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<Sql>,
    /// A task graph of built-in operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<Graph>,
    /// A Python program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// A driver pod of the user's own, as in dask-kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<PodJob>,
    /// True keeps the job from starting. On a running job it removes the pods, and the job starts
    /// afresh when it is false again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// A cron line, for a job that runs again and again: each run is a `DaskJob` of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time zone of `schedule`, such as `Europe/Berlin`; UTC if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What happens while an earlier run still runs; `Allow` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_policy: Option<ConcurrencyPolicy>,
    /// Seconds after its time within which a late run may still start; always if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starting_deadline_seconds: Option<u64>,
    /// Successful runs that are kept; 3 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successful_jobs_history_limit: Option<u32>,
    /// Failed runs that are kept; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_jobs_history_limit: Option<u32>,
    /// Seconds after which the job fails; those in which it is suspended do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<u64>,
    /// Seconds after which a finished job is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u64>,
    /// How often failed work is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_limit: Option<u32>,
    /// Whether the cluster outlives the work; `Never` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_cluster: Option<KeepCluster>,
}

/// By this variable workers load Python when they start.
const LOAD_PYTHON: &str = "OXIDASK_LOAD_PYTHON";

impl JobSpec {
    /// The spec of the job's cluster with what its work implies: workers of a Python program load
    /// Python while they start, unless the manifest says something else.
    pub fn cluster_spec(&self) -> ClusterSpec {
        let mut spec = self.cluster.spec.clone();
        if self.script.is_none() {
            return spec;
        }
        let groups = spec.worker_groups.iter_mut().map(|group| &mut group.env);
        for environment in std::iter::once(&mut spec.worker.env).chain(groups) {
            if environment.iter().all(|given| given.name != LOAD_PYTHON) {
                environment.push(EnvironmentVariable {
                    name: LOAD_PYTHON.to_owned(),
                    value: Some("true".to_owned()),
                    value_from: None,
                });
            }
        }
        spec
    }

    /// Whether the job has only fields that dask-kubernetes has too. Such a job has its states only,
    /// and none of our own.
    pub fn is_stock(&self) -> bool {
        // Taken apart, so that nobody adds a field without asking whether it is one of ours.
        let Self {
            cluster,
            sql,
            graph,
            script,
            job,
            suspend,
            schedule,
            time_zone,
            concurrency_policy,
            starting_deadline_seconds,
            successful_jobs_history_limit,
            failed_jobs_history_limit,
            active_deadline_seconds,
            ttl_seconds_after_finished,
            backoff_limit,
            keep_cluster,
        } = self;
        let has_own_work = sql.is_some() || graph.is_some() || script.is_some();
        let has_own_life = suspend.is_some()
            || active_deadline_seconds.is_some()
            || ttl_seconds_after_finished.is_some()
            || backoff_limit.is_some()
            || keep_cluster.is_some();
        let has_schedule = schedule.is_some()
            || time_zone.is_some()
            || concurrency_policy.is_some()
            || starting_deadline_seconds.is_some()
            || successful_jobs_history_limit.is_some()
            || failed_jobs_history_limit.is_some();
        let has_own_cluster = cluster.spec.runtime() == Runtime::Rust;
        job.is_some() && !has_own_work && !has_own_life && !has_schedule && !has_own_cluster
    }
}

/// What a schedule does while an earlier run still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
pub enum ConcurrencyPolicy {
    /// Both run.
    #[default]
    Allow,
    /// The new one waits.
    Forbid,
    /// The earlier one is deleted.
    Replace,
}

/// Whether a cluster outlives the work of its job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
pub enum KeepCluster {
    /// It is deleted.
    #[default]
    Never,
    /// It stays if the work failed.
    OnFailure,
    /// It stays.
    Always,
}

/// The cluster inside a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct JobCluster {
    /// Labels and annotations of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::TemplateMetadata>")
    )]
    pub metadata: Option<Metadata>,
    /// As in a `DaskCluster`.
    pub spec: ClusterSpec,
    /// As dask-kubernetes has it; ignored in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::EmbeddedStatus>")
    )]
    pub status: Option<Value>,
}

/// A text in a `ConfigMap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// The `ConfigMap`.
    pub name: String,
    /// The key in its `data`.
    pub key: String,
}

/// Work of kind `sql`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Sql {
    /// The statements, in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statements: Option<String>,
    /// The statements, in a `ConfigMap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyReference>,
    /// The statements, in a file beside the manifest; local runs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Work of kind `graph`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Graph {
    /// The tasks, in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Tasks>,
    /// The wanted results, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<String>>,
    /// The tasks as JSON Lines, in a `ConfigMap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyReference>,
    /// The tasks as JSON Lines, in a file beside the manifest; local runs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Tasks in a manifest: a list of objects, or a text of JSON Lines.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Tasks {
    /// JSON Lines.
    Text(String),
    /// Task objects.
    List(Vec<Value>),
}

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TasksVisitor)
    }
}

/// By hand, because an untagged enum would only say that no variant fits.
struct TasksVisitor;

impl<'de> Visitor<'de> for TasksVisitor {
    type Value = Tasks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tasks or a text of JSON lines")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Tasks, E> {
        Ok(Tasks::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tasks, A::Error> {
        let mut tasks = Vec::new();
        while let Some(task) = items.next_element()? {
            tasks.push(task);
        }
        Ok(Tasks::List(tasks))
    }
}

/// Work of kind `script`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Script {
    /// The program, in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The program, in a `ConfigMap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyReference>,
    /// The program, in a file beside the manifest; local runs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What the program finds in `sys.argv`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvironmentVariable>,
    /// The Python that runs it; `python3` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
}

/// Work of kind `job`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PodJob {
    /// Labels and annotations of the driver pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kubernetes",
        schemars(with = "Option<foreign::TemplateMetadata>")
    )]
    pub metadata: Option<Metadata>,
    /// The driver's pod spec.
    #[cfg_attr(feature = "kubernetes", schemars(with = "foreign::PodSpec"))]
    pub spec: Value,
}
