//! What goes over the wire to the API server: counted, and tried again when that is worth it.
//!
//! A request that is turned away because the server is busy waits as long as the server says, a few
//! times. One that breaks on the way, or in the server, goes once more if it does no harm twice: a turn
//! makes dozens of them, and would otherwise begin anew, later each time, for each that breaks. After
//! that the object's own waits apply.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, Response, StatusCode, Uri};
use futures::future::BoxFuture;
use kube::client::retry::{InvalidBackoff, RetryPolicy};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::buffer::BufferLayer;
use tower::retry::{Policy, RetryLayer};
use tower::{BoxError, Layer, Service};

use crate::error::OperatorError;
use crate::metrics::Metrics;

/// Requests on their way from callers to the connection.
const BUFFERED_MAX: usize = 1024;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);
const RETRIES_MAX: u32 = 3;

/// The content type of server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// The client that everything uses.
pub(crate) fn client(mut config: Config, metrics: &Arc<Metrics>) -> Result<Client, OperatorError> {
    // kube's own policy repeats fifteen times, while a place among the requests is taken.
    config.default_retry = false;
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| OperatorError::Configuration { source };
    let again = Again::new().map_err(|source| failed(Box::new(source)))?;
    let builder = ClientBuilder::try_from(config).map_err(|source| failed(Box::new(source)))?;
    let counted = builder.with_layer(&Counting(Arc::clone(metrics)));
    let shared = counted.with_layer(&BufferLayer::new(BUFFERED_MAX));
    Ok(shared.with_layer(&RetryLayer::new(again)).build())
}

/// Which requests go again, and when.
#[derive(Clone)]
struct Again {
    busy: RetryPolicy,
    was_broken: bool,
}

impl Again {
    fn new() -> Result<Self, InvalidBackoff> {
        let busy = RetryPolicy::new(RETRY_FIRST, RETRY_LAST, RETRIES_MAX, true)?;
        Ok(Self {
            busy,
            was_broken: false,
        })
    }
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Again {
    type Future = tokio::time::Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        answer: &mut Result<Response<B>, BoxError>,
    ) -> Option<Self::Future> {
        let is_broken = match answer {
            Ok(answer) => matches!(
                answer.status(),
                StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY
            ),
            Err(_) => true,
        };
        if !is_broken {
            return self.busy.retry(request, answer);
        }
        let goes = is_harmless_twice(request) && !self.was_broken;
        self.was_broken = true;
        goes.then(|| tokio::time::sleep(RETRY_FIRST))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<B>, _>::clone_request(&mut self.busy, request)
    }
}

/// What reads, and what says how an object should be. A watch has waits of its own.
fn is_harmless_twice(request: &Request<Body>) -> bool {
    match *request.method() {
        Method::GET => !is_watch(request.uri()),
        Method::PATCH => request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|it| it == APPLY),
        _ => false,
    }
}

/// Counts requests by what they are and how they end.
#[derive(Debug, Clone)]
struct Counting(Arc<Metrics>);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        let metrics = Arc::clone(&self.0);
        Counted { inner, metrics }
    }
}

#[derive(Debug)]
struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = label(request.method(), request.uri());
        let metrics = Arc::clone(&self.metrics);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let status = answer
                .as_ref()
                .map_or("none", |it| class(it.status().as_u16()));
            metrics.requested(verb, resource, status);
            answer
        })
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.contains("watch="))
}

fn class(status: u16) -> &'static str {
    match status {
        409 => "409",
        410 => "410",
        429 => "429",
        200..=299 => "2xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "other",
    }
}

/// Everything that the operator asks for; labels are bounded.
const RESOURCES: [&str; 16] = [
    "configmaps",
    "daskautoscalers",
    "daskclusters",
    "daskjobs",
    "daskworkergroups",
    "deployments",
    "events",
    "leases",
    "networkpolicies",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
    "pods",
    "secrets",
    "serviceaccounts",
    "services",
    "certificates",
];

