//! From the manifest types to structural schemas.
//!
//! Owns the steps: generate with every type by name, strip what Kubernetes says about its own
//! types, add limits, defaults and rules by type and field, put everything in place of its name.
//! Our own descriptions stay.
//!
//! Invariant: the result is a structural schema: no references, one type a node, no titles, no
//! formats that an API server does not know.

use serde_json::{Map, Value, json};

use super::{limits, rules};

/// Where the generator keeps types, and how the names of Kubernetes's own types start.
const DEFINITIONS: &str = "$defs";
const REFERENCE_PREFIX: &str = "#/$defs/";
const FOREIGN_PREFIX: &str = "io.k8s.";

/// Where the texts about an enum's values are kept until they end up in a description.
const VARIANTS: &str = "variants";

/// How deep types may stand in each other; pods reach 14.
const DEPTH_MAX: usize = 40;

/// The structural schema of a type.
pub(crate) fn structural<T: schemars::JsonSchema>() -> Value {
    let generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut root = generator.into_root_schema_for::<T>().to_value();
    let mut definitions = match root
        .as_object_mut()
        .and_then(|root| root.remove(DEFINITIONS))
    {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    };
    definitions.insert(T::schema_name().into_owned(), root);
    for (name, definition) in &mut definitions {
        clean(definition, name.starts_with(FOREIGN_PREFIX));
    }
    for (name, field, patch) in limits::own() {
        add(&mut definitions, name, field, patch);
    }
    for (name, field, rules) in rules::all() {
        add(
            &mut definitions,
            name,
            field,
            json!({"x-kubernetes-validations": rules}),
        );
    }
    for (name, field, patch) in limits::foreign() {
        let name = format!("io.k8s.api.core.v1.{name}");
        add(&mut definitions, &name, field, patch);
    }
    drop_ephemeral_containers(&mut definitions);
    let root = json!({"$ref": format!("{REFERENCE_PREFIX}{}", T::schema_name())});
    in_place(&root, &definitions, DEPTH_MAX)
}

/// A pod's ephemeral containers come from its own subresource; no pod can be made with them.
fn drop_ephemeral_containers(definitions: &mut Map<String, Value>) {
    let pod = definitions.get_mut("io.k8s.api.core.v1.PodSpec");
    if let Some(Value::Object(properties)) = pod.and_then(|pod| pod.get_mut("properties")) {
        properties.remove("ephemeralContainers");
    }
}

/// Merges a patch into the schema of a type or of one of its fields, if the type is in use.
fn add(definitions: &mut Map<String, Value>, name: &str, field: &str, patch: Value) {
    let Some(definition) = definitions.get_mut(name) else {
        return;
    };
    let node = if field.is_empty() {
        Some(definition)
    } else {
        definition
            .get_mut("properties")
            .and_then(|properties| properties.get_mut(field))
    };
    if let (Some(Value::Object(node)), Value::Object(patch)) = (node, patch) {
        node.extend(patch);
    }
}

/// Calls `visit` for every schema directly below a node.
pub(crate) fn for_each_child(node: &mut Map<String, Value>, visit: &mut impl FnMut(&mut Value)) {
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        properties.values_mut().for_each(&mut *visit);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(key) {
            visit(child);
        }
    }
}

/// Makes one type's schema structural, still with references.
fn clean(schema: &mut Value, is_foreign: bool) {
    let Value::Object(node) = schema else {
        return;
    };
    for key in ["$schema", "title", "default", "examples"] {
        node.remove(key);
    }
    without_null(node);
    enumerated(node);
    numbered(node, is_foreign);
    match node.get_mut("description") {
        Some(_) if is_foreign => {
            node.remove("description");
        }
        Some(Value::String(text)) => *text = text.replace('\n', " "),
        _ => {}
    }
    for_each_child(node, &mut |child| clean(child, is_foreign));
}

