//! The fixed parts of requests and answers, and the limits of both sides.
//!
//! ```text
//! request: count u32, verb u8, zero [u8; 3], then count entries
//!   0, objects: key u64
//!   1, pieces:  key u64, offset u64, bytes_max u64, slice u32, zero u32
//!   2, free:    key u64, slice u32, zero u32
//!   3, upload:  number u64, bytes u64, kind u64; one entry, and once it is accepted the bytes
//! answer to
//!   objects: count times (status u8, kind u8, zero [u8; 6], length u64, length bytes)
//!   pieces:  count times (status u8, kind u8, zero [u8; 6], version u64, total u64,
//!            length u64, length bytes)
//!   free:    the header of the request
//!   upload:  status u8, zero [u8; 7] before the bytes, and again behind them if it is accepted
//! ```
//!
//! All numbers are little endian.

use super::{BulkPieceRequest, BulkRefusal, BulkUpload};

/// Entries in one request; longer lists become several requests.
pub(crate) const REQUEST_ENTRIES_MAX: usize = 16 * 1024;
pub(crate) const REQUEST_HEADER_BYTES: usize = 8;
pub(crate) const KEY_BYTES: usize = 8;
pub(crate) const PIECE_BYTES: usize = 32;
pub(crate) const SLICE_BYTES: usize = 16;
pub(crate) const UPLOAD_BYTES: usize = 24;
pub(crate) const UPLOAD_ANSWER_BYTES: usize = 8;
pub(crate) const ANSWER_HEADER_BYTES: usize = 16;
pub(crate) const PIECE_ANSWER_HEADER_BYTES: usize = 32;

/// Bytes of pieces in one answer. What does not fit comes short, and is asked for again.
pub(crate) const ANSWER_PIECES_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Neither side waits longer than this for the other to take or give the next bytes.
pub(crate) const STALL_SECONDS_MAX: u64 = if cfg!(test) { 1 } else { 30 };

/// Encrypted bytes that wait inside a connection for the socket.
pub(crate) const TLS_BUFFER_BYTES: usize = 256 * 1024;

const STATUS_MISSING: u8 = 0;
const STATUS_FOUND: u8 = 1;
const STATUS_NO_SUCH_SLICE: u8 = 2;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Whole objects; an entry is a key.
    Objects = 0,
    /// Pieces of objects and of slices.
    Pieces = 1,
    /// That slices are dropped.
    Free = 2,
    /// That an object is kept; one entry.
    Upload = 3,
}

impl Verb {
    /// Bytes of one entry of a request.
    pub(crate) fn entry_bytes(self) -> usize {
        match self {
            Self::Objects => KEY_BYTES,
            Self::Pieces => PIECE_BYTES,
            Self::Free => SLICE_BYTES,
            Self::Upload => UPLOAD_BYTES,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Objects),
            1 => Some(Self::Pieces),
            2 => Some(Self::Free),
            3 => Some(Self::Upload),
            _ => None,
        }
    }
}

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

/// What an answer says of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceAnswer {
    Missing,
    NoSuchSlice,
    Found {
        kind: u8,
        version: u64,
        total: u64,
        bytes: u64,
    },
}

impl PieceAnswer {
    pub(crate) fn encode(self) -> [u8; PIECE_ANSWER_HEADER_BYTES] {
        let mut header = [0; PIECE_ANSWER_HEADER_BYTES];
        match self {
            Self::Missing => header[0] = STATUS_MISSING,
            Self::NoSuchSlice => header[0] = STATUS_NO_SUCH_SLICE,
            Self::Found {
                kind,
                version,
                total,
                bytes,
            } => {
                header[0] = STATUS_FOUND;
                header[1] = kind;
                header[8..16].copy_from_slice(&version.to_le_bytes());
                header[16..24].copy_from_slice(&total.to_le_bytes());
                header[24..].copy_from_slice(&bytes.to_le_bytes());
            }
        }
        header
    }

