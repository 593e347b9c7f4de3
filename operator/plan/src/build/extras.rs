//! What our types lose of a user's template: fields of a Kubernetes newer than they are.
//!
//! Owns finding it and laying it into the finished object. A template is read into our types, which
//! leave out what they do not know; what they left out is put back where it stood. Rules: containers
//! are found again by their names, items of other lists only if they stand there as they were given;
//! what we set ourselves stays.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Lists whose items are known by a name, and of which we change items.
const NAMED_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// How deep templates are compared; deeper ones do not come through the reader.
const DEPTH_MAX: usize = 100;

/// What was lost, and where it belongs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// A JSON pointer into the object.
    at: &'static str,
    /// As given.
    given: Value,
    /// As our types read and write it.
    known: Value,
}

impl Extras {
    /// Whether nothing was lost.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Remembers what the type loses of the value, which belongs at the pointer.
    pub(crate) fn compare<T: DeserializeOwned + Serialize>(
        &mut self,
        at: &'static str,
        given: &Value,
    ) {
        // What cannot be read is reported where it is read for good.
        let Ok(read) = T::deserialize(given) else {
            return;
        };
        let Ok(known) = serde_json::to_value(&read) else {
            return;
        };
        if loses(given, &known, 0) {
            let given = given.clone();
            self.parts.push(Part { at, given, known });
        }
    }

    /// Lays what was lost into the object.
    pub(crate) fn lay(&self, object: &mut Value) {
        for part in &self.parts {
            if let Some(target) = object.pointer_mut(part.at) {
                graft(target, &part.given, &part.known, 0);
            }
        }
    }
}

fn loses(given: &Value, known: &Value, depth: usize) -> bool {
    if depth > DEPTH_MAX {
        return false;
    }
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().any(|(key, value)| {
            let missing = || !value.is_null();
            known
                .get(key)
                .map_or_else(missing, |known| loses(value, known, depth + 1))
        }),
        (Value::Array(given), Value::Array(known)) => {
            let mut pairs = given.iter().zip(known);
            pairs.any(|(given, known)| loses(given, known, depth + 1))
        }
        _ => false,
    }
}

fn graft(target: &mut Value, given: &Value, known: &Value, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    let (Value::Object(target), Value::Object(given), Value::Object(known)) =
        (target, given, known)
    else {
        return;
    };
    for (key, value) in given {
        match (target.get_mut(key), known.get(key)) {
            (None, None) if !value.is_null() => {
                target.insert(key.clone(), value.clone());
            }
            (Some(Value::Array(items)), Some(Value::Array(known))) => {
                let Value::Array(given) = value else { continue };
                let is_named = NAMED_LISTS.contains(&key.as_str());
                for (given, known) in given.iter().zip(known) {
                    graft_item(items, given, known, is_named, depth);
                }
            }
            (Some(inner), Some(known)) => graft(inner, value, known, depth + 1),
            _ => {}
        }
    }
}

fn graft_item(items: &mut [Value], given: &Value, known: &Value, is_named: bool, depth: usize) {
    let found = items.iter_mut().find(|item| {
        if is_named {
            item.get("name") == known.get("name")
        } else {
            *item == known
        }
    });
    if let Some(item) = found {
        graft(item, given, known, depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_our_types_do_not_know_come_back_to_their_places() {
        let given = json!({
            "futurePodField": {"a": 1},
            "volumes": [{"name": "v", "emptyDir": {"futureMedium": "fast"}}, {"name": "w"}],
            "containers": [
                {"name": "side", "image": "s", "futureField": true},
                {"name": "worker", "image": "old", "futureList": [1],
                 "env": [{"name": "A", "futureSource": 1}, {"name": "B", "futureSource": 2}]},
            ],
        });
        let mut extras = Extras::default();
        extras.compare::<PodSpec>("/spec", &given);
        assert!(!extras.is_empty());
        // What we made of it: containers changed, one volume gone, one variable replaced.
        let mut object = json!({"spec": {
            "volumes": [{"name": "w"}, {"name": "v", "emptyDir": {}}, {"name": "ours"}],
            "containers": [
                {"name": "worker", "image": "new", "args": ["worker"],
                 "env": [{"name": "A", "value": "ours"}, {"name": "B"}]},
                {"name": "side", "image": "s"},
            ],
        }});
        extras.lay(&mut object);
        assert_eq!(
            object,
            json!({"spec": {
                "futurePodField": {"a": 1},
                "volumes": [
                    {"name": "w"},
                    {"name": "v", "emptyDir": {"futureMedium": "fast"}},
                    {"name": "ours"},
                ],
                "containers": [
                    {"name": "worker", "image": "new", "args": ["worker"], "futureList": [1],
                     "env": [{"name": "A", "value": "ours"}, {"name": "B", "futureSource": 2}]},
                    {"name": "side", "image": "s", "futureField": true},
                ],
            }})
        );
    }

    #[test]
    fn nothing_is_kept_of_what_our_types_know() {
        let given = json!({"containers": [{"name": "a", "image": null}], "hostNetwork": true});
        let mut extras = Extras::default();
        extras.compare::<PodSpec>("/spec", &given);
        assert!(extras.is_empty());
    }
}
