//! What clients coordinate by, asked in JSON as they do.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod data;
mod driver;
mod locks;
mod properties;
