//! Python in an image of a user's: the image with stock Dask, in which nothing of ours is.
//!
//! Owns the pod of a client. It is what a user would write: an init container of the runtime's image
//! brings the Python package.

use serde_json::{Value, json};

use crate::Outcome;
use crate::dask::schedulers;
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::stock::IMAGE;
use crate::wait::{Seen, until};

/// Time for a program in a pod.
const PROGRAM_SECONDS_MAX: u64 = 240;
/// Where the package is brought.
const FOLDER: &str = "/opt/oxidask";

/// Workers and what runs beside them, in the image with Dask.
pub(crate) fn image() -> Value {
    json!({"worker": {
        "image": IMAGE,
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "20m", "memory": "96Mi"}},
    }})
}

/// Starts a pod that runs a program with a client of the cluster, and files beside it.
pub(crate) fn start(
    kubectl: &Kubectl,
    cluster: &str,
    pod: &str,
    command: &[&str],
    files: &Value,
) -> Outcome {
    // The scheduler's image is the runtime's.
    let some = schedulers(kubectl, cluster)?;
    let image = some
        .first()
        .and_then(|pod| pod["spec"]["containers"][0]["image"].as_str())
        .ok_or_else(|| failure("no scheduler to take the image from"))?;
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": pod}, "data": files,
    });
    kubectl.create(&config_map.to_string())?;
    kubectl
        .create(&manifest(cluster, pod, image, command))
        .map(drop)
}

/// Waits for the end of the pod; what it printed.
pub(crate) fn finish(kubectl: &Kubectl, pod: &str) -> Outcome<String> {
    let log = || kubectl.run(&["logs", pod, "--all-containers"]);
    until(&format!("{pod} to end"), PROGRAM_SECONDS_MAX, || {
        let found = kubectl.get(&format!("pod/{pod}"))?;
        Ok(match found["status"]["phase"].as_str() {
            Some("Succeeded") => Seen::Done(()),
            Some("Failed") => Seen::Never(log()?),
            phase => Seen::NotYet(phase.unwrap_or_default().to_owned()),
        })
    })?;
    kubectl.run(&["logs", pod])
}

fn manifest(cluster: &str, pod: &str, runtime_image: &str, command: &[&str]) -> String {
    let context = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65_532, "fsGroup": 65_532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [{
                "name": "oxidask",
                "image": runtime_image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["unpack", "/brought"],
                "securityContext": context,
                "volumeMounts": [{"name": "oxidask", "mountPath": "/brought"}],
            }],
            "containers": [{
                "name": "client",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "workingDir": "/work",
                "env": [
                    {"name": "DASK_SCHEDULER_ADDRESS",
                     "value": format!("oxidask://{cluster}-scheduler:8786")},
                    {"name": "HOME", "value": "/tmp"},
                    {"name": "PYTHONPATH", "value": format!("{FOLDER}/python")},
                    {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
                ],
                "securityContext": context,
                "volumeMounts": [
                    {"name": "oxidask", "mountPath": FOLDER, "readOnly": true},
                    {"name": "tls", "mountPath": "/etc/oxidask/tls", "readOnly": true},
                    {"name": "work", "mountPath": "/work", "readOnly": true},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }],
            "volumes": [
                {"name": "oxidask", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "tls", "secret": {
                    "secretName": format!("{cluster}-tls-client"), "defaultMode": 0o440,
                }},
                {"name": "work", "configMap": {"name": pod}},
            ],
        },
    })
    .to_string()
}
