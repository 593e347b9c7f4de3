//! The command line: every command and flag, declared once.
//!
//! Owns names, defaults, environment variables and help texts. Reads no file and starts nothing.

#![allow(
    clippy::doc_markdown,
    reason = "these comments are help texts for a terminal"
)]

mod look;
mod work;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use oxidask_operator_api::Quantity;

pub(crate) use look::{
    ClusterArguments, ExplainArguments, LogsArguments, StatusArguments, TopArguments,
};
use oxidask_worker::{MemoryShares, MemoryThresholds, SharesError};
pub(crate) use work::{
    OutputArguments, OutputForm, OverrideArguments, ProgressForm, PythonArguments, RunArguments,
    SubmitArguments, UpArguments,
};

/// Task graphs and SQL on a cluster of Rust processes, here or on Kubernetes.
#[derive(Debug, Parser)]
#[command(
    name = "oxidask",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) logging: LoggingArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a DaskJob, or a Python program, on a local cluster that lives as long as the job
    ///
    /// Words after `--` are given to the Python program.
    Run(RunArguments),
    /// Start a DaskCluster locally and keep it until Ctrl-C
    Up(UpArguments),
    /// Run the work of a DaskJob on a running cluster
    ///
    /// The graph or the SQL text is read here; relative locations of data start in the folder of
    /// the workers. A Python program runs here and finds the cluster by `Client()`.
    Submit(SubmitArguments),
    /// Show how the SQL text of a DaskJob would run, or why a task of a running cluster waits, is
    /// where it is, or failed
    Explain(ExplainArguments),
    /// Show workers, their work and graphs of a running cluster
    Status(StatusArguments),
    /// Show the same as it changes, until q or Ctrl-C
    Top(TopArguments),
    /// Show log lines of workers, of the scheduler and of programs that tasks run
    Logs(LogsArguments),
    /// Run the scheduler service, as pods do
    Scheduler(SchedulerArguments),
    /// Run the worker service, as pods do
    Worker(Box<WorkerArguments>),
    /// End programs of exec tasks when their worker, at the other end of standard input, ends
    #[command(hide = true)]
    ExecGuard,
    /// Run a program that ends with its parent
    #[command(hide = true)]
    ScriptHost(ScriptHostArguments),
    /// Copy this program and the Python package beside it into a folder
    #[command(hide = true)]
    Unpack(UnpackArguments),
}

/// `oxidask script-host`.
#[derive(Debug, Args)]
pub(crate) struct ScriptHostArguments {
    /// End when the process with this id, which must be the parent, ends
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent_pid: i32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// `oxidask unpack`.
#[derive(Debug, Args)]
pub(crate) struct UnpackArguments {
    /// The folder
    pub(crate) folder: PathBuf,
}

impl WorkerArguments {
    /// The shares of memory; `Arguments::complete` has checked them.
    pub(crate) fn memory_thresholds(&self) -> Result<MemoryThresholds, SharesError> {
        let shares = MemoryShares {
            spill: self.memory_spill,
            pause: self.memory_pause,
            terminate: self.memory_terminate,
        };
        shares.check()
    }
}

impl Arguments {
    /// What the derived parser cannot check or fill in: the scheduler's address has a second
    /// environment variable, the one that Dask uses.
    pub(crate) fn complete(mut self) -> Result<Self, clap::Error> {
        if let Command::Worker(worker) = &self.command
            && let Err(error) = worker.memory_thresholds()
        {
            let kind = clap::error::ErrorKind::ValueValidation;
            return Err(Self::command().error(kind, format!("{error}\n")));
        }
        let scheduler = match &mut self.command {
            Command::Submit(submit) => &mut submit.cluster.scheduler,
            Command::Status(status) => &mut status.cluster.scheduler,
            Command::Top(top) => &mut top.cluster.scheduler,
            Command::Logs(logs) => &mut logs.cluster.scheduler,
            Command::Explain(explain) if explain.is_key() => &mut explain.cluster.scheduler,
            Command::Worker(worker) => &mut worker.scheduler,
            _ => return Ok(self),
        };
        if scheduler.is_none() {
            *scheduler = std::env::var("DASK_SCHEDULER_ADDRESS")
                .ok()
                .filter(|a| !a.is_empty());
        }
        if scheduler.is_none() {
            let message = "the scheduler's address is missing: give --scheduler \
                           oxidask://HOST:PORT, or set OXIDASK_SCHEDULER\n";
            let kind = clap::error::ErrorKind::MissingRequiredArgument;
            return Err(Self::command().error(kind, message));
        }
        if let Some(Err(error)) = scheduler.as_deref().map(oxidask_comm::check_address) {
            let message = format!("the scheduler's address: {error}\n");
            let kind = clap::error::ErrorKind::ValueValidation;
            return Err(Self::command().error(kind, message));
        }
        Ok(self)
    }
}

impl Command {
    /// Whether it runs until it is told to stop.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Scheduler(_) | Self::Worker(_))
    }
}

