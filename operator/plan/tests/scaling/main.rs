//! Numbers of workers: decisions, drains, rolls and autoscalers, against a small API server and a
//! small scheduler in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` values read better by value"
)]

mod autoscalers;
mod decisions;
mod groups;
mod pods;
mod properties;
mod rolls;
mod world;
