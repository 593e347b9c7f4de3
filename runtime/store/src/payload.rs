//! A result as bytes: what executors make, workers keep, and peers exchange.

use bytes::Bytes;

/// How the bytes of a payload are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadKind {
    /// One JSON value in compact form.
    Value = 0,
    /// Raw bytes.
    Bytes = 1,
    /// An Arrow IPC stream.
    Table = 2,
    /// Several byte strings behind an index, each of which can be read alone; see
    /// [`Payload::from_slices`].
    Slices = 3,
    /// The tasks that a planning task has made: `PlannedGraph` of the protocol.
    Graph = 4,
    /// A value of Python: how many byte strings and how long each is, as `u64`; then the pickle, and
    /// the buffers that belong to it, each at a multiple of 64 bytes.
    Python = 5,
}

impl PayloadKind {
    /// The kind behind its number on the wire.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Value),
            1 => Some(Self::Bytes),
            2 => Some(Self::Table),
            3 => Some(Self::Slices),
            4 => Some(Self::Graph),
            5 => Some(Self::Python),
            _ => None,
        }
    }
}

/// Bytes of one entry of the index of a payload of slices.
const SLICE_INDEX_ENTRY_BYTES: usize = 8;

/// A result: its kind and its bytes, in parts that are read one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// How to read it.
    pub kind: PayloadKind,
    /// The bytes. Parts are shared, not copied, when a payload is cloned.
    pub parts: Vec<Bytes>,
}

impl Payload {
    /// A payload of one part.
    pub fn new(kind: PayloadKind, bytes: impl Into<Bytes>) -> Self {
        Self {
            kind,
            parts: vec![bytes.into()],
        }
    }

    /// The JSON value `null`.
    pub fn null() -> Self {
        Self::new(PayloadKind::Value, Bytes::from_static(b"null"))
    }

    /// A payload of slices, each given as parts.
    ///
    /// The first part is the index: the number of slices as `u64`, then the length of each as
    /// `u64`, little endian. The slices follow. Every slice keeps its own parts, so that one can
    /// be dropped without copying the others.
    pub fn from_slices(slices: Vec<Vec<Bytes>>) -> Self {
        let mut index = Vec::with_capacity(SLICE_INDEX_ENTRY_BYTES * (slices.len() + 1));
        index.extend_from_slice(&(slices.len() as u64).to_le_bytes());
        for slice in &slices {
            let bytes: u64 = slice.iter().map(|part| part.len() as u64).sum();
            index.extend_from_slice(&bytes.to_le_bytes());
        }
        let parts = std::iter::once(Bytes::from(index))
            .chain(slices.into_iter().flatten().filter(|part| !part.is_empty()))
            .collect();
        Self {
            kind: PayloadKind::Slices,
            parts,
        }
    }

    /// The lengths of the slices; `None` if this is no payload of slices or its index is damaged.
    pub fn slice_lengths(&self) -> Option<Vec<u64>> {
        let index = (self.kind == PayloadKind::Slices).then(|| self.parts.first())??;
        let mut numbers = index.chunks_exact(SLICE_INDEX_ENTRY_BYTES).map(|entry| {
            let mut number = [0; SLICE_INDEX_ENTRY_BYTES];
            number.copy_from_slice(entry);
            u64::from_le_bytes(number)
        });
        let count = usize::try_from(numbers.next()?).ok()?;
        let lengths: Vec<u64> = numbers.collect();
        let total = lengths
            .iter()
            .try_fold(0_u64, |sum, length| sum.checked_add(*length))?;
        let is_whole = lengths.len() == count && total + index.len() as u64 == self.len();
        is_whole.then_some(lengths)
    }

    /// The same with the index as a part of its own, as [`Payload::slice_lengths`] wants it, for a
    /// payload that was read as one buffer.
    #[must_use]
    pub fn with_index_apart(self) -> Self {
        let count = self.parts.first().and_then(|part| part.first_chunk());
        let count = count.and_then(|number| usize::try_from(u64::from_le_bytes(*number)).ok());
        let index_bytes =
            count.and_then(|count| count.checked_add(1)?.checked_mul(SLICE_INDEX_ENTRY_BYTES));
        let first = self
            .parts
            .first()
            .filter(|_| self.kind == PayloadKind::Slices);
        let (Some(first), Some(index_bytes)) = (first, index_bytes) else {
            return self;
        };
        if first.len() <= index_bytes {
            return self;
        }
        let cut = [first.slice(..index_bytes), first.slice(index_bytes..)];
        let others = self.parts.iter().skip(1).cloned();
        Self {
            kind: self.kind,
            parts: cut.into_iter().chain(others).collect(),
        }
    }

    /// Bytes in all parts.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }
}
