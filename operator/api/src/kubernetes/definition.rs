//! The custom resource definitions.
//!
//! Owns names, columns and subresources. What dask-kubernetes calls things stays; columns are added
//! after its own.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceScale,
    CustomResourceSubresourceStatus, CustomResourceSubresources, CustomResourceValidation,
    JSONSchemaProps,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{
    AutoscalerSpec, AutoscalerStatus, ClusterStatus, DaskAutoscaler, DaskCluster, DaskJob,
    DaskWorkerGroup, GROUP, JobStatus, VERSION, WorkerGroupSpec, WorkerGroupStatus, schema,
};
use crate::cluster::ClusterSpec;
use crate::job::JobSpec;

/// `kubectl get dask` lists all four kinds.
const CATEGORY: &str = "dask";

/// Where a scale subresource finds the wanted number of workers.
const REPLICAS_PATH: &str = ".spec.worker.replicas";

/// Name, type, path, what it shows.
type Column = (&'static str, &'static str, &'static str, &'static str);

const CLUSTER_COLUMNS: [Column; 6] = [
    (
        "Workers",
        "integer",
        REPLICAS_PATH,
        "The number of desired worker Pods",
    ),
    (
        "Ready",
        "integer",
        ".status.readyReplicas",
        "Workers that are ready",
    ),
    (
        "Status",
        "string",
        ".status.phase",
        "How far the cluster has come",
    ),
    (
        "Reason",
        "string",
        ".status.conditions[?(@.type==\"Ready\")].reason",
        "Why the cluster is ready or not",
    ),
    AGE,
    (
        "Address",
        "string",
        ".status.schedulerAddress",
        "Where clients find the scheduler",
    ),
];

const WORKER_GROUP_COLUMNS: [Column; 4] = [
    (
        "Workers",
        "integer",
        REPLICAS_PATH,
        "The number of desired worker Pods",
    ),
    (
        "Ready",
        "integer",
        ".status.readyReplicas",
        "Workers that are ready",
    ),
    (
        "Cluster",
        "string",
        ".spec.cluster",
        "The cluster that the workers belong to",
    ),
    AGE,
];

const JOB_COLUMNS: [Column; 8] = [
    (
        "Status",
        "string",
        ".status.jobStatus",
        "How far the job has come",
    ),
    (
        "Number Of Workers",
        "integer",
        ".spec.cluster.spec.worker.replicas",
        "The number of desired worker Pods",
    ),
    (
        "Started",
        "date",
        ".status.startTime",
        "When the runner was first seen running",
    ),
    (
        "Finished",
        "date",
        ".status.endTime",
        "When the job was seen finished",
    ),
    AGE,
    (
        "Suspended",
        "boolean",
        ".spec.suspend",
        "Whether the job waits to be resumed",
    ),
    (
        "Schedule",
        "string",
        ".spec.schedule",
        "When it runs again and again",
    ),
    (
        "Runner",
        "string",
        ".status.jobRunnerPodName",
        "The pod whose log has the result",
    ),
];

const AUTOSCALER_COLUMNS: [Column; 6] = [
    (
        "Cluster",
        "string",
        ".spec.cluster",
        "The cluster whose workers follow the load",
    ),
    ("Minimum", "integer", ".spec.minimum", "Never fewer workers"),
    ("Maximum", "integer", ".spec.maximum", "Never more workers"),
    AGE,
    (
        "Desired",
        "integer",
        ".status.desired",
        "Workers that it wants",
    ),
    ("Message", "string", ".status.reason", "Why it wants them"),
];

const AGE: Column = (
    "Age",
    "date",
    ".metadata.creationTimestamp",
    "Time since its creation",
);

/// Columns that only `kubectl get -o wide` shows.
const WIDE_COLUMNS: [&str; 4] = ["Address", "Runner", "Schedule", "Message"];

