//! Amounts as Kubernetes writes them: `2`, `500m`, `1.5Gi`, `2e3`.
//!
//! Owns reading and rounding. Keeps the text as it was written, so that it can be handed on
//! unchanged. Invariant: a `Quantity` is never negative and always fits into a `u64` when rounded.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// An amount of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    thousandths: u128,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// `GiB`, `gb`, `MB` and the like, which Kubernetes writes in another way.
    #[error("`{found}` is not a quantity; Kubernetes writes `{meant}`")]
    Spelling {
        /// What was written.
        found: String,
        /// What was probably meant.
        meant: String,
    },
    /// Below zero.
    #[error("`{found}` is below zero")]
    Negative {
        /// What was written.
        found: String,
    },
    /// More than 2^63 - 1.
    #[error("`{found}` is larger than any amount can be")]
    TooLarge {
        /// What was written.
        found: String,
    },
    /// Anything else.
    #[error("`{found}` is not a quantity such as `2`, `500m` or `1.5Gi`")]
    Format {
        /// What was written.
        found: String,
    },
}

/// The largest amount, the same as in Kubernetes.
const AMOUNT_MAX: u128 = i64::MAX as u128;

/// Digits that a number may have; more cannot be an amount.
const DIGITS_MAX: usize = 24;

const SUFFIXES: [(&str, u128, u128); 15] = [
    ("", 1, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
];

impl Quantity {
    /// Reads the Kubernetes notation.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let found = || text.to_owned();
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        if let Some(rest) = unsigned.strip_prefix('-') {
            return Err(match Self::parse(rest) {
                Ok(_) => QuantityError::Negative { found: found() },
                Err(_) => QuantityError::Format { found: found() },
            });
        }
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, suffix) = unsigned.split_at(end.unwrap_or(unsigned.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let has_digits = !whole.is_empty() || !fraction.is_empty();
        if !has_digits || fraction.contains('.') || number.len() > DIGITS_MAX {
            return Err(QuantityError::Format { found: found() });
        }
        let Some((up, down)) = scale(suffix) else {
            return Err(match respelt(suffix) {
                Some(suffix) => QuantityError::Spelling {
                    found: found(),
                    meant: format!("{number}{suffix}"),
                },
                None => QuantityError::Format { found: found() },
            });
        };
        let digits = format!("{whole}{fraction}").parse::<u128>().ok();
        let divisor = u32::try_from(fraction.len())
            .ok()
            .and_then(|n| 10_u128.checked_pow(n));
        let thousandths = digits
            .and_then(|digits| digits.checked_mul(up)?.checked_mul(1000))
            .zip(divisor.and_then(|divisor| divisor.checked_mul(down)))
            .map(|(amount, divisor)| amount.div_ceil(divisor));
        match thousandths {
            Some(thousandths) if thousandths <= AMOUNT_MAX * 1000 => Ok(Self {
                text: found(),
                thousandths,
            }),
            _ => Err(QuantityError::TooLarge { found: found() }),
        }
    }

    /// The amount in whole units (cores, bytes, devices), rounded up.
    pub fn rounded_up(&self) -> u64 {
        u64::try_from(self.thousandths.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// The amount in thousandths of a unit, rounded up: two ways to write one amount are equal here.
    pub fn thousandths(&self) -> u128 {
        self.thousandths
    }

    /// Whether the amount is no whole number of units, like `500m`.
    pub fn is_fractional(&self) -> bool {
        !self.thousandths.is_multiple_of(1000)
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Multiplier and divisor of a suffix; `e3` and `E-2` are powers of ten.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    if let Some((_, up, down)) = SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        return Some((*up, *down));
    }
    if suffix == "Ei" {
        return Some((1 << 60, 1));
    }
    let power = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    let factor = 10_u128.checked_pow(power.unsigned_abs().min(30))?;
    Some(if power < 0 { (1, factor) } else { (factor, 1) })
}

/// What a suffix that Kubernetes does not know was probably meant to be.
fn respelt(suffix: &str) -> Option<&'static str> {
    let suffix = suffix.trim();
    let plain = suffix.strip_suffix(['B', 'b']).unwrap_or(suffix);
    let plain = if plain.is_empty() {
        return Some("");
    } else {
        plain
    };
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let decimal = ["k", "M", "G", "T", "P", "E"];
    binary
        .into_iter()
        .chain(decimal)
        .find(|known| known.eq_ignore_ascii_case(plain))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as `2`, `500m` or `1.5Gi`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        Quantity::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_reads_and_rounds_up() {
        let cases: [(&str, u64); 16] = [
            ("2", 2),
            ("0", 0),
            ("500m", 1),
            ("1500m", 2),
            ("2.5", 3),
            (".5", 1),
            ("5.", 5),
            ("100n", 1),
            ("64k", 64_000),
            ("2Gi", 2 << 30),
            ("1.5Gi", 3 << 29),
            ("1Ei", 1 << 60),
            ("1E", 1_000_000_000_000_000_000),
            ("2e3", 2000),
            ("2E-1", 1),
            ("+3", 3),
        ];
        for (text, amount) in cases {
            assert_eq!(
                Quantity::parse(text).map(|q| q.rounded_up()),
                Ok(amount),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_and_says_what_was_probably_meant() {
        let cases = [
            ("2GiB", "`2GiB` is not a quantity; Kubernetes writes `2Gi`"),
            ("2gb", "`2gb` is not a quantity; Kubernetes writes `2G`"),
            (
                "512mib",
                "`512mib` is not a quantity; Kubernetes writes `512Mi`",
            ),
            ("10 K", "`10 K` is not a quantity; Kubernetes writes `10k`"),
            ("8B", "`8B` is not a quantity; Kubernetes writes `8`"),
            ("-2Gi", "`-2Gi` is below zero"),
            ("16Ei", "`16Ei` is larger than any amount can be"),
            ("1e99", "`1e99` is larger than any amount can be"),
            (
                "lots",
                "`lots` is not a quantity such as `2`, `500m` or `1.5Gi`",
            ),
            ("", "`` is not a quantity such as `2`, `500m` or `1.5Gi`"),
            (
                "1.2.3",
                "`1.2.3` is not a quantity such as `2`, `500m` or `1.5Gi`",
            ),
            (
                "--2",
                "`--2` is not a quantity such as `2`, `500m` or `1.5Gi`",
            ),
        ];
        for (text, message) in cases {
            let found = Quantity::parse(text).map_err(|error| error.to_string());
            assert_eq!(found, Err(message.to_owned()), "{text}");
        }
    }
}
