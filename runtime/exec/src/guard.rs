//! Ends the programs of `exec` tasks when their worker is killed.
//!
//! A program runs as a process group of its own. The worker ends the group when the task ends; a
//! worker that is itself killed cannot. So it starts one more process beside it, the guard, and
//! tells it through a pipe which groups run. When the worker ends, for whatever reason, the kernel
//! closes the pipe, and the guard kills the groups that are left and ends too.
//!
//! Invariants: the guard outlives its worker by no more than an instant; it never kills a group
//! that was taken back; without a guard everything works, except after a kill of the worker.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

/// Groups that one guard watches; far above the slots of any worker.
const GROUPS_MAX: usize = 65_536;

/// A sign and a process id in little-endian order.
const RECORD_BYTES: usize = 5;
const STARTED: u8 = b'+';
const ENDED: u8 = b'-';

/// The command line that starts a guard: a program that does nothing but call [`watch`] on its
/// standard input.
#[derive(Debug, Clone)]
pub struct GuardCommand {
    /// The program, usually this one.
    pub program: PathBuf,
    /// What makes it a guard.
    pub arguments: Vec<OsString>,
}

/// The guard's own work: remembers groups until its input ends, then kills what is left.
pub fn watch(mut input: impl Read) {
    let mut groups = BTreeSet::new();
    let mut record = [0; RECORD_BYTES];
    while input.read_exact(&mut record).is_ok() {
        let [sign, pid @ ..] = record;
        let pid = i32::from_le_bytes(pid);
        match sign {
            STARTED if groups.len() < GROUPS_MAX => groups.insert(pid),
            _ => groups.remove(&pid),
        };
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // A group that has just ended is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// The worker's end: starts the guard when it is first needed and tells it what runs.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    command: Option<GuardCommand>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    NotStarted,
    Running(Child, ChildStdin),
    Unavailable,
}

impl Guard {
    pub(crate) fn new(command: GuardCommand) -> Self {
        Self {
            command: Some(command),
            state: Mutex::default(),
        }
    }

    /// Starts the guard if it has not been: before the program, so that no time is lost between the
    /// program's start and the guard's knowledge of it.
    pub(crate) fn prepare(&self) {
        if let Some(command) = &self.command {
            self.lock().start(command);
        }
    }

    /// A group has started.
    pub(crate) fn started(&self, group: Pid) {
        self.tell(STARTED, group);
    }

    /// A group has ended.
    pub(crate) fn ended(&self, group: Pid) {
        self.tell(ENDED, group);
    }

    fn tell(&self, sign: u8, group: Pid) {
        let Some(command) = &self.command else { return };
        let mut state = self.lock();
        state.start(command);
        if let State::Running(child, pipe) = &mut *state {
            let mut record = [sign; RECORD_BYTES];
            record[1..].copy_from_slice(&group.as_raw_nonzero().get().to_le_bytes());
            if let Err(error) = pipe.write_all(&record) {
                tracing::warn!(%error, "the guard of exec programs has ended");
                // Reaped if it has ended; if it is only stuck, closing the pipe ends it later.
                let _ = child.try_wait();
                *state = State::Unavailable;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn start(&mut self, command: &GuardCommand) {
        if !matches!(self, Self::NotStarted) {
            return;
        }
        *self = match start(command) {
            Ok((child, pipe)) => Self::Running(child, pipe),
            Err(error) => {
                tracing::warn!(%error, "the guard of exec programs cannot be started");
                Self::Unavailable
            }
        };
    }
}

/// In a group of its own, so that Ctrl-C on a terminal does not end it before its worker.
fn start(command: &GuardCommand) -> io::Result<(Child, ChildStdin)> {
    let mut child = Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // A guard that was stopped by someone must not stop its worker.
    fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
    Ok((child, pipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("40")
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn record(sign: u8, child: &Child) -> Vec<u8> {
        let mut record = vec![sign];
        record.extend_from_slice(&i32::try_from(child.id()).unwrap().to_le_bytes());
        record
    }

    #[test]
    fn kills_what_is_left_when_its_input_ends() {
        let (mut left, mut taken_back) = (sleeper(), sleeper());
        let mut input = record(STARTED, &left);
        input.extend(record(STARTED, &taken_back));
        input.extend(record(ENDED, &taken_back));
        input.push(STARTED); // cut short by the worker's death
        watch(&input[..]);
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert!(taken_back.try_wait().unwrap().is_none());
        taken_back.kill().unwrap();
        taken_back.wait().unwrap();
    }

    #[test]
    fn ignores_nonsense() {
        watch(&[0_u8; 64][..]);
        watch(&[0xff_u8; 63][..]);
        watch(&b""[..]);
    }

    #[test]
    fn a_guard_that_cannot_start_or_ends_early_is_no_failure() {
        for program in ["/nonexistent/guard", "true"] {
            let guard = Guard::new(GuardCommand {
                program: program.into(),
                arguments: vec![],
            });
            for _ in 0..100 {
                guard.started(Pid::from_raw(1 << 30).unwrap());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}
