//! `oxidask worker`.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::guard::GuardCommand;
use oxidask_exec::{Builtin, Executor};
use oxidask_exec_frame::{CsvTables, FrameExecutor};
use oxidask_exec_python::{PythonConfig, PythonExecutor};
use oxidask_worker::{
    Ends, Listeners, SPILL_BYTES_MAX_DEFAULT, WorkerConfig, WorkerError, data_address, init,
    serve_until,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    TIDY_END, announce, bind, bind_http, credentials, install_signals, local_address, machine,
};
use crate::arguments::WorkerArguments;
use crate::error::CliError;
use crate::logging;
use crate::python::{PATH_VARIABLE, Python};
use crate::signals::Signals;

/// What SIGTERM gives a worker in seconds, unless it is told otherwise: pods have 30.
const GRACE_SECONDS: u32 = 25;
/// The folder, in that for temporary files, that tasks of Python see as their worker's.
const PYTHON_DIR: &str = "python";
/// The status of a process that SIGTERM ended.
const STATUS_TERMINATED: u8 = 143;

/// Serves until a signal, or until no scheduler wants the worker.
pub(crate) fn run(arguments: &WorkerArguments) -> Result<(), CliError> {
    if init::is_first_process() {
        return run_below();
    }
    // Data for others goes on while all slots compute; more threads than processors help nobody.
    let threads = slots(arguments).min(machine::processors()) + 1;
    let compute = super::runtime(threads as usize)?;
    let serving = listen_and_serve(arguments, compute.handle().clone());
    let result = super::run(&arguments.service, super::single_threaded()?, serving);
    compute.shutdown_background();
    result
}

/// In a container the worker runs below the first process, which collects what programs leave.
fn run_below() -> Result<(), CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::start("the program's own file is not known", &error))?;
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1));
    match init::run_below(command) {
        Ok(0) => Ok(()),
        Ok(status) => Err(CliError::quiet(status)),
        Err(error) => Err(CliError::start(
            "the worker's process cannot be run",
            &error,
        )),
    }
}

async fn listen_and_serve(arguments: &WorkerArguments, compute: Handle) -> Result<(), CliError> {
    let signals = install_signals()?;
    let data = bind(&arguments.service, arguments.port).await?;
    let http = bind_http(&arguments.service, arguments.http_port).await?;
    let http_address = http.as_ref().map(local_address).transpose()?;
    let advertise_address = advertised(arguments, local_address(&data)?);
    let scratch = Scratch::new(arguments.scratch_dir.as_deref())?;
    let base_dir = existing_folder(&arguments.base_dir)?;
    let credentials = credentials(&arguments.service)?;
    announce("worker", &advertise_address, http_address);
    let python = PythonConfig {
        worker_address: python_address(arguments, &advertise_address).await,
        ..python(arguments, &scratch.path)?
    };
    let config = WorkerConfig {
        scheduler_address: arguments.scheduler.clone().unwrap_or_default(),
        name: name(arguments),
        group: arguments.group.clone(),
        pod_uid: arguments.pod_uid.clone(),
        node: arguments.node.clone(),
        slots: slots(arguments),
        resources: arguments.resources.clone(),
        memory_bytes: arguments.memory.unwrap_or_else(machine::memory_bytes),
        // The command line has checked them already.
        memory_thresholds: arguments.memory_thresholds().unwrap_or_default(),
        system_dir: PathBuf::from("/"),
        logbook: logging::logbook(),
        advertise_address,
        reconnect_time: Duration::from_secs(arguments.reconnect_seconds.into()),
        base_dir,
        scratch_dir: scratch.path.clone(),
        spill_dir: None,
        spill_bytes_max: SPILL_BYTES_MAX_DEFAULT,
        compute,
        credentials,
        executors: executors(python, arguments.load_python),
    };
    signals.remove_at_second(scratch.own_folder());
    let ends = Ends {
        shutdown: CancellationToken::new(),
        leave: CancellationToken::new(),
        grace: grace(arguments),
    };
    let serving = serve_until(config, Listeners { data, http }, ends.clone());
    until_left(serving, ends, signals).await
}

/// A worker of a local cluster ends with it: there is nobody to hand anything to.
fn grace(arguments: &WorkerArguments) -> Duration {
    let is_local = arguments.service.parent_pid.is_some();
    let default = if is_local { 0 } else { GRACE_SECONDS };
    Duration::from_secs(arguments.grace_seconds.unwrap_or(default).into())
}

/// SIGTERM asks the worker to leave in order, other signals to end at once; so does a second one,
/// whichever it is.
async fn until_left(
    mut serving: impl Future<Output = Result<(), WorkerError>> + Unpin,
    ends: Ends,
    signals: Signals,
) -> Result<(), CliError> {
    let result = tokio::select! {
        result = &mut serving => Some(result),
        status = signals.first() => {
            tracing::info!(status, "asked to end");
            if status == STATUS_TERMINATED && !ends.grace.is_zero() {
                ends.leave.cancel();
                // The worker itself watches its grace period.
                Some((&mut serving).await)
            } else {
                None
            }
        }
    };
    if let Some(result) = result {
        return result.map_err(|error| CliError::from_failure(&error));
    }
    ends.shutdown.cancel();
    let Ok(result) = tokio::time::timeout(TIDY_END, serving).await else {
        tracing::warn!("the tidy end took too long");
        return Ok(());
    };
    result.map_err(|error| CliError::from_failure(&error))
}

