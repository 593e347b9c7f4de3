//! Workers that have ended for good, so that the scheduler need not wait for them.
//!
//! Owns the proof: a pod that has ended never comes back; of a container that has ended, or of a
//! pod that is gone, the scheduler is told only while it does not hear the worker, because the same
//! pod may have started its program again. The scheduler forgets a worker that it is told of, so it
//! is told once.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use oxidask_operator_api::kubernetes::DaskWorkerGroup;

use super::Observed;
use crate::build::labels;
use crate::signal::Standing;
use crate::status::cut;
use crate::{WorkerEnd, names, owner, pods};

/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 256;

/// What the scheduler is told.
pub(super) fn ended(group: &DaskWorkerGroup, observed: &Observed) -> Vec<WorkerEnd> {
    let Some(signal) = &observed.signal else {
        return Vec::new();
    };
    let cluster = &group.spec.cluster;
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let short = names::short_group(cluster, name);
    let workers = signal.workers.iter();
    let own = workers.filter(|(_, it)| it.group == short && !it.pod_uid.is_empty());
    let ends = own.filter_map(|(worker, heard)| {
        let is_suspect = heard.standing == Standing::Suspect;
        let pod = observed
            .pods
            .iter()
            .find(|pod| pod.metadata.uid.as_deref() == Some(&heard.pod_uid));
        let reason = match pod {
            None if is_suspect => "its pod is gone".to_owned(),
            Some(pod) if !owner::owns(&group.metadata, &pod.metadata) => return None,
            Some(pod) if pods::has_ended(pod) || (is_suspect && has_stopped(pod)) => reason(pod),
            _ => return None,
        };
        Some(WorkerEnd {
            namespace: group.metadata.namespace.clone().unwrap_or_default(),
            cluster: cluster.clone(),
            worker: worker.clone(),
            pod_uid: heard.pod_uid.clone(),
            reason: cut(&reason, REASON_BYTES_MAX),
        })
    });
    ends.collect()
}

/// Whether the program has ended and does not run again yet.
fn has_stopped(pod: &Pod) -> bool {
    let container = pods::container(pod, labels::WORKER);
    let Some(state) = container.and_then(|container| container.state.as_ref()) else {
        return false;
    };
    state.running.is_none() && terminated(pod).is_some()
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let container = pods::container(pod, labels::WORKER)?;
    let states = [&container.state, &container.last_state];
    states
        .into_iter()
        .find_map(|state| state.as_ref()?.terminated.as_ref())
}

/// Why a pod has ended, in words: evicted, out of memory, signal, exit status.
pub(super) fn reason(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    if let Some(reason) = status.and_then(|status| status.reason.as_deref()) {
        let message = status.and_then(|status| status.message.as_deref());
        return match message.unwrap_or_default().trim() {
            "" => reason.to_owned(),
            message => format!("{reason}: {message}"),
        };
    }
    let Some(end) = terminated(pod) else {
        return format!("its pod is in the phase {}", pods::phase(pod));
    };
    let status = match (end.signal, end.exit_code) {
        (Some(signal), _) if signal > 0 => format!("ended by signal {signal}"),
        // The shells' way to say that a signal ended a program.
        (_, status) if (129..=159).contains(&status) => {
            format!("exit status {status}, ended by signal {}", status - 128)
        }
        (_, status) => format!("exit status {status}"),
    };
    match end.reason.as_deref() {
        Some("OOMKilled") => format!("out of memory (OOMKilled), {status}"),
        _ => status,
    }
}
