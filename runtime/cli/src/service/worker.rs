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
use oxidask_worker::{Listeners, SPILL_BYTES_MAX_DEFAULT, WorkerConfig, serve};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    announce, bind, bind_http, credentials, install_signals, local_address, machine,
    until_signalled,
};
use crate::arguments::WorkerArguments;
use crate::error::CliError;

/// Serves until a signal, or until no scheduler wants the worker.
pub(crate) fn run(arguments: &WorkerArguments) -> Result<(), CliError> {
    super::run(&arguments.service, listen_and_serve(arguments))
}

async fn listen_and_serve(arguments: &WorkerArguments) -> Result<(), CliError> {
    let signals = install_signals()?;
    let data = bind(&arguments.service, arguments.port).await?;
    let http = bind_http(&arguments.service, arguments.http_port).await?;
    let http_address = http.as_ref().map(local_address).transpose()?;
    let advertise_address = advertised(arguments, local_address(&data)?);
    let scratch = Scratch::new(arguments.scratch_dir.as_deref())?;
    let base_dir = existing_folder(&arguments.base_dir)?;
    let credentials = credentials(&arguments.service)?;
    announce("worker", &advertise_address, http_address);
    let config = WorkerConfig {
        scheduler_address: arguments.scheduler.clone().unwrap_or_default(),
        name: name(arguments),
        group: arguments.group.clone(),
        pod_uid: arguments.pod_uid.clone(),
        node: arguments.node.clone(),
        slots: arguments.threads.unwrap_or_else(machine::processors),
        resources: arguments.resources.clone(),
        memory_bytes: arguments.memory.unwrap_or_else(machine::memory_bytes),
        advertise_address,
        reconnect_time: Duration::from_secs(arguments.reconnect_seconds.into()),
        base_dir,
        scratch_dir: scratch.path.clone(),
        spill_dir: None,
        spill_bytes_max: SPILL_BYTES_MAX_DEFAULT,
        credentials,
        executors: executors(),
    };
    let shutdown = CancellationToken::new();
    let serving = Box::pin(serve(config, Listeners { data, http }, shutdown.clone()));
    until_signalled(serving, shutdown, signals).await
}

fn executors() -> Vec<Arc<dyn Executor>> {
    let mut builtin = Builtin::new().with_tables(Arc::new(CsvTables));
    // Without its own file's name the worker works; only a kill of it leaves programs behind.
    if let Ok(program) = std::env::current_exe() {
        let arguments = vec!["exec-guard".into()];
        builtin = builtin.with_guard(GuardCommand { program, arguments });
    }
    vec![Arc::new(builtin), Arc::new(FrameExecutor::new())]
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
    _own: Option<TempDir>,
}

impl Scratch {
    fn new(given: Option<&Path>) -> Result<Self, CliError> {
        if let Some(path) = given {
            return Ok(Self {
                path: existing_folder(path)?,
                _own: None,
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
            _own: Some(own),
        })
    }
}
