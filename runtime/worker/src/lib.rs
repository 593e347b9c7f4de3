//! The worker service: fetch, execute, keep, report.
//!
//! Owns the worker's state machine ([`machine`], pure) and the shell around it: the stream to the
//! scheduler, runs of tasks, requests to peers, the data server and the open HTTP paths. Decides
//! nothing about placement and never opens a payload.
//!
//! Invariants: one loop owns the machine; a panic of a task fails that task only; every queue is
//! bounded; when the stream to the scheduler ends, everything that is held goes, and the worker
//! registers again or, if it was told so, says why and ends within a second.

mod config;
mod consumed;
mod copies;
mod error;
mod event_loop;
mod fetch;
mod http;
mod inputs;
pub mod machine;
mod memory;
mod metrics;
mod orders;
mod outbox;
mod pieces;
mod programs;
mod registration;
mod retry;
mod run;
mod serve;
mod sessions;
mod streams;

pub use config::{Listeners, SPILL_BYTES_MAX_DEFAULT, WorkerConfig};
pub use error::{Reported, WorkerError};
pub use serve::serve;
