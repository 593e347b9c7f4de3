//! `oxidask run` and `oxidask submit`: the work of a job, on a cluster of its own or on one that
//! is there.

use std::time::{Duration, Instant};

use oxidask_comm::Credentials;
use oxidask_operator_api::{JobPlan, Work};
use tokio::runtime::Runtime;

use crate::arguments::{LoggingArguments, OutputArguments, RunArguments, SubmitArguments};
use crate::error::CliError;
use crate::local::{Listening, LocalCluster};
use crate::output::{Limits, Writer};
use crate::progress::{Progress, counted};
use crate::session::{self, Site};
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work::{self, PlannedWork};

/// Threads beside the main thread, which starts the processes and so must live to the end.
const THREADS: usize = 1;

/// Runs a job on a local cluster that lives as long as the job.
pub(crate) fn run(
    arguments: &RunArguments,
    logging: &LoggingArguments,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let started = Instant::now();
    let mut job = work::load_job(&arguments.file)?;
    work::apply_overrides(&mut job.cluster, &arguments.overrides);
    work::check_size(&job.cluster)?;
    let planned = work::plan(
        &job.cluster.name,
        std::mem::replace(&mut job.work, Work::Job),
        LocalCluster::size_of(&job.cluster),
    )?;
    work::check_offers(&planned.plan, &job.cluster)?;
    let mut progress = Progress::new(
        arguments.output.progress,
        terminal,
        started,
        planned.tasks(),
    );
    work::say_what_is_left_out(Some(&job.cluster), &planned.plan, terminal);
    let runtime = crate::service::runtime(THREADS)?;
    let local = Local {
        job: &job,
        logging,
        terminal,
    };
    let result = runtime.block_on(local.run(&planned, &arguments.output, &mut progress));
    end(runtime, progress, result)
}

/// Runs the work of a job on a running cluster.
pub(crate) fn submit(arguments: &SubmitArguments, terminal: &Terminal) -> Result<(), CliError> {
    let started = Instant::now();
    let job = work::load_job(&arguments.file)?;
    let deadline_seconds = job.active_deadline_seconds;
    let workers = job.cluster.workers();
    let promised = work::size_of(&job.cluster);
    let planned = work::plan(&job.cluster.name, job.work, promised)?;
    let credentials = Credentials::from_dir(&arguments.cluster.tls_dir)
        .map_err(|error| CliError::from_file(&error))?;
    let mut progress = Progress::new(
        arguments.output.progress,
        terminal,
        started,
        planned.tasks(),
    )
    .expecting(workers);
    let limits = Limits {
        rows_max: arguments.limits.rows_max,
        bytes_max: arguments.limits.output_bytes_max,
    };
    work::say_what_is_left_out(None, &planned.plan, terminal);
    let runtime = crate::service::runtime(THREADS)?;
    let result = runtime.block_on(async {
        let signals = install_signals()?;
        let writer = Writer::start(arguments.output.output, limits, terminal)?;
        progress.begin("connecting");
        let site = Site {
            cluster: None,
            size: None,
            address: arguments.cluster.address(),
            credentials: &credentials,
            signals: &signals,
            terminal,
            wait: Duration::from_secs(arguments.wait_seconds.into()),
            deadline: deadline(deadline_seconds),
        };
        session::run(site, &planned, writer, &mut progress).await?;
        progress.done(0);
        Ok(())
    });
    end(runtime, progress, result)
}

/// Does not wait for threads that wait for a reader.
fn end(
    runtime: Runtime,
    mut progress: Progress,
    result: Result<(), CliError>,
) -> Result<(), CliError> {
    progress.clear();
    runtime.shutdown_background();
    result
}

/// A job on a cluster of its own.
struct Local<'a> {
    job: &'a JobPlan,
    logging: &'a LoggingArguments,
    terminal: &'a Terminal,
}

impl Local<'_> {
    async fn run(
        &self,
        planned: &PlannedWork,
        output: &OutputArguments,
        progress: &mut Progress,
    ) -> Result<(), CliError> {
        let signals = install_signals()?;
        let workers = self.job.cluster.workers();
        progress.begin(&format!(
            "starting a scheduler and {}",
            counted(workers, "worker")
        ));
        let (mut cluster, _) = LocalCluster::start(
            &self.job.cluster,
            &self.job.base_dir,
            Listening::Ephemeral,
            self.logging,
            self.terminal,
        )?;
        signals.remove_at_second(Some(cluster.folder().to_owned()));
        let result = self
            .run_on(&mut cluster, planned, output, progress, &signals)
            .await;
        progress.clear();
        cluster.stop().await;
        signals.remove_at_second(None);
        result
    }

    async fn run_on(
        &self,
        cluster: &mut LocalCluster,
        planned: &PlannedWork,
        output: &OutputArguments,
        progress: &mut Progress,
        signals: &Signals,
    ) -> Result<(), CliError> {
        let writer = Writer::start(output.output, Limits::default(), self.terminal)?;
        let credentials = cluster.credentials()?;
        let address = cluster.address().to_owned();
        let site = Site {
            cluster: Some(cluster),
            size: Some(LocalCluster::size_of(&self.job.cluster)),
            address: &address,
            credentials: &credentials,
            signals,
            terminal: self.terminal,
            wait: Duration::ZERO,
            deadline: deadline(self.job.active_deadline_seconds),
        };
        session::run(site, planned, writer, progress).await?;
        let workers = u32::try_from(self.job.cluster.workers()).unwrap_or(u32::MAX);
        progress.done(workers);
        Ok(())
    }
}

pub(crate) fn install_signals() -> Result<Signals, CliError> {
    Signals::install().map_err(|error| CliError::start("signals cannot be received", &error))
}

fn deadline(seconds: Option<u64>) -> Option<(tokio::time::Instant, u64)> {
    let seconds = seconds?;
    let at = tokio::time::Instant::now().checked_add(Duration::from_secs(seconds))?;
    Some((at, seconds))
}
