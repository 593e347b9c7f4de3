//! Whether an object still is as it was applied.
//!
//! Owns the comparison of what is wanted with what is there, where the API server's additions do
//! not count, and the memory that one repair was tried. Invariant: an object that something else
//! keeps changing back is repaired once, not for ever.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::Quantity;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{ADOPTED, REPAIRED};
use crate::build::labels::annotation;
use crate::{Object, hash};

/// Hex digits of the memory of a repair.
const DIGITS: usize = 16;

/// The object to apply, if what is there has another mark or has been changed by somebody.
pub(super) fn due<S: Serialize>(
    object: Object,
    metadata: Option<&ObjectMeta>,
    spec: Option<&S>,
) -> Option<Object> {
    let wanted = object.to_value();
    let applied = hash::unless_applied(object.clone(), metadata);
    let (Some(metadata), None) = (metadata, &applied) else {
        return applied;
    };
    let mark = hash::applied_mark(metadata);
    let annotations = metadata.annotations.as_ref();
    if mark.is_some() && annotation(annotations, ADOPTED) == mark {
        return None;
    }
    let there = serde_json::to_value(spec).unwrap_or(Value::Null);
    let digest = Sha256::digest(there.to_string().as_bytes());
    let before = hash::hex(&digest, DIGITS);
    let repaired = annotation(annotations, REPAIRED);
    let is_whole = holds(&wanted["spec"], &there, "") && holds_labels(&wanted, metadata);
    match (is_whole, repaired) {
        (true, None) => None,
        (false, Some(repaired)) if repaired == before => None,
        // Applied again: without the memory when all is well, otherwise with it.
        _ => {
            let mut object = hash::unless_applied(object, None)?;
            if !is_whole {
                let annotations = object.metadata_mut().annotations.get_or_insert_default();
                annotations.insert(REPAIRED.to_owned(), before);
            }
            Some(object)
        }
    }
}

fn holds_labels(wanted: &Value, metadata: &ObjectMeta) -> bool {
    let there = serde_json::to_value(&metadata.labels).unwrap_or(Value::Null);
    holds(&wanted["metadata"]["labels"], &there, "")
}

/// Whether everything that is wanted is there.
fn holds(wanted: &Value, there: &Value, field: &str) -> bool {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => {
            let is_amount = matches!(field, "limits" | "requests");
            let mut fields = wanted.iter();
            fields.all(|(name, value)| {
                let field = if is_amount { "amount" } else { name };
                holds(value, there.get(name).unwrap_or(&Value::Null), field)
            })
        }
        (Value::Array(wanted), Value::Array(there)) => {
            let mut pairs = wanted.iter().zip(there);
            wanted.len() == there.len() && pairs.all(|(wanted, there)| holds(wanted, there, ""))
        }
        (Value::Object(wanted), Value::Null) => is_void(wanted, field),
        (Value::Array(wanted), Value::Null) => wanted.is_empty(),
        (Value::String(wanted), Value::Null) => wanted.is_empty(),
        (Value::Bool(wanted), Value::Null) => !wanted,
        (Value::Null, _) => true,
        (wanted, there) if field == "amount" => amount(wanted) == amount(there),
        (wanted, there) => wanted == there,
    }
}

/// The API server leaves out what says nothing.
fn is_void(wanted: &Map<String, Value>, field: &str) -> bool {
    wanted
        .values()
        .all(|value| holds(value, &Value::Null, field))
}

/// `1` and `1000m` are the same, and the API server writes the shorter one.
fn amount(value: &Value) -> Option<(u64, Option<String>)> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let parsed = Quantity::parse(&text).ok()?;
    if parsed.is_fractional() {
        // Only thousandths are usual; anything finer is compared as it is written.
        let thousandths = text.strip_suffix('m').and_then(|text| text.parse().ok());
        let written = thousandths.is_none().then(|| text.clone());
        return Some((thousandths.unwrap_or_default(), written));
    }
    Some((parsed.rounded_up().saturating_mul(1000), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn additions_and_other_spellings_are_no_change() {
        let wanted = json!({"containers": [{
            "name": "a", "image": "i", "env": [], "resources": {"limits": {"cpu": "1000m", "x": 2}},
            "ports": [{"containerPort": 1}], "tty": false,
        }], "nodeSelector": {}});
        let there = json!({"containers": [{
            "name": "a", "image": "i", "resources": {"limits": {"cpu": "1", "x": "2"}},
            "ports": [{"containerPort": 1, "protocol": "TCP"}], "terminationMessagePath": "/x",
        }], "schedulerName": "default-scheduler"});
        assert!(holds(&wanted, &there, ""));
        for (path, value) in [
            ("/containers/0/image", json!("other")),
            ("/containers/0/resources/limits/cpu", json!("2")),
            ("/containers/0/ports", json!([])),
        ] {
            let mut changed = there.clone();
            *changed.pointer_mut(path).unwrap() = value;
            assert!(!holds(&wanted, &changed, ""), "{path}");
        }
    }
}
