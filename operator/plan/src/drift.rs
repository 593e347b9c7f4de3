//! Others' changes of objects that the operator made.
//!
//! Owns the comparison of the desired form with what is there, and how often a change is undone. What
//! others add beside our fields is theirs. A change of ours is undone, but not for ever: somebody who
//! makes it again and again, such as an admission webhook, wins after a few times, and it is said.
//!
//! Invariant: an object is applied for its drift at most [`REPAIRS_MAX`] times in [`REPAIR_WINDOW`].

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::Quantity;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::build::labels::{REPAIRS, annotation};
use crate::{Object, ObjectKind, Timestamp, hash, owner};

/// How often others' changes of one object are undone within [`REPAIR_WINDOW`].
pub const REPAIRS_MAX: u32 = 3;

/// For how long repairs are counted.
pub const REPAIR_WINDOW: Duration = Duration::from_hours(1);

/// Differences that are looked for; a text names the first.
const DIFFERENCES_MAX: usize = 8;

/// How deep objects are compared.
const DEPTH_MAX: usize = 64;

/// Bytes of a value in a text.
const SHOWN_BYTES_MAX: usize = 128;

/// Fields below which amounts are compared as amounts: the API server writes them its own way.
const AMOUNTS: [&str; 5] = ["limits", "requests", "sizeLimit", "storage", "divisor"];

/// Fields by which the items of lists are known; without one a list is compared as a whole.
const KEYS: [&str; 5] = ["name", "mountPath", "containerPort", "uid", "topologyKey"];

/// Fields whose absence is not the same as `false`.
const NEVER_ABSENT: [&str; 5] = [
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "readOnlyRootFilesystem",
    "runAsNonRoot",
];

/// A field that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Where: `spec.ports[tcp-comm].port`.
    pub(crate) path: String,
    /// What it should be.
    pub(crate) desired: Value,
    /// What it is; none if it is not there.
    pub(crate) observed: Option<Value>,
}

impl Difference {
    /// `` `spec.replicas` is 0 instead of 1 ``; values of environment variables are not told.
    pub(crate) fn line(&self) -> String {
        if self.path.contains(".env[") {
            return format!("`{}` was changed", self.path);
        }
        let desired = shown(&self.desired);
        match &self.observed {
            Some(observed) => {
                format!(
                    "`{}` is {} instead of {desired}",
                    self.path,
                    shown(observed)
                )
            }
            None => format!("`{}` is gone instead of {desired}", self.path),
        }
    }
}

/// A value in a text.
pub(crate) fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    crate::status::cut(&text, SHOWN_BYTES_MAX)
}

/// What is to be done about one object.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// To apply.
    pub(crate) apply: Option<Object>,
    /// What others changed, if it is undone.
    pub(crate) repaired: Option<Notice>,
    /// What others changed, if it is left as it is for now, and for how long.
    pub(crate) kept: Option<(Notice, Duration)>,
}

/// A change by others, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) kind: ObjectKind,
    pub(crate) name: String,
    pub(crate) difference: String,
}

impl Notice {
    /// `Service `a-scheduler`: …`.
    pub(crate) fn line(&self) -> String {
        format!("{} `{}`: {}", self.kind, self.name, self.difference)
    }
}

/// Applies the object if it is missing or its desired form is a new one, and undoes what others
/// changed.
pub(crate) fn reconciled<T: Serialize>(
    object: Object,
    present: Option<(&ObjectMeta, &T)>,
    now: Timestamp,
) -> Outcome {
    reconciled_without(object, present, now, |_| {})
}

/// The same, leaving out of account what `leave_out` removes from the desired form.
pub(crate) fn reconciled_without<T: Serialize>(
    object: Object,
    present: Option<(&ObjectMeta, &T)>,
    now: Timestamp,
    leave_out: impl FnOnce(&mut Value),
) -> Outcome {
    let Some((metadata, present)) = present else {
        return Outcome {
            apply: Some(hash::marked(object)),
            ..Outcome::default()
        };
    };
    if !hash::is_applied(&object, metadata) {
        return Outcome {
            apply: Some(hash::marked(object)),
            ..Outcome::default()
        };
    }
    if owner::is_terminating(metadata) {
        return Outcome::default();
    }
    let mut desired = object.to_value();
    leave_out(&mut desired);
    // A value of our own types always has a JSON form.
    let observed = serde_json::to_value(present).unwrap_or_default();
    let found = differences(&desired, &observed, object.kind());
    let Some(first) = found.first() else {
        return Outcome::default();
    };
    let notice = Notice {
        kind: object.kind(),
        name: object.name().to_owned(),
        difference: first.line(),
    };
    let (count, since) = repairs(metadata, now);
    if count >= REPAIRS_MAX {
        let past = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        return Outcome {
            kept: Some((notice, REPAIR_WINDOW.saturating_sub(past))),
            ..Outcome::default()
        };
    }
    let mut object = hash::marked(object);
    let annotations = object.metadata_mut().annotations.get_or_insert_default();
    let counted = format!("{}@{}", count + 1, since.as_second());
    annotations.insert(REPAIRS.to_owned(), counted);
    Outcome {
        apply: Some(object),
        repaired: Some(notice),
        kept: None,
    }
}

