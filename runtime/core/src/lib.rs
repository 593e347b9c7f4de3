//! The pure scheduler.
//!
//! Owns graphs, tasks, workers and every decision about them: `react(event, now)` changes state,
//! `place(now)` hands out work once per tick, both append [`Effect`]s to the caller's buffer.
//! Never opens a payload or a body, never waits, never reads a clock, a socket or a random source.

mod chunk;
mod config;
mod effect;
mod event;
mod fleet;
mod graph;
mod ids;
mod invariants;
mod losses;
mod machine;
mod place;
mod react;
mod scope;
mod transitions;
mod view;

pub use chunk::*;
pub use config::CoreConfig;
pub use effect::Effect;
pub use event::{Event, TaskReport, WorkerInfo, WorkerLoss};
pub use ids::{Attempt, ClientId, GraphId, TaskIndex, TaskRef, Timestamp, WorkerId};
pub use invariants::Violation;
pub use machine::Core;
pub use transitions::TaskState;
pub use view::{ClusterSummary, GraphProgress, GraphSummary, GroupProgress, WorkerSummary};
