//! `oxidask up`: a local cluster that is kept until Ctrl-C.

use std::fmt::Write as _;
use std::path::Path;

use oxidask_diagnostic::Diagnostic;
use oxidask_operator_api::{ClusterPlan, Kind, Manifest};
use std::io::Write;

use crate::arguments::{LoggingArguments, UpArguments};
use crate::error::CliError;
use crate::local::{Listening, LocalCluster, Ready, tokens};
use crate::progress::counted;
use crate::run::install_signals;
use crate::script;
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work;

const THREADS: usize = 1;

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
    if let Some(program) = &arguments.python.python {
        script::use_python(&mut plan, program);
    }
    work::say_what_is_ignored(&plan, terminal);
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
    let mut cluster = LocalCluster::start(plan, base_dir, Listening::WellKnown, logging, terminal)?;
    signals.remove_at_second(Some(cluster.folder().to_owned()));
    let result = watch(&mut cluster, plan, &signals).await;
    cluster.stop().await;
    signals.remove_at_second(None);
    result
}

async fn watch(
    cluster: &mut LocalCluster,
    plan: &ClusterPlan,
    signals: &Signals,
) -> Result<(), CliError> {
    let ready = tokio::select! {
        ready = cluster.ready() => ready?,
        status = signals.first() => return Err(CliError::interrupted(status)),
    };
    cluster.announce()?;
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
        let token = tokens::reader(cluster.folder());
        let token = token.map(|token| format!("/#token={token}"));
        let _ = writeln!(text, "  http       {http}{}", token.unwrap_or_default());
    }
    let _ = write!(
        text,
        "  tls dir    {tls_dir}\n\nrun a job on it:\n  oxidask submit JOB.yaml --scheduler {address} \
         --tls-dir {tls_dir}\n"
    );
    text
}
