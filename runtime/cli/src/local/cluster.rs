//! The processes of a local cluster and their restarts.
//!
//! Everything starts at once: the parent binds the scheduler's socket and hands it over, so workers
//! may connect before the scheduler has come up.

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
use oxidask_operator_api::{ClusterPlan, GroupPlan};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::folder::RunFolder;
use super::process::{self, LastLines, Log};
use crate::arguments::{LogFormat, LoggingArguments};
use crate::error::CliError;
use crate::service::machine;
use crate::terminal::Terminal;
use crate::work;

/// How often one worker is started again in a run.
const RESTARTS_MAX: u32 = 5;
/// Pause before the first restart of a worker; doubled with each.
const RESTART_PAUSE: Duration = Duration::from_millis(20);
/// How long log lines of workers wait: that the scheduler is gone, its own end says better.
const WORKER_LOG_HOLD: Duration = Duration::from_millis(300);
/// Level of the log lines of processes unless the user asks for another; what is worth a line
/// below that, the parent says itself.
const LOG_LEVEL: &str = "error";
/// Buffers above this size, in KiB, go back to the system when they are freed; by itself the
/// allocator keeps them for a second, which a worker near its limit cannot afford. It reads its
/// settings before the program begins.
const ALLOCATOR_SETTING: (&str, &str) = ("MIMALLOC_ARENA_MAX_OBJECT_SIZE", "16384");

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
    members: Vec<Member>,
    exits: JoinSet<Exit>,
    restarts: VecDeque<(Instant, usize)>,
    has_failed: bool,
    stop: CancellationToken,
    workers_hush: CancellationToken,
    terminal: Terminal,
    program: PathBuf,
    // Last: removed after the processes have gone.
    folder: RunFolder,
}

