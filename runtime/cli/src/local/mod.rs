//! A cluster of processes on this machine, for `run` and `up`.
//!
//! Owns the processes, their certificates, their folder and their restarts. Knows nothing of
//! graphs: whoever started it talks to the scheduler as any client does.
//!
//! Invariants: no process and no file outlives the run, whatever ends it; a worker is started
//! again a bounded number of times; the processes reach each other over mutual TLS only.

mod cluster;
mod folder;
mod process;

pub(crate) use cluster::{Listening, LocalCluster};
