//! The pure scheduler.
//!
//! Owns graphs, tasks, workers and every decision about them: `react(event, now)` changes state,
//! `place(now)` hands out work once per tick, both append [`Effect`]s to the caller's buffer.
//! Never opens a payload or a body, never waits, never reads a clock, a socket or a random source.

mod attempt;
mod backlog;
mod chunk;
mod column;
mod config;
mod crashes;
mod digest;
mod drain;
mod effect;
mod event;
mod explain;
mod fleet;
mod graph;
mod group;
mod ids;
mod invariants;
mod losses;
mod machine;
mod needs;
mod neighbours;
mod notes;
mod place;
mod pools;
mod react;
mod restore;
mod scope;
mod secede;
mod strand;
mod transitions;
mod turn;
mod view;

pub use backlog::{Backlog, ClassBacklog, GroupBacklog};
pub use chunk::*;
pub use config::CoreConfig;
pub use digest::{AttemptState, Digest};
pub use effect::Effect;
pub use event::{Event, Inventory, TaskReport, WorkerInfo, WorkerLoss};
pub use explain::{Explanation, FailureFacts, InputFacts, PlaceFacts, WaitFacts};
pub use ids::{Attempt, ClientId, GraphId, TaskIndex, TaskRef, Timestamp, WorkerId};
pub use invariants::Violation;
pub use machine::Core;
pub use neighbours::GraphShape;
pub use restore::{RestoreError, Restored};
pub use transitions::TaskState;
pub use view::{
    ClusterSummary, GraphProgress, GraphSummary, GroupProgress, WorkerStanding, WorkerSummary,
};
