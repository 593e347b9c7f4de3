//! The pod that submits the work of a job and prints its results.
//!
//! Owns its arguments. It runs where the scheduler may run, ends with the work, and is kept until
//! the job is deleted, because its log is the job's result.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, KeyToPath, Pod, ProjectedVolumeSource, Volume, VolumeProjection,
};
use oxidask_operator_api::kubernetes::DaskJob;

use super::labels::{self, CLUSTER_NAME, COMPONENT, JOB_RUNNER, RUNNER_START};
use super::pod::{self, Part, Probes, variable};
use super::template::Template;
use super::work::{self, MANIFEST_KEY, TEXT_FILE};
use crate::{PlanError, Settings, names, owner};
use oxidask_identity::Role;

/// The name of the runner's container.
pub(crate) const CONTAINER: &str = "runner";
/// Where the work is mounted.
const WORK_DIR: &str = "/etc/oxidask/work";
/// The volume with it.
const WORK_VOLUME: &str = "oxidask-work";
/// Seconds that the runner waits for the scheduler.
const WAIT_SECONDS: u32 = 300;
/// Rows that it prints.
const ROWS_MAX: u32 = 10_000;
/// Bytes that it prints.
const OUTPUT_BYTES_MAX: u32 = 16 << 20;

/// The runner of the job; `start` counts its pods from 1.
pub(crate) fn pod(
    job: &DaskJob,
    name: &str,
    start: u32,
    settings: &Settings,
) -> Result<Pod, PlanError> {
    const PATH: &str = "spec.cluster.spec.scheduler";
    let template = match &job.spec.cluster.spec.scheduler {
        Some(scheduler) => Template::of_scheduler(PATH, scheduler).placement(),
        None => Template::empty(PATH),
    };
    let part = Part {
        container: CONTAINER,
        arguments: arguments(),
        certificate: names::certificate_secret(name, Role::Client),
        ports: &[],
        probes: Probes::None,
    };
    let mut spec = pod::pod_spec(&template, part, settings)?;
    spec.restart_policy = Some("Never".to_owned());
    let deadline = job.spec.active_deadline_seconds;
    spec.active_deadline_seconds = deadline.and_then(|seconds| i64::try_from(seconds).ok());
    spec.volumes
        .get_or_insert_default()
        .push(work_volume(job, name));
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(container) = pod::main_container(&mut spec, CONTAINER) {
        container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.push(pod::mount(WORK_VOLUME, WORK_DIR, true));
        let address = names::scheduler_address(name, namespace);
        pod::append_environment(container, vec![variable("DASK_SCHEDULER_ADDRESS", address)]);
    }
    let mut metadata = owner::metadata(names::runner(name), "DaskJob", &job.metadata);
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, JOB_RUNNER)];
    metadata.labels = Some(labels::pod_labels(
        job.metadata.labels.as_ref(),
        None,
        &reserved,
    ));
    let annotations = labels::annotations(job.metadata.annotations.as_ref(), None);
    let mut annotations = annotations.unwrap_or_default();
    annotations.insert(RUNNER_START.to_owned(), start.to_string());
    metadata.annotations = Some(annotations);
    Ok(Pod {
        metadata,
        spec: Some(spec),
        status: None,
    })
}

fn arguments() -> Vec<String> {
    let text = format!(
        "submit {WORK_DIR}/{MANIFEST_KEY} --progress plain -o json --wait-seconds {WAIT_SECONDS} \
         --rows-max {ROWS_MAX} --output-bytes-max {OUTPUT_BYTES_MAX}"
    );
    text.split(' ').map(str::to_owned).collect()
}

/// The manifest, and beside it the text from a user's `ConfigMap`.
fn work_volume(job: &DaskJob, name: &str) -> Volume {
    let file = |config_map: &str, key: &str, path: &str| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: config_map.to_owned(),
            items: Some(vec![KeyToPath {
                key: key.to_owned(),
                path: path.to_owned(),
                mode: None,
            }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let mut sources = vec![file(&names::work(name), MANIFEST_KEY, MANIFEST_KEY)];
    if let Some(reference) = work::reference(&job.spec) {
        sources.push(file(&reference.name, &reference.key, TEXT_FILE));
    }
    Volume {
        name: WORK_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            default_mode: Some(0o444),
        }),
        ..Volume::default()
    }
}
