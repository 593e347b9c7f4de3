//! The trait behind which task bodies run, and what a run is given.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use oxidask_diagnostic::Diagnostic;
use oxidask_store::Payload;
use tokio_util::sync::CancellationToken;

use crate::streams::{Memory, NoStreams, OwnMemory, RunProgress, StreamedInputs};

/// What one attempt of a task is given.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// The task's key, for messages.
    pub key: Arc<str>,
    /// Counts the attempts of the task within the scheduler's epoch, from 1.
    pub attempt: u32,
    /// Slots that the task holds: threads it may keep busy.
    pub slots: u32,
    /// Which part of the body this task runs; 0 for bodies without parts.
    pub part: u32,
    /// Inputs that are read while the task runs. They are not among those given to
    /// [`Program::run`].
    pub streams: Arc<dyn StreamedInputs>,
    /// The run's share of the worker's memory.
    pub memory: Arc<dyn Memory>,
    /// What the run has made so far.
    pub progress: Arc<RunProgress>,
    /// Bytes of memory that the whole worker may use.
    pub memory_bytes: u64,
    /// Relative locations start here: the manifest's folder, or `workingDir` in a pod.
    pub base_dir: PathBuf,
    /// A folder for the run's temporary files. Whoever needs it makes it; it goes with the run.
    pub scratch_dir: PathBuf,
    /// Fires when the attempt is cancelled: the executor then ends soon, its outcome is dropped.
    pub cancelled: CancellationToken,
}

impl TaskContext {
    /// For a run that stands alone: one slot, no streamed inputs, memory of its own.
    pub fn alone(memory_bytes: u64, base_dir: PathBuf, scratch_dir: PathBuf) -> Self {
        Self {
            key: "task".into(),
            attempt: 1,
            slots: 1,
            part: 0,
            streams: Arc::new(NoStreams),
            memory: Arc::new(OwnMemory::new(memory_bytes)),
            progress: Arc::default(),
            memory_bytes,
            base_dir,
            scratch_dir,
            cancelled: CancellationToken::new(),
        }
    }
}

/// Why a run failed.
#[derive(Debug, Clone)]
pub struct TaskError {
    /// What the user will read.
    pub diagnostic: Diagnostic,
    /// Whether another attempt may do better; false for a body that cannot be understood.
    pub is_retryable: bool,
}

impl TaskError {
    /// Another attempt may do better.
    pub fn retryable(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic,
            is_retryable: true,
        }
    }

    /// Another attempt cannot do better.
    pub fn permanent(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic,
            is_retryable: false,
        }
    }
}

/// A body that has been understood and can be run, any number of times and at the same time.
pub trait Program: Send + Sync {
    /// Whether it looks at its inputs. Those of a program that does not only give order: the worker
    /// does not fetch them, and it is run without any.
    fn reads_inputs(&self) -> bool {
        true
    }

    /// A run that ends at once, without waiting and in well under a millisecond, is done here, on
    /// the worker's own thread; `None` asks for [`Program::run`]. This is what makes tiny tasks
    /// cheap.
    fn run_now(
        &self,
        _inputs: &[Payload],
        _context: &TaskContext,
    ) -> Option<Result<Payload, TaskError>> {
        None
    }

    /// Runs it. May block only inside `spawn_blocking`. A panic is caught by the worker.
    fn run(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>>;
}

/// Understands bodies of some operations.
pub trait Executor: Send + Sync {
    /// The operations that this executor runs, by the name in `op`.
    fn operations(&self) -> &'static [&'static str];

    /// Understands a body. Called once per shared body and worker.
    fn prepare(&self, body: &crate::Body) -> Result<Arc<dyn Program>, TaskError>;
}