/// An `Option` says "or null"; the API server drops nulls where they are not allowed.
fn without_null(node: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = node.get_mut("type") {
        types.retain(|name| name != "null");
        if let [name] = types.as_slice() {
            let name = name.clone();
            node.insert("type".to_owned(), name);
        }
    }
    if let Some(Value::Array(values)) = node.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let Some(Value::Array(choices)) = node.get_mut("anyOf") else {
        return;
    };
    choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        node.remove("anyOf");
        for (key, value) in only {
            node.entry(key).or_insert(value);
        }
    }
}

/// An enum with documented variants is a choice of constants; their texts are kept aside until it
/// is known which field is described.
fn enumerated(node: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = node.remove("oneOf") else {
        return;
    };
    let mut values = Vec::new();
    let mut texts = Vec::new();
    for choice in &choices {
        let value = choice
            .get("const")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let text = choice
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        texts.push(format!("`{value}`: {}", text.replace('\n', " ")));
        values.push(Value::from(value));
    }
    node.insert(VARIANTS.to_owned(), texts.join(" ").into());
    node.insert("type".to_owned(), "string".into());
    node.insert("enum".to_owned(), values.into());
}

/// Kubernetes knows signed numbers only. Of its own types' numbers it checks the size again when it
/// makes the pod; saying it here as well would cost the space of a whole type.
fn numbered(node: &mut Map<String, Value>, is_foreign: bool) {
    let Some(format) = node.get("format").and_then(Value::as_str) else {
        return;
    };
    if format.starts_with("uint") {
        node.insert("format".to_owned(), "int64".into());
    } else if is_foreign && format == "int32" {
        node.remove("format");
    }
}

/// Puts the types in place of their names; what stands beside a name wins.
fn in_place(schema: &Value, definitions: &Map<String, Value>, depth: usize) -> Value {
    let Value::Object(node) = schema else {
        return schema.clone();
    };
    let mut node = node.clone();
    let name = match node.remove("$ref") {
        Some(Value::String(reference)) => {
            reference.strip_prefix(REFERENCE_PREFIX).map(str::to_owned)
        }
        _ => None,
    };
    if let Some(Value::Object(named)) = name.and_then(|name| definitions.get(&name)) {
        for (key, value) in named {
            node.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    if let Some(Value::String(variants)) = node.remove(VARIANTS) {
        let about = node
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let about = format!("{about} {variants}");
        node.insert("description".to_owned(), about.into());
    }
    if depth > 0 {
        if node.contains_key("$ref") {
            return in_place(&Value::Object(node), definitions, depth - 1);
        }
        for_each_child(&mut node, &mut |child| {
            *child = in_place(child, definitions, depth - 1);
        });
    }
    Value::Object(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_and_rule_names_a_field_that_exists() {
        let mut definitions = Map::new();
        let mut collect = |schema: schemars::Schema| {
            let schema = schema.to_value();
            definitions.extend(schema["$defs"].as_object().cloned().unwrap_or_default());
            let title = schema["title"].as_str().unwrap().to_owned();
            definitions.insert(title, schema);
        };
        collect(schemars::schema_for!(crate::ClusterSpec));
        collect(schemars::schema_for!(crate::JobSpec));
        collect(schemars::schema_for!(crate::kubernetes::WorkerGroupSpec));
        collect(schemars::schema_for!(crate::kubernetes::AutoscalerSpec));
        collect(schemars::schema_for!(crate::kubernetes::ClusterStatus));
        collect(schemars::schema_for!(crate::kubernetes::WorkerGroupStatus));
        collect(schemars::schema_for!(crate::kubernetes::JobStatus));
        collect(schemars::schema_for!(crate::kubernetes::AutoscalerStatus));
        let foreign = limits::foreign().into_iter();
        let foreign = foreign.map(|(name, field, _)| (format!("io.k8s.api.core.v1.{name}"), field));
        let own = limits::own().into_iter().chain(rules::all());
        for (name, field) in own
            .map(|(name, field, _)| (name.to_owned(), field))
            .chain(foreign)
        {
            let definition = definitions
                .get(&name)
                .unwrap_or_else(|| panic!("no type {name}"));
            assert!(
                field.is_empty() || definition["properties"].get(field).is_some(),
                "{name} has no {field}"
            );
        }
    }
}
