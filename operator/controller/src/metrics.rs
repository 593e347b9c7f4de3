//! The operator's own metrics; labels are bounded by kinds, reasons and outcomes.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

const PREFIX: &str = "oxidask_operator";

/// From a look at the caches to a cluster of many pods.
const SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindOutcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindReason {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindNamespace {
    kind: String,
    namespace: String,
}

/// All metrics and how they are named.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconciliations: Family<KindOutcome, Counter>,
    durations: Family<Kind, Histogram>,
    applied: Family<Kind, Counter>,
    deletions: Family<KindReason, Counter>,
    events: Counter,
    objects: Family<KindNamespace, Gauge<i64, AtomicI64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let reconciliations = Family::default();
        let durations =
            Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let (applied, deletions) = (Family::default(), Family::default());
        let (events, objects) = (Counter::default(), Family::default());
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register(
            "reconciliations",
            "Rounds of looking at an object, by kind and what came of it",
            reconciliations.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time from looking at an object to everything being done",
            durations.clone(),
        );
        registry.register("applied", "Objects applied, by kind", applied.clone());
        registry.register(
            "deletions",
            "Objects deleted, by kind and reason",
            deletions.clone(),
        );
        registry.register("events", "Events published", events.clone());
        registry.register(
            "objects",
            "Objects that are watched, by kind and watched namespace (empty for all)",
            objects.clone(),
        );
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The operator's build", Info::new(version));
        Self {
            registry,
            reconciliations,
            durations,
            applied,
            deletions,
            events,
            objects,
        }
    }

    pub(crate) fn reconciled(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.reconciliations
            .get_or_create(&KindOutcome { kind, outcome })
            .inc();
        self.durations
            .get_or_create(&Kind { kind })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn applied(&self, kind: &'static str) {
        self.applied.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn deleted(&self, kind: &'static str, reason: &'static str) {
        self.deletions
            .get_or_create(&KindReason { kind, reason })
            .inc();
    }

    pub(crate) fn event(&self) {
        self.events.inc();
    }

    pub(crate) fn objects(&self, kind: &str, namespace: Option<&str>, count: usize) {
        let (kind, namespace) = (kind.to_owned(), namespace.unwrap_or_default().to_owned());
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.objects
            .get_or_create(&KindNamespace { kind, namespace })
            .set(count);
    }

    /// The text that a scraper reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_as_documented() {
        let metrics = Metrics::new();
        metrics.reconciled("DaskCluster", "changed", Duration::from_millis(20));
        metrics.applied("Pod");
        metrics.deleted("Pod", "ScaledDown");
        metrics.event();
        metrics.objects("Pod", None, 3);
        let text = metrics.text();
        for line in [
            "oxidask_operator_reconciliations_total{kind=\"DaskCluster\",outcome=\"changed\"} 1",
            "oxidask_operator_reconcile_duration_seconds_bucket{le=\"0.025\",kind=\"DaskCluster\"} 1",
            "oxidask_operator_applied_total{kind=\"Pod\"} 1",
            "oxidask_operator_deletions_total{kind=\"Pod\",reason=\"ScaledDown\"} 1",
            "oxidask_operator_events_total 1",
            "oxidask_operator_objects{kind=\"Pod\",namespace=\"\"} 3",
            "oxidask_operator_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
