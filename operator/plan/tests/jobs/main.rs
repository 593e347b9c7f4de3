//! The planner of jobs and schedules, against a small API server in memory that checks every plan.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` values read better by value"
)]

mod attempts;
mod deadlines;
mod properties;
mod runner;
mod schedules;
mod stock;
mod suspension;
mod world;
