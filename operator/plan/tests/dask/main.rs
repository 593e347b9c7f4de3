//! Clusters of the runtime `Dask`: what dask-kubernetes makes, and what it gets wrong.
//!
//! Each scenario says in its first lines what happens with dask-kubernetes 2026.3.0.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` values read better by value"
)]

mod scaling;
mod shape;
mod takeover;
mod world;
