//! Who a process is: roles, identities, and how long a certificate says so.
//!
//! Owns the URI in each certificate and what is read from a certificate besides its chain. Used by
//! the programs that check certificates and by the ones that make them. Never checks a chain, never
//! opens a file or a socket, never decides who may call what.
//!
//! Invariants: an [`Identity`] and its URI are the same thing in two forms; whatever bytes come,
//! nothing here panics.

mod digest;
mod error;
mod identity;
mod validity;

pub use digest::{bundle_digest, certificate_digest};
pub use error::IdentityError;
pub use identity::{FORM, Identity, NAME_BYTES_MAX, Role};
pub use validity::not_after;
