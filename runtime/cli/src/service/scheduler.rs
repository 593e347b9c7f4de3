//! `oxidask scheduler`.

use std::io;
use std::os::fd::AsFd;

use oxidask_core::CoreConfig;
use oxidask_scheduler::{SchedulerConfig, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    announce, bind, bind_http, credentials, install_signals, local_address, until_signalled,
};
use crate::arguments::SchedulerArguments;
use crate::error::CliError;

/// Serves until a signal.
pub(crate) fn run(arguments: &SchedulerArguments) -> Result<(), CliError> {
    super::run(&arguments.service, listen_and_serve(arguments))
}

async fn listen_and_serve(arguments: &SchedulerArguments) -> Result<(), CliError> {
    let signals = install_signals()?;
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
    match bind_http(&arguments.service, arguments.http_port).await {
        Err(_) if arguments.http_port_or_free => bind_http(&arguments.service, 0).await,
        bound => bound,
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
