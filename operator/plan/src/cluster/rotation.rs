//! How one authority replaces another while everything runs.
//!
//! Owns the phases. `Distribute`: every pod learns to trust both, the certificates are still of the
//! old one. `Issue`: every pod gets a certificate of the new one. `Retire`: every pod ceases to trust
//! the old one. The phase, both keys and the bundle stand in the authority's Secret.
//!
//! Invariants: no phase is left before the scheduler and every worker have *reported* what the phase
//! brings; time alone is never enough for them. Only for clients, which may be anybody with a copy of
//! the certificates, and for pods that have not started, a bounded time is enough. A silent scheduler
//! means: wait, and say so.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use oxidask_diagnostic::Code;
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::RotationPhase;

use super::Observed;
use super::certificates::{Certificates, until, whole};
use super::secrets::{AuthorityState, Origin, SecretState};
use crate::signal::{Loaded, Signal, Standing};
use crate::{AuthorityStep, PlannedEvent, Timestamp, names, pods};

/// How long before its end the operator's own authority is replaced.
pub const ROTATE_BEFORE: Duration = Duration::from_hours(365 * 24);

/// The same for one that somebody put there, which may be made for a short life.
pub(crate) const ROTATE_FOREIGN_BEFORE: Duration = Duration::from_hours(30 * 24);

/// How long clients that do not report, and pods that have not started, are waited for after the
/// last change of a Secret: kubelet hands a change on within two minutes.
pub const SETTLE: Duration = Duration::from_mins(3);

/// After that long, whoever has not reported is named.
const NAME_AFTER: Duration = Duration::from_mins(5);

/// How soon to look again while a rotation is under way; reports come by themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Everything that the next step follows from.
pub(super) struct Rotation<'a> {
    pub(super) cluster: &'a str,
    pub(super) observed: &'a Observed,
    pub(super) state: &'a SecretState,
    pub(super) authority: &'a AuthorityState,
    /// The Secret that the manifest names, if it can be used.
    pub(super) source: Option<&'a SecretState>,
    /// The text by which a user asks for a new authority.
    pub(super) wish: Option<&'a str>,
    pub(super) now: Timestamp,
}

/// What the processes have to report before the next phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Bundle,
    Certificate,
}

/// Who has not reported yet.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    SilentScheduler,
    Process(String),
    Clients,
    Starting(String),
}

