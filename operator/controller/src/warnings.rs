//! Events about a pod that nothing else tells of: a volume that cannot be mounted stands in no
//! status.
//!
//! Asked for only while a planner waits for a pod that does not come, never watched. Without the
//! right to read events there are none.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use oxidask_operator_plan::job::Warning;

use crate::context::Context;
use crate::error::OneLine;

/// Events that are read of one pod.
const EVENTS_MAX: u32 = 32;

/// The warnings about a pod.
pub(crate) async fn of_pod(context: &Context, pod: &Pod) -> Vec<Warning> {
    let (Some(namespace), Some(uid)) = (pod.namespace(), pod.uid()) else {
        return Vec::new();
    };
    let events = Api::<Event>::namespaced(context.client.clone(), &namespace);
    let parameters = ListParams::default()
        .fields(&format!("involvedObject.uid={uid},type=Warning"))
        .limit(EVENTS_MAX);
    let what = || {
        format!(
            "events about pod `{namespace}/{}` cannot be read",
            pod.name_any()
        )
    };
    match context.request(what, events.list(&parameters)).await {
        Ok(events) => events
            .into_iter()
            .map(|event| Warning {
                reason: event.reason.unwrap_or_default(),
                message: event.message.unwrap_or_default(),
            })
            .collect(),
        Err(error) => {
            tracing::debug!(error = %OneLine(&error), "events are not read");
            Vec::new()
        }
    }
}
