//! Futures of clients of Dask, as pure state.
//!
//! Owns which keys there are, which clients want them ([`keys`]), what clients coordinate by: locks,
//! queues, variables, published data ([`coordination`]), and the text of questions about the cluster
//! ([`questions`]). Functions of (state, event, now): no tokio, clock, socket or randomness. Never
//! opens a value, never decides where a task runs.

pub mod coordination;
mod error;
pub mod keys;
pub mod questions;

pub use error::FuturesError;
