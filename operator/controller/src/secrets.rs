//! What is known of the certificate Secrets of a cluster, without keeping what is in them.
//!
//! A Secret is read when its version is one that was not seen before; kept is only whether it has
//! all its keys, and until when its certificate is valid.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_plan::cluster::SecretState;
use oxidask_operator_plan::names;
use oxidask_pki::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, not_after};

use crate::cache::ClusterKey;
use crate::context::Context;
use crate::error::OperatorError;

#[derive(Debug, Clone)]
struct Seen {
    version: Option<String>,
    state: SecretState,
}

/// What was found in the Secrets that exist, by cluster and name.
#[derive(Debug, Default)]
pub(crate) struct SecretStates(Mutex<HashMap<ClusterKey, BTreeMap<String, Seen>>>);

impl SecretStates {
    /// Forgets a cluster that is gone.
    pub(crate) fn forget(&self, key: &ClusterKey) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    fn seen(&self, key: &ClusterKey, name: &str) -> Option<Seen> {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.get(key)?.get(name).cloned()
    }

    fn keep(&self, key: &ClusterKey, name: &str, seen: Seen) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states
            .entry(key.clone())
            .or_default()
            .insert(name.to_owned(), seen);
    }
}

/// The state of each Secret of a cluster that exists and belongs to it.
pub(crate) async fn observe(
    context: &Context,
    key: &ClusterKey,
    owner_uid: &str,
) -> Result<BTreeMap<String, SecretState>, OperatorError> {
    let mut states = BTreeMap::new();
    let roles = Role::ALL.map(|role| names::certificate_secret(&key.cluster, role));
    for name in [names::authority_secret(&key.cluster)]
        .into_iter()
        .chain(roles)
    {
        if let Some(state) = state(context, key, &name, owner_uid).await? {
            states.insert(name, state);
        }
    }
    Ok(states)
}

/// The state of one Secret; none if it does not exist, or belongs to somebody else, such as an
/// earlier cluster of the same name.
pub(crate) async fn state(
    context: &Context,
    key: &ClusterKey,
    name: &str,
    owner_uid: &str,
) -> Result<Option<SecretState>, OperatorError> {
    let Some(metadata) = context.caches.secrets.get(&key.namespace, name) else {
        return Ok(None);
    };
    if !metadata
        .owner_references()
        .iter()
        .any(|owner| owner.uid == owner_uid)
    {
        return Ok(None);
    }
    let version = metadata.resource_version();
    if let Some(seen) = context.secrets.seen(key, name)
        && seen.version == version
    {
        return Ok(Some(seen.state));
    }
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &key.namespace);
    let what = || format!("Secret `{}/{name}` cannot be read", key.namespace);
    let Some(secret) = context.request(what, secrets.get_opt(name)).await? else {
        return Ok(None);
    };
    let state = look_into(&secret);
    // The version that was read, which may be a newer one than the cache shows.
    let version = secret.resource_version();
    context.secrets.keep(key, name, Seen { version, state });
    Ok(Some(state))
}

fn look_into(secret: &Secret) -> SecretState {
    let data = secret.data.iter().flatten();
    let data: BTreeMap<&str, &ByteString> =
        data.map(|(key, value)| (key.as_str(), value)).collect();
    let is_there = |key: &&str| data.get(*key).is_some_and(|value| !value.0.is_empty());
    let certificate = data
        .get(CERTIFICATE_FILE)
        .map(|value| String::from_utf8_lossy(&value.0));
    let end = certificate.and_then(|pem| not_after(&pem).ok());
    SecretState {
        has_all_keys: [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE]
            .iter()
            .all(is_there),
        not_after: end.and_then(|end| Timestamp::try_from(end).ok()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use oxidask_pki::Authority;

    use super::*;

    #[test]
    fn the_state_says_whether_it_is_whole_and_when_it_ends() {
        let authority = Authority::new("n", "c").unwrap();
        let leaf = authority
            .issue(Role::Worker, Duration::from_hours(1))
            .unwrap();
        let data = [
            (AUTHORITY_FILE, authority.ca_pem()),
            (CERTIFICATE_FILE, leaf.cert_pem),
            (KEY_FILE, leaf.key_pem),
        ];
        let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        let mut secret = Secret {
            data: Some(data.into()),
            ..Secret::default()
        };
        let state = look_into(&secret);
        assert!(state.has_all_keys);
        assert!(state.not_after.unwrap() > Timestamp::now());
        secret.data.as_mut().unwrap().remove(KEY_FILE);
        assert!(!look_into(&secret).has_all_keys);
        let nothing = SecretState {
            has_all_keys: false,
            not_after: None,
        };
        assert_eq!(look_into(&Secret::default()), nothing);
    }
}
