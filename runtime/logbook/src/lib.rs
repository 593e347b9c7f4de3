//! The newest log lines of a process, within bounds.
//!
//! Owns the ring that forgets its oldest items ([`Ring`]), the lines of a process ([`Logbook`]),
//! what hides secrets in them, and, with the feature `layer`, what fills a logbook from `tracing`
//! and log lines as JSON. Knows no network and no file.
//!
//! Invariants: lines and bytes stay within their bounds whatever is written; what was forgotten
//! before somebody read it is counted; a line has no control characters and no known secret.

mod book;
#[cfg(feature = "layer")]
mod layer;
mod line;
mod ring;
mod secrets;

pub use book::{Cursor, Logbook, Taken};
#[cfg(feature = "layer")]
pub use layer::{JsonLines, LogbookLayer};
pub use line::{LINE_BYTES_MAX, Level, Line, now_micros};
pub use ring::{Bounds, Ring};
pub use secrets::{HIDDEN, Secrets, is_secret_name};
