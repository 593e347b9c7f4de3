//! A decision in a status, and back.
//!
//! Owns what stands there. Invariant: the texts of a decision are those of the moment when it was
//! made; they do not follow the load, so that a status is written once per decision.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::kubernetes::ScalingStatus;

use super::{Cause, Decision, Fewer, Memory, Policy};
use crate::Timestamp;
use crate::status::cut;

/// Bytes of a message.
const MESSAGE_BYTES_MAX: usize = 512;

fn read(number: Option<i32>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

fn written(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// What a status remembers. A recommendation and a decision do not follow from each other.
pub(crate) fn memory(status: Option<&ScalingStatus>, policy: &Policy) -> Memory {
    let Some(status) = status else {
        return Memory::default();
    };
    let desired = if policy.is_recommendation {
        status.recommendation
    } else {
        status.desired
    };
    let fewer = status.fewer_since.as_ref().zip(read(status.fewer_most));
    Memory {
        desired: read(desired),
        previous: read(status.previous),
        fewer: fewer.map(|(since, most)| Fewer {
            since: since.0,
            most,
        }),
    }
}

/// The status of a decision.
pub(crate) fn remembered(
    decision: &Decision,
    policy: &Policy,
    before: Option<&ScalingStatus>,
    now: Timestamp,
) -> ScalingStatus {
    let desired = Some(written(decision.desired));
    let (own, recommendation) = if policy.is_recommendation {
        (None, desired)
    } else {
        (desired, None)
    };
    let unchanged = before.filter(|before| {
        before.desired == own && before.recommendation == recommendation && before.since.is_some()
    });
    let since = unchanged.and_then(|before| before.since.clone());
    // A number that was just written fits from then on, which is nothing new.
    let is_after = |reason: &str| {
        let was = [Cause::ScaledUp, Cause::ScaledDown, Cause::WithinBounds];
        decision.cause == Cause::Fits && was.iter().any(|cause| cause.name() == reason)
    };
    let reason = decision.cause.name();
    let told = unchanged.filter(|before| {
        let said = before.reason.as_deref().unwrap_or_default();
        said == reason || is_after(said)
    });
    let (reason, message) = match told {
        Some(before) => (before.reason.clone(), before.message.clone()),
        None => (
            Some(reason.to_owned()),
            Some(cut(&decision.message, MESSAGE_BYTES_MAX)),
        ),
    };
    let fewer = decision.memory.fewer;
    ScalingStatus {
        desired: own,
        previous: decision
            .memory
            .previous
            .filter(|_| !policy.is_recommendation)
            .map(written),
        recommendation,
        reason,
        message,
        since: since.or(Some(Time(now))),
        fewer_since: fewer.map(|fewer| Time(fewer.since)),
        fewer_most: fewer.map(|fewer| written(fewer.most)),
    }
}