fn label(method: &Method, uri: &Uri) -> (&'static str, &'static str) {
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    // `api/v1/…` or `apis/GROUP/VERSION/…`, then perhaps `namespaces/NAME`.
    let skipped = if parts.next() == Some("apis") { 2 } else { 1 };
    let mut parts = parts.skip(skipped).peekable();
    if parts.peek() == Some(&"namespaces") {
        parts.next();
        parts.next();
    }
    let plural = parts.next().unwrap_or_default();
    let name = parts.next();
    let resource = RESOURCES.into_iter().find(|known| *known == plural);
    let verb = match *method {
        Method::GET if is_watch(uri) => "watch",
        Method::GET if name.is_some() => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource.unwrap_or("other"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, Patch, PatchParams, PostParams};

    use super::*;

    #[test]
    fn requests_have_a_verb_and_a_resource() {
        let apis = "/apis/kubernetes.dask.org/v1";
        for (method, uri, expected) in [
            (
                Method::GET,
                "/api/v1/pods?watch=true".to_owned(),
                ("watch", "pods"),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/n/pods?limit=5".to_owned(),
                ("list", "pods"),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/n/secrets/s".to_owned(),
                ("get", "secrets"),
            ),
            (
                Method::POST,
                "/api/v1/namespaces/n/pods?".to_owned(),
                ("create", "pods"),
            ),
            (
                Method::PATCH,
                format!("{apis}/namespaces/n/daskjobs/j/status"),
                ("patch", "daskjobs"),
            ),
            (
                Method::GET,
                format!("{apis}/daskjobs"),
                ("list", "daskjobs"),
            ),
            (Method::GET, apis.to_owned(), ("list", "other")),
            (
                Method::DELETE,
                "/api/v1/namespaces/n/things/t".to_owned(),
                ("delete", "other"),
            ),
        ] {
            assert_eq!(label(&method, &uri.parse().unwrap()), expected, "{uri}");
        }
        assert_eq!((class(201), class(404), class(503)), ("2xx", "4xx", "5xx"));
    }

    type Answer = Result<Response<&'static str>, BoxError>;

    /// The pods of a server that answers this in turn, and then with a pod; and how often it was asked.
    fn pods_of(
        answers: impl Fn(u32) -> Option<Answer> + Send + 'static,
    ) -> (Api<Pod>, Arc<Metrics>, Arc<AtomicU32>) {
        let calls = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&calls);
        let service = tower::service_fn(move |_: Request<Body>| {
            let answer = answers(seen.fetch_add(1, Ordering::SeqCst)).unwrap_or_else(|| {
                Ok(Response::new(
                    r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}"#,
                ))
            });
            let answer = answer.map(|it| it.map(|body| Body::from(body.as_bytes().to_vec())));
            async move { answer }
        });
        let metrics = Arc::new(Metrics::new());
        let client = ClientBuilder::new(service, "n")
            .with_layer(&Counting(Arc::clone(&metrics)))
            .with_layer(&BufferLayer::new(BUFFERED_MAX))
            .with_layer(&RetryLayer::new(Again::new().unwrap()))
            .build();
        (Api::namespaced(client, "n"), metrics, calls)
    }

    fn refused(code: u16) -> axum::http::response::Builder {
        Response::builder().status(code)
    }

    const STATUS: &str =
        r#"{"kind":"Status","code":429,"message":"busy","reason":"","status":"Failure"}"#;

    /// Answers 429 once, then 200.
    #[tokio::test]
    async fn a_busy_server_is_given_the_time_that_it_asks_for() {
        let (pods, metrics, calls) = pods_of(|call| {
            let busy = refused(429).header("Retry-After", "1").body(STATUS);
            (call == 0).then(|| Ok(busy.unwrap()))
        });
        let began = std::time::Instant::now();
        pods.get("p").await.unwrap();
        assert!(
            began.elapsed() >= Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        let text = metrics.text();
        for status in ["2xx", "429"] {
            let line = format!(
                "oxidask_operator_api_requests_total{{verb=\"get\",resource=\"pods\",status=\"{status}\"}} 1"
            );
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn what_breaks_goes_once_more_if_twice_does_no_harm() {
        type Broken = fn() -> Answer;
        let ways: [Broken; 3] = [
            || Ok(refused(500).body(STATUS).unwrap()),
            || Ok(refused(502).body(STATUS).unwrap()),
            || Err("the connection ended".into()),
        ];
        for broken in ways {
            let times = |times| pods_of(move |call| (call < times).then(broken));
            let (pods, _, calls) = times(1);
            pods.get("p").await.unwrap();
            assert_eq!(calls.load(Ordering::SeqCst), 2);

            let (pods, _, calls) = times(1);
            let apply = PatchParams::apply("test");
            pods.patch("p", &apply, &Patch::Apply(Pod::default()))
                .await
                .unwrap();
            assert_eq!(calls.load(Ordering::SeqCst), 2);

            let (pods, _, calls) = times(2);
            pods.get("p").await.unwrap_err();
            assert_eq!(calls.load(Ordering::SeqCst), 2);

            let (pods, _, calls) = times(1);
            let created = pods.create(&PostParams::default(), &Pod::default()).await;
            created.unwrap_err();
            assert_eq!(calls.load(Ordering::SeqCst), 1);
        }
    }
}
