//! The trait behind which task bodies run, and what a run is given.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use oxidask_diagnostic::Diagnostic;
use oxidask_store::Payload;
use tokio_util::sync::CancellationToken;

/// What one attempt of a task is given.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// The task's key, for messages.
    pub key: Arc<str>,
    /// Counts the attempts of the task within the scheduler's epoch, from 1.
    pub attempt: u32,
    /// Slots that the task holds: threads it may keep busy.
    pub slots: u32,
    /// Bytes of memory that the whole worker may use.
    pub memory_bytes: u64,
    /// Relative locations start here: the manifest's folder, or `workingDir` in a pod.
    pub base_dir: PathBuf,
    /// An existing folder of the worker for temporary files.
    pub scratch_dir: PathBuf,
    /// Fires when the attempt is cancelled: the executor then ends soon, its outcome is dropped.
    pub cancelled: CancellationToken,
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
