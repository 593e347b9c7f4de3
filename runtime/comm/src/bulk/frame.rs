//! The fixed parts of requests and answers, and the limits of both sides.

/// Keys in one request; longer lists become several requests.
pub(crate) const REQUEST_KEYS_MAX: usize = 16 * 1024;
pub(crate) const REQUEST_HEADER_BYTES: usize = 8;
pub(crate) const KEY_BYTES: usize = 8;
pub(crate) const ANSWER_HEADER_BYTES: usize = 16;

/// Neither side waits longer than this for the other to take or give the next bytes.
pub(crate) const STALL_SECONDS_MAX: u64 = if cfg!(test) { 1 } else { 30 };

/// Encrypted bytes that wait inside a connection for the socket.
pub(crate) const TLS_BUFFER_BYTES: usize = 256 * 1024;

const STATUS_MISSING: u8 = 0;
const STATUS_FOUND: u8 = 1;

/// What an answer says of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Missing,
    Found { kind: u8, bytes: u64 },
}

impl Answer {
    pub(crate) fn encode(self) -> [u8; ANSWER_HEADER_BYTES] {
        let mut header = [0; ANSWER_HEADER_BYTES];
        if let Self::Found { kind, bytes } = self {
            header[0] = STATUS_FOUND;
            header[1] = kind;
            header[8..].copy_from_slice(&bytes.to_le_bytes());
        }
        header
    }

    pub(crate) fn decode(header: [u8; ANSWER_HEADER_BYTES]) -> Option<Self> {
        let [status, kind, 0, 0, 0, 0, 0, 0, length @ ..] = header else {
            return None;
        };
        match (status, u64::from_le_bytes(length)) {
            (STATUS_MISSING, 0) if kind == 0 => Some(Self::Missing),
            (STATUS_FOUND, bytes) => Some(Self::Found { kind, bytes }),
            _ => None,
        }
    }
}

/// A request for up to [`REQUEST_KEYS_MAX`] keys.
pub(crate) fn encode_request(keys: &[u64]) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST_HEADER_BYTES + keys.len() * KEY_BYTES);
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    request.extend_from_slice(&count.to_le_bytes());
    request.extend_from_slice(&[0; 4]);
    for key in keys {
        request.extend_from_slice(&key.to_le_bytes());
    }
    request
}

/// The number of keys that a request's header announces, if it is allowed.
pub(crate) fn request_keys(header: [u8; REQUEST_HEADER_BYTES]) -> Option<usize> {
    let [a, b, c, d, 0, 0, 0, 0] = header else {
        return None;
    };
    let count = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    (1..=REQUEST_KEYS_MAX).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn answers_come_back(kind: u8, bytes: u64) {
            let answer = Answer::Found { kind, bytes };
            prop_assert_eq!(Answer::decode(answer.encode()), Some(answer));
        }

        #[test]
        fn only_answers_are_decoded(header: [u8; ANSWER_HEADER_BYTES]) {
            if let Some(answer) = Answer::decode(header) {
                prop_assert_eq!(answer.encode(), header);
            }
        }
    }

    #[test]
    fn counts_are_limited() {
        assert_eq!(
            Answer::decode(Answer::Missing.encode()),
            Some(Answer::Missing)
        );
        let header = |count: u32| {
            let mut header = [0; REQUEST_HEADER_BYTES];
            header[..4].copy_from_slice(&count.to_le_bytes());
            header
        };
        assert_eq!(request_keys(header(1)), Some(1));
        assert_eq!(request_keys(header(16 * 1024)), Some(REQUEST_KEYS_MAX));
        assert_eq!(request_keys(header(0)), None);
        assert_eq!(request_keys(header(16 * 1024 + 1)), None);
        assert_eq!(request_keys([1, 0, 0, 0, 1, 0, 0, 0]), None);
    }
}
