//! Server-side apply: the merge, who owns which field, and conflicts.

use serde_json::{Map, Value, json};

use crate::clock;
use crate::error::Refused;
use crate::fields::{self, ListKind};

/// Metadata that the server owns.
const SERVERS: [&str; 8] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
];

/// Who applies, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applier<'a> {
    pub(crate) manager: &'a str,
    /// `status` or nothing.
    pub(crate) subresource: &'a str,
    pub(crate) is_forced: bool,
    pub(crate) is_custom: bool,
}

/// The part of a configuration that an apply is about.
pub(crate) fn applied_part(configuration: &Value, subresource: &str, has_status: bool) -> Value {
    let mut part = configuration.clone();
    let Some(map) = part.as_object_mut() else {
        return json!({});
    };
    map.shift_remove("apiVersion");
    map.shift_remove("kind");
    if subresource == "status" {
        map.retain(|key, _| key == "status");
    } else if has_status {
        map.shift_remove("status");
    }
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !SERVERS.contains(&key.as_str()));
        if metadata.is_empty() {
            map.shift_remove("metadata");
        }
    }
    part
}

/// Applies `part` to the live object.
pub(crate) fn apply(live: &mut Value, part: &Value, applier: Applier<'_>) -> Result<(), Refused> {
    let mut entries = entries(live);
    let new = fields::fields(part, "", applier.is_custom);
    let is_own = |entry: &Value| is_of(entry, applier.manager, "Apply", applier.subresource);
    let mut problems = Vec::new();
    for entry in entries.iter().filter(|entry| !is_own(entry)) {
        let manager = entry["manager"].as_str().unwrap_or_default();
        let mut path = String::new();
        conflicts(
            &new,
            &entry["fieldsV1"],
            part,
            live,
            &mut path,
            &mut |path| {
                problems.push((
                    "FieldManagerConflict",
                    format!("conflict with \"{manager}\": {path}"),
                ));
            },
        );
    }
    if !problems.is_empty() && !applier.is_forced {
        let mut refused = Refused::conflict(format!(
            "Apply failed with {} conflict{}: {}",
            problems.len(),
            if problems.len() == 1 { "" } else { "s" },
            problems[0].1
        ));
        refused.causes = problems;
        return Err(refused);
    }
    if !problems.is_empty() {
        for entry in entries.iter_mut().filter(|entry| !is_own(entry)) {
            let mut lost = json!({});
            differing(&new, &entry["fieldsV1"], part, live, &mut lost);
            fields::take_away(&mut entry["fieldsV1"], &lost);
        }
    }
    merge(live, part, "", applier.is_custom);
    let old = entries.iter().position(is_own);
    if let Some(old) = old.map(|at| entries[at]["fieldsV1"].clone()) {
        let others: Vec<&Value> = entries
            .iter()
            .filter(|entry| !is_own(entry))
            .map(|entry| &entry["fieldsV1"])
            .collect();
        prune(live, &old, &new, &others);
    }
    match old {
        Some(at) if entries[at]["fieldsV1"] == new => {}
        Some(at) => {
            entries[at]["fieldsV1"] = new;
            entries[at]["time"] = json!(clock::now());
        }
        None => entries.push(entry(
            live,
            applier.manager,
            "Apply",
            applier.subresource,
            &new,
        )),
    }
    keep(live, entries);
    Ok(())
}

/// Gives the manager of a plain write the fields that it changed, and takes them from others.
pub(crate) fn own_changes(
    old: &Value,
    new: &mut Value,
    (manager, subresource): (&str, &str),
    is_custom: bool,
) {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.shift_remove("apiVersion");
            map.shift_remove("kind");
            if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|key, _| !SERVERS.contains(&key.as_str()));
            }
        }
        object
    };
    let (before, after) = (strip(old), strip(new));
    if before == after {
        return;
    }
    let mut changed = fields::changed(&before, &after, "", is_custom);
    if let Some(map) = changed.as_object_mut() {
        map.retain(|key, value| !(key == "f:metadata" && fields::is_leaf(value)));
    }
    let mut entries = entries(new);
    for entry in &mut entries {
        fields::take_away(&mut entry["fieldsV1"], &changed);
    }
    match entries
        .iter_mut()
        .find(|it| is_of(it, manager, "Update", subresource))
    {
        Some(own) => fields::join(&mut own["fieldsV1"], &changed),
        None => entries.push(entry(new, manager, "Update", subresource, &changed)),
    }
    keep(new, entries);
}

fn entries(object: &Value) -> Vec<Value> {
    let found = object["metadata"]["managedFields"].as_array();
    found.cloned().unwrap_or_default()
}