    pub(crate) fn decode(header: [u8; PIECE_ANSWER_HEADER_BYTES]) -> Option<Self> {
        let [status, kind, 0, 0, 0, 0, 0, 0, ..] = header else {
            return None;
        };
        let [version, total, bytes] = [8, 16, 24].map(|start| number_at(&header, start));
        let is_bare = kind == 0 && version == 0 && total == 0 && bytes == 0;
        match status {
            STATUS_MISSING if is_bare => Some(Self::Missing),
            STATUS_NO_SUCH_SLICE if is_bare => Some(Self::NoSuchSlice),
            STATUS_FOUND if bytes <= total => Some(Self::Found {
                kind,
                version,
                total,
                bytes,
            }),
            _ => None,
        }
    }
}

/// What a server says of an upload.
pub(crate) fn encode_upload_answer(outcome: Result<(), BulkRefusal>) -> [u8; UPLOAD_ANSWER_BYTES] {
    let status = match outcome {
        Ok(()) => 1,
        Err(BulkRefusal::NoRoom) => 2,
        Err(BulkRefusal::TooMany) => 3,
        Err(BulkRefusal::NotTaken) => 4,
    };
    [status, 0, 0, 0, 0, 0, 0, 0]
}

/// What a server has said of an upload.
pub(crate) fn decode_upload_answer(
    header: [u8; UPLOAD_ANSWER_BYTES],
) -> Option<Result<(), BulkRefusal>> {
    match header {
        [1, 0, 0, 0, 0, 0, 0, 0] => Some(Ok(())),
        [2, 0, 0, 0, 0, 0, 0, 0] => Some(Err(BulkRefusal::NoRoom)),
        [3, 0, 0, 0, 0, 0, 0, 0] => Some(Err(BulkRefusal::TooMany)),
        [4, 0, 0, 0, 0, 0, 0, 0] => Some(Err(BulkRefusal::NotTaken)),
        _ => None,
    }
}

/// The header of a request for that many entries, which is also how its end is acknowledged where
/// nothing else is answered.
pub(crate) fn request_header(verb: Verb, count: usize) -> [u8; REQUEST_HEADER_BYTES] {
    let [a, b, c, d] = u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    [a, b, c, d, verb as u8, 0, 0, 0]
}

/// A request for up to [`REQUEST_ENTRIES_MAX`] whole objects.
pub(crate) fn encode_request(keys: &[u64]) -> Vec<u8> {
    let mut request = start(Verb::Objects, keys.len());
    for key in keys {
        request.extend_from_slice(&key.to_le_bytes());
    }
    request
}

/// A request for up to [`REQUEST_ENTRIES_MAX`] pieces.
pub(crate) fn encode_pieces(pieces: &[BulkPieceRequest]) -> Vec<u8> {
    let mut request = start(Verb::Pieces, pieces.len());
    for piece in pieces {
        for number in [piece.key, piece.offset, piece.bytes_max] {
            request.extend_from_slice(&number.to_le_bytes());
        }
        request.extend_from_slice(&u64::from(piece.slice).to_le_bytes());
    }
    request
}

/// A request to free up to [`REQUEST_ENTRIES_MAX`] slices.
pub(crate) fn encode_free(slices: &[(u64, u32)]) -> Vec<u8> {
    let mut request = start(Verb::Free, slices.len());
    for (key, slice) in slices {
        request.extend_from_slice(&key.to_le_bytes());
        request.extend_from_slice(&u64::from(*slice).to_le_bytes());
    }
    request
}

/// A request to keep an object, whose bytes follow when it is accepted.
pub(crate) fn encode_upload(upload: BulkUpload) -> Vec<u8> {
    let mut request = start(Verb::Upload, 1);
    for number in [upload.number, upload.bytes, u64::from(upload.kind)] {
        request.extend_from_slice(&number.to_le_bytes());
    }
    request
}

fn start(verb: Verb, count: usize) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST_HEADER_BYTES + count * verb.entry_bytes());
    request.extend_from_slice(&request_header(verb, count));
    request
}