/// All four definitions, in the order of their dependence.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    let mut job = schema::structural::<JobSpec>();
    let restart = job.pointer_mut("/properties/job/properties/spec/properties/restartPolicy");
    if let Some(Value::Object(restart)) = restart {
        restart.insert("default".to_owned(), "OnFailure".into());
    }
    vec![
        definition::<DaskCluster, ClusterStatus>(
            "daskcluster",
            &["daskcluster", "dsk"],
            "A scheduler and its workers.",
            (schema::structural::<ClusterSpec>(), &CLUSTER_COLUMNS, true),
        ),
        definition::<DaskWorkerGroup, WorkerGroupStatus>(
            "daskworkergroup",
            &["daskworkers"],
            "One group of equal workers; the operator makes one for each group of a cluster.",
            (
                schema::structural::<WorkerGroupSpec>(),
                &WORKER_GROUP_COLUMNS,
                true,
            ),
        ),
        definition::<DaskJob, JobStatus>(
            "daskjob",
            &["djb"],
            "A cluster that lives as long as its work.",
            (job, &JOB_COLUMNS, false),
        ),
        definition::<DaskAutoscaler, AutoscalerStatus>(
            "daskautoscaler",
            &[],
            "Bounds within which the number of workers of a cluster follows the load.",
            (
                schema::structural::<AutoscalerSpec>(),
                &AUTOSCALER_COLUMNS,
                false,
            ),
        ),
    ]
}

fn definition<R: Resource<DynamicType = ()>, S: JsonSchema>(
    singular: &str,
    short_names: &[&str],
    about: &str,
    (spec, columns, has_scale): (Value, &[Column], bool),
) -> CustomResourceDefinition {
    let root = json!({
        "type": "object",
        "description": about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Always `kubernetes.dask.org/v1`."},
            "kind": {"type": "string", "description": format!("Always `{}`.", R::kind(&()))},
            "metadata": {"type": "object"},
            "spec": described(spec, "What is wanted."),
            "status": described(schema::structural::<S>(), "Written by the operator."),
        },
    });
    let version = CustomResourceDefinitionVersion {
        name: VERSION.to_owned(),
        served: true,
        storage: true,
        additional_printer_columns: Some(columns.iter().map(column).collect()),
        subresources: Some(CustomResourceSubresources {
            scale: has_scale.then(|| CustomResourceSubresourceScale {
                label_selector_path: Some(".status.selector".to_owned()),
                spec_replicas_path: REPLICAS_PATH.to_owned(),
                status_replicas_path: ".status.replicas".to_owned(),
            }),
            status: Some(CustomResourceSubresourceStatus(json!({}))),
        }),
        schema: Some(CustomResourceValidation {
            // Only a schema that is no JSON schema at all could fail here; a test reads all four.
            open_api_v3_schema: serde_json::from_value::<JSONSchemaProps>(root).ok(),
        }),
        ..CustomResourceDefinitionVersion::default()
    };
    let plural = R::plural(&()).into_owned();
    let short_names: Vec<String> = short_names.iter().map(|&name| name.to_owned()).collect();
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{plural}.{GROUP}")),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: GROUP.to_owned(),
            scope: "Namespaced".to_owned(),
            names: CustomResourceDefinitionNames {
                categories: Some(vec![CATEGORY.to_owned()]),
                kind: R::kind(&()).into_owned(),
                list_kind: Some(format!("{}List", R::kind(&()))),
                plural,
                short_names: (!short_names.is_empty()).then_some(short_names),
                singular: Some(singular.to_owned()),
            },
            versions: vec![version],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    }
}

fn described(mut schema: Value, about: &str) -> Value {
    schema["description"] = about.into();
    schema
}

fn column(&(name, kind, path, about): &Column) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: kind.to_owned(),
        json_path: path.to_owned(),
        description: Some(about.to_owned()),
        priority: WIDE_COLUMNS.contains(&name).then_some(1),
        ..CustomResourceColumnDefinition::default()
    }
}