/// How often the object was repaired, and since when that is counted.
fn repairs(metadata: &ObjectMeta, now: Timestamp) -> (u32, Timestamp) {
    let counted = annotation(metadata.annotations.as_ref(), REPAIRS).and_then(|text| {
        let (count, since) = text.split_once('@')?;
        let since = Timestamp::from_second(since.parse().ok()?).ok()?;
        Some((count.parse().ok()?, since))
    });
    let Some((count, since)) = counted else {
        return (0, now);
    };
    // A moment in the future comes from a clock that was wrong.
    match Duration::try_from(now.duration_since(since)) {
        Ok(past) if past < REPAIR_WINDOW => (count, since),
        _ => (0, now),
    }
}

/// Where the observed object is not as desired; what it has besides does not count.
pub(crate) fn differences(desired: &Value, observed: &Value, kind: ObjectKind) -> Vec<Difference> {
    let mut comparison = Comparison {
        found: Vec::new(),
        // Every list of a network policy is one whole.
        has_keys: kind != ObjectKind::NetworkPolicy,
    };
    for part in ["spec", "data", "binaryData"] {
        if let Some(desired) = desired.get(part) {
            let observed = observed.get(part);
            comparison.compare(part, part, desired, observed, Depth::default());
        }
    }
    for (part, path) in [
        ("labels", "metadata.labels"),
        ("annotations", "metadata.annotations"),
        ("ownerReferences", "metadata.ownerReferences"),
    ] {
        let at = |object: &Value| object.get("metadata")?.get(part).cloned();
        if let Some(desired) = at(desired) {
            comparison.compare(
                path,
                part,
                &desired,
                at(observed).as_ref(),
                Depth::default(),
            );
        }
    }
    comparison.found
}

struct Comparison {
    found: Vec<Difference>,
    has_keys: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    levels: usize,
    is_amount: bool,
}

impl Comparison {
    fn compare(
        &mut self,
        path: &str,
        field: &str,
        desired: &Value,
        observed: Option<&Value>,
        depth: Depth,
    ) {
        if self.found.len() >= DIFFERENCES_MAX || depth.levels > DEPTH_MAX {
            return;
        }
        let depth = Depth {
            levels: depth.levels + 1,
            is_amount: depth.is_amount || AMOUNTS.contains(&field),
        };
        match (desired, observed) {
            (desired, None) => {
                if !is_absent(field, desired) {
                    self.report(path, desired, None);
                }
            }
            (Value::Object(desired), Some(Value::Object(observed))) => {
                self.compare_fields(path, desired, observed, depth);
            }
            (Value::Array(desired), Some(Value::Array(observed))) => {
                self.compare_items(path, desired, observed, depth);
            }
            (desired, Some(observed)) => {
                let is_same =
                    desired == observed || depth.is_amount && is_same_amount(desired, observed);
                if !is_same {
                    self.report(path, desired, Some(observed));
                }
            }
        }
    }

    fn compare_fields(
        &mut self,
        path: &str,
        desired: &Map<String, Value>,
        observed: &Map<String, Value>,
        depth: Depth,
    ) {
        for (key, value) in desired {
            let path = format!("{path}.{key}");
            self.compare(&path, key, value, observed.get(key), depth);
        }
    }

    fn compare_items(&mut self, path: &str, desired: &[Value], observed: &[Value], depth: Depth) {
        if let Some(key) = KEYS.iter().find(|key| {
            let all = |list: &[Value]| list.iter().all(|item| item.get(**key).is_some());
            self.has_keys && !desired.is_empty() && all(desired) && all(observed)
        }) {
            for item in desired {
                let wanted = item.get(*key);
                let found = observed.iter().find(|other| other.get(*key) == wanted);
                let shown = wanted.map(shown).unwrap_or_default();
                self.compare(&format!("{path}[{shown}]"), "", item, found, depth);
            }
            return;
        }
        if desired.len() != observed.len() {
            let all = |list: &[Value]| Value::Array(list.to_vec());
            self.report(path, &all(desired), Some(&all(observed)));
            return;
        }
        for (index, (item, other)) in desired.iter().zip(observed).enumerate() {
            self.compare(&format!("{path}[{index}]"), "", item, Some(other), depth);
        }
    }