/// What a request's header announces, if it is allowed.
pub(crate) fn decode_request(header: [u8; REQUEST_HEADER_BYTES]) -> Option<(Verb, usize)> {
    let [a, b, c, d, verb, 0, 0, 0] = header else {
        return None;
    };
    let count = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    let verb = Verb::from_number(verb)?;
    let most = match verb {
        Verb::Upload => 1,
        _ => REQUEST_ENTRIES_MAX,
    };
    (1..=most).contains(&count).then_some((verb, count))
}

/// The key of an entry that is nothing else.
pub(crate) fn decode_key(entry: &[u8]) -> u64 {
    number_at(entry, 0)
}

/// One entry of a request for pieces.
pub(crate) fn decode_piece(entry: &[u8]) -> Option<BulkPieceRequest> {
    Some(BulkPieceRequest {
        key: number_at(entry, 0),
        offset: number_at(entry, 8),
        bytes_max: number_at(entry, 16),
        slice: u32::try_from(number_at(entry, 24)).ok()?,
    })
}

/// One entry of a request to free slices.
pub(crate) fn decode_slice(entry: &[u8]) -> Option<(u64, u32)> {
    Some((
        number_at(entry, 0),
        u32::try_from(number_at(entry, 8)).ok()?,
    ))
}

/// The entry of a request to keep an object.
pub(crate) fn decode_upload(entry: &[u8]) -> Option<BulkUpload> {
    Some(BulkUpload {
        number: number_at(entry, 0),
        bytes: number_at(entry, 8),
        kind: u8::try_from(number_at(entry, 16)).ok()?,
    })
}

