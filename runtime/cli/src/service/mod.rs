//! The services as pods run them, and as a local cluster does.
//!
//! Owns their sockets, their signals and their end. What they do is in the crates
//! `oxidask-scheduler` and `oxidask-worker`.

pub(crate) mod machine;
pub(crate) mod scheduler;
pub(crate) mod worker;

use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::arguments::ServiceArguments;
use crate::error::CliError;
use crate::signals::Signals;

/// Time that a service has for a tidy end; then it ends anyhow.
const TIDY_END: Duration = Duration::from_millis(1_500);

/// Prepares this process for a service, and runs it until it ends. Nobody waits for its threads then.
fn run(
    arguments: &ServiceArguments,
    runtime: Runtime,
    service: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    end_with_parent(arguments.parent_pid)?;
    allow_many_connections();
    let result = runtime.block_on(service);
    runtime.shutdown_background();
    result
}

fn install_signals() -> Result<Signals, CliError> {
    Signals::install().map_err(|error| CliError::start("signals cannot be received", &error))
}

/// Lets a service open as many files as it may: each connection is one, and systems give few unless
/// they are asked.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// A runtime of few threads.
pub(crate) fn runtime(threads: usize) -> Result<Runtime, CliError> {
    started(Builder::new_multi_thread().worker_threads(threads))
}

/// A runtime of the thread that it is driven on.
fn single_threaded() -> Result<Runtime, CliError> {
    started(&mut Builder::new_current_thread())
}

fn started(builder: &mut Builder) -> Result<Runtime, CliError> {
    let built = builder.enable_all().build();
    built.map_err(|error| CliError::start("the threads cannot be started", &error))
}

/// Makes this process end with its parent, also when the parent is killed.
pub(crate) fn end_with_parent(parent_pid: Option<i32>) -> Result<(), CliError> {
    let Some(parent) = parent_pid else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| CliError::start("this process cannot be bound to its parent", &error))?;
    // The parent may have ended before that.
    if getppid() == Pid::from_raw(parent) {
        return Ok(());
    }
    let message = format!("process {parent} is not, or no longer, the parent");
    Err(CliError::failed(Diagnostic::new(
        Code::ClusterStart,
        message,
    )))
}

fn credentials(arguments: &ServiceArguments) -> Result<Credentials, CliError> {
    Credentials::from_dir(&arguments.tls_dir).map_err(|error| CliError::from_file(&error))
}

async fn bind(arguments: &ServiceArguments, port: u16) -> Result<TcpListener, CliError> {
    let address = SocketAddr::new(arguments.bind, port);
    TcpListener::bind(address)
        .await
        .map_err(|error| CliError::start(&format!("`{address}` cannot be bound"), &error))
}

async fn bind_http(
    arguments: &ServiceArguments,
    port: u16,
) -> Result<Option<TcpListener>, CliError> {
    if arguments.no_http {
        return Ok(None);
    }
    bind(arguments, port).await.map(Some)
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, CliError> {
    listener
        .local_addr()
        .map_err(|error| CliError::start("the bound port is not known", &error))
}

/// One JSON line on standard output for whoever started the service: it is listening.
fn announce(service: &str, address: &str, http: Option<SocketAddr>) {
    let http = http.map(|address| format!("http://{address}"));
    let line = json!({"ready": service, "address": address, "http": http});
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Runs a service until it ends or a signal asks for its end.
async fn until_signalled<E: Coded>(
    mut serve: Pin<Box<impl Future<Output = Result<(), E>>>>,
    shutdown: CancellationToken,
    signals: Signals,
) -> Result<(), CliError> {
    tokio::select! {
        result = &mut serve => return result.map_err(|error| CliError::from_failure(&error)),
        status = signals.first() => tracing::info!(status, "asked to end"),
    }
    shutdown.cancel();
    match tokio::time::timeout(TIDY_END, serve).await {
        Ok(Err(error)) => Err(CliError::from_failure(&error)),
        Ok(Ok(())) => Ok(()),
        Err(_) => {
            tracing::warn!("the tidy end took too long");
            Ok(())
        }
    }
}
