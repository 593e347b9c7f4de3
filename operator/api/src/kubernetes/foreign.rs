//! Schemas for the parts that the manifest types keep as free values.
//!
//! Owns which Kubernetes type stands behind each such field. Nothing here is ever built; the types
//! only lend their schemas.
#![allow(dead_code, reason = "the fields are there for their schemas")]

use std::borrow::Cow;
use std::collections::BTreeMap;

pub(crate) use k8s_openapi::api::core::v1::{
    Affinity, EnvFromSource, EnvVarSource, LocalObjectReference, PersistentVolumeClaimSpec,
    PodSpec, ResourceClaim, ServiceSpec, Toleration, Volume, VolumeMount,
};
pub(crate) use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::limits;

/// Labels and annotations.
#[derive(JsonSchema)]
pub(crate) struct TemplateMetadata {
    /// Labels; those that the operator sets win.
    labels: Option<BTreeMap<String, String>>,
    /// Annotations.
    annotations: Option<BTreeMap<String, String>>,
}

/// The status that dask-kubernetes allows in the cluster of a job.
#[derive(JsonSchema)]
pub(crate) struct EmbeddedStatus {
    /// Without effect.
    phase: Option<String>,
}

/// A Secret in the same namespace.
#[derive(JsonSchema)]
pub(crate) struct SecretReference {
    /// Its name.
    name: String,
}

/// A cert-manager issuer.
#[derive(JsonSchema)]
pub(crate) struct IssuerReference {
    /// Its name.
    name: String,
    /// Its kind; `Issuer` if absent.
    kind: Option<String>,
    /// Its API group; `cert-manager.io` if absent.
    group: Option<String>,
}

/// A span of time.
pub(crate) struct Span;

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": crate::duration::DURATION_PATTERN,
            "maxLength": crate::duration::DURATION_BYTES_MAX,
        })
    }
}

impl JsonSchema for crate::Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": limits::quantity_pattern(),
            "maxLength": limits::QUANTITY_CHARS_MAX,
            "minimum": 0,
        })
    }
}

impl JsonSchema for crate::Tasks {
    fn schema_name() -> Cow<'static, str> {
        "Tasks".into()
    }

    /// A list or a text. A structural schema has one type a field or none; with none, limits that
    /// speak only of numbers, objects or truth values, and that none of them meets, refuse those.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-preserve-unknown-fields": true,
            "minimum": 1, "maximum": 0,
            "minProperties": 1, "maxProperties": 0,
            "not": {"enum": [true, false]},
            "maxLength": limits::TEXT_CHARS_MAX,
            "maxItems": limits::TASKS_MAX,
        })
    }
}
