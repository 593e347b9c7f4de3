//! The shares of a worker's memory at which something happens to the whole process.

use thiserror::Error;

/// The whole of a share.
const WHOLE_PERMILLE: u64 = 1_000;

/// Shares of the limit, as fractions between 0 and 1; 0 turns a step off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryShares {
    /// Above it, results go to the disk.
    pub spill: f64,
    /// Above it, no tasks start, and the scheduler is told.
    pub pause: f64,
    /// Above it, programs and tasks are ended one by one.
    pub terminate: f64,
}

impl Default for MemoryShares {
    fn default() -> Self {
        Self {
            spill: 0.7,
            pause: 0.8,
            terminate: 0.95,
        }
    }
}

impl MemoryShares {
    /// Nothing happens at any share.
    pub const OFF: Self = Self {
        spill: 0.0,
        pause: 0.0,
        terminate: 0.0,
    };

    /// Checks that they make sense together.
    pub fn check(self) -> Result<MemoryThresholds, SharesError> {
        let Self {
            spill,
            pause,
            terminate,
        } = self;
        let thresholds = MemoryThresholds {
            spill: permille("spill", spill)?,
            pause: permille("pause", pause)?,
            terminate: permille("terminate", terminate)?,
        };
        let steps = [
            ("spill", thresholds.spill),
            ("pause", thresholds.pause),
            ("terminate", thresholds.terminate),
        ];
        let mut given = steps.into_iter().filter(|(_, permille)| *permille > 0);
        let Some(mut lower) = given.next() else {
            return Ok(thresholds);
        };
        for higher in given {
            if higher.1 < lower.1 {
                return Err(SharesError::Order {
                    lower: lower.0,
                    higher: higher.0,
                });
            }
            lower = higher;
        }
        Ok(thresholds)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 1,000"
)]
fn permille(name: &'static str, share: f64) -> Result<u64, SharesError> {
    if (0.0..=1.0).contains(&share) {
        Ok((share * 1_000.0).round() as u64)
    } else {
        Err(SharesError::Share { name, share })
    }
}

/// Shares of memory that make no sense.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SharesError {
    /// Not a share.
    #[error("the share of memory `{name}` must be between 0 and 1, not `{share}`")]
    Share {
        /// Which.
        name: &'static str,
        /// What was given.
        share: f64,
    },
    /// In the wrong order.
    #[error("the share of memory `{higher}` must not be below `{lower}`")]
    Order {
        /// The one that comes first.
        lower: &'static str,
        /// The one that comes later.
        higher: &'static str,
    },
}

/// Shares that make sense, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryThresholds {
    pub(crate) spill: u64,
    pub(crate) pause: u64,
    pub(crate) terminate: u64,
}

impl MemoryThresholds {
    /// Nothing happens at any share.
    pub const OFF: Self = Self {
        spill: 0,
        pause: 0,
        terminate: 0,
    };

    /// The lowest share at which something happens.
    pub(crate) fn lowest(self) -> Option<u64> {
        let all = [self.spill, self.pause, self.terminate];
        all.into_iter().filter(|permille| *permille > 0).min()
    }
}

impl Default for MemoryThresholds {
    fn default() -> Self {
        Self {
            spill: 700,
            pause: 800,
            terminate: 950,
        }
    }
}

/// How much of the limit something is, in thousandths.
pub(crate) fn permille_of(bytes: u64, limit_bytes: u64) -> u64 {
    let permille = u128::from(bytes) * u128::from(WHOLE_PERMILLE) / u128::from(limit_bytes.max(1));
    u64::try_from(permille).unwrap_or(u64::MAX)
}

/// That many thousandths of the limit.
pub(crate) fn share_of(limit_bytes: u64, permille: u64) -> u64 {
    let bytes = u128::from(limit_bytes) * u128::from(permille) / u128::from(WHOLE_PERMILLE);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(spill: f64, pause: f64, terminate: f64) -> Result<MemoryThresholds, SharesError> {
        MemoryShares {
            spill,
            pause,
            terminate,
        }
        .check()
    }

    #[test]
    fn shares_that_make_sense() {
        let usual = MemoryShares::default().check();
        assert_eq!(usual, Ok(MemoryThresholds::default()));
        assert_eq!(MemoryShares::OFF.check(), Ok(MemoryThresholds::OFF));
        assert_eq!(MemoryThresholds::OFF.lowest(), None);
        assert!(shares(0.0, 0.5, 0.5).is_ok());
        assert_eq!(shares(0.9, 0.0, 1.0).unwrap().lowest(), Some(900));
    }

    #[test]
    fn shares_that_make_none() {
        for share in [-0.1, 1.01, f64::NAN, f64::INFINITY, 70.0] {
            let error = shares(share, 0.8, 0.95).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("`spill` must be between 0 and 1")
            );
        }
        assert_eq!(
            shares(0.0, 0.9, 0.8).unwrap_err().to_string(),
            "the share of memory `terminate` must not be below `pause`"
        );
        assert!(shares(0.9, 0.0, 0.8).is_err());
    }

    #[test]
    fn shares_of_limits() {
        assert_eq!(permille_of(650, 1_000), 650);
        assert_eq!(permille_of(5, 0), 5_000);
        assert_eq!(permille_of(u64::MAX, u64::MAX), 1_000);
        assert_eq!(share_of(2_000, 950), 1_900);
        assert_eq!(share_of(u64::MAX, 1_000), u64::MAX);
    }
}
