//! The operator's own metrics; labels are bounded by kinds, reasons and outcomes, and for the ends
//! of certificates by the clusters that exist.

use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use oxidask_operator_plan::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::cache::ClusterKey;
use crate::caches::Caches;
use crate::queue::Queues;

const PREFIX: &str = "oxidask_operator";

/// From a look at the caches to a cluster of many pods.
const SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Clusters whose certificates have a metric; further ones would make scrapes too large.
const CERTIFICATES_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOutcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindReason {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindNamespace {
    kind: String,
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindPhase {
    kind: &'static str,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    resource: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCluster {
    namespace: String,
    cluster: String,
}

type SignedGauge = Gauge<i64, AtomicI64>;

/// What is looked at when somebody scrapes.
#[derive(Debug)]
struct Watched {
    caches: Weak<Caches>,
    queues: Weak<Queues>,
}

/// All metrics and how they are named.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconciliations: Family<KindOutcome, Counter>,
    durations: Family<Kind, Histogram, fn() -> Histogram>,
    waits: Family<Kind, Histogram, fn() -> Histogram>,
    queued: Family<Kind, SignedGauge>,
    requests: Family<Request, Counter>,
    applied: Family<Kind, Counter>,
    refused: Family<KindReason, Counter>,
    deletions: Family<KindReason, Counter>,
    scalings: Family<Direction, Counter>,
    scaled: Family<Direction, Counter>,
    events: Counter,
    objects: Family<KindNamespace, SignedGauge>,
    phases: Family<KindPhase, SignedGauge>,
    certificates: Family<OfCluster, SignedGauge>,
    certificate_ends: Mutex<HashMap<ClusterKey, Timestamp>>,
    links: SignedGauge,
    leader: SignedGauge,
    watched: Mutex<Vec<Watched>>,
}

fn histogram() -> Family<Kind, Histogram, fn() -> Histogram> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            reconciliations: Family::default(),
            durations: histogram(),
            waits: histogram(),
            queued: Family::default(),
            requests: Family::default(),
            applied: Family::default(),
            refused: Family::default(),
            deletions: Family::default(),
            scalings: Family::default(),
            scaled: Family::default(),
            events: Counter::default(),
            objects: Family::default(),
            phases: Family::default(),
            certificates: Family::default(),
            certificate_ends: Mutex::default(),
            links: Gauge::default(),
            leader: Gauge::default(),
            watched: Mutex::default(),
        };
        metrics.register_work();
        metrics.register_states();
        metrics
    }

    fn register_work(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "reconciliations",
            "Rounds of looking at an object, by kind and what came of it",
            self.reconciliations.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time from looking at an object to everything being done",
            self.durations.clone(),
        );
        registry.register(
            "queue_duration_seconds",
            "Time from a change to looking at the objects that it concerns",
            self.waits.clone(),
        );
        registry.register(
            "api_requests",
            "Requests to the API server, by verb, resource and status; `none` without an answer",
            self.requests.clone(),
        );
        registry.register("applied", "Objects applied, by kind", self.applied.clone());
        registry.register(
            "refused",
            "Objects that the API server did not take, by kind and class of reason",
            self.refused.clone(),
        );
        registry.register(
            "deletions",
            "Objects deleted, by kind and reason",
            self.deletions.clone(),
        );
        registry.register(
            "scalings",
            "Decisions to change a number of workers, by direction",
            self.scalings.clone(),
        );
        registry.register(
            "scaled_workers",
            "Workers that these decisions add or take away, by direction",
            self.scaled.clone(),
        );
        registry.register("events", "Events published", self.events.clone());
    }

    fn register_states(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "queue_length",
            "Objects that wait to be looked at",
            self.queued.clone(),
        );
        registry.register(
            "objects",
            "Objects that are watched, by kind and watched namespace (empty for all)",
            self.objects.clone(),
        );
        registry.register(
            "object_phases",
            "Clusters and jobs, by phase or state",
            self.phases.clone(),
        );
        registry.register(
            "certificate_expiry_seconds",
            "Time until the first certificate of a cluster ends",
            self.certificates.clone(),
        );
        registry.register(
            "links_up",
            "Schedulers whose telemetry is followed",
            self.links.clone(),
        );
        registry.register(
            "leader",
            "1 if this replica writes, 0 if it stands by",
            self.leader.clone(),
        );
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The operator's build", Info::new(version));
    }

    /// Looks at these as well when somebody scrapes.
    pub(crate) fn watch(&self, caches: &Arc<Caches>, queues: &Arc<Queues>) {
        let watched = Watched {
            caches: Arc::downgrade(caches),
            queues: Arc::downgrade(queues),
        };
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(watched);
    }

    pub(crate) fn reconciled(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.reconciliations
            .get_or_create(&KindOutcome { kind, outcome })
            .inc();
        self.durations
            .get_or_create(&Kind { kind })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn waited(&self, kind: &'static str, time: Option<Duration>) {
        if let Some(time) = time {
            self.waits
                .get_or_create(&Kind { kind })
                .observe(time.as_secs_f64());
        }
    }

    pub(crate) fn requested(
        &self,
        verb: &'static str,
        resource: &'static str,
        status: &'static str,
    ) {
        let request = Request {
            verb,
            resource,
            status,
        };
        self.requests.get_or_create(&request).inc();
    }

    pub(crate) fn applied(&self, kind: &'static str) {
        self.applied.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn refused(&self, kind: &'static str, reason: &'static str) {
        self.refused
            .get_or_create(&KindReason { kind, reason })
            .inc();
    }

    pub(crate) fn deleted(&self, kind: &'static str, reason: &'static str) {
        self.deletions
            .get_or_create(&KindReason { kind, reason })
            .inc();
    }

    pub(crate) fn scaled(&self, from: u32, to: u32) {
        let direction = if to > from { "up" } else { "down" };
        let label = Direction { direction };
        self.scalings.get_or_create(&label).inc();
        self.scaled
            .get_or_create(&label)
            .inc_by(u64::from(from.abs_diff(to)));
    }

    pub(crate) fn event(&self) {
        self.events.inc();
    }

    pub(crate) fn link_up(&self) {
        self.links.inc();
    }

    pub(crate) fn link_down(&self) {
        self.links.dec();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// When the first certificate of a cluster ends.
    pub(crate) fn certificates(&self, key: &ClusterKey, end: Option<Timestamp>) {
        let ends = self.certificate_ends.lock();
        let mut ends = ends.unwrap_or_else(PoisonError::into_inner);
        match end {
            None => {
                ends.remove(key);
            }
            Some(end) => {
                if ends.len() < CERTIFICATES_MAX || ends.contains_key(key) {
                    ends.insert(key.clone(), end);
                }
            }
        }
    }

    pub(crate) fn objects(&self, kind: &str, namespace: Option<&str>, count: usize) {
        let (kind, namespace) = (kind.to_owned(), namespace.unwrap_or_default().to_owned());
        self.objects
            .get_or_create(&KindNamespace { kind, namespace })
            .set(signed(count));
    }

    /// The text that a scraper reads.
    pub(crate) fn text(&self) -> String {
        self.look();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Brings up to date what is not counted as it happens.
    fn look(&self) {
        self.certificates.clear();
        self.phases.clear();
        let now = Timestamp::now();
        {
            let ends = self.certificate_ends.lock();
            let ends = ends.unwrap_or_else(PoisonError::into_inner);
            for (key, end) in ends.iter() {
                let label = OfCluster {
                    namespace: key.namespace.clone(),
                    cluster: key.cluster.clone(),
                };
                let seconds = end.as_second().saturating_sub(now.as_second());
                self.certificates.get_or_create(&label).set(seconds);
            }
        }
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lengths: HashMap<&'static str, usize> = HashMap::new();
        for watched in watched.iter() {
            for (kind, length) in watched.queues.upgrade().iter().flat_map(|it| it.lengths()) {
                *lengths.entry(kind).or_default() += length;
            }
            if let Some(caches) = watched.caches.upgrade() {
                self.count_phases(&caches);
            }
        }
        for (kind, length) in lengths {
            self.queued
                .get_or_create(&Kind { kind })
                .set(signed(length));
        }
    }

    fn count_phases(&self, caches: &Caches) {
        let clusters = caches.clusters.all().into_iter().map(|cluster| {
            let phase = cluster.status.as_ref().and_then(|status| status.phase);
            ("DaskCluster", phase.map(|phase| phase.to_string()))
        });
        let jobs = caches.jobs.all().into_iter().map(|job| {
            let state = job.status.as_ref().and_then(|status| status.job_status);
            ("DaskJob", state.map(|state| state.to_string()))
        });
        for (kind, phase) in clusters.chain(jobs) {
            let phase = phase.unwrap_or_else(|| "None".to_owned());
            self.phases.get_or_create(&KindPhase { kind, phase }).inc();
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use oxidask_operator_api::kubernetes::DaskCluster;

    use super::*;

    #[test]
    fn names_and_labels_are_as_documented() {
        let metrics = Metrics::new();
        metrics.reconciled("DaskCluster", "changed", Duration::from_millis(20));
        metrics.waited("DaskCluster", Some(Duration::from_millis(5)));
        metrics.requested("create", "pods", "2xx");
        metrics.applied("Pod");
        metrics.refused("Pod", "quota");
        metrics.deleted("Pod", "ScaledDown");
        metrics.scaled(1, 8);
        metrics.scaled(8, 6);
        metrics.event();
        metrics.link_up();
        metrics.leads(true);
        metrics.objects("Pod", None, 3);
        let text = metrics.text();
        for line in [
            "oxidask_operator_reconciliations_total{kind=\"DaskCluster\",outcome=\"changed\"} 1",
            "oxidask_operator_reconcile_duration_seconds_bucket{le=\"0.025\",kind=\"DaskCluster\"} 1",
            "oxidask_operator_queue_duration_seconds_bucket{le=\"0.01\",kind=\"DaskCluster\"} 1",
            "oxidask_operator_api_requests_total{verb=\"create\",resource=\"pods\",status=\"2xx\"} 1",
            "oxidask_operator_applied_total{kind=\"Pod\"} 1",
            "oxidask_operator_refused_total{kind=\"Pod\",reason=\"quota\"} 1",
            "oxidask_operator_deletions_total{kind=\"Pod\",reason=\"ScaledDown\"} 1",
            "oxidask_operator_scalings_total{direction=\"up\"} 1",
            "oxidask_operator_scaled_workers_total{direction=\"up\"} 7",
            "oxidask_operator_scaled_workers_total{direction=\"down\"} 2",
            "oxidask_operator_events_total 1",
            "oxidask_operator_objects{kind=\"Pod\",namespace=\"\"} 3",
            "oxidask_operator_links_up 1",
            "oxidask_operator_leader 1",
            "oxidask_operator_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_looked_at_is_never_yesterdays() {
        let metrics = Metrics::new();
        let (mut feeds, caches) = Caches::new();
        let (caches, queues) = (Arc::new(caches), Arc::new(Queues::default()));
        metrics.watch(&caches, &queues);
        let cluster: DaskCluster = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "c", "namespace": "n"},
            "spec": {"worker": {}}, "status": {"phase": "Running"},
        }))
        .unwrap();
        feeds.clusters.take(&Event::Apply(cluster.clone()));
        let key = ClusterKey::new("n", "c");
        let end = Timestamp::now() + Duration::from_hours(1);
        metrics.certificates(&key, Some(end));
        let text = metrics.text();
        assert!(text.contains("object_phases{kind=\"DaskCluster\",phase=\"Running\"} 1"));
        assert!(text.contains("queue_length{kind=\"DaskJob\"} 0"));
        let line = "certificate_expiry_seconds{namespace=\"n\",cluster=\"c\"} 3";
        assert!(text.contains(line), "{text}");
        feeds.clusters.take(&Event::Delete(cluster));
        metrics.certificates(&key, None);
        let text = metrics.text();
        assert!(
            !text.contains("Running") && !text.contains("cluster=\"c\""),
            "{text}"
        );
    }
}
