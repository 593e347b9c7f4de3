//! Starts everything, waits for a signal, and ends within two seconds of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use oxidask_operator_plan::Settings;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::FIELD_MANAGER;
use crate::arguments::RunArguments;
use crate::context::REQUESTS_MAX;
use crate::error::OperatorError;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::scope::{self, Shared};
use crate::{http, logging};

/// Threads; more do not help one API server's client.
const THREADS_MAX: usize = 4;

/// How long reconciliations that are under way may take after a signal.
const FAREWELL: Duration = Duration::from_millis(1500);

/// What the rest of the runtime may take after that.
const SHUTDOWN: Duration = Duration::from_millis(200);

/// Runs until a signal comes.
pub(crate) fn run(arguments: RunArguments) -> Result<(), OperatorError> {
    logging::start(arguments.log_format, &arguments.log_level);
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX);
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| start_error("async runtime", source))?;
    let done = runtime.block_on(serve(arguments));
    runtime.shutdown_timeout(SHUTDOWN);
    done
}

async fn serve(arguments: RunArguments) -> Result<(), OperatorError> {
    let shutdown = CancellationToken::new();
    stop_at_signal(&shutdown)?;
    let config = Config::infer()
        .await
        .map_err(|source| OperatorError::Configuration {
            source: Box::new(source),
        })?;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|source| OperatorError::Configuration {
        source: Box::new(source),
    })?;
    let address = arguments.http_bind;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| OperatorError::Listen { address, source })?;
    let shared = shared(&arguments, client, shutdown.clone());
    tokio::spawn(http::serve(
        listener,
        Arc::clone(&shared.health),
        Arc::clone(&shared.metrics),
        shutdown.clone(),
    ));
    let namespaces = arguments.namespaces();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server,
        namespaces = if namespaces.is_empty() { "all".to_owned() } else { namespaces.join(",") },
        runtime_image = arguments.runtime_image,
        http = %address,
        "started"
    );
    let mut scopes = JoinSet::new();
    if namespaces.is_empty() {
        scopes.spawn(scope::run(shared, None));
    } else {
        for namespace in namespaces {
            scopes.spawn(scope::run(shared.clone(), Some(namespace)));
        }
    }
    shutdown.cancelled().await;
    let ended = tokio::time::timeout(FAREWELL, async {
        while scopes.join_next().await.is_some() {}
    });
    let is_complete = ended.await.is_ok();
    tracing::info!(is_complete, "stopped");
    Ok(())
}

fn shared(arguments: &RunArguments, client: Client, shutdown: CancellationToken) -> Shared {
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: std::env::var("HOSTNAME")
            .ok()
            .filter(|name| !name.is_empty()),
    };
    let settings = Settings {
        runtime_image: arguments.runtime_image.clone(),
        image_pull_policy: arguments
            .image_pull_policy
            .map(|policy| policy.name().to_owned()),
    };
    Shared {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        settings,
        concurrency: arguments.concurrency,
        metrics: Arc::new(Metrics::new()),
        health: Arc::new(Health::default()),
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        shutdown,
    }
}

/// Cancels the token at the first SIGTERM or SIGINT.
fn stop_at_signal(shutdown: &CancellationToken) -> Result<(), OperatorError> {
    let failed = |source| start_error("signal handler", source);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("a signal came; stopping");
        shutdown.cancel();
    });
    Ok(())
}

fn start_error(what: &'static str, source: io::Error) -> OperatorError {
    OperatorError::Start { what, source }
}