fn executors(python: PythonConfig, is_loaded_now: bool) -> Vec<Arc<dyn Executor>> {
    let python = Arc::new(PythonExecutor::new(python));
    if is_loaded_now {
        let python = Arc::clone(&python);
        tokio::spawn(async move {
            if let Err(diagnostic) = python.start().await {
                // The first task that needs it fails and says so.
                tracing::warn!(code = %diagnostic.code, "{}", diagnostic.message);
            }
        });
    }
    let mut builtin = Builtin::new().with_tables(Arc::new(CsvTables));
    // Without its own file's name the worker works; only a kill of it leaves programs behind.
    if let Ok(program) = std::env::current_exe() {
        let arguments = vec!["exec-guard".into()];
        builtin = builtin.with_guard(GuardCommand { program, arguments });
    }
    vec![Arc::new(builtin), Arc::new(FrameExecutor::new()), python]
}

/// How tasks call their worker: as the scheduler and Dask clients do. Without the scheduler's name
/// being known yet it is the address that was bound.
async fn python_address(arguments: &WorkerArguments, advertise_address: &str) -> String {
    let scheduler = arguments.scheduler.as_deref().unwrap_or_default();
    let found = data_address(advertise_address, scheduler).await;
    format!(
        "oxidask://{}",
        found.as_deref().unwrap_or(advertise_address)
    )
}

/// How tasks of Python run. No process starts before the first of them unless that is asked for, so
/// a worker whose tasks are native needs no Python.
fn python(arguments: &WorkerArguments, scratch: &Path) -> Result<PythonConfig, CliError> {
    let python = Python::choose(arguments.python.python.as_deref(), None);
    let path = python.path(&[], None);
    let path = path.map(|path| (PATH_VARIABLE.into(), path));
    // A temporary folder that is gone afterwards, so what is in it is the worker's alone.
    let worker_dir = scratch.join(PYTHON_DIR);
    std::fs::create_dir_all(&worker_dir).map_err(|error| {
        let message = format!("`{}` cannot be made", worker_dir.display());
        let diagnostic = Diagnostic::new(Code::WorkerDisk, message);
        CliError::failed(diagnostic.with_cause(error.to_string()))
    })?;
    let tls_dir = &arguments.service.tls_dir;
    Ok(PythonConfig {
        program: python.program.into(),
        environment: path.into_iter().collect(),
        slots: slots(arguments),
        scratch_dir: scratch.to_owned(),
        worker_dir,
        worker_name: name(arguments),
        memory_bytes: arguments.memory.unwrap_or_else(machine::memory_bytes),
        scheduler: arguments.scheduler.clone(),
        // Children may change their folder.
        tls_dir: Some(std::path::absolute(tls_dir).unwrap_or_else(|_| tls_dir.clone())),
        ..PythonConfig::default()
    })
}

fn slots(arguments: &WorkerArguments) -> u32 {
    arguments.threads.unwrap_or_else(machine::processors)
}

fn name(arguments: &WorkerArguments) -> String {
    let dask = || {
        std::env::var("DASK_WORKER_NAME")
            .ok()
            .filter(|name| !name.is_empty())
    };
    arguments
        .name
        .clone()
        .or_else(dask)
        .unwrap_or_else(machine::host_name)
}

/// `host:port` under which peers reach this worker, as far as that is known before it has a
/// scheduler.
fn advertised(arguments: &WorkerArguments, bound: SocketAddr) -> String {
    match &arguments.advertise {
        Some(host) => format!("{host}:{}", bound.port()),
        None => bound.to_string(),
    }
}

fn existing_folder(path: &Path) -> Result<PathBuf, CliError> {
    let failed = |cause: String| {
        let message = format!("`{}` is not a folder that can be used", path.display());
        CliError::failed(Diagnostic::new(Code::WorkerDisk, message).with_cause(cause))
    };
    let path = std::fs::canonicalize(path).map_err(|error| failed(error.to_string()))?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(failed("it is not a folder".to_owned()))
    }
}

/// The worker's folder for temporary files; one of its own goes with it.
struct Scratch {
    path: PathBuf,
    own: Option<TempDir>,
}

impl Scratch {
    /// The folder that must not stay behind.
    fn own_folder(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.path().to_owned())
    }

    fn new(given: Option<&Path>) -> Result<Self, CliError> {
        if let Some(path) = given {
            return Ok(Self {
                path: existing_folder(path)?,
                own: None,
            });
        }
        let owner_only = Permissions::from_mode(0o700);
        let own = tempfile::Builder::new()
            .prefix("oxidask-worker-")
            .permissions(owner_only)
            .tempdir();
        let own = own.map_err(|error| {
            let message = "the folder for temporary files cannot be made";
            let diagnostic = Diagnostic::new(Code::WorkerDisk, message);
            CliError::failed(diagnostic.with_cause(error.to_string()))
        })?;
        Ok(Self {
            path: own.path().to_owned(),
            own: Some(own),
        })
    }
}
