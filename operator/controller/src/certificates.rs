//! Carries out what a plan asks for about certificates: one step, kept in Secrets.
//!
//! Owns what stands in the authority's Secret: `tls.crt` and `tls.key` are the newest authority,
//! `previous.crt` and `previous.key` the one that it replaces, `ca.crt` what is trusted now, and
//! annotations tell the phase and what the operator put there.
//!
//! Invariants: an authority is changed only in the version that the plan was made from; one that
//! another process made at the same moment is taken as it is; the authority's key is in one Secret
//! that no pod mounts; a Secret of somebody else is left alone.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::RotationPhase;
use oxidask_operator_plan::cluster::Origin;
use oxidask_operator_plan::cluster::secrets::{
    AUTHORITY_DIGEST, AUTHORITY_ORIGIN, ROTATED_FOR, ROTATION_PHASE, WRITTEN_AT,
};
use oxidask_operator_plan::{AuthorityStep, CertificateRequest, names};
use oxidask_pki::{
    AUTHORITY_FILE, Authority, CERTIFICATE_FILE, KEY_FILE, PkiError, certificate_digest,
    joined_bundle, without_certificate,
};
use serde_json::json;

use crate::apply::FIELD_MANAGER;
use crate::cache::ClusterKey;
use crate::context::Context;
use crate::error::OperatorError;
use crate::secrets::{self, PREVIOUS_FILE, PREVIOUS_KEY_FILE, text};
use crate::{issued, tokens};

/// The type of a role's Secret: cert-manager uses the same, and a type can never be changed.
const TLS_TYPE: &str = "kubernetes.io/tls";

/// An annotation of cert-manager's Secrets.
const CERT_MANAGER_NAME: &str = "cert-manager.io/certificate-name";

/// What changes in the authority's Secret: `None` removes a key.
#[derive(Debug, Default)]
struct Change {
    data: BTreeMap<&'static str, Option<String>>,
    annotations: BTreeMap<&'static str, Option<String>>,
}

impl Change {
    fn phase(mut self, phase: RotationPhase) -> Self {
        let word = phase.to_string();
        self.annotations.insert(ROTATION_PHASE, Some(word));
        self
    }

    fn put(mut self, key: &'static str, value: impl Into<Option<String>>) -> Self {
        self.data.insert(key, value.into());
        self
    }

    fn note(mut self, key: &'static str, value: impl Into<Option<String>>) -> Self {
        self.annotations.insert(key, value.into());
        self
    }
}

/// Makes what is missing and changes what is to be changed.
pub(crate) async fn provide(
    context: &Context,
    request: &CertificateRequest,
) -> Result<(), OperatorError> {
    let done = carry_out(context, request).await;
    if matches!(&done, Err(OperatorError::Conflict { .. })) {
        // What was known is not so any more.
        context.secrets.forget(&key(request));
    }
    done
}

async fn carry_out(context: &Context, request: &CertificateRequest) -> Result<(), OperatorError> {
    if request.needs_http_token {
        tokens::provide(context, request).await?;
    }
    if !request.issued.is_empty() {
        ask_issuer(context, request).await?;
    }
    let stepped = match request.authority {
        Some(step) => Some(step_to(context, request, step).await?),
        None => None,
    };
    if request.roles.is_empty() && request.bundles.is_empty() {
        return Ok(());
    }
    let kept = match stepped {
        Some(kept) => kept,
        None => read_authority(context, request).await?,
    };
    hand_out(context, request, &kept).await
}

/// Makes or changes the authority.
async fn step_to(
    context: &Context,
    request: &CertificateRequest,
    step: AuthorityStep,
) -> Result<Secret, OperatorError> {
    let secret = match step {
        AuthorityStep::Create => create_authority(context, request).await?,
        step => change_authority(context, request, step).await?,
    };
    let object = format!("{}/{}", request.namespace, request.cluster);
    tracing::info!(object, ?step, "changed the authority");
    Ok(secret)
}