/// Log lines on standard error.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoggingArguments {
    /// Form of log lines
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text,
          env = "OXIDASK_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: LogFormat,
    /// Least level of log lines: error, warn, info, debug, trace, also by module as in
    /// `info,oxidask_worker=debug` [default: warn, of services info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_level,
          env = "OXIDASK_LOG_LEVEL", hide_env_values = true)]
    pub(crate) log_level: Option<String>,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

/// `oxidask scheduler`.
#[derive(Debug, Args)]
pub(crate) struct SchedulerArguments {
    #[command(flatten)]
    pub(crate) service: ServiceArguments,
    /// Port for workers and clients, mutual TLS; 0 takes a free one
    #[arg(
        long,
        default_value_t = 8786,
        env = "OXIDASK_PORT",
        hide_env_values = true
    )]
    pub(crate) port: u16,
    /// Port for health, metrics and data, HTTP; 0 takes a free one
    #[arg(
        long,
        default_value_t = 8787,
        env = "OXIDASK_HTTP_PORT",
        hide_env_values = true
    )]
    pub(crate) http_port: u16,
    /// Folder of the journal, from which the scheduler goes on after its process has ended; without
    /// one it begins anew at each start
    #[arg(
        long,
        value_name = "DIR",
        env = "OXIDASK_JOURNAL_DIR",
        hide_env_values = true
    )]
    pub(crate) journal_dir: Option<PathBuf>,
    /// Keep no journal, also when a folder is given: for measuring what it costs
    #[arg(long, env = "OXIDASK_NO_JOURNAL", hide_env_values = true)]
    pub(crate) no_journal: bool,
    /// Milliseconds between the beginnings of two commits of the journal; a single change does not
    /// wait for it
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(0..=10_000),
          env = "OXIDASK_JOURNAL_DELAY_MS", hide_env_values = true)]
    pub(crate) journal_delay_ms: u64,
    /// File with the bearer token of those who may read data through the HTTP port [default: nobody]
    #[arg(
        long,
        value_name = "FILE",
        env = "OXIDASK_HTTP_TOKEN_FILE",
        hide_env_values = true
    )]
    pub(crate) http_token_file: Option<PathBuf>,
    /// File with the bearer token of those who may also retire workers there [default: nobody]
    #[arg(
        long,
        value_name = "FILE",
        env = "OXIDASK_HTTP_OPERATOR_TOKEN_FILE",
        hide_env_values = true
    )]
    pub(crate) http_operator_token_file: Option<PathBuf>,
    /// Standard input is the listening socket to use instead of --port
    #[arg(long, hide = true)]
    pub(crate) listen_on_stdin: bool,
    /// Take any free port for HTTP when --http-port is in use
    #[arg(long, hide = true)]
    pub(crate) http_port_or_free: bool,
}

