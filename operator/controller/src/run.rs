//! Starts everything, waits for a signal, and ends within three seconds of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use oxidask_operator_plan::Settings;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::apply::FIELD_MANAGER;
use crate::arguments::RunArguments;
use crate::context::REQUESTS_MAX;
use crate::error::OperatorError;
use crate::health::Health;
use crate::leadership::Leadership;
use crate::lease::{Keeper, LeaseSettings};
use crate::metrics::Metrics;
use crate::scope::{self, Shared, Term};
use crate::turns::Turns;
use crate::{http, logging, traffic};

/// Threads; more do not help one API server's client.
const THREADS_MAX: usize = 4;

/// How long reconciliations that are under way may take after a signal.
const FAREWELL: Duration = Duration::from_millis(1500);

/// How long giving the lease back may take after that.
const RELEASE: Duration = Duration::from_millis(500);

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
    let own_namespace = config.default_namespace.clone();
    let metrics = Arc::new(Metrics::new());
    let client = traffic::client(config, &metrics)?;
    let address = arguments.http_bind;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| OperatorError::Listen { address, source })?;
    let shared = shared(&arguments, client, metrics, shutdown.clone());
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
        leader_elect = arguments.leader_elect,
        "started"
    );
    let release = CancellationToken::new();
    let (terms, keeping) = lead(&arguments, own_namespace, &shared, &release);
    let mut scopes = JoinSet::new();
    if namespaces.is_empty() {
        scopes.spawn(scope::run(shared.clone(), None, terms));
    } else {
        for namespace in namespaces {
            scopes.spawn(scope::run(shared.clone(), Some(namespace), terms.clone()));
        }
    }
    shutdown.cancelled().await;
    let ended = tokio::time::timeout(FAREWELL, async {
        while scopes.join_next().await.is_some() {}
    });
    let is_complete = ended.await.is_ok();
    // Only now may another replica begin.
    shared.leadership.end();
    release.cancel();
    let is_released = tokio::time::timeout(RELEASE, keeping).await.is_ok();
    tracing::info!(is_complete, is_released, "stopped");
    Ok(())
}

/// The terms in which this process leads, and the task that gets them.
fn lead(
    arguments: &RunArguments,
    own_namespace: String,
    shared: &Shared,
    release: &CancellationToken,
) -> (watch::Receiver<Term>, JoinHandle<()>) {
    if !arguments.leader_elect {
        shared.metrics.leads(true);
        let (terms, term) = watch::channel(Some(CancellationToken::new()));
        let release = release.clone();
        // Keeps the channel open.
        let keeping = tokio::spawn(async move {
            release.cancelled().await;
            drop(terms);
        });
        return (term, keeping);
    }
    let (terms, term) = watch::channel(None);
    let namespace = arguments.lease_namespace.clone();
    let namespace = namespace
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or(own_namespace);
    let duration = Duration::from_secs(arguments.lease_seconds.into());
    let settings = LeaseSettings::new(namespace, arguments.lease_name.clone(), duration);
    let leadership = shared.leadership.clone();
    let keeper = Keeper::new(settings, shared.client.clone(), leadership, terms);
    let (metrics, mut changes) = (Arc::clone(&shared.metrics), term.clone());
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            metrics.leads(changes.borrow().is_some());
        }
    });
    (term, tokio::spawn(keeper.run(release.clone())))
}

fn shared(
    arguments: &RunArguments,
    client: Client,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Shared {
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
        network_policies: arguments.network_policies,
        operator_namespace: arguments.lease_namespace.clone(),
        metrics_namespace: arguments.metrics_namespace.clone(),
    };
    Shared {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        settings,
        concurrency: arguments.concurrency,
        metrics,
        health: Arc::new(Health::default()),
        turns: Turns::new(REQUESTS_MAX),
        leadership: if arguments.leader_elect {
            Leadership::waiting()
        } else {
            Leadership::alone()
        },
        addresses: arguments.scheduler_address_template.clone(),
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
