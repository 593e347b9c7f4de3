//! A run that was handed to a process, from there to its answer.

use std::sync::Arc;
use std::time::Instant;

use oxidask_exec::{RunProgress, Slot, TaskContext, TaskError, TaskName};
use oxidask_logbook::Logbook;
use oxidask_store::Payload;
use tokio::sync::oneshot;

use crate::death::Death;

/// How a task ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Finished(Result<Payload, TaskError>),
    /// The process has ended while it was at this task.
    Died(Death),
    /// It has not begun, and will not.
    NotBegun,
}

/// A run that is not answered yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) run: u64,
    pub(crate) task: TaskName,
    pub(crate) logbook: Arc<Logbook>,
    pub(crate) slot: Arc<dyn Slot>,
    progress: Arc<RunProgress>,
    /// Told when it begins, if it may have to wait.
    begins: Option<oneshot::Sender<()>>,
    begun_at: Option<Instant>,
    answer: oneshot::Sender<Answer>,
}

/// What whoever handed a run over waits for.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) answer: oneshot::Receiver<Answer>,
    /// None if it is its turn already.
    pub(crate) begins: Option<oneshot::Receiver<()>>,
}

impl Waiting {
    /// A run, and what to wait for.
    pub(crate) fn new(run: u64, context: &TaskContext) -> (Self, Handed) {
        let (answer, answered) = oneshot::channel();
        let (begins, begun) = context.is_ahead.then(oneshot::channel).unzip();
        let waiting = Self {
            run,
            task: TaskName::of(context),
            logbook: Arc::clone(&context.logbook),
            slot: Arc::clone(&context.slot),
            progress: Arc::clone(&context.progress),
            begins,
            begun_at: None,
            answer,
        };
        let handed = Handed {
            answer: answered,
            begins: begun,
        };
        (waiting, handed)
    }

    /// It is the first in line, so it is its turn.
    pub(crate) fn begin(&mut self) {
        self.begun_at = Some(Instant::now());
        if let Some(begins) = self.begins.take() {
            self.slot.begin();
            // Nobody listens if it was cancelled.
            let _ = begins.send(());
        }
    }

    /// Whether it may be taken out of the line.
    pub(crate) fn is_in_line(&self) -> bool {
        self.begins.is_some()
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.answer.is_closed()
    }

    /// It is over.
    pub(crate) fn end(self, answer: Answer) {
        if let Some(begun_at) = self.begun_at {
            let micros = begun_at.elapsed().as_micros();
            let micros = u64::try_from(micros).unwrap_or(u64::MAX);
            self.progress.set_work_micros(micros);
        }
        let _ = self.answer.send(answer);
    }
}