/// Asks cert-manager for what it issues.
async fn ask_issuer(context: &Context, request: &CertificateRequest) -> Result<(), OperatorError> {
    for certificate in &request.issued {
        issued::apply(context, &request.namespace, certificate).await?;
    }
    // Its marks are new.
    context.secrets.forget(&key(request));
    let object = format!("{}/{}", request.namespace, request.cluster);
    tracing::info!(object, "asked cert-manager for certificates");
    Ok(())
}

/// Writes the Secrets of the roles.
async fn hand_out(
    context: &Context,
    request: &CertificateRequest,
    kept: &Secret,
) -> Result<(), OperatorError> {
    let signer = &signer(request, kept)?;
    let leaves = request.roles.iter();
    try_join_all(leaves.map(|role| provide_leaf(context, request, kept, signer, *role))).await?;
    let bundles = request.bundles.iter();
    try_join_all(bundles.map(|role| provide_bundle(context, request, kept, *role))).await?;
    let names = |roles: &[Role]| -> String {
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        names.join(",")
    };
    let object = format!("{}/{}", request.namespace, request.cluster);
    let (roles, bundles) = (names(&request.roles), names(&request.bundles));
    tracing::info!(object, roles, bundles, "issued certificates");
    Ok(())
}

/// A new authority: the user's, or a generated one.
async fn new_authority(
    context: &Context,
    request: &CertificateRequest,
) -> Result<(String, String, Origin), OperatorError> {
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let Some(source) = &request.authority_source else {
        let authority =
            Authority::new(namespace, cluster).map_err(|source| failed(request, source))?;
        return Ok((authority.ca_pem(), authority.key_pem(), Origin::Operator));
    };
    let what = || format!("Secret `{namespace}/{source}` cannot be read");
    let found = context
        .request(what, api(context, request).get(source))
        .await?;
    let (certificate, key) = (text(&found, CERTIFICATE_FILE), text(&found, KEY_FILE));
    let authority = Authority::from_user(namespace, cluster, &certificate, &key);
    let authority = authority.map_err(|error| OperatorError::Secret {
        namespace: namespace.clone(),
        name: source.clone(),
        problem: "does not hold an authority",
        source: Some(error),
    })?;
    Ok((authority.ca_pem(), key, Origin::Secret))
}

async fn create_authority(
    context: &Context,
    request: &CertificateRequest,
) -> Result<Secret, OperatorError> {
    let (namespace, name) = (
        &request.namespace,
        names::authority_secret(&request.cluster),
    );
    let (certificate, private_key, origin) = new_authority(context, request).await?;
    // With roles to issue for there is nothing yet that anybody trusts.
    let trusted = if request.roles.is_empty() {
        trusted_now(context, request).await?
    } else {
        String::new()
    };
    let change = beside(&certificate, &trusted)
        .put(CERTIFICATE_FILE, certificate)
        .put(KEY_FILE, private_key)
        .note(AUTHORITY_ORIGIN, origin.name().to_owned())
        .note(ROTATED_FOR, request.rotated_for.clone());
    let present = |pairs: BTreeMap<&'static str, Option<String>>| -> Vec<(String, String)> {
        let pairs = pairs.into_iter();
        let pairs = pairs.filter_map(|(key, value)| Some((key.to_owned(), value?)));
        pairs.collect()
    };
    let data = present(change.data).into_iter();
    let data = data.map(|(key, text)| (key, ByteString(text.into_bytes())));
    let secret = Secret {
        metadata: ObjectMeta {
            annotations: Some(present(change.annotations).into_iter().collect()),
            ..metadata(request, &name)
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    };
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let what = || format!("Secret `{namespace}/{name}` cannot be created");
    let created = api(context, request);
    match context
        .request(what, created.create(&parameters, &secret))
        .await
    {
        Ok(created) => {
            context.metrics.applied("Secret");
            secrets::note(context, &key(request), &created);
            Ok(created)
        }
        Err(OperatorError::Conflict { .. }) => {
            let found = read_authority(context, request).await?;
            let is_whole = [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE]
                .iter()
                .all(|key| !text(&found, key).is_empty());
            if is_whole {
                return Ok(found);
            }
            // Somebody emptied it.
            let data = secret.data.unwrap_or_default();
            let annotations = secret.metadata.annotations.unwrap_or_default();
            patch_secret(context, request, &found, &json!(data), &json!(annotations)).await
        }
        Err(error) => Err(error),
    }
}

