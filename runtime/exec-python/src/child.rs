//! One process that runs tasks, as the worker sees it.
//!
//! Owns its sockets: tasks wait in one line and are answered in order on a stream, on which also comes
//! what is too large for the line; commands have a stream of their own. Knows which task the process
//! is at, so that its end is blamed on that one alone.
//!
//! Invariants: each task that was handed over gets one answer, whatever happens; frames are whole, or
//! the process is ended; a packet in line that is no task stands for one frame on the stream.

mod hand_over;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::TaskError;
use oxidask_logbook::{self as logbook, Level, now_micros};
use oxidask_store::{Payload, PayloadKind};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

pub(crate) use self::hand_over::STALL;
use self::hand_over::{SentTables, Whole, write};
use crate::death::{Death, described};
use crate::error::PythonError;
use crate::fork_server::{ForkServer, Forked};
use crate::frame::{self, FromChild, Place};
use crate::line::Line;
use crate::pipe::Pipe;
use crate::segment::{self, Segments};
use crate::send;
use crate::socket::Socket;
use crate::tail::Tail;
use crate::turn::{Answer, Waiting};

/// From the fork to the first word.
const READY_SECONDS_MAX: u64 = 60;

/// A process that closes its socket ends soon, or is ended.
const EXIT_MILLIS_MAX: u64 = 300;

/// A process that was killed is gone soon.
const KILLED_SECONDS_MAX: u64 = 10;

/// Time for the last output of a process that has ended. It is all there; only what the process has
/// left behind keeps its pipes open longer.
const DRAIN_MILLIS_MAX: u64 = 1_000;

/// How likely the system ends a child before its worker when memory runs out: the most there is.
const OUT_OF_MEMORY_SCORE: &[u8] = b"1000";

/// One process.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    server: Arc<ForkServer>,
    segments: Arc<Segments>,
    line: Line,
    tasks: Socket,
    control: Socket,
    /// What it prints, but for what its own Python prints in a task.
    pipes: [(Pipe, Level); 2],
    /// Where it says which run it is at.
    mark: OwnedFd,
    /// Whoever holds it writes tasks.
    writing: AsyncMutex<SentTables>,
    state: Mutex<State>,
    /// How many standing commands it has carried out. Whoever holds it is at the next ones.
    pub(crate) caught_up: AsyncMutex<usize>,
    pub(crate) caught_up_to: AtomicUsize,
    command_writing: AsyncMutex<()>,
    /// Tasks that were given to it and are not answered.
    pub(crate) load: AtomicUsize,
    /// It runs a task that has left its slot.
    pub(crate) is_away: AtomicBool,
    /// It gets no more tasks.
    is_replaced: AtomicBool,
    ended: CancellationToken,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    commands: HashMap<u64, oneshot::Sender<(bool, Bytes)>>,
    next_command: u64,
    tail: Tail,
    /// When it was last done with a run, or had none.
    last_end: Option<Instant>,
    has_ended: bool,
    /// It was ended because of a run that nobody waits for any more.
    is_doomed: bool,
}

impl State {
    /// It is the turn of the next in line. False if the process must end with it.
    fn begin_next(&mut self) -> bool {
        self.last_end = Some(Instant::now());
        let Some(next) = self.waiting.front_mut() else {
            return true;
        };
        next.begin();
        if next.is_unwanted() {
            self.has_ended = true;
            self.is_doomed = true;
        }
        !self.is_doomed
    }
}

