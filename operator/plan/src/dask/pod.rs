//! The pod specs of a Dask cluster.
//!
//! Owns how the short fields of a manifest are laid onto the user's pod spec. Works on JSON, so
//! that nothing of the user's spec is touched on the way. Adds a program only where the manifest
//! gives no container at all.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, ExecAction, Lifecycle, LifecycleHandler, PodSpec,
};
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value, json};

use super::{COMM_PORT, HTTP_PORT, ROUTES, ROUTES_VARIABLE};
use crate::PlanError;
use crate::build::labels;

/// Seconds between a worker being told to end and being killed: time to hand over its results.
const WORKER_GRACE_SECONDS: i64 = 300;

/// Has the scheduler move away what only this worker holds, before the worker is told to end. A
/// Dask worker alone ends within a second of SIGTERM and takes its results with it. Ends at once
/// when the scheduler does not answer or has retired the worker already.
const HAND_OVER: &str = r#"
import asyncio, os, socket
from distributed.core import connect
async def ask(comm, **message):
    await comm.write({"reply": True, **message})
    return await comm.read()
async def main():
    comm = await connect(os.environ["DASK_SCHEDULER_ADDRESS"], timeout=3)
    name, host = os.environ.get("DASK_WORKER_NAME"), socket.gethostbyname(socket.gethostname())
    known = (await ask(comm, op="identity"))["workers"]
    own = [a for a, w in known.items() if str(w["name"]) == name or w["host"] == host]
    if own:
        await ask(comm, op="retire_workers", workers=own, close_workers=False, remove=True)
asyncio.run(asyncio.wait_for(main(), 270))
"#;

/// What a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Scheduler,
    Worker,
}

impl Part {
    /// The name of its container, and its component.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scheduler => labels::SCHEDULER,
            Self::Worker => labels::WORKER,
        }
    }

    /// Where its fields stand in the manifest.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Scheduler => "spec.scheduler",
            Self::Worker => "spec.worker",
        }
    }

    /// The container of a manifest that gives none.
    fn container(self) -> Value {
        let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
        match self {
            Self::Scheduler => json!({
                "name": self.name(),
                "args": ["dask-scheduler", "--host", "0.0.0.0"],
                "ports": [port(COMM_PORT, 8786), port(HTTP_PORT, 8787)],
                "readinessProbe": {
                    "httpGet": {"port": HTTP_PORT, "path": "/health"},
                    "periodSeconds": 1, "timeoutSeconds": 300,
                },
                "livenessProbe": {
                    "httpGet": {"port": HTTP_PORT, "path": "/health"},
                    "initialDelaySeconds": 15, "periodSeconds": 20,
                },
            }),
            Self::Worker => json!({
                "name": self.name(),
                "args": [
                    "dask-worker", "--name", "$(DASK_WORKER_NAME)",
                    "--dashboard", "--dashboard-address", "8788",
                ],
                "ports": [port(HTTP_PORT, 8788)],
            }),
        }
    }
}

/// The pod spec of a scheduler.
pub(super) fn scheduler(fields: &impl Serialize) -> Result<PodSpec, PlanError> {
    let (mut spec, main) = laid(fields, Part::Scheduler)?;
    if let Some(container) = spec.containers.get_mut(main)
        && container.env_from.as_ref().is_none_or(Vec::is_empty)
    {
        append(container, ROUTES_VARIABLE, ROUTES);
    }
    Ok(spec)
}

/// The pod spec of the worker of this name.
pub(super) fn worker(
    fields: &impl Serialize,
    name: &str,
    scheduler_address: &str,
) -> Result<PodSpec, PlanError> {
    let (mut spec, main) = laid(fields, Part::Worker)?;
    for container in &mut spec.containers {
        append(container, "DASK_WORKER_NAME", name);
        append(container, "DASK_SCHEDULER_ADDRESS", scheduler_address);
    }
    if let Some(container) = spec.containers.get_mut(main) {
        container.lifecycle.get_or_insert_with(hand_over);
    }
    spec.termination_grace_period_seconds
        .get_or_insert(WORKER_GRACE_SECONDS);
    Ok(spec)
}

