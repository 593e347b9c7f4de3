//! What is known of the Secrets of a cluster, without keeping what is in them.
//!
//! A Secret is read by its name, never listed or watched, and again when what is known of it is old,
//! or sooner while a pod of the cluster waits on its node, because a Secret may be what it waits for.
//! Kept are digests, dates and what checks found. The same holds for the objects of cert-manager.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_api::Tls;
use oxidask_operator_api::kubernetes::RotationPhase;
use oxidask_operator_plan::cluster::secrets::{
    AUTHORITY_DIGEST, AUTHORITY_ORIGIN, HTTP_OPERATOR_TOKEN_KEY, HTTP_TOKEN_KEY, ROTATED_FOR,
    ROTATION_PHASE, WRITTEN_AT,
};
use oxidask_operator_plan::cluster::{AuthorityState, Origin, SecretState};
use oxidask_operator_plan::names;
use oxidask_pki::{
    AUTHORITY_FILE, Authority, CERTIFICATE_FILE, KEY_FILE, bundle_digest, certificate_digest,
    issuer_digest, not_after,
};

use crate::cache::ClusterKey;
use crate::context::Context;
use crate::error::{OneLine, OperatorError};
use crate::issued;

/// What is known of a Secret counts for so long.
const FRESH: Duration = Duration::from_mins(1);

/// That it is missing counts for less: it may be made at any moment. So does everything while a pod
/// waits on its node.
const DOUBTED_FRESH: Duration = Duration::from_secs(5);

/// Clusters to which nothing happens come to look at their Secrets one after another in this time.
const LOOK_SPACING: Duration = Duration::from_millis(500);

/// When a cluster to which nothing happens looks at its Secrets again: nobody tells the operator of
/// one that is deleted. With many clusters more seldom, so that no API server is busy with that.
pub(crate) fn look_again(clusters: usize) -> Duration {
    let clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
    FRESH.max(LOOK_SPACING.saturating_mul(clusters))
}

/// Key of `{cluster}-ca`: the authority that is being replaced.
pub(crate) const PREVIOUS_FILE: &str = "previous.crt";
/// Key of `{cluster}-ca`: the key of that authority.
pub(crate) const PREVIOUS_KEY_FILE: &str = "previous.key";

/// What a Secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Authority,
    Leaf,
    Tokens,
    /// The Secret of a user's that an authority is taken from.
    Source,
}

impl Part {
    fn of(key: &ClusterKey, name: &str) -> Self {
        if name == names::authority_secret(&key.cluster) {
            Self::Authority
        } else if name == names::http_token_secret(&key.cluster) {
            Self::Tokens
        } else if Role::ALL
            .iter()
            .any(|role| names::certificate_secret(&key.cluster, *role) == name)
        {
            Self::Leaf
        } else {
            Self::Source
        }
    }
}

#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    /// None if it does not exist.
    found: Option<Found>,
}

#[derive(Debug, Clone)]
struct Found {
    owners: Vec<String>,
    state: SecretState,
}

impl Seen {
    fn now(key: &ClusterKey, name: &str, secret: Option<&Secret>) -> Self {
        let found = secret.map(|secret| Found {
            owners: secret
                .owner_references()
                .iter()
                .map(|owner| owner.uid.clone())
                .collect(),
            state: look_into(key, Part::of(key, name), secret),
        });
        let at = Instant::now();
        Self { at, found }
    }

    fn is_fresh(&self, is_doubted: bool) -> bool {
        let is_known = self.found.is_some() && !is_doubted;
        let limit = if is_known { FRESH } else { DOUBTED_FRESH };
        self.at.elapsed() < limit
    }

    /// None if it belongs to somebody else, such as an earlier cluster of the same name.
    fn state(&self, owner_uid: Option<&str>) -> Option<SecretState> {
        let found = self.found.as_ref()?;
        let is_ours = owner_uid.is_none_or(|uid| found.owners.iter().any(|owner| owner == uid));
        is_ours.then(|| found.state.clone())
    }
}

/// What was found in the Secrets that exist, by cluster and name.
#[derive(Debug, Default)]
pub(crate) struct SecretStates(Mutex<HashMap<ClusterKey, BTreeMap<String, Seen>>>);

