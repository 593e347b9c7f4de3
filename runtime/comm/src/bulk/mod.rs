//! The bulk data plane: results from the process that holds them, without a limit of size.
//!
//! A connection carries requests one after the other. A request is a list of entries of one kind:
//! whole objects, pieces, slices to be freed, or an object that is brought; the answer has a header for each entry in the same
//! order, followed by the bytes if there are any. A key is an opaque number here, and so is what a
//! slice of an object is. Numbers on the wire: see `frame`.
//!
//! Neither side copies what it need not: a server writes from the parts that its store holds, a
//! client reads into the buffers that it hands out. An answer of pieces has a bound: the first
//! entry that has bytes left gets some, others may come short.

mod client;
mod frame;
mod pool;
mod server;
mod transfer;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;

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

/// The slice that stands for all bytes of an object.
pub const BULK_WHOLE: u32 = u32::MAX;

/// A piece of an object, or of one of its slices, to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkPieceRequest {
    /// The object.
    pub key: u64,
    /// Which slice of it, or [`BULK_WHOLE`].
    pub slice: u32,
    /// Where the piece begins in the slice.
    pub offset: u64,
    /// How long it may be at most.
    pub bytes_max: u64,
}

/// A piece as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkPiece {
    /// The kind of the object.
    pub kind: u8,
    /// Differs between two objects that one process held under the same key. Pieces of different
    /// versions do not belong together.
    pub version: u64,
    /// The length of the whole slice.
    pub total_bytes: u64,
    /// The bytes, never more than were asked for. Fewer, or none although some are left, if the
    /// answer held enough already.
    pub parts: Vec<Bytes>,
}

impl BulkPiece {
    /// Bytes in all parts.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }
}

/// What became of a request for a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkRead {
    /// The object is not there, or this slice of it not any more.
    Missing,
    /// The object is there, and has never had that many slices.
    NoSuchSlice,
    /// The piece.
    Found(BulkPiece),
}

impl BulkRead {
    /// The piece, if there is one.
    pub fn piece(self) -> Option<BulkPiece> {
        match self {
            Self::Found(piece) => Some(piece),
            Self::Missing | Self::NoSuchSlice => None,
        }
    }
}

/// What a source has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkFound {
    /// Nothing.
    Missing,
    /// The object, at hand.
    Here(BulkObject),
    /// An object that must be read piece by piece with [`BulkSource::read`].
    Stored {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: u64,
    },
}

impl From<Option<BulkObject>> for BulkFound {
    fn from(object: Option<BulkObject>) -> Self {
        object.map_or(Self::Missing, Self::Here)
    }
}

/// An object that the scheduler brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkUpload {
    /// What it is called until somebody adopts it.
    pub number: u64,
    /// Its kind.
    pub kind: u8,
    /// Its length.
    pub bytes: u64,
}

/// Why an object that was brought is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkRefusal {
    /// There is no room for it now.
    NoRoom,
    /// Too many wait to be adopted.
    TooMany,
    /// Objects of this kind, or any, are not taken.
    NotTaken,
}

/// The bytes of an object that is brought, one part after the other.
pub type BulkParts<'a> = dyn Stream<Item = Bytes> + Send + Unpin + 'a;

/// Room for an object that is on its way. Dropped, it is given back.
pub trait BulkSink: Send {
    /// All of it is here. Must not block.
    fn keep(self: Box<Self>, parts: Vec<Bytes>) -> Result<(), BulkRefusal>;
}

/// Where a server takes objects from.
pub trait BulkSource: Send + Sync + 'static {
    /// What is there. Called on the connection's task: it must not block.
    fn find(&self, key: u64) -> BulkFound;

    /// Reads a piece. With `bytes_max` of 0 it only looks. An empty piece means that the offset is
    /// at or past the end, or that nothing was asked for.
    fn read(&self, request: BulkPieceRequest) -> BoxFuture<'_, BulkRead>;

    /// Nobody will read these slices any more. Must not block.
    fn free(&self, slices: &[(u64, u32)]);

    /// Makes room for an object that the scheduler brings. Must not block.
    fn upload(&self, _upload: BulkUpload) -> Result<Box<dyn BulkSink>, BulkRefusal> {
        Err(BulkRefusal::NotTaken)
    }
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
