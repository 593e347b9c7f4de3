//! Why a runner does not start.
//!
//! Owns the search for causes: what the pod's own status says, what the API server refused, what
//! events say about volumes. Each cause is said in words, with an event when it is new.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use oxidask_diagnostic::Code;
use oxidask_operator_api::KeyReference;
use oxidask_operator_api::kubernetes::{DaskJob, JobStatus};

use super::report::{Progress, told};
use super::{Observed, wake};
use crate::runner::{Runner, State};
use crate::status::cut;
use crate::{Plan, PlannedEvent, Refusal, Timestamp, build, names, owner, pods};

/// Time that a runner's pod may take before events are looked at.
const QUIET_START: Duration = Duration::from_secs(3);
/// Time between two looks at events.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Time that a runner's pod may take before the job says that it takes long.
const SLOW_START: Duration = Duration::from_secs(30);
/// Time after which a request that was refused is worth another look.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);
/// Bytes of a cause in a message.
const CAUSE_BYTES_MAX: usize = 512;

/// Whether the controller is to read the events about the runner's pod for the next plan: it has
/// waited for some time, and its status does not say for what.
pub fn wants_warnings(job: &DaskJob, observed: &Observed, now: Timestamp) -> bool {
    let runner = observed.runner.as_ref();
    let runner = runner.filter(|pod| owner::owns(&job.metadata, &pod.metadata));
    runner.is_some_and(|pod| {
        Runner::of(Some(pod), now).state == State::Starting
            && pods::trouble(pod).is_none()
            && age(pod, now) >= QUIET_START
    })
}

/// The runner's pod is there, its program does not run yet.
pub(super) fn await_start(
    job: &DaskJob,
    observed: &Observed,
    has_certificates: bool,
    now: Timestamp,
    plan: &mut Plan<JobStatus>,
) -> Progress {
    let progress = Progress::new("RunnerStarting", "the runner is starting");
    let Some(pod) = observed.runner.as_ref() else {
        return progress;
    };
    if pods::trouble(pod).is_some() {
        return with_pod_trouble(job, pod, progress, plan);
    }
    if let Some(gates) = gates(pod) {
        return progress.with_trouble(gates);
    }
    let age = age(pod, now);
    let has_had_certificates = has_certificates && age >= SLOW_START;
    if let Some((headline, line)) = warning(observed, pod, has_had_certificates) {
        wake(plan, SLOW_START);
        return with_cause(job, &headline, line, progress, plan);
    }
    wake(plan, look_again(age));
    match slow_start(job, age) {
        Some(text) => progress.with_trouble(text),
        None => progress,
    }
}

/// What the pod's own status says, as part of where the job is.
pub(super) fn with_pod_trouble(
    job: &DaskJob,
    pod: &Pod,
    progress: Progress,
    plan: &mut Plan<JobStatus>,
) -> Progress {
    match pods::trouble(pod) {
        Some(trouble) => with_cause(job, &trouble.headline(), trouble.line(), progress, plan),
        None => progress,
    }
}

fn with_cause(
    job: &DaskJob,
    headline: &str,
    line: String,
    progress: Progress,
    plan: &mut Plan<JobStatus>,
) -> Progress {
    if !told(job, headline) {
        let note = format!("{}: {line}", Code::PodCannotStart);
        plan.events
            .push(PlannedEvent::warning("PodCannotStart", "Wait", &note));
    }
    progress.with_trouble(line)
}

/// A queue such as Kueue holds pods back by gates.
fn gates(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.scheduling_gates.as_ref()?;
    let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
    let names = names.join("`, `");
    (!names.is_empty()).then(|| format!("its pod is held back by `{names}`"))
}

/// What the API server refused, as part of where the job is.
pub(super) fn with_refusals(
    job: &DaskJob,
    refusals: &[Refusal],
    progress: Progress,
    plan: &mut Plan<JobStatus>,
) -> Progress {
    let Some(refusal) = refusals.first() else {
        return progress;
    };
    wake(plan, REFUSED_AGAIN);
    let headline = format!("the API server refused {}", refusal.object);
    let text = cut(refusal.message.trim(), CAUSE_BYTES_MAX);
    if !told(job, &headline) {
        let note = format!("{}: {headline}: {text}", Code::ObjectRejected);
        plan.events
            .push(PlannedEvent::warning("Refused", "Wait", &note));
    }
    progress.with_trouble(format!("{headline}: {text}"))
}

fn age(pod: &Pod, now: Timestamp) -> Duration {
    let created = pod.metadata.creation_timestamp.as_ref();
    let age = created.map(|created| now.duration_since(created.0));
    let age = age.and_then(|age| Duration::try_from(age).ok());
    age.unwrap_or_default()
}

fn look_again(age: Duration) -> Duration {
    if age < QUIET_START {
        return QUIET_START.saturating_sub(age);
    }
    if age < SLOW_START {
        return SLOW_START.saturating_sub(age).min(LOOK_AGAIN);
    }
    SLOW_START
}

/// Headline and text of what events say. Which of them is taken does not depend on their order, so
/// that the condition does not change from look to look.
fn warning(observed: &Observed, pod: &Pod, has_had_certificates: bool) -> Option<(String, String)> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let cluster = observed.cluster.as_ref();
    let cluster = cluster.and_then(|cluster| cluster.metadata.name.as_deref());
    let secret =
        names::certificate_secret(cluster.unwrap_or_default(), oxidask_identity::Role::Client);
    let told = observed.warnings.iter().filter(|warning| {
        // The certificates come with the cluster, a moment after the runner, and the event stays.
        let is_early = cluster.is_none() || warning.message.contains(&secret);
        has_had_certificates || !(warning.reason == "FailedMount" && is_early)
    });
    let told = told.min_by_key(|warning| {
        let is_vague = !warning.message.contains("not found");
        (is_vague, &warning.reason, &warning.message)
    })?;
    let headline = format!("pod `{name}` cannot start: {}", told.reason);
    let text = cut(told.message.trim(), CAUSE_BYTES_MAX);
    let line = format!("{headline}: {text}");
    Some((headline, line))
}

fn slow_start(job: &DaskJob, age: Duration) -> Option<String> {
    if age < SLOW_START {
        return None;
    }
    let text = format!(
        "its pod has not started within {} seconds",
        SLOW_START.as_secs()
    );
    Some(match build::work::reference(&job.spec) {
        Some(KeyReference { name, key }) => {
            format!("{text}: is there a ConfigMap `{name}` with the key `{key}`?")
        }
        None => text,
    })
}
