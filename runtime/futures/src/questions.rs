//! Questions about the cluster, as JSON, with their answers.
//!
//! `Question.content` is one object with `"op"`; an op that is not listed here is one of
//! [`crate::coordination`]. Every field but `op` may be left out: it is null then. `Answer.content` is
//! the object behind the arrow. A worker is named by its address, `oxidask://host:port` of its data
//! plane, or by its name; answers use addresses. Never changes state: the scheduler answers.
//!
//! | question | answer |
//! |---|---|
//! | `{"op":"identity"}` | [`Identity`] |
//! | `{"op":"who_has","keys":[K]\|null}` | `{"who_has":{K:[address]}}`; without keys: all keys that somebody wants |
//! | `{"op":"has_what","workers":[W]\|null}` | `{"has_what":{address:[K]}}` |
//! | `{"op":"nbytes","keys":[K]\|null}` | `{"nbytes":{K:bytes}}` |
//! | `{"op":"ncores","workers":[W]\|null}`, `ncores_running` | `{"ncores":{address:slots}}`; the second without those that are paused or leave |
//! | `{"op":"processing","workers":[W]\|null}` | `{"processing":{address:[K]}}`: tasks that run or are queued there |
//! | `{"op":"task_status","keys":[K]}` | `{"status":{K:"waiting"\|"queued"\|"no-worker"\|"processing"\|"memory"\|"erred"\|null}}`; null: unknown |
//! | `{"op":"groups"}` | `{"groups":[{"name","total","done","running","failed","bytes"}]}` of all tasks of clients of Dask |
//! | `{"op":"worker_names"}` | `{"names":{name:address}}` |
//! | `{"op":"worker_logs","n":100,"workers":[W]\|null}` | `{"logs":{address:[[level,text]]}}`, newest last |
//! | `{"op":"scheduler_logs","n":100}` | `{"logs":[[level,text]]}`, newest last |
//! | `{"op":"retire_workers","workers":[W]\|null,"group":G\|null,"count":n\|null,"is_waited":bool,"ends":bool,"timeout_seconds":s}` | `{"retired":{address:name},"refused":{address or name:reason}}`; `is_waited` (default true): answered when they are empty |
//! | `{"op":"adaptive_target","target_seconds":5.0}` | `{"target":workers}` |
//! | `{"op":"workers_to_close","count":n\|null,"target":n\|null}` | `{"workers":[address]}`: idle ones, `count` of them or down to `target` |
//! | `{"op":"restart"}` | `{}`; all keys are dropped, every client hears `is_restarted` |
//! | `{"op":"versions"}` | `{"scheduler":{"oxidask":version,"protocol":n},"clients":{client:{name:version}}}` |
//! | `{"op":"run","executor":"python","workers":[W]\|null,"is_standing":bool,"name":N\|null,"timeout_seconds":s}`, the command's content is value 0; a standing one takes the place of one of the same name | `{"results":[{"address","name","value":i\|null,"fault":{"code","message","hint","causes":[text],"attachment":i\|null}\|null}]}`; `i` are positions in the answer's values |
//! | `{"op":"run_ended","name":N}` | `{"was_known":bool}`; a standing command stands no longer |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::FuturesError;

/// Keys that one answer lists at most; further ones are left out.
pub const KEYS_ANSWERED_MAX: usize = 200_000;
/// Log lines that one answer gives of a process at most.
pub const LOG_LINES_MAX: usize = 10_000;
/// Seconds that a question about the cluster may wait for its answer at most.
pub const WAIT_SECONDS_MAX: f64 = 86_400.0;

/// A question about the cluster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ClusterQuestion {
    /// Who is there.
    Identity {},
    /// Which workers hold the results of keys.
    WhoHas(KeysQuestion),
    /// Which keys workers hold.
    HasWhat(WorkersQuestion),
    /// Sizes of results.
    Nbytes(KeysQuestion),
    /// Slots of workers.
    Ncores(WorkersQuestion),
    /// Slots of workers that take work.
    NcoresRunning(WorkersQuestion),
    /// Tasks that workers have.
    Processing(WorkersQuestion),
    /// How far keys are.
    TaskStatus(KeysQuestion),
    /// How far groups of tasks are.
    Groups {},
    /// Addresses by name.
    WorkerNames {},
    /// Log lines of workers.
    WorkerLogs(LogsQuestion),
    /// Log lines of the scheduler.
    SchedulerLogs(LogsQuestion),
    /// Workers are to hand over what they hold and go.
    RetireWorkers(RetireQuestion),
    /// How many workers the work is enough for.
    AdaptiveTarget {
        /// Work that a worker should have at most.
        target_seconds: Option<f64>,
    },
    /// Workers that could go.
    WorkersToClose {
        /// So many of them.
        count: Option<u64>,
        /// So many are to stay.
        target: Option<u64>,
    },
    /// All keys are to be dropped.
    Restart {},
    /// Versions of all sides.
    Versions {},
    /// Something to do on workers beside tasks.
    Run(RunQuestion),
    /// A standing command stands no longer.
    RunEnded {
        /// Its name.
        name: String,
    },
}

/// A question about keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct KeysQuestion {
    /// These; nothing: all that somebody wants.
    pub keys: Option<Vec<String>>,
}

