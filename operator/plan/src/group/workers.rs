//! The pods of a group, by what may become of them.
//!
//! Owns the question what a pod may hold. A pod holds nothing if its program does not run. One that
//! runs may hold the only copy of a result from the moment when it was ready; then only the
//! scheduler knows. Names, UIDs and addresses tell which worker of the scheduler a pod is.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use oxidask_operator_api::kubernetes::DaskWorkerGroup;

use super::Observed;
use crate::build::labels::{self, DRAIN, TEMPLATE_HASH};
use crate::scaling::{IDLE_AFTER, STUCK_AFTER};
use crate::signal::{Signal, Standing, WorkerSignal};
use crate::{Timestamp, build, owner, pods};

/// Age that a pod which has ended for good must have before another one takes its place. A node
/// that refuses each pod at once must not keep everybody busy.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// The mark of a pod that was to go and stays after all.
pub(super) const STAYS: &str = "cancelled";

/// What a pod may hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hold<'a> {
    /// Nothing: its program does not run, or nobody has given it anything yet.
    Nothing,
    /// Nobody knows.
    Unknown,
    /// What the scheduler says, under the worker's name there.
    Known(&'a str, &'a WorkerSignal),
}

/// What a pod is marked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It stays.
    None,
    /// It is to go, since then.
    Goes(Timestamp),
    /// It was to go, and the scheduler may not know yet that it stays.
    Stays,
}

/// A pod that has not ended and is not being deleted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker<'a> {
    pub(super) pod: &'a Pod,
    pub(super) hold: Hold<'a>,
    pub(super) mark: Mark,
    /// Whether it was made from the newest template.
    pub(super) is_current: bool,
    pub(super) is_ready: bool,
}

impl Worker<'_> {
    /// What the scheduler thinks of it.
    pub(super) fn standing(&self) -> Option<Standing> {
        match self.hold {
            Hold::Known(_, worker) => Some(worker.standing),
            _ => None,
        }
    }

    pub(super) fn is_going(&self) -> bool {
        matches!(self.mark, Mark::Goes(_))
    }

    pub(super) fn holds_nothing(&self) -> bool {
        matches!(self.hold, Hold::Nothing)
    }

    /// Whether the scheduler can be asked to drain it.
    pub(super) fn can_drain(&self) -> bool {
        self.standing()
            .is_some_and(|standing| standing != Standing::Suspect)
    }

    /// First what holds nothing and what is empty, then what is idle, then what holds least.
    pub(super) fn removal_order(&self) -> impl Ord + use<> {
        let (rank, running, held_bytes) = match self.hold {
            Hold::Nothing => (0, 0, 0),
            Hold::Known(_, worker) => {
                let rank = match worker.standing {
                    Standing::Suspect => 5,
                    Standing::Empty => 1,
                    Standing::Retiring => 2,
                    _ if worker.running == 0 => 3,
                    _ => 4,
                };
                (rank, worker.running, worker.held_bytes)
            }
            Hold::Unknown => (5, 0, 0),
        };
        let created = self.pod.metadata.creation_timestamp.as_ref();
        let created = created.map_or(Timestamp::MAX, |time| time.0);
        let name = self.pod.metadata.name.clone();
        (rank, running, held_bytes, Reverse(created), name)
    }
}

/// All pods of a group.
pub(super) struct Workers<'a> {
    pub(super) wanted: usize,
    pub(super) live: Vec<Worker<'a>>,
    /// Pods that have ended for good and make room.
    pub(super) ended: Vec<&'a Pod>,
    /// Pods that ended right after they were made, and how long their place stays empty.
    pub(super) paused: usize,
    pub(super) pause: Duration,
    /// A name is taken whoever owns the pod, and until the pod has gone completely.
    pub(super) names: HashSet<&'a str>,
    /// Pods that have not been able to start for a while, and when the next one will be one.
    pub(super) stuck: usize,
    pub(super) next_stuck: Option<Duration>,
    /// Ready workers that have had nothing to do for a while.
    pub(super) idle: usize,
}

impl<'a> Workers<'a> {
    /// The pods of the group; `hash` is that of the template that they should have, if it matters.
    pub(super) fn new(
        group: &DaskWorkerGroup,
        observed: &'a Observed,
        hash: Option<&str>,
        now: Timestamp,
    ) -> Self {
        let mut workers = Self {
            wanted: build::group::replicas(&group.spec.worker) as usize,
            live: Vec::new(),
            ended: Vec::new(),
            paused: 0,
            pause: Duration::ZERO,
            names: HashSet::new(),
            stuck: 0,
            next_stuck: None,
            idle: 0,
        };
        let heard = Heard::new(observed.signal.as_ref());
        for pod in &observed.pods {
            workers.names.extend(pod.metadata.name.as_deref());
            if !owner::owns(&group.metadata, &pod.metadata) || pods::is_terminating(pod) {
                continue;
            }
            if pods::has_ended(pod) {
                let pause = REPLACE_AFTER.saturating_sub(age(pod, now));
                if pause.is_zero() {
                    workers.ended.push(pod);
                } else {
                    workers.paused += 1;
                    workers.pause = workers.pause.max(pause);
                }
                continue;
            }
            workers.take_live(pod, &heard, hash, now);
        }
        workers
    }

