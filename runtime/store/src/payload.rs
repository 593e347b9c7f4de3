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
}

impl PayloadKind {
    /// The kind behind its number on the wire.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Value),
            1 => Some(Self::Bytes),
            2 => Some(Self::Table),
            _ => None,
        }
    }
}

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

    /// Bytes in all parts.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }
}
