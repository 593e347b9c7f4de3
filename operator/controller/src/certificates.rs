//! Issues the certificates that a plan asks for and keeps them in Secrets.
//!
//! Invariants: an authority that is there is never replaced; one that another process made at the
//! same moment is taken as it is; the authority's key is in one Secret that no pod mounts.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_plan::{CertificateRequest, names};
use oxidask_pki::{
    AUTHORITY_FILE, Authority, CERTIFICATE_FILE, KEY_FILE, LEAF_LIFETIME, Leaf, PkiError,
};

use crate::apply::FIELD_MANAGER;
use crate::context::Context;
use crate::error::OperatorError;
use crate::execute::Written;

/// Makes what is missing; the Secrets that were written.
pub(crate) async fn provide(
    context: &Context,
    request: &CertificateRequest,
) -> Result<Vec<Written>, OperatorError> {
    let mut written = Vec::new();
    let authority = if request.needs_authority {
        create_authority(context, request, &mut written).await?
    } else {
        read_authority(context, request).await?
    };
    for role in &request.roles {
        written.push(provide_leaf(context, request, &authority, *role).await?);
    }
    let roles: Vec<&str> = request.roles.iter().map(|role| role.name()).collect();
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let object = format!("{namespace}/{cluster}");
    tracing::info!(object, roles = roles.join(","), "issued certificates");
    Ok(written)
}

async fn create_authority(
    context: &Context,
    request: &CertificateRequest,
    written: &mut Vec<Written>,
) -> Result<Authority, OperatorError> {
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let authority = Authority::new(namespace, cluster).map_err(|source| failed(request, source))?;
    let leaf = Leaf {
        cert_pem: authority.ca_pem(),
        key_pem: authority.key_pem(),
    };
    let name = names::authority_secret(cluster);
    let secret = secret(request, &name, &authority, &leaf);
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let what = || format!("Secret `{namespace}/{name}` cannot be created");
    match context
        .request(what, secrets.create(&parameters, &secret))
        .await
    {
        Ok(created) => {
            context.metrics.applied("Secret");
            written.push(Written::secret(&created));
            Ok(authority)
        }
        Err(OperatorError::Conflict { .. }) => read_authority(context, request).await,
        Err(error) => Err(error),
    }
}

async fn read_authority(
    context: &Context,
    request: &CertificateRequest,
) -> Result<Authority, OperatorError> {
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let name = names::authority_secret(cluster);
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let what = || format!("Secret `{namespace}/{name}` cannot be read");
    let conflict = |message: &str| OperatorError::Conflict {
        what: what(),
        message: message.to_owned(),
    };
    let found = context.request(what, secrets.get_opt(&name)).await?;
    let secret = found.ok_or_else(|| conflict("it was deleted meanwhile"))?;
    // A Secret of an earlier cluster of this name is about to be collected.
    let owners = secret.owner_references();
    if !owners.iter().any(|owner| owner.uid == request.owner.uid) {
        return Err(conflict("it does not belong to this cluster"));
    }
    let data = secret.data.unwrap_or_default();
    let text = |key: &str| {
        let bytes = data
            .get(key)
            .map(|value| value.0.clone())
            .unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let authority = Authority::from_pem(namespace, cluster, &text(AUTHORITY_FILE), &text(KEY_FILE));
    authority.map_err(|source| OperatorError::Secret {
        namespace: namespace.clone(),
        name: name.clone(),
        problem: "does not hold the authority of this cluster",
        source: Some(source),
    })
}

async fn provide_leaf(
    context: &Context,
    request: &CertificateRequest,
    authority: &Authority,
    role: Role,
) -> Result<Written, OperatorError> {
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let dns_names: Vec<&str> = match role {
        Role::Scheduler => request
            .scheduler_dns_names
            .iter()
            .map(String::as_str)
            .collect(),
        Role::Worker | Role::Client | Role::Operator => Vec::new(),
    };
    let leaf = authority
        .issue_with_names(role, LEAF_LIFETIME, &dns_names)
        .map_err(|source| failed(request, source))?;
    let name = names::certificate_secret(cluster, role);
    let secret = secret(request, &name, authority, &leaf);
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let what = || format!("Secret `{namespace}/{name}` cannot be applied");
    let patch = Patch::Apply(&secret);
    let applied = context
        .request(what, secrets.patch(&name, &parameters, &patch))
        .await?;
    context.metrics.applied("Secret");
    Ok(Written::secret(&applied))
}

fn secret(request: &CertificateRequest, name: &str, authority: &Authority, leaf: &Leaf) -> Secret {
    let data = [
        (AUTHORITY_FILE, authority.ca_pem()),
        (CERTIFICATE_FILE, leaf.cert_pem.clone()),
        (KEY_FILE, leaf.key_pem.clone()),
    ];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(request.namespace.clone()),
            labels: Some(request.labels.clone()),
            owner_references: Some(vec![request.owner.clone()]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    }
}

fn failed(request: &CertificateRequest, source: PkiError) -> OperatorError {
    OperatorError::Certificates {
        namespace: request.namespace.clone(),
        cluster: request.cluster.clone(),
        source,
    }
}