impl SecretStates {
    /// Forgets a cluster that is gone, or of which everything is doubted.
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

/// The state of each Secret that a cluster needs, exists and belongs to it.
pub(crate) async fn observe(
    context: &Context,
    key: &ClusterKey,
    owner_uid: &str,
) -> Result<BTreeMap<String, SecretState>, OperatorError> {
    let roles = Role::ALL.map(|role| names::certificate_secret(&key.cluster, role));
    let own = [
        names::authority_secret(&key.cluster),
        names::http_token_secret(&key.cluster),
    ];
    let tls = tls(context, key);
    let source = tls.as_ref().and_then(Tls::authority_secret);
    let mut wanted: Vec<String> = own.into_iter().chain(roles).collect();
    wanted.extend(source.map(str::to_owned));
    let found = try_join_all(wanted.into_iter().map(|name| async move {
        let state = state(context, key, &name, owner_uid).await?;
        Ok::<_, OperatorError>((name, state))
    }));
    let states = found.await?.into_iter();
    Ok(states
        .filter_map(|(name, state)| Some((name, state?)))
        .collect())
}

fn tls(context: &Context, key: &ClusterKey) -> Option<Tls> {
    let cluster = context.caches.clusters.get(&key.namespace, &key.cluster)?;
    cluster.spec.tls.clone()
}

/// The state of one Secret; none if it does not exist, or belongs to somebody else, such as an
/// earlier cluster of the same name.
pub(crate) async fn state(
    context: &Context,
    key: &ClusterKey,
    name: &str,
    owner_uid: &str,
) -> Result<Option<SecretState>, OperatorError> {
    let part = Part::of(key, name);
    let is_issued =
        part == Part::Leaf && tls(context, key).is_some_and(|tls| tls.issuer().is_some());
    // Those of users and of cert-manager have owners of their own.
    let owner_uid = (part != Part::Source && !is_issued).then_some(owner_uid);
    let is_doubted = has_waiting_pod(context, key);
    let seen = context.secrets.seen(key, name);
    if let Some(seen) = seen.filter(|seen| seen.is_fresh(is_doubted)) {
        return Ok(seen.state(owner_uid));
    }
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &key.namespace);
    let what = || format!("Secret `{}/{name}` cannot be read", key.namespace);
    let secret = context.request(what, secrets.get_opt(name)).await?;
    let mut seen = Seen::now(key, name, secret.as_ref());
    if is_issued {
        let found = seen.found.get_or_insert_with(|| Found {
            owners: Vec::new(),
            state: SecretState::default(),
        });
        found.state.issued = Some(issued::state(context, &key.namespace, name).await?);
    }
    let state = seen.state(owner_uid);
    context.secrets.keep(key, name, seen);
    Ok(state)
}

/// A pod that has a node and does not start may wait for a Secret.
fn has_waiting_pod(context: &Context, key: &ClusterKey) -> bool {
    let pods = context.caches.pods.of_cluster(key);
    let waits = |pod: &Pod| {
        let has_node = pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.node_name.is_some());
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        has_node && phase == Some("Pending")
    };
    pods.iter().any(|pod| waits(pod))
}

/// A Secret that was just written.
pub(crate) fn note(context: &Context, key: &ClusterKey, secret: &Secret) {
    let name = secret.name_any();
    let seen = Seen::now(key, &name, Some(secret));
    context.secrets.keep(key, &name, seen);
}

