//! The scheduler and its workers in virtual time, with everything that can go wrong.
//!
//! Owns a virtual clock, a network that delays, breaks and partitions, workers that crash, clients
//! that come and go, and the rules that must hold whatever happens. The scheduler's core, the
//! worker machine and the store are the real ones; what stands between them follows the shells.
//! Never decides anything that the product decides, never reads a clock.
//!
//! Invariant: a [`Config`] is one run, exactly.

mod client;
mod config;
mod end;
mod faults;
mod fleet;
mod graphs;
mod journal;
mod makespan;
mod network;
mod open_ended;
mod presence;
mod process;
mod random;
mod relay;
mod scheduler;
mod session;
mod shrink;
mod watch;
mod watch_place;
mod watch_return;
mod wave;
mod world;

pub use config::{Config, NoConfig};
pub use makespan::{Makespan, makespans};
pub use shrink::shrink;
pub use wave::{Hour, square_wave};
pub use world::{Failure, Summary, run, run_with_log};
