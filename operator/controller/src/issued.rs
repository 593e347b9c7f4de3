//! The `Certificate` objects of cert-manager: read and applied by name, only where a manifest names an
//! issuer.

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use oxidask_operator_plan::APPLIED_HASH;
use oxidask_operator_plan::cluster::IssuedState;
use serde_json::Value;

use crate::apply::FIELD_MANAGER;
use crate::context::Context;
use crate::error::OperatorError;

fn api(context: &Context, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "cert-manager.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "cert-manager.io/v1".to_owned(),
        kind: "Certificate".to_owned(),
        plural: "certificates".to_owned(),
    };
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

/// What cert-manager does about a Secret.
pub(crate) async fn state(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<IssuedState, OperatorError> {
    let what = || format!("Certificate `{namespace}/{name}` cannot be read");
    let certificates = api(context, namespace);
    match context.request(what, certificates.get_opt(name)).await {
        Ok(Some(found)) => Ok(IssuedState {
            is_kind_missing: false,
            mark: found.annotations().get(APPLIED_HASH).cloned(),
            message: message(&found.data),
        }),
        Ok(None) => Ok(IssuedState::default()),
        // An object that is missing is none; this is the answer for a path that is not served.
        Err(OperatorError::Gone { .. } | OperatorError::KindMissing { .. }) => Ok(IssuedState {
            is_kind_missing: true,
            ..IssuedState::default()
        }),
        Err(error) => Err(error),
    }
}

/// Why it is not ready.
fn message(object: &Value) -> Option<String> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let ready = conditions.iter().find(|it| it["type"] == "Ready")?;
    let text = ready.get("message")?.as_str()?;
    (ready["status"] != "True").then(|| text.to_owned())
}

/// Applies one.
pub(crate) async fn apply(
    context: &Context,
    namespace: &str,
    object: &Value,
) -> Result<(), OperatorError> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    let what = || format!("Certificate `{namespace}/{name}` cannot be applied");
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let certificates = api(context, namespace);
    let patch = Patch::Apply(object);
    context
        .request(what, certificates.patch(name, &parameters, &patch))
        .await?;
    context.metrics.applied("Certificate");
    Ok(())
}
