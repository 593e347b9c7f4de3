//! Mutual TLS channels, peer identities and bulk transfer between processes.
//!
//! Owns everything between a TCP socket and a checked peer: TLS 1.3 with this cluster's
//! certificates, identities in both directions, channels for gRPC, the bulk data plane between
//! workers, and the bounds of the open HTTP ports. Knows no task and no graph; never looks into what it carries.
//!
//! Invariants: both ends prove an identity of the same cluster before a byte of a call is read;
//! names and addresses are never compared; no connection outlives its peer's certificate; every
//! wait has an end, and peers that send nonsense or nothing only harm themselves.

mod accept;
mod address;
mod bulk;
mod certificate;
mod channel;
mod connection;
mod credentials;
mod error;
mod handshake;
mod open_paths;
mod reload;
mod socket;
mod verify;
mod warnings;
mod watch;

pub use accept::incoming;
pub use address::check_address;
pub use bulk::{
    BULK_WHOLE, BulkFound, BulkObject, BulkPart, BulkParts, BulkPiece, BulkPieceRequest, BulkPool,
    BulkRead, BulkRefusal, BulkSink, BulkSource, BulkUpload, serve_bulk,
};
pub use channel::{connect, connect_with_tries, server};
pub use connection::{Connection, Peer, caller};
pub use credentials::{Credentials, install_crypto_provider};
pub use error::CommError;
pub use open_paths::{OpenListener, OpenStream};
pub use reload::keep_fresh;
