//! The fields that every pod template of a manifest has.
//!
//! Owns one view over the scheduler's and the workers' fields, and reading the parts that the
//! manifest hands to Kubernetes as they are. Never checks more than their form.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use oxidask_operator_api::{EnvironmentVariable, Metadata, Resources, Scheduler, Worker};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::extras::Extras;
use crate::PlanError;

/// A view over the short fields of a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template<'a> {
    /// Where the fields stand in the manifest, for messages.
    pub(crate) path: &'a str,
    pub(crate) metadata: Option<&'a Metadata>,
    pub(crate) resources: Option<&'a Resources>,
    pub(crate) image: Option<&'a str>,
    pub(crate) env: &'a [EnvironmentVariable],
    pub(crate) env_from: &'a [Value],
    pub(crate) volumes: &'a [Value],
    pub(crate) volume_mounts: &'a [Value],
    pub(crate) node_selector: Option<&'a BTreeMap<String, String>>,
    pub(crate) tolerations: &'a [Value],
    pub(crate) affinity: Option<&'a Value>,
    pub(crate) service_account_name: Option<&'a str>,
    pub(crate) image_pull_secrets: &'a [Value],
    pub(crate) working_dir: Option<&'a str>,
    pub(crate) spec: Option<&'a Value>,
}

macro_rules! view {
    ($path:expr, $pod:expr) => {{
        let pod = $pod;
        Template {
            path: $path,
            metadata: pod.metadata.as_ref(),
            resources: pod.resources.as_ref(),
            image: pod.image.as_deref(),
            env: &pod.env,
            env_from: &pod.env_from,
            volumes: &pod.volumes,
            volume_mounts: &pod.volume_mounts,
            node_selector: Some(&pod.node_selector),
            tolerations: &pod.tolerations,
            affinity: pod.affinity.as_ref(),
            service_account_name: pod.service_account_name.as_deref(),
            image_pull_secrets: &pod.image_pull_secrets,
            working_dir: pod.working_dir.as_deref(),
            spec: pod.spec.as_ref(),
        }
    }};
}

impl<'a> Template<'a> {
    /// Without any field.
    pub(crate) fn empty(path: &'a str) -> Self {
        Self {
            path,
            metadata: None,
            resources: None,
            image: None,
            env: &[],
            env_from: &[],
            volumes: &[],
            volume_mounts: &[],
            node_selector: None,
            tolerations: &[],
            affinity: None,
            service_account_name: None,
            image_pull_secrets: &[],
            working_dir: None,
            spec: None,
        }
    }

    pub(crate) fn of_scheduler(path: &'a str, scheduler: &'a Scheduler) -> Self {
        view!(path, scheduler)
    }

    pub(crate) fn of_worker(path: &'a str, worker: &'a Worker) -> Self {
        view!(path, worker)
    }

    /// Only what says where a pod may run and how its image is pulled: for the runner of a job,
    /// which stands beside the scheduler.
    pub(crate) fn placement(self) -> Self {
        Self {
            metadata: None,
            resources: None,
            env: &[],
            env_from: &[],
            volumes: &[],
            volume_mounts: &[],
            working_dir: None,
            spec: None,
            ..self
        }
    }

    /// What our types lose of the template; `at` is where its pod spec stands in the object. The
    /// short fields of a container belong to the one of that name.
    pub(crate) fn extras(&self, at: &'static str, container: &str) -> Extras {
        let mut extras = Extras::default();
        let mut main = container;
        if let Some(spec) = self.spec {
            extras.compare::<PodSpec>(at, spec);
            let containers = spec.get("containers").and_then(Value::as_array);
            let names = || containers.into_iter().flatten().map(|it| it.get("name"));
            let mut names_as_text = names().map(|name| name.and_then(Value::as_str));
            if !names_as_text.any(|name| name == Some(container)) {
                let first = names().next().flatten().and_then(Value::as_str);
                main = first.unwrap_or(container);
            }
        }
        let short = json!({
            "volumes": self.volumes,
            "tolerations": self.tolerations,
            "affinity": self.affinity,
            "imagePullSecrets": self.image_pull_secrets,
            "containers": [{
                "name": main,
                "env": self.env,
                "envFrom": self.env_from,
                "volumeMounts": self.volume_mounts,
                "resources": self.resources,
            }],
        });
        extras.compare::<PodSpec>(at, &short);
        extras
    }

    /// Reads a field that Kubernetes defines.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        field: &str,
        value: &Value,
    ) -> Result<T, PlanError> {
        T::deserialize(value).map_err(|source| PlanError::Template {
            path: format!("{}.{field}", self.path),
            source,
        })
    }

    /// Reads a list of what Kubernetes defines.
    pub(crate) fn read_all<T: DeserializeOwned>(
        &self,
        field: &str,
        values: &[Value],
    ) -> Result<Vec<T>, PlanError> {
        let numbered = values.iter().enumerate();
        numbered
            .map(|(index, value)| self.read(&format!("{field}[{index}]"), value))
            .collect()
    }

    /// Reads the environment variables.
    pub(crate) fn environment(&self) -> Result<Vec<k8s_openapi::api::core::v1::EnvVar>, PlanError> {
        let numbered = self.env.iter().enumerate();
        numbered
            .map(|(index, variable)| {
                let field = format!("env[{index}].valueFrom");
                let source = variable.value_from.as_ref();
                Ok(k8s_openapi::api::core::v1::EnvVar {
                    name: variable.name.clone(),
                    value: variable.value.clone(),
                    value_from: source.map(|source| self.read(&field, source)).transpose()?,
                })
            })
            .collect()
    }

    /// Reads the resources block.
    pub(crate) fn requirements(&self) -> Result<Option<ResourceRequirements>, PlanError> {
        let Some(resources) = self.resources else {
            return Ok(None);
        };
        let value = serde_json::to_value(resources).map_err(|source| PlanError::Template {
            path: format!("{}.resources", self.path),
            source,
        })?;
        self.read("resources", &value).map(Some)
    }
}
