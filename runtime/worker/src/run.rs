//! Runs of tasks: at once on the loop, or beside it.
//!
//! Invariants: a panic ends its run only; whatever happens a run has exactly one outcome; the
//! folder of a run is gone when it has ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Executor, Program, TaskContext, TaskError};
use oxidask_store::{IdMap, Payload, ResultKey, Store};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::machine::{Run, RunId};
use crate::programs::Programs;

/// How long cancelled runs get to end before the worker goes without them.
const RUNS_END_MILLIS_MAX: u64 = 500;

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) run: RunId,
    pub(crate) task: ResultKey,
    /// The task's name.
    pub(crate) key: Arc<str>,
    pub(crate) outcome: Result<Payload, TaskError>,
    pub(crate) duration_micros: u64,
}

/// Starts runs and knows those that go on. Their number is bounded by the worker's slots.
pub(crate) struct Runner {
    pub(crate) programs: Programs,
    store: Arc<Store>,
    /// Numbers of graphs start anew with each scheduler, so their folders differ by this.
    session: u32,
    /// What all runs have in common; the rest is filled in for each.
    context: TaskContext,
    beside: JoinSet<Ended>,
    cancellations: IdMap<RunId, CancellationToken>,
}

impl Runner {
    pub(crate) fn new(
        executors: Vec<Arc<dyn Executor>>,
        store: Arc<Store>,
        base_dir: PathBuf,
        scratch_dir: PathBuf,
        session: u32,
    ) -> Self {
        let context = TaskContext {
            key: "".into(),
            attempt: 0,
            slots: 1,
            memory_bytes: store.limit_bytes(),
            base_dir,
            scratch_dir,
            cancelled: CancellationToken::new(),
        };
        Self {
            programs: Programs::new(executors),
            store,
            session,
            context,
            beside: JoinSet::new(),
            cancellations: IdMap::default(),
        }
    }

    /// Runs a task here if it ends at once, else starts it beside the loop.
    pub(crate) fn begin(&mut self, run: Run) -> Option<Ended> {
        let start = Instant::now();
        self.context.key = run.key;
        self.context.attempt = run.attempt.number;
        self.context.slots = run.slots;
        let outcome = match self.prepare(&run.body, run.task, &run.inputs) {
            Err(error) => Err(error),
            Ok((program, inputs)) => {
                let at_once =
                    catch_unwind(AssertUnwindSafe(|| program.run_now(&inputs, &self.context)));
                match at_once {
                    Ok(None) => {
                        let name = format!(
                            "{}-{}-{}-{}-{}",
                            self.session,
                            run.task.graph(),
                            run.task.task(),
                            run.attempt.epoch,
                            run.attempt.number
                        );
                        self.start_beside(run.run, run.task, program, inputs, &name);
                        return None;
                    }
                    Ok(Some(outcome)) => outcome,
                    Err(panic) => Err(panicked(panic.as_ref())),
                }
            }
        };
        Some(Ended {
            run: run.run,
            task: run.task,
            key: Arc::clone(&self.context.key),
            outcome,
            duration_micros: micros_since(start),
        })
    }

    fn prepare(
        &mut self,
        body: &crate::machine::BodyRef,
        task: ResultKey,
        inputs: &[ResultKey],
    ) -> Result<(Arc<dyn Program>, Vec<Payload>), TaskError> {
        let program = self.programs.get(task.graph(), body)?;
        let inputs = self.store.get_all(inputs).map_err(|key| {
            let message = format!("input `{key}` is not held by this worker any more");
            TaskError::retryable(Diagnostic::new(Code::ResultUnavailable, message))
        })?;
        Ok((program, inputs))
    }

    fn start_beside(
        &mut self,
        run: RunId,
        task: ResultKey,
        program: Arc<dyn Program>,
        inputs: Vec<Payload>,
        folder: &str,
    ) {
        let cancelled = CancellationToken::new();
        self.cancellations.insert(run, cancelled.clone());
        let scratch_dir = self.context.scratch_dir.join(folder);
        let context = TaskContext {
            cancelled,
            scratch_dir,
            ..self.context.clone()
        };
        self.beside.spawn(async move {
            let start = Instant::now();
            let key = Arc::clone(&context.key);
            let ran = AssertUnwindSafe(run_in_folder(program, inputs, context)).catch_unwind();
            let outcome = ran
                .await
                .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
            Ended {
                run,
                task,
                key,
                outcome,
                duration_micros: micros_since(start),
            }
        });
    }

    /// Makes a run end soon.
    pub(crate) fn cancel(&self, run: RunId) {
        if let Some(cancellation) = self.cancellations.get(&run) {
            cancellation.cancel();
        }
    }

    /// The next run beside the loop that ends; never, if there is none.
    pub(crate) async fn next_ended(&mut self) -> Ended {
        loop {
            match self.beside.join_next().await {
                Some(Ok(ended)) => {
                    self.cancellations.remove(&ended.run);
                    return ended;
                }
                // Panics are caught inside, and nothing is aborted before the worker ends.
                Some(Err(error)) => tracing::error!(%error, "a run was lost"),
                None => return std::future::pending().await,
            }
        }
    }

    /// A run beside the loop that has ended already.
    pub(crate) fn try_next_ended(&mut self) -> Option<Ended> {
        let ended = self.beside.try_join_next()?.ok()?;
        self.cancellations.remove(&ended.run);
        Some(ended)
    }

    /// Cancels all runs and gives them a moment to end.
    pub(crate) async fn end(&mut self) {
        for cancellation in self.cancellations.values() {
            cancellation.cancel();
        }
        let all = async { while self.beside.join_next().await.is_some() {} };
        if timeout(Duration::from_millis(RUNS_END_MILLIS_MAX), all)
            .await
            .is_err()
        {
            tracing::warn!(
                runs = self.beside.len(),
                "some tasks did not end when cancelled"
            );
            self.beside.abort_all();
        }
    }
}

async fn run_in_folder(
    program: Arc<dyn Program>,
    inputs: Vec<Payload>,
    context: TaskContext,
) -> Result<Payload, TaskError> {
    let folder = Folder::make(context.scratch_dir.clone())?;
    let outcome = program.run(inputs, context).await;
    drop(folder);
    outcome
}

/// A folder that goes with its run, also when the run panics or is dropped.
struct Folder(PathBuf);

impl Folder {
    /// One system call, so it is made on the spot.
    fn make(path: PathBuf) -> Result<Self, TaskError> {
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) => {
                let message = format!("the folder `{}` cannot be made", path.display());
                let diagnostic = Diagnostic::new(Code::WorkerDisk, message);
                Err(TaskError::retryable(
                    diagnostic.with_cause(error.to_string()),
                ))
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Almost always empty: then it is gone with one system call.
        if std::fs::remove_dir(&self.0).is_err()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(folder = %self.0.display(), %error, "a folder could not be removed");
        }
    }
}

/// A panic as the failure of its task. The user's `retries` apply.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let text = panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    TaskError::retryable(Diagnostic::new(
        Code::TaskPanicked,
        format!("the task panicked: {text}"),
    ))
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
