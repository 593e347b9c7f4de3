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

mod build;
pub mod cluster;
mod error;
pub mod group;
mod hash;
pub mod job;
pub mod names;
mod owner;
mod plan;
mod pods;
mod runner;
mod status;

pub use build::labels::{
    APPLIED_HASH, CLUSTER_NAME, CLUSTER_REPLICAS, COMPONENT, RUNNER_START, WORKER_GROUP_NAME,
};
pub use error::PlanError;
pub use plan::{
    Adoption, CertificateRequest, Deletion, DeletionReason, EventKind, Object, ObjectKey,
    ObjectKind, Plan, PlannedEvent, Settings,
};

/// A point in time, as the Kubernetes types have it.
pub use k8s_openapi::jiff::Timestamp;
