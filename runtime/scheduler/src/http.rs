//! The open paths of the HTTP port: is it alive, is it ready, and its metrics.
//!
//! Everything else of this port needs a token and is not there yet. Never waits for the main loop,
//! so that a busy scheduler is not taken for a dead one.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use oxidask_comm::OpenListener;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::SchedulerError;
use crate::metrics::Metrics;

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the token fires.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let router = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .route("/metrics", get(metrics_text))
        .with_state(metrics);
    axum::serve(OpenListener::new(listener), router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(|source| SchedulerError::Http { source })
}

async fn metrics_text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], metrics.text())
}
