//! The bytes of a segment: its name, its header, and the frames after it.
//!
//! Owns every offset and constant of the format; the table is in the crate's documentation. Never
//! opens a file. Invariants: what is decoded was checked against its checksum; zeros never decode.

use std::fmt;

use crate::error::Damage;

/// The version of headers and frames that is written. Older ones down to [`FORMAT_OLDEST`] are read.
pub const FORMAT: u32 = 1;

/// The oldest version of headers and frames that is still read.
pub const FORMAT_OLDEST: u32 = 1;

/// The payload of one record is at most this long.
pub const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes before the first frame of a segment.
pub const HEADER_BYTES: usize = 80;

/// Bytes of a frame before its payload.
pub const FRAME_HEAD_BYTES: usize = 12;

/// A frame that holds a [`Mark`].
pub(crate) const MARK_FRAME_BYTES: usize = FRAME_HEAD_BYTES + MARK_BYTES;

const HEADER_MAGIC: [u8; 8] = *b"oxjournl";
pub(crate) const MARK_MAGIC: [u8; 8] = *b"oxcommit";
const HEADER_CHECKED_BYTES: usize = HEADER_BYTES - 4;
const MARK_BYTES: usize = 32;

/// Which life of a cluster's state a journal belongs to: a random number given by the caller.
///
/// A scheduler that starts without its journal starts a new incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Records in the order in which they were appended.
    Tail,
    /// The state before its tail segment, complete once its last frame is an end.
    Snapshot,
}

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) role: Role,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    /// A tail segment: the one before it, 0 if none. A snapshot: the tail segment that follows it.
    pub(crate) link: u64,
    /// How many bytes of the tail segment before this one count.
    pub(crate) link_bytes: u64,
    /// The sequence number of the first record after the header.
    pub(crate) sequence: u64,
    /// The caller's version of what is in the records.
    pub(crate) schema: u32,
}

/// What the first bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderBytes {
    /// A header.
    Good(Header),
    /// A format that this build does not read.
    Format(u32),
    /// Cut short or damaged.
    Bad,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let role: u32 = match self.role {
            Role::Tail => 1,
            Role::Snapshot => 2,
        };
        bytes[0..8].copy_from_slice(&HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&role.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.incarnation.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.number.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.link.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.link_bytes.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.schema.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..HEADER_CHECKED_BYTES]);
        bytes[HEADER_CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads what may be a header. The format is looked at before the checksum: another format may
    /// place everything else elsewhere.
    pub(crate) fn decode(bytes: &[u8]) -> HeaderBytes {
        if bytes.len() < 12 || bytes[0..8] != HEADER_MAGIC {
            return HeaderBytes::Bad;
        }
        let format = u32_at(bytes, 8);
        if format > FORMAT || (format < FORMAT_OLDEST && format != 0) {
            return HeaderBytes::Format(format);
        }
        if bytes.len() < HEADER_BYTES
            || crc32fast::hash(&bytes[..HEADER_CHECKED_BYTES])
                != u32_at(bytes, HEADER_CHECKED_BYTES)
        {
            return HeaderBytes::Bad;
        }
        let role = match u32_at(bytes, 12) {
            1 => Role::Tail,
            2 => Role::Snapshot,
            _ => return HeaderBytes::Bad,
        };
        let mut incarnation = [0; 16];
        incarnation.copy_from_slice(&bytes[16..32]);
        HeaderBytes::Good(Self {
            role,
            incarnation: Incarnation(u128::from_le_bytes(incarnation)),
            epoch: u64_at(bytes, 32),
            number: u64_at(bytes, 40),
            link: u64_at(bytes, 48),
            link_bytes: u64_at(bytes, 56),
            sequence: u64_at(bytes, 64),
            schema: u32_at(bytes, 72),
        })
    }
}

/// What the payload of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A record of the caller.
    Record = 1,
    /// Everything in the segment before this frame was durable when the frame was written.
    Mark = 2,
    /// The last frame of a complete snapshot.
    End = 3,
}

/// The part of a frame before its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameHead {
    pub(crate) length: usize,
    pub(crate) class: Class,
    pub(crate) kind: u16,
    pub(crate) checksum: u32,
}

impl FrameHead {
    /// Reads [`FRAME_HEAD_BYTES`]. The checksum is only known to fit once the payload is there.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let class = match bytes[4] {
            1 => Class::Record,
            2 => Class::Mark,
            3 => Class::End,
            _ => return Err(Damage::FrameHead),
        };
        let length = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX);
        if length > RECORD_BYTES_MAX || bytes[5] != 0 {
            return Err(Damage::FrameHead);
        }
        Ok(Self {
            length,
            class,
            kind: u16::from_le_bytes([bytes[6], bytes[7]]),
            checksum: u32_at(bytes, 8),
        })
    }
}

/// A position that proves itself: it names its own segment and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) number: u64,
    pub(crate) offset: u64,
    /// The sequence number of the next record; in an end, the number of records of the snapshot.
    pub(crate) sequence: u64,
}

impl Mark {
    pub(crate) fn encode(self, class: Class, salt: Salt) -> [u8; MARK_FRAME_BYTES] {
        let mut frame = [0; MARK_FRAME_BYTES];
        frame[12..20].copy_from_slice(&MARK_MAGIC);
        frame[20..28].copy_from_slice(&self.number.to_le_bytes());
        frame[28..36].copy_from_slice(&self.offset.to_le_bytes());
        frame[36..44].copy_from_slice(&self.sequence.to_le_bytes());
        let (head, payload) = frame.split_at_mut(FRAME_HEAD_BYTES);
        head.copy_from_slice(&frame_head(salt, NO_PLACE, (class, 0), &[payload]));
        frame
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() != MARK_BYTES || payload[0..8] != MARK_MAGIC {
            return None;
        }
        Some(Self {
            number: u64_at(payload, 8),
            offset: u64_at(payload, 16),
            sequence: u64_at(payload, 24),
        })
    }

