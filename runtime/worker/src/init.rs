//! The first process of a container.
//!
//! Whatever loses its parent in a container becomes a child of its first process: programs that
//! tasks have started, and what these left behind. A worker waits for its own programs only, so one
//! that is the first process starts itself once more below it: this process then does nothing but
//! pass signals on and collect whoever has ended.
//!
//! Invariant: it ends when the process that it has started does, and as that did.

use std::io;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// What is added to the number of the signal that ended a process, for its exit status.
const SIGNALLED: i32 = 128;

/// Whether this is the first process of its container.
pub fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Runs a program below this process until it ends. Its exit status, or 128 and the number of the
/// signal that ended it. Collects every child of this process, so it must have no other use for any.
///
/// The signals that ask for an end are passed on. The caller's threads are not used.
pub fn run_below(command: Command) -> io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(watch(command))
}

async fn watch(mut command: Command) -> io::Result<u8> {
    // Before there is a child, so that no signal is missed.
    let mut children = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let child = command.spawn()?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let child = child.ok_or_else(|| io::Error::other("the process has no id"))?;
    loop {
        if let Some(status) = collect(child)? {
            return Ok(status);
        }
        let passed_on = tokio::select! {
            _ = children.recv() => continue,
            _ = terminate.recv() => Signal::TERM,
            _ = interrupt.recv() => Signal::INT,
            _ = hangup.recv() => Signal::HUP,
        };
        // Fails only if it has just ended.
        let _ = kill_process(child, passed_on);
    }
}

/// Collects whoever has ended; how the child did, if it was among them.
fn collect(child: Pid) -> io::Result<Option<u8>> {
    while let Some((ended, status)) = wait(WaitOptions::NOHANG)? {
        if ended == child {
            return Ok(Some(exit_status(status)));
        }
    }
    Ok(None)
}

fn exit_status(status: WaitStatus) -> u8 {
    let signalled = status.terminating_signal().map(|signal| SIGNALLED + signal);
    let status = status.exit_status().or(signalled);
    status
        .and_then(|status| u8::try_from(status).ok())
        .unwrap_or(u8::MAX)
}
