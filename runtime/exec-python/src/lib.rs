//! Runs tasks of Python in processes of their own.
//!
//! Owns the processes of a worker that run the code of clients: a fork server that has the libraries
//! loaded, and one child per slot that it forks ([`PythonExecutor`]). Results above 32 KiB lie in
//! memory that worker and children share, and are never copied. Never reads a pickle, and never runs
//! anything of Python in this process; the other side is `python/oxidask/_executor`.
//!
//! Invariants: no process outlives the worker; the end of a child fails the one task that it was
//! running, the others run elsewhere; nothing blocks while a lock is held.

mod child;
mod config;
mod death;
mod error;
mod executor;
mod fork_server;
mod frame;
mod line;
mod parts;
mod pipe;
mod pool;
mod segment;
mod send;
mod socket;
mod tail;
mod turn;

pub use config::{PythonConfig, SharedMemory};
pub use error::PythonError;
pub use executor::PythonExecutor;
