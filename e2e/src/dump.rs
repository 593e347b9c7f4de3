//! What a failed case leaves behind, for reading later.
//!
//! Never fails itself: what cannot be had is left out, and the reason stands in its file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::case::Context;
use crate::helm;
use crate::kubectl::Kubectl;

const CALL: Duration = Duration::from_secs(30);
/// Lines of a container's log.
const LOG_TAIL: &str = "--tail=5000";
/// Pods whose logs are kept.
const PODS_MAX: usize = 50;

/// Writes logs, events, descriptions and objects of the case's namespace and of the operator.
/// Returns the folder.
pub(crate) fn keep(context: &Context, case: &str) -> PathBuf {
    let folder = context.settings.artifacts.join(case);
    // Of an earlier run.
    let _ = std::fs::remove_dir_all(&folder);
    let _ = std::fs::create_dir_all(&folder);
    keep_namespace(&context.kubectl, &folder);
    let operator = Kubectl::new(&context.settings, helm::NAMESPACE);
    let folder_operator = folder.join("operator");
    let _ = std::fs::create_dir_all(&folder_operator);
    keep_namespace(&operator, &folder_operator);
    save(&operator, &["describe", "nodes"], &folder.join("nodes.txt"));
    folder
}

fn keep_namespace(kubectl: &Kubectl, folder: &Path) {
    const CUSTOM: &str = "daskclusters,daskworkergroups,daskjobs,daskautoscalers";
    const KINDS: &str = "pods,deployments,services,endpointslices,configmaps,events";
    let files: [(&[&str], &str); 6] = [
        (
            &["get", "all,secrets,configmaps", "-o", "wide"],
            "objects.txt",
        ),
        (&["get", CUSTOM, "-o", "yaml"], "custom-resources.yaml"),
        (&["get", KINDS, "-o", "yaml"], "objects.yaml"),
        (
            &["get", "events", "--sort-by=.metadata.creationTimestamp"],
            "events.txt",
        ),
        (&["describe", CUSTOM], "custom-resources.txt"),
        (&["describe", "pods"], "pods.txt"),
    ];
    for (arguments, file) in files {
        save(kubectl, arguments, &folder.join(file));
    }
    let pods = kubectl.list("pods", "").unwrap_or_default();
    for pod in pods.iter().take(PODS_MAX) {
        keep_logs(kubectl, pod, folder);
    }
}

fn keep_logs(kubectl: &Kubectl, pod: &Value, folder: &Path) {
    let Some(name) = pod["metadata"]["name"].as_str() else {
        return;
    };
    let statuses = pod["status"]["containerStatuses"].as_array();
    for status in statuses.into_iter().flatten() {
        let Some(container) = status["name"].as_str() else {
            continue;
        };
        let base = ["logs", name, "--container", container, LOG_TAIL];
        let file = folder.join(format!("{name}.{container}.log"));
        save(kubectl, &base, &file);
        if status["restartCount"].as_u64() > Some(0) {
            let previous = [&base[..], &["--previous"]].concat();
            let file = folder.join(format!("{name}.{container}.previous.log"));
            save(kubectl, &previous, &file);
        }
    }
}

fn save(kubectl: &Kubectl, arguments: &[&str], file: &Path) {
    let text = match kubectl.call(arguments, None, CALL) {
        Ok(finished) => format!("{}{}", finished.stdout, finished.stderr),
        Err(error) => error.to_string(),
    };
    let _ = std::fs::write(file, text);
}