fn keep(object: &mut Value, mut entries: Vec<Value>) {
    entries.retain(|entry| !fields::is_leaf(&entry["fieldsV1"]));
    object["metadata"]["managedFields"] = Value::Array(entries);
}

fn entry(object: &Value, manager: &str, operation: &str, subresource: &str, set: &Value) -> Value {
    let mut entry = json!({
        "manager": manager, "operation": operation, "apiVersion": object["apiVersion"],
        "time": clock::now(), "fieldsType": "FieldsV1", "fieldsV1": set,
    });
    if !subresource.is_empty() {
        entry["subresource"] = json!(subresource);
    }
    entry
}

fn is_of(entry: &Value, manager: &str, operation: &str, subresource: &str) -> bool {
    entry["manager"] == manager
        && entry["operation"] == operation
        && entry["subresource"].as_str().unwrap_or_default() == subresource
}

/// Leaves that both sets have and whose values differ.
fn conflicts(
    mine: &Value,
    theirs: &Value,
    part: &Value,
    live: &Value,
    path: &mut String,
    found: &mut impl FnMut(&str),
) {
    let (Some(mine), Some(theirs)) = (mine.as_object(), theirs.as_object()) else {
        return;
    };
    for (element, inner) in mine {
        let Some(their_inner) = theirs.get(element).filter(|_| element != ".") else {
            continue;
        };
        let (Some(wanted), Some(present)) =
            (fields::find(part, element), fields::find(live, element))
        else {
            continue;
        };
        let length = path.len();
        path.push('.');
        path.push_str(element.get(2..).unwrap_or_default());
        if fields::is_leaf(inner) || fields::is_leaf(their_inner) {
            if wanted != present && !is_half(inner, their_inner, wanted, present) {
                found(path);
            }
        } else {
            conflicts(inner, their_inner, wanted, present, path, found);
        }
        path.truncate(length);
    }
}

/// Whether one owns a map that it left empty, and the other something in it.
fn is_half(mine: &Value, theirs: &Value, wanted: &Value, present: &Value) -> bool {
    fields::is_leaf(mine) != fields::is_leaf(theirs) && wanted.is_object() && present.is_object()
}

/// The same as a set.
fn differing(mine: &Value, theirs: &Value, part: &Value, live: &Value, lost: &mut Value) {
    let (Some(mine), Some(theirs)) = (mine.as_object(), theirs.as_object()) else {
        return;
    };
    for (element, inner) in mine {
        let Some(their_inner) = theirs.get(element).filter(|_| element != ".") else {
            continue;
        };
        let (Some(wanted), Some(present)) =
            (fields::find(part, element), fields::find(live, element))
        else {
            continue;
        };
        if fields::is_leaf(inner) || fields::is_leaf(their_inner) {
            if wanted != present && !is_half(inner, their_inner, wanted, present) {
                lost[element] = json!({});
            }
            continue;
        }
        let mut of_inner = json!({});
        differing(inner, their_inner, wanted, present, &mut of_inner);
        if !fields::is_leaf(&of_inner) {
            lost[element] = of_inner;
        }
    }
}

