//! What schedulers said last, by cluster, for the planners.
//!
//! Owns how long words count and which objects news concerns. Filled by the links (runtime `Rust`)
//! and by whoever asks Dask's own schedulers. Invariant: a scheduler that has been silent for
//! [`SILENT_AFTER`] has no signal, whatever it said before.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use oxidask_operator_plan::Timestamp;
use oxidask_operator_plan::names;
use oxidask_operator_plan::signal::{GroupSignal, Signal, WorkerSignal};

use crate::cache::ClusterKey;
use crate::caches::Caches;
use crate::queue::Target;

/// A scheduler that says nothing for so long is silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Heard {
    signal: Signal,
    /// When the signal came: times in it count from there.
    said: Instant,
    /// When the scheduler last showed that it still holds.
    confirmed: Instant,
}

/// What is news in a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing that a planner reads.
    Nothing,
    /// Of these groups, by their short names.
    Groups(BTreeSet<String>),
    /// Of the whole cluster.
    Everything,
}

/// All signals.
#[derive(Debug, Default)]
pub(crate) struct Signals(Mutex<HashMap<ClusterKey, Heard>>);

impl Signals {
    /// Takes a signal; what of it is news.
    pub(crate) fn hear(&self, key: &ClusterKey, signal: Signal) -> News {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Heard {
            signal,
            said: now,
            confirmed: now,
        };
        let Some(before) = all.insert(key.clone(), heard) else {
            return News::Everything;
        };
        if now.duration_since(before.confirmed) >= SILENT_AFTER {
            return News::Everything;
        }
        all.get(key)
            .map_or(News::Nothing, |heard| news(&before.signal, &heard.signal))
    }

    /// The scheduler is silent. True if it was not before.
    pub(crate) fn silence(&self, key: &ClusterKey) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(key).is_some()
    }

    /// What holds now: times go on while the scheduler has nothing new to say.
    pub(crate) fn get(&self, key: &ClusterKey) -> Option<Signal> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = all.get(key)?;
        if heard.confirmed.elapsed() >= SILENT_AFTER {
            return None;
        }
        Some(aged(&heard.signal, heard.said.elapsed()))
    }

    #[cfg(test)]
    pub(crate) fn age(&self, key: &ClusterKey, by: Duration) {
        let mut all = self.0.lock().unwrap();
        if let Some(heard) = all.get_mut(key) {
            heard.said -= by;
            heard.confirmed -= by;
        }
    }
}

fn aged(signal: &Signal, age: Duration) -> Signal {
    let mut signal = signal.clone();
    let older = |idle: &mut Duration| {
        if !idle.is_zero() {
            *idle = idle.saturating_add(age);
        }
    };
    if let Some(idle) = &mut signal.idle {
        *idle = idle.saturating_add(age);
    }
    signal
        .groups
        .values_mut()
        .for_each(|it| older(&mut it.idle));
    signal
        .workers
        .values_mut()
        .for_each(|it| older(&mut it.idle));
    signal.heard_at = Timestamp::now();
    signal
}

/// What a planner would decide by. Time that passes, and bytes and tasks that come and go on
/// workers, are none of it: they only give the order in which workers go.
fn news(old: &Signal, new: &Signal) -> News {
    let whole = |it: &Signal| {
        (
            it.graphs > 0,
            it.clients,
            it.unfinished_tasks > 0,
            it.idle.is_some(),
        )
    };
    if whole(old) != whole(new)
        || old.unplaced != new.unplaced
        || old.loaded != new.loaded
        || old.clients_loaded != new.clients_loaded
        || new.workers.iter().any(|(name, worker)| {
            let before = old.workers.get(name);
            before.is_none_or(|before| before.loaded != worker.loaded)
        })
    {
        return News::Everything;
    }
    let mut groups = BTreeSet::new();
    let names: BTreeSet<&String> = old.groups.keys().chain(new.groups.keys()).collect();
    for name in names {
        let gist = |it: &Signal| it.groups.get(name).map(group_gist);
        if gist(old) != gist(new) {
            groups.insert(name.clone());
        }
    }
    let names: BTreeSet<&String> = old.workers.keys().chain(new.workers.keys()).collect();
    for name in names {
        let (before, after) = (old.workers.get(name), new.workers.get(name));
        if before.map(worker_gist) != after.map(worker_gist) {
            let owners = before.into_iter().chain(after);
            groups.extend(owners.map(|worker| worker.group.clone()));
        }
    }
    if groups.is_empty() {
        return News::Nothing;
    }
    News::Groups(groups)
}

