//! The HTTP port: health, metrics, and JSON about the cluster.
//!
//! Owns the table of routes and who may use which: health and metrics are open, all data needs the
//! bearer token of [`HttpTokens`], and what changes something the operator's. Health never waits for
//! the main loop, so that a busy scheduler is not taken for a dead one; everything else waits for it
//! at most [`look::LOOK_TIME_MAX`]. Bodies are bounded; what is wrong is answered with JSON that
//! teaches.

mod answer;
mod api;
mod dask;
mod json;
mod look;
mod query;
mod token;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use oxidask_comm::OpenListener;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::SchedulerError;
use crate::grpc::Shared;

pub use token::HttpTokens;

use answer::Refusal;
use look::Looker;

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What the routes share.
pub(crate) struct Site {
    looker: Looker,
    tokens: HttpTokens,
}

/// Serves until the token fires.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    tokens: HttpTokens,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let looker = Looker::new(shared);
    let router = router(Arc::new(Site { looker, tokens }));
    axum::serve(OpenListener::new(listener), router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(|source| SchedulerError::Http { source })
}

fn router(site: Arc<Site>) -> Router {
    let open = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let readable = Router::new()
        .route("/api/v1", get(|| async { "API V1" }))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/workers", get(api::workers))
        .route("/api/v1/graphs", get(api::graphs))
        .route("/api/v1/graphs/{name}", get(api::graph))
        .route("/api/v1/tasks/{key}", get(api::task))
        .route("/api/v1/backlog", get(api::backlog))
        .route("/api/v1/spans", get(api::spans))
        .route("/api/v1/logs", get(api::logs))
        .route("/api/v1/adaptive_target", get(dask::adaptive_target))
        .route("/api/v1/check_idle", get(dask::check_idle))
        .route("/api/v1/get_workers", get(dask::get_workers))
        .route("/json/counts.json", get(dask::counts))
        .route("/json/identity.json", get(dask::identity))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&site),
            token::may_read,
        ));
    let changing = Router::new()
        .route("/api/v1/retire_workers", post(dask::retire_workers))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&site),
            token::may_change,
        ));
    open.merge(readable)
        .merge(changing)
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(site)
}

/// Whether work is taken: not while the journal is read.
#[allow(clippy::unused_async, reason = "the form of handlers")]
async fn ready(State(site): State<Arc<Site>>) -> Response {
    if site.looker.metrics().is_recovering() {
        let told = "the journal is being read; try again in a moment";
        return (StatusCode::SERVICE_UNAVAILABLE, told).into_response();
    }
    "ok".into_response()
}

/// With what the loop says now, or, if it does not answer in time, with what it said last.
async fn metrics(State(site): State<Arc<Site>>) -> Response {
    site.looker.refresh_metrics().await;
    let headers = [(CONTENT_TYPE, METRICS_TYPE), (CACHE_CONTROL, "no-store")];
    (headers, site.looker.metrics().text()).into_response()
}

#[allow(clippy::unused_async, reason = "the form of handlers")]
async fn unknown(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is no `{}`", answer::excerpt(uri.path())),
    )
    .with_hint(
        "open: /health, /livez, /readyz, /metrics; with a token: /api/v1/status, workers, graphs, \
         graphs/NAME, tasks/KEY, backlog, spans, logs, adaptive_target, check_idle, get_workers, \
         retire_workers (POST), /json/counts.json, /json/identity.json",
    )
}

#[allow(clippy::unused_async, reason = "the form of handlers")]
async fn wrong_method(uri: Uri) -> Refusal {
    let path = answer::excerpt(uri.path());
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("`{path}` does not take this method"),
    )
    .with_hint("retire_workers takes POST, everything else GET")
}

#[cfg(test)]
mod tests {
    use oxidask_comm::{BulkPool, Credentials, install_crypto_provider};
    use oxidask_identity::Role;
    use oxidask_pki::Authority;

    use super::*;
    use crate::input::Inputs;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn nobody_is_ready_while_the_journal_is_read_and_metrics_come_nevertheless() {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let life = std::time::Duration::from_hours(1);
        let leaf = authority.issue(Role::Scheduler, life).unwrap();
        let credentials =
            Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap();
        let (inputs, _receiver) = Inputs::channel();
        let metrics = Arc::new(Metrics::new());
        let shared = Shared::new(
            inputs,
            BulkPool::new(credentials),
            Arc::clone(&metrics),
            Arc::default(),
            CancellationToken::new(),
        );
        let looker = Looker::new(Arc::new(shared));
        let tokens = HttpTokens::default();
        let site = Arc::new(Site { looker, tokens });
        metrics.set_recovering(true);
        let answer = ready(State(Arc::clone(&site))).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let refused = site.looker.snapshot().await.err().unwrap().into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer = super::metrics(State(Arc::clone(&site))).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(metrics.text().contains("oxidask_scheduler_recovering 1"));
        metrics.set_recovering(false);
        let answer = ready(State(Arc::clone(&site))).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
