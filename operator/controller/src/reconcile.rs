//! Reconciles one object: observe, plan, carry out, until there is nothing left to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use oxidask_diagnostic::Coded as _;

use crate::context::Context;
use crate::error::{Class, OneLine, OperatorError};
use crate::execute::{carry_out, settle};
use crate::kinds::Operated;

/// How long changes that come together are gathered before looking. Fixed, not prolonged by each
/// change, so that an object that changes all the time is not put off for ever.
const GATHER: Duration = Duration::from_millis(20);

/// Rounds without a pause; a plan that never becomes empty is slowed down after these.
const ROUNDS_MAX: usize = 8;

/// When to look again after that many rounds, or when the caches are late.
const PAUSE: Duration = Duration::from_secs(1);

/// Everything is looked at now and then, in case a change was missed.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// An error and when to try again.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Failure {
    pub(crate) error: OperatorError,
    pub(crate) wait: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Done {
    is_changed: bool,
    look_again: Option<Duration>,
}

/// Reconciles an object.
pub(crate) async fn reconcile<K: Operated>(
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    tokio::time::sleep(GATHER).await;
    let started = Instant::now();
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let done = rounds::<K>(&context, &namespace, &name).await;
    let uid = object.uid().unwrap_or_default();
    let outcome = match &done {
        Ok(Done {
            is_changed: true, ..
        }) => "changed",
        Ok(_) => "unchanged",
        Err(error) => error.kind(),
    };
    context
        .metrics
        .reconciled(K::KIND, outcome, started.elapsed());
    match done {
        Ok(done) => {
            context.attempts.forget(&uid);
            Ok(done
                .look_again
                .map_or_else(Action::await_change, Action::requeue))
        }
        Err(error) if is_ending::<K>(&context, &error, &namespace, &name) => {
            context.attempts.forget(&uid);
            Ok(Action::await_change())
        }
        Err(error) => Err(failed(&context, &*object, &uid, error).await),
    }
}

/// Rounds until a plan is empty; None to look again means: when it changes.
async fn rounds<K: Operated>(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Done, OperatorError> {
    let mut is_changed = false;
    for _ in 0..ROUNDS_MAX {
        let current = K::cache(&context.caches).get(namespace, name);
        let Some(object) = current.filter(|it| it.meta().deletion_timestamp.is_none()) else {
            return Ok(Done {
                is_changed,
                look_again: None,
            });
        };
        let plan = object.plan(context).await?;
        let look_again = plan
            .wake_after
            .map_or(LOOK_AGAIN, |wake| wake.min(LOOK_AGAIN));
        if plan.is_empty() {
            return Ok(Done {
                is_changed,
                look_again: Some(look_again),
            });
        }
        is_changed = true;
        let written = carry_out(context, &*object, plan).await?;
        if written.is_empty() {
            // Only events, or what was to be deleted is gone: nothing new to plan from.
            return Ok(Done {
                is_changed,
                look_again: Some(look_again),
            });
        }
        if !settle(context, written).await {
            break;
        }
    }
    Ok(Done {
        is_changed,
        look_again: Some(PAUSE),
    })
}

/// Whether the error only says that the object ends, or its namespace: nothing is left to do.
fn is_ending<K: Operated>(
    context: &Context,
    error: &OperatorError,
    namespace: &str,
    name: &str,
) -> bool {
    let object = || K::cache(&context.caches).get(namespace, name);
    match error.class() {
        Class::Ending => true,
        // What is gone may also be a child; then the next round makes it again.
        Class::Gone => object().is_none_or(|object| object.meta().deletion_timestamp.is_some()),
        Class::Transient | Class::Conflict | Class::Rejected => false,
    }
}

async fn failed<K: Operated>(
    context: &Context,
    object: &K,
    uid: &str,
    error: OperatorError,
) -> Failure {
    let class = error.class();
    // A cache that is late by a moment is behind most of these.
    let is_late = matches!(class, Class::Conflict | Class::Gone);
    let wait = context.attempts.failed(uid, is_late);
    let name = format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let (code, text, kind) = (error.code(), OneLine(&error).to_string(), K::KIND);
    let retry_seconds = wait.as_secs_f32();
    match class {
        // Expected now and then; if it lasts, waits grow and it is said.
        _ if is_late && wait < PAUSE => {
            tracing::debug!(object = name, kind, error = text, "looking again");
        }
        _ => {
            let hint = error.hint();
            tracing::warn!(object = name, kind, %code, error = text, %hint, retry_seconds, "failed");
        }
    }
    // The first time it may be an old object of the same name that is just being collected.
    if class == Class::Rejected && wait > PAUSE {
        let note = format!("{code}: {text}; hint: {}", error.hint());
        let reference = object.object_ref(&());
        context
            .publish(reference, EventType::Warning, "ApplyFailed", "Apply", &note)
            .await;
    }
    Failure { error, wait }
}