impl Child {
    /// Forks one and waits until it is ready.
    pub(crate) async fn start(
        server: Arc<ForkServer>,
        segments: Arc<Segments>,
        changed: Arc<Notify>,
    ) -> Result<Arc<Self>, PythonError> {
        let failed =
            |error: &dyn std::error::Error| server.failure(format!("has no pipes: {error}"));
        let (line, other_line) = Line::new().map_err(|error| failed(&error))?;
        let (tasks, other_tasks) = Socket::pair().map_err(|error| failed(&error))?;
        let (control, other_control) = Socket::pair().map_err(|error| failed(&error))?;
        let (output, stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let (errors, stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let pipe = |file| Pipe::new(file).map_err(|error| failed(&error));
        let pipes = [(pipe(output)?, Level::Out), (pipe(errors)?, Level::Err)];
        let mark = segment::mark().map_err(|error| failed(&error))?;
        let other_mark = mark.try_clone().map_err(|error| failed(&error))?;
        let files = [
            other_line,
            other_tasks,
            other_control,
            stdout,
            stderr,
            other_mark,
        ];
        let Forked { pid, exit } = server.fork(files).await?;
        // Not every system lets us say so.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OUT_OF_MEMORY_SCORE);
        let child = Arc::new(Self {
            pid,
            server,
            segments,
            line,
            tasks,
            control,
            pipes,
            mark,
            writing: AsyncMutex::default(),
            state: Mutex::default(),
            caught_up: AsyncMutex::new(0),
            caught_up_to: AtomicUsize::new(0),
            command_writing: AsyncMutex::new(()),
            load: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
            is_replaced: AtomicBool::new(false),
            ended: CancellationToken::new(),
            changed,
        });
        let readers = [0, 1].map(|number| tokio::spawn(Arc::clone(&child).read_pipe(number)));
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(Arc::clone(&child).read_tasks(ready, exit, readers));
        tokio::spawn(Arc::clone(&child).read_answers());
        match timeout(Duration::from_secs(READY_SECONDS_MAX), is_ready).await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(_)) => {
                // Its last lines are known when it is over.
                child.ended.cancelled().await;
                Err(child.start_failure("ended before it was ready"))
            }
            Err(_) => {
                child.kill();
                let reason = format!("was not ready within {READY_SECONDS_MAX} s");
                Err(child.start_failure(&reason))
            }
        }
    }

