//! Bounds and defaults that the schemas state beside the types.
//!
//! Owns one list: type, field, what is added to the field's schema. Ranges that local runs check
//! too come from the same constants. Lists and maps are bounded wherever a rule walks over them,
//! because the API server weighs a rule by the longest input there could be.

use serde_json::{Value, json};

use crate::validate::{
    DRAIN_SECONDS_MAX, GROUPS_MAX, LABEL_BYTES_MAX, PERCENTAGE_CHARS_MAX, REPLICAS_MAX,
    THREADS_MAX, WINDOW_SECONDS_MAX,
};

/// Characters of a text that stands in a manifest; etcd refuses objects above 1.5 MiB.
pub(crate) const TEXT_CHARS_MAX: usize = 1 << 20;

/// Tasks that stand in a manifest; more come as a text.
pub(crate) const TASKS_MAX: usize = 20_000;

/// Characters of a quantity.
pub(crate) const QUANTITY_CHARS_MAX: usize = 32;

/// Names of a resources block, and amounts that a worker offers to tasks.
const RESOURCES_MAX: usize = 64;

/// Wanted results that a manifest names.
const OUTPUTS_MAX: usize = 10_000;

/// Seconds of an idle timeout, a deadline or a time to live: ten years.
const SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;

/// Arguments of a program.
const ARGUMENTS_MAX: usize = 1000;

/// Attempts of failed work.
const BACKOFF_MAX: u32 = 1000;

/// Characters of the path of a file.
const PATH_CHARS_MAX: usize = 4096;

/// Characters of the name of a `ConfigMap`, or of a key in it.
const OBJECT_NAME_CHARS_MAX: usize = 253;

/// Ended runs of a schedule that are kept, of either kind.
pub(crate) const HISTORY_MAX: u32 = 1000;

/// Characters of the name of a time zone; the longest has 32.
const TIME_ZONE_CHARS_MAX: usize = 64;

/// Characters of a cron line.
const SCHEDULE_CHARS_MAX: usize = 256;

/// The largest amount of a task resource; JavaScript and jq read larger ones wrongly.
const TASK_RESOURCE_MAX: u64 = 1 << 53;

/// A DNS label.
const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// Digits before the point and the suffixes that such a number fits with below 2^63.
const QUANTITY_FORMS: [(usize, &str); 7] = [
    (18, "[num]?"),
    (15, "(k|Ki)"),
    (12, "Mi?"),
    (9, "(Gi?|[eE][+-]?\\d)"),
    (6, "Ti?"),
    (3, "Pi?"),
    (0, "Ei?"),
];

/// The quantities that are admitted; a subset of those that `Quantity` reads.
pub(crate) fn quantity_pattern() -> String {
    let forms: Vec<String> = QUANTITY_FORMS
        .iter()
        .map(|(digits, suffix)| match digits {
            0 => format!("[0-7](\\.\\d{{0,5}})?{suffix}"),
            _ => format!("(\\d{{1,{digits}}}(\\.\\d{{0,5}})?|\\.\\d{{1,5}}){suffix}"),
        })
        .collect();
    format!("^\\+?({})$", forms.join("|"))
}

/// What is added to the schema of a field; an empty field means the type itself.
pub(crate) type Patch = (&'static str, &'static str, Value);

/// For our own types.
pub(crate) fn own() -> Vec<Patch> {
    let mut patches = clusters();
    patches.extend(jobs());
    for worker in ["Worker", "WorkerGroup"] {
        patches.extend(workers(worker));
    }
    for status in [
        "ClusterStatus",
        "WorkerGroupStatus",
        "JobStatus",
        "AutoscalerStatus",
    ] {
        patches.push((status, "conditions", keyed(&["type"])));
    }
    patches.push(("AutoscalerStatus", "groups", keyed(&["name"])));
    patches.push(("GroupScaling", "", json!({"required": ["name"]})));
    patches.extend(scaling());
    patches
}

/// How the number of workers follows the load, and how pods are replaced.
fn scaling() -> Vec<Patch> {
    let bound = || json!({"nullable": true, "maximum": REPLICAS_MAX});
    let window = || json!({"minimum": 0, "maximum": WINDOW_SECONDS_MAX});
    let target = || json!({"minimum": 1, "maximum": WINDOW_SECONDS_MAX});
    let pods = || json!({"maxLength": PERCENTAGE_CHARS_MAX});
    let drain = json!({"minimum": 0, "maximum": DRAIN_SECONDS_MAX});
    let least = json!({"default": 0, "maximum": REPLICAS_MAX});
    let most = json!({"minimum": 1, "maximum": REPLICAS_MAX});
    vec![
        ("Autoscale", "minimum", least),
        ("Autoscale", "maximum", most),
        ("Autoscale", "scaleDownWindowSeconds", window()),
        ("Autoscale", "targetSeconds", target()),
        ("AutoscalerSpec", "minimum", bound()),
        ("AutoscalerSpec", "maximum", bound()),
        ("AutoscalerSpec", "scaleDownWindowSeconds", window()),
        ("AutoscalerSpec", "targetSeconds", target()),
        ("UpdateStrategy", "maxSurge", pods()),
        ("UpdateStrategy", "maxUnavailable", pods()),
        ("UpdateStrategy", "drainTimeoutSeconds", drain),
    ]
}

