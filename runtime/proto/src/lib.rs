//! Messages on the wire, and conversions to domain types.
//!
//! Owns the protocol: its version, its limits, the generated messages ([`wire`]) and one module of
//! conversions per kind of message. Never opens a socket, never reads a body or a payload, never
//! decides who may call what.
//!
//! Invariants: conversions are lossless in both directions; whatever comes from a peer is checked
//! here once, so that the core may index columns without asking again; nothing here panics.

mod error;
pub mod fault;
pub mod graph;
pub mod hello;
pub mod ids;
pub mod inventory;
pub mod keda;
pub mod report;
pub mod upload;
pub mod wire;

pub use error::ProtoError;
pub use hello::{BUILD, PROTOCOL_VERSION};

/// Bytes of one encoded message. Set it on both sides of each stream; tonic's own limit is 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of a result that travels beside the report of its end, and beside the news for clients.
pub const SMALL_VALUE_BYTES_MAX: usize = 1024;

/// Bytes at which a sender closes a chunk of a graph and begins the next.
pub const CHUNK_BYTES_TARGET: usize = 1024 * 1024;
