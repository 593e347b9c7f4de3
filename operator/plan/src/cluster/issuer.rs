//! Certificates from cert-manager: one `Certificate` object for each role.
//!
//! Owns what is asked for. cert-manager writes and renews the Secrets; the operator looks whether
//! they are whole. Nothing of this happens unless the manifest names an issuer.

use oxidask_diagnostic::Code;
use oxidask_identity::{Identity, Role};
use oxidask_operator_api::Issuer;
use oxidask_operator_api::kubernetes::DaskCluster;
use serde_json::{Value, json};

use super::Observed;
use super::certificates::{Certificates, until};
use crate::build::labels::APPLIED_HASH;
use crate::{Timestamp, hash, names};

/// How soon to look again whether cert-manager has done its part; its objects are not watched.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Applies what is missing, and says what cert-manager says.
pub(super) fn plan(
    cluster: &DaskCluster,
    issuer: &Issuer,
    observed: &Observed,
    now: Timestamp,
    certificates: &mut Certificates,
) {
    let name = certificates.request.cluster.clone();
    let name = name.as_str();
    certificates.say(
        true,
        "Issued",
        "every role has its certificate from cert-manager",
    );
    for role in Role::ALL {
        let secret = names::certificate_secret(name, role);
        let state = observed.secrets.get(&secret);
        let issued = state.and_then(|state| state.issued.as_ref());
        if issued.is_some_and(|issued| issued.is_kind_missing) {
            let message = "`spec.tls.issuerRef` asks cert-manager for certificates, but the API \
                           server does not know the kind `Certificate` of `cert-manager.io/v1`";
            certificates.refuse(Code::IssuerMissing, message);
            certificates.wake(LOOK_AGAIN);
            return;
        }
        let object = object(cluster, issuer, role, certificates);
        let mark = hash::mark_of(&object);
        if issued.and_then(|issued| issued.mark.as_ref()) != Some(&mark) {
            certificates.request.issued.push(marked(object, &mark));
        }
        let end = state
            .filter(|state| state.has_all_keys)
            .and_then(|state| state.not_after);
        match end.map(|end| until(now, end)) {
            Some(left) if !left.is_zero() => {}
            _ => {
                let words = issued.and_then(|issued| issued.message.clone());
                let words = words.unwrap_or_else(|| "it has not said why yet".to_owned());
                let message = format!(
                    "cert-manager has not filled Secret `{secret}` with `ca.crt`, `tls.crt` and \
                     `tls.key`: {words}"
                );
                certificates.refuse(Code::IssuerFailed, &message);
                certificates.wake(LOOK_AGAIN);
            }
        }
    }
}

fn object(
    cluster: &DaskCluster,
    issuer: &Issuer,
    role: Role,
    certificates: &Certificates,
) -> Value {
    let request = &certificates.request;
    let (name, namespace) = (&request.cluster, &request.namespace);
    let identity = Identity::new(namespace, name, role).map(|identity| identity.to_string());
    let secret = names::certificate_secret(name, role);
    let mut spec = json!({
        "secretName": secret,
        "secretTemplate": {"labels": request.labels},
        "commonName": format!("oxidask {role}"),
        // A name that fits no identity was refused before.
        "uris": [identity.unwrap_or_default()],
        "usages": ["digital signature", "server auth", "client auth"],
        "privateKey": {
            "algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always",
        },
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
    });
    if let Some(spec) = spec.as_object_mut() {
        if role == Role::Scheduler {
            spec.insert("dnsNames".to_owned(), json!(request.scheduler_dns_names));
        }
        let seconds = |span: std::time::Duration| json!(format!("{}s", span.as_secs()));
        let terms = certificates.terms;
        spec.insert("duration".to_owned(), seconds(terms.lifetime));
        spec.insert("renewBefore".to_owned(), seconds(terms.renew_before));
    }
    json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {
            "name": secret,
            "namespace": namespace,
            "labels": request.labels,
            "ownerReferences": [crate::owner::reference("DaskCluster", &cluster.metadata)],
        },
        "spec": spec,
    })
}

fn marked(mut object: Value, mark: &str) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({APPLIED_HASH: mark}));
    }
    object
}
