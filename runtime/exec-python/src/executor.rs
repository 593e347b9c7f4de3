//! The operation `python`, as workers know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, Command, Entry, Executor, Program, TaskContext, TaskError, TaskName};
use oxidask_store::Payload;
use tokio::time::sleep;

use crate::child::{Child, STALL};
use crate::config::PythonConfig;
use crate::death::Death;
use crate::error::PythonError;
use crate::parts;
use crate::pool::{Lease, Pool};
use crate::send;
use crate::turn::{Answer, Handed};

/// Processes that may end under other tasks before a task begins.
const HAND_OVERS_MAX: u32 = 16;

/// Runs tasks of Python. Nothing is started before the first of them, or before [`Self::start`].
#[derive(Debug)]
pub struct PythonExecutor {
    pool: Arc<Pool>,
    next_table: AtomicU32,
}

/// The functions of a body.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) number: u32,
    pub(crate) content: Bytes,
}

struct PythonProgram {
    table: Arc<Table>,
    pool: Arc<Pool>,
}

impl PythonExecutor {
    /// One that starts Python in this way.
    pub fn new(config: PythonConfig) -> Self {
        Self {
            pool: Pool::new(config),
            next_table: AtomicU32::new(1),
        }
    }

    /// Loads Python and its libraries, so that the first task need not wait for that.
    pub async fn start(&self) -> Result<(), Diagnostic> {
        let started = self.pool.server().await;
        started.map(drop).map_err(|error| error.diagnostic())
    }
}

impl Drop for PythonExecutor {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Executor for PythonExecutor {
    fn operations(&self) -> &'static [&'static str] {
        &["python"]
    }

    fn prepare(&self, body: &Body) -> Result<Arc<dyn Program>, TaskError> {
        if body.content.is_empty() {
            return Err(PythonError::NoTable.into_task_error());
        }
        let number = self.next_table.fetch_add(1, Ordering::Relaxed);
        let content = body.content.clone();
        Ok(Arc::new(PythonProgram {
            table: Arc::new(Table { number, content }),
            pool: Arc::clone(&self.pool),
        }))
    }

    /// Carries out what `python/oxidask/_commands.py` describes. One without content replaces all
    /// processes.
    fn command(&self, command: Command) -> BoxFuture<'static, Result<Bytes, Diagnostic>> {
        let pool = Arc::clone(&self.pool);
        if command.content.is_empty() {
            pool.replace_all();
            return async { Ok(Bytes::new()) }.boxed();
        }
        if !command.is_standing {
            let content = command.content;
            let carried_out = async move { pool.carry_out(&content).await };
            return carried_out
                .map(|done| done.map_err(|error| error.diagnostic()))
                .boxed();
        }
        // Said now: whatever runs from here on has it behind it.
        let Some(number) = pool.add_standing(command.content) else {
            let message = "the worker has too many plugins and files already";
            return async move { Err(Diagnostic::new(Code::LimitPassed, message)) }.boxed();
        };
        let carried_out = async move { pool.carry_out_standing(number).await };
        carried_out
            .map(|done| done.map_err(|error| error.diagnostic()))
            .boxed()
    }
}

impl Program for PythonProgram {
    fn keeps_line(&self) -> bool {
        true
    }

    fn run(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            if let Some(part) = parts::taken(&context.arguments, &inputs).await {
                return Ok(part);
            }
            let cancelled = context.cancelled.clone();
            let ran = self.run_in_child(inputs, context);
            let outcome = tokio::select! {
                biased;
                () = cancelled.cancelled() => Err(PythonError::Cancelled.into_task_error()),
                outcome = ran => outcome,
            };
            outcome
        }
        .boxed()
    }
}

/// A run that nobody waits for any more is ended.
struct Given<'a> {
    child: &'a Child,
    run: u64,
    is_over: bool,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.child.give_up(self.run);
        }
    }
}

impl PythonProgram {
    async fn run_in_child(
        &self,
        inputs: Vec<Payload>,
        mut context: TaskContext,
    ) -> Result<Payload, TaskError> {
        for _ in 0..HAND_OVERS_MAX {
            let lease = if context.is_ahead {
                self.pool.join_line().ok_or_else(TaskError::given_back)?
            } else {
                let acquired = self.pool.acquire().await;
                acquired.map_err(PythonError::into_task_error)?
            };
            match self.attempt(&lease, inputs.clone(), &mut context).await {
                Ok(Answer::Finished(outcome)) => return outcome,
                Ok(Answer::NotBegun) if context.is_ahead => return Err(TaskError::given_back()),
                Ok(Answer::NotBegun) => {}
                Ok(Answer::Died(death)) => {
                    let Death { status, tail, .. } = death;
                    return Err(PythonError::Died { status, tail }.into_task_error());
                }
                Err(error) => return Err(error.into_task_error()),
            }
        }
        Err(PythonError::NeverBegun(HAND_OVERS_MAX).into_task_error())
    }

    async fn attempt(
        &self,
        lease: &Lease,
        inputs: Vec<Payload>,
        context: &mut TaskContext,
    ) -> Result<Answer, PythonError> {
        let run = self.pool.next_run();
        let child = &lease.child;
        let of = (run, self.table.number);
        let message = send::task(&self.pool.segments, of, inputs, context).await;
        let message = message.map_err(PythonError::Input)?;
        if context.is_ahead && !message.fits_line() {
            return Ok(Answer::NotBegun);
        }
        let ended_before = self.pool.out_of_memory_count(&context.programs);
        let mut given = Given {
            child,
            run,
            is_over: false,
        };
        let handed = child.hand_over((run, &self.table), message, context).await;
        let answer = answer(child, handed, context).await?;
        given.is_over = true;
        if let Answer::Died(death) = &answer
            && death.is_kill
            && context.programs.out_of_memory_count() > ended_before
        {
            let Death { status, tail, .. } = death.clone();
            return Err(PythonError::OutOfMemory { status, tail });
        }
        Ok(answer)
    }
}

/// Waits for the turn of a run, then for its end. From its turn on it is listed with its memory.
async fn answer(
    child: &Child,
    handed: Handed,
    context: &mut TaskContext,
) -> Result<Answer, PythonError> {
    let Handed { mut answer, begins } = handed;
    if let Some(mut begins) = begins {
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer.unwrap_or(Answer::NotBegun)),
                _ = &mut begins => break,
                () = sleep(STALL) => child.clear_stalled_line(),
            }
        }
        context.is_ahead = false;
    }
    let leader = child.pid.unsigned_abs();
    let entry = context.programs.enter(leader, TaskName::of(context));
    tokio::select! {
        answer = answer => Ok(answer.unwrap_or(Answer::NotBegun)),
        end = ended_for_memory(&entry) => Err(end),
    }
}

/// When the worker is about to run out of memory and this is the task to end.
async fn ended_for_memory(entry: &Entry) -> PythonError {
    entry.ended.cancelled().await;
    entry
        .end()
        .map_or(PythonError::Cancelled, PythonError::EndedForMemory)
}
