//! The cases: a file each, a behaviour each.

mod bad_manifests;
mod bad_name;
mod cluster_deletion;
mod cluster_ready;
mod drift_repaired;
mod failing_job;
mod flights_from_image;
mod flights_from_volume;
mod graph_from_config_map;
mod helm_uninstall;
mod identity_scheduler_port;
mod identity_worker_port;
mod job_deletion;
mod missing_config_map;
mod namespace_deletion;
mod open_paths;
mod operator_deleted;
mod printed_columns;
mod runner_pod_deleted;
mod scale_cluster;
mod scale_worker_group;
mod scheduler_pod_deleted;
mod upstream_manifests;
mod worker_container_killed;
mod worker_groups;
mod worker_pod_deleted;

use crate::case::Case;

/// They disturb nobody. The longest come first, so that the end is not spent waiting for one.
pub(crate) const SIDE_BY_SIDE: &[Case] = &[
    flights_from_image::CASE,
    worker_pod_deleted::CASE,
    worker_container_killed::CASE,
    flights_from_volume::CASE,
    runner_pod_deleted::CASE,
    scheduler_pod_deleted::CASE,
    scale_worker_group::CASE,
    scale_cluster::CASE,
    cluster_deletion::CASE,
    namespace_deletion::CASE,
    job_deletion::CASE,
    graph_from_config_map::CASE,
    failing_job::CASE,
    cluster_ready::CASE,
    identity_scheduler_port::CASE,
    identity_worker_port::CASE,
    printed_columns::CASE,
    open_paths::CASE,
    worker_groups::CASE,
    drift_repaired::CASE,
    missing_config_map::CASE,
    bad_name::CASE,
    upstream_manifests::CASE,
    bad_manifests::CASE,
];

/// They change what all others rely on, and leave it as it was. In this order, after all others.
pub(crate) const ALONE: &[Case] = &[operator_deleted::CASE, helm_uninstall::CASE];
