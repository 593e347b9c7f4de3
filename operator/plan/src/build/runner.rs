//! The pod that submits the work of a job and prints its results.
//!
//! Owns its arguments. It runs where the scheduler may run, ends with the work, and is kept until
//! the job is deleted, because its log is the job's result. The runner of a Python program runs in
//! the image of the workers and finds their files, because Dask plans its work where its client is.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, KeyToPath, Pod, ProjectedVolumeSource, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::kubernetes::DaskJob;
use oxidask_operator_api::{Metadata, Script, Worker};
use serde_json::{Value, json};

use super::labels::{
    self, CLUSTER_NAME, COMPONENT, JOB_RUNNER, RUNNER_ATTEMPT, RUNNER_START, RUNNERS_LOST,
};
use super::pod::{self, Part, Probes, variable};
use super::program;
use super::template::Template;
use super::work::{self, MANIFEST_KEY, SCRIPT_FILE};
use super::worker::WORKING_DIR;
use crate::runner::Count;
use crate::{PlanError, Settings, names, owner};
use oxidask_identity::Role;

/// The name of the runner's container.
pub(crate) const CONTAINER: &str = "runner";
/// Where the work is mounted.
const WORK_DIR: &str = "/etc/oxidask/work";
/// The volume with it.
const WORK_VOLUME: &str = "oxidask-work";
/// Seconds that the runner waits for the scheduler: it starts before the cluster is made.
const WAIT_SECONDS: u32 = 3600;
/// The variable by which a runner that is made again finds the work of the one before.
pub(super) const RUN_ID: &str = "OXIDASK_RUN_ID";
/// Rows that it prints.
const ROWS_MAX: u32 = 10_000;
/// Bytes that it prints.
const OUTPUT_BYTES_MAX: u32 = 16 << 20;

/// The runner of the job.
pub(crate) fn pod(
    job: &DaskJob,
    name: &str,
    count: Count,
    deadline_seconds: Option<u64>,
    settings: &Settings,
) -> Result<Pod, PlanError> {
    const PATH: &str = "spec.cluster.spec.scheduler";
    let mut template = match &job.spec.cluster.spec.scheduler {
        Some(scheduler) => Template::of_scheduler(PATH, scheduler).placement(),
        None => Template::empty(PATH),
    };
    let worker = &job.spec.cluster.spec.worker;
    let own = worker.spec.as_ref().map(surroundings);
    if job.spec.script.is_some() {
        template = beside_workers(template, worker, own.as_ref());
    }
    let part = Part {
        container: CONTAINER,
        arguments: arguments(),
        certificate: names::certificate_secret(name, Role::Client),
        ports: &[],
        probes: Probes::None,
    };
    let mut spec = pod::pod_spec(&template, part, settings)?;
    spec.restart_policy = Some("Never".to_owned());
    spec.active_deadline_seconds = deadline_seconds.and_then(|seconds| i64::try_from(seconds).ok());
    spec.volumes
        .get_or_insert_default()
        .push(work_volume(job, name));
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(container) = pod::main_container(&mut spec, CONTAINER) {
        container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.push(pod::mount(WORK_VOLUME, WORK_DIR, true));
        let address = names::scheduler_address(name, namespace);
        let variables = vec![
            variable("DASK_SCHEDULER_ADDRESS", address),
            variable(RUN_ID, run_id(job, count)),
        ];
        if let Some(script) = &job.spec.script {
            lay_script(container, script)?;
        }
        pod::append_environment(container, variables);
    }
    if job.spec.script.is_some() {
        program::bring(&mut spec, CONTAINER, settings);
    }
    let metadata = metadata(job, name, None, count);
    Ok(Pod {
        metadata,
        spec: Some(spec),
        status: None,
    })
}

/// Placed as the scheduler, with the image and the files of the workers.
fn beside_workers<'a>(
    scheduler: Template<'a>,
    worker: &'a Worker,
    own: Option<&'a Value>,
) -> Template<'a> {
    let workers = Template::of_worker("spec.cluster.spec.worker", worker);
    Template {
        metadata: None,
        resources: None,
        node_selector: scheduler.node_selector,
        tolerations: scheduler.tolerations,
        affinity: scheduler.affinity,
        spec: own,
        ..workers
    }
}

