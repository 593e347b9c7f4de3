//! The processes of a local cluster and their restarts.
//!
//! Everything starts at once: the parent binds the scheduler's socket and hands it over, so workers
//! may connect before the scheduler has come up. The parent keeps the socket: when the scheduler
//! dies, whoever connects waits at it for the next one, which goes on from the journal.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec_frame::script::ClusterSize;
use oxidask_identity::Role;
use oxidask_operator_api::ClusterPlan;
use oxidask_proto::wire;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::deaths::{self, MemoryKills, MemoryVerdict};
use super::folder::RunFolder;
use super::member::{Common, Member};
use super::process::{self, Ending, LastLines, Log};
use super::ready::{self, Ready};
use super::report::Reporter;
use super::restarts::{RESTARTS_MAX, WINDOW};
use crate::arguments::LoggingArguments;
use crate::error::CliError;
use crate::service::machine;
use crate::terminal::Terminal;
use crate::work;

/// How long log lines of workers wait: that the scheduler is gone, its own end says better.
const WORKER_LOG_HOLD: Duration = Duration::from_millis(300);
/// Time that the scheduler has to come up.
const START_TIME: Duration = Duration::from_secs(10);
/// Ends of workers that the scheduler is being told of at a time.
const REPORTS_MAX: usize = 64;

/// Ports of a local cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listening {
    /// Free ports, no HTTP: for a run that nobody else talks to.
    Ephemeral,
    /// The usual ports when they are free.
    WellKnown,
}

/// A running local cluster. Dropping it kills what [`LocalCluster::stop`] has not ended.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    address: String,
    listener: TcpListener,
    listening: Listening,
    /// The scheduler is the first.
    members: Vec<Member>,
    exits: JoinSet<Exit>,
    workers_alive: usize,
    restarts: VecDeque<(Instant, usize)>,
    memory_kills: MemoryKills,
    reporter: Reporter,
    reports: JoinSet<()>,
    ready: watch::Sender<Option<Result<Ready, String>>>,
    has_failed: bool,
    /// The end has begun: nothing that a process says is news any more.
    hush: CancellationToken,
    workers_hush: CancellationToken,
    stop_workers: CancellationToken,
    stop_scheduler: CancellationToken,
    terminal: Terminal,
    program: PathBuf,
    // Last: removed after the processes have gone.
    folder: RunFolder,
}

#[derive(Debug)]
struct Exit {
    member: usize,
    status: io::Result<ExitStatus>,
}

