//! What `kubectl` and operators ask to learn which kinds there are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind};

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The answer to a path, if it is one of discovery.
pub(crate) fn answer(path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-fake", "platform": "linux/amd64",
        })),
        ["livez" | "readyz" | "healthz"] => Some(json!("ok")),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["apis"] => {
            let groups: BTreeSet<_> = KINDS.iter().map(|it| (it.group, it.version)).collect();
            let groups = groups.into_iter().filter(|(group, _)| !group.is_empty());
            let groups: Vec<Value> = groups
                .map(|(group, version)| {
                    let version = json!({
                        "groupVersion": format!("{group}/{version}"), "version": version,
                    });
                    json!({"name": group, "versions": [version], "preferredVersion": version})
                })
                .collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", version] => resources("", version),
        ["apis", group, version] => resources(group, version),
        _ => None,
    }
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let kinds = KINDS
        .iter()
        .filter(|it| it.group == group && it.version == version);
    let resources: Vec<Value> = kinds.flat_map(of_kind).collect();
    if resources.is_empty() {
        return None;
    }
    let name = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
        "resources": resources,
    }))
}

fn of_kind(kind: &Kind) -> Vec<Value> {
    let resource = |suffix: &str, verbs: &[&str]| {
        json!({
            "name": format!("{}{suffix}", kind.plural), "kind": kind.name, "verbs": verbs,
            "singularName": kind.name.to_lowercase(), "namespaced": kind.is_namespaced,
        })
    };
    let mut found = vec![resource("", &VERBS)];
    if kind.has_status {
        found.push(resource("/status", &["get", "patch", "update"]));
    }
    if kind.scale.is_some() {
        let mut scale = resource("/scale", &["get", "patch", "update"]);
        scale["kind"] = json!("Scale");
        scale["group"] = json!("autoscaling");
        scale["version"] = json!("v1");
        found.push(scale);
    }
    found
}
