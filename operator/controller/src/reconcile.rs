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
use crate::queue::Target;
use crate::turns::in_lane;

/// How long changes that come together are gathered before looking. Fixed, not prolonged by each
/// change, so that an object that changes all the time is not put off for ever.
const GATHER: Duration = Duration::from_millis(20);

/// How often it is looked whether somebody is in a hurry meanwhile.
const GATHER_STEP: Duration = Duration::from_millis(5);

/// Rounds without a pause; a plan that never becomes empty is slowed down after these.
const ROUNDS_MAX: usize = 8;

/// When to look again after that many rounds, or when the caches are late.
const PAUSE: Duration = Duration::from_secs(1);

/// When to look again if a scheduler could not be told something.
const UNTOLD: Duration = Duration::from_secs(2);

/// Everything is looked at now and then, in case a change was missed.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// An error and when to try again.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Failure {
    pub(crate) error: OperatorError,
    pub(crate) wait: Duration,
}

#[derive(Debug, Default)]
struct Done {
    is_changed: bool,
    look_again: Option<Duration>,
    /// What the API server did not take; everything else is done.
    refused: Option<OperatorError>,
}

/// Reconciles an object.
pub(crate) async fn reconcile<K: Operated>(
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, Failure> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let target = K::target(namespace.clone(), name.clone());
    gather(&context, &target, object.distance(&context.caches)).await;
    let kind = target.kind();
    let waited = context.queues.taken(&target);
    context.metrics.waited(kind, waited.map(|it| it.time));
    let started = Instant::now();
    let uid = object.uid().unwrap_or_default();
    let rounds = rounds::<K>(&context, &namespace, &name, &uid);
    let done = in_lane(Arc::from(uid.as_str()), rounds).await;
    let outcome = match &done {
        // Another replica does it.
        Err(error) if error.class() == Class::Deposed => "unchanged",
        Ok(Done {
            refused: Some(error),
            ..
        })
        | Err(error) => error.kind(),
        Ok(Done {
            is_changed: true, ..
        }) => "changed",
        Ok(_) => "unchanged",
    };
    context.metrics.reconciled(kind, outcome, started.elapsed());
    match done {
        Ok(Done {
            refused: Some(error),
            ..
        }) => Err(failed(&context, &*object, &uid, error).await),
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

/// Lets changes that come together come, unless somebody is in a hurry. An object that changes all
/// the time, such as a group whose pods come up, has its turns at some distance.
async fn gather(context: &Context, target: &Target, distance: Duration) {
    let since = context.queues.since_last(target).unwrap_or(distance);
    let mut left = GATHER.max(distance.saturating_sub(since));
    while !left.is_zero() && !context.queues.is_urgent(target) {
        tokio::time::sleep(GATHER_STEP).await;
        left = left.saturating_sub(GATHER_STEP);
    }
}

/// Rounds until a plan is empty; None to look again means: when it changes.
async fn rounds<K: Operated>(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Done, OperatorError> {
    let mut done = Done::default();
    let mut has_only_told = false;
    for _ in 0..ROUNDS_MAX {
        let current = K::cache(&context.caches).get(namespace, name);
        // Another object that took the name has a turn of its own.
        let Some(object) = current.filter(|it| it.meta().uid.as_deref() == Some(uid)) else {
            return Ok(done);
        };
        let mut plan = object.plan(context).await?;
        let look_again = plan
            .wake_after
            .map_or(LOOK_AGAIN, |wake| wake.min(LOOK_AGAIN));
        done.look_again = Some(look_again);
        if done.refused.is_some() {
            // Tried in this turn already; what is left is to say so.
            plan.apply.clear();
        }
        if plan.is_empty() {
            // Nothing is refused if nothing is asked.
            if done.refused.is_none() && context.refusals.set(uid, Vec::new()) {
                continue;
            }
            return Ok(done);
        }
        let is_last = done.refused.is_some();
        let only_tells = plan.is_status_only();
        if only_tells && has_only_told && !is_last {
            // Others change it faster than it can be told.
            done.look_again = Some(look_again.min(object.distance(&context.caches)));
            return Ok(done);
        }
        has_only_told = only_tells;
        let outcome = carry_out(context, &*object, plan).await?;
        done.is_changed |= outcome.is_changed;
        let mut is_news = false;
        if !is_last {
            is_news = context.refusals.set(uid, outcome.refusals);
            done.refused = outcome.refused;
        }
        if outcome.is_untold {
            done.look_again = Some(look_again.min(UNTOLD));
        }
        if !outcome.is_changed && !is_news && done.refused.is_none() {
            // Only events, or what was to be deleted is gone: nothing new to plan from.
            return Ok(done);
        }
        if is_last || !settle(context, outcome.written).await {
            break;
        }
    }
    done.look_again = Some(PAUSE);
    Ok(done)
}

/// Whether the error only says that the object ends, or its namespace, or this process's term:
/// nothing is left to do.
fn is_ending<K: Operated>(
    context: &Context,
    error: &OperatorError,
    namespace: &str,
    name: &str,
) -> bool {
    let object = || K::cache(&context.caches).get(namespace, name);
    match error.class() {
        Class::Ending | Class::Deposed => true,
        // What is gone may also be a child; then the next round makes it again.
        Class::Gone => object().is_none_or(|object| object.meta().deletion_timestamp.is_some()),
        Class::Transient | Class::Conflict | Class::Rejected | Class::Later => false,
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
    let wait = context.attempts.failed(uid, class);
    let name = format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let (code, text) = (error.code(), OneLine(&error).to_string());
    let (kind, retry_seconds) = (K::OBJECT.kind(), wait.as_secs_f32());
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
    let is_repeated = wait > PAUSE;
    if class == Class::Later || (class == Class::Rejected && is_repeated) {
        let note = format!("{code}: {text}; hint: {}", error.hint());
        let reference = object.object_ref(&());
        context
            .publish(reference, EventType::Warning, "ApplyFailed", "Apply", &note)
            .await;
    }
    Failure { error, wait }
}

#[cfg(test)]
mod tests;
