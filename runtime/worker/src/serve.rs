//! Puts the parts of a worker together and takes them apart again.
//!
//! Owns the folder, the data server and the open HTTP paths. What the worker does is the business of
//! [`EventLoop`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use oxidask_comm::serve_bulk;
use oxidask_store::{Store, StoreConfig};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{Listeners, WorkerConfig};
use crate::error::WorkerError;
use crate::event_loop::EventLoop;
use crate::http::{self, Shown};
use crate::pieces::StoreSource;
use crate::uploads::Adopter;

/// How long the servers get to end.
const PARTS_END_MILLIS_MAX: u64 = 200;

/// What makes a worker end.
#[derive(Debug, Clone)]
pub struct Ends {
    /// At once: what runs is cancelled, what is held is lost.
    pub shutdown: CancellationToken,
    /// In order: what only this worker has is copied to others first.
    pub leave: CancellationToken,
    /// How long the latter may take.
    pub grace: Duration,
}

/// Serves one scheduler after the other until `shutdown` (then all is well) or until the worker
/// cannot go on.
///
/// Either way runs are cancelled, and nothing is left behind within a second. The future is boxed
/// so that its code is made once, here, and not anew in each program.
pub fn serve(
    config: WorkerConfig,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), WorkerError>> {
    let ends = Ends {
        shutdown,
        leave: CancellationToken::new(),
        grace: Duration::ZERO,
    };
    serve_until(config, listeners, ends)
}

/// The same for a worker that can also leave in order; then all is well, too.
pub fn serve_until(
    config: WorkerConfig,
    listeners: Listeners,
    ends: Ends,
) -> BoxFuture<'static, Result<(), WorkerError>> {
    Box::pin(serve_all(config, listeners, ends))
}

async fn serve_all(
    mut config: WorkerConfig,
    listeners: Listeners,
    ends: Ends,
) -> Result<(), WorkerError> {
    std::fs::create_dir_all(&config.scratch_dir).map_err(|source| WorkerError::ScratchDir {
        path: config.scratch_dir.clone(),
        source,
    })?;
    let shutdown = ends.shutdown.clone();
    let stop = shutdown.child_token();
    let shown = Arc::new(Shown::new(open_store(&config)?, &config));
    let adopter = Adopter(Arc::clone(&shown.uploads));
    config.executors.push(Arc::new(adopter));
    tokio::spawn(oxidask_comm::keep_fresh(
        config.credentials.clone(),
        stop.clone(),
    ));
    let mut servers = start_servers(listeners, &config, &shown, &stop);
    let ends = Ends {
        shutdown: stop.clone(),
        ..ends
    };
    let mut working = pin!(work(config, shown, ends));

    let mut outcome = None;
    let failure = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        failure = first_failure(&mut servers) => Some(failure),
        ended = &mut working => {
            outcome = Some(ended);
            None
        }
    };
    stop.cancel();
    let all = async {
        servers.shutdown().await;
        match outcome {
            Some(outcome) => outcome,
            None => working.await,
        }
    };
    // The loop itself bounds how long it waits for runs.
    let patience = Duration::from_millis(PARTS_END_MILLIS_MAX) + EventLoop::END_MAX;
    let ended = timeout(patience, all).await.unwrap_or_else(|_| {
        tracing::warn!("some parts of the worker did not end in time");
        Ok(())
    });
    failure.map_or(ended, Err)
}

/// The loop has a task of its own, so its panic does not pass.
async fn work(config: WorkerConfig, shown: Arc<Shown>, ends: Ends) -> Result<(), WorkerError> {
    let mut task = JoinSet::new();
    task.spawn(EventLoop::new(Arc::new(config), shown, ends).run());
    match task.join_next().await {
        Some(Ok(outcome)) => outcome,
        ended => {
            if let Some(Err(error)) = ended {
                tracing::error!(%error, "the worker's loop panicked");
            }
            Err(WorkerError::PartEnded { part: "loop" })
        }
    }
}

fn open_store(config: &WorkerConfig) -> Result<Store, WorkerError> {
    if config.spill_bytes_max == 0 {
        return Ok(Store::new(config.memory_bytes));
    }
    let given = config.spill_dir.clone();
    let settings = StoreConfig {
        limit_bytes: config.memory_bytes,
        spill_dir: given.unwrap_or_else(|| config.scratch_dir.join("spill")),
        disk_limit_bytes: config.spill_bytes_max,
    };
    Store::with_spill(&settings).map_err(|source| WorkerError::SpillDir(Box::new(source)))
}

/// Results for others, the open paths and the watch over the memory. They end only when they are aborted, or fail.
fn start_servers(
    listeners: Listeners,
    config: &WorkerConfig,
    shown: &Arc<Shown>,
    stop: &CancellationToken,
) -> JoinSet<WorkerError> {
    let mut servers = JoinSet::new();
    let source = Arc::new(StoreSource {
        store: Arc::clone(&shown.store),
        uploads: Arc::clone(&shown.uploads),
    });
    let data = serve_bulk(
        listeners.data,
        config.credentials.clone(),
        source,
        stop.clone(),
    );
    let serving = async move {
        match data.await {
            Ok(()) => WorkerError::PartEnded {
                part: "data server",
            },
            Err(source) => WorkerError::DataServer(Box::new(source)),
        }
    };
    servers.spawn_on(serving, &config.compute);
    let watching = Arc::clone(&shown.watch).run(config.system_dir.clone().into());
    servers.spawn(async move {
        watching.await;
        WorkerError::PartEnded {
            part: "memory watch",
        }
    });
    if let Some(listener) = listeners.http {
        let shown = Arc::clone(shown);
        servers.spawn(async move {
            if let Err(error) = http::serve(listener, shown).await {
                tracing::error!(%error, "the HTTP port failed");
            }
            WorkerError::PartEnded { part: "HTTP port" }
        });
    }
    servers
}

async fn first_failure(servers: &mut JoinSet<WorkerError>) -> WorkerError {
    match servers.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(error)) => {
            tracing::error!(%error, "a server of the worker panicked");
            WorkerError::PartEnded { part: "server" }
        }
        None => WorkerError::PartEnded { part: "servers" },
    }
}
