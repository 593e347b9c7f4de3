//! Which certificates of a cluster have to be issued.
//!
//! Owns when. Never sees a key or a certificate: the controller says whether a Secret is whole and
//! when its certificate ends.

use std::time::Duration;

use oxidask_operator_api::kubernetes::DaskCluster;

use super::Observed;
use crate::build::labels;
use crate::{CertificateRequest, Timestamp, names, owner};
use oxidask_identity::Role;

/// How long before its end a certificate is replaced.
pub const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);

/// A wake-up never comes sooner than that, so that a clock that is wrong keeps nobody busy.
const WAKE_MIN: Duration = Duration::from_mins(1);

/// Nor later: timers are not made for years.
const WAKE_MAX: Duration = Duration::from_hours(24);

/// The Secrets that are missing or about to end, and when the next one is.
pub(super) fn request(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    now: Timestamp,
) -> (Option<CertificateRequest>, Option<Duration>) {
    let whole = |secret: &str| {
        let state = observed.secrets.get(secret);
        state.filter(|state| state.has_all_keys)
    };
    // Never replaced, whatever its date: all that trusts it would have to start anew.
    let needs_authority = whole(&names::authority_secret(name)).is_none();
    let mut roles = Vec::new();
    let mut wake_after: Option<Duration> = None;
    for role in Role::ALL {
        let end = whole(&names::certificate_secret(name, role)).and_then(|state| state.not_after);
        let left = end.map_or(Duration::ZERO, |end| until(now, end));
        let rest = left.saturating_sub(RENEW_BEFORE);
        if needs_authority || rest.is_zero() {
            roles.push(role);
        } else {
            wake_after = Some(wake_after.map_or(rest, |other| other.min(rest)));
        }
    }
    let wake_after = wake_after.map(|rest| rest.clamp(WAKE_MIN, WAKE_MAX));
    if roles.is_empty() {
        return (None, wake_after);
    }
    let namespace = cluster.metadata.namespace.clone().unwrap_or_default();
    let reserved = [(labels::CLUSTER_NAME, name)];
    let request = CertificateRequest {
        cluster: name.to_owned(),
        needs_authority,
        roles,
        owner: owner::reference("DaskCluster", &cluster.metadata),
        labels: labels::labels(cluster.metadata.labels.as_ref(), None, &reserved),
        scheduler_dns_names: names::scheduler_dns_names(name, &namespace),
        namespace,
    };
    (Some(request), wake_after)
}

fn until(now: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO)
}
