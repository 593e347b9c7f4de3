//! What a pod's status says.
//!
//! Owns the words: ready, terminating, ended, and why a pod does not start. Causes are made
//! steady: Kubernetes goes to and fro between `ErrImagePull` and `ImagePullBackOff`, and counts up
//! its waiting time in messages, which must not change a condition each time.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};

use oxidask_diagnostic::Code;

use crate::PlannedEvent;
use crate::status::{Conditions, cut};

/// Bytes of a cause's details.
const DETAIL_BYTES_MAX: usize = 256;

/// Ends of a container after which a restart is a crash loop.
const CRASHES_MIN: i32 = 2;

/// Whether the pod answers.
pub fn is_ready(pod: &Pod) -> bool {
    has_condition(pod, "Ready", "True") && !is_terminating(pod)
}

/// Whether the pod is being deleted.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The pod's phase.
pub(crate) fn phase(pod: &Pod) -> &str {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase.unwrap_or("Pending")
}

/// Whether no container of the pod runs ever again.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod was ended from outside: evicted, preempted, or its node went away.
pub(crate) fn was_disrupted(pod: &Pod) -> bool {
    let reason = pod
        .status
        .as_ref()
        .and_then(|status| status.reason.as_deref());
    let is_reason = reason.is_some_and(|reason| {
        matches!(
            reason,
            "Evicted"
                | "NodeLost"
                | "NodeShutdown"
                | "Shutdown"
                | "Terminated"
                | "Preempting"
                | "NodeAffinity"
                | "OutOfcpu"
                | "OutOfmemory"
                | "OutOfpods"
                | "UnexpectedAdmissionError"
        )
    });
    is_reason || has_condition(pod, "DisruptionTarget", "True")
}

/// Why the pod has ended, in the words of its status, after a colon: `: Evicted: The node was low …`.
pub(crate) fn end_words(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let disruption = status.conditions.iter().flatten();
    let mut disruption = disruption.filter(|condition| condition.type_ == "DisruptionTarget");
    let disruption = disruption.next();
    let reason = status.reason.as_deref();
    let reason = reason.or_else(|| disruption?.reason.as_deref())?;
    let message = status.message.as_deref();
    let message = message.or_else(|| disruption?.message.as_deref());
    let words = match message.map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!(": {reason}: {message}"),
        None => format!(": {reason}"),
    };
    Some(cut(&words, DETAIL_BYTES_MAX))
}

fn has_condition(pod: &Pod, kind: &str, value: &str) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == kind && condition.status == value)
}

/// The condition that says whether the pod answers, and since when.
pub(crate) fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let mut conditions = conditions.iter();
    conditions.find(|condition| condition.type_ == "Ready")
}

/// The status of the container, or of the first one.
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let named = statuses.iter().find(|status| status.name == name);
    named.or_else(|| statuses.first())
}

/// Why a pod does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pod: String,
    cause: String,
    detail: Option<String>,
}

impl Trouble {
    /// What stays the same as long as the trouble does.
    pub(crate) fn headline(&self) -> String {
        format!("pod `{}` cannot start: {}", self.pod, self.cause)
    }

    /// The headline and what is known besides.
    pub(crate) fn line(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.headline()),
            None => self.headline(),
        }
    }
}

/// The troubles of the pods, in order of their names.
pub(crate) fn troubles<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = pods.into_iter().filter_map(trouble).collect();
    troubles.sort_by(|a, b| a.pod.cmp(&b.pod));
    troubles
}

/// The first trouble, and how many there are besides.
pub(crate) fn summary(troubles: &[Trouble]) -> Option<String> {
    let (first, rest) = troubles.split_first()?;
    Some(match rest.len() {
        0 => first.line(),
        1 => format!("{} (and one pod more)", first.line()),
        more => format!("{} (and {more} pods more)", first.line()),
    })
}

/// The event about troubles, if the condition has not told of the first one yet.
pub(crate) fn new_trouble(
    troubles: &[Trouble],
    conditions: &Conditions<'_>,
    kind: &str,
) -> Option<PlannedEvent> {
    let first = troubles.first()?;
    if conditions.said(kind, &first.headline()) {
        return None;
    }
    let code = Code::PodCannotStart;
    let note = format!("{code}: {}", summary(troubles)?);
    Some(PlannedEvent::warning("PodCannotStart", "Wait", &note))
}

/// Why this pod does not start, if anything keeps it from starting.
pub(crate) fn trouble(pod: &Pod) -> Option<Trouble> {
    if is_terminating(pod) || has_ended(pod) || is_ready(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let (cause, detail) = unscheduled(pod).or_else(|| {
        let initial = status.init_container_statuses.iter().flatten();
        let statuses = initial.chain(status.container_statuses.iter().flatten());
        statuses.into_iter().find_map(waiting)
    })?;
    let detail = detail.map(|detail| cut(detail.trim(), DETAIL_BYTES_MAX));
    Some(Trouble {
        pod: pod.metadata.name.clone().unwrap_or_default(),
        cause,
        detail: detail.filter(|detail| !detail.is_empty()),
    })
}

type Cause = (String, Option<String>);

fn unscheduled(pod: &Pod) -> Option<Cause> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    Some(("Unschedulable".to_owned(), condition.message.clone()))
}

fn waiting(container: &ContainerStatus) -> Option<Cause> {
    if container.ready {
        return None;
    }
    let state = container.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    let message = waiting.and_then(|waiting| waiting.message.clone());
    match reason.unwrap_or_default() {
        "ErrImagePull" | "ImagePullBackOff" => {
            let image = format!("image `{}`", container.image);
            let detail = match message.as_deref().map(pull_error) {
                Some(error) if !error.is_empty() => format!("{image}: {error}"),
                _ => image,
            };
            Some(("ImagePullBackOff".to_owned(), Some(detail)))
        }
        "CrashLoopBackOff" => Some(crash_loop(container)),
        "" | "ContainerCreating" | "PodInitializing" => {
            let has_failed = last_end(container).is_some_and(|(status, _)| status != 0);
            (has_failed && container.restart_count >= CRASHES_MIN).then(|| crash_loop(container))
        }
        other => Some((other.to_owned(), message)),
    }
}

/// The registry's own words, which stand at the end of both of kubelet's messages.
fn pull_error(message: &str) -> &str {
    let start = message.find("ErrImagePull: ");
    match start {
        Some(start) => &message[start + "ErrImagePull: ".len()..],
        None if message.starts_with("Back-off pulling image") => "",
        None => message,
    }
}

fn crash_loop(container: &ContainerStatus) -> Cause {
    let detail = last_end(container).map(|(status, message)| {
        let last_line = message.trim_end().lines().next_back().unwrap_or_default();
        match last_line {
            "" => format!("exit status {status}"),
            line => format!("exit status {status}: {line}"),
        }
    });
    ("CrashLoopBackOff".to_owned(), detail)
}

fn last_end(container: &ContainerStatus) -> Option<(i32, &str)> {
    let ended = |state: &'_ Option<ContainerState>| {
        let terminated = state.as_ref()?.terminated.as_ref()?;
        Some(terminated.exit_code)
    };
    let states = [&container.state, &container.last_state];
    let state = states.into_iter().find(|state| ended(state).is_some())?;
    let terminated = state.as_ref()?.terminated.as_ref()?;
    Some((
        terminated.exit_code,
        terminated.message.as_deref().unwrap_or_default(),
    ))
}
