//! The runtime `Dask`: clusters whose pods run Dask for Python, as dask-kubernetes makes them.
//!
//! Owns the objects of such a cluster with the names, labels and variables of dask-kubernetes, the
//! order in which workers go, and the take-over of what dask-kubernetes left behind. Never speaks
//! to a scheduler: `load` turns what one said into a `Signal`.
//!
//! Invariants: one Deployment with one replica for each worker; the user's pod specs and Service
//! are kept as they are, ours is only added where it is absent; objects that dask-kubernetes made
//! are adopted without a change of their specs; a worker that may hold results is deleted only
//! after its scheduler has said that it no longer has it, or after the bounded drain.

pub(crate) mod cluster;
mod drain;
pub(crate) mod group;
pub mod load;
mod objects;
mod pod;
mod repair;
mod report;
mod takeover;

pub use crate::build::labels::{DRAIN_DEADLINE, DRAIN_FINALIZER, TEMPLATE_HASH};
pub use objects::ports;
pub use takeover::strip;

/// Annotation of a worker's Deployment: since when it is to go, in seconds since 1970.
pub const DRAINING_SINCE: &str = "kubernetes.dask.org/draining-since";

/// Annotation of a worker's Deployment: the scheduler was asked to retire it, so it cannot stay.
pub const RETIRED: &str = "kubernetes.dask.org/retired";

/// Annotation of an object that dask-kubernetes made: the mark that it was adopted under. As long
/// as it is the applied one, the object is as dask-kubernetes made it and is not repaired.
pub const ADOPTED: &str = "kubernetes.dask.org/adopted";

/// Annotation of a repaired object: what it looked like before. An API server that keeps putting
/// something else into an object is not argued with.
pub const REPAIRED: &str = "kubernetes.dask.org/repaired";

/// The variable that switches the routes `/api/v1` of a Dask scheduler on. Its value replaces the
/// whole list, so the six defaults are in it.
pub const ROUTES_VARIABLE: &str = "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES";

/// See [`ROUTES_VARIABLE`].
pub const ROUTES: &str = concat!(
    r#"["distributed.http.scheduler.prometheus","distributed.http.scheduler.info","#,
    r#""distributed.http.scheduler.json","distributed.http.health","distributed.http.proxy","#,
    r#""distributed.http.statics","distributed.http.scheduler.api"]"#,
);

/// The name of the scheduler's port for workers and clients.
pub const COMM_PORT: &str = "tcp-comm";

/// The name of the scheduler's port for HTTP.
pub const HTTP_PORT: &str = "http-dashboard";
