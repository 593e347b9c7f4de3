//! Progress on a terminal: a row per group of tasks and one for the cluster.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use oxidask_proto::wire;

use super::text::{cluster_line, counted, group_line, name_columns};
use crate::terminal::Terminal;

/// Groups that have a row; the others share one line.
const GROUPS_SHOWN: usize = 10;

/// The rows.
#[derive(Debug)]
pub(crate) struct Bars {
    terminal: Terminal,
    rows: Vec<ProgressBar>,
    /// When a group began, and when it was done.
    times: HashMap<String, (Instant, Option<Duration>)>,
}

impl Bars {
    /// Nothing is shown yet.
    pub(crate) fn new(terminal: &Terminal) -> Self {
        Self {
            terminal: terminal.clone(),
            rows: Vec::new(),
            times: HashMap::new(),
        }
    }

    /// One row with a text.
    pub(crate) fn begin(&mut self, text: &str) {
        self.show(&[text.to_owned()]);
    }

    /// The groups, unfinished ones first when there are too many, and the cluster.
    pub(crate) fn update(&mut self, progress: &wire::Progress, now: Instant) {
        let groups = &progress.groups;
        let mut shown: Vec<&wire::GroupProgress> = groups.iter().collect();
        if shown.len() > GROUPS_SHOWN {
            shown.sort_by_key(|group| (is_over(group), group.running == 0));
            shown.truncate(GROUPS_SHOWN);
        }
        let mut lines: Vec<String> = Vec::new();
        let columns = name_columns(&shown);
        for group in &shown {
            let seconds = self.seconds(group, now);
            lines.push(group_line(group, columns, seconds));
        }
        if groups.len() > shown.len() {
            let more = (groups.len() - shown.len()) as u64;
            lines.push(format!("… and {} more", counted(more, "group")));
        }
        if let Some(cluster) = &progress.cluster {
            lines.push(cluster_line(cluster));
        }
        self.show(&lines);
    }

    /// Takes all rows away.
    pub(crate) fn clear(&mut self) {
        for row in self.rows.drain(..) {
            row.finish_and_clear();
            self.terminal.bars().remove(&row);
        }
    }

    fn seconds(&mut self, group: &wire::GroupProgress, now: Instant) -> f64 {
        if group.done + group.running + group.failed == 0 {
            return 0.0;
        }
        let (began, took) = self.times.entry(group.name.clone()).or_insert((now, None));
        let so_far = now.duration_since(*began);
        if is_over(group) {
            return took.get_or_insert(so_far).as_secs_f64();
        }
        so_far.as_secs_f64()
    }

    fn show(&mut self, lines: &[String]) {
        while self.rows.len() > lines.len() {
            if let Some(row) = self.rows.pop() {
                row.finish_and_clear();
                self.terminal.bars().remove(&row);
            }
        }
        while self.rows.len() < lines.len() {
            let row = ProgressBar::new_spinner();
            // The template is a constant; the default would only look different.
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                row.set_style(style);
            }
            self.rows.push(self.terminal.bars().add(row));
        }
        for (row, line) in self.rows.iter().zip(lines) {
            row.set_message(line.clone());
        }
    }
}

fn is_over(group: &wire::GroupProgress) -> bool {
    group.done + group.failed >= group.total
}
