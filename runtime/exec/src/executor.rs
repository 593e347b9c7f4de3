//! The trait behind which task bodies run, and what a run is given.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_logbook::Logbook;
use oxidask_store::Payload;
use tokio_util::sync::CancellationToken;

use crate::programs::Programs;
use crate::streams::{Memory, NoStreams, OwnMemory, RunProgress, StreamedInputs};

/// The slots of a task that runs.
pub trait Slot: Send + Sync + std::fmt::Debug {
    /// The task runs on without its slots, which are free for others: it waits for work of theirs.
    fn leave(&self);

    /// The task takes its slots again, even if that is more than the worker has.
    fn take_back(&self);

    /// A run that was handed over ahead of its slot begins: it is not given back from here on. Said
    /// before the run whose end makes room for it is answered.
    fn begin(&self);
}

/// Slots of a run that stands alone.
#[derive(Debug)]
pub struct OwnSlot;

impl Slot for OwnSlot {
    fn leave(&self) {}

    fn take_back(&self) {}

    fn begin(&self) {}
}

/// Something to do beside tasks, in the processes of an executor.
#[derive(Debug, Clone)]
pub struct Command {
    /// Opaque.
    pub content: Bytes,
    /// It also holds for processes that start later.
    pub is_standing: bool,
}

/// What one attempt of a task is given.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// The number of the task's graph, for messages.
    pub graph: u32,
    /// The task's key, for messages.
    pub key: Arc<str>,
    /// Counts the attempts of the task within the scheduler's epoch, from 1.
    pub attempt: u32,
    /// Slots that the task holds: threads it may keep busy.
    pub slots: u32,
    /// There is no slot for the run yet: it waits in line behind others, and says [`Slot::begin`] when
    /// it begins. If it cannot wait any longer it ends with [`TaskError::given_back`].
    pub is_ahead: bool,
    /// Which part of the body this task runs; 0 for bodies without parts.
    pub part: u32,
    /// What the body is given besides the inputs; opaque.
    pub arguments: Bytes,
    /// The slots that the task holds, for a task that goes on without them.
    pub slot: Arc<dyn Slot>,
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
    /// Where the programs that the run starts are listed.
    pub programs: Arc<Programs>,
    /// Where lines go that the run's programs print to standard error.
    pub logbook: Arc<Logbook>,
    /// Fires when the attempt is cancelled: the executor then ends soon, its outcome is dropped.
    pub cancelled: CancellationToken,
}

impl TaskContext {
    /// For a run that stands alone: one slot, no streamed inputs, memory of its own.
    pub fn alone(memory_bytes: u64, base_dir: PathBuf, scratch_dir: PathBuf) -> Self {
        Self {
            graph: 0,
            key: "task".into(),
            attempt: 1,
            slots: 1,
            is_ahead: false,
            part: 0,
            arguments: Bytes::new(),
            slot: Arc::new(OwnSlot),
            streams: Arc::new(NoStreams),
            memory: Arc::new(OwnMemory::new(memory_bytes)),
            progress: Arc::default(),
            memory_bytes,
            base_dir,
            scratch_dir,
            programs: Arc::default(),
            logbook: Arc::default(),
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
    /// The run never began, and is the worker's to start again.
    pub is_given_back: bool,
}

impl TaskError {
    /// A run that was handed over ahead of its slot and has not begun.
    pub fn given_back() -> Self {
        Self {
            is_given_back: true,
            ..Self::retryable(Diagnostic::new(
                Code::TaskFailed,
                "the task never began: what it waited for in line did not end",
            ))
        }
    }

    /// Another attempt may do better.
    pub fn retryable(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic,
            is_retryable: true,
            is_given_back: false,
        }
    }

    /// Another attempt cannot do better.
    pub fn permanent(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostic,
            is_retryable: false,
            is_given_back: false,
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

    /// Whether runs may be handed over ahead of their slots. They wait in line inside, in order, each
    /// until it is its turn.
    fn keeps_line(&self) -> bool {
        false
    }

    /// Whether a run keeps a thread busy for long between two waits. Such runs share threads of their
    /// own; all others share the worker's, which must go on meanwhile.
    fn computes(&self) -> bool {
        false
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

    /// Does something beside tasks. Commands take effect in the order in which they are given, and
    /// before programs that run later.
    fn command(&self, _command: Command) -> BoxFuture<'static, Result<Bytes, Diagnostic>> {
        let message = "this executor takes no commands";
        async move { Err(Diagnostic::new(Code::OperationUnknown, message)) }.boxed()
    }

    /// Standing commands that were given so far hold no longer: another scheduler gives its own.
    /// Must not block.
    fn forget_commands(&self) {}
}