/// `oxidask worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    #[command(flatten)]
    pub(crate) service: ServiceArguments,
    /// Address of the scheduler, `oxidask://host:port` [env: DASK_SCHEDULER_ADDRESS too]
    #[arg(
        long,
        value_name = "URL",
        env = "OXIDASK_SCHEDULER",
        hide_env_values = true
    )]
    pub(crate) scheduler: Option<String>,
    /// Port for results, mutual TLS; 0 takes a free one
    #[arg(
        long,
        default_value_t = 8789,
        env = "OXIDASK_PORT",
        hide_env_values = true
    )]
    pub(crate) port: u16,
    /// Port for health and metrics, HTTP; 0 takes a free one
    #[arg(
        long,
        default_value_t = 8788,
        env = "OXIDASK_HTTP_PORT",
        hide_env_values = true
    )]
    pub(crate) http_port: u16,
    /// Host under which other workers reach this one [default: the address that faces the
    /// scheduler]
    #[arg(
        long,
        value_name = "HOST",
        env = "OXIDASK_ADVERTISE",
        hide_env_values = true
    )]
    pub(crate) advertise: Option<String>,
    /// Name, unique in the cluster [default: the host's name] [env: DASK_WORKER_NAME too]
    #[arg(long, env = "OXIDASK_NAME", hide_env_values = true)]
    pub(crate) name: Option<String>,
    /// Worker group
    #[arg(
        long,
        default_value = "default",
        env = "OXIDASK_GROUP",
        hide_env_values = true
    )]
    pub(crate) group: String,
    /// Slots: tasks that run at a time [default: the processors that this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096),
          env = "OXIDASK_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<u32>,
    /// Memory in bytes, also as 500MB, 2GiB or 2Gi [default: the container's limit, else the
    /// machine's memory]
    #[arg(long, value_name = "SIZE", value_parser = memory_bytes,
          env = "OXIDASK_MEMORY", hide_env_values = true)]
    pub(crate) memory: Option<u64>,
    /// Load Python and its libraries at the start, not when the first task needs them
    #[arg(long, env = "OXIDASK_LOAD_PYTHON", hide_env_values = true)]
    pub(crate) load_python: bool,
    /// Share of the memory above which results go to the disk; 0 turns it off
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.7,
        env = "OXIDASK_MEMORY_SPILL",
        hide_env_values = true
    )]
    pub(crate) memory_spill: f64,
    /// Share of the memory above which no task starts here; 0 turns it off
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.8,
        env = "OXIDASK_MEMORY_PAUSE",
        hide_env_values = true
    )]
    pub(crate) memory_pause: f64,
    /// Share of the memory above which programs of tasks, and then tasks, are ended one by one,
    /// the largest first; 0 turns it off
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.95,
        env = "OXIDASK_MEMORY_TERMINATE",
        hide_env_values = true
    )]
    pub(crate) memory_terminate: f64,
    /// Task resources that this worker offers, as in `gpu=1,license=2`
    #[arg(long, value_name = "NAME=N", value_delimiter = ',', value_parser = task_resource,
          env = "OXIDASK_RESOURCES", hide_env_values = true)]
    pub(crate) resources: Vec<(String, u64)>,
    /// Folder where relative locations start
    #[arg(
        long,
        value_name = "DIR",
        default_value = ".",
        env = "OXIDASK_BASE_DIR",
        hide_env_values = true
    )]
    pub(crate) base_dir: PathBuf,
    /// Folder for temporary files [default: the system's]
    #[arg(
        long,
        value_name = "DIR",
        env = "OXIDASK_SCRATCH_DIR",
        hide_env_values = true
    )]
    pub(crate) scratch_dir: Option<PathBuf>,
    /// Seconds that the worker goes without a scheduler, at its start or later, before it ends;
    /// until then it goes on and keeps what it has. With 0 it ends with its scheduler
    #[arg(
        long,
        value_name = "N",
        default_value_t = 600,
        env = "OXIDASK_RECONNECT_SECONDS",
        hide_env_values = true
    )]
    pub(crate) reconnect_seconds: u32,
    /// Seconds that the worker has after SIGTERM to hand over what only it holds, before it ends; a
    /// little less than the pod's grace period [default: 25; 0 with --parent-pid]
    #[arg(
        long,
        value_name = "N",
        env = "OXIDASK_GRACE_SECONDS",
        hide_env_values = true
    )]
    pub(crate) grace_seconds: Option<u32>,
    #[command(flatten)]
    pub(crate) python: PythonArguments,
    /// Unique id of the pod
    #[arg(
        long,
        default_value = "",
        env = "OXIDASK_POD_UID",
        hide_env_values = true
    )]
    pub(crate) pod_uid: String,
    /// Name of the node
    #[arg(long, default_value = "", env = "OXIDASK_NODE", hide_env_values = true)]
    pub(crate) node: String,
}

