//! Merge patches and JSON patches.

use serde_json::Value;

use crate::error::Refused;

/// RFC 7386.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// RFC 6902: `add`, `replace`, `remove` and `test`.
pub(crate) fn json(target: &mut Value, patch: &Value) -> Result<(), Refused> {
    let steps = patch.as_array();
    let steps = steps.ok_or_else(|| Refused::bad("a JSON patch is a list"))?;
    for step in steps {
        let path = step["path"].as_str().unwrap_or_default();
        let value = step.get("value").cloned().unwrap_or(Value::Null);
        let (parent, last) = path.rsplit_once('/').unwrap_or_default();
        let last = last.replace("~1", "/").replace("~0", "~");
        let missing = || Refused::invalid(format!("the path `{path}` does not exist"));
        match step["op"].as_str() {
            Some("test") => {
                if target.pointer(path) != Some(&value) {
                    return Err(Refused::invalid(format!("testing `{path}` failed")));
                }
            }
            Some("replace") => *target.pointer_mut(path).ok_or_else(missing)? = value,
            Some("add") => match target.pointer_mut(parent).ok_or_else(missing)? {
                Value::Object(map) => {
                    map.insert(last, value);
                }
                Value::Array(items) => {
                    let at = last.parse().unwrap_or(items.len()).min(items.len());
                    items.insert(at, value);
                }
                _ => return Err(missing()),
            },
            Some("remove") => match target.pointer_mut(parent).ok_or_else(missing)? {
                Value::Object(map) => {
                    map.shift_remove(&last).ok_or_else(missing)?;
                }
                Value::Array(items) => {
                    let at = last.parse().ok().filter(|at| *at < items.len());
                    items.remove(at.ok_or_else(missing)?);
                }
                _ => return Err(missing()),
            },
            _ => return Err(Refused::bad("an unknown step of a JSON patch")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_sets_and_removes() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge(
            &mut target,
            &json!({"a": {"b": null, "d": {"e": 3}}, "l": [2]}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "d": {"e": 3}}, "l": [2]}));
    }

    #[test]
    fn a_json_patch_is_checked_step_by_step() {
        let mut target = json!({"m": {"f": ["x", "y"]}});
        let steps = json!([
            {"op": "test", "path": "/m/f/0", "value": "x"},
            {"op": "remove", "path": "/m/f/0"},
            {"op": "add", "path": "/m/a~1b", "value": 1},
            {"op": "replace", "path": "/m/f", "value": []},
        ]);
        json(&mut target, &steps).unwrap();
        assert_eq!(target, json!({"m": {"f": [], "a/b": 1}}));
        let bad = json!([{"op": "test", "path": "/m/f", "value": 1}]);
        assert!(json(&mut target, &bad).is_err());
        assert!(json(&mut target, &json!([{"op": "remove", "path": "/x/y"}])).is_err());
    }
}
