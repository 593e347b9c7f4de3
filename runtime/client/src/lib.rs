//! Client library: graph files, sessions, results.
//!
//! Owns the checking and ordering of graph files ([`graph_file`]), the sessions of clients of Dask
//! ([`futures`]), and the talk with a scheduler:
//! submitting a graph, also one that a task
//! has planned ([`PlannedGraph`]), hearing what becomes of it, reading its results. Never prints, never decides
//! an exit status, never talks to a worker.
//!
//! Invariants: what waits in either direction is bounded; a connection that breaks is made again, and
//! what may have been lost is said again; a scheduler that stays away shows as
//! [`GraphEvent::Disconnected`], never as silence.

mod bits;
mod calls;
mod commands;
mod error;
mod events;
pub mod futures;
pub mod graph_file;
mod link;
mod pauses;
mod planned;
mod results;
mod session;

pub use error::ClientError;
pub use events::GraphEvent;
pub use pauses::Pauses;
pub use planned::{PlannedGraph, PlannedGraphError};
pub use session::{Client, GraphRun, RECONNECT_TIME_DEFAULT};
