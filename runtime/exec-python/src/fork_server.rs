//! The process that has the libraries loaded, and forks the children.
//!
//! Owns that process: it is started here, and ends when its socket does. Children are started and
//! killed through it, for it alone knows whether a process id is still its child's.
//!
//! Invariant: the exit of each child is told once, to whoever started it.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::process::Command;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::PythonConfig;
use crate::error::PythonError;
use crate::frame::{self, FromServer, Writer, to_server};
use crate::pipe::Pipe;
use crate::socket::Socket;
use crate::tail::Tail;

/// Libraries come from a slow disk sometimes.
const LOAD_SECONDS_MAX: u64 = 180;

/// Forking waits for nothing but the processor.
const FORK_SECONDS_MAX: u64 = 60;

/// Time for the last output of a process that has ended.
const DRAIN_MILLIS_MAX: u64 = 200;

/// Requests that wait to be sent.
const REQUESTS_MAX: usize = 1024;

const MODULE: &str = "oxidask._executor.fork_server";

/// A child that was forked.
#[derive(Debug)]
pub(crate) struct Forked {
    pub(crate) pid: i32,
    /// Its status when it has ended, as `waitpid` gives it.
    pub(crate) exit: oneshot::Receiver<i32>,
}

/// The process.
#[derive(Debug)]
pub(crate) struct ForkServer {
    program: String,
    socket: Arc<Socket>,
    requests: mpsc::Sender<Request>,
    state: Mutex<State>,
    tail: Arc<Mutex<Tail>>,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    forking: HashMap<u64, oneshot::Sender<Result<Forked, String>>>,
    exits: HashMap<i32, oneshot::Sender<i32>>,
}

#[derive(Debug)]
enum Request {
    Fork(u64, [OwnedFd; 6]),
    Kill(i32),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ForkServer {
    /// Starts it and waits until it has loaded everything, or enough if there is reason to hurry.
    pub(crate) async fn start(
        config: &PythonConfig,
        hurry: &Notify,
    ) -> Result<Arc<Self>, PythonError> {
        let program = config.program.display().to_string();
        let tail = Arc::new(Mutex::new(Tail::default()));
        let failed = |reason: String| PythonError::Start {
            program: program.clone(),
            reason,
            tail: lock(&tail).text(),
        };
        let prepared = prepare().map_err(|error| failed(format!("has no pipes: {error}")))?;
        let (socket, other, output, (stdout, stderr)) = prepared;
        let mut process = Command::new(&config.program)
            .args(["-m", MODULE])
            .envs(config.variables())
            .stdin(Stdio::from(other))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("does not start: {error}")))?;
        let reading = tokio::spawn(read_output(output, Arc::clone(&tail)));
        let (mut buffer, mut files) = (BytesMut::new(), VecDeque::new());
        let loading = loaded(&socket, &mut buffer, &mut files);
        let hurrying = async {
            hurry.notified().await;
            // Fails only if it has ended, which shows.
            let _ = socket
                .send(&Writer::new(to_server::HURRY).finish(), &[])
                .await;
            pending::<Option<Bytes>>().await
        };
        let loading = async {
            tokio::select! {
                said = loading => said,
                said = hurrying => said,
            }
        };
        let loaded = timeout(Duration::from_secs(LOAD_SECONDS_MAX), loading).await;
        let said = match loaded {
            Ok(Some(said)) => said,
            Ok(None) => {
                let _ = process.start_kill();
                let status = process.wait().await;
                let _ = timeout(Duration::from_millis(DRAIN_MILLIS_MAX), reading).await;
                let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                return Err(failed(format!("ended before it was ready ({status})")));
            }
            Err(_) => return Err(failed(format!("was not ready within {LOAD_SECONDS_MAX} s"))),
        };
        tell(&said);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let server = Arc::new(Self {
            program,
            socket: Arc::new(socket),
            requests,
            state: Mutex::default(),
            tail,
            ended: CancellationToken::new(),
        });
        tokio::spawn(write(Arc::clone(&server.socket), receiver));
        tokio::spawn(Arc::clone(&server).read(buffer, files));
        tokio::spawn(async move { process.wait().await });
        Ok(server)
    }

    /// Whether it is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Forks a child that gets these files: its line, its sockets for tasks and commands, its output, its
    /// errors, and where it marks the run that it is at.
    pub(crate) async fn fork(&self, files: [OwnedFd; 6]) -> Result<Forked, PythonError> {
        let (sender, receiver) = oneshot::channel();
        let request = {
            let mut state = lock(&self.state);
            state.next += 1;
            let request = state.next;
            state.forking.insert(request, sender);
            request
        };
        let forking = async {
            self.requests
                .send(Request::Fork(request, files))
                .await
                .ok()?;
            tokio::select! {
                forked = receiver => forked.ok(),
                () = self.ended.cancelled() => None,
            }
        };
        let forked = timeout(Duration::from_secs(FORK_SECONDS_MAX), forking).await;
        let reason = match forked {
            Ok(Some(Ok(forked))) => return Ok(forked),
            Ok(Some(Err(reason))) => format!("cannot fork: {reason}"),
            Ok(None) => "has ended".to_owned(),
            Err(_) => format!("did not fork within {FORK_SECONDS_MAX} s"),
        };
        lock(&self.state).forking.remove(&request);
        Err(self.failure(reason))
    }

    pub(crate) fn failure(&self, reason: String) -> PythonError {
        let (program, tail) = (self.program.clone(), lock(&self.tail).text());
        PythonError::Start {
            program,
            reason,
            tail,
        }
    }

    /// Kills a child and what it has started, if it has not ended yet.
    pub(crate) fn kill(&self, pid: i32) {
        if self.requests.try_send(Request::Kill(pid)).is_err() && !self.has_ended() {
            tracing::warn!(
                pid,
                "a process of Python cannot be killed: too many requests wait"
            );
        }
    }

    /// Ends it and all its children.
    pub(crate) fn close(&self) {
        self.socket.close();
        self.ended.cancel();
    }

    async fn read(self: Arc<Self>, mut buffer: BytesMut, mut files: VecDeque<OwnedFd>) {
        loop {
            while let Ok(Some((kind, body))) = frame::next(&mut buffer) {
                if let Some(said) = frame::from_server(kind, body) {
                    self.take(said);
                }
            }
            if !matches!(self.socket.receive(&mut buffer, &mut files).await, Ok(1..)) {
                break;
            }
        }
        self.ended.cancel();
        let mut state = lock(&self.state);
        state.forking.clear();
        state.exits.clear();
    }

    fn take(&self, said: FromServer) {
        let mut state = lock(&self.state);
        match said {
            FromServer::Forked { request, pid } => {
                let (sender, exit) = oneshot::channel();
                state.exits.insert(pid, sender);
                let forking = state.forking.remove(&request);
                drop(state);
                let forked = Ok(Forked { pid, exit });
                // Nobody waits any more: then nobody needs the child.
                if forking.is_none_or(|waiting| waiting.send(forked).is_err()) {
                    self.kill(pid);
                }
            }
            FromServer::NotForked { request, reason } => {
                if let Some(waiting) = state.forking.remove(&request) {
                    let _ = waiting.send(Err(reason));
                }
            }
            FromServer::Exited { pid, status } => {
                if let Some(waiting) = state.exits.remove(&pid) {
                    let _ = waiting.send(status);
                }
            }
            FromServer::Loaded(_) => {}
        }
    }
}