fn hand_over() -> Lifecycle {
    let command = ["python", "-c", HAND_OVER].map(str::to_owned);
    Lifecycle {
        pre_stop: Some(LifecycleHandler {
            exec: Some(ExecAction {
                command: Some(command.to_vec()),
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    }
}

fn append(container: &mut Container, name: &str, value: &str) {
    let variables = container.env.get_or_insert_default();
    if !variables.iter().any(|variable| variable.name == name) {
        variables.push(EnvVar {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            value_from: None,
        });
    }
}

/// The user's pod spec with the short fields laid onto it, and the position of the container that
/// they are about.
fn laid(fields: &impl Serialize, part: Part) -> Result<(PodSpec, usize), PlanError> {
    let failed = |field: &str, source| PlanError::Template {
        path: format!("{}.{field}", part.path()),
        source,
    };
    let fields = serde_json::to_value(fields).map_err(|source| failed("spec", source))?;
    let mut spec = fields.get("spec").cloned().unwrap_or_else(|| json!({}));
    lay_pod(&mut spec, &fields);
    if !spec["containers"].is_array() {
        spec["containers"] = json!([]);
    }
    let mut main = 0;
    if let Some(containers) = spec["containers"].as_array_mut() {
        if containers.is_empty() {
            containers.push(part.container());
        }
        let named = |container: &Value| container["name"] == part.name();
        main = containers.iter().position(named).unwrap_or_default();
        if let Some(container) = containers.get_mut(main).and_then(Value::as_object_mut) {
            lay_container(container, &fields);
        }
    }
    let spec = PodSpec::deserialize(&spec).map_err(|source| failed("spec", source))?;
    let has_image = |container: &Container| container.image.as_ref().is_some_and(|i| !i.is_empty());
    match spec.containers.iter().find(|it| !has_image(it)) {
        Some(container) => Err(PlanError::DaskImage {
            path: part.path(),
            container: container.name.clone(),
        }),
        None => Ok((spec, main)),
    }
}

fn lay_pod(spec: &mut Value, fields: &Value) {
    for field in ["affinity", "serviceAccountName"] {
        if let Some(value) = fields.get(field) {
            spec[field] = value.clone();
        }
    }
    merge_list(spec, fields, "volumes", Some("name"));
    merge_list(spec, fields, "tolerations", None);
    merge_list(spec, fields, "imagePullSecrets", Some("name"));
    if let Some(selector) = fields.get("nodeSelector").and_then(Value::as_object) {
        for (key, value) in selector {
            spec["nodeSelector"][key] = value.clone();
        }
    }
}

fn lay_container(container: &mut Map<String, Value>, fields: &Value) {
    for field in ["image", "resources", "workingDir"] {
        if let Some(value) = fields.get(field) {
            container.insert(field.to_owned(), value.clone());
        }
    }
    let mut whole = Value::Object(std::mem::take(container));
    merge_list(&mut whole, fields, "env", Some("name"));
    merge_list(&mut whole, fields, "envFrom", None);
    merge_list(&mut whole, fields, "volumeMounts", Some("mountPath"));
    if let Value::Object(whole) = whole {
        *container = whole;
    }
}

/// Adds the elements of a list. One with the same key takes the place of the other, so that the
/// user's order stays.
fn merge_list(target: &mut Value, fields: &Value, field: &str, key: Option<&str>) {
    let Some(added) = fields.get(field).and_then(Value::as_array) else {
        return;
    };
    if !target[field].is_array() {
        target[field] = json!([]);
    }
    let Some(present) = target[field].as_array_mut() else {
        return;
    };
    for element in added {
        let same = |other: &&mut Value| key.is_some_and(|key| other[key] == element[key]);
        match present.iter_mut().find(same) {
            Some(other) => *other = element.clone(),
            None => present.push(element.clone()),
        }
    }
}
