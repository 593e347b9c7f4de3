//! The cases: a file each, a behaviour each.

mod argocd_sync;
mod authority_rotates;
mod autoscale_backlog;
mod bad_manifests;
mod bad_name;
mod certificates_renewed;
mod cluster_deletion;
mod cluster_ready;
mod cluster_suspend;
mod dask_autoscaled_groups;
mod dask_busy_worker;
mod dask_deleted_group;
mod dask_evicted_worker;
mod dask_failing_job;
mod dask_job_end;
mod dask_other_group;
mod dask_pending_first;
mod dask_scale_down;
mod dask_upstream_manifests;
mod daskautoscaler_scales;
mod drift_repaired;
mod failing_job;
mod flights_from_image;
mod flights_from_volume;
mod graph_from_config_map;
mod helm_from_previous;
mod helm_uninstall;
mod helm_upgrade;
mod http_token;
mod identity_scheduler_port;
mod identity_worker_port;
mod idle_timeout;
mod job_active_deadline;
mod job_backoff_limit;
mod job_deletion;
mod job_evicted_runner;
mod job_image_pull_error;
mod job_keep_on_failure;
mod job_missing_environment;
mod job_quota;
mod job_schedule;
mod job_script;
mod job_suspend_resume;
mod job_ttl;
mod job_unschedulable;
mod kubectl_scale;
mod link_cut;
mod many_clusters;
mod missing_config_map;
mod namespace_deletion;
mod namespaced_operators;
mod node_drained;
mod open_paths;
mod operator_deleted;
mod operator_killed;
mod operator_standby;
mod printed_columns;
mod prometheus_scrapes;
mod protected_pods;
mod python_user_image;
mod recommend_only;
mod rolling_update;
mod runner_pod_deleted;
mod scale_cluster;
mod scale_worker_group;
mod scheduler_dies;
mod scheduler_pod_deleted;
mod two_groups_one_loaded;
mod worker_container_killed;
mod worker_group_deleted;
mod worker_groups;
mod worker_pod_deleted;

use crate::case::Case;

/// They disturb nobody. The longest come first, so that the end is not spent waiting for one.
pub(crate) const SIDE_BY_SIDE: &[Case] = &[
    certificates_renewed::CASE,
    authority_rotates::CASE,
    rolling_update::CASE,
    python_user_image::CASE,
    job_script::CASE,
    job_schedule::CASE,
    daskautoscaler_scales::CASE,
    kubectl_scale::CASE,
    two_groups_one_loaded::CASE,
    dask_autoscaled_groups::CASE,
    dask_upstream_manifests::CASE,
    dask_scale_down::CASE,
    dask_other_group::CASE,
    dask_busy_worker::CASE,
    dask_evicted_worker::CASE,
    dask_failing_job::CASE,
    dask_pending_first::CASE,
    dask_deleted_group::CASE,
    scheduler_dies::CASE,
    job_suspend_resume::CASE,
    worker_group_deleted::CASE,
    job_evicted_runner::CASE,
    job_image_pull_error::CASE,
    job_active_deadline::CASE,
    job_backoff_limit::CASE,
    idle_timeout::CASE,
    job_ttl::CASE,
    job_keep_on_failure::CASE,
    job_quota::CASE,
    job_missing_environment::CASE,
    protected_pods::CASE,
    cluster_suspend::CASE,
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
    http_token::CASE,
    recommend_only::CASE,
    job_unschedulable::CASE,
    worker_groups::CASE,
    drift_repaired::CASE,
    missing_config_map::CASE,
    bad_name::CASE,
    bad_manifests::CASE,
];

/// They change what all others rely on, and leave it as it was. In this order, after all others.
pub(crate) const ALONE: &[Case] = &[
    autoscale_backlog::CASE,
    link_cut::CASE,
    node_drained::CASE,
    operator_deleted::CASE,
    operator_standby::CASE,
    operator_killed::CASE,
    many_clusters::CASE,
    helm_upgrade::CASE,
    namespaced_operators::CASE,
    dask_job_end::CASE,
    prometheus_scrapes::CASE,
    helm_from_previous::CASE,
    helm_uninstall::CASE,
    argocd_sync::CASE,
];
