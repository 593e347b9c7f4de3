//! Until when a certificate is valid.
//!
//! Owns walking through a certificate's outer structure, for the programs that use certificates and
//! for the ones that make them. The dates are read by hand, because `webpki` checks but does not show
//! them. Never judges a certificate: whoever calls this has verified the chain, or looks at a
//! certificate of its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Bytes of a length that is written out: no certificate is larger.
const LENGTH_BYTES_MAX: usize = 4;

/// The last moment at which a certificate in DER is valid; none if it is not a certificate.
pub fn not_after(der: &[u8]) -> Option<SystemTime> {
    // Certificate { tbs { [version], serial, algorithm, issuer, validity { from, until }, … }, … }
    let (certificate, _) = expect(SEQUENCE, der)?;
    let (mut tbs, _) = expect(SEQUENCE, certificate)?;
    if tbs.first() == Some(&VERSION) {
        tbs = element(tbs)?.2;
    }
    for _ in ["serial", "algorithm", "issuer"] {
        tbs = element(tbs)?.2;
    }
    let (validity, _) = expect(SEQUENCE, tbs)?;
    let (_, _, after) = element(validity)?;
    let (tag, text, _) = element(after)?;
    date(tag, text)
}

fn expect(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(input)?;
    (found == tag).then_some((content, rest))
}

// Tag, content, what follows.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, input) = input.split_first()?;
    let (&first, input) = input.split_first()?;
    let (length, input) = if first < 0x80 {
        (usize::from(first), input)
    } else {
        let (digits, rest) = input.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > LENGTH_BYTES_MAX {
            return None;
        }
        (
            digits
                .iter()
                .fold(0, |sum, &digit| sum << 8 | usize::from(digit)),
            rest,
        )
    };
    let (content, rest) = input.split_at_checked(length)?;
    Some((tag, content, rest))
}

// `YYMMDDhhmmssZ`, or with four digits of the year: RFC 5280 allows no other forms.
fn date(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits(text, 2)?;
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        GENERALIZED_TIME => digits(text, 4)?,
        _ => return None,
    };
    let (month, rest) = digits(rest, 2)?;
    let (day, rest) = digits(rest, 2)?;
    let (hour, rest) = digits(rest, 2)?;
    let (minute, rest) = digits(rest, 2)?;
    let (second, rest) = digits(rest, 2)?;
    if rest != b"Z" || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days_since_epoch(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn digits(text: &[u8], count: usize) -> Option<(u64, &[u8])> {
    let (number, rest) = text.split_at_checked(count)?;
    let number = std::str::from_utf8(number).ok()?;
    if !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

// Proleptic Gregorian calendar, years counted from March so that leap days come last.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    const DAYS_TO_EPOCH: u64 = 719_468;
    let year = if month <= 2 {
        year.checked_sub(1)?
    } else {
        year
    };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(DAYS_TO_EPOCH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
        Some(
            date(tag, text)?
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
        )
    }

    #[test]
    fn reads_both_forms_of_dates() {
        assert_eq!(seconds(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, b"000301000000Z"), Some(951_868_800));
        assert_eq!(
            seconds(GENERALIZED_TIME, b"20260801123456Z"),
            Some(1_785_587_696)
        );
        assert_eq!(
            seconds(GENERALIZED_TIME, b"24000229235959Z"),
            Some(13_574_649_599)
        );
        for wrong in [
            &b""[..],
            b"7001010000Z",
            b"701301000000Z",
            b"70010100000-Z",
            b"7001010000001",
        ] {
            assert_eq!(seconds(UTC_TIME, wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = not_after(&bytes);
            let _ = date(UTC_TIME, &bytes);
        }
    }
}