/// Lays a configuration over a live value.
pub(crate) fn merge(live: &mut Value, part: &Value, name: &str, is_custom: bool) {
    match (live, part) {
        (Value::Object(live), Value::Object(part)) if !fields::is_atomic_map(is_custom, name) => {
            for (key, value) in part {
                match live.get_mut(key) {
                    Some(inner) => merge(inner, value, key, is_custom),
                    None => {
                        live.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (live @ Value::Array(_), Value::Array(items)) => {
            match fields::list_kind(is_custom, name, items) {
                ListKind::Atomic => *live = Value::Array(items.clone()),
                kind => merge_items(live, items, kind, is_custom),
            }
        }
        (live, part) => *live = part.clone(),
    }
}

fn merge_items(live: &mut Value, items: &[Value], kind: ListKind, is_custom: bool) {
    let Some(present) = live.as_array_mut() else {
        return;
    };
    for item in items {
        let found = match kind {
            ListKind::Map(keys) => {
                let key = fields::item_key(item, keys);
                present
                    .iter_mut()
                    .find(|it| fields::item_key(it, keys) == key)
            }
            _ => present.iter_mut().find(|it| *it == item),
        };
        match found {
            Some(found) => merge(found, item, "", is_custom),
            None => present.push(item.clone()),
        }
    }
}

/// Removes what the manager applied before and does not apply now, unless others own it too.
fn prune(live: &mut Value, old: &Value, new: &Value, others: &[&Value]) {
    let Some(old) = old.as_object() else {
        return;
    };
    let nothing = Value::Object(Map::new());
    for (element, old_inner) in old.iter().filter(|(element, _)| *element != ".") {
        let new_inner = new.get(element);
        let theirs: Vec<&Value> = others.iter().filter_map(|set| set.get(element)).collect();
        if new_inner.is_none() && theirs.is_empty() {
            fields::remove(live, element);
            continue;
        }
        if let Some(inner) = fields::find_mut(live, element) {
            prune(inner, old_inner, new_inner.unwrap_or(&nothing), &theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applier(manager: &str, is_forced: bool) -> Applier<'_> {
        Applier {
            manager,
            subresource: "",
            is_forced,
            is_custom: false,
        }
    }

    fn pod(containers: &Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn items_are_merged_by_key_and_taken_away_by_who_applied_them() {
        let mut live = json!({"apiVersion": "v1", "metadata": {"name": "p"}});
        let first = pod(&json!([
            {"name": "a", "image": "1", "ports": [{"containerPort": 80, "name": "x"}]},
            {"name": "b", "image": "1", "args": ["1", "2"]},
        ]));
        apply(&mut live, &first, applier("one", false)).unwrap();
        let second = pod(&json!([{"name": "b", "env": [{"name": "E", "value": "1"}]}]));
        apply(&mut live, &second, applier("two", false)).unwrap();
        assert_eq!(live["spec"]["containers"][1]["env"][0]["value"], "1");
        let third = pod(&json!([{"name": "a", "ports": [{"containerPort": 81, "name": "x"}]}]));
        apply(&mut live, &third, applier("one", false)).unwrap();
        assert_eq!(
            live["spec"]["containers"],
            json!([
                {"name": "a", "ports": [{"containerPort": 81, "name": "x"}]},
                {"name": "b", "env": [{"name": "E", "value": "1"}]},
            ])
        );
    }

    #[test]
    fn another_ones_field_is_a_conflict_unless_forced() {
        let mut live = json!({"apiVersion": "v1", "metadata": {}});
        apply(
            &mut live,
            &json!({"spec": {"a": 1, "b": 1}}),
            applier("one", false),
        )
        .unwrap();
        apply(&mut live, &json!({"spec": {"b": 1}}), applier("two", false)).unwrap();
        let other = json!({"spec": {"a": 2}});
        let refused = apply(&mut live, &other, applier("two", false)).unwrap_err();
        assert_eq!(refused.causes[0].0, "FieldManagerConflict");
        assert!(refused.message.contains(".spec.a"), "{}", refused.message);
        apply(&mut live, &other, applier("two", true)).unwrap();
        assert_eq!(live["spec"], json!({"a": 2, "b": 1}));
        // The first one has lost `a`, and leaving it out changes nothing.
        apply(&mut live, &json!({"spec": {"b": 1}}), applier("one", false)).unwrap();
        assert_eq!(live["spec"], json!({"a": 2, "b": 1}));
    }

    #[test]
    fn selectors_are_whole() {
        let mut live = json!({"apiVersion": "v1", "metadata": {}});
        let theirs = json!({"spec": {"selector": {"app": "theirs"}}});
        apply(&mut live, &theirs, applier("one", false)).unwrap();
        let ours = json!({"spec": {"selector": {"cluster": "c"}}});
        assert!(apply(&mut live, &ours, applier("two", false)).is_err());
        apply(&mut live, &ours, applier("two", true)).unwrap();
        assert_eq!(live["spec"], ours["spec"]);
    }

    #[test]
    fn a_plain_write_takes_the_fields_that_it_changes() {
        let mut live = json!({"apiVersion": "v1", "metadata": {}});
        let group = json!({"spec": {"worker": {"replicas": 2, "image": "i"}}});
        apply(&mut live, &group, applier("one", false)).unwrap();
        let before = live.clone();
        live["spec"]["worker"]["replicas"] = json!(5);
        own_changes(&before, &mut live, ("kubectl", ""), false);
        let without = json!({"spec": {"worker": {"image": "i"}}});
        apply(&mut live, &without, applier("one", false)).unwrap();
        assert_eq!(live["spec"]["worker"]["replicas"], 5);
        assert!(apply(&mut live, &group, applier("one", false)).is_err());
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let mut live = json!({"apiVersion": "v1", "metadata": {}});
        let part = json!({"metadata": {"finalizers": ["x"], "labels": {}}, "spec": {"l": [1, 2]}});
        apply(&mut live, &part, applier("one", false)).unwrap();
        let before = live.clone();
        apply(&mut live, &part, applier("one", false)).unwrap();
        assert_eq!(live, before);
        let without = json!({"spec": {"l": [2]}});
        apply(&mut live, &without, applier("one", false)).unwrap();
        assert_eq!(live["spec"]["l"], json!([2]));
        assert!(live["metadata"]["finalizers"].is_null());
    }
}
