//! Why a scheduler's pod is replaced, in words.
//!
//! Owns the comparison of the pod template that runs with the one that is wanted. A scheduler is
//! replaced only for a change of its template; it goes on from its journal.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use crate::drift::{self, Difference, shown};
use crate::{Object, hash};

/// Changes that a text names.
const NAMED_MAX: usize = 3;

/// Why the pod of the Deployment that is there is replaced when this one is applied.
pub(super) fn reason(desired: &Object, present: &Deployment) -> Option<String> {
    if hash::is_applied(desired, &present.metadata) {
        return None;
    }
    let observed = serde_json::to_value(present).unwrap_or_default();
    let desired = desired.to_value();
    let template = |object: &Value| {
        Value::Object(
            [(
                "spec".to_owned(),
                object
                    .pointer("/spec/template/spec")
                    .cloned()
                    .unwrap_or_default(),
            )]
            .into_iter()
            .collect(),
        )
    };
    let (desired, observed) = (template(&desired), template(&observed));
    let kind = crate::ObjectKind::Deployment;
    let mut words: Vec<String> = Vec::new();
    let mut add = |text: String| {
        if !words.contains(&text) {
            words.push(text);
        }
    };
    for difference in drift::differences(&desired, &observed, kind) {
        add(changed(&difference));
    }
    for name in lost_variables(&desired, &observed) {
        add(format!("environment variable `{name}` removed"));
    }
    if words.is_empty() {
        return None;
    }
    // What people look for first.
    words.sort_by_key(|text| !text.starts_with("image "));
    let more = words.len().saturating_sub(NAMED_MAX);
    words.truncate(NAMED_MAX);
    let words = words.join(", ");
    Some(match more {
        0 => words,
        more => format!("{words} and {more} more"),
    })
}

fn changed(difference: &Difference) -> String {
    let path = difference
        .path
        .strip_prefix("spec.")
        .unwrap_or(&difference.path);
    if let Some((_, rest)) = path.split_once(".env[") {
        let name = rest.split(']').next().unwrap_or_default();
        return format!("environment variable `{name}` changed");
    }
    // The one container of a scheduler need not be named.
    let field = match path.strip_prefix("containers[") {
        Some(rest) => rest.split_once("].").map_or(path, |(_, field)| field),
        None => path,
    };
    let desired = shown(&difference.desired);
    match &difference.observed {
        Some(observed) if !observed.is_object() && !observed.is_array() => {
            format!("{field} changed from {} to {desired}", shown(observed))
        }
        Some(_) => format!("{field} changed"),
        None if difference.desired.is_object() => format!("{field} added"),
        None => format!("{field} set to {desired}"),
    }
}

/// Variables that the container of the same name has no more.
fn lost_variables(desired: &Value, observed: &Value) -> Vec<String> {
    let containers = |object: &Value| -> Vec<Value> {
        let found = object.pointer("/spec/containers").and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    let names = |container: &Value| -> Vec<String> {
        let variables = container.get("env").and_then(Value::as_array);
        let names = variables
            .into_iter()
            .flatten()
            .filter_map(|it| it.get("name"));
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let desired = containers(desired);
    let mut lost = Vec::new();
    for container in containers(observed) {
        let same = desired
            .iter()
            .find(|it| it.get("name") == container.get("name"));
        let kept = same.map(names).unwrap_or_default();
        lost.extend(
            names(&container)
                .into_iter()
                .filter(|name| !kept.contains(name)),
        );
    }
    lost
}
