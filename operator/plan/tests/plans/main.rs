//! The planners as a whole, against a small API server in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` values read better by value"
)]

mod clusters;
mod jobs;
mod manifests;
mod properties;
mod repairs;
mod rotations;
mod scripts;
mod support;
