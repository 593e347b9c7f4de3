//! The four custom resources as Kubernetes knows them.
//!
//! Owns the typed objects around the specs that the command line reads too, their statuses, and the
//! custom resource definitions with schemas, defaults and rules. Never speaks to an API server.
//!
//! Invariants: what the definitions admit can be read by the types here, so one odd object cannot
//! stop the watch over all others; what a local run refuses in a manifest, the rules refuse as
//! well, except an object's name, which the operator reports in the object's status.

mod definition;
pub(crate) mod foreign;
mod limits;
mod rules;
mod schema;
mod status;
mod yaml;

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

pub use definition::custom_resource_definitions;
pub use status::{
    AutoscalerStatus, CertificatesStatus, ClusterStatus, GroupScaling, JobState, JobStatus, Phase,
    RotationPhase, ScalingStatus, WorkerGroupStatus,
};
pub use yaml::to_yaml;

use crate::cluster::{ClusterSpec, Worker};
use crate::job::JobSpec;

/// The API group of all four kinds.
pub const GROUP: &str = "kubernetes.dask.org";

/// The version of all four kinds.
pub const VERSION: &str = "v1";

/// A group of equal workers of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerGroupSpec {
    /// The name of the `DaskCluster`, in the same namespace.
    pub cluster: String,
    /// The workers of the group.
    pub worker: Worker,
}

/// Bounds within which the number of workers of a cluster follows the load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalerSpec {
    /// The name of the `DaskCluster`, in the same namespace.
    pub cluster: String,
    /// Never fewer workers; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<u32>,
    /// Never more workers; no bound if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<u32>,
    /// Seconds for which fewer workers must be enough before there are fewer; 15 if absent, and
    /// never less than pods took to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down_window_seconds: Option<u32>,
    /// Seconds of work that each worker should have at most; 5 if absent. The smallest one of a
    /// cluster counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_seconds: Option<u32>,
    /// True: the status says how many workers there should be, and nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommend_only: Option<bool>,
}

/// Writes the object of one kind. By hand instead of by kube's derive, which would put the objects
/// and the Kubernetes crates into the modules that the command line is built from.
macro_rules! custom_resource {
    ($(#[$about:meta])* $name:ident, $plural:literal, $spec:ty, $status:ty) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        pub struct $name {
            /// Name, namespace, labels, owners.
            #[serde(default)]
            pub metadata: ObjectMeta,
            /// What is wanted.
            pub spec: $spec,
            /// What is there; written by the operator.
            #[serde(default)]
            pub status: Option<$status>,
        }

        impl $name {
            /// An object of that name.
            pub fn new(name: &str, spec: $spec) -> Self {
                let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
                Self { metadata, spec, status: None }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let fields = 4 + usize::from(self.status.is_some());
                let mut object = serializer.serialize_struct(stringify!($name), fields)?;
                object.serialize_field("apiVersion", crate::API_VERSION)?;
                object.serialize_field("kind", stringify!($name))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                match &self.status {
                    Some(status) => object.serialize_field("status", status)?,
                    None => object.skip_field("status")?,
                }
                object.end()
            }
        }

        impl kube_core::Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($name).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }

            fn api_version((): &()) -> Cow<'_, str> {
                crate::API_VERSION.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl kube_core::object::HasSpec for $name {
            type Spec = $spec;

            fn spec(&self) -> &$spec {
                &self.spec
            }

            fn spec_mut(&mut self) -> &mut $spec {
                &mut self.spec
            }
        }

        impl kube_core::object::HasStatus for $name {
            type Status = $status;

            fn status(&self) -> Option<&$status> {
                self.status.as_ref()
            }

            fn status_mut(&mut self) -> &mut Option<$status> {
                &mut self.status
            }
        }
    };
}

custom_resource! {
    /// A scheduler and its workers.
    DaskCluster, "daskclusters", ClusterSpec, ClusterStatus
}

custom_resource! {
    /// One group of equal workers; the operator makes one for each group of a cluster.
    DaskWorkerGroup, "daskworkergroups", WorkerGroupSpec, WorkerGroupStatus
}

custom_resource! {
    /// A cluster that lives as long as its work.
    DaskJob, "daskjobs", JobSpec, JobStatus
}

custom_resource! {
    /// Bounds within which the number of workers of a cluster follows the load.
    DaskAutoscaler, "daskautoscalers", AutoscalerSpec, AutoscalerStatus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_carries_its_kind_and_reads_what_it_wrote() {
        let text = r#"{"apiVersion":"kubernetes.dask.org/v1","kind":"DaskJob",
            "metadata":{"name":"a"},"spec":{"cluster":{"spec":{"worker":{"replicas":2}}},
            "sql":{"statements":"SELECT 1"}},"status":{"jobStatus":"Running"}}"#;
        let job: DaskJob = serde_json::from_str(text).unwrap();
        assert_eq!(
            job.status.as_ref().unwrap().job_status,
            Some(JobState::Running)
        );
        let written: serde_json::Value = serde_json::to_value(&job).unwrap();
        let given: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(written, given);
    }
}
