//! Work that no worker of a cluster can do, because there is none yet or none that has what it asks
//! for.
//!
//! Owns which group it is for, and how many workers of that group it takes. The scheduler cannot know
//! that: it has never heard of a group without workers. Invariant: each piece of work is for one group.

use std::time::Duration;

use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup};
use oxidask_operator_api::{ClusterSpec, Worker};

use crate::scaling::Wanted;
use crate::signal::{Signal, UnplacedWork};
use crate::{build, names};

/// Seconds of work that each worker should have at most, unless the group says otherwise.
const TARGET_SECONDS_DEFAULT: u32 = 5;

/// What the group is wanted for: by the scheduler's own count, and for work that waits for a first
/// worker. `counts` says which other groups of the cluster could take such work as well: the first one
/// that fits does.
pub(crate) fn wanted(
    signal: &Signal,
    cluster: Option<&DaskCluster>,
    group: &DaskWorkerGroup,
    counts: impl Fn(&Worker) -> bool,
) -> Wanted {
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let short = names::short_group(&group.spec.cluster, name);
    let mut wanted = signal
        .groups
        .get(short)
        .map_or_else(Wanted::default, |it| Wanted {
            workers: it.workers_wanted,
            reason: it.reason.clone(),
        });
    if signal.unplaced.is_empty() {
        return wanted;
    }
    let earlier: Vec<(String, Worker)> = cluster
        .map(|cluster| groups(&cluster.spec))
        .unwrap_or_default()
        .into_iter()
        .take_while(|(other, _)| other != short)
        .filter(|(_, worker)| counts(worker))
        .collect();
    let mut tasks = 0_u64;
    let mut workers = 0_u64;
    for work in &signal.unplaced {
        let is_ours = fits(work, short, &group.spec.worker)
            && !earlier
                .iter()
                .any(|(name, worker)| fits(work, name, worker));
        if is_ours {
            tasks = tasks.saturating_add(work.tasks);
            workers = workers.saturating_add(workers_for(work, &group.spec.worker));
        }
    }
    if workers > wanted.workers {
        wanted.workers = workers;
        wanted.reason = format!("{tasks} tasks wait for a first worker that can do them");
    }
    wanted
}

/// The groups of the manifest by their short names.
fn groups(spec: &ClusterSpec) -> Vec<(String, Worker)> {
    let default = (names::DEFAULT_GROUP.to_owned(), spec.worker.clone());
    let more = spec.worker_groups.iter();
    let more = more.map(|group| (group.name.clone(), group.to_worker()));
    std::iter::once(default).chain(more).collect()
}

fn fits(work: &UnplacedWork, group: &str, worker: &Worker) -> bool {
    let (slots, offers) = build::worker::offers(worker);
    let has_all = work.resources.iter().all(|(name, amount)| {
        let offered = offers.get(name).copied().unwrap_or_default();
        offered >= *amount
    });
    let is_named = work.workers.is_empty() || work.workers.iter().any(|name| name == group);
    has_all && is_named && slots >= work.slots
}

/// At least one, and never more than there are tasks.
fn workers_for(work: &UnplacedWork, worker: &Worker) -> u64 {
    let target = worker.autoscale.and_then(|it| it.target_seconds);
    let target = target.unwrap_or(TARGET_SECONDS_DEFAULT).max(1);
    let (slots, _) = build::worker::offers(worker);
    let each = Duration::from_secs(u64::from(target) * u64::from(slots.max(1)));
    let wanted = work.waiting.as_micros().div_ceil(each.as_micros());
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    wanted.max(1).min(work.tasks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "these are tests")]

    use super::*;
    use crate::Timestamp;
    use oxidask_operator_api::kubernetes::WorkerGroupSpec;

    fn cluster() -> DaskCluster {
        let spec = serde_json::json!({
            "worker": {"threads": 2, "autoscale": {"minimum": 0, "maximum": 9}},
            "workerGroups": [{
                "name": "special", "threads": 2, "taskResources": {"licence": 1},
                "autoscale": {"minimum": 0, "maximum": 9},
            }],
        });
        DaskCluster::new("c", serde_json::from_value(spec).unwrap())
    }

    fn group(name: &str, worker: Worker) -> DaskWorkerGroup {
        let spec = WorkerGroupSpec {
            cluster: "c".to_owned(),
            worker,
        };
        DaskWorkerGroup::new(&format!("c-{name}"), spec)
    }

    fn workers(work: UnplacedWork) -> Vec<u64> {
        let cluster = cluster();
        let mut signal = Signal::silent(Timestamp::UNIX_EPOCH);
        signal.unplaced.push(work);
        let counts = |worker: &Worker| worker.autoscale.is_some();
        groups(&cluster.spec)
            .into_iter()
            .map(|(name, worker)| {
                wanted(&signal, Some(&cluster), &group(&name, worker), counts).workers
            })
            .collect()
    }

    fn work(tasks: u64, seconds: u64) -> UnplacedWork {
        UnplacedWork {
            slots: 1,
            tasks,
            waiting: Duration::from_secs(seconds),
            ..UnplacedWork::default()
        }
    }

    #[test]
    fn the_first_group_that_fits_grows_from_nothing() {
        assert_eq!(workers(work(400, 80)), [8, 0]);
        assert_eq!(workers(work(3, 80)), [3, 0]);
        assert_eq!(workers(work(3, 0)), [1, 0]);
        assert_eq!(
            workers(UnplacedWork {
                slots: 3,
                ..work(3, 0)
            }),
            [0, 0]
        );
    }

    #[test]
    fn resources_and_names_lead_to_their_group() {
        let resources = [("licence".to_owned(), 1)].into();
        assert_eq!(
            workers(UnplacedWork {
                resources,
                ..work(3, 0)
            }),
            [0, 1]
        );
        let workers_named = vec!["special".to_owned()];
        assert_eq!(
            workers(UnplacedWork {
                workers: workers_named,
                ..work(3, 0)
            }),
            [0, 1]
        );
    }
}
