//! One run of a program: from its start until its whole process group is gone.
//!
//! Invariant: however the run ends, also when its future is dropped, no process of its group is
//! left. A program that leaves its group (a daemon) is on its own.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::output::{Captured, capture, capture_tail};
use crate::guard::Guard;

/// Time between the request to end and the kill.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);

/// Time for the last output of a program that has ended: what is left in a pipe.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ending {
    Exited(ExitStatus),
    TimedOut,
    Overflowed,
    Cancelled,
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) output: Captured,
    pub(super) errors: Captured,
}

/// Runs a command to its end, or ends it at a limit.
pub(super) async fn run(
    mut command: Command,
    limit: Option<Duration>,
    cancelled: &CancellationToken,
    guard: Arc<Guard>,
) -> io::Result<Finished> {
    guard.prepare();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group::of(&child, guard)?;
    let (output, errors) = (Captured::default(), Captured::default());
    let overflowed = CancellationToken::new();
    let readers = {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (output, errors, overflowed) = (output.clone(), errors.clone(), overflowed.clone());
        let read_output = async move {
            if let Some(pipe) = stdout {
                capture(pipe, output, overflowed).await;
            }
        };
        let read_errors = async move {
            if let Some(pipe) = stderr {
                capture_tail(pipe, errors).await;
            }
        };
        tokio::spawn(async { tokio::join!(read_output, read_errors) })
    };
    let ended = tokio::select! {
        status = child.wait() => status.map(Ending::Exited),
        () = overflowed.cancelled() => Ok(Ending::Overflowed),
        () = at_limit(limit) => Ok(Ending::TimedOut),
        () = cancelled.cancelled() => Ok(Ending::Cancelled),
    };
    if matches!(ended, Ok(Ending::TimedOut | Ending::Cancelled)) {
        group.signal(Signal::TERM);
        // Late or not, the kill follows.
        let _ = timeout(TERMINATE_GRACE, child.wait()).await;
    }
    group.signal(Signal::KILL);
    child.wait().await?;
    drop(group);
    let abort = readers.abort_handle();
    if timeout(DRAIN_GRACE, readers).await.is_err() {
        abort.abort();
    }
    let ending = match ended? {
        // The last block may have been the one too many.
        Ending::Exited(_) if overflowed.is_cancelled() => Ending::Overflowed,
        ending => ending,
    };
    Ok(Finished {
        ending,
        output,
        errors,
    })
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
