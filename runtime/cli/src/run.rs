//! `oxidask run` and `oxidask submit`: the work of a job, on a cluster of its own or on one that
//! is there.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use oxidask_client::RECONNECT_TIME_DEFAULT;
use oxidask_comm::Credentials;
use oxidask_operator_api::{JobPlan, Work};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::arguments::{LoggingArguments, OutputArguments, RunArguments, SubmitArguments};
use crate::attach;
use crate::error::CliError;
use crate::local::{Listening, LocalCluster};
use crate::output::{Limits, Writer};
use crate::progress::{Progress, counted};
use crate::script::{self, Program};
use crate::session::{self, Site};
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work::{self, Planned, PlannedWork};

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
    let python = arguments.python.python.as_deref();
    let what = match planned {
        Planned::Graphs(graphs) => {
            work::refuse_arguments(&arguments.arguments)?;
            work::check_offers(&graphs.plan, &job.cluster)?;
            if let Some(program) = python {
                script::use_python(&mut job.cluster, program);
            }
            What::Graphs(graphs)
        }
        Planned::Script(script) => {
            let program = Program::prepare(script, &arguments.arguments, python, &job.base_dir)?;
            program.tell_workers(&mut job.cluster);
            What::Program(program)
        }
    };
    let form = arguments.output.progress;
    let mut progress = Progress::new(form, terminal, started, what.tasks());
    work::say_what_is_ignored(&job.cluster, terminal);
    what.say_what_is_left_out(terminal);
    let runtime = crate::service::runtime(THREADS)?;
    let local = Local {
        job: &job,
        logging,
        terminal,
    };
    let result = runtime.block_on(local.run(&what, &arguments.output, &mut progress));
    end(runtime, progress, result)
}

/// Runs the work of a job on a running cluster.
pub(crate) fn submit(arguments: &SubmitArguments, terminal: &Terminal) -> Result<(), CliError> {
    let started = Instant::now();
    let job = work::load_job(&arguments.file)?;
    let deadline_seconds = job.active_deadline_seconds;
    let workers = job.cluster.workers();
    let promised = work::size_of(&job.cluster);
    let what = match work::plan(&job.cluster.name, job.work, promised)? {
        Planned::Graphs(graphs) => {
            work::refuse_arguments(&arguments.arguments)?;
            What::Graphs(graphs)
        }
        Planned::Script(script) => {
            let python = arguments.python.python.as_deref();
            let folder = arguments.base_dir.as_ref().unwrap_or(&job.base_dir);
            let words = &arguments.arguments;
            What::Program(Program::prepare(script, words, python, folder)?)
        }
    };
    let credentials = Credentials::from_dir(&arguments.cluster.tls_dir)
        .map_err(|error| CliError::from_file(&error))?;
    let form = arguments.output.progress;
    let progress = Progress::new(form, terminal, started, what.tasks());
    let mut progress = progress.expecting(workers);
    what.say_what_is_left_out(terminal);
    let runtime = crate::service::runtime(THREADS)?;
    let result = runtime.block_on(async {
        let signals = install_signals()?;
        progress.begin("connecting");
        let mut site = Site {
            cluster: None,
            size: None,
            address: arguments.cluster.address(),
            credentials: &credentials,
            signals: &signals,
            run_id: arguments.run_id.as_deref(),
            terminal,
            wait: Duration::from_secs(arguments.wait_seconds.into()),
            reconnect: Duration::from_secs(arguments.reconnect_seconds.into()),
            deadline: deadline(deadline_seconds),
        };
        match &what {
            What::Graphs(graphs) => {
                let limits = Limits {
                    rows_max: arguments.limits.rows_max,
                    bytes_max: arguments.limits.output_bytes_max,
                };
                let writer = Writer::start(arguments.output.output, limits, terminal)?;
                session::run(site, graphs, writer, &mut progress).await?;
                progress.done(0);
                Ok(())
            }
            What::Program(program) => {
                attach::reach(&mut site).await?;
                progress.clear();
                let folder = private_folder()?;
                signals.remove_at_second(Some(folder.path().to_owned()));
                let tls_dir = &arguments.cluster.tls_dir;
                program.run(&mut site, tls_dir, folder.path()).await?;
                progress.program_done(workers);
                Ok(())
            }
        }
    });
    end(runtime, progress, result)
}

/// What a command runs.
enum What {
    Graphs(Box<PlannedWork>),
    Program(Program),
}

impl What {
    /// Tasks that are known before anything runs.
    fn tasks(&self) -> usize {
        match self {
            Self::Graphs(graphs) => graphs.tasks(),
            Self::Program(_) => 0,
        }
    }

    fn say_what_is_left_out(&self, terminal: &Terminal) {
        if let Self::Graphs(graphs) = self {
            work::say_what_is_left_out(&graphs.plan, terminal);
        }
    }
}

/// The folder with the file of a program that stands in a manifest.
fn private_folder() -> Result<TempDir, CliError> {
    let owner_only = Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new()
        .prefix("oxidask-script-")
        .permissions(owner_only)
        .tempdir();
    folder.map_err(|error| CliError::start("the temporary folder cannot be made", &error))
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
        what: &What,
        output: &OutputArguments,
        progress: &mut Progress,
    ) -> Result<(), CliError> {
        let signals = install_signals()?;
        let workers = self.job.cluster.workers();
        progress.begin(&format!(
            "starting a scheduler and {}",
            counted(workers, "worker")
        ));
        let mut cluster = LocalCluster::start(
            &self.job.cluster,
            &self.job.base_dir,
            Listening::Ephemeral,
            self.logging,
            self.terminal,
        )?;
        signals.remove_at_second(Some(cluster.folder().to_owned()));
        let result = self
            .run_on(&mut cluster, what, output, progress, &signals)
            .await;
        progress.clear();
        cluster.stop().await;
        signals.remove_at_second(None);
        result
    }

    async fn run_on(
        &self,
        cluster: &mut LocalCluster,
        what: &What,
        output: &OutputArguments,
        progress: &mut Progress,
        signals: &Signals,
    ) -> Result<(), CliError> {
        let credentials = cluster.credentials()?;
        let address = cluster.address().to_owned();
        let (folder, tls_dir) = (cluster.folder().to_owned(), cluster.client_certificates());
        let mut site = Site {
            cluster: Some(cluster),
            size: Some(LocalCluster::size_of(&self.job.cluster)),
            address: &address,
            credentials: &credentials,
            signals,
            terminal: self.terminal,
            // It is started again as long as that helps.
            wait: RECONNECT_TIME_DEFAULT,
            reconnect: RECONNECT_TIME_DEFAULT,
            run_id: None,
            deadline: deadline(self.job.active_deadline_seconds),
        };
        let workers = self.job.cluster.workers();
        match what {
            What::Graphs(graphs) => {
                let writer = Writer::start(output.output, Limits::default(), self.terminal)?;
                session::run(site, graphs, writer, progress).await?;
                progress.done(u32::try_from(workers).unwrap_or(u32::MAX));
            }
            What::Program(program) => {
                progress.clear();
                program.run(&mut site, &tls_dir, &folder).await?;
                progress.program_done(workers);
            }
        }
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
