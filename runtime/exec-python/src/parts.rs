//! Tasks that take one part of a value: groups of a shuffle, arrays of a decomposition.
//!
//! Owns the reading of the directory that `python/oxidask/_parts.py` writes. Such a task needs no
//! process of Python: the bytes of the part are its result. Whatever is not exactly as that module
//! writes it is left to a process of Python.

use bytes::{BufMut, Bytes, BytesMut};
use oxidask_store::{Payload, PayloadKind};
use tokio::task::spawn_blocking;

/// The first byte of arguments that take a part of the only input; its fingerprint follows.
const PART: u8 = 2;
/// Ends the directory, behind the pickle of the whole.
const MARK: &[u8; 8] = b"oxiparts";
/// Bytes of a number of the index, and of a fingerprint.
const NUMBER_BYTES: usize = 8;
/// Buffers begin at multiples of this.
const ALIGNMENT_BYTES: usize = 64;
/// More parts than this are never written.
const PARTS_MAX: usize = 4096;

/// A larger part is copied on a thread that may take its time.
const COPIED_HERE_BYTES_MAX: usize = 1 << 20;

/// The part of the input that a task takes, if that is all it does.
pub(crate) async fn taken(arguments: &[u8], inputs: &[Payload]) -> Option<Payload> {
    let (input, start, length) = found(arguments, inputs)?;
    let bytes = if length <= COPIED_HERE_BYTES_MAX {
        copied(&input.parts, start, length)?
    } else {
        let parts = input.parts.clone();
        let copying = spawn_blocking(move || copied(&parts, start, length));
        copying.await.ok()??
    };
    Some(Payload::new(PayloadKind::Python, bytes))
}

/// The input, and where the part begins in it and how long it is.
fn found<'a>(arguments: &[u8], inputs: &'a [Payload]) -> Option<(&'a Payload, usize, usize)> {
    let (&PART, rest) = arguments.split_first()? else {
        return None;
    };
    let [input] = inputs else { return None };
    if input.kind != PayloadKind::Python {
        return None;
    }
    let (start, length) = place(&input.parts, *rest.first_chunk()?)?;
    Some((input, start, length))
}

/// Where the part with this fingerprint begins in a payload, and how long it is.
fn place(parts: &[Bytes], fingerprint: [u8; NUMBER_BYTES]) -> Option<(usize, usize)> {
    let buffers = number(&copied(parts, 0, NUMBER_BYTES)?)?.checked_sub(1)?;
    if buffers == 0 || buffers > PARTS_MAX {
        return None;
    }
    let index_bytes = NUMBER_BYTES * (buffers + 2);
    let index = copied(parts, NUMBER_BYTES, index_bytes - NUMBER_BYTES)?;
    let mut lengths = index.chunks_exact(NUMBER_BYTES).map(number);
    let pickle_end = index_bytes.checked_add(lengths.next()??)?;
    let directory = pickle_end.checked_sub(NUMBER_BYTES * (buffers + 2))?;
    let written = copied(parts, directory, pickle_end - directory)?;
    let (fingerprints, end) = written.split_at(NUMBER_BYTES * buffers);
    if end.strip_suffix(MARK)? != (buffers as u64).to_le_bytes() {
        return None;
    }
    let mut fingerprints = fingerprints.chunks_exact(NUMBER_BYTES);
    let wanted = fingerprints.position(|one| *one == fingerprint)?;
    let mut end = pickle_end;
    for (buffer, length) in lengths.enumerate() {
        let length = length?;
        let start = if length == 0 {
            end
        } else {
            end.checked_next_multiple_of(ALIGNMENT_BYTES)?
        };
        if buffer == wanted {
            return Some((start, length));
        }
        end = start.checked_add(length)?;
    }
    None
}

fn number(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()
}

