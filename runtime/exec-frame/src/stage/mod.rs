//! A query as stages: many tasks that exchange rows through their results.
//!
//! A *stage* is the part of a plan between two exchanges. Its partitions are tasks that share one
//! body and differ by their part. Owns the cut of a plan ([`cut`]), the bytes of a stage
//! ([`codec`]), how rows are written to and read from results ([`mod@write`], [`read`]), the
//! operation `stage` ([`task`]), the decision whether a query is worth stages ([`decide`]) and the
//! graph that the client submits ([`graph`]).
//!
//! Invariants: a plan is made for the whole width and cut afterwards; every task has a plan
//! instance of its own; a query that cannot be cut runs as one task and never fails for it.

mod blame;
mod codec;
mod cut;
mod decide;
mod functions;
mod graph;
mod leaf;
mod names;
mod plan;
mod properties;
mod read;
mod rewrite;
mod scans;
mod settings;
mod subquery;
mod task;
#[cfg(test)]
mod traps;
mod write;

use std::ops::Range;
use std::sync::Arc;

use datafusion::config::ConfigOptions;
use datafusion::physical_plan::{ExecutionPlan, Partitioning};

use crate::sink::Output;

pub(crate) use graph::{LastTask, LastTaskInputs};
pub(crate) use leaf::StageReadExec;
pub(crate) use plan::{Goal, PlanRequest, Planned, plan_statement};
pub(crate) use settings::OxidaskOptions;
pub(crate) use task::{STAGE, StageProgram};

/// A query that has been cut.
#[derive(Debug, Clone)]
pub(crate) struct StagePlan {
    /// The query's key: `query-1`. Keys of its tasks begin with it.
    pub(crate) name: String,
    /// Producers come before their consumers. The last stage gives the result.
    pub(crate) stages: Vec<Stage>,
    /// For how many tasks a stage the plan was made.
    pub(crate) width: usize,
    /// One slot's time for all of it, estimated.
    pub(crate) micros: u64,
    /// The options under which it was planned, all of which its tasks get.
    pub(crate) options: Arc<ConfigOptions>,
    /// The statement's place, in front of errors of its tasks: `statement 1 (q.sql:3)`.
    pub(crate) place: String,
    /// A task behind the last stage, whose result is the statement's.
    pub(crate) last_task: Option<LastTask>,
}

/// The part of a plan between two exchanges.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// What it does, for people: `scan lineitem`, `join`, `sort`.
    pub(crate) name: String,
    /// What each task runs, one partition of it; its inputs are leaves.
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// How many tasks: the partitions of the plan.
    pub(crate) tasks: usize,
    /// Where the rows of its leaves come from.
    pub(crate) edges: Vec<Edge>,
    /// Where its rows go.
    pub(crate) output: StageOutput,
}

/// What one leaf of a stage reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The index of the stage whose results are read.
    pub(crate) producer: usize,
    /// How many tasks that stage has.
    pub(crate) producers: usize,
    /// Which of its slices are read.
    pub(crate) mode: EdgeMode,
    /// The tasks of the reading stage that read it; below a UNION not all of them. The tasks of a
    /// stage have the inputs of those edges only that they read.
    pub(crate) parts: Range<usize>,
}

/// Which slices a leaf reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EdgeMode {
    /// Task `parts.start + n` reads slice `n` of every producer.
    Shuffle,
    /// One task reads slice 0 of every producer, each as a partition of its own.
    Merge,
    /// One task reads slice 0 of every producer, one after the other.
    Gather,
    /// Every task reads slice 0 of every producer.
    Broadcast,
}

/// What becomes of a stage's rows.
#[derive(Debug, Clone)]
pub(crate) enum StageOutput {
    /// Slices by hash or range of the rows, then the statistics.
    Buckets(Partitioning),
    /// One slice with all rows, then the statistics.
    Whole,
    /// A table: the result of the query.
    Table,
    /// Files of an output, which a last task shows.
    Parts(Box<Output>),
    /// The statistics only: somebody wants to know how the query runs.
    Nothing,
}

impl StageOutput {
    /// Slices before the one that holds the statistics. `None` for a result without slices.
    pub(crate) fn buckets(&self) -> Option<usize> {
        match self {
            Self::Buckets(partitioning) => Some(partitioning.partition_count()),
            Self::Whole => Some(1),
            Self::Nothing => Some(0),
            Self::Table | Self::Parts(_) => None,
        }
    }
}

impl StagePlan {
    /// Tasks of all stages.
    pub(crate) fn task_count(&self) -> usize {
        self.stages.iter().map(|stage| stage.tasks).sum()
    }
}
