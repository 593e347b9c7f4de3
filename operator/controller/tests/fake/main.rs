//! The operator as a process, against an API server in memory that fails on demand.
//!
//! What is tested is how it ends: the right objects, never more of them than there may be, and
//! silence afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "these are tests, which show logs when they fail"
)]

mod faults;
mod kills;
mod ownership;
mod scaling;
mod stage;
