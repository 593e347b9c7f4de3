//! Namespaces of cases: made before, deleted after.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::kubectl::Kubectl;
use crate::settings::Settings;
use crate::wait::{done_if, until};
use crate::{Outcome, say};

const PREFIX: &str = "e2e-";
/// Marks namespaces of this program.
const LABEL: &str = "oxidask.dev/e2e";
/// What pods may do: as little as possible, unless a case needs more.
const SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// How long all namespaces together may take to be gone.
const GONE_SECONDS_MAX: u64 = 120;
/// Length of a label, and so of a namespace's name.
const NAME_BYTES_MAX: usize = 63;

/// Makes a namespace for a case.
pub(crate) fn create(settings: &Settings, case: &str) -> Outcome<Kubectl> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let suffix = format!("{:x}", now.as_micros() & 0xff_ffff);
    let mut name = format!("{PREFIX}{}", case.replace('_', "-"));
    name.truncate(NAME_BYTES_MAX - suffix.len() - 1);
    let name = format!("{name}-{suffix}");
    let kubectl = Kubectl::new(settings, &name);
    kubectl.run(&["create", "namespace", &name])?;
    // Pods of the runtime Dask are as the manifest gives them, and stock manifests say nothing of it.
    let level = if case.starts_with("dask_") {
        "baseline"
    } else {
        "restricted"
    };
    let (mark, security) = (format!("{LABEL}=case"), format!("{SECURITY}={level}"));
    kubectl.run(&["label", "namespace", &name, &mark, &security])?;
    Ok(kubectl)
}

/// Lets pods of the namespace use folders of their node.
pub(crate) fn allow_host_folders(kubectl: &Kubectl) -> Outcome {
    let security = format!("{SECURITY}=privileged");
    let label = ["label", "namespace", kubectl.namespace(), "--overwrite"];
    kubectl.run(&[&label[..], &[&security]].concat()).map(drop)
}

/// Asks for its deletion and does not wait.
pub(crate) fn delete(kubectl: &Kubectl) {
    let name = kubectl.namespace();
    let deleted = kubectl.run(&[
        "delete",
        "namespace",
        name,
        "--wait=false",
        "--ignore-not-found",
    ]);
    if let Err(error) = deleted {
        say!("namespace {name} was not deleted: {error}");
    }
}

/// Waits until these namespaces are gone.
pub(crate) fn wait_gone(settings: &Settings, names: &[String]) -> Outcome {
    let kubectl = Kubectl::new(settings, "default");
    until(
        "all namespaces of cases to be gone",
        GONE_SECONDS_MAX,
        || {
            let there = kubectl.run(&["get", "namespaces", "-o", "name"])?;
            let left: Vec<&str> = there
                .lines()
                .filter_map(|line| line.strip_prefix("namespace/"))
                .filter(|name| names.iter().any(|made| made == name))
                .collect();
            done_if(left.is_empty(), left.join(", "))
        },
    )
}
