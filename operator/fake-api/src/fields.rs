//! Sets of fields, in the form that `managedFields` has.
//!
//! Owns which lists are merged by key, and the arithmetic of sets. A leaf is an empty object; `.`
//! in an item says that the item itself is owned.

use serde_json::{Map, Value, json};

/// How a list is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Each value at most once.
    Set,
    /// Items known by these fields.
    Map(&'static [&'static str]),
}

/// How the list under this name is merged. Definitions of ours have keys at few lists only.
pub(crate) fn list_kind(is_custom: bool, name: &str, items: &[Value]) -> ListKind {
    const NAME: ListKind = ListKind::Map(&["name"]);
    match name {
        "finalizers" => ListKind::Set,
        "ownerReferences" => ListKind::Map(&["uid"]),
        "conditions" => ListKind::Map(&["type"]),
        "ports" if items.iter().all(|it| it.get("containerPort").is_some()) => {
            ListKind::Map(&["containerPort", "protocol"])
        }
        "ports" if !is_custom => ListKind::Map(&["port", "protocol"]),
        _ if is_custom => ListKind::Atomic,
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets"
        | "resourceClaims" => NAME,
        "volumeMounts" => ListKind::Map(&["mountPath"]),
        "volumeDevices" => ListKind::Map(&["devicePath"]),
        "topologySpreadConstraints" => ListKind::Map(&["topologyKey", "whenUnsatisfiable"]),
        "hostAliases" => ListKind::Map(&["ip"]),
        _ => ListKind::Atomic,
    }
}

/// Whether a map under this name is replaced as a whole.
pub(crate) fn is_atomic_map(is_custom: bool, name: &str) -> bool {
    const ATOMIC: [&str; 9] = [
        "selector",
        "labelSelector",
        "podSelector",
        "namespaceSelector",
        "nodeSelector",
        "fieldRef",
        "resourceFieldRef",
        "secretKeyRef",
        "configMapKeyRef",
    ];
    !is_custom && ATOMIC.contains(&name)
}

/// The fields by which an item is known.
pub(crate) fn item_key(item: &Value, keys: &[&str]) -> Value {
    let mut found = Map::new();
    for key in keys {
        let value = item.get(*key).cloned();
        let value = value.or_else(|| (*key == "protocol").then(|| json!("TCP")));
        if let Some(value) = value {
            found.insert((*key).to_owned(), value);
        }
    }
    Value::Object(found)
}

/// The fields that a value sets.
pub(crate) fn fields(value: &Value, name: &str, is_custom: bool) -> Value {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(is_custom, name) => {
            let inner = map
                .iter()
                .map(|(key, value)| (format!("f:{key}"), fields(value, key, is_custom)));
            Value::Object(inner.collect())
        }
        Value::Array(items) => match list_kind(is_custom, name, items) {
            ListKind::Atomic => json!({}),
            ListKind::Set => {
                let items = items.iter().map(|item| (format!("v:{item}"), json!({})));
                Value::Object(items.collect())
            }
            ListKind::Map(keys) => {
                let items = items.iter().map(|item| {
                    let mut inner = fields(item, "", is_custom);
                    if let Value::Object(inner) = &mut inner {
                        inner.insert(".".to_owned(), json!({}));
                    }
                    (format!("k:{}", item_key(item, keys)), inner)
                });
                Value::Object(items.collect())
            }
        },
        _ => json!({}),
    }
}

