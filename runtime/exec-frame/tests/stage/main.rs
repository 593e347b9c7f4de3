//! Queries as stages, against the same queries in one task.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::format_collect,
    clippy::format_push_string,
    reason = "these are tests"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers in tests"
)]

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod explaining;
#[cfg(test)]
mod graphs;
mod joins;
#[cfg(test)]
mod nonsense;
#[cfg(test)]
mod object_stores;
#[cfg(test)]
mod same;
#[cfg(test)]
mod shapes;
#[path = "../../../cli/tests/support/object_store.rs"]
#[allow(dead_code, reason = "other tests look at more of it")]
#[cfg(test)]
mod store;
#[cfg(test)]
mod tpch;
