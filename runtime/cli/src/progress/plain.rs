//! Progress as lines: at most one each two seconds, and only when something changed. Pure.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use oxidask_proto::wire;

use super::text::{cluster_line, count, counted, made};

/// Least time between two lines.
pub(crate) const PERIOD: Duration = Duration::from_secs(2);
/// Groups named in a line.
const GROUPS_NAMED: usize = 3;

/// What was said last.
#[derive(Debug)]
pub(crate) struct Plain {
    tasks: u64,
    /// Workers that the cluster is to have, as far as that is known.
    workers_expected: u64,
    said_at: Instant,
    said: (u64, u64, u32, u64),
}

impl Plain {
    /// Says nothing in the first two seconds: a short run needs only its last line.
    pub(crate) fn new(started: Instant, tasks: u64) -> Self {
        Self {
            tasks,
            workers_expected: 0,
            said_at: started,
            said: (0, 0, 0, 0),
        }
    }

    /// How many workers the cluster is to have.
    pub(crate) fn expect(&mut self, workers: u64) {
        self.workers_expected = workers;
    }

    /// The line that is due, if any.
    pub(crate) fn line(&mut self, progress: &wire::Progress, now: Instant) -> Option<String> {
        let done: u64 = progress.groups.iter().map(|group| group.done).sum();
        // Of a large graph the scheduler knows only what has been sent.
        let known: u64 = progress.groups.iter().map(|group| group.total).sum();
        let total = known.max(self.tasks);
        let cluster = progress.cluster.as_ref();
        let (workers, parked) = cluster.map_or((0, 0), |cluster| (cluster.workers, cluster.parked));
        let state = (done, total, workers, parked);
        if now.duration_since(self.said_at) < PERIOD || state == self.said {
            return None;
        }
        self.said_at = now;
        self.said = state;
        if workers == 0 {
            let expected = match self.workers_expected {
                0 => String::new(),
                workers => format!(": 0 of {}", count(workers)),
            };
            let (done, tasks) = (count(done), counted(total, "task"));
            return Some(format!(
                "waiting for workers{expected}; {done} of {tasks} done"
            ));
        }
        let mut line = format!("{} of {} done", count(done), counted(total, "task"));
        let busy = progress.groups.iter().filter(|group| group.running > 0);
        let named: Vec<String> = busy
            .take(GROUPS_NAMED)
            .map(|group| {
                let (done, total) = (count(group.done), count(group.total));
                match made(group) {
                    Some(made) => format!("{} {done}/{total}: {made}", group.name),
                    None => format!("{} {done}/{total}", group.name),
                }
            })
            .collect();
        if !named.is_empty() {
            let _ = write!(line, " ({})", named.join(", "));
        }
        if let Some(cluster) = &progress.cluster {
            let _ = write!(line, "; {}", cluster_line(cluster));
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(done: u64) -> wire::Progress {
        let group = wire::GroupProgress {
            name: "read".to_owned(),
            total: 1_000,
            done,
            running: 2,
            ..Default::default()
        };
        let cluster = wire::ClusterProgress {
            workers: 2,
            slots: 2,
            running: 2,
            ..Default::default()
        };
        wire::Progress {
            groups: vec![group],
            cluster: Some(cluster),
            ..Default::default()
        }
    }

    #[test]
    fn a_line_each_period_and_only_when_something_changed() {
        let start = Instant::now();
        let mut plain = Plain::new(start, 1_000);
        assert_eq!(plain.line(&report(1), start), None);
        let line = plain.line(&report(10), start + PERIOD).unwrap();
        assert_eq!(
            line,
            "10 of 1,000 tasks done (read 10/1,000); 2 workers, 2 of 2 slots busy, 0 B of 0 B held"
        );
        assert_eq!(plain.line(&report(20), start + PERIOD), None);
        assert_eq!(plain.line(&report(10), start + 3 * PERIOD), None);
        assert!(plain.line(&report(11), start + 3 * PERIOD).is_some());
    }

    #[test]
    fn a_cluster_without_workers_is_waited_for() {
        let start = Instant::now();
        let mut plain = Plain::new(start, 24);
        let lonely = wire::Progress {
            cluster: Some(wire::ClusterProgress::default()),
            ..Default::default()
        };
        plain.expect(2);
        assert_eq!(
            plain.line(&lonely, start + PERIOD).unwrap(),
            "waiting for workers: 0 of 2; 0 of 24 tasks done"
        );
        assert_eq!(plain.line(&lonely, start + 2 * PERIOD), None);
        let line = plain.line(&report(1), start + 2 * PERIOD).unwrap();
        assert!(line.contains("2 workers"), "{line}");
    }
}
