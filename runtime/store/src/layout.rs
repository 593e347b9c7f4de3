//! Where the slices of a payload lie, and its bytes with gaps where slices were freed.

use std::ops::Range;

use bytes::Bytes;

use crate::payload::{Payload, PayloadKind};

/// The slice that stands for all bytes of a result.
pub const WHOLE: u32 = u32::MAX;

/// Bits of one word of a set.
const WORD_BITS: usize = 64;

/// Where the slices of a payload are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) kind: PayloadKind,
    /// All bytes.
    pub(crate) bytes: u64,
    /// Where the slices begin: before that is their index.
    slices_start: u64,
    /// Where each slice ends.
    slice_ends: Vec<u64>,
}

impl Layout {
    pub(crate) fn of(payload: &Payload) -> Self {
        let bytes = payload.len();
        let lengths = payload.slice_lengths().unwrap_or_default();
        let slices_start = bytes - lengths.iter().sum::<u64>();
        let mut end = slices_start;
        let ends = lengths.iter().map(|length| {
            end += length;
            end
        });
        Self {
            kind: payload.kind,
            bytes,
            slices_start,
            slice_ends: ends.collect(),
        }
    }

    /// The bytes of a slice.
    pub(crate) fn slice(&self, slice: u32) -> Option<Range<u64>> {
        if slice == WHOLE {
            return Some(0..self.bytes);
        }
        let at = usize::try_from(slice).ok()?;
        let end = *self.slice_ends.get(at)?;
        Some(self.slice_start(at)..end)
    }

    pub(crate) fn slice_count(&self) -> u32 {
        u32::try_from(self.slice_ends.len()).unwrap_or(u32::MAX)
    }

    fn slice_start(&self, at: usize) -> u64 {
        at.checked_sub(1)
            .and_then(|before| self.slice_ends.get(before).copied())
            .unwrap_or(self.slices_start)
    }

    /// Stretches of bytes that are read alone, without the freed ones and without empty ones.
    pub(crate) fn stretches<'a>(
        &'a self,
        freed: &'a SliceSet,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let slices = self.slice_ends.iter().enumerate();
        let kept = slices.filter(|(at, _)| !freed.contains(*at));
        std::iter::once(0..self.slices_start)
            .chain(kept.map(|(at, end)| self.slice_start(at)..*end))
            .filter(|stretch| !stretch.is_empty())
    }
}

/// Which slices were freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SliceSet {
    words: Vec<u64>,
}

impl SliceSet {
    /// Whether it was new.
    pub(crate) fn insert(&mut self, slice: usize) -> bool {
        let (word, bit) = (slice / WORD_BITS, 1_u64 << (slice % WORD_BITS));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let before = self.words[word];
        self.words[word] = before | bit;
        before & bit == 0
    }

    pub(crate) fn contains(&self, slice: usize) -> bool {
        let word = self.words.get(slice / WORD_BITS).copied().unwrap_or(0);
        word & (1 << (slice % WORD_BITS)) != 0
    }

    /// Whether something of a slice, or of the whole, was freed.
    pub(crate) fn is_touched(&self, slice: u32) -> bool {
        if slice == WHOLE {
            return !self.is_empty();
        }
        usize::try_from(slice).is_ok_and(|at| self.contains(at))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

/// The bytes of a payload that are in memory, each part with its place.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    parts: Vec<(u64, Bytes)>,
}

impl Body {
    pub(crate) fn of(parts: Vec<Bytes>) -> Self {
        let mut start = 0;
        let placed = parts.into_iter().map(|part| {
            let at = start;
            start += part.len() as u64;
            (at, part)
        });
        Self {
            parts: placed.collect(),
        }
    }

    /// All parts, if nothing was freed.
    pub(crate) fn parts(&self) -> Vec<Bytes> {
        self.parts.iter().map(|(_, part)| part.clone()).collect()
    }

    /// The bytes of a range; `None` if some of them were freed.
    pub(crate) fn range(&self, range: Range<u64>) -> Option<Vec<Bytes>> {
        let first = self
            .parts
            .partition_point(|(start, part)| start + part.len() as u64 <= range.start);
        let (mut at, mut found) = (range.start, Vec::new());
        for (start, part) in self.parts.get(first..)? {
            if at >= range.end {
                break;
            }
            if *start > at {
                return None;
            }
            let end = range.end.min(start + part.len() as u64);
            let within = usize::try_from(at - start).ok()?..usize::try_from(end - start).ok()?;
            if !within.is_empty() {
                found.push(part.slice(within));
            }
            at = end;
        }
        (at >= range.end).then_some(found)
    }

    /// Takes the parts out that lie in a range wholly.
    pub(crate) fn release(&mut self, range: &Range<u64>) -> Vec<Bytes> {
        let lies_within = |start: u64, part: &Bytes| {
            start >= range.start && start + part.len() as u64 <= range.end
        };
        let released = self.parts.extract_if(.., |(start, part)| {
            lies_within(*start, part) && !part.is_empty()
        });
        released.map(|(_, part)| part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sliced() -> Payload {
        let slice = |text: &'static [u8]| vec![Bytes::from_static(text)];
        let two = vec![Bytes::from_static(b"gh"), Bytes::from_static(b"ijk")];
        Payload::from_slices(vec![slice(b"abc"), Vec::new(), slice(b"def"), two])
    }

    #[test]
    fn slices_are_found_behind_their_index() {
        let payload = sliced();
        let layout = Layout::of(&payload);
        assert_eq!(layout.bytes, 40 + 11);
        assert_eq!(layout.slice(0), Some(40..43));
        assert_eq!(layout.slice(1), Some(43..43));
        assert_eq!(layout.slice(3), Some(46..51));
        assert_eq!(layout.slice(4), None);
        assert_eq!(layout.slice(WHOLE), Some(0..51));
        let body = Body::of(payload.parts);
        let read = |range| body.range(range).map(|parts| parts.concat());
        assert_eq!(read(40..43).unwrap(), b"abc");
        assert_eq!(read(42..49).unwrap(), b"cdefghi");
        assert_eq!(read(51..51).unwrap(), b"");
        assert_eq!(read(50..52), None);
    }

    #[test]
    fn a_freed_slice_is_a_gap() {
        let payload = sliced();
        let layout = Layout::of(&payload);
        let mut body = Body::of(payload.parts);
        let released = body.release(&layout.slice(2).unwrap());
        assert_eq!(released, [Bytes::from_static(b"def")]);
        assert_eq!(body.range(43..46), None);
        assert_eq!(body.range(40..44), None);
        assert_eq!(body.range(46..51).unwrap().concat(), b"ghijk");
        let mut freed = SliceSet::default();
        assert!(freed.is_empty() && freed.insert(2) && !freed.insert(2));
        assert!(freed.insert(200) && freed.contains(200) && !freed.contains(199));
        let stretches: Vec<_> = layout.stretches(&freed).collect();
        assert_eq!(stretches, [0..40, 40..43, 46..51]);
    }

    #[test]
    fn a_payload_without_slices_is_one_stretch() {
        let payload = Payload::new(PayloadKind::Slices, Bytes::from_static(b"damaged"));
        let layout = Layout::of(&payload);
        assert_eq!(layout.slice(0), None);
        let stretches: Vec<_> = layout.stretches(&SliceSet::default()).collect();
        assert_eq!(stretches, std::slice::from_ref(&(0..7)));
    }
}
