//! `oxidask up`: a local cluster that is kept until Ctrl-C.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_operator_api::{ClusterPlan, Kind, Manifest};
use serde::Deserialize;
use std::io::Write;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::ChildStdout;

use crate::arguments::{LoggingArguments, UpArguments};
use crate::error::CliError;
use crate::local::{Listening, LocalCluster};
use crate::progress::counted;
use crate::run::install_signals;
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work;

const THREADS: usize = 1;
/// Time that the scheduler has to come up.
const START_TIME: Duration = Duration::from_secs(10);
/// Bytes of its ready line.
const READY_BYTES_MAX: u64 = 4 * 1024;

/// What the scheduler says once it listens.
#[derive(Debug, Deserialize)]
struct Ready {
    http: Option<String>,
}

/// Starts the cluster and keeps it.
pub(crate) fn up(
    arguments: &UpArguments,
    logging: &LoggingArguments,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let usage = |error| CliError::usage(Diagnostic::from_error(&error));
    let manifest = Manifest::load(&arguments.file).map_err(usage)?;
    let base_dir = manifest.base_dir().to_owned();
    let mut plan = match manifest.kind() {
        Kind::Cluster => manifest.into_cluster().map_err(usage)?,
        Kind::Job => manifest.into_job().map_err(usage)?.cluster,
    };
    work::apply_overrides(&mut plan, &arguments.overrides);
    work::check_size(&plan)?;
    if let Some(line) = work::ignored_line(&plan.ignored) {
        terminal.notice(&line);
    }
    let runtime = crate::service::runtime(THREADS)?;
    let result = runtime.block_on(keep(&plan, &base_dir, logging, terminal));
    runtime.shutdown_background();
    result
}

async fn keep(
    plan: &ClusterPlan,
    base_dir: &Path,
    logging: &LoggingArguments,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let signals = install_signals()?;
    let (mut cluster, stdout) =
        LocalCluster::start(plan, base_dir, Listening::WellKnown, logging, terminal)?;
    signals.remove_at_second(Some(cluster.folder().to_owned()));
    let result = watch(&mut cluster, stdout, plan, &signals).await;
    cluster.stop().await;
    signals.remove_at_second(None);
    result
}

async fn watch(
    cluster: &mut LocalCluster,
    stdout: Option<ChildStdout>,
    plan: &ClusterPlan,
    signals: &Signals,
) -> Result<(), CliError> {
    let ready = tokio::select! {
        ready = ready(stdout) => ready?,
        failure = cluster.supervise() => return Err(failure),
        status = signals.first() => return Err(CliError::interrupted(status)),
    };
    // A reader that goes away does not end the cluster.
    let _ = std::io::stdout()
        .lock()
        .write_all(invitation(cluster, plan, &ready).as_bytes());
    tokio::select! {
        failure = cluster.supervise() => Err(failure),
        // That is how it is meant to end.
        status = signals.first() => Err(CliError::quiet(status)),
    }
}

async fn ready(stdout: Option<ChildStdout>) -> Result<Ready, CliError> {
    let failed = |cause: String| {
        let diagnostic = Diagnostic::new(Code::ClusterStart, "the scheduler did not come up");
        CliError::failed(diagnostic.with_cause(cause))
    };
    let Some(stdout) = stdout else {
        return Ok(Ready { http: None });
    };
    let mut line = String::new();
    let mut reader = BufReader::new(stdout).take(READY_BYTES_MAX);
    match tokio::time::timeout(START_TIME, reader.read_line(&mut line)).await {
        // The end of the process is reported by whoever watches it.
        Ok(Ok(0)) => std::future::pending().await,
        Ok(Ok(_)) => serde_json::from_str(&line).map_err(|error| failed(error.to_string())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!(
            "it took more than {} s",
            START_TIME.as_secs()
        ))),
    }
}

fn invitation(cluster: &LocalCluster, plan: &ClusterPlan, ready: &Ready) -> String {
    let address = cluster.address();
    let tls_dir = cluster.client_certificates();
    let tls_dir = tls_dir.display();
    let mut text = format!(
        "cluster `{}` is up with {}; Ctrl-C ends it\n  scheduler  {address}\n",
        plan.name,
        counted(plan.workers(), "worker")
    );
    if let Some(http) = &ready.http {
        let _ = writeln!(text, "  http       {http}");
    }
    let _ = write!(
        text,
        "  tls dir    {tls_dir}\n\nrun a job on it:\n  oxidask submit JOB.yaml --scheduler {address} \
         --tls-dir {tls_dir}\n"
    );
    text
}
