//! Applies and deletes single objects.
//!
//! Invariants: a deletion names the UID, so it never hits an object that took the name meanwhile;
//! fields of somebody else's object are never taken over: force is used only on objects that the
//! caches show as ours.

use kube::Api;
use kube::ResourceExt as _;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use oxidask_operator_plan::{Deletion, Object, ObjectKind};

use crate::context::{Caches, Context};
use crate::error::OperatorError;
use crate::execute::Written;

/// Who owns the fields that we apply.
pub(crate) const FIELD_MANAGER: &str = "oxidask-operator";

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
        ObjectKind::Service => caches
            .services
            .get(namespace, name)
            .map(|it| Known::of(&*it)),
        ObjectKind::Deployment => caches
            .deployments
            .get(namespace, name)
            .map(|it| Known::of(&*it)),
        ObjectKind::ConfigMap => caches
            .config_maps
            .get(namespace, name)
            .map(|it| Known::of(&*it)),
        ObjectKind::Pod => caches.pods.get(namespace, name).map(|it| Known::of(&*it)),
        ObjectKind::WorkerGroup => caches.groups.get(namespace, name).map(|it| Known::of(&*it)),
        ObjectKind::Cluster => caches
            .clusters
            .get(namespace, name)
            .map(|it| Known::of(&*it)),
    }
}

/// Applies an object.
pub(crate) async fn apply(context: &Context, object: &Object) -> Result<Written, OperatorError> {
    let (kind, namespace, name) = (object.kind(), object.namespace(), object.name());
    let before = known(&context.caches, kind, namespace, name);
    let mut parameters = PatchParams::apply(FIELD_MANAGER);
    parameters.force = before.is_some();
    let body = object.to_value();
    let what = || format!("{kind} `{namespace}/{name}` cannot be applied");
    let api = api(context, kind, namespace);
    let patch = Patch::Apply(&body);
    let applied = context
        .request(what, api.patch(name, &parameters, &patch))
        .await?;
    context.metrics.applied(kind.kind());
    let version = applied.resource_version();
    match before {
        Some(before) if before.version == version => {}
        Some(_) => tracing::info!(object = format!("{namespace}/{name}"), %kind, "applied"),
        None => tracing::info!(object = format!("{namespace}/{name}"), %kind, "created"),
    }
    Ok(Written::put(kind, namespace, name, version.as_deref()))
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
            resource_version: None,
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