/// A question about workers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkersQuestion {
    /// These, by address or name; nothing: all.
    pub workers: Option<Vec<String>>,
}

/// A question for log lines.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct LogsQuestion {
    /// So many, the newest.
    pub n: Option<u32>,
    /// Of these workers; nothing: of all.
    pub workers: Option<Vec<String>>,
}

/// Workers are to go.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct RetireQuestion {
    /// These, by address or name.
    pub workers: Option<Vec<String>>,
    /// Instead: so many of a group.
    pub group: Option<String>,
    /// See `group`.
    pub count: Option<u32>,
    /// Answered when they are empty; left out: yes.
    pub is_waited: Option<bool>,
    /// Their processes end by themselves; left out: yes.
    pub ends: Option<bool>,
    /// Time to wait at most.
    pub timeout_seconds: Option<f64>,
}

/// Something to do on workers; its content is the question's first value.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct RunQuestion {
    /// The operation whose executor carries it out; left out: `python`.
    pub executor: Option<String>,
    /// There; nothing: on all.
    pub workers: Option<Vec<String>>,
    /// Also for workers that join later.
    pub is_standing: bool,
    /// Of a standing one: it takes the place of one of the same name.
    pub name: Option<String>,
    /// Time to wait at most.
    pub timeout_seconds: Option<f64>,
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identity {
    /// Of the scheduler: the same after a restart with a journal.
    pub id: String,
    /// When it started, seconds since 1970.
    pub started: f64,
    /// The port of its dashboard, if it has one.
    pub dashboard_port: Option<u16>,
    /// Slots of all workers.
    pub total_threads: u64,
    /// Memory of all workers for results.
    pub total_memory: u64,
    /// The workers, in order of joining.
    pub workers: Vec<WorkerIdentity>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerIdentity {
    /// Its name.
    pub name: String,
    /// `oxidask://host:port` of its data plane.
    pub address: String,
    /// The host of it.
    pub host: String,
    /// Its group.
    pub group: String,
    /// `running`, `paused`, `closing_gracefully` (it is being drained) or `suspect` (nobody hears of it).
    pub status: String,
    /// Its slots.
    pub nthreads: u32,
    /// Bytes that it may use.
    pub memory_limit: u64,
    /// Task resources by name.
    pub resources: BTreeMap<String, u64>,
    /// When it was last heard, seconds since 1970.
    pub last_seen: f64,
    /// The node it is on, if it said so.
    pub node: String,
    /// Of its process.
    pub process_id: u32,
    /// What it said last.
    pub metrics: WorkerMetrics,
}

/// Figures of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerMetrics {
    /// Tasks that run.
    pub executing: u32,
    /// Tasks that wait there.
    pub ready: u32,
    /// Bytes of results in its memory.
    pub managed_bytes: u64,
    /// Bytes of results on its disk.
    pub spilled_bytes: u64,
    /// Bytes of memory of its processes.
    pub memory: u64,
    /// How long it has had nothing to do.
    pub idle_ms: u64,
}

/// The operation of a question; nothing if the text is none.
pub fn operation(content: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Operation {
        op: String,
    }
    serde_json::from_slice::<Operation>(content)
        .ok()
        .map(|found| found.op)
}

/// Whether an operation is a question about the cluster.
pub fn is_about_cluster(operation: &str) -> bool {
    const ALL: [&str; 19] = [
        "identity",
        "who_has",
        "has_what",
        "nbytes",
        "ncores",
        "ncores_running",
        "processing",
        "task_status",
        "groups",
        "worker_names",
        "worker_logs",
        "scheduler_logs",
        "retire_workers",
        "adaptive_target",
        "workers_to_close",
        "restart",
        "versions",
        "run",
        "run_ended",
    ];
    ALL.contains(&operation)
}

/// Reads a question about the cluster.
pub fn read(content: &[u8]) -> Result<ClusterQuestion, FuturesError> {
    serde_json::from_slice(content).map_err(|source| FuturesError::Question {
        operation: operation(content).unwrap_or_default(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_what_is_left_out_is_nothing() {
        assert_eq!(
            read(br#"{"op":"identity"}"#).unwrap(),
            ClusterQuestion::Identity {}
        );
        let keys = KeysQuestion {
            keys: Some(vec!["ä".to_owned()]),
        };
        assert_eq!(
            read(r#"{"op":"who_has","keys":["ä"]}"#.as_bytes()).unwrap(),
            ClusterQuestion::WhoHas(keys)
        );
        assert_eq!(
            read(br#"{"op":"has_what","workers":null}"#).unwrap(),
            ClusterQuestion::HasWhat(WorkersQuestion::default())
        );
        assert_eq!(
            read(br#"{"op":"adaptive_target"}"#).unwrap(),
            ClusterQuestion::AdaptiveTarget {
                target_seconds: None
            }
        );
        assert!(read(b"{}").is_err() && read(br#"{"op":"lock_acquire"}"#).is_err());
        assert_eq!(operation(br#"{"op":"x","y":1}"#).as_deref(), Some("x"));
        assert_eq!(operation(b"x"), None);
        assert!(is_about_cluster("run") && !is_about_cluster("lock_acquire"));
    }
}
