//! A scripted API server for tests: answers requests by a function and remembers them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Recorder;
use oxidask_operator_plan::Settings;
use serde_json::{Value, json};

use crate::backoff::Attempts;
use crate::caches::{Caches, Feeds};
use crate::context::Context;
use crate::dask::DaskLinks;
use crate::leadership::Leadership;
use crate::link::{AddressTemplate, Environment, Links};
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::secrets::SecretStates;
use crate::turns::Turns;

/// A request as the server got it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl Asked {
    /// Method and path in one text.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What the server was asked, in order.
pub(crate) type Log = Arc<Mutex<Vec<Asked>>>;

/// An answer: status code and body.
pub(crate) type Answer = (u16, Value);

/// The answer of an API server that says no.
pub(crate) fn failure(code: u16, message: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": "", "code": code,
    });
    (code, body)
}

/// Gives back what was sent, with a version and a UID, as a successful write does.
pub(crate) fn stored(asked: &Asked) -> Answer {
    let mut body = asked.body.clone();
    body["metadata"]["resourceVersion"] = json!("7");
    body["metadata"]["uid"] = json!("u");
    (200, body)
}

/// A context without a cluster: empty caches, a client of the scripted server.
pub(crate) fn context(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Context, Log) {
    let (context, _feeds, log) = context_with_feeds(answer);
    (context, log)
}

/// The same with what fills the caches.
pub(crate) fn context_with_feeds(
    answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> (Context, Feeds, Log) {
    context_with_schedulers(answer, AddressTemplate::default())
}

/// The same with schedulers that listen there.
pub(crate) fn context_with_schedulers(
    answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    addresses: AddressTemplate,
) -> (Context, Feeds, Log) {
    let log = Log::default();
    let client = client(Arc::new(answer), Arc::clone(&log));
    let (feeds, caches) = Caches::new();
    let (caches, metrics) = (Arc::new(caches), Arc::new(Metrics::new()));
    let environment = Arc::new(Environment::new(
        client.clone(),
        Arc::clone(&caches),
        Arc::clone(&metrics),
        Leadership::alone(),
        addresses,
    ));
    let context = Context {
        recorder: Recorder::new(client.clone(), "oxidask-operator".into()),
        client,
        dask: DaskLinks::new(
            Arc::clone(&caches),
            Arc::clone(&environment.signals),
            Arc::clone(&environment.queues),
        ),
        caches,
        secrets: SecretStates::default(),
        settings: Settings {
            runtime_image: "runtime:test".to_owned(),
            image_pull_policy: None,
            ..Settings::default()
        },
        metrics,
        attempts: Attempts::default(),
        refusals: Refusals::default(),
        signals: Arc::clone(&environment.signals),
        queues: Arc::clone(&environment.queues),
        links: Links::new(environment),
        turns: Turns::new(4),
        leadership: Leadership::alone(),
        settle_limit: Duration::from_millis(20),
    };
    (context, feeds, log)
}

fn client(answer: Arc<dyn Fn(&Asked) -> Answer + Send + Sync>, log: Log) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap_or_default();
            let asked = Asked {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            let (code, body) = answer(&asked);
            log.lock().unwrap().push(asked);
            let response = Response::builder()
                .status(code)
                .body(Body::from(body.to_string().into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    Client::new(service, "default")
}
