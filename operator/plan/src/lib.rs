//! Pure planner: from what is wanted and what is there to what has to be done.
//!
//! Owns the names, labels and contents of every object that the operator makes, when one is made
//! or deleted and why, and what stands in the status. Never talks to the API server, never reads a
//! clock, never draws a random number: the same snapshot and time give the same plan.
//!
//! Invariants: carrying out the plan of an old snapshot does no harm, because names follow from
//! the owner's UID and an apply that changes nothing is nothing; an object of another owner is
//! never applied or deleted; every deletion has a reason; an object that is being deleted gets an
//! empty plan; a plan carried out completely leads, after a few rounds, to an empty one.

pub mod autoscaler;
mod build;
pub mod cluster;
pub mod dask;
pub mod drift;
mod error;
pub mod group;
mod hash;
pub mod job;
pub mod names;
mod object;
mod owner;
mod plan;
mod pods;
mod runner;
pub mod scaling;
mod schedule;
pub mod signal;
mod status;
mod unplaced;

pub use build::labels::{
    APPLIED_HASH, CLIENT_OF, CLUSTER_NAME, CLUSTER_REPLICAS, COMPONENT, DRAIN, DRAIN_DEADLINE,
    DRAIN_FINALIZER, REPAIRS, RESTART_REASON, RUNNER_ATTEMPT, RUNNER_START, RUNNERS_LOST, SCHEDULE,
    SCHEDULED_TIME, TEMPLATE_HASH, TROUBLE, WORKER_GROUP_NAME,
};
pub use error::PlanError;
pub use object::{Adoption, Extended, Object, ObjectKey, ObjectKind};
pub use plan::{
    AuthorityStep, CertificateRequest, Deletion, DeletionReason, EventKind, MetadataChange, Plan,
    PlannedEvent, Refusal, Retirement, Scaling, Settings, WorkerEnd,
};
pub use pods::is_ready;
pub use schedule::run_name;

/// A point in time, as the Kubernetes types have it.
pub use k8s_openapi::jiff::Timestamp;
