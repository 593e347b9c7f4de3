//! Spans of time as manifests write them: `90d`, `24h`, `1h30m`, `300s`.
//!
//! Owns reading them. Units are `d`, `h`, `m` and `s`, larger ones first is not asked for; a number
//! without a unit is refused, because half of its readers would take it for minutes.

use std::time::Duration;

/// Bytes of a span.
pub(crate) const DURATION_BYTES_MAX: usize = 32;

/// The pattern of a span, for the schema.
#[cfg(feature = "kubernetes")]
pub(crate) const DURATION_PATTERN: &str = "^([0-9]{1,9}(d|h|m|s))+$";

/// Reads a span; none if the text is not one.
pub fn duration(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > DURATION_BYTES_MAX {
        return None;
    }
    let mut rest = text;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit())?;
        let number: u64 = rest.get(..end)?.parse().ok()?;
        let unit = match rest.as_bytes().get(end)? {
            b'd' => 24 * 3600,
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = rest.get(end + 1..)?;
    }
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        for (text, seconds) in [
            ("24h", 86_400),
            ("90d", 90 * 86_400),
            ("1h30m", 5400),
            ("5m", 300),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "h",
            "5",
            "5 m",
            "5m3",
            "-5m",
            "1.5h",
            "5M",
            "99999999999999999999h",
            "5µ",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