/// The first phase, or none if nothing but this authority was trusted before.
fn beside(certificate: &str, trusted: &str) -> Change {
    let digest = certificate_digest(certificate);
    let others = without_certificate(trusted, digest.as_deref().unwrap_or_default());
    let phase = if others.is_empty() {
        RotationPhase::Stable
    } else {
        RotationPhase::Distribute
    };
    Change::default()
        .phase(phase)
        .put(AUTHORITY_FILE, joined_bundle(&[certificate, &others]))
        .put(
            PREVIOUS_FILE,
            Some(others).filter(|others| !others.is_empty()),
        )
        .put(PREVIOUS_KEY_FILE, None)
        .note(AUTHORITY_DIGEST, digest)
}

async fn change_authority(
    context: &Context,
    request: &CertificateRequest,
    step: AuthorityStep,
) -> Result<Secret, OperatorError> {
    let found = read_authority(context, request).await?;
    let newest = text(&found, CERTIFICATE_FILE);
    let change = match step {
        AuthorityStep::Create => Change::default(),
        AuthorityStep::Adopt => {
            let trusted = trusted_now(context, request).await?;
            let change = beside(&newest, &trusted);
            // One of an earlier version of the operator has no annotations at all.
            let is_known = found.annotations().contains_key(AUTHORITY_DIGEST);
            let is_alone = !change.data.get(PREVIOUS_FILE).is_some_and(Option::is_some);
            let origin = if is_alone && !is_known {
                Origin::Operator
            } else {
                Origin::Hand
            };
            change
                .note(AUTHORITY_ORIGIN, origin.name().to_owned())
                .note(ROTATED_FOR, request.rotated_for.clone())
        }
        AuthorityStep::Begin => {
            let (certificate, private_key, origin) = new_authority(context, request).await?;
            let trusted = text(&found, AUTHORITY_FILE);
            beside(&certificate, &trusted)
                .put(PREVIOUS_FILE, newest)
                .put(PREVIOUS_KEY_FILE, text(&found, KEY_FILE))
                .put(CERTIFICATE_FILE, certificate)
                .put(KEY_FILE, private_key)
                .note(AUTHORITY_ORIGIN, origin.name().to_owned())
                .note(ROTATED_FOR, request.rotated_for.clone())
        }
        AuthorityStep::Issue => Change::default()
            .phase(RotationPhase::Issue)
            .put(PREVIOUS_KEY_FILE, None),
        AuthorityStep::Retire => Change::default()
            .phase(RotationPhase::Retire)
            .put(AUTHORITY_FILE, joined_bundle(&[&newest]))
            .put(PREVIOUS_FILE, None)
            .put(PREVIOUS_KEY_FILE, None),
        AuthorityStep::Finish => Change::default().phase(RotationPhase::Stable),
    };
    let data = change.data.into_iter();
    let data: BTreeMap<&str, Option<ByteString>> = data
        .map(|(key, text)| (key, text.map(|text| ByteString(text.into_bytes()))))
        .collect();
    patch_secret(
        context,
        request,
        &found,
        &json!(data),
        &json!(change.annotations),
    )
    .await
}

