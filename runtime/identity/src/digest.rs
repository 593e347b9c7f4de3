//! Short names for certificates, by which two processes find out whether they use the same ones.

use sha2::{Digest, Sha256};

/// Bytes of a digest that are kept: enough that nobody finds two certificates with the same.
const DIGEST_BYTES: usize = 16;

/// Of a bundle of authorities: the same for the same certificates (DER) in any order, repeated or
/// not. 32 hexadecimal digits.
pub fn bundle_digest<'a>(authorities: impl IntoIterator<Item = &'a [u8]>) -> String {
    let each = authorities.into_iter().map(Sha256::digest);
    let mut each: Vec<_> = each.collect();
    each.sort_unstable();
    each.dedup();
    hex(each.into_iter().fold(Sha256::new(), Sha256::chain_update))
}

/// Of one certificate (DER). 32 hexadecimal digits.
pub fn certificate_digest(certificate: &[u8]) -> String {
    hex(Sha256::new_with_prefix(certificate))
}

fn hex(digest: Sha256) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = digest.finalize();
    let nibbles = digest.iter().take(DIGEST_BYTES);
    nibbles
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_a_set() {
        let (one, two): (&[u8], &[u8]) = (b"one", b"two");
        let both = bundle_digest([one, two]);
        assert_eq!(bundle_digest([two, one, two]), both);
        assert_ne!(bundle_digest([one]), both);
        assert_ne!(bundle_digest([one]), certificate_digest(one));
        assert_eq!(both.len(), 32);
    }
}
