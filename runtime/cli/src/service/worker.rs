//! `oxidask worker`.

use std::fs::Permissions;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::guard::GuardCommand;
use oxidask_exec::{Builtin, Executor};
use oxidask_exec_frame::{CsvTables, FrameExecutor};
use oxidask_worker::{WorkerConfig, serve};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::until_signalled;
use super::{announce, bind, credentials, end_with_parent, local_address, machine};
use crate::arguments::WorkerArguments;
use crate::error::CliError;
use crate::signals::Signals;

/// Threads for connections; tasks that compute run on blocking threads.
const THREADS: usize = 2;

/// Serves until a signal, or until the scheduler lets the worker go.
pub(crate) fn run(arguments: &WorkerArguments) -> Result<(), CliError> {
    end_with_parent(arguments.service.parent_pid)?;
    super::allow_many_connections();
    let runtime = super::runtime(THREADS)?;
    let result = runtime.block_on(listen_and_serve(arguments));
    runtime.shutdown_background();
    result
}

async fn listen_and_serve(arguments: &WorkerArguments) -> Result<(), CliError> {
    let signals = Signals::install()
        .map_err(|error| CliError::start("signals cannot be received", &error))?;
    let scheduler_address = arguments.scheduler.clone().unwrap_or_default();
    let data_listener = bind(&arguments.service, arguments.port).await?;
    let data_address = local_address(&data_listener)?;
    let http_listener = if arguments.service.no_http {
        None
    } else {
        Some(bind(&arguments.service, arguments.http_port).await?)
    };
    let http = http_listener.as_ref().map(local_address).transpose()?;
    let advertise_address = advertised(arguments, data_address, &scheduler_address);
    let scratch = Scratch::new(arguments.scratch_dir.as_deref())?;
    let base_dir = existing_folder(&arguments.base_dir)?;
    let credentials = credentials(&arguments.service)?;
    announce("worker", &advertise_address, http);
    let config = WorkerConfig {
        scheduler_address,
        name: name(arguments),
        group: arguments.group.clone(),
        pod_uid: arguments.pod_uid.clone(),
        node: arguments.node.clone(),
        slots: arguments.threads.unwrap_or_else(machine::processors),
        resources: arguments.resources.clone(),
        memory_bytes: arguments.memory.unwrap_or_else(machine::memory_bytes),
        data_listener,
        http_listener,
        advertise_address,
        base_dir,
        scratch_dir: scratch.path.clone(),
        credentials,
        executors: executors(),
    };
    let shutdown = CancellationToken::new();
    let serving = Box::pin(serve(config, shutdown.clone()));
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

/// `host:port` under which peers reach this worker.
fn advertised(arguments: &WorkerArguments, bound: SocketAddr, scheduler: &str) -> String {
    if let Some(host) = &arguments.advertise {
        return format!("{host}:{}", bound.port());
    }
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    let facing = facing(bound, scheduler).unwrap_or(bound);
    SocketAddr::new(facing.ip(), bound.port()).to_string()
}

/// The own address on the way to the scheduler. Connecting a UDP socket sends nothing.
fn facing(bound: SocketAddr, scheduler: &str) -> Option<SocketAddr> {
    let host_and_port = scheduler.strip_prefix("oxidask://").unwrap_or(scheduler);
    let socket = UdpSocket::bind(SocketAddr::new(bound.ip(), 0)).ok()?;
    socket.connect(host_and_port.trim_end_matches('/')).ok()?;
    socket.local_addr().ok()
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
