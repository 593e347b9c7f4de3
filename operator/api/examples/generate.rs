//! Prints the files that are made from the manifest types, as one JSON object from path to text.
//!
//! Owns which files these are and how the reference page looks. `cargo xtask gen` runs it and
//! writes the files; the paths start at the project's root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use oxidask_operator_api::kubernetes::{custom_resource_definitions, to_yaml};
use serde_json::{Map, Value, json};

const NOTE: &str = "Made by `cargo xtask gen` from operator/api. Do not edit.";

const PAGE_HEAD: &str = "\
# Fields of the manifests

The four kinds of the API group `kubernetes.dask.org`, version `v1`. A field without a default may
be left out, unless it is required. Types with a link are those of Kubernetes and have all their
fields. An amount is a whole number or a text such as `500m` or `1.5Gi`. The local command line
reads the same `DaskCluster` and `DaskJob`; it ignores what only pods have.
";

/// Where the fields of Kubernetes's own types are explained.
const KUBERNETES_TYPES: &str =
    "https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.36/#";

/// Fields whose inner fields are those of Kubernetes, and its names for them.
const KUBERNETES_FIELDS: [(&str, &str); 14] = [
    ("affinity", "Affinity"),
    ("caSecretRef", "LocalObjectReference"),
    ("claims", "ResourceClaim"),
    ("conditions", "Condition"),
    ("envFrom", "EnvFromSource"),
    ("imagePullSecrets", "LocalObjectReference"),
    ("metadata", "ObjectMeta"),
    ("service", "ServiceSpec"),
    ("spec", "PodSpec"),
    ("tolerations", "Toleration"),
    ("valueFrom", "EnvVarSource"),
    ("volumeClaim", "PersistentVolumeClaimSpec"),
    ("volumeMounts", "VolumeMount"),
    ("volumes", "Volume"),
];

/// Fields that another table explains already, and which.
const EXPLAINED_ELSEWHERE: [(&str, &str); 3] = [
    (
        "DaskJob spec.cluster.spec",
        "the fields of a [DaskCluster](#daskcluster)'s `spec`",
    ),
    (
        "DaskWorkerGroup spec.worker",
        "the fields of a [DaskCluster](#daskcluster)'s `spec.worker`",
    ),
    (
        "DaskCluster spec.workerGroups[]",
        "`name`, and the fields of `spec.worker`",
    ),
];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut files = BTreeMap::new();
    let mut page = format!("<!-- {NOTE} -->\n\n{PAGE_HEAD}");
    for definition in custom_resource_definitions() {
        let plural = definition.spec.names.plural.clone();
        let mut value = serde_json::to_value(&definition)?;
        files.insert(
            format!("crds/{plural}.yaml"),
            format!("# {NOTE}\n{}", to_yaml(&value)),
        );
        Page::write(&mut page, &value)?;
        value["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
        // Helm reads `{{` as the start of an instruction.
        let template = to_yaml(&value).replace("{{", "{{ \"{{\" }}");
        files.insert(
            format!("charts/oxidask-crds/templates/{plural}.yaml"),
            format!("# {NOTE}\n{template}"),
        );
    }
    files.insert("docs/src/reference/api.md".to_owned(), page);
    std::io::stdout().write_all(serde_json::to_string(&files)?.as_bytes())?;
    Ok(())
}

/// The part of the reference page about one kind.
struct Page<'a> {
    kind: &'a str,
    rows: Vec<String>,
    rules: Vec<String>,
}

impl<'a> Page<'a> {
    fn write(page: &mut String, definition: &'a Value) -> Result<(), Failure> {
        let names = &definition["spec"]["names"];
        let version = &definition["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let kind = names["kind"].as_str().ok_or("a definition has no kind")?;
        let mut part = Page {
            kind,
            rows: Vec::new(),
            rules: Vec::new(),
        };
        for section in ["spec", "status"] {
            part.visit(section, &schema["properties"][section]);
        }
        writeln!(page, "\n## {kind}\n\n{}", about(schema))?;
        writeln!(page, "\n{}", short_names(names))?;
        writeln!(
            page,
            "\n| field | type | default | meaning |\n|---|---|---|---|"
        )?;
        for row in &part.rows {
            writeln!(page, "{row}")?;
        }
        if !part.rules.is_empty() {
            writeln!(
                page,
                "\nThe API server refuses an object of this kind that breaks a rule:\n"
            )?;
            for rule in &part.rules {
                writeln!(page, "- {rule}")?;
            }
        }
        Ok(())
    }

    /// Adds what stands below a field.
    fn visit(&mut self, path: &str, schema: &Value) {
        let place = format!("{} {path}", self.kind);
        if EXPLAINED_ELSEWHERE.iter().any(|(known, _)| *known == place) {
            return;
        }
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let message = rule["message"].as_str().unwrap_or_default();
            self.rules.push(format!("`{path}`: {message}"));
        }
        if let Some(properties) = schema["properties"].as_object() {
            self.fields(path, properties, &schema["required"]);
        }
        if schema["items"].is_object() {
            self.visit(&format!("{path}[]"), &schema["items"]);
        }
    }

