//! From when until when a certificate is valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::CertificateParams;
use time::OffsetDateTime;

/// How long an authority is valid: ten years.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// How long a role's certificate in a Secret is valid unless the manifest says otherwise: 90 days.
pub const LEAF_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// How far before now a certificate becomes valid, for clocks that differ a little.
pub const BACKDATING: Duration = Duration::from_mins(5);

/// A span of time. From a `Duration`: from a little before now until that long after now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl From<Duration> for Lifetime {
    fn from(duration: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now - BACKDATING,
            not_after: now + duration,
        }
    }
}

impl Lifetime {
    /// A lifetime that ended a while ago, for tests.
    pub fn expired() -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now - 4 * BACKDATING,
            not_after: now - BACKDATING,
        }
    }

    pub(crate) fn apply(self, params: &mut CertificateParams) {
        params.not_before = date(self.not_before);
        params.not_after = date(self.not_after);
    }
}

fn date(time: SystemTime) -> OffsetDateTime {
    let since = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let seconds = i64::try_from(since).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
