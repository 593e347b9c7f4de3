//! `oxidask scheduler`.

use std::io;
use std::os::fd::AsFd;

use oxidask_core::CoreConfig;
use oxidask_scheduler::{SchedulerConfig, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{announce, bind, credentials, end_with_parent, local_address, until_signalled};
use crate::arguments::SchedulerArguments;
use crate::error::CliError;
use crate::signals::Signals;

/// Threads for connections; the scheduler's one writer has a thread of its own.
const THREADS: usize = 2;

/// Serves until a signal.
pub(crate) fn run(arguments: &SchedulerArguments) -> Result<(), CliError> {
    end_with_parent(arguments.service.parent_pid)?;
    super::allow_many_connections();
    let runtime = super::runtime(THREADS)?;
    let result = runtime.block_on(listen_and_serve(arguments));
    runtime.shutdown_background();
    result
}

async fn listen_and_serve(arguments: &SchedulerArguments) -> Result<(), CliError> {
    let signals = Signals::install()
        .map_err(|error| CliError::start("signals cannot be received", &error))?;
    let listener = if arguments.listen_on_stdin {
        inherited()
            .map_err(|error| CliError::start("standard input is not a listening socket", &error))?
    } else {
        bind(&arguments.service, arguments.port).await?
    };
    let http_listener = http(arguments).await?;
    let credentials = credentials(&arguments.service)?;
    let http = http_listener.as_ref().map(local_address).transpose()?;
    announce(
        "scheduler",
        &format!("oxidask://{}", local_address(&listener)?),
        http,
    );
    let config = SchedulerConfig {
        listener,
        http_listener,
        credentials,
        core: CoreConfig::default(),
    };
    let shutdown = CancellationToken::new();
    let serving = Box::pin(serve(config, shutdown.clone()));
    until_signalled(serving, shutdown, signals).await
}

async fn http(arguments: &SchedulerArguments) -> Result<Option<TcpListener>, CliError> {
    if arguments.service.no_http {
        return Ok(None);
    }
    match bind(&arguments.service, arguments.http_port).await {
        Err(_) if arguments.http_port_or_free => bind(&arguments.service, 0).await.map(Some),
        bound => bound.map(Some),
    }
}

/// The socket that the parent has bound already, so that nobody waits for this process.
fn inherited() -> io::Result<TcpListener> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let listener = std::net::TcpListener::from(socket);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
