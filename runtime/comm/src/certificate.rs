//! What we read from a certificate beyond its chain: the one identity and the last valid moment.
//!
//! The dates are read by hand, because `webpki` checks but does not show them. Whoever calls this
//! has verified the chain, or is looking at its own certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oxidask_proto::{Identity, ProtoError};
use rustls_pki_types::CertificateDer;

/// What is wrong with a certificate whose chain is good.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateFault {
    /// It cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Parse,
    /// It must have one URI.
    #[error("the certificate has `{0}` URIs instead of exactly one")]
    UriCount(usize),
    /// Its URI is not an identity.
    #[error(transparent)]
    Identity(ProtoError),
}

/// Who a certificate speaks for, and until when.
#[derive(Debug, Clone)]
pub(crate) struct Inspected {
    pub(crate) identity: Identity,
    pub(crate) not_after: SystemTime,
}

/// Reads identity and end of validity.
pub(crate) fn inspect(der: &CertificateDer<'_>) -> Result<Inspected, CertificateFault> {
    let certificate = webpki::EndEntityCert::try_from(der).map_err(|_| CertificateFault::Parse)?;
    let uris: Vec<&str> = certificate.valid_uri_names().take(2).collect();
    let [uri] = uris[..] else {
        return Err(CertificateFault::UriCount(
            certificate.valid_uri_names().count(),
        ));
    };
    let identity = uri.parse()?;
    let not_after = not_after(der).ok_or(CertificateFault::Parse)?;
    Ok(Inspected {
        identity,
        not_after,
    })
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

// Certificate { tbs { [version], serial, algorithm, issuer, validity { from, until }, … }, … }
fn not_after(der: &[u8]) -> Option<SystemTime> {
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
        if digits.len() > 4 {
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
    use oxidask_pki::{Authority, Lifetime};
    use oxidask_proto::Role;
    use proptest::prelude::*;
    use rustls_pki_types::pem::PemObject;

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

    #[test]
    fn reads_what_the_authority_writes() {
        let authority = Authority::new("local", "flights").unwrap();
        for years in [0, 1, 30, 100] {
            let end = UNIX_EPOCH + Duration::from_secs(1_800_000_000 + years * 31_556_952);
            let lifetime = Lifetime {
                not_before: UNIX_EPOCH,
                not_after: end,
            };
            let leaf = authority.issue(Role::Worker, lifetime).unwrap();
            let der = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
            let found = inspect(&der).unwrap();
            assert_eq!(found.not_after, end);
            assert_eq!(
                found.identity,
                Identity::new("local", "flights", Role::Worker).unwrap()
            );
        }
        let der = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
        assert!(matches!(
            inspect(&der),
            Err(CertificateFault::Parse | CertificateFault::UriCount(0))
        ));
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = not_after(&bytes);
            let _ = date(UTC_TIME, &bytes);
        }
    }
}