    fn start_failure(&self, reason: &str) -> PythonError {
        match self
            .server
            .failure(format!("forked a process that {reason}"))
        {
            PythonError::Start {
                program,
                reason,
                tail,
            } => {
                let own = self.lock().tail.text();
                let tail = if own.is_empty() { tail } else { own };
                PythonError::Start {
                    program,
                    reason,
                    tail,
                }
            }
            other => other,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is gone, or about to.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Ends it and what it has started.
    pub(crate) fn kill(&self) {
        self.server.kill(self.pid);
    }

    /// Ends it when it has nothing to do: it hears nothing more.
    pub(crate) fn close(&self) {
        self.lock().has_ended = true;
        self.line.close();
        self.tasks.close();
        self.control.close();
    }

    /// Another takes its place: it ends with the last task that it has.
    pub(crate) fn replace(&self) {
        self.is_replaced.store(true, Ordering::SeqCst);
        self.close_if_replaced();
    }

    /// To be called when it has a task less. Whoever comes last, this or [`Self::replace`], closes it.
    pub(crate) fn close_if_replaced(&self) {
        if self.load.load(Ordering::SeqCst) == 0 && self.is_replaced.load(Ordering::SeqCst) {
            self.close();
        }
    }

    /// Has a command carried out: whether it went well, and what it gave.
    pub(crate) async fn command(&self, content: &Bytes) -> Result<(bool, Bytes), PythonError> {
        let (sender, receiver) = oneshot::channel();
        let request = {
            let mut state = self.lock();
            state.next_command += 1;
            let request = state.next_command;
            if !state.has_ended {
                state.commands.insert(request, sender);
            }
            request
        };
        let message = send::command(&self.segments, request, content).await;
        let message = message.map_err(PythonError::Input)?;
        {
            let _writing = self.command_writing.lock().await;
            let mut whole = Whole(self, false);
            whole.1 = write(&self.control, &message).await.is_ok();
        }
        receiver.await.map_err(|_| {
            let tail = self.lock().tail.text();
            let status = "no answer to a command".to_owned();
            PythonError::Died { status, tail }
        })
    }

    async fn read_answers(self: Arc<Self>) {
        let (mut buffer, mut files) = (BytesMut::new(), VecDeque::new());
        while let Ok(1..) = self.control.receive(&mut buffer, &mut files).await {
            while let Ok(Some((kind, body))) = frame::next(&mut buffer) {
                let Some(FromChild::Answer {
                    request,
                    is_well,
                    value,
                }) = frame::from_child(kind, body)
                else {
                    continue;
                };
                let answer = self.value(value, &mut files);
                let waiting = self.lock().commands.remove(&request);
                if let (Some(waiting), Ok(answer)) = (waiting, answer) {
                    let _ = waiting.send((is_well, answer));
                }
            }
        }
        self.lock().commands.clear();
    }

    async fn read_tasks(
        self: Arc<Self>,
        ready: oneshot::Sender<()>,
        exit: oneshot::Receiver<i32>,
        readers: [JoinHandle<()>; 2],
    ) {
        let (mut buffer, mut files) = (BytesMut::new(), VecDeque::new());
        let mut ready = Some(ready);
        'reading: while let Ok(1..) = self.tasks.receive(&mut buffer, &mut files).await {
            self.take_written();
            loop {
                match frame::next(&mut buffer) {
                    Ok(None) => break,
                    Err(frame::TooLong) => break 'reading,
                    Ok(Some((kind, body))) => match frame::from_child(kind, body) {
                        Some(FromChild::Ready) => {
                            ready.take().map(|ready| ready.send(()));
                        }
                        Some(said) => self.take(said, &mut files),
                        None => break 'reading,
                    },
                }
            }
        }
        self.lock().has_ended = true;
        let death = self.death(exit, readers).await;
        self.answer_all(&death);
        self.ended.cancel();
        self.changed.notify_waiters();
    }

    fn take(&self, said: FromChild, files: &mut VecDeque<OwnedFd>) {
        match said {
            FromChild::Done { run, kind, value } => {
                let payload = self.value(value, files).map(|bytes| payload(kind, bytes));
                let outcome = match payload {
                    Ok(Some(payload)) => Ok(payload),
                    Ok(None) => Err(std::io::ErrorKind::InvalidData.into()),
                    Err(error) => Err(error),
                };
                self.answer(
                    run,
                    outcome.map_err(|e| PythonError::Output(e).into_task_error()),
                );
            }
            FromChild::Failed {
                run,
                code,
                is_retryable,
                message,
                hint,
                attachment,
            } => {
                let code = if code == Code::PythonValue.number() {
                    Code::PythonValue
                } else {
                    Code::TaskFailed
                };
                let mut diagnostic = Diagnostic::new(code, message);
                if !hint.is_empty() {
                    diagnostic = diagnostic.with_hint(hint);
                }
                diagnostic.attachment = Some(attachment.as_ref().into());
                self.answer(
                    run,
                    Err(TaskError {
                        diagnostic,
                        is_retryable,
                        is_given_back: false,
                    }),
                );
            }
            FromChild::Line {
                run,
                is_error,
                text,
            } => {
                let level = if is_error { Level::Err } else { Level::Out };
                self.take_line(&String::from_utf8_lossy(&text), level, Some(run));
            }
            FromChild::Secede { run } => self.change_slot(run, true),
            FromChild::Rejoin { run } => self.change_slot(run, false),
            FromChild::Notice(text) => tracing::warn!(pid = self.pid, "{text}"),
            FromChild::Ready | FromChild::Answer { .. } => {}
        }
    }

    fn value(&self, value: Place, files: &mut VecDeque<OwnedFd>) -> std::io::Result<Bytes> {
        match value {
            Place::Here(bytes) => Ok(bytes),
            Place::File(length) => {
                let file = files.pop_front().ok_or(std::io::ErrorKind::NotFound)?;
                self.segments.take(file, length)
            }
        }
    }

    fn answer(&self, run: u64, outcome: Result<Payload, TaskError>) {
        let first = {
            let mut state = self.lock();
            state.tail.clear(Instant::now());
            let is_first = state.waiting.front().is_some_and(|first| first.run == run);
            let first = is_first.then(|| state.waiting.pop_front()).flatten();
            // Before the answer: whoever hears that must know already who has the slot now.
            if first.is_some() && !state.begin_next() {
                self.kill();
            }
            first
        };
        if self.is_away.swap(false, Ordering::Relaxed) {
            self.changed.notify_waiters();
        }
        if let Some(first) = first {
            first.end(Answer::Finished(outcome));
        }
    }

    fn change_slot(&self, run: u64, leaves: bool) {
        let slot = {
            let state = self.lock();
            let waiting = state.waiting.iter().find(|waiting| waiting.run == run);
            waiting.map(|waiting| Arc::clone(&waiting.slot))
        };
        let Some(slot) = slot else { return };
        self.is_away.store(leaves, Ordering::Relaxed);
        if leaves {
            slot.leave();
            self.clear_line();
        } else {
            slot.take_back();
        }
        self.changed.notify_waiters();
    }

    async fn read_pipe(self: Arc<Self>, number: usize) {
        let (pipe, level) = &self.pipes[number];
        let take = |line: &str| self.take_line(line, *level, None);
        pipe.read_lines(take).await;
    }

    /// What a run has written to a pipe was there before its answer, and belongs to it.
    fn take_written(&self) {
        for (pipe, level) in &self.pipes {
            pipe.take_written(|line| self.take_line(line, *level, None));
        }
    }

    /// A line of a run, or of the one that it is at.
    fn take_line(&self, text: &str, level: Level, run: Option<u64>) {
        let mut state = self.lock();
        match run {
            Some(_) => state.tail.push(text),
            None => state.tail.push_from_pipe(text, Instant::now()),
        }
        let is_it = |waiting: &&Waiting| run.is_none_or(|run| waiting.run == run);
        let of = state.waiting.iter().find(is_it).map(|waiting| {
            let task = waiting.task.clone();
            (task, Arc::clone(&waiting.logbook))
        });
        drop(state);
        let Some((task, logbook)) = of else {
            tracing::info!(target: "python", pid = self.pid, "{text}");
            return;
        };
        logbook.add(logbook::Line {
            time_micros: now_micros(),
            level,
            target: "python".to_owned(),
            text: text.to_owned(),
            graph: task.graph.to_string(),
            key: task.key.to_string(),
            attempt: task.attempt,
        });
    }

    /// Waits for the end of a process that hears nothing any more.
    async fn death(&self, mut exit: oneshot::Receiver<i32>, readers: [JoinHandle<()>; 2]) -> Death {
        let mut status = timeout(Duration::from_millis(EXIT_MILLIS_MAX), &mut exit).await;
        let was_ended = status.is_err();
        if was_ended {
            self.kill();
            status = timeout(Duration::from_secs(KILLED_SECONDS_MAX), &mut exit).await;
        }
        let drained_by = Instant::now() + Duration::from_millis(DRAIN_MILLIS_MAX);
        for mut reader in readers {
            let drained = timeout_at(drained_by.into(), &mut reader);
            if drained.await.is_err() {
                reader.abort();
            }
        }
        let tail = self.lock().tail.text();
        let (status, is_kill) = match status {
            _ if was_ended => ("its connection closed, and was ended".to_owned(), false),
            Ok(Ok(status)) => described(status),
            _ => ("an unknown status".to_owned(), false),
        };
        Death {
            status,
            is_kill,
            tail,
        }
    }

    fn answer_all(&self, death: &Death) {
        let (waiting, commands, is_doomed) = {
            let mut state = self.lock();
            let waiting = std::mem::take(&mut state.waiting);
            (
                waiting,
                std::mem::take(&mut state.commands),
                state.is_doomed,
            )
        };
        drop(commands);
        let begun = segment::read_mark(&self.mark);
        for waiting in waiting {
            let answer = if waiting.run == begun && !is_doomed {
                Answer::Died(death.clone())
            } else {
                Answer::NotBegun
            };
            waiting.end(answer);
        }
    }
}

fn payload(kind: u8, bytes: Bytes) -> Option<Payload> {
    PayloadKind::from_number(kind.into()).map(|kind| Payload::new(kind, bytes))
}
