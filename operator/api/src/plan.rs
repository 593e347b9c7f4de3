//! What a local run works from: plain values, every default filled in, every check passed.
//!
//! Owns the rules that turn a manifest into processes: slots from CPU limits, bytes from memory
//! limits, and the list of fields that only pods have. Never starts anything.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::{ClusterSpec, Resources, Worker};
use crate::error::ManifestError;

/// Slots of a worker whose manifest says neither `threads` nor a CPU limit.
pub const DEFAULT_SLOTS: u32 = 1;

/// The namespace in the identities of a local run.
pub const LOCAL_NAMESPACE: &str = "local";

/// A cluster to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    /// Always [`LOCAL_NAMESPACE`]: what a manifest says belongs to Kubernetes.
    pub namespace: String,
    /// The cluster's name.
    pub name: String,
    /// `default` first, then the others in their order.
    pub groups: Vec<GroupPlan>,
    /// Paths of fields that only pods have, for the one line that says so.
    pub ignored: Vec<String>,
}

impl ClusterPlan {
    /// Workers of all groups.
    pub fn workers(&self) -> u64 {
        self.groups
            .iter()
            .map(|group| u64::from(group.replicas))
            .sum()
    }
}

/// One group of equal workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// Its name within the cluster.
    pub name: String,
    /// How many workers.
    pub replicas: u32,
    /// Tasks that each may run at a time.
    pub slots: u32,
    /// Memory that each may use, if the manifest says so.
    pub memory_bytes: Option<u64>,
    /// Abstract amounts that each offers to tasks, by name.
    pub resources: Vec<(String, u64)>,
    /// Environment variables with plain values.
    pub environment: Vec<(String, String)>,
}

impl GroupPlan {
    /// The workers of a group as the manifest gives them, with every default filled in; the same
    /// for processes of a local run and for pods.
    pub fn new(name: &str, worker: &Worker) -> Self {
        let from_template = worker.template_resources();
        let limits = |resource: &str| {
            let own = worker
                .resources
                .as_ref()
                .and_then(|r| r.limits.get(resource));
            own.or_else(|| {
                from_template
                    .as_ref()
                    .and_then(|r: &Resources| r.limits.get(resource))
            })
        };
        let cores = limits("cpu").map(|cpu| u32::try_from(cpu.rounded_up()).unwrap_or(u32::MAX));
        let mut resources: Vec<(String, u64)> = worker
            .task_resources
            .iter()
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        if !worker.task_resources.contains_key("gpu")
            && let Some(devices) = limits("nvidia.com/gpu")
        {
            resources.push(("gpu".to_owned(), devices.rounded_up()));
        }
        let autoscaled = worker.autoscale.as_ref().map(|autoscale| autoscale.minimum);
        let environment = worker.env.iter().filter_map(|variable| {
            variable
                .value
                .as_ref()
                .map(|value| (variable.name.clone(), value.clone()))
        });
        Self {
            name: name.to_owned(),
            replicas: worker
                .replicas
                .or_else(|| autoscaled.filter(|minimum| *minimum > 0))
                .unwrap_or(1),
            slots: worker.threads.or(cores).unwrap_or(DEFAULT_SLOTS).max(1),
            memory_bytes: limits("memory").map(crate::Quantity::rounded_up),
            resources,
            environment: environment.collect(),
        }
    }
}

/// A job to run.
#[derive(Debug, Clone, PartialEq)]
pub struct JobPlan {
    /// The cluster to run it on; its name is the job's.
    pub cluster: ClusterPlan,
    /// What to run.
    pub work: Work,
    /// Relative locations start here: the manifest's folder.
    pub base_dir: PathBuf,
    /// When to give up.
    pub active_deadline_seconds: Option<u64>,
}

/// The work of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// SQL statements.
    Sql {
        /// The statements.
        text: String,
        /// Where they stand, for messages.
        origin: String,
    },
    /// A task graph.
    Graph {
        /// Its tasks.
        tasks: GraphSource,
        /// The wanted results, if the manifest names them.
        outputs: Option<Vec<String>>,
    },
    /// A Python program.
    Script(ScriptWork),
    /// A driver pod of the user's own, which needs Kubernetes.
    Job,
}

/// A Python program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptWork {
    /// The program.
    pub source: ScriptSource,
    /// What it finds in `sys.argv` after its own name.
    pub arguments: Vec<String>,
    /// Environment variables with plain values.
    pub environment: Vec<(String, String)>,
    /// The Python that runs it, if the manifest names one.
    pub python: Option<String>,
}

/// Where a Python program stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptSource {
    /// In the manifest or in a `ConfigMap`.
    Text {
        /// The program.
        text: String,
        /// Where it stands, for messages.
        origin: String,
    },
    /// In a file that is there.
    File(PathBuf),
}

/// Where the tasks of a graph stand.
#[derive(Debug, Clone, PartialEq)]
pub enum GraphSource {
    /// Task objects in the manifest.
    Inline {
        /// The objects.
        tasks: Vec<Value>,
        /// Where each of them stands, for messages.
        places: Vec<Arc<str>>,
        /// Where the list stands, for messages.
        origin: String,
    },
    /// JSON Lines in the manifest or in a `ConfigMap`.
    Text {
        /// The lines.
        text: String,
        /// Where they stand, for messages.
        origin: String,
    },
    /// JSON Lines in a file, not read yet: it may be large.
    File(PathBuf),
}

/// Plans the cluster; `prefix` is the path of its spec, for the fields that are ignored.
pub(crate) fn plan_cluster(name: &str, spec: &ClusterSpec, prefix: &str) -> ClusterPlan {
    let mut ignored = Vec::new();
    let mut note = |is_given: bool, path: &str| {
        if is_given {
            ignored.push(format!("{prefix}.{path}"));
        }
    };
    note(spec.suspend == Some(true), "suspend");
    note(
        spec.idle_timeout.is_some_and(|seconds| seconds > 0),
        "idleTimeout",
    );
    note(spec.tls.is_some(), "tls");
    note(spec.update_strategy.is_some(), "updateStrategy");
    if let Some(scheduler) = &spec.scheduler {
        for field in scheduler.pod_fields() {
            note(true, &format!("scheduler.{field}"));
        }
    }
    let mut groups = vec![GroupPlan::new("default", &spec.worker)];
    for field in spec.worker.pod_fields() {
        note(true, &format!("worker.{field}"));
    }
    for (index, group) in spec.worker_groups.iter().enumerate() {
        let worker = group.to_worker();
        groups.push(GroupPlan::new(&group.name, &worker));
        for field in worker.pod_fields() {
            note(true, &format!("workerGroups[{index}].{field}"));
        }
    }
    let namespace = LOCAL_NAMESPACE.to_owned();
    ClusterPlan {
        namespace,
        name: name.to_owned(),
        groups,
        ignored,
    }
}

/// A local run cannot start pods of the user's own.
pub(crate) fn refuse_python_runtime(origin: &str, path: &str) -> ManifestError {
    ManifestError::Unavailable {
        origin: origin.to_owned(),
        problem: format!(
            "`{path}` describes pods that run Dask for Python, which a local run cannot start"
        ),
    }
}