/// What a program finds around it in a pod of a template: image, files, environment and user.
fn surroundings(spec: &Value) -> Value {
    let part = |value: &Value, fields: &[&str]| -> serde_json::Map<String, Value> {
        let fields = fields.iter().map(|field| (*field, &value[*field]));
        let given = fields.filter(|(_, value)| !value.is_null());
        given
            .map(|(field, value)| (field.to_owned(), value.clone()))
            .collect()
    };
    let containers = spec.get("containers").and_then(Value::as_array);
    let named = |container: &&Value| container["name"] == labels::WORKER;
    let main = containers.and_then(|all| all.iter().find(named).or_else(|| all.first()));
    let mut container = main.map_or_else(serde_json::Map::new, |main| {
        let fields = [
            "image",
            "imagePullPolicy",
            "env",
            "envFrom",
            "volumeMounts",
            "workingDir",
            "securityContext",
        ];
        part(main, &fields)
    });
    container.insert("name".to_owned(), json!(CONTAINER));
    let fields = [
        "volumes",
        "imagePullSecrets",
        "serviceAccountName",
        "securityContext",
    ];
    let mut pod = part(spec, &fields);
    pod.insert("containers".to_owned(), json!([container]));
    Value::Object(pod)
}

/// The environment of a Python program, which wins over that of the workers, and its folder.
fn lay_script(container: &mut Container, script: &Script) -> Result<(), PlanError> {
    let own = Template {
        env: &script.env,
        ..Template::empty("spec.script")
    };
    let own = own.environment()?;
    let present = container.env.get_or_insert_default();
    present.retain(|variable| !own.iter().any(|other| other.name == variable.name));
    present.extend(own);
    let folder = container
        .working_dir
        .get_or_insert_with(|| WORKING_DIR.to_owned());
    let folder = variable("OXIDASK_BASE_DIR", folder.clone());
    pod::append_environment(container, vec![folder]);
    Ok(())
}

/// Names the work of one attempt. A runner that takes the place of a lost one has the same name, and
/// finds the work that runs; a new attempt starts anew.
pub(super) fn run_id(job: &DaskJob, count: Count) -> String {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    format!("{uid}-{}", count.attempt)
}

/// Name, owner, labels and annotations of a runner.
pub(super) fn metadata(
    job: &DaskJob,
    name: &str,
    own: Option<&Metadata>,
    count: Count,
) -> ObjectMeta {
    let mut metadata = owner::metadata(names::runner(name), "DaskJob", &job.metadata);
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, JOB_RUNNER)];
    let labels = job.metadata.labels.as_ref();
    metadata.labels = Some(labels::pod_labels(labels, own, &reserved));
    let annotations = labels::annotations(job.metadata.annotations.as_ref(), own);
    let mut annotations = annotations.unwrap_or_default();
    annotations.insert(RUNNER_START.to_owned(), count.start.to_string());
    annotations.insert(RUNNER_ATTEMPT.to_owned(), count.attempt.to_string());
    annotations.insert(RUNNERS_LOST.to_owned(), count.lost.to_string());
    metadata.annotations = Some(annotations);
    metadata
}

fn arguments() -> Vec<String> {
    let text = format!(
        "submit {WORK_DIR}/{MANIFEST_KEY} --progress plain -o json --wait-seconds {WAIT_SECONDS} \
         --rows-max {ROWS_MAX} --output-bytes-max {OUTPUT_BYTES_MAX}"
    );
    text.split(' ').map(str::to_owned).collect()
}

/// The manifest, and beside it the text from a user's `ConfigMap`, or the Python program.
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
        let path = work::text_file(&job.spec);
        sources.push(file(&reference.name, &reference.key, path));
    } else if job.spec.script.is_some() {
        sources.push(file(&names::work(name), SCRIPT_FILE, SCRIPT_FILE));
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
