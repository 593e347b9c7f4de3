//! Puts the parts of a worker together and takes them apart again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use oxidask_comm::serve_bulk;
use oxidask_store::Store;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::event_loop::EventLoop;
use crate::fetch::{Fetcher, StoreSource};
use crate::http::{self, Shown};
use crate::metrics::Metrics;
use crate::registration::register;
use crate::run::Runner;

/// How long the servers get to end.
const PARTS_END_MILLIS_MAX: u64 = 200;

/// Serves one scheduler until `shutdown` (then all is well) or until the worker cannot go on.
///
/// Either way runs are cancelled, and nothing is left behind within a second. The future is boxed
/// so that its code is made once, here, and not anew in each program.
pub fn serve(
    config: WorkerConfig,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), WorkerError>> {
    Box::pin(serve_all(config, shutdown))
}

async fn serve_all(
    mut config: WorkerConfig,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    std::fs::create_dir_all(&config.scratch_dir).map_err(|source| WorkerError::ScratchDir {
        path: config.scratch_dir.clone(),
        source,
    })?;
    let stop = shutdown.child_token();
    let store = Arc::new(Store::new(config.memory_bytes));
    let metrics = Arc::new(Metrics::new());
    let shown = Arc::new(Shown {
        metrics: Arc::clone(&metrics),
        store: Arc::clone(&store),
        is_registered: AtomicBool::new(false),
    });
    let mut http_server = JoinSet::new();
    if let Some(listener) = config.http_listener.take() {
        http_server.spawn(http::serve(listener, Arc::clone(&shown)));
    }
    let executors = std::mem::take(&mut config.executors);
    let (base_dir, scratch_dir) = (config.base_dir.clone(), config.scratch_dir.clone());
    let runner = Runner::new(executors, Arc::clone(&store), base_dir, scratch_dir);
    let fetcher = Fetcher::new(config.credentials.clone());

    let session = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        session = register(&config) => session?,
    };
    let mut parts = JoinSet::new();
    let source = Arc::new(StoreSource(Arc::clone(&store)));
    let (listener, credentials) = (config.data_listener, config.credentials.clone());
    let data_stop = stop.clone();
    parts.spawn(async move {
        let served = serve_bulk(listener, credentials, source, data_stop).await;
        served.map_err(|source| WorkerError::DataServer(Box::new(source)))
    });
    let event_loop = EventLoop::new(session, config.slots, runner, fetcher, store, metrics);
    parts.spawn(event_loop.run(stop.clone()));
    shown.is_registered.store(true, Ordering::Relaxed);

    let first = parts.join_next().await;
    shown.is_registered.store(false, Ordering::Relaxed);
    let is_asked = shutdown.is_cancelled();
    stop.cancel();
    let all = async {
        http_server.shutdown().await;
        while parts.join_next().await.is_some() {}
    };
    // The loop itself bounds how long it waits for runs.
    let patience = Duration::from_millis(PARTS_END_MILLIS_MAX) + EventLoop::END_MAX;
    if timeout(patience, all).await.is_err() {
        tracing::warn!("some parts of the worker did not end in time");
    }
    match first {
        Some(Ok(Ok(()))) | None if is_asked => Ok(()),
        Some(Ok(Err(error))) => Err(error),
        Some(Ok(Ok(()))) | None => Err(WorkerError::PartEnded {
            part: "data server",
        }),
        Some(Err(error)) => {
            tracing::error!(%error, "a part of the worker panicked");
            Err(WorkerError::PartEnded { part: "loop" })
        }
    }
}
