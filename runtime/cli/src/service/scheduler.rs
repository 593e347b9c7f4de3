//! `oxidask scheduler`.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use oxidask_core::CoreConfig;
use oxidask_scheduler::{HttpTokens, JournalConfig, LogTap, SchedulerConfig, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    announce, bind, bind_http, credentials, install_signals, local_address, machine,
    until_signalled,
};
use crate::arguments::SchedulerArguments;
use crate::error::CliError;

/// With so many processors or fewer one thread does everything: a hop to another thread costs more
/// than the work that it takes over.
const SMALL_PROCESSORS_MAX: u32 = 2;
/// Threads for connections, where the loop has one of its own.
const THREADS: usize = 2;

/// Serves until a signal.
pub(crate) fn run(arguments: &SchedulerArguments, log_tap: LogTap) -> Result<(), CliError> {
    let is_small = machine::processors() <= SMALL_PROCESSORS_MAX;
    let runtime = if is_small {
        super::single_threaded()?
    } else {
        super::runtime(THREADS)?
    };
    let serving = listen_and_serve(arguments, log_tap, !is_small);
    super::run(&arguments.service, runtime, serving)
}

async fn listen_and_serve(
    arguments: &SchedulerArguments,
    log_tap: LogTap,
    has_loop_thread: bool,
) -> Result<(), CliError> {
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
        has_loop_thread,
        core: CoreConfig::default(),
        journal: journal(arguments),
        http_tokens: HttpTokens {
            reader: arguments.http_token_file.clone(),
            operator: arguments.http_operator_token_file.clone(),
        },
        log_tap,
    };
    let shutdown = CancellationToken::new();
    let serving = Box::pin(serve(config, shutdown.clone()));
    until_signalled(serving, shutdown, signals).await
}

/// Where the journal is kept.
fn journal(arguments: &SchedulerArguments) -> Option<JournalConfig> {
    let folder = arguments.journal_dir.as_ref();
    if arguments.no_journal {
        return None;
    }
    if folder.is_none() {
        tracing::warn!("no --journal-dir: graphs are lost when this process ends");
    }
    Some(JournalConfig {
        delay: Duration::from_millis(arguments.journal_delay_ms),
        ..JournalConfig::in_folder(folder?)
    })
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
