//! One run of a program: from its start until its whole process group is gone.
//!
//! Invariant: however the run ends, also when its future is dropped, no process of its group is
//! left. A program that leaves its group (a daemon) is on its own.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::output::{Captured, LineLog, capture, capture_tail};
use crate::TaskContext;
use crate::guard::Guard;
use crate::programs::{Entry, MemoryEnd, TaskName};

/// Time between the request to end and the kill.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);

/// Time for the last output of a program that has ended: what is left in a pipe.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How likely the system ends a program before its worker when memory runs out: the most that there
/// is.
const OUT_OF_MEMORY_SCORE: &[u8] = b"1000";

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ending {
    Exited(ExitStatus),
    TimedOut,
    Overflowed,
    Cancelled,
    /// The worker was about to run out of memory.
    Memory(MemoryEnd),
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) output: Captured,
    pub(super) errors: Captured,
    /// The most memory that it was seen to use, if anybody looked.
    pub(super) peak_bytes: Option<u64>,
    /// Processes that the system ended meanwhile because memory ran out.
    pub(super) out_of_memory_count: u64,
}

/// Runs a command to its end, or ends it at a limit.
pub(super) async fn run(
    mut command: Command,
    limit: Option<Duration>,
    context: &TaskContext,
    guard: Arc<Guard>,
) -> io::Result<Finished> {
    guard.prepare();
    let count_before = context.programs.out_of_memory_count();
    let program = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let task = TaskName::of(context);
    let group = Group::of(&child, guard)?;
    let entry = context.programs.enter(group.id(), task.clone());
    go_first(group.id());
    let (output, errors) = (Captured::default(), Captured::default());
    let overflowed = CancellationToken::new();
    let log = LineLog::new(Arc::clone(&context.logbook), task, program);
    let readers = {
        let (output, errors, overflowed) = (output.clone(), errors.clone(), overflowed.clone());
        let stdout = child.stdout.take();
        let read_output = stdout.map(|pipe| capture(pipe, output, overflowed));
        let stderr = child.stderr.take();
        let read_errors = stderr.map(|pipe| capture_tail(pipe, errors, log));
        let (output, errors) = (OptionFuture::from(read_output), read_errors.into());
        tokio::spawn(futures::future::join::<_, OptionFuture<_>>(output, errors))
    };
    let ended = tokio::select! {
        status = child.wait() => status.map(Ending::Exited),
        () = overflowed.cancelled() => Ok(Ending::Overflowed),
        () = at_limit(limit) => Ok(Ending::TimedOut),
        () = context.cancelled.cancelled() => Ok(Ending::Cancelled),
        () = entry.ended.cancelled() => Ok(memory_ending(&entry)),
    };
    if let Ok(Ending::TimedOut | Ending::Cancelled | Ending::Memory(_)) = ended {
        group.signal(Signal::TERM);
        tokio::select! {
            // Late or not, the kill follows.
            _ = timeout(TERMINATE_GRACE, child.wait()) => {}
            () = entry.killed.cancelled() => {}
        }
    }
    group.signal(Signal::KILL);
    child.wait().await?;
    drop(group);
    let peak_bytes = entry.peak_bytes();
    drop(entry);
    let abort = readers.abort_handle();
    if timeout(DRAIN_GRACE, readers).await.is_err() {
        abort.abort();
    }
    let ending = match ended? {
        // The last block may have been the one too many.
        Ending::Exited(_) if overflowed.is_cancelled() => Ending::Overflowed,
        ending => ending,
    };
    let count = context.programs.out_of_memory_count().zip(count_before);
    Ok(Finished {
        ending,
        output,
        errors,
        peak_bytes,
        out_of_memory_count: count.map_or(0, |(after, before)| after.saturating_sub(before)),
    })
}

/// It was asked to end, so there is a reason; without one, somebody has lost it.
fn memory_ending(entry: &Entry) -> Ending {
    entry.end().map_or(Ending::Cancelled, Ending::Memory)
}

/// When memory runs out nonetheless, the system is to end this program and not its worker. Not
/// every system lets us say so.
fn go_first(leader: u32) {
    let _ = std::fs::write(format!("/proc/{leader}/oom_score_adj"), OUT_OF_MEMORY_SCORE);
}

async fn at_limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// The processes of one run. Killed when this is dropped.
#[derive(Debug)]
struct Group {
    leader: Pid,
    guard: Arc<Guard>,
}

impl Group {
    fn of(child: &Child, guard: Arc<Guard>) -> io::Result<Self> {
        let leader = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the program has no process id"))?;
        guard.started(leader);
        Ok(Self { leader, guard })
    }

    fn id(&self) -> u32 {
        self.leader.as_raw_nonzero().get().unsigned_abs()
    }

    fn signal(&self, signal: Signal) {
        // Fails only if the group is gone.
        let _ = kill_process_group(self.leader, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.guard.ended(self.leader);
    }
}