    fn report(&mut self, path: &str, desired: &Value, observed: Option<&Value>) {
        self.found.push(Difference {
            path: path.to_owned(),
            desired: desired.clone(),
            observed: observed.cloned(),
        });
    }
}

/// Whether the API server may leave the value out.
fn is_absent(field: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_true) => !is_true && !NEVER_ABSENT.contains(&field),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.iter().all(|(key, value)| is_absent(key, value)),
    }
}

fn is_same_amount(desired: &Value, observed: &Value) -> bool {
    let amount = |value: &Value| {
        let amount = match value {
            Value::String(text) => Quantity::parse(text),
            other => Quantity::parse(&other.to_string()),
        };
        amount.ok().map(|amount| amount.thousandths())
    };
    let desired = amount(desired);
    desired.is_some() && desired == amount(observed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(desired: &Value, observed: &Value, kind: ObjectKind) -> Vec<String> {
        let found = differences(desired, observed, kind);
        let mut lines: Vec<String> = found.iter().map(Difference::line).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn what_others_add_does_not_count_and_what_they_change_does() {
        let desired = json!({
            "metadata": {"labels": {"a": "1"}},
            "spec": {
                "replicas": 1,
                "publishNotReadyAddresses": false,
                "template": {"containers": [{
                    "name": "scheduler", "image": "x", "args": ["a"],
                    "env": [{"name": "A", "value": "secret"}],
                    "securityContext": {"allowPrivilegeEscalation": false},
                    "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"},
                                  "requests": {"cpu": 1}},
                }]},
            },
        });
        let mut observed = desired.clone();
        observed["metadata"]["labels"]["b"] = json!("2");
        observed["spec"]["template"]["containers"][0]["resources"] =
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "1"}});
        let sidecar = json!({"name": "sidecar"});
        observed["spec"]["template"]["containers"]
            .as_array_mut()
            .unwrap()
            .insert(0, sidecar);
        observed["spec"]
            .as_object_mut()
            .unwrap()
            .remove("publishNotReadyAddresses");
        assert_eq!(lines(&desired, &observed, ObjectKind::Deployment), [""; 0]);
        observed["spec"]["replicas"] = json!(0);
        let container = &mut observed["spec"]["template"]["containers"][1];
        container["args"] = json!(["a", "b"]);
        container["env"][0]["value"] = json!("other");
        container["securityContext"] = json!({});
        container["resources"]["limits"]["memory"] = json!("2Gi");
        assert_eq!(
            lines(&desired, &observed, ObjectKind::Deployment),
            [
                "`spec.replicas` is 0 instead of 1",
                "`spec.template.containers[scheduler].args` is [\"a\",\"b\"] instead of [\"a\"]",
                "`spec.template.containers[scheduler].env[A].value` was changed",
                "`spec.template.containers[scheduler].resources.limits.memory` is 2Gi instead of \
                 1024Mi",
                "`spec.template.containers[scheduler].securityContext.allowPrivilegeEscalation` \
                 is gone instead of false",
            ]
        );
    }

    #[test]
    fn a_door_that_somebody_adds_to_a_policy_is_seen() {
        let ports = json!([{"port": 8787, "protocol": "TCP"}]);
        let desired = json!({"spec": {"ingress": [{"ports": ports}]}});
        let mut observed = desired.clone();
        let more = json!({"port": 22, "protocol": "TCP"});
        observed["spec"]["ingress"][0]["ports"]
            .as_array_mut()
            .unwrap()
            .push(more);
        assert_eq!(
            lines(&desired, &observed, ObjectKind::NetworkPolicy).len(),
            1
        );
        observed["spec"]["ingress"] = json!([{"ports": ports}, {}]);
        assert_eq!(
            lines(&desired, &observed, ObjectKind::NetworkPolicy).len(),
            1
        );
    }

    #[test]
    fn amounts_are_compared_as_amounts() {
        for (a, b, wanted) in [
            (json!("1"), json!("1000m"), true),
            (json!(2), json!("2"), true),
            (json!("1.5"), json!("1500m"), true),
            (json!("1Gi"), json!("1024Mi"), true),
            (json!("1G"), json!("1Gi"), false),
            (json!("500m"), json!("501m"), false),
            (json!("x"), json!("y"), false),
        ] {
            assert_eq!(is_same_amount(&a, &b), wanted, "{a} {b}");
        }
    }
}
