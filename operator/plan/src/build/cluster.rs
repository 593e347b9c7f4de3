//! The cluster of a job.
//!
//! Owns what of the job's manifest goes into it. The runtime is always written out, because work
//! of kind `sql` and `graph` implies it even where a pod spec is given.

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
    let mut spec = job.spec.cluster.spec.clone();
    spec.runtime = Some(Runtime::Rust);
    DaskCluster {
        metadata,
        spec,
        status: None,
    }
}
