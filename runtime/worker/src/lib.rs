//! The worker service: fetch, execute, keep, report.
//!
//! Owns the shell around the worker's state machine (`oxidask_worker_machine`): the stream to the
//! scheduler, runs of tasks, requests to peers, the data server and the open HTTP paths. Decides
//! nothing about placement and never opens a payload.
//!
//! Invariants: one loop owns the machine; a panic of a task fails that task only; every queue is
//! bounded; when the stream to the scheduler breaks, runs and results stay, and the worker looks for
//! the scheduler for a bounded time; one that does not know it any more makes it drop everything.

mod body;
mod cgroup;
mod commands;
mod config;
mod consumed;
mod copies;
mod error;
mod event_loop;
mod fetch;
mod http;
pub mod init;
mod inputs;
mod leaving;
mod link;
mod logs;
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
mod slots;
mod streams;
mod uploads;
mod values;

pub use cgroup::memory_limit_bytes;
pub use config::{Listeners, SPILL_BYTES_MAX_DEFAULT, WorkerConfig};
pub use error::{Reported, WorkerError};
pub use memory::thresholds::{MemoryShares, MemoryThresholds, SharesError};
pub use registration::data_address;
pub use serve::{Ends, serve, serve_until};
