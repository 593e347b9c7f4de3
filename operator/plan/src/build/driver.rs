//! The driver pod of a user's own: work of kind `job`.
//!
//! Owns what is added to it. The pod stays as it was given; it gets the scheduler's address in every
//! container and, for the Rust runtime, the certificate of a client. Init containers get nothing, as
//! in dask-kubernetes.

use k8s_openapi::api::core::v1::{PodSpec, SecretVolumeSource, Volume};
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::DaskJob;
use serde_json::Value;

use super::pod::{self, variable};
use super::runner::{RUN_ID, metadata, run_id};
use super::template::Template;
use crate::runner::Count;
use crate::{PlanError, Settings, names};
use k8s_openapi::api::core::v1::{Pod, PodSecurityContext};
use oxidask_identity::Role;

/// Where the certificate is mounted.
const TLS_DIR: &str = "/etc/oxidask/tls";
/// The volume with it.
const TLS_VOLUME: &str = "oxidask-tls";
/// The group that may read it if the pod has no group of its own.
const FILE_GROUP: i64 = 65532;

/// The driver of the job.
pub(crate) fn pod(
    job: &DaskJob,
    name: &str,
    count: Count,
    deadline_seconds: Option<u64>,
    settings: &Settings,
) -> Result<Pod, PlanError> {
    const PATH: &str = "spec.job";
    let own = job.spec.job.as_ref();
    let value = own.map_or(&Value::Null, |own| &own.spec);
    let mut spec: PodSpec = Template::empty(PATH).read("spec", value)?;
    lay_life(&mut spec, job, deadline_seconds);
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables = Vec::new();
    match job.spec.cluster.spec.runtime() {
        Runtime::Rust => {
            lay_certificate(&mut spec, name, settings);
            let address = names::scheduler_address(name, namespace);
            variables.push(variable("DASK_SCHEDULER_ADDRESS", address));
            variables.push(variable("OXIDASK_TLS_DIR", TLS_DIR));
            variables.push(variable(RUN_ID, run_id(job, count)));
        }
        Runtime::Dask => {
            let host = names::scheduler_host(name, namespace);
            let address = format!("tcp://{host}:{}", names::COMM_PORT);
            variables.push(variable("DASK_SCHEDULER_ADDRESS", address));
        }
    }
    for container in &mut spec.containers {
        pod::append_environment(container, variables.clone());
    }
    let metadata = metadata(job, name, own.and_then(|own| own.metadata.as_ref()), count);
    Ok(Pod {
        metadata,
        spec: Some(spec),
        status: None,
    })
}

/// When the pod ends. By itself a driver starts again in place until it succeeds, as in
/// dask-kubernetes; where attempts are counted, each is a pod of its own.
fn lay_life(spec: &mut PodSpec, job: &DaskJob, deadline_seconds: Option<u64>) {
    if job.spec.backoff_limit.is_some() {
        spec.restart_policy = Some("Never".to_owned());
    }
    let policy = spec.restart_policy.take();
    spec.restart_policy = Some(policy.unwrap_or_else(|| "OnFailure".to_owned()));
    let deadline = deadline_seconds.and_then(|seconds| i64::try_from(seconds).ok());
    let given = spec.active_deadline_seconds;
    spec.active_deadline_seconds = match (given, deadline) {
        (Some(given), Some(deadline)) => Some(given.min(deadline)),
        (given, deadline) => given.or(deadline),
    };
    if job.spec.is_stock() {
        return;
    }
    // The end of the log says why the job failed.
    for container in &mut spec.containers {
        container
            .termination_message_policy
            .get_or_insert_with(|| "FallbackToLogsOnError".to_owned());
    }
}

fn lay_certificate(spec: &mut PodSpec, name: &str, settings: &Settings) {
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|present| present.name != TLS_VOLUME);
    volumes.push(Volume {
        name: TLS_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(names::certificate_secret(name, Role::Client)),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    let context = spec
        .security_context
        .get_or_insert_with(PodSecurityContext::default);
    context.fs_group.get_or_insert(FILE_GROUP);
    for container in &mut spec.containers {
        container
            .image
            .get_or_insert_with(|| settings.runtime_image.clone());
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.retain(|mount| mount.mount_path != TLS_DIR && mount.name != TLS_VOLUME);
        mounts.push(pod::mount(TLS_VOLUME, TLS_DIR, true));
    }
}