/// Changes a Secret in the version that was read, and in no other.
async fn patch_secret(
    context: &Context,
    request: &CertificateRequest,
    found: &Secret,
    data: &serde_json::Value,
    annotations: &serde_json::Value,
) -> Result<Secret, OperatorError> {
    let name = found.name_any();
    let patch = json!({
        "metadata": {
            "resourceVersion": found.metadata.resource_version,
            "annotations": annotations,
        },
        "data": data,
    });
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let what = || format!("Secret `{}/{name}` cannot be changed", request.namespace);
    let patch = Patch::Merge(&patch);
    let written = context
        .request(
            what,
            api(context, request).patch(&name, &parameters, &patch),
        )
        .await?;
    context.metrics.applied("Secret");
    secrets::note(context, &key(request), &written);
    Ok(written)
}

/// Everything that the roles' Secrets trust.
async fn trusted_now(
    context: &Context,
    request: &CertificateRequest,
) -> Result<String, OperatorError> {
    let secrets = api(context, request);
    let secrets = &secrets;
    let found = try_join_all(Role::ALL.map(|role| async move {
        let name = names::certificate_secret(&request.cluster, role);
        let what = || format!("Secret `{}/{name}` cannot be read", request.namespace);
        context.request(what, secrets.get_opt(&name)).await
    }));
    let found = found.await?;
    let found = found.iter().flatten().filter(|it| is_owned(request, it));
    let bundles: Vec<String> = found.map(|secret| text(secret, AUTHORITY_FILE)).collect();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    Ok(joined_bundle(&bundles))
}

async fn read_authority(
    context: &Context,
    request: &CertificateRequest,
) -> Result<Secret, OperatorError> {
    let (namespace, name) = (
        &request.namespace,
        names::authority_secret(&request.cluster),
    );
    let what = || format!("Secret `{namespace}/{name}` cannot be read");
    let conflict = |message: &str| OperatorError::Conflict {
        what: what(),
        message: message.to_owned(),
    };
    let found = context
        .request(what, api(context, request).get_opt(&name))
        .await?;
    let secret = found.ok_or_else(|| conflict("it was deleted meanwhile"))?;
    // A Secret of an earlier cluster of this name is about to be collected.
    if !is_owned(request, &secret) {
        return Err(conflict("it does not belong to this cluster"));
    }
    let seen = request.authority_version.as_ref();
    if seen.is_some_and(|seen| secret.metadata.resource_version.as_ref() != Some(seen)) {
        return Err(conflict("it was changed meanwhile"));
    }
    Ok(secret)
}

/// The authority that issues in this phase. While everybody learns to trust a new one, that is the
/// old one, as long as its key is there.
fn signer(request: &CertificateRequest, kept: &Secret) -> Result<Authority, OperatorError> {
    let annotation = kept.annotations().get(ROTATION_PHASE).map(String::as_str);
    let is_distributing = secrets::phase(annotation) == RotationPhase::Distribute;
    let previous_key = text(kept, PREVIOUS_KEY_FILE);
    let (certificate, private_key) = if is_distributing && !previous_key.is_empty() {
        (text(kept, PREVIOUS_FILE), previous_key)
    } else {
        (text(kept, CERTIFICATE_FILE), text(kept, KEY_FILE))
    };
    let (namespace, cluster) = (&request.namespace, &request.cluster);
    let authority = Authority::from_user(namespace, cluster, &certificate, &private_key);
    authority.map_err(|source| OperatorError::Secret {
        namespace: namespace.clone(),
        name: names::authority_secret(cluster),
        problem: "does not hold the authority of this cluster",
        source: Some(source),
    })
}