fn clusters() -> Vec<Patch> {
    let amounts = || json!({"maxProperties": RESOURCES_MAX});
    let idle = json!({"default": 0, "minimum": 0, "maximum": SECONDS_MAX});
    let groups = json!({
        "maxItems": GROUPS_MAX,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    });
    let label = json!({"minLength": 1, "maxLength": LABEL_BYTES_MAX, "pattern": LABEL_PATTERN});
    vec![
        ("ClusterSpec", "idleTimeout", idle),
        ("ClusterSpec", "workerGroups", groups),
        ("WorkerGroup", "", json!({"required": ["name"]})),
        ("WorkerGroup", "name", label),
        ("Resources", "limits", amounts()),
        ("Resources", "requests", amounts()),
        ("EnvironmentVariable", "name", json!({"minLength": 1})),
    ]
}

fn workers(name: &'static str) -> [Patch; 3] {
    let replicas = json!({"default": 1, "minimum": 0, "maximum": REPLICAS_MAX});
    let threads = json!({"minimum": 1, "maximum": THREADS_MAX});
    let amount = json!({"type": "integer", "minimum": 0, "maximum": TASK_RESOURCE_MAX});
    let amounts = json!({"maxProperties": RESOURCES_MAX, "additionalProperties": amount});
    [
        (name, "replicas", replicas),
        (name, "threads", threads),
        (name, "taskResources", amounts),
    ]
}

fn jobs() -> Vec<Patch> {
    let text = || json!({"maxLength": TEXT_CHARS_MAX});
    let seconds = |least: u64| json!({"minimum": least, "maximum": SECONDS_MAX});
    let file = || json!({"maxLength": PATH_CHARS_MAX});
    let name = || json!({"minLength": 1, "maxLength": OBJECT_NAME_CHARS_MAX});
    let history = || json!({"maximum": HISTORY_MAX});
    vec![
        ("JobSpec", "activeDeadlineSeconds", seconds(1)),
        ("JobSpec", "ttlSecondsAfterFinished", seconds(0)),
        ("JobSpec", "backoffLimit", json!({"maximum": BACKOFF_MAX})),
        (
            "JobSpec",
            "schedule",
            json!({"maxLength": SCHEDULE_CHARS_MAX}),
        ),
        (
            "JobSpec",
            "timeZone",
            json!({"minLength": 1, "maxLength": TIME_ZONE_CHARS_MAX}),
        ),
        ("JobSpec", "startingDeadlineSeconds", seconds(0)),
        ("JobSpec", "successfulJobsHistoryLimit", history()),
        ("JobSpec", "failedJobsHistoryLimit", history()),
        ("Sql", "statements", text()),
        ("Sql", "file", file()),
        ("Graph", "outputs", json!({"maxItems": OUTPUTS_MAX})),
        ("Graph", "file", file()),
        ("Script", "source", text()),
        ("Script", "file", file()),
        ("Script", "args", json!({"maxItems": ARGUMENTS_MAX})),
        (
            "Script",
            "python",
            json!({"minLength": 1, "maxLength": PATH_CHARS_MAX}),
        ),
        ("KeyReference", "name", name()),
        ("KeyReference", "key", name()),
        ("JobStatus", "jobRunnerPodName", json!({"nullable": true})),
        ("JobStatus", "startTime", json!({"nullable": true})),
        ("JobStatus", "endTime", json!({"nullable": true})),
        ("JobStatus", "runnerStarts", json!({"maximum": i32::MAX})),
        ("JobStatus", "runnersEnded", json!({"maximum": i32::MAX})),
        ("JobStatus", "attempts", json!({"maximum": i32::MAX})),
        ("JobStatus", "lostRunners", json!({"maximum": i32::MAX})),
    ]
}

/// For the types of Kubernetes: what its own API adds when it reads a pod, and which lists have
/// keys, so that server-side apply merges them item by item.
pub(crate) fn foreign() -> Vec<Patch> {
    vec![
        ("PodSpec", "containers", keyed(&["name"])),
        ("PodSpec", "initContainers", keyed(&["name"])),
        ("PodSpec", "volumes", keyed(&["name"])),
        (
            "PodSpec",
            "topologySpreadConstraints",
            keyed(&["topologyKey", "whenUnsatisfiable"]),
        ),
        ("Container", "ports", keyed(&["containerPort", "protocol"])),
        ("ContainerPort", "protocol", json!({"default": "TCP"})),
        ("ServiceSpec", "ports", keyed(&["port", "protocol"])),
        ("ServicePort", "protocol", json!({"default": "TCP"})),
    ]
}

fn keyed(keys: &[&str]) -> Value {
    json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quantity;

    #[test]
    fn every_admitted_quantity_can_be_read() {
        for (digits, suffix) in QUANTITY_FORMS {
            let number = match digits {
                0 => "7.99999".to_owned(),
                _ => format!("{}.99999", "9".repeat(digits)),
            };
            let suffixes: &[&str] = match suffix {
                "[num]?" => &["", "n", "u", "m"],
                "(k|Ki)" => &["k", "Ki"],
                "Mi?" => &["M", "Mi"],
                "(Gi?|[eE][+-]?\\d)" => &["G", "Gi", "e9", "E9", "e-9", "E+9"],
                "Ti?" => &["T", "Ti"],
                "Pi?" => &["P", "Pi"],
                "Ei?" => &["E", "Ei"],
                other => panic!("what does {other} admit?"),
            };
            for suffix in suffixes {
                for text in [format!("+{number}{suffix}"), format!(".99999{suffix}")] {
                    assert!(text.len() <= QUANTITY_CHARS_MAX, "{text}");
                    assert!(Quantity::parse(&text).is_ok(), "{text}");
                }
            }
        }
        assert!(Quantity::parse(&i64::MAX.to_string()).is_ok());
    }
}