type Prepared = (Socket, OwnedFd, Pipe, (OwnedFd, OwnedFd));

/// A socket, its other end, and a pipe to read with two ends to write.
fn prepare() -> std::io::Result<Prepared> {
    let (socket, other) = Socket::pair()?;
    let (output, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let errors = write_end.try_clone()?;
    Ok((socket, other, Pipe::new(output)?, (write_end, errors)))
}

async fn loaded(
    socket: &Socket,
    buffer: &mut BytesMut,
    files: &mut VecDeque<OwnedFd>,
) -> Option<Bytes> {
    loop {
        if let Some((kind, body)) = frame::next(buffer).ok()? {
            return match frame::from_server(kind, body) {
                Some(FromServer::Loaded(said)) => Some(said),
                _ => None,
            };
        }
        if socket.receive(buffer, files).await.ok()? == 0 {
            return None;
        }
    }
}

/// Says what it has found.
fn tell(said: &[u8]) {
    let Ok(found) = serde_json::from_slice::<serde_json::Value>(said) else {
        return;
    };
    tracing::info!(versions = %found["versions"], "Python is ready");
    if found["threads"].as_u64().is_some_and(|threads| threads > 1) {
        tracing::debug!(threads = %found["threads"], "the fork server has more than one thread");
    }
    for note in found["notes"].as_array().into_iter().flatten() {
        tracing::warn!(
            note = note.as_str().unwrap_or_default(),
            "a library is broken"
        );
    }
}

async fn read_output(output: Pipe, tail: Arc<Mutex<Tail>>) {
    let take = |line: &str| {
        tracing::info!(target: "python", "{line}");
        lock(&tail).push(line);
    };
    output.read_lines(take).await;
}

async fn write(socket: Arc<Socket>, mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        let sent = match request {
            Request::Fork(request, files) => {
                let mut writer = Writer::new(to_server::FORK);
                writer.u64(request);
                let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
                socket.send(&writer.finish(), &borrowed).await
            }
            Request::Kill(pid) => {
                let mut writer = Writer::new(to_server::KILL);
                writer.raw(&pid.to_le_bytes());
                socket.send(&writer.finish(), &[]).await
            }
        };
        if sent.is_err() {
            return; // It has ended; its reader says so.
        }
    }
}
