//! Where the journal of a scheduler is kept.
//!
//! Owns its volume and, if the manifest asks for one, the claim behind it. A volume outlives its
//! container: a scheduler that is started again in its pod goes on from its journal. A claim outlives
//! the pod too, and goes with the cluster.

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, PodSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use oxidask_operator_api::Journal;
use oxidask_operator_api::kubernetes::DaskCluster;

use super::labels::{self, CLUSTER_NAME, COMPONENT};
use super::{pod, scheduler};
use crate::{PlanError, names, owner};

/// The folder of the journal in the scheduler's container.
pub(crate) const JOURNAL_DIR: &str = "/var/lib/oxidask/journal";

/// The volume with it.
const JOURNAL_VOLUME: &str = "oxidask-journal";

/// What one scheduler needs of a volume.
const ACCESS_MODE: &str = "ReadWriteOnce";

fn journal(cluster: &DaskCluster) -> Option<&Journal> {
    cluster.spec.scheduler.as_ref()?.journal.as_ref()
}

/// Whether the journal outlives the scheduler's pod.
pub(crate) fn is_claimed(cluster: &DaskCluster) -> bool {
    journal(cluster).is_some_and(|journal| journal.volume_claim.is_some())
}

/// The claim that the manifest asks for.
pub(crate) fn claim(
    cluster: &DaskCluster,
    name: &str,
) -> Result<Option<PersistentVolumeClaim>, PlanError> {
    let given = journal(cluster).and_then(|journal| journal.volume_claim.as_ref());
    let Some(given) = given else {
        return Ok(None);
    };
    let template = scheduler::template(cluster);
    let mut spec: PersistentVolumeClaimSpec = template.read("journal.volumeClaim", given)?;
    let modes = spec.access_modes.get_or_insert_default();
    if modes.is_empty() {
        modes.push(ACCESS_MODE.to_owned());
    }
    let reserved = [(CLUSTER_NAME, name), (COMPONENT, labels::SCHEDULER)];
    let mut metadata =
        owner::metadata(names::journal_claim(name), "DaskCluster", &cluster.metadata);
    metadata.labels = Some(labels::labels(
        cluster.metadata.labels.as_ref(),
        template.metadata,
        &reserved,
    ));
    Ok(Some(PersistentVolumeClaim {
        metadata,
        spec: Some(spec),
        status: None,
    }))
}

/// Gives the scheduler's container the folder of the journal. What a template mounts there stays.
pub(crate) fn lay(spec: &mut PodSpec, cluster: &DaskCluster, name: &str) {
    let Some(container) = pod::main_container(spec, labels::SCHEDULER) else {
        return;
    };
    let mounts = container.volume_mounts.get_or_insert_default();
    if mounts.iter().any(|mount| mount.mount_path == JOURNAL_DIR) {
        return;
    }
    mounts.push(pod::mount(JOURNAL_VOLUME, JOURNAL_DIR, false));
    let journal = journal(cluster);
    let is_claimed = is_claimed(cluster);
    let limit = journal.and_then(|journal| journal.size_limit.as_ref());
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| volume.name != JOURNAL_VOLUME);
    volumes.push(Volume {
        name: JOURNAL_VOLUME.to_owned(),
        persistent_volume_claim: is_claimed.then(|| PersistentVolumeClaimVolumeSource {
            claim_name: names::journal_claim(name),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        empty_dir: (!is_claimed).then(|| EmptyDirVolumeSource {
            size_limit: limit.map(|limit| Amount(limit.to_string())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    });
}
