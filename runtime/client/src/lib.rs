//! Client library: graph files, sessions, results.
//!
//! Owns the checking and ordering of graph files ([`graph_file`]), and the talk with a scheduler:
//! submitting a graph, also one that a task
//! has planned ([`PlannedGraph`]), hearing what becomes of it, reading its results. Never prints, never decides
//! an exit status, never talks to a worker.
//!
//! Invariants: what waits in either direction is bounded; a scheduler that is gone shows as
//! [`GraphEvent::Disconnected`], never as silence.

mod commands;
mod error;
mod events;
pub mod graph_file;
mod planned;
mod results;
mod session;

pub use error::ClientError;
pub use events::GraphEvent;
pub use planned::{PlannedGraph, PlannedGraphError};
pub use session::{Client, GraphRun};