impl LocalCluster {
    /// Starts all processes. They are not ready yet: clients and workers wait for the scheduler
    /// at its socket. Must be called on a thread that lives as long as the process, because
    /// children end with the thread that started them.
    pub(crate) fn start(
        plan: &ClusterPlan,
        base_dir: &Path,
        listening: Listening,
        logging: &LoggingArguments,
        terminal: &Terminal,
    ) -> Result<Self, CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::start("the program's own file is not known", &error))?;
        let listener =
            bind(listening).map_err(|error| CliError::start("no port could be bound", &error))?;
        let address = listener
            .local_addr()
            .map(|address| format!("oxidask://{address}"))
            .map_err(|error| CliError::start("the bound port is not known", &error))?;
        let folder = RunFolder::create(&plan.name)?;
        let common = Common {
            folder: &folder,
            address: &address,
            logging,
            base_dir,
            share_bytes: share_bytes(plan),
        };
        let mut members = vec![Member::scheduler(&common, listening)];
        for group in &plan.groups {
            let workers = (0..group.replicas).map(|index| Member::worker(&common, group, index));
            members.extend(workers);
        }
        let reporter = Reporter::new(&address, client_credentials(&folder)?);
        let hush = CancellationToken::new();
        let mut cluster = Self {
            address,
            listener,
            listening,
            members,
            exits: JoinSet::new(),
            workers_alive: 0,
            restarts: VecDeque::new(),
            memory_kills: MemoryKills::new(),
            reporter,
            reports: JoinSet::new(),
            ready: watch::Sender::new(None),
            has_failed: false,
            workers_hush: hush.child_token(),
            hush,
            stop_workers: CancellationToken::new(),
            stop_scheduler: CancellationToken::new(),
            terminal: terminal.clone(),
            program,
            folder,
        };
        for member in 0..cluster.members.len() {
            cluster.spawn(member)?;
        }
        Ok(cluster)
    }

    /// The size of a cluster that is about to be started.
    pub(crate) fn size_of(plan: &ClusterPlan) -> ClusterSize {
        let mut size = work::size_of(plan);
        if plan.groups.iter().any(|group| group.memory_bytes.is_none()) {
            size.memory_bytes = size.memory_bytes.min(share_bytes(plan));
        }
        size
    }

    /// Where the scheduler listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The cluster's private folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets clients of the same user find the cluster, once it is ready.
    pub(crate) fn announce(&self) -> Result<(), CliError> {
        self.folder
            .announce(&self.address)
            .map_err(|error| CliError::start("the cluster cannot be announced", &error))
    }

    /// The folder with the certificates of clients.
    pub(crate) fn client_certificates(&self) -> PathBuf {
        self.folder.certificates(Role::Client)
    }

    /// The certificates of a client.
    pub(crate) fn credentials(&self) -> Result<Credentials, CliError> {
        client_credentials(&self.folder)
    }

    /// Waits for a scheduler with well-known ports to come up, for a bounded time.
    pub(crate) async fn ready(&mut self) -> Result<Ready, CliError> {
        let failed = |cause: String| {
            let diagnostic = Diagnostic::new(Code::ClusterStart, "the scheduler did not come up");
            CliError::failed(diagnostic.with_cause(cause))
        };
        let mut said = self.ready.subscribe();
        let outcome = tokio::select! {
            failure = self.supervise() => return Err(failure),
            said = said.wait_for(Option::is_some) => said.ok().and_then(|said| said.clone()),
            () = tokio::time::sleep(START_TIME) => {
                Some(Err(format!("it took more than {} s", START_TIME.as_secs())))
            }
        };
        let ready = outcome.unwrap_or_else(|| Err("it said nothing".to_owned()));
        ready.map_err(failed)
    }

    /// Starts processes again that end; returns when that no longer helps. May be dropped and
    /// called again at any time.
    pub(crate) async fn supervise(&mut self) -> CliError {
        if self.has_failed {
            // It has been said, and the rest only follows from it.
            std::future::pending::<()>().await;
        }
        loop {
            let due = self.restarts.front().map(|(due, _)| *due);
            let restart = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let failure = tokio::select! {
                Some(exit) = self.exits.join_next() => match exit {
                    Ok(exit) => self.on_exit(&exit).err(),
                    // A watcher neither panics nor is aborted before the end.
                    Err(error) => Some(CliError::start("a process was lost", &error)),
                },
                () = restart => self.start_again().err(),
                Some(_) = self.reports.join_next() => None,
            };
            if let Some(failure) = failure {
                self.has_failed = true;
                self.workers_hush.cancel();
                return failure;
            }
        }
    }

    /// Waits a bounded time for the end of the scheduler, when its connection is lost for good: its
    /// exit says more than the connection does.
    pub(crate) async fn cause_of_disconnect(&mut self) -> Option<CliError> {
        const EXIT_WAIT: Duration = Duration::from_secs(1);
        tokio::time::timeout(EXIT_WAIT, self.supervise()).await.ok()
    }

    /// Ends all processes, workers before their scheduler, tidily if they do so in time, and removes
    /// the folder.
    pub(crate) async fn stop(mut self) {
        self.hush.cancel();
        self.reports.abort_all();
        self.stop_workers.cancel();
        while self.workers_alive > 0
            && let Some(exit) = self.exits.join_next().await
        {
            let is_worker = exit.is_ok_and(|exit| !self.members[exit.member].is_scheduler);
            self.workers_alive -= usize::from(is_worker);
        }
        self.stop_scheduler.cancel();
        while self.exits.join_next().await.is_some() {}
    }

    fn on_exit(&mut self, exit: &Exit) -> Result<(), CliError> {
        let memory = if deaths::was_killed(&exit.status) {
            self.memory_kills.look()
        } else {
            MemoryVerdict::No
        };
        let how = deaths::describe(&exit.status, memory);
        let member = &mut self.members[exit.member];
        let title = member.title();
        let restart = member.restarts.next(Instant::now());
        if !member.is_scheduler {
            self.workers_alive -= 1;
            let request = wire::WorkerEndedRequest {
                worker: member.name.clone(),
                pod_uid: String::new(),
                reason: how.clone(),
                process_id: member.process_id,
            };
            if self.reports.len() < REPORTS_MAX {
                self.reports.spawn(self.reporter.clone().tell(request));
            }
        }
        let Some(restart) = restart else {
            let (times, seconds) = (RESTARTS_MAX + 1, WINDOW.as_secs());
            let message =
                format!("{title} ended {times} times within {seconds} s, the last time with {how}");
            let code = if member.is_scheduler {
                Code::SchedulerEnded
            } else {
                Code::WorkersKeepDying
            };
            let diagnostic = Diagnostic::new(code, message);
            return Err(CliError::failed(with_last_lines(diagnostic, &member.lines)));
        };
        self.terminal.notice(&format!(
            "{title} died ({how}); it is started again ({} of {RESTARTS_MAX})",
            restart.count
        ));
        self.restarts
            .push_back((Instant::now() + restart.pause, exit.member));
        self.restarts.make_contiguous().sort_by_key(|(due, _)| *due);
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), CliError> {
        match self.restarts.pop_front() {
            Some((_, member)) => self.spawn(member),
            None => Ok(()),
        }
    }

    fn spawn(&mut self, member: usize) -> Result<(), CliError> {
        if self.members[member].is_scheduler {
            self.spawn_scheduler(member)
        } else {
            self.spawn_worker(member)
        }
    }

    fn spawn_scheduler(&mut self, member: usize) -> Result<(), CliError> {
        let listener = self.listener.try_clone();
        let listener = listener
            .map_err(|error| CliError::start("the scheduler's socket cannot be used", &error))?;
        let mut command = self.command(member);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        if self.listening == Listening::WellKnown {
            command.stdout(Stdio::piped());
        }
        // Whoever knows the port of HTTP finds it again.
        let before = self.ready.borrow().clone().and_then(Result::ok);
        if let Some(port) = before.as_ref().and_then(Ready::http_port) {
            command.arg(format!("--http-port={port}"));
        }
        let mut child = self.start_process(command, member)?;
        if let Some(stdout) = child.stdout.take() {
            self.reports.spawn(ready::read(stdout, self.ready.clone()));
        }
        self.watch(child, member);
        Ok(())
    }

    fn spawn_worker(&mut self, member: usize) -> Result<(), CliError> {
        let scratch = self
            .folder
            .scratch(&self.members[member].name)
            .map_err(|error| CliError::start("a scratch folder cannot be made", &error))?;
        let mut command = self.command(member);
        command.arg("--scratch-dir").arg(scratch);
        let child = self.start_process(command, member)?;
        self.workers_alive += 1;
        self.watch(child, member);
        Ok(())
    }

    fn command(&self, member: usize) -> Command {
        self.members[member].command(&self.program)
    }

    fn start_process(&mut self, command: Command, member: usize) -> Result<Child, CliError> {
        let member = &mut self.members[member];
        let child = process::start(command).map_err(|error| {
            let what = format!("the process of `{}` cannot be started", member.name);
            CliError::start(&what, &error)
        })?;
        member.process_id = child.id().unwrap_or(0);
        Ok(child)
    }

    fn watch(&mut self, child: Child, member: usize) {
        let Member {
            name,
            is_scheduler,
            lines,
            ..
        } = &self.members[member];
        let (label, hold, hush) = if *is_scheduler {
            (name.clone(), Duration::ZERO, &self.hush)
        } else {
            (
                format!("worker {name}"),
                WORKER_LOG_HOLD,
                &self.workers_hush,
            )
        };
        let log = Log {
            label,
            lines: lines.clone(),
            terminal: self.terminal.clone(),
            hold,
            hush: hush.clone(),
        };
        let ending = self.ending(*is_scheduler);
        self.exits.spawn(async move {
            let status = process::watch(child, log, ending).await;
            Exit { member, status }
        });
    }

    /// Workers end programs that they run. A scheduler that others talk to says goodbye; one that
    /// nobody talks to any more has nothing to tidy up.
    fn ending(&self, is_scheduler: bool) -> Ending {
        if !is_scheduler {
            return Ending {
                stop: self.stop_workers.clone(),
                signal: Some(Signal::INT),
            };
        }
        Ending {
            stop: self.stop_scheduler.clone(),
            signal: (self.listening == Listening::WellKnown).then_some(Signal::TERM),
        }
    }
}

fn client_credentials(folder: &RunFolder) -> Result<Credentials, CliError> {
    Credentials::from_dir(&folder.certificates(Role::Client))
        .map_err(|error| CliError::from_failure(&error))
}

/// The memory of a worker for which the manifest says nothing.
fn share_bytes(plan: &ClusterPlan) -> u64 {
    machine::memory_bytes() / plan.workers().max(1)
}

fn with_last_lines(diagnostic: Diagnostic, lines: &LastLines) -> Diagnostic {
    let lines = lines.take();
    if lines.is_empty() {
        return diagnostic;
    }
    diagnostic.with_cause(format!("its last log lines:\n    {}", lines.join("\n    ")))
}

/// The socket of the scheduler.
fn bind(listening: Listening) -> io::Result<TcpListener> {
    const SCHEDULER_PORT: u16 = 8786;
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if listening == Listening::WellKnown
        && let Ok(listener) = TcpListener::bind(address(SCHEDULER_PORT))
    {
        return Ok(listener);
    }
    TcpListener::bind(address(0))
}