/// The number that stands there; zero past the end, which entries of the right length do not have.
fn number_at(bytes: &[u8], start: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(found) = bytes.get(start..start + 8) {
        number.copy_from_slice(found);
    }
    u64::from_le_bytes(number)
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

        #[test]
        fn answers_of_pieces_come_back(kind: u8, version: u64, total: u64, bytes: u64) {
            let answer = PieceAnswer::Found { kind, version, total, bytes };
            let decoded = PieceAnswer::decode(answer.encode());
            prop_assert_eq!(decoded, (bytes <= total).then_some(answer));
        }

        #[test]
        fn only_answers_of_pieces_are_decoded(
            start in prop::array::uniform8(0..3_u8),
            rest in prop::array::uniform24(any::<u8>()),
        ) {
            let mut header = [0; PIECE_ANSWER_HEADER_BYTES];
            header[..8].copy_from_slice(&start);
            header[8..].copy_from_slice(&rest);
            if let Some(answer) = PieceAnswer::decode(header) {
                prop_assert_eq!(answer.encode(), header);
            }
        }

        #[test]
        fn entries_come_back(
            entries in prop::collection::vec(any::<(u64, u32, u64, u64)>(), 1..50),
        ) {
            let pieces: Vec<_> = entries
                .iter()
                .map(|&(key, slice, offset, bytes_max)| BulkPieceRequest {
                    key, slice, offset, bytes_max,
                })
                .collect();
            let slices: Vec<_> = entries.iter().map(|entry| (entry.0, entry.1)).collect();
            let keys: Vec<_> = entries.iter().map(|entry| entry.0).collect();

            let (verb, body) = split(&encode_pieces(&pieces), pieces.len())?;
            prop_assert_eq!(verb, Verb::Pieces);
            let decoded: Option<Vec<_>> = body.chunks_exact(PIECE_BYTES).map(decode_piece).collect();
            prop_assert_eq!(decoded, Some(pieces));

            let (verb, body) = split(&encode_free(&slices), slices.len())?;
            prop_assert_eq!(verb, Verb::Free);
            let decoded: Option<Vec<_>> = body.chunks_exact(SLICE_BYTES).map(decode_slice).collect();
            prop_assert_eq!(decoded, Some(slices));

            let (verb, body) = split(&encode_request(&keys), keys.len())?;
            prop_assert_eq!(verb, Verb::Objects);
            let decoded: Vec<_> = body.chunks_exact(KEY_BYTES).map(decode_key).collect();
            prop_assert_eq!(decoded, keys);
        }

        #[test]
        fn entries_with_more_than_a_slice_are_refused(
            entry in prop::array::uniform32(any::<u8>()),
            place in 4..8_usize,
            rubbish in 1..u8::MAX,
        ) {
            let mut piece = entry;
            piece[24 + place] = rubbish;
            prop_assert_eq!(decode_piece(&piece), None);
            let mut slice = [0; SLICE_BYTES];
            slice[8 + place] = rubbish;
            prop_assert_eq!(decode_slice(&slice), None);
        }
    }

    #[test]
    fn uploads_and_their_answers_come_back() {
        let upload = BulkUpload {
            number: u64::MAX - 1,
            bytes: 1 << 40,
            kind: 5,
        };
        let request = encode_upload(upload);
        assert_eq!(request.len(), REQUEST_HEADER_BYTES + UPLOAD_BYTES);
        assert_eq!(
            decode_upload(&request[REQUEST_HEADER_BYTES..]),
            Some(upload)
        );
        let mut broken = request[REQUEST_HEADER_BYTES..].to_vec();
        broken[17] = 1;
        assert_eq!(decode_upload(&broken), None, "no such kind");
        let refusals = [
            BulkRefusal::NoRoom,
            BulkRefusal::TooMany,
            BulkRefusal::NotTaken,
        ];
        for outcome in refusals.map(Err).into_iter().chain([Ok(())]) {
            let answer = encode_upload_answer(outcome);
            assert_eq!(decode_upload_answer(answer), Some(outcome));
        }
        assert_eq!(decode_upload_answer([0; 8]), None);
        assert_eq!(decode_upload_answer([1, 0, 0, 0, 0, 0, 0, 1]), None);
    }

    /// Verb and entries of a request, whose count and length are as they should be.
    fn split(request: &[u8], count: usize) -> Result<(Verb, Vec<u8>), TestCaseError> {
        let mut header = [0; REQUEST_HEADER_BYTES];
        header.copy_from_slice(&request[..REQUEST_HEADER_BYTES]);
        let (verb, announced) = decode_request(header).unwrap();
        let body = request[REQUEST_HEADER_BYTES..].to_vec();
        prop_assert_eq!(announced, count);
        prop_assert_eq!(body.len(), count * verb.entry_bytes());
        Ok((verb, body))
    }

    #[test]
    fn counts_are_limited() {
        assert_eq!(
            Answer::decode(Answer::Missing.encode()),
            Some(Answer::Missing)
        );
        for answer in [PieceAnswer::Missing, PieceAnswer::NoSuchSlice] {
            assert_eq!(PieceAnswer::decode(answer.encode()), Some(answer));
        }
        let header = |count: u32, verb: u8| {
            let mut header = [0; REQUEST_HEADER_BYTES];
            header[..4].copy_from_slice(&count.to_le_bytes());
            header[4] = verb;
            header
        };
        for verb in [Verb::Objects, Verb::Pieces, Verb::Free] {
            let number = verb as u8;
            assert_eq!(decode_request(header(1, number)), Some((verb, 1)));
            let most = Some((verb, REQUEST_ENTRIES_MAX));
            assert_eq!(decode_request(header(16 * 1024, number)), most);
            assert_eq!(decode_request(header(0, number)), None);
            assert_eq!(decode_request(header(16 * 1024 + 1, number)), None);
        }
        assert_eq!(decode_request(header(1, 3)), Some((Verb::Upload, 1)));
        assert_eq!(
            decode_request(header(2, 3)),
            None,
            "uploads come one by one"
        );
        assert_eq!(decode_request(header(1, 4)), None);
        assert_eq!(decode_request([1, 0, 0, 0, 0, 0, 0, 1]), None);
    }
}
