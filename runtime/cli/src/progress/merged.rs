//! The reports of all graphs of a job as one. Pure.
//!
//! A SQL text has a graph for each wave of statements and one for the stages of each statement that
//! is cut. Groups of the same name are one; those of stages carry their statement's key.
//! Invariant: at most [`GROUPS_MAX`] groups are kept of graphs that are over; the oldest are summed.

use std::collections::BTreeMap;

use oxidask_proto::wire;

/// Groups kept of graphs that are over.
const GROUPS_MAX: usize = 256;
/// The name of what is summed.
const EARLIER: &str = "earlier";

/// The last report of each graph.
#[derive(Debug, Default)]
pub(super) struct Merged {
    graphs: BTreeMap<usize, Vec<wire::GroupProgress>>,
    /// Graphs whose groups were too many.
    earlier: Option<wire::GroupProgress>,
}

impl Merged {
    /// Takes the report of one graph and gives that of all. `title` is what the names of the
    /// graph's groups begin with.
    pub(super) fn update(
        &mut self,
        graph: usize,
        title: Option<&str>,
        mut report: wire::Progress,
    ) -> wire::Progress {
        for group in &mut report.groups {
            if let Some(title) = title.filter(|title| !group.name.starts_with(*title)) {
                group.name = format!("{title} {}", group.name);
            }
        }
        if graph == 0 && self.graphs.keys().all(|known| *known == 0) {
            // Almost always the only one.
            self.graphs.insert(graph, report.groups.clone());
            return report;
        }
        self.graphs.insert(graph, report.groups);
        self.sum_earlier(graph);
        report.groups = self.groups();
        report
    }

    /// Tasks of all graphs.
    pub(super) fn tasks(&self) -> u64 {
        let groups = self.graphs.values().flatten().chain(&self.earlier);
        groups.map(|group| group.total).sum()
    }

    fn groups(&self) -> Vec<wire::GroupProgress> {
        let mut merged: Vec<wire::GroupProgress> = Vec::new();
        let mut places = BTreeMap::new();
        for group in self.earlier.iter().chain(self.graphs.values().flatten()) {
            if let Some(place) = places.get(group.name.as_str()) {
                add(&mut merged[*place], group);
            } else {
                places.insert(group.name.as_str(), merged.len());
                merged.push(group.clone());
            }
        }
        merged
    }

    /// Keeps the number of groups bounded; the graph that reports is not over.
    fn sum_earlier(&mut self, reporting: usize) {
        let mut count: usize = self.graphs.values().map(Vec::len).sum();
        while count > GROUPS_MAX {
            let is_over = |groups: &[wire::GroupProgress]| {
                groups
                    .iter()
                    .all(|group| group.done + group.failed >= group.total)
            };
            let oldest = self
                .graphs
                .iter()
                .find(|(graph, groups)| **graph != reporting && is_over(groups));
            let Some(groups) = oldest
                .map(|(graph, _)| *graph)
                .and_then(|g| self.graphs.remove(&g))
            else {
                return;
            };
            count -= groups.len();
            let earlier = self.earlier.get_or_insert_with(|| wire::GroupProgress {
                name: EARLIER.to_owned(),
                ..Default::default()
            });
            for group in &groups {
                add(earlier, group);
            }
        }
    }
}

fn add(to: &mut wire::GroupProgress, group: &wire::GroupProgress) {
    to.total += group.total;
    to.done += group.done;
    to.running += group.running;
    to.failed += group.failed;
    to.bytes = to.bytes.saturating_add(group.bytes);
    to.rows = to.rows.saturating_add(group.rows);
    to.made_bytes = to.made_bytes.saturating_add(group.made_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, total: u64, done: u64) -> wire::Progress {
        let group = wire::GroupProgress {
            name: name.to_owned(),
            total,
            done,
            rows: 10 * done,
            ..Default::default()
        };
        wire::Progress {
            groups: vec![group],
            ..Default::default()
        }
    }

    #[test]
    fn waves_are_one_group_and_stages_have_their_statement() {
        let mut merged = Merged::default();
        merged.update(0, None, report("query", 2, 2));
        merged.update(1, Some("query-1"), report("stage 1", 8, 3));
        merged.update(1, Some("query-1"), report("stage 1", 8, 4));
        let all = merged.update(2, None, report("query", 1, 0));
        let seen: Vec<_> = all
            .groups
            .iter()
            .map(|group| (group.name.as_str(), group.total, group.done, group.rows))
            .collect();
        assert_eq!(seen, [("query", 3, 2, 20), ("query-1 stage 1", 8, 4, 40)]);
        assert_eq!(merged.tasks(), 11);
    }

    #[test]
    fn many_graphs_that_are_over_are_summed() {
        let mut merged = Merged::default();
        let mut last = wire::Progress::default();
        for graph in 0..10_000 {
            let title = format!("query-{graph}");
            last = merged.update(graph, Some(&title), report("stage 1", 1, 1));
        }
        assert!(last.groups.len() <= GROUPS_MAX + 1);
        assert_eq!(last.groups[0].name, EARLIER);
        assert_eq!(
            last.groups.iter().map(|group| group.rows).sum::<u64>(),
            100_000
        );
        assert_eq!(merged.tasks(), 10_000);
    }
}