    fn fields(&mut self, path: &str, properties: &Map<String, Value>, required: &Value) {
        // The descriptions of Kubernetes's own fields are left out: only ours have one.
        let own = properties
            .iter()
            .filter(|(_, field)| field["description"].is_string());
        for (name, field) in own {
            let path = format!("{path}.{name}");
            let is_required = required
                .as_array()
                .is_some_and(|list| list.iter().any(|entry| entry == name));
            let default = match &field["default"] {
                Value::Null if is_required => "required".to_owned(),
                Value::Null => String::new(),
                default => format!("`{default}`"),
            };
            let mut meaning = about(field);
            if let Some(range) = range(field) {
                let _ = write!(meaning, " {range}");
            }
            let place = format!("{} {path}", self.kind);
            for (known, elsewhere) in EXPLAINED_ELSEWHERE {
                if known.trim_end_matches("[]") == place {
                    let _ = write!(meaning, " Has {elsewhere}.");
                }
            }
            self.rows.push(format!(
                "| `{path}` | {} | {default} | {} |",
                type_of(name, field),
                meaning.replace('|', "\\|")
            ));
            self.visit(&path, field);
        }
    }
}

fn about(schema: &Value) -> String {
    schema["description"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn short_names(names: &Value) -> String {
    let mut all = vec![names["plural"].clone()];
    all.extend(names["shortNames"].as_array().cloned().unwrap_or_default());
    let quoted: Vec<String> = all
        .iter()
        .filter_map(Value::as_str)
        .map(|name| format!("`{name}`"))
        .collect();
    format!("For `kubectl get`: {}.", quoted.join(", "))
}

fn range(field: &Value) -> Option<String> {
    if field["type"] != "integer" {
        return None;
    }
    match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(least), Some(most)) => Some(format!("From {least} to {most}.")),
        _ => None,
    }
}

/// In plain words.
fn type_of(name: &str, field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        let words: Vec<String> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|value| format!("`{value}`"))
            .collect();
        return words.join(", ");
    }
    if field["x-kubernetes-int-or-string"] == true {
        let is_amount = field["pattern"].is_string();
        return if is_amount {
            "amount"
        } else {
            "number or percentage"
        }
        .to_owned();
    }
    if field["x-kubernetes-preserve-unknown-fields"] == true {
        return "list of tasks, or text".to_owned();
    }
    let is_ours = |schema: &Value| {
        schema["properties"].as_object().is_none_or(|fields| {
            fields
                .values()
                .any(|field| field["description"].is_string())
        })
    };
    let inner = if field["items"].is_object() {
        &field["items"]
    } else {
        field
    };
    let known = KUBERNETES_FIELDS.iter().find(|(field, _)| *field == name);
    let word = match (is_ours(inner), known) {
        (false, Some((_, kubernetes))) => {
            let group = if *kubernetes == "Condition" {
                "meta"
            } else {
                "core"
            };
            let anchor = kubernetes.to_lowercase();
            format!("[{kubernetes}]({KUBERNETES_TYPES}{anchor}-v1-{group})")
        }
        _ => match inner["type"].as_str() {
            Some("object") if inner["additionalProperties"].is_object() => {
                format!("map of {}", type_of("", &inner["additionalProperties"]))
            }
            Some("string") if inner["format"] == "date-time" => "time".to_owned(),
            Some("string") => "text".to_owned(),
            Some(other) => other.to_owned(),
            None => "any".to_owned(),
        },
    };
    if field["items"].is_object() {
        format!("list of {word}")
    } else {
        word
    }
}
