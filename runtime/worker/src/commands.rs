//! Commands: what the worker does beside tasks, in the processes of its executors.
//!
//! Owns their order and what became of the last ones. A standing command begins when the standing
//! ones before it are answered, any other when all standing ones before it are: a long one holds up
//! neither standing commands nor tasks. Knows nothing of what they do.
//!
//! Invariants: each is answered exactly once, also if it is late, panics or is too large; one that
//! comes again (the scheduler could not know that it had come) is not carried out again; while
//! standing ones are not answered no task starts, and none waits longer than
//! [`STANDING_TIME_MAX`] for one.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Command, Executor, Registry};
use oxidask_proto::wire;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::run::panicked;

/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a standing command may take: tasks wait for it.
const STANDING_TIME_MAX: Duration = Duration::from_mins(10);
/// How long any other may take.
const COMMAND_TIME_MAX: Duration = Duration::from_hours(1);
/// Commands that are carried out at a time.
const RUNNING_MAX: usize = 16;
/// Commands that wait for their turn, and their bytes.
const WAITING_MAX: usize = 1_024;
const WAITING_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Answers that are remembered for a scheduler that asks again, and their bytes.
const ANSWERED_MAX: usize = 1_024;
const ANSWERED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The commands of one scheduler.
pub(crate) struct Commands {
    registry: Registry,
    executors: Vec<Arc<dyn Executor>>,
    waiting: VecDeque<wire::WorkerCommand>,
    waiting_bytes: usize,
    running: JoinSet<Done>,
    is_standing_running: bool,
    /// Those that wait or run.
    standing: usize,
    /// The number of the last one that came.
    last: u64,
    answered: VecDeque<wire::CommandResult>,
    answered_bytes: usize,
}

struct Done {
    command: u64,
    is_standing: bool,
    outcome: Result<Bytes, Diagnostic>,
}

impl Commands {
    pub(crate) fn new(executors: &[Arc<dyn Executor>]) -> Self {
        Self {
            registry: Registry::new(executors.to_vec()),
            executors: executors.to_vec(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            running: JoinSet::new(),
            is_standing_running: false,
            standing: 0,
            last: 0,
            answered: VecDeque::new(),
            answered_bytes: 0,
        }
    }

    /// Takes in a command. Answered at once if it came before, or cannot be kept.
    pub(crate) fn take(&mut self, command: wire::WorkerCommand) -> Option<wire::CommandResult> {
        if command.command <= self.last {
            return self.answered_before(command.command);
        }
        self.last = command.command;
        let bytes = command.content.len();
        if self.waiting.len() >= WAITING_MAX || self.waiting_bytes + bytes > WAITING_BYTES_MAX {
            let text = "too many commands wait at the worker already";
            let fault = Err(Diagnostic::new(Code::WorkerCommandFailed, text));
            return Some(self.remember(answer(command.command, fault)));
        }
        self.waiting_bytes += bytes;
        self.standing += usize::from(command.is_standing);
        self.waiting.push_back(command);
        self.begin();
        None
    }

    /// Whether tasks wait for standing commands.
    pub(crate) fn hold_tasks(&self) -> bool {
        self.standing > 0
    }

    /// The next answer; never, if nothing runs.
    pub(crate) async fn next_answer(&mut self) -> wire::CommandResult {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => return self.end(done),
                // Panics are caught inside, and nothing is aborted before the worker ends.
                Some(Err(error)) => tracing::error!(%error, "a command was lost"),
                None => return std::future::pending().await,
            }
        }
    }

    /// They hold no longer: another scheduler begins anew.
    pub(crate) fn forget(&mut self) {
        self.running.abort_all();
        for executor in &self.executors {
            executor.forget_commands();
        }
    }

    fn end(&mut self, done: Done) -> wire::CommandResult {
        if done.is_standing {
            self.is_standing_running = false;
            self.standing = self.standing.saturating_sub(1);
            if let Err(error) = &done.outcome {
                let (number, message) = (done.command, &error.message);
                tracing::warn!(number, %message, "a standing command failed; tasks go on");
            }
        }
        let answer = self.remember(answer(done.command, done.outcome));
        self.begin();
        answer
    }

    /// Begins what may begin, in order.
    fn begin(&mut self) {
        while self.running.len() < RUNNING_MAX && !self.is_standing_running {
            let Some(command) = self.waiting.pop_front() else {
                return;
            };
            self.waiting_bytes -= command.content.len();
            self.start(command);
        }
    }

    fn start(&mut self, command: wire::WorkerCommand) {
        let wire::WorkerCommand {
            command: number,
            executor,
            content,
            is_standing,
        } = command;
        self.is_standing_running = is_standing;
        let executor = self.registry.executor(&executor).cloned();
        let time_max = if is_standing {
            STANDING_TIME_MAX
        } else {
            COMMAND_TIME_MAX
        };
        self.running.spawn(async move {
            let outcome = match executor {
                Ok(executor) => carry_out(&*executor, content, is_standing, time_max).await,
                Err(unknown) => Err(unknown),
            };
            Done {
                command: number,
                is_standing,
                outcome,
            }
        });
    }

    /// What was answered before, or nothing while it is on its way.
    fn answered_before(&self, number: u64) -> Option<wire::CommandResult> {
        let known = self.answered.iter().find(|known| known.command == number);
        known.cloned()
    }

    fn remember(&mut self, answer: wire::CommandResult) -> wire::CommandResult {
        self.answered_bytes += size(&answer);
        self.answered.push_back(answer.clone());
        while self.answered.len() > ANSWERED_MAX || self.answered_bytes > ANSWERED_BYTES_MAX {
            let Some(oldest) = self.answered.pop_front() else {
                break;
            };
            self.answered_bytes -= size(&oldest);
        }
        answer
    }
}