    /// The mark in the bytes of a whole frame, if they are a frame of this class and undamaged.
    pub(crate) fn decode_frame(frame: &[u8], class: Class, salt: Salt) -> Option<Self> {
        let head = FrameHead::decode(frame.get(..FRAME_HEAD_BYTES)?).ok()?;
        let payload = frame.get(FRAME_HEAD_BYTES..MARK_FRAME_BYTES)?;
        let fits = head.class == class
            && head.length == MARK_BYTES
            && salt.checksum(NO_PLACE, &frame[..8], &[payload]) == head.checksum;
        fits.then(|| Self::decode(payload)).flatten()
    }
}

/// What checksums of one incarnation, or of one snapshot, begin with, so that bytes of another never
/// fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Salt(u32);

/// The place of frames that say themselves where they are.
pub(crate) const NO_PLACE: u64 = 0;

impl Salt {
    /// For tail segments. Not of one segment: a batch may be written again in the next one.
    pub(crate) fn tail(incarnation: Incarnation) -> Self {
        Self(crc32fast::hash(&incarnation.0.to_le_bytes()))
    }

    /// For the snapshot of this number.
    pub(crate) fn snapshot(incarnation: Incarnation, number: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(Self::tail(incarnation).0);
        hasher.update(&number.to_le_bytes());
        Self(hasher.finalize())
    }

    /// Over the place among the records, then length, class and kind, and the payload. With the
    /// place, a good record that stands where another should be does not fit.
    pub(crate) fn checksum(self, place: u64, head: &[u8], payload: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(&place.to_le_bytes());
        hasher.update(head);
        for part in payload {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// The head of a frame whose payload is these parts together. The caller has checked the length.
pub(crate) fn frame_head(
    salt: Salt,
    place: u64,
    (class, kind): (Class, u16),
    parts: &[&[u8]],
) -> [u8; FRAME_HEAD_BYTES] {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut head = [0; FRAME_HEAD_BYTES];
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    head[0..4].copy_from_slice(&length.to_le_bytes());
    head[4] = class as u8;
    head[6..8].copy_from_slice(&kind.to_le_bytes());
    let checksum = salt.checksum(place, &head[..8], parts);
    head[8..12].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// The file name of a segment.
pub(crate) fn segment_name(incarnation: Incarnation, number: u64) -> String {
    format!("journal-{incarnation}-{number:020}.log")
}

/// The incarnation and number in a file name, if it is one of ours.
pub(crate) fn parse_segment_name(name: &str) -> Option<(Incarnation, u64)> {
    let middle = name.strip_prefix("journal-")?.strip_suffix(".log")?;
    let (incarnation, number) = middle.split_once('-')?;
    let incarnation = Incarnation(u128::from_str_radix(incarnation, 16).ok()?);
    let number = number.parse().ok()?;
    (segment_name(incarnation, number) == name).then_some((incarnation, number))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        role: Role::Snapshot,
        incarnation: Incarnation(0x0123_4567_89ab_cdef),
        epoch: 3,
        number: 17,
        link: 16,
        link_bytes: 0,
        sequence: 1_000,
        schema: 2,
    };

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_passes() {
        let bytes = HEADER.encode();
        assert_eq!(Header::decode(&bytes), HeaderBytes::Good(HEADER));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = Header::decode(&flipped);
            assert!(!matches!(read, HeaderBytes::Good(_)), "bit {bit}");
        }
        for length in 0..HEADER_BYTES {
            assert_eq!(Header::decode(&bytes[..length]), HeaderBytes::Bad);
        }
    }

    #[test]
    fn a_newer_format_is_seen_before_the_checksum() {
        let mut bytes = HEADER.encode();
        bytes[8] = 9;
        assert_eq!(Header::decode(&bytes), HeaderBytes::Format(9));
    }

    #[test]
    fn names_read_back_and_others_are_not_ours() {
        let name = segment_name(HEADER.incarnation, 17);
        assert_eq!(parse_segment_name(&name), Some((HEADER.incarnation, 17)));
        for other in ["journal.lock", "journal-1-2.log", &format!("{name}.bak")] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }

    #[test]
    fn zeros_are_no_frame_and_marks_of_another_incarnation_do_not_fit() {
        assert!(FrameHead::decode(&[0; FRAME_HEAD_BYTES]).is_err());
        let (ours, other) = (Salt::tail(Incarnation(1)), Salt::tail(Incarnation(2)));
        let mark = Mark {
            number: 1,
            offset: 80,
            sequence: 5,
        };
        let frame = mark.encode(Class::Mark, ours);
        assert_eq!(Mark::decode_frame(&frame, Class::Mark, ours), Some(mark));
        assert_eq!(Mark::decode_frame(&frame, Class::Mark, other), None);
        assert_eq!(Mark::decode_frame(&frame, Class::End, ours), None);
    }

    #[test]
    fn a_record_fits_in_its_own_place_only() {
        let incarnation = Incarnation(1);
        let salts = [
            Salt::tail(incarnation),
            Salt::snapshot(incarnation, 4),
            Salt::snapshot(incarnation, 5),
        ];
        let mut checksums = std::collections::BTreeSet::new();
        for salt in salts {
            for place in 1..100 {
                checksums.insert(salt.checksum(place, &[0; 8], &[b"same"]));
            }
        }
        assert_eq!(checksums.len(), 3 * 99);
    }
}
