//! How Python is started.

use std::ffi::OsString;
use std::path::PathBuf;

/// Names the program if nothing else does.
const PROGRAM_VARIABLE: &str = "OXIDASK_PYTHON";

/// Looked for in `PATH`.
const PROGRAM: &str = "python3";

/// Where values above 32 KiB lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedMemory {
    /// In memory, or in files where there is no room.
    Memory,
    /// In files of the scratch folder.
    Files,
}

/// How Python is started, and what its processes are told.
#[derive(Debug, Clone)]
pub struct PythonConfig {
    /// The program: `python3` or a path.
    pub program: PathBuf,
    /// Added to what the program is given as its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Processes that run tasks at a time: the worker's slots.
    pub slots: u32,
    /// Tasks that one process is given at a time: more than one only while all are busy.
    pub tasks_per_child: u32,
    /// Where values lie.
    pub shared_memory: SharedMemory,
    /// Tasks may write to their inputs; each then has a copy of what it writes to.
    pub copy_inputs: bool,
    /// Where files go that are no results: values for which there is no room in memory.
    pub scratch_dir: PathBuf,
    /// The folder that tasks see as their worker's; uploaded code lies there.
    pub worker_dir: PathBuf,
    /// The worker's name and address, as tasks see them.
    pub worker_name: String,
    /// Empty if it is the name.
    pub worker_address: String,
    /// Bytes that the worker may use, as tasks see them; 0 for unknown.
    pub memory_bytes: u64,
    /// Where clients inside tasks connect: `host:port`.
    pub scheduler: Option<String>,
    /// The certificates of clients inside tasks.
    pub tls_dir: Option<PathBuf>,
}

impl Default for PythonConfig {
    fn default() -> Self {
        let program = std::env::var_os(PROGRAM_VARIABLE).filter(|program| !program.is_empty());
        let scratch_dir = std::env::temp_dir();
        Self {
            program: program.map_or_else(|| PROGRAM.into(), PathBuf::from),
            environment: Vec::new(),
            slots: 1,
            tasks_per_child: 8,
            shared_memory: SharedMemory::Memory,
            copy_inputs: false,
            worker_dir: scratch_dir.join("oxidask-worker"),
            scratch_dir,
            worker_name: "worker".to_owned(),
            worker_address: String::new(),
            memory_bytes: 0,
            scheduler: None,
            tls_dir: None,
        }
    }
}

/// Libraries for linear algebra have threads of their own, one per processor: with several children
/// that is too many. Kept if somebody has set it.
const DEFAULTS: [(&str, &str); 5] = [
    ("OMP_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
    ("PYTHONUNBUFFERED", "1"),
];

impl PythonConfig {
    /// What the processes are told, in addition to the environment of this one.
    pub(crate) fn variables(&self) -> Vec<(OsString, OsString)> {
        let unset = |name: &str| std::env::var_os(name).is_none();
        let defaults = DEFAULTS.iter().filter(|(name, _)| unset(name));
        let mut variables: Vec<(OsString, OsString)> = defaults
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let mut say = |name: &str, value: OsString| variables.push((name.into(), value));
        say(
            "OXIDASK_EXECUTOR_SCRATCH_DIR",
            self.scratch_dir.clone().into(),
        );
        say("OXIDASK_WORKER_DIRECTORY", self.worker_dir.clone().into());
        say("OXIDASK_WORKER_NAME", self.worker_name.clone().into());
        say("OXIDASK_WORKER_SLOTS", self.slots.to_string().into());
        say(
            "OXIDASK_WORKER_MEMORY_BYTES",
            self.memory_bytes.to_string().into(),
        );
        if !self.worker_address.is_empty() {
            say("OXIDASK_WORKER_ADDRESS", self.worker_address.clone().into());
        }
        if self.shared_memory == SharedMemory::Files {
            say("OXIDASK_SHARED_MEMORY", "files".into());
        }
        if self.copy_inputs {
            say("OXIDASK_COPY_INPUTS", "1".into());
        }
        if let Some(scheduler) = &self.scheduler {
            say("OXIDASK_SCHEDULER", scheduler.clone().into());
        }
        if let Some(tls_dir) = &self.tls_dir {
            say("OXIDASK_TLS_DIR", tls_dir.clone().into());
        }
        variables.extend(self.environment.iter().cloned());
        variables
    }
}
