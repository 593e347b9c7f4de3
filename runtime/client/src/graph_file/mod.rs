//! Graph files: from lines of JSON to a plan that can be submitted.
//!
//! Owns the format's rules and its errors, the order of the tasks, and the cutting into chunks.
//! Opens no file and no connection: it reads from what it is given.
//!
//! Invariants of a [`GraphPlan`]: every task comes after its inputs; every task is needed for an
//! output; keys are unique; all limits hold. A whole file is checked before anything is submitted.

mod builder;
mod chunks;
mod error;
mod group;
mod interner;
mod line;
mod order;
mod plan;
mod reader;

pub use builder::{GraphPlanBuilder, TaskOptions};
pub use chunks::Chunks;
pub use error::{GraphFileError, Place};
pub use plan::GraphPlan;

/// Bytes of one line of a graph file.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// Bytes of one task's operation with its arguments; bodies travel whole.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Task resources, or workers, that one task may name.
pub const REQUIREMENT_NAMES_MAX: usize = 1_024;

/// In larger graphs an undefined key gets no suggestion.
pub const SUGGESTION_TASKS_MAX: usize = 10_000;
