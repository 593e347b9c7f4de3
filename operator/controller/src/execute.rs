//! Carries out a plan, step by step, and waits until the caches show what was written.
//!
//! The order is metadata, status, certificates, objects, scaling, retirements, ends, deletions,
//! events: a final status is there before anything is deleted for it, and an event says what was
//! done, not what was tried. A step that fails ends the round. What the API server does not take as
//! it is, such as a pod beyond a quota, is remembered instead: its equals and the rest of the plan go
//! on, only the kinds that come after it in `apply` wait.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use oxidask_operator_plan::{EventKind, Object, ObjectKey, ObjectKind, Plan, Refusal};
use serde_json::json;

use crate::apply::{apply, change_metadata, delete, known, scale};
use crate::cache::ClusterKey;
use crate::caches::Caches;
use crate::context::Context;
use crate::error::OperatorError;
use crate::kinds::Operated;
use crate::signals::{News, concerned};
use crate::{certificates, link};

/// Requests of one plan that are tried beside each other.
const FAN_OUT: usize = crate::context::REQUESTS_MAX;

/// Who owns the fields of statuses.
const STATUS_FIELD_MANAGER: &str = "oxidask-operator-status";

/// Time between two looks at whether the caches show what was written.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// How long the caches may take to show what was written.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// What was written, and how to tell that a cache shows it.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    kind: ObjectKind,
    namespace: String,
    name: String,
    mark: Mark,
}

#[derive(Debug, Clone)]
enum Mark {
    /// This version or a later one; none if it could not be read.
    Version(Option<u64>),
    /// The object with this UID is gone or ends.
    Ends(String),
    /// The object with this UID is gone.
    Gone(String),
}

impl Written {
    pub(crate) fn put(
        kind: ObjectKind,
        namespace: &str,
        name: &str,
        version: Option<&str>,
    ) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            mark: Mark::Version(version.and_then(number)),
        }
    }

    pub(crate) fn deleted(object: &ObjectKey) -> Self {
        Self::ended(object, Mark::Ends(object.uid.clone()))
    }

    pub(crate) fn gone(object: &ObjectKey) -> Self {
        Self::ended(object, Mark::Gone(object.uid.clone()))
    }

    fn ended(object: &ObjectKey, mark: Mark) -> Self {
        Self {
            kind: object.kind,
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            mark,
        }
    }

    /// The version that was written.
    fn version(&self) -> Option<String> {
        match &self.mark {
            Mark::Version(version) => version.map(|version| version.to_string()),
            Mark::Ends(_) | Mark::Gone(_) => None,
        }
    }

    fn is_shown(&self, caches: &Caches) -> bool {
        let known = known(caches, self.kind, &self.namespace, &self.name);
        match &self.mark {
            Mark::Ends(uid) => known.is_none_or(|it| it.is_ending || it.uid.as_ref() != Some(uid)),
            Mark::Gone(uid) => known.is_none_or(|it| it.uid.as_ref() != Some(uid)),
            Mark::Version(wanted) => known.is_some_and(|it| {
                wanted.is_none() || it.version.as_deref().and_then(number) >= *wanted
            }),
        }
    }
}

/// The API server's versions are numbers that grow, so two of one kind can be compared.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What the caches do not show yet.
    pub(crate) written: Vec<Written>,
    /// Whether anything was written at all.
    pub(crate) is_changed: bool,
    /// What the API server did not take as it is, and the first of these errors.
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) refused: Option<OperatorError>,
    /// Schedulers that could not be told what they should do.
    pub(crate) is_untold: bool,
}

impl Outcome {
    fn extend(&mut self, written: impl IntoIterator<Item = Written>) {
        self.written.extend(written);
        self.is_changed |= !self.written.is_empty();
    }

    fn refuse(&mut self, object: &Object, error: OperatorError) {
        let message = error.message();
        tracing::debug!(object = object.name(), kind = %object.kind(), message, "refused");
        self.refusals.push(Refusal {
            object: format!("{} {}", object.kind(), object.name()),
            message,
        });
        self.refused.get_or_insert(error);
    }
}

