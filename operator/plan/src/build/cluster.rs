//! The cluster of a job.
//!
//! Owns what of the job's manifest goes into it. All work but that of kind `job` implies a runtime,
//! even where a pod spec is given, so it is written out. Work of kind `job` has the runtime that the
//! cluster's own fields say.

use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob};

use super::labels::{self, CLUSTER_NAME};
use crate::owner;

/// The cluster of the job; both have the same name.
pub(crate) fn cluster(job: &DaskJob, name: &str) -> DaskCluster {
    let own = job.spec.cluster.metadata.as_ref();
    let mut metadata = owner::metadata(name.to_owned(), "DaskJob", &job.metadata);
    metadata.labels = Some(labels::labels(
        job.metadata.labels.as_ref(),
        own,
        &[(CLUSTER_NAME, name)],
    ));
    metadata.annotations = labels::annotations(job.metadata.annotations.as_ref(), own);
    let mut spec = job.spec.cluster_spec();
    if job.spec.job.is_none() {
        spec.runtime = Some(Runtime::Rust);
    }
    DaskCluster {
        metadata,
        spec,
        status: None,
    }
}
