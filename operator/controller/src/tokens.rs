//! The tokens of a scheduler's HTTP port: made once, kept in a Secret, never changed by the operator.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use oxidask_operator_plan::cluster::secrets::{HTTP_OPERATOR_TOKEN_KEY, HTTP_TOKEN_KEY};
use oxidask_operator_plan::{CertificateRequest, names};
use serde_json::json;

use crate::apply::FIELD_MANAGER;
use crate::cache::ClusterKey;
use crate::certificates::{metadata, refuse_foreign};
use crate::context::Context;
use crate::error::OperatorError;
use crate::secrets;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// Makes the Secret, or the keys that it lacks.
pub(crate) async fn provide(
    context: &Context,
    request: &CertificateRequest,
) -> Result<(), OperatorError> {
    let (namespace, name) = (
        &request.namespace,
        names::http_token_secret(&request.cluster),
    );
    let key = ClusterKey::new(namespace.clone(), request.cluster.clone());
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let what = || format!("Secret `{namespace}/{name}` cannot be created");
    let mut data = std::collections::BTreeMap::new();
    for key in [HTTP_TOKEN_KEY, HTTP_OPERATOR_TOKEN_KEY] {
        data.insert(key.to_owned(), ByteString(token()?.into_bytes()));
    }
    let secret = Secret {
        metadata: metadata(request, &name),
        type_: Some("Opaque".to_owned()),
        data: Some(data.clone()),
        ..Secret::default()
    };
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match context
        .request(what, api.create(&parameters, &secret))
        .await
    {
        Ok(created) => {
            context.metrics.applied("Secret");
            secrets::note(context, &key, &created);
            return Ok(());
        }
        Err(OperatorError::Conflict { .. }) => {}
        Err(error) => return Err(error),
    }
    let found = context.request(what, api.get(&name)).await?;
    refuse_foreign(request, &found)?;
    // A key that is there stays: somebody uses it.
    data.retain(|key, _| secrets::text(&found, key).is_empty());
    if data.is_empty() {
        secrets::note(context, &key, &found);
        return Ok(());
    }
    let patch = json!({
        "metadata": {"resourceVersion": found.metadata.resource_version},
        "data": data,
    });
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(&patch);
    let written = context
        .request(what, api.patch(&name, &parameters, &patch))
        .await?;
    context.metrics.applied("Secret");
    secrets::note(context, &key, &written);
    Ok(())
}

/// A token in the letters of base64 for URLs.
fn token() -> Result<String, OperatorError> {
    let mut bytes = [0_u8; TOKEN_BYTES];
    let provider = rustls::crypto::ring::default_provider();
    let filled = provider.secure_random.fill(&mut bytes);
    filled.map_err(|_| OperatorError::Random)?;
    Ok(base64url(&bytes))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..=chunk.len() {
            let digit = bits >> (18 - 6 * index) & 63;
            let digit = usize::try_from(digit).unwrap_or_default();
            text.push(char::from(DIGITS[digit]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_differ() {
        let (a, b) = (token().unwrap(), token().unwrap());
        assert_eq!(a.len(), 43);
        assert_ne!(a, b);
        assert_eq!(base64url(b"\xfb\xff\xfe"), "-__-");
        assert_eq!(base64url(b"Ma"), "TWE");
    }
}
