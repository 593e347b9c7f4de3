//! The arguments of the commands that run work.

#![allow(
    clippy::doc_markdown,
    reason = "these comments are help texts for a terminal"
)]

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::{ClusterArguments, memory_bytes};

/// `oxidask run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Manifest with a DaskJob, or a Python program, `*.py`
    pub(crate) file: PathBuf,
    /// Arguments of the Python program, instead of the manifest's
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArguments,
    #[command(flatten)]
    pub(crate) overrides: OverrideArguments,
    #[command(flatten)]
    pub(crate) python: PythonArguments,
}

/// `oxidask up`.
#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    /// Manifest with a DaskCluster, or with a DaskJob of which the cluster is started
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) overrides: OverrideArguments,
    #[command(flatten)]
    pub(crate) python: PythonArguments,
}

/// `oxidask submit`.
#[derive(Debug, Args)]
pub(crate) struct SubmitArguments {
    /// Manifest with a DaskJob, or a Python program, `*.py`
    pub(crate) file: PathBuf,
    /// Arguments of the Python program, instead of the manifest's
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<String>,
    /// Folder in which a Python program runs [default: the manifest's; without one, this one]
    #[arg(
        long,
        value_name = "DIR",
        env = "OXIDASK_BASE_DIR",
        hide_env_values = true
    )]
    pub(crate) base_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) python: PythonArguments,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    #[command(flatten)]
    pub(crate) output: OutputArguments,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    /// Seconds to wait until the scheduler can be reached and takes the work
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        env = "OXIDASK_WAIT_SECONDS",
        hide_env_values = true
    )]
    pub(crate) wait_seconds: u32,
    /// Seconds for which a job that runs waits for its scheduler to come back; with 0 it fails when
    /// the connection breaks
    #[arg(
        long,
        value_name = "N",
        default_value_t = 600,
        env = "OXIDASK_RECONNECT_SECONDS",
        hide_env_values = true
    )]
    pub(crate) reconnect_seconds: u32,
    /// Name of the run: a submission that is interrupted leaves its work on the cluster, and another
    /// one of the same file and name goes on with it [default: a name of its own]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        env = "OXIDASK_RUN_ID",
        hide_env_values = true
    )]
    pub(crate) run_id: Option<String>,
}

/// How much is printed. The job runs to its end whatever is left out.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct LimitArguments {
    /// Rows, and outputs of a graph, that are printed at most [default: all]
    #[arg(
        long,
        value_name = "N",
        env = "OXIDASK_ROWS_MAX",
        hide_env_values = true
    )]
    pub(crate) rows_max: Option<u64>,
    /// Bytes of results that are printed at most, also as 500kB or 16MiB; a row is printed whole or
    /// not at all [default: all]
    #[arg(long, value_name = "SIZE", value_parser = memory_bytes,
          env = "OXIDASK_OUTPUT_BYTES_MAX", hide_env_values = true)]
    pub(crate) output_bytes_max: Option<u64>,
}

/// What is printed.
#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// Form of results on standard output [default: table on a terminal, else json]
    #[arg(
        short,
        long,
        value_enum,
        env = "OXIDASK_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Option<OutputForm>,
    /// Progress on standard error; auto is bars on a terminal, else plain lines
    #[arg(long, value_enum, default_value_t = ProgressForm::Auto,
          env = "OXIDASK_PROGRESS", hide_env_values = true)]
    pub(crate) progress: ProgressForm,
}

/// Form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// For people
    Table,
    /// A JSON object a line
    Json,
}

/// Form of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressForm {
    /// Bars on a terminal, else plain lines
    Auto,
    /// A line at most every 2 seconds, when something changed
    Plain,
    /// A JSON object a line
    Json,
    /// Nothing
    None,
}

/// Changes to the manifest's cluster, for trying things.
#[derive(Debug, Clone, Args)]
pub(crate) struct OverrideArguments {
    /// Workers of each group, instead of the manifest's replicas
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024),
          env = "OXIDASK_WORKERS", hide_env_values = true)]
    pub(crate) workers: Option<u32>,
    /// Slots of each worker, instead of the manifest's threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096),
          env = "OXIDASK_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<u32>,
    /// Memory of each worker in bytes, also as 500MB, 2GiB or 2Gi, instead of the manifest's limit
    #[arg(long, value_name = "SIZE", value_parser = memory_bytes,
          env = "OXIDASK_MEMORY", hide_env_values = true)]
    pub(crate) memory: Option<u64>,
}

/// Which Python is used.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PythonArguments {
    /// The Python that runs Python programs and tasks, a path or a name on PATH [default: the
    /// manifest's, else python3]
    #[arg(long, value_name = "PROGRAM", value_parser = NonEmptyStringValueParser::new(),
          env = "OXIDASK_PYTHON", hide_env_values = true)]
    pub(crate) python: Option<String>,
}