async fn provide_leaf(
    context: &Context,
    request: &CertificateRequest,
    kept: &Secret,
    signer: &Authority,
    role: Role,
) -> Result<(), OperatorError> {
    let (namespace, name) = (
        &request.namespace,
        names::certificate_secret(&request.cluster, role),
    );
    let secrets = api(context, request);
    let what = || format!("Secret `{namespace}/{name}` cannot be read");
    let found = context.request(what, secrets.get_opt(&name)).await?;
    if let Some(found) = &found {
        refuse_foreign(request, found)?;
    }
    let dns_names: Vec<&str> = match role {
        Role::Scheduler => request
            .scheduler_dns_names
            .iter()
            .map(String::as_str)
            .collect(),
        Role::Worker | Role::Client | Role::Operator => Vec::new(),
    };
    let leaf = signer
        .issue_with_names(role, request.lifetime, &dns_names)
        .map_err(|source| failed(request, source))?;
    let data = [
        (AUTHORITY_FILE, text(kept, AUTHORITY_FILE)),
        (CERTIFICATE_FILE, leaf.cert_pem),
        (KEY_FILE, leaf.key_pem),
    ];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    let written_at = [(WRITTEN_AT.to_owned(), Timestamp::now().to_string())];
    let secret = Secret {
        metadata: ObjectMeta {
            annotations: Some(written_at.into()),
            ..metadata(request, &name)
        },
        type_: Some(
            found
                .and_then(|found| found.type_)
                .unwrap_or_else(|| TLS_TYPE.to_owned()),
        ),
        data: Some(data.into()),
        ..Secret::default()
    };
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let what = || format!("Secret `{namespace}/{name}` cannot be applied");
    let patch = Patch::Apply(&secret);
    let applied = context
        .request(what, secrets.patch(&name, &parameters, &patch))
        .await?;
    context.metrics.applied("Secret");
    secrets::note(context, &key(request), &applied);
    Ok(())
}

/// Only what is trusted changes; certificate and key stay as they are.
async fn provide_bundle(
    context: &Context,
    request: &CertificateRequest,
    kept: &Secret,
    role: Role,
) -> Result<(), OperatorError> {
    let name = names::certificate_secret(&request.cluster, role);
    let what = || format!("Secret `{}/{name}` cannot be read", request.namespace);
    let found = context
        .request(what, api(context, request).get(&name))
        .await?;
    refuse_foreign(request, &found)?;
    let bundle = ByteString(text(kept, AUTHORITY_FILE).into_bytes());
    let data = json!({AUTHORITY_FILE: bundle});
    let annotations = json!({WRITTEN_AT: Timestamp::now().to_string()});
    patch_secret(context, request, &found, &data, &annotations).await?;
    Ok(())
}

fn key(request: &CertificateRequest) -> ClusterKey {
    ClusterKey::new(request.namespace.clone(), request.cluster.clone())
}

fn api(context: &Context, request: &CertificateRequest) -> Api<Secret> {
    Api::namespaced(context.client.clone(), &request.namespace)
}

/// The metadata of a Secret of the cluster.
pub(crate) fn metadata(request: &CertificateRequest, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(request.namespace.clone()),
        labels: Some(request.labels.clone()),
        owner_references: Some(vec![request.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn is_owned(request: &CertificateRequest, secret: &Secret) -> bool {
    let owners = secret.owner_references();
    owners.iter().any(|owner| owner.uid == request.owner.uid)
}

/// A Secret of our name that somebody else made is left alone. One of an earlier cluster is about to
/// be collected; one of cert-manager, which the manifest does not ask any more, is taken over.
pub(crate) fn refuse_foreign(
    request: &CertificateRequest,
    secret: &Secret,
) -> Result<(), OperatorError> {
    if is_owned(request, secret) || secret.annotations().contains_key(CERT_MANAGER_NAME) {
        return Ok(());
    }
    let (namespace, name) = (request.namespace.clone(), secret.name_any());
    if secret.owner_references().is_empty() {
        return Err(OperatorError::Secret {
            namespace,
            name,
            problem: "belongs to somebody else",
            source: None,
        });
    }
    Err(OperatorError::Conflict {
        what: format!("Secret `{namespace}/{name}` cannot be written"),
        message: "it does not belong to this cluster".to_owned(),
    })
}

fn failed(request: &CertificateRequest, source: PkiError) -> OperatorError {
    OperatorError::Certificates {
        namespace: request.namespace.clone(),
        cluster: request.cluster.clone(),
        source,
    }
}
