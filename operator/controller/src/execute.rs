//! Carries out a plan, step by step, and waits until the caches show what was written.
//!
//! The order is status, certificates, objects, deletions, events: a final status is there before
//! anything is deleted for it, and an event says what was done, not what was tried. A step that
//! fails ends the round.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use oxidask_operator_plan::{EventKind, Object, ObjectKey, ObjectKind, Plan};
use serde_json::json;

use crate::apply::{apply, delete, known};
use crate::certificates;
use crate::context::{Caches, Context};
use crate::error::OperatorError;
use crate::kinds::Operated;

/// Objects of one plan that are applied or deleted beside each other.
const FAN_OUT: usize = 32;

/// Who owns the fields of statuses.
const STATUS_FIELD_MANAGER: &str = "oxidask-operator-status";

/// How long the caches may take to show what was written.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// What was written, and how to tell that a cache shows it.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    place: Place,
    namespace: String,
    name: String,
    mark: Mark,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Kind(ObjectKind),
    Secret,
    Job,
}

#[derive(Debug, Clone)]
enum Mark {
    /// This version or a later one; none if it could not be read.
    Version(Option<u64>),
    /// The object with this UID is gone or ends.
    Ends(String),
}

impl Written {
    pub(crate) fn put(
        kind: ObjectKind,
        namespace: &str,
        name: &str,
        version: Option<&str>,
    ) -> Self {
        Self::new(Place::Kind(kind), namespace, name, version)
    }

    pub(crate) fn job(namespace: &str, name: &str, version: Option<&str>) -> Self {
        Self::new(Place::Job, namespace, name, version)
    }

    pub(crate) fn secret(secret: &Secret) -> Self {
        let namespace = secret.namespace().unwrap_or_default();
        let version = secret.metadata.resource_version.as_deref();
        Self::new(Place::Secret, &namespace, &secret.name_any(), version)
    }

    pub(crate) fn deleted(object: &ObjectKey) -> Self {
        Self {
            place: Place::Kind(object.kind),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            mark: Mark::Ends(object.uid.clone()),
        }
    }

    fn new(place: Place, namespace: &str, name: &str, version: Option<&str>) -> Self {
        Self {
            place,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            mark: Mark::Version(version.and_then(number)),
        }
    }

    fn is_shown(&self, caches: &Caches) -> bool {
        let (namespace, name) = (&self.namespace, &self.name);
        let version = match self.place {
            Place::Kind(kind) => {
                let known = known(caches, kind, namespace, name);
                if let Mark::Ends(uid) = &self.mark {
                    return known.is_none_or(|it| it.is_ending || it.uid.as_deref() != Some(uid));
                }
                known.map(|it| it.version)
            }
            Place::Secret => caches
                .secrets
                .get(namespace, name)
                .map(|it| it.resource_version()),
            Place::Job => caches
                .jobs
                .get(namespace, name)
                .map(|it| it.resource_version()),
        };
        match (&self.mark, version) {
            (Mark::Version(wanted), Some(shown)) => {
                wanted.is_none() || shown.as_deref().and_then(number) >= *wanted
            }
            _ => false,
        }
    }
}

/// The API server's versions are numbers that grow, so two of one kind can be compared.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// Carries out a plan; everything that was written.
pub(crate) async fn carry_out<K: Operated>(
    context: &Context,
    object: &K,
    plan: Plan<K::Status>,
) -> Result<Vec<Written>, OperatorError> {
    let mut written = Vec::new();
    if let Some(status) = &plan.status {
        written.push(write_status(context, object, status).await?);
    }
    if let Some(request) = &plan.certificates {
        written.extend(certificates::provide(context, request).await?);
    }
    // Pods depend on what comes before them in the plan; equal kinds do not depend on each other.
    for equal in plan.apply.chunk_by(|a, b| a.kind() == b.kind()) {
        written.extend(apply_equal(context, equal).await?);
    }
    let deletions: Vec<_> = plan.delete.iter().map(|it| delete(context, it)).collect();
    let deleted: Vec<_> = stream::iter(deletions)
        .buffer_unordered(FAN_OUT)
        .collect()
        .await;
    for done in deleted {
        written.extend(done?);
    }
    for event in &plan.events {
        let kind = match event.kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        };
        context
            .publish(
                object.object_ref(&()),
                kind,
                event.reason,
                event.action,
                &event.note,
            )
            .await;
    }
    Ok(written)
}

async fn apply_equal(context: &Context, objects: &[Object]) -> Result<Vec<Written>, OperatorError> {
    let applied: Vec<_> = objects
        .iter()
        .map(|object| apply(context, object))
        .collect();
    // All are tried: one object that is refused does not keep back the others.
    let applied: Vec<_> = stream::iter(applied)
        .buffer_unordered(FAN_OUT)
        .collect()
        .await;
    applied.into_iter().collect()
}

async fn write_status<K: Operated>(
    context: &Context,
    object: &K,
    status: &K::Status,
) -> Result<Written, OperatorError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    // Only the version of the answer matters.
    let resource = ApiResource::erase::<K>(&());
    let client = context.client.clone();
    let api = Api::<DynamicObject>::namespaced_with(client, &namespace, &resource);
    let kind = K::kind(&());
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": kind,
        // Not the status of another object that took the name meanwhile.
        "metadata": {"name": name, "namespace": namespace, "uid": object.uid()},
        "status": status,
    });
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
    Ok(K::written(
        &namespace,
        &name,
        patched.metadata.resource_version.as_deref(),
    ))
}

/// Waits until the caches show everything that was written, so that the next round does not plan
/// from yesterday's snapshot. False if that took too long.
pub(crate) async fn settle(context: &Context, written: Vec<Written>) -> bool {
    let mut missing = written;
    let shown = async {
        loop {
            let changed = context.caches.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            missing.retain(|it| !it.is_shown(&context.caches));
            if missing.is_empty() {
                return;
            }
            changed.await;
        }
    };
    if tokio::time::timeout(context.settle_limit, shown)
        .await
        .is_ok()
    {
        return true;
    }
    let names: BTreeSet<&str> = missing.iter().map(|it| it.name.as_str()).collect();
    tracing::debug!(?names, "the caches do not show yet what was written");
    false
}

#[cfg(test)]
mod tests;