/// Roughly the bytes of an answer on the wire.
pub(crate) fn size(answer: &wire::CommandResult) -> usize {
    const FRAME: usize = 16;
    let fault = answer.fault.as_ref().map_or(0, |fault| {
        fault.message.len() + fault.hint.len() + fault.attachment.len()
    });
    FRAME + fault + answer.content.len()
}

async fn carry_out(
    executor: &dyn Executor,
    content: Bytes,
    is_standing: bool,
    time_max: Duration,
) -> Result<Bytes, Diagnostic> {
    let failed = |text: String| Diagnostic::new(Code::WorkerCommandFailed, text);
    let command = Command {
        // A part of a larger message, which would live as long.
        content: Bytes::copy_from_slice(&content),
        is_standing,
    };
    drop(content);
    let carried_out = AssertUnwindSafe(async { executor.command(command).await }).catch_unwind();
    let content = match timeout(time_max, carried_out).await {
        Ok(Ok(outcome)) => outcome?,
        Ok(Err(panic)) => {
            let panic = panicked(panic.as_ref()).diagnostic.message;
            let text = panic.replace("the task", "the command");
            return Err(failed(text));
        }
        Err(_) => {
            let seconds = time_max.as_secs();
            return Err(failed(format!("the command took longer than {seconds} s")));
        }
    };
    if content.len() > ANSWER_BYTES_MAX {
        let bytes = content.len();
        let text = format!(
            "the answer of the command has `{bytes}` bytes, more than `{ANSWER_BYTES_MAX}`"
        );
        return Err(failed(text).with_hint("return less: let tasks make large results"));
    }
    Ok(content)
}

fn answer(command: u64, outcome: Result<Bytes, Diagnostic>) -> wire::CommandResult {
    let (fault, content) = match outcome {
        Ok(content) => (None, content),
        Err(error) => (Some(error.into()), Bytes::new()),
    };
    wire::CommandResult {
        command,
        fault,
        content,
    }
}