/// Carries out a plan.
pub(crate) async fn carry_out<K: Operated>(
    context: &Context,
    object: &K,
    plan: Plan<K::Status>,
) -> Result<Outcome, OperatorError> {
    let mut outcome = Outcome::default();
    let uid = object.uid().unwrap_or_default();
    // The planned object's own version, which each write to it moves on.
    let mut own_version = object.resource_version();
    for change in &plan.metadata {
        let changed = change_metadata(context, change).await?;
        if change.object.uid == uid {
            own_version = changed.as_ref().and_then(Written::version);
        }
        outcome.extend(changed);
    }
    if let Some(status) = &plan.status {
        let is_scaled = plan.scale.iter().any(|it| it.object.uid == uid);
        // What is scaled below must still be what was seen.
        let seen = own_version.take().filter(|_| is_scaled);
        let written = write_status(context, object, status, seen).await?;
        own_version = written.version();
        outcome.extend([written]);
    }
    if let Some(request) = &plan.certificates {
        certificates::provide(context, request).await?;
        outcome.is_changed = true;
        // No watch shows them: groups wait for the certificates of their cluster.
        let key = ClusterKey::new(&request.namespace, &request.cluster);
        let news = concerned(&News::Everything, &key, &context.caches);
        context.queues.hurry(news).await;
    }
    apply_all(context, &plan.apply, &mut outcome).await?;
    let mut scalings = plan.scale;
    for scaling in scalings.iter_mut().filter(|it| it.object.uid == uid) {
        scaling.resource_version.clone_from(&own_version);
    }
    let scaled = scalings.iter().map(|it| scale(context, it)).collect();
    for done in beside(scaled).await {
        outcome.extend([done?]);
    }
    outcome.is_untold = !link::retire(context, &context.dask.retire(&plan.retire)).await;
    link::ended(context, &plan.ended).await;
    let deleted = plan.delete.iter().map(|it| delete(context, it)).collect();
    for done in beside(deleted).await {
        outcome.extend(done?);
    }
    for event in &plan.events {
        let kind = match event.kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        };
        let reference = object.object_ref(&());
        context
            .publish(reference, kind, event.reason, event.action, &event.note)
            .await;
    }
    Ok(outcome)
}

/// Pods depend on what comes before them in the plan; equal kinds do not depend on each other.
async fn apply_all(
    context: &Context,
    objects: &[Object],
    outcome: &mut Outcome,
) -> Result<(), OperatorError> {
    for equal in objects.chunk_by(|a, b| a.kind() == b.kind()) {
        // All are tried: one object that is refused does not keep back the others.
        let requests = equal.iter().map(|object| tried(context, object)).collect();
        let mut failure = None;
        for (object, applied) in beside(requests).await {
            match applied {
                Ok(written) => outcome.extend([written]),
                Err(error) if error.class().is_refusal() => {
                    context.metrics.refused(object.kind().kind(), error.kind());
                    outcome.refuse(object, error);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if outcome.refused.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

async fn tried<'a>(
    context: &Context,
    object: &'a Object,
) -> (&'a Object, Result<Written, OperatorError>) {
    (object, apply(context, object).await)
}

/// Runs requests beside each other; whose turn it is decide the [`Turns`](crate::turns::Turns).
async fn beside<T>(requests: Vec<impl Future<Output = T>>) -> Vec<T> {
    stream::iter(requests)
        .buffer_unordered(FAN_OUT)
        .collect()
        .await
}

async fn write_status<K: Operated>(
    context: &Context,
    object: &K,
    status: &K::Status,
    seen: Option<String>,
) -> Result<Written, OperatorError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    // Only the version of the answer matters.
    let resource = ApiResource::erase::<K>(&());
    let client = context.client.clone();
    let api = Api::<DynamicObject>::namespaced_with(client, &namespace, &resource);
    let kind = K::kind(&());
    let mut body = json!({
        "apiVersion": K::api_version(&()),
        "kind": kind,
        // Not the status of another object that took the name meanwhile.
        "metadata": {"name": name, "namespace": namespace, "uid": object.uid()},
        "status": status,
    });
    if let Some(version) = seen {
        body["metadata"]["resourceVersion"] = json!(version);
    }
    let parameters = PatchParams::apply(STATUS_FIELD_MANAGER).force();
    let what = || format!("the status of {kind} `{namespace}/{name}` cannot be written");
    let patch = Patch::Apply(&body);
    let patched = context
        .request(what, api.patch_status(&name, &parameters, &patch))
        .await?;
    let summary = K::summary(status);
    if object
        .status()
        .is_none_or(|before| K::summary(before) != summary)
    {
        let object = format!("{namespace}/{name}");
        tracing::info!(object, %kind, status = summary, "status changed");
    }
    let version = patched.metadata.resource_version.as_deref();
    Ok(Written::put(K::OBJECT, &namespace, &name, version))
}

/// Waits until the caches show everything that was written, so that the next round does not plan
/// from yesterday's snapshot. False if that took too long; then what is missing is listed anew.
pub(crate) async fn settle(context: &Context, written: Vec<Written>) -> bool {
    let mut missing = written;
    let shown = async {
        loop {
            let changed = context.caches.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            // From the end, so that what was looked at once is not looked at again at every change.
            while missing
                .last()
                .is_some_and(|it| it.is_shown(&context.caches))
            {
                missing.pop();
            }
            if missing.is_empty() {
                return;
            }
            changed.await;
            // Changes come by the thousand while clusters grow.
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    };
    if tokio::time::timeout(context.settle_limit, shown)
        .await
        .is_ok()
    {
        return true;
    }
    for written in &missing {
        context.caches.doubts.doubt(written.kind.kind());
    }
    let names: BTreeSet<&str> = missing.iter().map(|it| it.name.as_str()).collect();
    tracing::debug!(?names, "the caches do not show yet what was written");
    false
}

#[cfg(test)]
mod tests;