/// The text of a key.
pub(crate) fn text(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    let bytes = value.map(|value| value.0.as_slice()).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn look_into(key: &ClusterKey, part: Part, secret: &Secret) -> SecretState {
    let has = |keys: &[&str]| keys.iter().all(|key| !text(secret, key).is_empty());
    let version = secret.resource_version();
    if part == Part::Tokens {
        return SecretState {
            has_all_keys: has(&[HTTP_TOKEN_KEY, HTTP_OPERATOR_TOKEN_KEY]),
            version,
            ..SecretState::default()
        };
    }
    let certificate = text(secret, CERTIFICATE_FILE);
    let bundle = text(secret, AUTHORITY_FILE);
    let end = not_after(&certificate).ok();
    let has_all_keys = match part {
        Part::Source => has(&[CERTIFICATE_FILE, KEY_FILE]),
        _ => has(&[AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE]),
    };
    let annotation = |name: &str| secret.annotations().get(name).map(String::as_str);
    let is_leaf = part == Part::Leaf;
    let problem = if is_leaf || !has_all_keys {
        None
    } else {
        let key_pem = text(secret, KEY_FILE);
        let authority = Authority::from_user(&key.namespace, &key.cluster, &certificate, &key_pem);
        authority.err().map(|error| OneLine(&error).to_string())
    };
    let written = annotation(WRITTEN_AT).and_then(|text| text.parse::<Timestamp>().ok());
    SecretState {
        has_all_keys,
        not_after: end.and_then(|end| Timestamp::try_from(end).ok()),
        bundle: bundle_digest(&bundle),
        certificate: certificate_digest(&certificate),
        issuer: is_leaf
            .then(|| issuer_digest(&certificate, &bundle))
            .flatten(),
        written_at: written,
        version,
        authority: (part == Part::Authority).then(|| authority(secret)),
        problem,
        issued: None,
    }
}

/// What is known of the authority besides its certificate.
fn authority(secret: &Secret) -> AuthorityState {
    let annotation = |name: &str| secret.annotations().get(name).map(String::as_str);
    let digest = certificate_digest(&text(secret, CERTIFICATE_FILE));
    let has_previous = !text(secret, PREVIOUS_KEY_FILE).is_empty();
    let previous = has_previous.then(|| certificate_digest(&text(secret, PREVIOUS_FILE)));
    AuthorityState {
        phase: phase(annotation(ROTATION_PHASE)),
        is_recorded: digest.is_some() && annotation(AUTHORITY_DIGEST) == digest.as_deref(),
        previous: previous.flatten(),
        origin: Origin::from_name(annotation(AUTHORITY_ORIGIN).unwrap_or_default()),
        rotated_for: annotation(ROTATED_FOR).map(str::to_owned),
    }
}

/// The phase from the word in the annotation.
pub(crate) fn phase(word: Option<&str>) -> RotationPhase {
    match word {
        Some("Distribute") => RotationPhase::Distribute,
        Some("Issue") => RotationPhase::Issue,
        Some("Retire") => RotationPhase::Retire,
        _ => RotationPhase::Stable,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn key() -> ClusterKey {
        ClusterKey::new("n".to_owned(), "c".to_owned())
    }

    fn secret(data: &[(&str, String)]) -> Secret {
        let data = data.iter();
        let data = data
            .map(|(key, text)| ((*key).to_owned(), ByteString(text.clone().into_bytes())))
            .collect();
        Secret {
            data: Some(data),
            ..Secret::default()
        }
    }

    #[test]
    fn the_state_says_whether_it_is_whole_and_when_it_ends_and_who_issued_it() {
        let authority = Authority::new("n", "c").unwrap();
        let leaf = authority
            .issue(Role::Worker, Duration::from_hours(1))
            .unwrap();
        let mut secret = secret(&[
            (AUTHORITY_FILE, authority.ca_pem()),
            (CERTIFICATE_FILE, leaf.cert_pem),
            (KEY_FILE, leaf.key_pem),
        ]);
        let state = look_into(&key(), Part::Leaf, &secret);
        assert!(state.has_all_keys);
        assert!(state.not_after.unwrap() > Timestamp::now());
        assert_eq!(state.issuer, certificate_digest(&authority.ca_pem()));
        assert_eq!(state.bundle, bundle_digest(&authority.ca_pem()));
        secret.data.as_mut().unwrap().remove(KEY_FILE);
        assert!(!look_into(&key(), Part::Leaf, &secret).has_all_keys);
        let nothing = SecretState::default();
        assert_eq!(look_into(&key(), Part::Leaf, &Secret::default()), nothing);
    }

    #[test]
    fn an_authority_is_checked_and_known_again() {
        let authority = Authority::new("n", "c").unwrap();
        let mut secret = secret(&[
            (AUTHORITY_FILE, authority.ca_pem()),
            (CERTIFICATE_FILE, authority.ca_pem()),
            (KEY_FILE, authority.key_pem()),
        ]);
        let state = look_into(&key(), Part::Authority, &secret);
        assert_eq!(state.problem, None);
        assert!(!state.authority.unwrap().is_recorded, "nobody recorded it");
        let digest = certificate_digest(&authority.ca_pem()).unwrap();
        let notes = [
            (AUTHORITY_DIGEST, digest.as_str()),
            (ROTATION_PHASE, "Issue"),
            (AUTHORITY_ORIGIN, "hand"),
        ];
        let notes = notes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        secret.metadata.annotations = Some(notes.into());
        let state = look_into(&key(), Part::Authority, &secret)
            .authority
            .unwrap();
        assert!(state.is_recorded);
        assert_eq!(
            (state.phase, state.origin),
            (RotationPhase::Issue, Origin::Hand)
        );
        let leaf = authority
            .issue(Role::Worker, Duration::from_hours(1))
            .unwrap();
        let data = secret.data.as_mut().unwrap();
        data.insert(
            CERTIFICATE_FILE.to_owned(),
            ByteString(leaf.cert_pem.into_bytes()),
        );
        data.insert(KEY_FILE.to_owned(), ByteString(leaf.key_pem.into_bytes()));
        let problem = look_into(&key(), Part::Source, &secret).problem.unwrap();
        assert!(problem.contains("end entity"), "{problem}");
    }
}
