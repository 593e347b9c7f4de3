//! What the task of a value from a client is given: the value itself if it is small, otherwise the
//! number under which a worker keeps it.
//!
//! ```text
//! value:  0u8, kind u8, the bytes
//! number: 1u8, number u64, little endian
//! ```

use bytes::{Bytes, BytesMut};

/// The operation of such tasks.
pub const OPERATION: &str = "upload";

/// The body of such tasks, all of which share it.
pub const BODY: &[u8] = br#"{"op":"upload"}"#;

const VALUE: u8 = 0;
const NUMBER: u8 = 1;

/// The arguments of such a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadArguments {
    /// The value.
    Value {
        /// Its kind: see the store's `PayloadKind`.
        kind: u8,
        /// Its bytes.
        data: Bytes,
    },
    /// The number that it has at a worker.
    Number(u64),
}

impl UploadArguments {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Value { kind, data } => {
                let mut bytes = BytesMut::with_capacity(2 + data.len());
                bytes.extend_from_slice(&[VALUE, *kind]);
                bytes.extend_from_slice(data);
                bytes.freeze()
            }
            Self::Number(number) => {
                let mut bytes = BytesMut::with_capacity(9);
                bytes.extend_from_slice(&[NUMBER]);
                bytes.extend_from_slice(&number.to_le_bytes());
                bytes.freeze()
            }
        }
    }

    /// Reads what [`Self::encode`] wrote; shares the bytes of a value.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        match *bytes.first()? {
            VALUE => Some(Self::Value {
                kind: *bytes.get(1)?,
                data: bytes.slice(2..),
            }),
            NUMBER => {
                let number = bytes.get(1..)?.try_into().ok()?;
                Some(Self::Number(u64::from_le_bytes(number)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_back() {
        let value = UploadArguments::Value {
            kind: 5,
            data: Bytes::from_static(b"abc"),
        };
        let empty = UploadArguments::Value {
            kind: 1,
            data: Bytes::new(),
        };
        for arguments in [value, empty, UploadArguments::Number(u64::MAX - 3)] {
            assert_eq!(
                UploadArguments::decode(&arguments.encode()),
                Some(arguments)
            );
        }
        for broken in [&b""[..], b"\0", b"\x01abc", b"\x01123456789", b"\x02"] {
            assert_eq!(UploadArguments::decode(&Bytes::from_static(broken)), None);
        }
    }
}
