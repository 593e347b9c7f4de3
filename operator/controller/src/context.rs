//! What a reconciliation works with.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder};
use oxidask_operator_plan::Settings;

use crate::api_error::request_error;
use crate::backoff::Attempts;
use crate::caches::Caches;
use crate::dask::DaskLinks;
use crate::error::{OneLine, OperatorError};
use crate::leadership::Leadership;
use crate::link::Links;
use crate::metrics::Metrics;
use crate::queue::Queues;
use crate::refusals::Refusals;
use crate::secrets::SecretStates;
use crate::signals::Signals;
use crate::turns::Turns;

/// Requests under way at the same time, over all objects; watches apart.
pub(crate) const REQUESTS_MAX: usize = 64;

/// How long one request may take, with the client's own repetitions.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Events are extras: nothing waits for them for long.
const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of an event's note that the API server takes.
const NOTE_BYTES_MAX: usize = 1024;

/// Everything that a reconciliation works with, one for each watched scope.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) caches: Arc<Caches>,
    pub(crate) secrets: SecretStates,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recorder: Recorder,
    pub(crate) attempts: Attempts,
    pub(crate) refusals: Refusals,
    pub(crate) signals: Arc<Signals>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) links: Links,
    pub(crate) dask: DaskLinks,
    /// Shared by all scopes.
    pub(crate) turns: Arc<Turns>,
    pub(crate) leadership: Leadership,
    /// How long the caches may take to show what was written.
    pub(crate) settle_limit: Duration,
}

impl Context {
    /// Sends a request when it is its turn, and says what was tried if it fails. Sends nothing, and
    /// drops what is under way, when this process does not lead.
    pub(crate) async fn request<T>(
        &self,
        what: impl FnOnce() -> String,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, OperatorError> {
        let lost = self.leadership.lost();
        let _turn = self.turns.wait().await;
        if !self.leadership.holds() {
            return Err(OperatorError::NotLeading { what: what() });
        }
        let answered = tokio::select! {
            biased;
            () = lost => return Err(OperatorError::NotLeading { what: what() }),
            answered = tokio::time::timeout(REQUEST_LIMIT, request) => answered,
        };
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(request_error(what(), error)),
            Err(_) => Err(OperatorError::Timeout {
                what: what(),
                seconds: REQUEST_LIMIT.as_secs(),
            }),
        }
    }

    /// Publishes an event about an object. A failure is only logged.
    pub(crate) async fn publish(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(cut(note, NOTE_BYTES_MAX).to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        let published = self.request(
            || format!("the event `{reason}` cannot be published"),
            self.recorder.publish(&event, &object),
        );
        match tokio::time::timeout(EVENT_LIMIT, published).await {
            Ok(Ok(())) => self.metrics.event(),
            Ok(Err(error)) => {
                tracing::debug!(error = %OneLine(&error), "an event was not published");
            }
            Err(_) => tracing::debug!(reason, "an event was not published in time"),
        }
    }
}

/// The start of a text, ending between two characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}
