//! Why an object cannot be operated: faults of the user's, which only a new spec repairs.
//!
//! Owns the texts. They stand in the condition `Stalled` and in an event.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write;

use oxidask_diagnostic::{Code, Coded};

use crate::ObjectKind;

/// Why an object cannot be operated.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The name cannot be part of the names and labels that follow from it.
    #[error("the name `{name}` of the {what} {problem}")]
    Name {
        /// What is named so.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A later version will.
    #[error("{what} is not operated by this version")]
    NotOperated {
        /// The feature, with the value that asks for it.
        what: &'static str,
        /// What works instead.
        instead: &'static str,
    },
    /// A part of a pod or Service has not the form that Kubernetes gives it.
    #[error("`{path}` cannot be used")]
    Template {
        /// Where it stands in the manifest.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A container of a Dask cluster has no image, and nobody can guess which Dask it shall be.
    #[error("the container `{container}` of `{path}` has no image")]
    DaskImage {
        /// Where the pod stands in the manifest.
        path: &'static str,
        /// The container's name.
        container: String,
    },
    /// Somebody else has an object of the name.
    #[error("the {kind} `{name}` exists already and belongs to somebody else")]
    Taken {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// A field has a value that is not allowed.
    #[error("`{path}` {problem}")]
    Field {
        /// Where it stands in the manifest.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two fields exclude each other.
    #[error("`spec.cluster.spec.runtime` is `Dask`, which cannot run work of kind `{work}`")]
    RuntimeOfWork {
        /// The kind of work.
        work: &'static str,
    },
    /// Not exactly one kind of work.
    #[error("the job has {count} kinds of work")]
    Work {
        /// How many.
        count: usize,
    },
    /// A text in a file beside the manifest.
    #[error("`spec.{work}.file` names a file beside the manifest, which is not in the cluster")]
    WorkFile {
        /// The kind of work.
        work: &'static str,
    },
    /// The job's cluster cannot be operated.
    #[error("the cluster cannot be operated: {message}")]
    ClusterStalled {
        /// The code of the cluster's own error.
        code: Code,
        /// Its message, which ends with a hint.
        message: String,
    },
    /// A schedule that cannot be followed.
    #[error("`spec.{field}` cannot be used: {problem}")]
    Schedule {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Two autoscalers of one cluster.
    #[error("the DaskAutoscaler `{older}` is older and decides about the cluster `{cluster}`")]
    AutoscalerConflict {
        /// The one that decides.
        older: String,
        /// The cluster.
        cluster: String,
    },
    /// The work does not fit into a `ConfigMap`.
    #[error("the job takes {bytes} bytes, but at most {bytes_max} fit into a ConfigMap")]
    WorkSize {
        /// What it takes.
        bytes: usize,
        /// What fits.
        bytes_max: usize,
    },
}

impl Coded for PlanError {
    fn code(&self) -> Code {
        match self {
            Self::Name { .. } => Code::ObjectName,
            Self::NotOperated { .. } => Code::NotOperated,
            Self::Template { .. } => Code::PodTemplate,
            Self::Taken { .. } => Code::ObjectTaken,
            Self::RuntimeOfWork { .. } | Self::Field { .. } => Code::ManifestValue,
            Self::DaskImage { .. } => Code::DaskImage,
            Self::Work { .. } | Self::WorkFile { .. } => Code::ManifestWork,
            Self::Schedule { .. } => Code::ScheduleInvalid,
            Self::WorkSize { .. } => Code::LimitPassed,
            Self::AutoscalerConflict { .. } => Code::AutoscalerConflict,
            Self::ClusterStalled { code, .. } => *code,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::NotOperated { instead, .. } => Cow::Borrowed(instead),
            Self::WorkFile { .. } => {
                Cow::Borrowed("put the text into a ConfigMap and give `configMapKeyRef`")
            }
            Self::WorkSize { .. } => {
                Cow::Borrowed("put the text into a ConfigMap of its own, or split the work")
            }
            _ => Cow::Borrowed(self.code().hint()),
        }
    }
}

impl PlanError {
    /// The error, its causes and the hint in one line, as conditions hold it.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            // Writing to a String cannot fail.
            let _ = write!(line, ": {cause}");
            source = cause.source();
        }
        if !matches!(self, Self::ClusterStalled { .. }) {
            let _ = write!(line, "; hint: {}", self.hint());
        }
        line
    }
}