/// A process and how to start it again.
#[derive(Debug)]
struct Member {
    /// `scheduler`, or a worker's name.
    name: String,
    is_scheduler: bool,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    lines: LastLines,
    restarts: u32,
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
    ) -> Result<(Self, Option<ChildStdout>), CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::start("the program's own file is not known", &error))?;
        let listener =
            bind(listening).map_err(|error| CliError::start("no port could be bound", &error))?;
        let address = listener
            .local_addr()
            .map(|address| format!("oxidask://{address}"))
            .map_err(|error| CliError::start("the bound port is not known", &error))?;
        let folder = RunFolder::create(&plan.name)?;
        let stop = CancellationToken::new();
        let mut cluster = Self {
            address,
            members: Vec::new(),
            exits: JoinSet::new(),
            restarts: VecDeque::new(),
            has_failed: false,
            workers_hush: stop.child_token(),
            stop,
            terminal: terminal.clone(),
            program,
            folder,
        };
        cluster.members.push(cluster.scheduler(listening, logging));
        let stdout = cluster.spawn_scheduler(listener, listening)?;
        let share = share_bytes(plan);
        for group in &plan.groups {
            for index in 0..group.replicas {
                let member = cluster.worker(group, index, base_dir, share, logging);
                cluster.members.push(member);
                cluster.spawn_worker(cluster.members.len() - 1)?;
            }
        }
        Ok((cluster, stdout))
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

    /// The folder with the certificates of clients.
    pub(crate) fn client_certificates(&self) -> PathBuf {
        self.folder.certificates(Role::Client)
    }

    /// The certificates of a client.
    pub(crate) fn credentials(&self) -> Result<Credentials, CliError> {
        Credentials::from_dir(&self.client_certificates())
            .map_err(|error| CliError::from_failure(&error))
    }

    /// Starts workers again that end; returns when that no longer helps. May be dropped and
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
                    Ok(exit) => self.on_exit(&exit),
                    // A watcher neither panics nor is aborted before the end.
                    Err(error) => Some(CliError::start("a process was lost", &error)),
                },
                () = restart => self.start_again(),
            };
            if let Some(failure) = failure {
                self.has_failed = true;
                return failure;
            }
        }
    }

    /// Waits a bounded time for the end of the scheduler, when its connection is lost: its exit
    /// says more than the connection does.
    pub(crate) async fn cause_of_disconnect(&mut self) -> Option<CliError> {
        const EXIT_WAIT: Duration = Duration::from_secs(1);
        tokio::time::timeout(EXIT_WAIT, self.supervise()).await.ok()
    }

    /// Ends all processes, tidily if they do so in time, and removes the folder.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.exits.join_next().await.is_some() {}
    }

    fn on_exit(&mut self, exit: &Exit) -> Option<CliError> {
        let member = &mut self.members[exit.member];
        let how = process::describe(&exit.status);
        let name = &member.name;
        if member.is_scheduler {
            self.workers_hush.cancel();
            let diagnostic = Diagnostic::new(
                Code::SchedulerEnded,
                format!("the scheduler ended with {how}"),
            );
            return Some(CliError::failed(with_last_lines(diagnostic, &member.lines)));
        }
        if member.restarts == RESTARTS_MAX {
            let times = RESTARTS_MAX + 1;
            let message = format!("worker `{name}` ended {times} times, the last time with {how}");
            let diagnostic = Diagnostic::new(Code::WorkersKeepDying, message);
            return Some(CliError::failed(with_last_lines(diagnostic, &member.lines)));
        }
        let pause = RESTART_PAUSE * 2u32.pow(member.restarts);
        member.restarts += 1;
        let count = member.restarts;
        self.terminal.notice(&format!(
            "worker `{name}` died ({how}); it is started again ({count} of {RESTARTS_MAX})"
        ));
        self.restarts
            .push_back((Instant::now() + pause, exit.member));
        self.restarts.make_contiguous().sort_by_key(|(due, _)| *due);
        None
    }

    fn start_again(&mut self) -> Option<CliError> {
        let (_, member) = self.restarts.pop_front()?;
        self.spawn_worker(member).err()
    }

    fn spawn_scheduler(
        &mut self,
        listener: TcpListener,
        listening: Listening,
    ) -> Result<Option<ChildStdout>, CliError> {
        let mut command = self.command(0);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        if listening == Listening::WellKnown {
            command.stdout(Stdio::piped());
        }
        let mut child = self.spawn(command, 0)?;
        let stdout = child.stdout.take();
        self.watch(child, 0);
        Ok(stdout)
    }

    fn spawn_worker(&mut self, member: usize) -> Result<(), CliError> {
        let scratch = self
            .folder
            .scratch(&self.members[member].name)
            .map_err(|error| CliError::start("a scratch folder cannot be made", &error))?;
        let mut command = self.command(member);
        command.arg("--scratch-dir").arg(scratch);
        let child = self.spawn(command, member)?;
        self.watch(child, member);
        Ok(())
    }

    fn spawn(&self, command: Command, member: usize) -> Result<Child, CliError> {
        process::start(command).map_err(|error| {
            let name = &self.members[member].name;
            CliError::start(
                &format!("the process of `{name}` cannot be started"),
                &error,
            )
        })
    }

    fn watch(&mut self, child: Child, member: usize) {
        let Member {
            name,
            is_scheduler,
            lines,
            ..
        } = &self.members[member];
        let (label, hold, hush) = if *is_scheduler {
            (name.clone(), Duration::ZERO, &self.stop)
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
        let stop = self.stop.clone();
        self.exits.spawn(async move {
            let status = process::watch(child, log, stop).await;
            Exit { member, status }
        });
    }

    fn command(&self, member: usize) -> Command {
        let member = &self.members[member];
        let mut command = Command::new(&self.program);
        // Settings for this command are not meant for the services.
        for (name, _) in std::env::vars_os() {
            let is_ours = name.to_str().is_some_and(|name| {
                name.starts_with("OXIDASK_")
                    || name == "DASK_SCHEDULER_ADDRESS"
                    || name == "DASK_WORKER_NAME"
            });
            if is_ours {
                command.env_remove(name);
            }
        }
        let (setting, value) = ALLOCATOR_SETTING;
        if std::env::var_os(setting).is_none() {
            command.env(setting, value);
        }
        command
            .args(&member.arguments)
            .envs(member.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn scheduler(&self, listening: Listening, logging: &LoggingArguments) -> Member {
        let mut arguments = self.service_arguments("scheduler", Role::Scheduler, logging);
        arguments.push("--listen-on-stdin".to_owned());
        match listening {
            Listening::Ephemeral => arguments.push("--no-http".to_owned()),
            Listening::WellKnown => arguments.push("--http-port-or-free".to_owned()),
        }
        Member {
            name: "scheduler".to_owned(),
            is_scheduler: true,
            arguments,
            environment: Vec::new(),
            lines: LastLines::default(),
            restarts: 0,
        }
    }

    fn worker(
        &self,
        group: &GroupPlan,
        index: u32,
        base_dir: &Path,
        share_bytes: u64,
        logging: &LoggingArguments,
    ) -> Member {
        let name = format!("{}-{index}", group.name);
        let mut arguments = self.service_arguments("worker", Role::Worker, logging);
        let memory_bytes = group.memory_bytes.unwrap_or(share_bytes);
        let resources: Vec<String> = group
            .resources
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        let mut add = |flag: &str, value: String| arguments.push(format!("--{flag}={value}"));
        add("port", "0".to_owned());
        add("scheduler", self.address.clone());
        add("name", name.clone());
        add("group", group.name.clone());
        add("threads", group.slots.to_string());
        add("memory", memory_bytes.to_string());
        add("base-dir", base_dir.display().to_string());
        // Whoever started the worker knows best when to start another.
        add("reconnect-seconds", "0".to_owned());
        if !resources.is_empty() {
            add("resources", resources.join(","));
        }
        arguments.push("--no-http".to_owned());
        Member {
            name,
            is_scheduler: false,
            arguments,
            environment: group.environment.clone(),
            lines: LastLines::default(),
            restarts: 0,
        }
    }

    fn service_arguments(
        &self,
        service: &str,
        role: Role,
        logging: &LoggingArguments,
    ) -> Vec<String> {
        let level = logging.log_level.as_deref().unwrap_or(LOG_LEVEL);
        let format = match logging.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![
            service.to_owned(),
            "--bind=127.0.0.1".to_owned(),
            format!("--tls-dir={}", self.folder.certificates(role).display()),
            format!("--parent-pid={}", std::process::id()),
            format!("--log-level={level}"),
            format!("--log-format={format}"),
        ]
    }
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