fn group_gist(group: &GroupSignal) -> (u64, bool, bool) {
    (
        group.workers_wanted,
        group.waiting.is_zero(),
        group.idle.is_zero(),
    )
}

fn worker_gist(worker: &WorkerSignal) -> impl PartialEq + use<'_> {
    (
        &worker.group,
        &worker.pod_uid,
        &worker.host,
        worker.standing as u8,
    )
}

/// Whom news concerns.
pub(crate) fn concerned(news: &News, key: &ClusterKey, caches: &Caches) -> Vec<Target> {
    if *news == News::Nothing {
        return Vec::new();
    }
    let namespace = || key.namespace.clone();
    let mut targets = Vec::new();
    for group in caches.groups.of_cluster(key) {
        let name = group.name_any();
        let is_concerned = match news {
            News::Groups(groups) => groups.contains(names::short_group(&key.cluster, &name)),
            News::Nothing | News::Everything => true,
        };
        if is_concerned {
            let namespace = namespace();
            targets.push(Target::Group { namespace, name });
        }
    }
    for autoscaler in caches.autoscalers.of_cluster(key) {
        let (namespace, name) = (namespace(), autoscaler.name_any());
        targets.push(Target::Autoscaler { namespace, name });
    }
    if *news == News::Everything {
        targets.push(Target::Cluster {
            namespace: namespace(),
            name: key.cluster.clone(),
        });
    }
    targets
}

#[cfg(test)]
mod tests {
    use oxidask_operator_plan::signal::Standing;

    use super::*;

    fn signal(wanted: u64) -> Signal {
        let group = |wanted| GroupSignal {
            workers_wanted: wanted,
            waiting: Duration::ZERO,
            idle: Duration::from_secs(1),
            reason: format!("{wanted}"),
        };
        let worker = WorkerSignal {
            group: "other".to_owned(),
            pod_uid: "u".to_owned(),
            host: String::new(),
            standing: Standing::Active,
            running: 0,
            held_bytes: 1,
            idle: Duration::ZERO,
            loaded: None,
        };
        Signal {
            heard_at: Timestamp::now(),
            graphs: 1,
            clients: 1,
            unfinished_tasks: 1,
            idle: None,
            groups: [
                ("default".to_owned(), group(wanted)),
                ("other".to_owned(), group(1)),
            ]
            .into(),
            workers: [("w".to_owned(), worker)].into(),
            loaded: None,
            clients_loaded: Vec::new(),
            unplaced: Vec::new(),
        }
    }

    fn groups(names: &[&str]) -> News {
        News::Groups(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn only_what_a_planner_reads_is_news() {
        let signals = Signals::default();
        let key = ClusterKey::new("n", "c");
        assert_eq!(signals.hear(&key, signal(0)), News::Everything);
        assert_eq!(signals.hear(&key, signal(0)), News::Nothing);
        assert_eq!(signals.hear(&key, signal(8)), groups(&["default"]));
        let mut next = signal(8);
        let worker = next.workers.get_mut("w").unwrap();
        (worker.running, worker.held_bytes) = (7, 8);
        assert_eq!(signals.hear(&key, next.clone()), News::Nothing);
        next.workers.get_mut("w").unwrap().standing = Standing::Empty;
        assert_eq!(signals.hear(&key, next.clone()), groups(&["other"]));
        next.workers.clear();
        assert_eq!(signals.hear(&key, next.clone()), groups(&["other"]));
        next.idle = Some(Duration::ZERO);
        assert_eq!(signals.hear(&key, next), News::Everything);
    }

    #[test]
    fn times_go_on_and_silence_is_no_signal() {
        let signals = Signals::default();
        let key = ClusterKey::new("n", "c");
        signals.hear(&key, signal(1));
        signals.age(&key, Duration::from_secs(3));
        let now = signals.get(&key).unwrap();
        assert!(now.groups["default"].idle >= Duration::from_secs(4));
        assert_eq!(now.workers["w"].idle, Duration::ZERO, "it is busy");
        signals.age(&key, SILENT_AFTER);
        assert!(signals.get(&key).is_none());
        assert_eq!(signals.hear(&key, signal(1)), News::Everything);
        assert!(signals.silence(&key));
        assert!(!signals.silence(&key));
    }
}
