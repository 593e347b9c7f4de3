//! The bulk data plane: results from the process that holds them, without a limit of size.
//!
//! A connection carries requests one after the other. A request is a list of keys; the answer has
//! a header for each key in the same order, followed by the bytes of the object if there is one.
//! A key is an opaque number here.
//!
//! ```text
//! request: count u32, zero u32, count times (key u64)
//! answer:  count times (status u8, kind u8, zero [u8; 6], length u64, length bytes)
//! ```
//!
//! All numbers are little endian. Neither side copies what it need not: a server writes from the
//! parts that its store holds, a client reads into the buffers that it hands out.

mod client;
mod frame;
mod pool;
mod server;
mod transfer;

use bytes::Bytes;

pub use pool::BulkPool;
pub use server::serve_bulk;

/// An object: what kind it is and its bytes, in parts that are read one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkObject {
    /// A number that both ends understand; not looked at here.
    pub kind: u8,
    /// The bytes. Their division into parts is not kept by a transfer.
    pub parts: Vec<Bytes>,
}

impl BulkObject {
    /// Bytes in all parts.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }
}

/// Where a server takes objects from. Called on the connection's task: it must not block.
pub trait BulkSource: Send + Sync + 'static {
    /// The object, or nothing if it is not here.
    fn get(&self, key: u64) -> Option<BulkObject>;
}

/// A piece of an answer, for whoever passes it on: each key gives `Missing`, `Whole`, or `Start`,
/// any number of `Data` and `End`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkPart {
    /// The peer does not have it.
    Missing {
        /// Which.
        key: u64,
    },
    /// A small object at once.
    Whole {
        /// Which.
        key: u64,
        /// Its kind.
        kind: u8,
        /// Its bytes.
        data: Bytes,
    },
    /// A large object begins.
    Start {
        /// Which.
        key: u64,
        /// Its kind.
        kind: u8,
        /// Bytes that follow.
        bytes: u64,
    },
    /// The next bytes of the object, at most 1 MiB.
    Data(Bytes),
    /// The object is complete.
    End {
        /// Which.
        key: u64,
    },
}
