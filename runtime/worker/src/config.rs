//! What a worker is started with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::Credentials;
use oxidask_exec::Executor;
use oxidask_logbook::Logbook;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use crate::memory::thresholds::MemoryThresholds;

/// Bytes of the disk that a worker uses for results that do not fit into memory, unless it is told
/// otherwise.
pub const SPILL_BYTES_MAX_DEFAULT: u64 = 100 * 1024 * 1024 * 1024;

/// Where a worker listens, from its start to its end.
#[derive(Debug)]
pub struct Listeners {
    /// Where peers and the scheduler read results.
    pub data: TcpListener,
    /// Where health and metrics are read, if at all.
    pub http: Option<TcpListener>,
}

/// Everything that a worker needs to know.
pub struct WorkerConfig {
    /// Where the scheduler is: `oxidask://host:port`.
    pub scheduler_address: String,
    /// Unique among the workers that are alive.
    pub name: String,
    /// The worker group.
    pub group: String,
    /// The pod's UID; empty outside Kubernetes.
    pub pod_uid: String,
    /// The node's name; empty outside Kubernetes.
    pub node: String,
    /// Tasks of one slot that run at a time; 0 means 1.
    pub slots: u32,
    /// Task resources that it offers, by name.
    pub resources: Vec<(String, u64)>,
    /// Bytes of results that it may hold.
    pub memory_bytes: u64,
    /// Shares of the memory at which something happens to the whole process.
    pub memory_thresholds: MemoryThresholds,
    /// Where the system's own files are found, those about control groups: `/`, except in tests.
    pub system_dir: PathBuf,
    /// The log lines of this process, for the scheduler.
    pub logbook: Arc<Logbook>,
    /// The data listener as others reach it: `host:port`. An unspecified host (`0.0.0.0`) stands for
    /// the address that faces the scheduler.
    pub advertise_address: String,
    /// How long the worker goes without a scheduler before it ends. With none it ends together with
    /// the first one, and tries only once to reach it.
    pub reconnect_time: Duration,
    /// Relative locations of tasks start here.
    pub base_dir: PathBuf,
    /// For temporary files of tasks; made if it is not there.
    pub scratch_dir: PathBuf,
    /// Where results go that do not fit into memory: the worker makes a folder of its own below
    /// it. With none, in `spill` below `scratch_dir`.
    pub spill_dir: Option<PathBuf>,
    /// Bytes of the disk for such results; 0: they stay in memory, and what does not fit fails.
    pub spill_bytes_max: u64,
    /// Threads for programs that compute and for the data that others read. The worker's own work
    /// stays where it is started.
    pub compute: Handle,
    /// The worker's certificate.
    pub credentials: Credentials,
    /// What runs task bodies. Where the scheduler, the certificates and the worker itself are is told
    /// to an executor by whoever makes it: see [`crate::data_address`].
    pub executors: Vec<Arc<dyn Executor>>,
}

impl fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerConfig")
            .field("scheduler_address", &self.scheduler_address)
            .field("name", &self.name)
            .field("group", &self.group)
            .field("slots", &self.slots)
            .field("memory_bytes", &self.memory_bytes)
            .field("memory_thresholds", &self.memory_thresholds)
            .field("spill_dir", &self.spill_dir)
            .field("spill_bytes_max", &self.spill_bytes_max)
            .field("advertise_address", &self.advertise_address)
            .field("reconnect_time", &self.reconnect_time)
            .finish_non_exhaustive()
    }
}