impl Rotation<'_> {
    /// Adds the next step, and says how far things have come.
    pub(super) fn plan(&self, certificates: &mut Certificates) {
        if !self.authority.is_recorded {
            let note = "the authority in the Secret was replaced by hand";
            step_to(AuthorityStep::Adopt, note, certificates);
            return;
        }
        if self.authority.phase == RotationPhase::Stable {
            if let Some(reason) = self.reason() {
                step_to(AuthorityStep::Begin, &reason, certificates);
            }
            return;
        }
        certificates.wake(LOOK_AGAIN);
        let request = &certificates.request;
        if !request.roles.is_empty() || !request.bundles.is_empty() {
            certificates.say(
                true,
                "Rotating",
                self.progress("its Secrets are being written"),
            );
            return;
        }
        let (report, step, note) = match self.authority.phase {
            RotationPhase::Stable => return,
            RotationPhase::Distribute => (
                Report::Bundle,
                AuthorityStep::Issue,
                "every pod trusts the new authority: it issues from now on",
            ),
            RotationPhase::Issue => (
                Report::Certificate,
                AuthorityStep::Retire,
                "every pod has a certificate of the new authority: the old one is not trusted any \
                 more",
            ),
            RotationPhase::Retire => (
                Report::Bundle,
                AuthorityStep::Finish,
                "no pod trusts the old authority any more",
            ),
        };
        match self.missing(report) {
            None => step_to(step, note, certificates),
            Some(missing) => {
                let waits = self.words(report, &missing);
                certificates.say(true, "Rotating", self.progress(&waits));
            }
        }
    }

    fn progress(&self, waits: &str) -> String {
        let phase = self.authority.phase;
        format!("the authority is being replaced, phase {phase}: {waits}")
    }

    /// Why the authority is to be replaced.
    fn reason(&self) -> Option<String> {
        if let Some(source) = self.source {
            let is_another =
                source.certificate.is_some() && source.certificate != self.state.certificate;
            return is_another
                .then(|| "the Secret that `spec.tls.caSecretRef` names holds another".to_owned());
        }
        if let Some(wish) = self.wish
            && self.authority.rotated_for.as_deref() != Some(wish)
        {
            return Some(
                "the annotation `kubernetes.dask.org/rotate-authority` changed".to_owned(),
            );
        }
        let left = until(self.now, self.state.not_after?);
        let (before, words) = match self.authority.origin {
            Origin::Operator => (ROTATE_BEFORE, "it ends within a year"),
            Origin::Secret | Origin::Hand => (ROTATE_FOREIGN_BEFORE, "it ends within 30 days"),
        };
        (left <= before).then(|| words.to_owned())
    }

    fn words(&self, report: Report, missing: &Missing) -> String {
        let what = match report {
            Report::Bundle => "which authorities it trusts",
            Report::Certificate => "its new certificate",
        };
        let is_late = self.since_written() >= NAME_AFTER;
        match missing {
            Missing::SilentScheduler => {
                "the scheduler is silent, so nobody knows what the pods have loaded".to_owned()
            }
            Missing::Process(name) if is_late => {
                let code = Code::RotationWaits;
                format!(
                    "waits for `{name}` to report {what} ({code}); hint: {}",
                    code.hint()
                )
            }
            Missing::Process(_) => "waits for the pods to report what they have loaded".to_owned(),
            Missing::Starting(name) => format!("waits for pod `{name}` to start"),
            Missing::Clients => "gives clients time to load it".to_owned(),
        }
    }

    /// The time since the last change of a role's Secret.
    fn since_written(&self) -> Duration {
        let written = Role::ALL.iter().filter_map(|role| {
            let secret = names::certificate_secret(self.cluster, *role);
            self.observed.secrets.get(&secret)?.written_at
        });
        written
            .max()
            .map_or(Duration::ZERO, |written| until(written, self.now))
    }

    /// Who has not reported yet; none if the phase is over.
    fn missing(&self, report: Report) -> Option<Missing> {
        let is_settled = self.since_written() >= SETTLE;
        let mut running = 0_usize;
        let mut starting = None;
        let schedulers = self.observed.scheduler_pods.iter();
        let schedulers = schedulers.map(|pod| (Role::Scheduler, pod));
        let workers = self.observed.worker_pods.iter();
        let workers = workers.map(|pod| (Role::Worker, pod));
        for (role, pod) in schedulers.chain(workers) {
            match stage(pod) {
                Stage::Nothing => {}
                Stage::Starting => starting = starting.or_else(|| pod.metadata.name.clone()),
                Stage::Running => {
                    running += 1;
                    let Some(signal) = &self.observed.signal else {
                        return Some(Missing::SilentScheduler);
                    };
                    let loaded = match role {
                        Role::Scheduler => signal.loaded.as_ref(),
                        _ => worker(signal, pod),
                    };
                    if !self.is_loaded(report, role, loaded) {
                        return Some(Missing::Process(pod.metadata.name.clone()?));
                    }
                }
            }
        }
        if let Some(name) = starting.filter(|_| !is_settled) {
            return Some(Missing::Starting(name));
        }
        match &self.observed.signal {
            Some(signal) => self.missing_in(signal, report, is_settled),
            // The scheduler's pod is just being replaced, or there is none; a worker would have
            // been found above.
            None => (running > 0 || !is_settled).then_some(Missing::SilentScheduler),
        }
    }

    /// Workers without a pod of ours, and clients.
    fn missing_in(&self, signal: &Signal, report: Report, is_settled: bool) -> Option<Missing> {
        let late = signal.workers.iter().find(|(_, worker)| {
            let is_there = worker.standing != Standing::Suspect;
            is_there && !self.is_loaded(report, Role::Worker, worker.loaded.as_ref())
        });
        if let Some((name, _)) = late {
            return Some(Missing::Process(name.clone()));
        }
        let clients = signal.clients_loaded.iter();
        let reported = clients
            .filter(|loaded| self.is_loaded(report, Role::Client, Some(loaded)))
            .count();
        let runners = self.observed.runner_pods.iter();
        let runners = runners.filter(|pod| stage(pod) != Stage::Nothing).count();
        let expected = usize::try_from(signal.clients).unwrap_or(usize::MAX);
        let expected = expected.max(runners).max(signal.clients_loaded.len());
        (reported < expected && !is_settled).then_some(Missing::Clients)
    }

    fn is_loaded(&self, report: Report, role: Role, loaded: Option<&Loaded>) -> bool {
        let Some(loaded) = loaded else {
            return false;
        };
        match report {
            Report::Bundle => Some(&loaded.bundle) == self.state.bundle.as_ref(),
            Report::Certificate => {
                let secret = names::certificate_secret(self.cluster, role);
                let leaf = whole(self.observed, &secret);
                leaf.and_then(|leaf| leaf.certificate.as_ref()) == Some(&loaded.certificate)
            }
        }
    }
}

/// How far a pod has come, as far as certificates go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No container of it runs, and its volumes are not mounted: it will see what is there then.
    Nothing,
    /// It has a node, so its volumes may be mounted.
    Starting,
    /// A container of it runs, or may run.
    Running,
}

fn stage(pod: &Pod) -> Stage {
    if pods::has_ended(pod) {
        return Stage::Nothing;
    }
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_deref());
    let statuses = statuses.unwrap_or_default();
    let runs = statuses.iter().any(|container| {
        let state = container.state.as_ref();
        state.is_some_and(|state| state.running.is_some())
    });
    // A pod of which nothing is known may run; one whose containers all wait does not.
    let may_run = pods::phase(pod) != "Pending" && statuses.is_empty();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    match (runs || may_run, node) {
        (true, _) => Stage::Running,
        (false, Some(_)) => Stage::Starting,
        (false, None) => Stage::Nothing,
    }
}

/// What the scheduler says of the pod's worker.
fn worker<'a>(signal: &'a Signal, pod: &Pod) -> Option<&'a Loaded> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let named = signal.workers.get(name);
    let named = named.filter(|worker| worker.pod_uid.is_empty() || worker.pod_uid == uid);
    let found = named.or_else(|| {
        let mut workers = signal.workers.values();
        workers.find(|worker| !uid.is_empty() && worker.pod_uid == uid)
    });
    found?.loaded.as_ref()
}

fn step_to(step: AuthorityStep, note: &str, certificates: &mut Certificates) {
    let request = &mut certificates.request;
    request.authority = Some(step);
    // The Secrets of the roles follow from what is written now.
    request.roles.clear();
    request.bundles.clear();
    let note = match step {
        AuthorityStep::Begin | AuthorityStep::Adopt => {
            format!("the authority is replaced: {note}")
        }
        _ => note.to_owned(),
    };
    let event = PlannedEvent::normal("AuthorityRotation", "Rotate", &note);
    certificates.events.push(event);
    certificates.say(true, "Rotating", note);
}