/// What both services take.
#[derive(Debug, Args)]
pub(crate) struct ServiceArguments {
    /// Address to listen on
    #[arg(
        long,
        default_value = "0.0.0.0",
        env = "OXIDASK_BIND",
        hide_env_values = true
    )]
    pub(crate) bind: IpAddr,
    /// Folder with ca.crt, tls.crt and tls.key
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/oxidask/tls",
        env = "OXIDASK_TLS_DIR",
        hide_env_values = true
    )]
    pub(crate) tls_dir: PathBuf,
    /// No HTTP port at all
    #[arg(long, hide = true)]
    pub(crate) no_http: bool,
    /// End when the process with this id, which must be the parent, ends
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent_pid: Option<i32>,
}

fn log_level(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a level such as `info`, or `info,oxidask_worker=debug`".to_owned()),
    }
}

fn task_resource(text: &str) -> Result<(String, u64), String> {
    let wrong = || "expected a name and a whole number, such as `gpu=1`".to_owned();
    let (name, amount) = text.split_once('=').ok_or_else(wrong)?;
    let amount = amount.trim().parse().map_err(|_| wrong())?;
    let name = name.trim();
    if name.is_empty() {
        Err(wrong())
    } else {
        Ok((name.to_owned(), amount))
    }
}

/// A size in bytes: a quantity of Kubernetes, or one that ends in `B` as people write it.
fn memory_bytes(text: &str) -> Result<u64, String> {
    let wrong = "expected a size such as `500MB`, `2GiB` or `2Gi`";
    let text = text.trim();
    let quantity = Quantity::parse(text.strip_suffix('B').unwrap_or(text));
    match quantity.map(|quantity| quantity.rounded_up()) {
        Ok(0) => Err("must be more than nothing".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(wrong.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_visible_flag_has_help_and_an_environment_variable() {
        for command in Arguments::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                if argument.get_long().is_none() || argument.is_hide_set() || name == "help" {
                    continue;
                }
                let variable = argument.get_env().and_then(|name| name.to_str());
                assert!(
                    variable.is_some_and(|name| name.starts_with("OXIDASK_")),
                    "`{name}` of `{}`",
                    command.get_name()
                );
                assert!(argument.get_help().is_some(), "`{name}`");
            }
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(memory_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(memory_bytes("2Gi"), Ok(2 << 30));
        assert_eq!(memory_bytes("1.5kB"), Ok(1_500));
        assert_eq!(memory_bytes("12"), Ok(12));
        for text in ["", "GiB", "2 parsecs", "-1", "0", "1..2"] {
            assert!(memory_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resources() {
        assert_eq!(task_resource("gpu=2"), Ok(("gpu".to_owned(), 2)));
        for text in ["gpu", "=1", "gpu=", "gpu=x", "gpu=-1"] {
            assert!(task_resource(text).is_err(), "{text}");
        }
    }
}