    fn take_live(&mut self, pod: &'a Pod, heard: &Heard<'a>, hash: Option<&str>, now: Timestamp) {
        let label = labels::annotation(pod.metadata.labels.as_ref(), TEMPLATE_HASH);
        let hold = heard.hold(pod);
        let is_ready = pods::is_ready(pod);
        if pods::trouble(pod).is_some() {
            let left = STUCK_AFTER.saturating_sub(age(pod, now));
            if left.is_zero() {
                self.stuck += 1;
            } else {
                self.next_stuck = Some(self.next_stuck.map_or(left, |next| next.min(left)));
            }
        }
        if let Hold::Known(_, worker) = hold {
            let has_nothing = worker.standing == Standing::Active && worker.idle >= IDLE_AFTER;
            self.idle += usize::from(is_ready && has_nothing);
        }
        self.live.push(Worker {
            pod,
            hold,
            mark: mark(pod),
            is_current: hash.is_none_or(|hash| label == Some(hash)),
            is_ready,
        });
    }

    /// Workers that are ready, whatever becomes of them.
    pub(super) fn ready(&self) -> usize {
        self.live.iter().filter(|worker| worker.is_ready).count()
    }

    /// Workers that are to go.
    pub(super) fn going(&self) -> usize {
        self.live.iter().filter(|worker| worker.is_going()).count()
    }

    /// Workers made from the newest template.
    pub(super) fn updated(&self) -> usize {
        self.live.iter().filter(|worker| worker.is_current).count()
    }
}

fn mark(pod: &Pod) -> Mark {
    match labels::annotation(pod.metadata.annotations.as_ref(), DRAIN) {
        None => Mark::None,
        Some(STAYS) => Mark::Stays,
        // An unreadable time is one of long ago: only a deadline of the user's asks for it.
        Some(since) => Mark::Goes(since.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

pub(super) fn age(pod: &Pod, now: Timestamp) -> Duration {
    let created = pod.metadata.creation_timestamp.as_ref();
    let age = created.map(|created| now.duration_since(created.0));
    age.map_or(Duration::MAX, |age| {
        Duration::try_from(age).unwrap_or(Duration::ZERO)
    })
}

/// The scheduler's workers, by how a pod can be told to be one of them.
struct Heard<'a> {
    signal: Option<&'a Signal>,
    by_uid: HashMap<&'a str, (&'a str, &'a WorkerSignal)>,
    by_host: HashMap<&'a str, (&'a str, &'a WorkerSignal)>,
}

impl<'a> Heard<'a> {
    fn new(signal: Option<&'a Signal>) -> Self {
        let mut heard = Self {
            signal,
            by_uid: HashMap::new(),
            by_host: HashMap::new(),
        };
        for (name, worker) in signal.iter().flat_map(|signal| &signal.workers) {
            if !worker.pod_uid.is_empty() {
                heard.by_uid.insert(&worker.pod_uid, (name, worker));
            } else if !worker.host.is_empty() {
                heard.by_host.insert(&worker.host, (name, worker));
            }
        }
        heard
    }

    /// The worker that runs in the pod.
    fn worker(&self, pod: &Pod) -> Option<(&'a str, &'a WorkerSignal)> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(found) = self.by_uid.get(uid) {
            return Some(*found);
        }
        let address = pod.status.as_ref().and_then(|it| it.pod_ip.as_deref());
        if let Some(found) = address.and_then(|address| self.by_host.get(address)) {
            return Some(*found);
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let (name, worker) = self.signal?.workers.get_key_value(name)?;
        let is_anonymous = worker.pod_uid.is_empty() && worker.host.is_empty();
        is_anonymous.then_some((name.as_str(), worker))
    }

    fn hold(&self, pod: &Pod) -> Hold<'a> {
        let is_running = is_running(pod);
        match self.worker(pod) {
            // What the scheduler hears runs, even if the pod's status does not say so yet.
            Some((name, worker)) if is_running || worker.standing != Standing::Suspect => {
                Hold::Known(name, worker)
            }
            _ if !is_running => Hold::Nothing,
            Some((name, worker)) => Hold::Known(name, worker),
            None if self.signal.is_some() && !was_ready(pod) => Hold::Nothing,
            None => Hold::Unknown,
        }
    }
}

/// Whether the worker's program runs. Without a word about the container, the phase tells.
fn is_running(pod: &Pod) -> bool {
    match pods::container(pod, labels::WORKER).and_then(|container| container.state.as_ref()) {
        Some(state) => state.running.is_some(),
        None => pods::phase(pod) != "Pending",
    }
}

/// Whether the program that runs has ever been ready, as far as one can tell: what is not ready
/// became so before the program started, or it was ready before.
fn was_ready(pod: &Pod) -> bool {
    if pods::is_ready(pod) {
        return true;
    }
    let container = pods::container(pod, labels::WORKER);
    let running = container
        .and_then(|container| container.state.as_ref())
        .and_then(|state| state.running.as_ref());
    let started = running.and_then(|running| running.started_at.as_ref());
    let changed = pods::ready_condition(pod).and_then(|it| it.last_transition_time.as_ref());
    match (started, changed) {
        (Some(started), Some(changed)) => changed.0 >= started.0,
        (_, None) => false,
        (None, Some(_)) => true,
    }
}