/// The fields in which `new` differs from `old`: those that a plain write owns from then on.
pub(crate) fn changed(old: &Value, new: &Value, name: &str, is_custom: bool) -> Value {
    match (old, new) {
        _ if old == new => json!({}),
        (Value::Object(old), Value::Object(new)) if !is_atomic_map(is_custom, name) => {
            let differing = new
                .iter()
                .filter(|(key, value)| old.get(*key) != Some(*value));
            let inner = differing.map(|(key, value)| {
                let inner = match old.get(key) {
                    Some(old) => changed(old, value, key, is_custom),
                    None => fields(value, key, is_custom),
                };
                (format!("f:{key}"), inner)
            });
            Value::Object(inner.collect())
        }
        (Value::Array(old), Value::Array(new)) => match list_kind(is_custom, name, new) {
            ListKind::Map(keys) => {
                let mut inner = Map::new();
                for item in new {
                    let key = item_key(item, keys);
                    let before = old.iter().find(|it| item_key(it, keys) == key);
                    let of_item = match before {
                        Some(before) if before == item => continue,
                        Some(before) => changed(before, item, "", is_custom),
                        None => fields(item, "", is_custom),
                    };
                    inner.insert(format!("k:{key}"), of_item);
                }
                Value::Object(inner)
            }
            ListKind::Set => {
                let added = new.iter().filter(|item| !old.contains(item));
                let added = added.map(|item| (format!("v:{item}"), json!({})));
                Value::Object(added.collect())
            }
            ListKind::Atomic => json!({}),
        },
        _ => json!({}),
    }
}

/// Adds the fields of `more`.
pub(crate) fn join(set: &mut Value, more: &Value) {
    let (Value::Object(set), Value::Object(more)) = (set, more) else {
        return;
    };
    for (key, value) in more {
        match set.get_mut(key) {
            Some(inner) => join(inner, value),
            None => {
                set.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Takes the leaves of `less` away.
pub(crate) fn take_away(set: &mut Value, less: &Value) {
    let (Value::Object(set), Value::Object(less)) = (set, less) else {
        return;
    };
    for (key, value) in less {
        let Some(inner) = set.get_mut(key) else {
            continue;
        };
        if is_leaf(value) || is_leaf(inner) {
            set.shift_remove(key);
            continue;
        }
        take_away(inner, value);
        if is_leaf(inner) {
            set.shift_remove(key);
        }
    }
}

pub(crate) fn is_leaf(set: &Value) -> bool {
    set.as_object().is_none_or(Map::is_empty)
}

/// The value of a live object that an element of a set speaks of.
pub(crate) fn find<'a>(value: &'a Value, element: &str) -> Option<&'a Value> {
    if let Some(name) = element.strip_prefix("f:") {
        return value.get(name);
    }
    if let Some(key) = element.strip_prefix("k:") {
        let wanted: Value = serde_json::from_str(key).ok()?;
        return value.as_array()?.iter().find(|item| has_key(item, &wanted));
    }
    let wanted: Value = serde_json::from_str(element.strip_prefix("v:")?).ok()?;
    value.as_array()?.iter().find(|item| **item == wanted)
}

/// The same, to change it.
pub(crate) fn find_mut<'a>(value: &'a mut Value, element: &str) -> Option<&'a mut Value> {
    if let Some(name) = element.strip_prefix("f:") {
        return value.get_mut(name);
    }
    let wanted: Value = serde_json::from_str(element.strip_prefix("k:")?).ok()?;
    let items = value.as_array_mut()?;
    items.iter_mut().find(|item| has_key(item, &wanted))
}

/// Removes what an element of a set speaks of.
pub(crate) fn remove(value: &mut Value, element: &str) {
    if let Some(name) = element.strip_prefix("f:") {
        if let Some(map) = value.as_object_mut() {
            map.shift_remove(name);
        }
    } else if let Some(items) = value.as_array_mut() {
        let key = element
            .strip_prefix("k:")
            .map(serde_json::from_str::<Value>);
        let whole = element
            .strip_prefix("v:")
            .map(serde_json::from_str::<Value>);
        items.retain(|item| match (&key, &whole) {
            (Some(Ok(key)), _) => !has_key(item, key),
            (_, Some(Ok(whole))) => item != whole,
            _ => true,
        });
    }
}

fn has_key(item: &Value, wanted: &Value) -> bool {
    let Some(wanted) = wanted.as_object() else {
        return false;
    };
    wanted.iter().all(|(name, value)| match item.get(name) {
        Some(found) => found == value,
        None => name == "protocol" && value == "TCP",
    })
}
