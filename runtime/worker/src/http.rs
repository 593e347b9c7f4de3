//! The open paths: health and figures. No data is ever served here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use oxidask_comm::OpenListener;
use oxidask_store::Store;
use tokio::net::TcpListener;

use crate::config::WorkerConfig;
use crate::memory::watch::MemoryWatch;
use crate::metrics::Metrics;
use crate::uploads::Uploads;

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the paths show: the parts of a worker that outlive its schedulers.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Arc<Store>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) watch: Arc<MemoryWatch>,
    /// Whether a scheduler has accepted this worker and is still there.
    pub(crate) is_registered: AtomicBool,
}

impl Shown {
    pub(crate) fn new(store: Store, config: &WorkerConfig) -> Self {
        let store = Arc::new(store);
        let watch = MemoryWatch::new(
            config.memory_bytes,
            config.memory_thresholds,
            Arc::clone(&store),
        );
        Self {
            watch: Arc::new(watch),
            metrics: Arc::new(Metrics::new(config.slots.max(1))),
            uploads: Arc::new(Uploads::new(Arc::clone(&store))),
            store,
            is_registered: AtomicBool::new(false),
        }
    }
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, shown: Arc<Shown>) -> io::Result<()> {
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shown);
    axum::serve(OpenListener::new(listener), router).await
}

async fn ready(State(shown): State<Arc<Shown>>) -> Response {
    if shown.is_registered.load(Ordering::Relaxed) {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not registered with the scheduler\n",
        )
            .into_response()
    }
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    match shown.metrics.text(&shown.store, &shown.watch) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