/// These bytes of a payload, without what is around them: it would stay in memory as long as they do.
fn copied(parts: &[Bytes], start: usize, length: usize) -> Option<Bytes> {
    let total: usize = parts.iter().map(Bytes::len).sum();
    if start.checked_add(length)? > total {
        return None;
    }
    let mut copy = BytesMut::with_capacity(length);
    let mut skipped = start;
    for part in parts {
        let here = part.get(skipped..).unwrap_or_default();
        skipped = skipped.saturating_sub(part.len());
        let missing = length - copy.len();
        copy.put_slice(&here[..here.len().min(missing)]);
    }
    Some(copy.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 8] = *b"one part";
    const OTHER: [u8; 8] = *b"another1";

    /// As `_parts.py` writes it: index, pickle with directory, two parts.
    fn whole(pickle: &[u8], contents: [&[u8]; 2]) -> Vec<u8> {
        let mut stream = pickle.to_vec();
        stream.extend(ONE);
        stream.extend(OTHER);
        stream.extend(2_u64.to_le_bytes());
        stream.extend(MARK);
        let mut bytes = Vec::new();
        for number in [3, stream.len(), contents[0].len(), contents[1].len()] {
            bytes.extend((number as u64).to_le_bytes());
        }
        bytes.extend(stream);
        for content in contents {
            if !content.is_empty() {
                bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
            }
            bytes.extend(content);
        }
        bytes
    }

    fn arguments(fingerprint: [u8; 8]) -> Vec<u8> {
        [&[PART], &fingerprint[..], b"\x01 the call"].concat()
    }

    fn part_of(arguments: &[u8], inputs: &[Payload]) -> Option<Vec<u8>> {
        let (input, start, length) = found(arguments, inputs)?;
        copied(&input.parts, start, length).map(Into::into)
    }

    fn part(bytes: &[u8], fingerprint: [u8; 8]) -> Option<Vec<u8>> {
        let input = Payload::new(PayloadKind::Python, bytes.to_vec());
        part_of(&arguments(fingerprint), &[input])
    }

    #[test]
    fn a_part_is_found_by_its_fingerprint() {
        let contents: [&[u8]; 2] = [&[1; 100], &[2; 7]];
        let bytes = whole(b"pickle.", contents);
        assert_eq!(part(&bytes, ONE).as_deref(), Some(contents[0]));
        assert_eq!(part(&bytes, OTHER).as_deref(), Some(contents[1]));
        assert_eq!(part(&bytes, *b"no part!"), None);
        let bytes = whole(b"pickle.", [&[], &[2; 7]]);
        assert_eq!(part(&bytes, ONE).as_deref(), Some(&[][..]));
        assert_eq!(part(&bytes, OTHER).as_deref(), Some(&[2; 7][..]));
    }

    #[test]
    fn a_payload_may_have_come_in_pieces() {
        let bytes = whole(b"a longer pickle.", [&[1; 100], &[2; 300]]);
        for size in [1, 7, 64, 1000] {
            let input = Payload {
                kind: PayloadKind::Python,
                parts: bytes.chunks(size).map(Bytes::copy_from_slice).collect(),
            };
            let part = part_of(&arguments(OTHER), &[input]);
            assert_eq!(part.as_deref(), Some(&[2; 300][..]));
        }
    }

    #[test]
    fn what_is_not_of_this_form_is_left_to_python() {
        let bytes = whole(b"pickle.", [&[1; 100], &[2; 7]]);
        let inputs = [Payload::new(PayloadKind::Python, bytes.clone())];
        assert_eq!(part_of(&arguments(ONE)[1..], &inputs), None);
        assert_eq!(part_of(&arguments(ONE)[..5], &inputs), None);
        assert_eq!(part_of(&[], &inputs), None);
        assert_eq!(part_of(&arguments(ONE), &[]), None);
        let [input] = inputs;
        assert_eq!(part_of(&arguments(ONE), &[input.clone(), input]), None);
        let table = Payload::new(PayloadKind::Table, bytes.clone());
        assert_eq!(part_of(&arguments(ONE), &[table]), None);
        let marked = bytes.windows(8).position(|window| window == MARK);
        let mut unmarked = bytes;
        unmarked[marked.expect("it has a mark")] = b'-';
        assert_eq!(part(&unmarked, ONE), None);
    }

    #[tokio::test]
    async fn a_large_part_is_the_same() {
        let content = vec![3; COPIED_HERE_BYTES_MAX + 1];
        let input = Payload::new(PayloadKind::Python, whole(b"pickle.", [&[1; 5], &content]));
        let part = taken(&arguments(OTHER), &[input]).await;
        assert!(part.is_some_and(|part| part.parts.concat() == content));
    }

    #[test]
    fn damage_is_never_more_than_left_to_python() {
        let bytes = whole(b"pickle.", [&[1; 100], &[2; 7]]);
        for length in 0..bytes.len() {
            let found = part(&bytes[..length], OTHER);
            assert!(found.is_none(), "{length}");
        }
        for position in 0..32 {
            for value in [0, 1, 2, 4, 255] {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                let _ = part(&damaged, ONE);
            }
        }
    }
}
