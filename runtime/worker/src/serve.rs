//! Puts the parts of a worker together and takes them apart again.
//!
//! Owns what outlives a scheduler: the folder, the data server and the open HTTP paths. What hangs
//! on the stream to the scheduler is the business of [`Sessions`].

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
use crate::sessions::Sessions;

/// How long the servers get to end.
const PARTS_END_MILLIS_MAX: u64 = 200;

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
    Box::pin(serve_all(config, listeners, shutdown))
}

async fn serve_all(
    config: WorkerConfig,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    std::fs::create_dir_all(&config.scratch_dir).map_err(|source| WorkerError::ScratchDir {
        path: config.scratch_dir.clone(),
        source,
    })?;
    let stop = shutdown.child_token();
    let shown = Arc::new(Shown::new(open_store(&config)?));
    let mut servers = start_servers(listeners, &config, &shown, &stop);
    let mut sessions = pin!(Sessions::new(config, shown, stop.clone()).run());

    let mut outcome = None;
    let failure = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        failure = first_failure(&mut servers) => Some(failure),
        ended = &mut sessions => {
            outcome = Some(ended);
            None
        }
    };
    stop.cancel();
    let all = async {
        servers.shutdown().await;
        match outcome {
            Some(outcome) => outcome,
            None => sessions.await,
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

/// Results for others, and the open paths. They end only when they are aborted, or fail.
fn start_servers(
    listeners: Listeners,
    config: &WorkerConfig,
    shown: &Arc<Shown>,
    stop: &CancellationToken,
) -> JoinSet<WorkerError> {
    let mut servers = JoinSet::new();
    let source = Arc::new(StoreSource(Arc::clone(&shown.store)));
    let data = serve_bulk(
        listeners.data,
        config.credentials.clone(),
        source,
        stop.clone(),
    );
    servers.spawn(async move {
        match data.await {
            Ok(()) => WorkerError::PartEnded {
                part: "data server",
            },
            Err(source) => WorkerError::DataServer(Box::new(source)),
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
