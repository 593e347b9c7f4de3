//! How long pods take to start.
//!
//! Owns the measure: from a pod's creation to its first being ready. Kubernetes remembers only the
//! last change of a condition, so a pod that was ready late counts by the start of its program.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::build::labels;
use crate::{Timestamp, pods};

/// How long a program may take from its start to being ready; later changes are not its start.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// What takes longer is no usual start, such as a pod that waited for a node for hours.
pub(crate) const START_MAX: Duration = Duration::from_mins(10);

/// The time that the slowest of the pods took.
pub(crate) fn start_time<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Option<Duration> {
    let times = pods.into_iter().filter_map(start_of_pod);
    times.filter(|time| *time <= START_MAX).max()
}

fn start_of_pod(pod: &Pod) -> Option<Duration> {
    if !pods::is_ready(pod) {
        return None;
    }
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    let container = pods::container(pod, labels::WORKER)?;
    if container.restart_count > 0 {
        return None;
    }
    let running = container.state.as_ref()?.running.as_ref()?;
    let started = running.started_at.as_ref()?.0;
    let after = |time: Timestamp, from: Timestamp| {
        Duration::try_from(time.duration_since(from)).unwrap_or_default()
    };
    let ready = pods::ready_condition(pod).and_then(|it| it.last_transition_time.as_ref());
    let ready = ready.filter(|ready| after(ready.0, started) <= READY_WITHIN);
    Some(after(ready.map_or(started, |ready| ready.0), created))
}
