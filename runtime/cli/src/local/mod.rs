//! A cluster of processes on this machine, for `run` and `up`.
//!
//! Owns the processes, their certificates, their folder and their restarts. Knows nothing of
//! graphs: whoever started it talks to the scheduler as any client does.
//!
//! Invariants: no process and no file outlives the run, whatever ends it; a process that ends is
//! started again a bounded number of times, the scheduler at the same port and with its journal; the
//! processes reach each other over mutual TLS only.

mod cluster;
pub(crate) mod deaths;
mod folder;
mod member;
mod process;
mod ready;
mod report;
mod restarts;
pub(crate) mod tokens;

pub(crate) use cluster::{Listening, LocalCluster};
pub(crate) use ready::Ready;
