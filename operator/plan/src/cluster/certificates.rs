//! Which certificates of a cluster have to be issued, and what its status says about them.
//!
//! Owns when. Never sees a key or a certificate: the controller says whether a Secret is whole, what
//! is in it by digests, and when its certificate ends. How one authority replaces another is told in
//! `rotation`, what cert-manager is asked for in `issuer`.
//!
//! Invariant: one plan holds one step; the next comes from a new snapshot.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_diagnostic::Code;
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{CertificatesStatus, DaskCluster, RotationPhase};
use oxidask_operator_api::{CERTIFICATE_LIFETIME, Tls};

use super::secrets::{AuthorityState, ROTATE_AUTHORITY, SecretState};
use super::{Observed, issuer, rotation};
use crate::build::labels;
use crate::{AuthorityStep, CertificateRequest, PlannedEvent, Timestamp, names, owner};

/// How long before its end a certificate is replaced unless the manifest says otherwise.
pub const RENEW_BEFORE: Duration = Duration::from_hours(7 * 24);

/// Of a short lifetime, the part that is left when a certificate is replaced.
const RENEWAL_SHARE: u32 = 3;

/// What a certificate may live longer than it should before it is replaced for that.
const LIFETIME_SLACK: Duration = Duration::from_mins(2);

/// A wake-up never comes sooner than that, so that a clock that is wrong keeps nobody busy.
const WAKE_MIN: Duration = Duration::from_secs(5);

/// Nor later: timers are not made for years.
const WAKE_MAX: Duration = Duration::from_hours(24);

/// A certificate that was just written is not written again at once, whatever its dates.
const REWRITE_AFTER: Duration = Duration::from_mins(1);

/// What there is to do about certificates, and to say.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) request: CertificateRequest,
    pub(super) terms: Terms,
    pub(super) wake_after: Option<Duration>,
    pub(super) events: Vec<PlannedEvent>,
    pub(super) status: CertificatesStatus,
    /// Status, reason and message of `TLSReady`.
    pub(super) is_ready: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Certificates {
    pub(super) fn say(&mut self, is_ready: bool, reason: &str, message: impl Into<String>) {
        self.is_ready = is_ready;
        reason.clone_into(&mut self.reason);
        self.message = message.into();
    }

    pub(super) fn refuse(&mut self, code: Code, message: &str) {
        let message = format!("{message}; hint: {}", code.hint());
        self.say(false, &code.to_string(), message);
    }

    pub(super) fn wake(&mut self, wait: Duration) {
        let wait = wait.clamp(WAKE_MIN, WAKE_MAX);
        self.wake_after = Some(self.wake_after.map_or(wait, |other| other.min(wait)));
    }

    /// Whether the role's Secret is whole, or is being written by this very plan.
    pub(super) fn has(&self, observed: &Observed, role: Role) -> bool {
        let secret = names::certificate_secret(&self.request.cluster, role);
        self.request.roles.contains(&role) || whole(observed, &secret).is_some()
    }
}

/// How long certificates live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) lifetime: Duration,
    pub(super) renew_before: Duration,
}

impl Terms {
    pub(super) fn of(tls: Option<&Tls>) -> Self {
        let lifetime = tls.and_then(Tls::lifetime).unwrap_or(CERTIFICATE_LIFETIME);
        let usual = RENEW_BEFORE.min(lifetime / RENEWAL_SHARE);
        let renew_before = tls.and_then(Tls::renewal).unwrap_or(usual);
        Self {
            lifetime,
            renew_before: renew_before.min(lifetime / 2),
        }
    }
}

/// What is there to do, and to say.
pub(super) fn certificates(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    now: Timestamp,
) -> Certificates {
    let tls = cluster.spec.tls.as_ref();
    let terms = Terms::of(tls);
    let mut certificates = Certificates {
        request: empty_request(cluster, name, terms.lifetime),
        terms,
        wake_after: None,
        events: Vec::new(),
        status: status(name, observed),
        is_ready: false,
        reason: String::new(),
        message: String::new(),
    };
    let tokens = whole(observed, &names::http_token_secret(name));
    certificates.request.needs_http_token = tokens.is_none();
    match tls.and_then(Tls::issuer) {
        Some(issuer) => issuer::plan(cluster, &issuer, observed, now, &mut certificates),
        None => own(cluster, name, observed, now, &mut certificates),
    }
    certificates
}

/// The Secret, if its keys are there.
pub(super) fn whole<'a>(observed: &'a Observed, secret: &str) -> Option<&'a SecretState> {
    let state = observed.secrets.get(secret);
    state.filter(|state| state.has_all_keys)
}

/// The text by which a user asks for a new authority.
fn wish(cluster: &DaskCluster) -> Option<&str> {
    labels::annotation(cluster.metadata.annotations.as_ref(), ROTATE_AUTHORITY)
}

fn empty_request(cluster: &DaskCluster, name: &str, lifetime: Duration) -> CertificateRequest {
    let namespace = cluster.metadata.namespace.clone().unwrap_or_default();
    let reserved = [(labels::CLUSTER_NAME, name)];
    let source = cluster.spec.tls.as_ref().and_then(Tls::authority_secret);
    CertificateRequest {
        cluster: name.to_owned(),
        authority: None,
        authority_version: None,
        authority_source: source.map(str::to_owned),
        rotated_for: wish(cluster).map(str::to_owned),
        roles: Vec::new(),
        bundles: Vec::new(),
        lifetime,
        needs_http_token: false,
        issued: Vec::new(),
        owner: owner::reference("DaskCluster", &cluster.metadata),
        labels: labels::labels(cluster.metadata.labels.as_ref(), None, &reserved),
        scheduler_dns_names: names::scheduler_dns_names(name, &namespace),
        namespace,
    }
}

