//! The manifest types `DaskCluster` and `DaskJob`, read from YAML with errors that teach.
//!
//! Owns the shape of the manifests, their defaults and every check on them, and the plain plans
//! that a local run works from. Never starts anything; the only files it reads are the manifest
//! and the text files that it names.
//!
//! Invariants: a plan comes only from a manifest that passed every check; every error names the
//! place in the file, what was found and what is expected; reading is bounded in bytes, depth and
//! what aliases may copy.

mod cluster;
mod document;
mod duration;
mod error;
mod job;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod manifest;
mod plan;
mod quantity;
mod reader;
mod scalar;
mod validate;

pub use cluster::{
    Autoscale, ClusterSpec, DaskCluster, EnvironmentVariable, Issuer, Journal, Metadata, Resources,
    Runtime, Scheduler, Tls, UpdateStrategy, Worker, WorkerGroup,
};
pub use document::{ALIASED_BYTES_MAX, DEPTH_MAX};
pub use duration::duration;
pub use error::{ManifestError, Place, UnknownField};
pub use job::{
    ConcurrencyPolicy, DaskJob, Graph, JobCluster, JobSpec, KeepCluster, KeyReference, PodJob,
    Script, Sql, Tasks,
};
pub use manifest::{Kind, MANIFEST_BYTES_MAX, Manifest};
pub use plan::{
    ClusterPlan, DEFAULT_SLOTS, GraphSource, GroupPlan, JobPlan, LOCAL_NAMESPACE, ScriptSource,
    ScriptWork, Work,
};
pub use quantity::{Quantity, QuantityError};
pub use validate::{
    CERTIFICATE_LIFETIME, CERTIFICATE_LIFETIME_MAX, CERTIFICATE_LIFETIME_MIN,
    CLUSTER_NAME_BYTES_MAX, GROUPS_MAX, PodAmount, REPLICAS_MAX, THREADS_MAX, name_problem,
    tls_problem,
};

/// The API group and version of every manifest.
pub const API_VERSION: &str = "kubernetes.dask.org/v1";
