//! Applies and deletes single objects.
//!
//! Invariants: a deletion names the UID, so it never hits an object that took the name meanwhile;
//! fields of somebody else's object are never taken over: force is used only on objects that the
//! caches show as ours.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy, ValidationDirective,
};
use kube::core::Request;
use kube::{Api, Resource as _, ResourceExt as _};
use oxidask_operator_plan::{Deletion, MetadataChange, Object, ObjectKey, ObjectKind, Scaling};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::{Cache, Cached};
use crate::caches::Caches;
use crate::context::Context;
use crate::error::OperatorError;
use crate::execute::Written;

/// Who owns the fields that we apply.
pub(crate) const FIELD_MANAGER: &str = "oxidask-operator";

/// Who owns the number of workers of an autoscaled group: not who applies the group, so that
/// applying it again does not set the number back.
const SCALE_FIELD_MANAGER: &str = "oxidask-operator-scale";

/// An object as the caches know it: version, UID and whether it is being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) version: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) is_ending: bool,
}

impl Known {
    fn of(object: &impl kube::Resource) -> Self {
        let metadata = object.meta();
        Self {
            version: metadata.resource_version.clone(),
            uid: metadata.uid.clone(),
            is_ending: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// What the caches know of an object.
pub(crate) fn known(
    caches: &Caches,
    kind: ObjectKind,
    namespace: &str,
    name: &str,
) -> Option<Known> {
    match kind {
        ObjectKind::Service => seen(&caches.services, namespace, name),
        ObjectKind::Deployment => seen(&caches.deployments, namespace, name),
        ObjectKind::VolumeClaim => seen(&caches.claims, namespace, name),
        ObjectKind::ConfigMap => seen(&caches.config_maps, namespace, name),
        ObjectKind::Pod => seen(&caches.pods, namespace, name),
        ObjectKind::WorkerGroup => seen(&caches.groups, namespace, name),
        ObjectKind::Cluster => seen(&caches.clusters, namespace, name),
        ObjectKind::Job => seen(&caches.jobs, namespace, name),
        ObjectKind::Autoscaler => seen(&caches.autoscalers, namespace, name),
        ObjectKind::DisruptionBudget => seen(&caches.budgets, namespace, name),
        ObjectKind::NetworkPolicy => seen(&caches.policies, namespace, name),
        ObjectKind::ServiceAccount => seen(&caches.accounts, namespace, name),
    }
}

fn seen<K: Cached>(cache: &Cache<K>, namespace: &str, name: &str) -> Option<Known> {
    cache.get(namespace, name).map(|object| Known::of(&*object))
}

/// Applies an object.
pub(crate) async fn apply(context: &Context, object: &Object) -> Result<Written, OperatorError> {
    let (kind, namespace, name) = (object.kind(), object.namespace(), object.name());
    let before = known(&context.caches, kind, namespace, name);
    let mut parameters = PatchParams::apply(FIELD_MANAGER);
    parameters.force = before.is_some();
    parameters.field_validation = Some(ValidationDirective::Strict);
    let body = object.to_value();
    let what = || format!("{kind} `{namespace}/{name}` cannot be applied");
    let api = api(context, kind, namespace);
    let version = if kind == ObjectKind::Pod && before.is_none() {
        // Pods are made once: the server need not look for what it would merge.
        let created = create(context, namespace, what, &body).await?;
        created.metadata.resource_version
    } else {
        let patch = Patch::Apply(&body);
        let applied = context.request(what, api.patch(name, &parameters, &patch));
        applied.await?.resource_version()
    };
    context.metrics.applied(kind.kind());
    match before {
        Some(before) if before.version == version => {}
        Some(_) => tracing::info!(object = format!("{namespace}/{name}"), %kind, "applied"),
        None => tracing::info!(object = format!("{namespace}/{name}"), %kind, "created"),
    }
    Ok(Written::put(kind, namespace, name, version.as_deref()))
}

/// What is read of the answer: a pod has kilobytes, most of them about who manages which field.
#[derive(Deserialize)]
struct Created {
    metadata: CreatedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedMetadata {
    resource_version: Option<String>,
}

async fn create(
    context: &Context,
    namespace: &str,
    what: impl FnOnce() -> String,
    body: &Value,
) -> Result<Created, OperatorError> {
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let created = async {
        let bytes = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let pods = Request::new(Pod::url_path(&(), Some(namespace)));
        let request = pods.create(&parameters, bytes);
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        // A field that the server does not know is an error, not dropped in silence.
        let uri = format!("{}&fieldValidation=Strict", request.uri());
        if let Ok(uri) = uri.parse() {
            *request.uri_mut() = uri;
        }
        context.client.request(request).await
    };
    context.request(what, created).await
}

/// Deletes an object, in the background. One that is gone already, or is another one now, is fine.
pub(crate) async fn delete(
    context: &Context,
    deletion: &Deletion,
) -> Result<Option<Written>, OperatorError> {
    let object = &deletion.object;
    let (kind, namespace, name) = (object.kind, &object.namespace, &object.name);
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions {
            uid: Some(object.uid.clone()),
            resource_version: deletion.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    let what = || format!("{kind} `{namespace}/{name}` cannot be deleted");
    let api = api(context, kind, namespace);
    match context.request(what, api.delete(name, &parameters)).await {
        Ok(_) => {
            context.metrics.deleted(kind.kind(), deletion.reason.name());
            let reason = deletion.reason.name();
            tracing::info!(object = format!("{namespace}/{name}"), %kind, reason, "deleted");
            Ok(Some(Written::deleted(object)))
        }
        Err(OperatorError::Gone { .. } | OperatorError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes finalizers and annotations, if the object is still the one that was seen.
pub(crate) async fn change_metadata(
    context: &Context,
    change: &MetadataChange,
) -> Result<Option<Written>, OperatorError> {
    let object = &change.object;
    let (kind, namespace, name) = (object.kind, &object.namespace, &object.name);
    let mut metadata = json!({"uid": object.uid});
    if let Some(version) = &change.resource_version {
        metadata["resourceVersion"] = json!(version);
    }
    if let Some(finalizers) = &change.finalizers {
        metadata["finalizers"] = json!(finalizers);
    }
    if !change.annotations.is_empty() {
        metadata["annotations"] = json!(change.annotations);
    }
    let what = || format!("the metadata of {kind} `{namespace}/{name}` cannot be changed");
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let is_released = change.finalizers.as_ref().is_some_and(Vec::is_empty);
    match merge(
        context,
        object,
        what,
        &parameters,
        &json!({"metadata": metadata}),
    )
    .await
    {
        Ok(changed) => {
            let finalizers = change.finalizers.as_ref().map(|names| names.join(","));
            let annotations = change.annotations.len();
            let object_name = format!("{namespace}/{name}");
            tracing::info!(object = object_name, %kind, finalizers, annotations, "metadata changed");
            let version = changed.resource_version();
            // Without its last finalizer an object that ends is gone with this answer.
            if is_released && changed.metadata.deletion_timestamp.is_some() {
                return Ok(Some(Written::gone(object)));
            }
            Ok(Some(Written::put(
                kind,
                namespace,
                name,
                version.as_deref(),
            )))
        }
        Err(OperatorError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the number of workers of a group, if it is still the one that was seen.
pub(crate) async fn scale(context: &Context, scaling: &Scaling) -> Result<Written, OperatorError> {
    let object = &scaling.object;
    let (kind, namespace, name) = (object.kind, &object.namespace, &object.name);
    let mut metadata = json!({"uid": object.uid});
    if let Some(version) = &scaling.resource_version {
        metadata["resourceVersion"] = json!(version);
    }
    let body = json!({
        "metadata": metadata,
        "spec": {"worker": {"replicas": scaling.to}},
    });
    let parameters = PatchParams {
        field_manager: Some(SCALE_FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let what = || format!("{kind} `{namespace}/{name}` cannot be scaled");
    let scaled = merge(context, object, what, &parameters, &body).await?;
    context.metrics.scaled(scaling.from, scaling.to);
    tracing::info!(
        object = format!("{namespace}/{name}"),
        %kind,
        from = scaling.from,
        to = scaling.to,
        reason = scaling.reason,
        "scaled"
    );
    let version = scaled.resource_version();
    Ok(Written::put(kind, namespace, name, version.as_deref()))
}

async fn merge(
    context: &Context,
    object: &ObjectKey,
    what: impl FnOnce() -> String,
    parameters: &PatchParams,
    body: &Value,
) -> Result<DynamicObject, OperatorError> {
    let api = api(context, object.kind, &object.namespace);
    let patch = Patch::Merge(body);
    context
        .request(what, api.patch(&object.name, parameters, &patch))
        .await
}

fn api(context: &Context, kind: ObjectKind, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = (kind.group(), kind.version());
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: match group {
            "" => version.to_owned(),
            _ => format!("{group}/{version}"),
        },
        kind: kind.kind().to_owned(),
        plural: kind.plural().to_owned(),
    };
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}