/// Certificates of an authority whose key the operator has.
fn own(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    now: Timestamp,
    certificates: &mut Certificates,
) {
    let source_name = certificates.request.authority_source.clone();
    let source = source_name
        .as_ref()
        .and_then(|secret| observed.secrets.get(secret));
    let fault = source_name
        .as_ref()
        .and_then(|secret| source_fault(secret, source));
    let Some(state) = whole(observed, &names::authority_secret(name)) else {
        match fault {
            Some(fault) => certificates.refuse(Code::AuthoritySecret, &fault),
            None => create(name, observed, certificates),
        }
        return;
    };
    if let Some(problem) = &state.problem {
        let secret = names::authority_secret(name);
        let message = format!("Secret `{secret}` holds no usable authority: {problem}");
        certificates.refuse(Code::AuthoritySecret, &message);
        return;
    }
    // Nothing more is known of it: then it is as the operator made it.
    let plain = AuthorityState {
        is_recorded: true,
        rotated_for: wish(cluster).map(str::to_owned),
        ..AuthorityState::default()
    };
    let authority = state.authority.as_ref().unwrap_or(&plain);
    certificates
        .request
        .authority_version
        .clone_from(&state.version);
    certificates.say(true, "Issued", "every role has its certificate");
    if authority.is_recorded {
        leaves(name, observed, state, authority, now, certificates);
    }
    let rotation = rotation::Rotation {
        cluster: name,
        observed,
        state,
        authority,
        source: source.filter(|_| fault.is_none()),
        wish: wish(cluster),
        now,
    };
    rotation.plan(certificates);
    // What runs goes on with the authority that it has.
    if let Some(fault) = fault {
        certificates.refuse(Code::AuthoritySecret, &fault);
    }
}

/// Why the Secret that a user names cannot be the authority.
fn source_fault(secret: &str, state: Option<&SecretState>) -> Option<String> {
    let Some(state) = state else {
        return Some(format!(
            "`spec.tls.caSecretRef` names Secret `{secret}`, which does not exist"
        ));
    };
    if !state.has_all_keys {
        return Some(format!(
            "Secret `{secret}` lacks `tls.crt` or `tls.key`: the authority and its key, PEM"
        ));
    }
    let problem = state.problem.as_ref()?;
    Some(format!(
        "Secret `{secret}` holds no usable authority: {problem}"
    ))
}

/// A new authority. With Secrets of an earlier one, pods may run that trust it; they first learn of
/// the new one.
fn create(name: &str, observed: &Observed, certificates: &mut Certificates) {
    let request = &mut certificates.request;
    request.authority = Some(AuthorityStep::Create);
    let secret = |role: Role| names::certificate_secret(name, role);
    let has_any = Role::ALL
        .iter()
        .any(|role| whole(observed, &secret(*role)).is_some());
    if !has_any {
        request.roles = Role::ALL.to_vec();
    }
    certificates.say(false, "Issuing", "certificates are being issued");
}

/// The certificates and bundles of the roles, as the phase of the authority wants them.
fn leaves(
    name: &str,
    observed: &Observed,
    state: &SecretState,
    authority: &AuthorityState,
    now: Timestamp,
    certificates: &mut Certificates,
) {
    let terms = certificates.terms;
    // The key that everybody trusts already may be gone: what runs then keeps its certificate till
    // it can have one of the new authority.
    let is_distributing = authority.phase == RotationPhase::Distribute;
    let cannot_renew = is_distributing && authority.previous.is_none();
    // What would be issued now ends with its authority at the latest.
    let authority_left = state.not_after.map_or(Duration::MAX, |end| until(now, end));
    let best = terms.lifetime.min(authority_left);
    for role in Role::ALL {
        let leaf = whole(observed, &names::certificate_secret(name, role));
        let Some(leaf) = leaf else {
            certificates.request.roles.push(role);
            continue;
        };
        let left = leaf.not_after.map_or(Duration::ZERO, |end| until(now, end));
        let is_fresh = leaf
            .written_at
            .is_some_and(|written| until(written, now) < REWRITE_AFTER);
        let is_due = left <= terms.renew_before && best > left + LIFETIME_SLACK.min(best / 4);
        let is_too_long = left > terms.lifetime + LIFETIME_SLACK;
        let is_of_authority = match authority.phase {
            RotationPhase::Distribute => leaf.issuer.is_some() || leaf.bundle != state.bundle,
            _ => leaf.issuer == state.certificate,
        };
        let is_renewed = (is_due || is_too_long) && !is_fresh || !is_of_authority;
        if left.is_zero() && !is_fresh || is_renewed && !cannot_renew {
            certificates.request.roles.push(role);
            continue;
        }
        certificates.wake(left.saturating_sub(terms.renew_before));
        if leaf.bundle != state.bundle {
            certificates.request.bundles.push(role);
        }
    }
}

/// What stands in the status: dates, which change only when something is issued.
fn status(name: &str, observed: &Observed) -> CertificatesStatus {
    let authority = whole(observed, &names::authority_secret(name));
    let ends = Role::ALL.iter().filter_map(|role| {
        let leaf = whole(observed, &names::certificate_secret(name, *role));
        leaf.and_then(|leaf| leaf.not_after)
    });
    let phase = authority.and_then(|state| Some(state.authority.as_ref()?.phase));
    CertificatesStatus {
        authority_not_after: authority.and_then(|state| state.not_after).map(Time),
        not_after: ends.min().map(Time),
        phase: authority.map(|_| phase.unwrap_or_default()),
    }
}

/// The time from one moment to a later one; zero if it is past.
pub(super) fn until(now: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO)
}
