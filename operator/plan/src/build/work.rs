//! The `ConfigMap` with the work of a job.
//!
//! Owns the manifest that the runner reads: the job as it was given, but a text from a user's
//! `ConfigMap` is named as a file that is mounted beside it. So is a Python program, wherever it
//! stands; its environment is that of the runner's container.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ConfigMap;
use oxidask_operator_api::kubernetes::DaskJob;
use oxidask_operator_api::{API_VERSION, JobSpec, KeyReference};
use serde_json::json;

use super::labels::{self, CLUSTER_NAME};
use crate::{PlanError, names, owner};

/// The key of the manifest, and its file name in the runner.
pub(crate) const MANIFEST_KEY: &str = "job.json";
/// The file name of a text from a user's `ConfigMap`.
pub(crate) const TEXT_FILE: &str = "text";
/// The file name of a Python program, which its tracebacks show.
pub(crate) const SCRIPT_FILE: &str = "script.py";
/// Bytes of a manifest: the API server's limit for a `ConfigMap`, less its metadata.
pub(crate) const WORK_BYTES_MAX: usize = (1 << 20) - (16 << 10);

/// The user's `ConfigMap` that holds the text, if one does.
pub(crate) fn reference(spec: &JobSpec) -> Option<&KeyReference> {
    let sql = spec
        .sql
        .as_ref()
        .and_then(|sql| sql.config_map_key_ref.as_ref());
    let graph = || {
        spec.graph
            .as_ref()
            .and_then(|graph| graph.config_map_key_ref.as_ref())
    };
    let script = || {
        spec.script
            .as_ref()
            .and_then(|script| script.config_map_key_ref.as_ref())
    };
    sql.or_else(graph).or_else(script)
}

/// The file name of the text from a user's `ConfigMap`.
pub(crate) fn text_file(spec: &JobSpec) -> &'static str {
    if spec.script.is_some() {
        SCRIPT_FILE
    } else {
        TEXT_FILE
    }
}

/// The `ConfigMap` of the job.
pub(crate) fn config_map(job: &DaskJob, name: &str) -> Result<ConfigMap, PlanError> {
    let mut spec = job.spec.clone();
    let text = || Some(TEXT_FILE.to_owned());
    if let Some(sql) = spec
        .sql
        .as_mut()
        .filter(|sql| sql.config_map_key_ref.is_some())
    {
        sql.config_map_key_ref = None;
        sql.file = text();
    }
    if let Some(graph) = spec
        .graph
        .as_mut()
        .filter(|graph| graph.config_map_key_ref.is_some())
    {
        graph.config_map_key_ref = None;
        graph.file = text();
    }
    let mut program = None;
    if let Some(script) = &mut spec.script {
        script.config_map_key_ref = None;
        script.env.clear();
        program = script.source.take();
        script.file = Some(SCRIPT_FILE.to_owned());
    }
    let manifest = json!({
        "apiVersion": API_VERSION,
        "kind": "DaskJob",
        "metadata": {"name": name, "namespace": job.metadata.namespace},
        "spec": spec,
    });
    let manifest = escaped(&manifest.to_string());
    let bytes = manifest.len() + program.as_ref().map_or(0, String::len);
    if bytes > WORK_BYTES_MAX {
        return Err(PlanError::WorkSize {
            bytes,
            bytes_max: WORK_BYTES_MAX,
        });
    }
    let mut metadata = owner::metadata(names::work(name), "DaskJob", &job.metadata);
    let owner_labels = job.metadata.labels.as_ref();
    metadata.labels = Some(labels::labels(owner_labels, None, &[(CLUSTER_NAME, name)]));
    metadata.annotations = labels::annotations(job.metadata.annotations.as_ref(), None);
    let program = program.map(|program| (SCRIPT_FILE.to_owned(), program));
    let manifest = (MANIFEST_KEY.to_owned(), manifest);
    Ok(ConfigMap {
        metadata,
        data: Some([manifest].into_iter().chain(program).collect()),
        ..ConfigMap::default()
    })
}

/// JSON in which what YAML does not print is escaped: the runner reads YAML, of which JSON is a
/// part but for these characters. They can only stand inside of strings.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_does_not_print_is_escaped() {
        let value = json!("a\u{7f}b\u{85}c\u{feff}d\u{e9}\n");
        let text = escaped(&value.to_string());
        assert_eq!(text, "\"a\\u007fb\\u0085c\\ufeffd\u{e9}\\n\"");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
