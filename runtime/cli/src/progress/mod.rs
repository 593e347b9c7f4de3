//! How a run is going, on standard error.
//!
//! Owns the forms of `--progress`. It is told what the scheduler reports and decides what is
//! written when; lines that are not progress go through the terminal.

mod bars;
mod merged;
mod plain;
mod text;

use std::time::Instant;

use oxidask_proto::wire;
use serde_json::json;

use crate::arguments::ProgressForm;
use crate::terminal::Terminal;
use bars::Bars;
use merged::Merged;
use plain::Plain;

pub(crate) use text::{bytes, count, counted, duration};

/// Progress of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    form: Form,
    terminal: Terminal,
    started: Instant,
    workers: u32,
    /// Tasks that were known before anything ran.
    tasks: u64,
    merged: Merged,
}

#[derive(Debug)]
enum Form {
    Bars(Bars),
    Plain(Plain),
    Json(Option<Instant>),
    Silent,
}

impl Progress {
    /// For a run that began at `started`.
    pub(crate) fn new(
        form: ProgressForm,
        terminal: &Terminal,
        started: Instant,
        tasks: usize,
    ) -> Self {
        let tasks = tasks as u64;
        let form = match form {
            ProgressForm::Auto if Terminal::is_interactive() => Form::Bars(Bars::new(terminal)),
            ProgressForm::Auto | ProgressForm::Plain => Form::Plain(Plain::new(started, tasks)),
            ProgressForm::Json => {
                terminal.use_json_lines();
                Form::Json(None)
            }
            ProgressForm::None => Form::Silent,
        };
        Self {
            form,
            terminal: terminal.clone(),
            started,
            workers: 0,
            tasks,
            merged: Merged::default(),
        }
    }

    /// Tells how many workers the cluster is to have.
    pub(crate) fn expecting(mut self, workers: u64) -> Self {
        if let Form::Plain(plain) = &mut self.form {
            plain.expect(workers);
        }
        self
    }

    /// What happens before the first report.
    pub(crate) fn begin(&mut self, text: &str) {
        if let Form::Bars(bars) = &mut self.form {
            bars.begin(text);
        }
    }

    /// The scheduler's report about one of the job's graphs. `title` is what the names of its groups
    /// begin with.
    pub(crate) fn update(
        &mut self,
        graph: usize,
        title: Option<&str>,
        report: wire::Progress,
        now: Instant,
    ) {
        let progress = &self.merged.update(graph, title, report);
        let workers = progress
            .cluster
            .as_ref()
            .map_or(0, |cluster| cluster.workers);
        self.workers = self.workers.max(workers);
        match &mut self.form {
            Form::Bars(bars) => bars.update(progress, now),
            Form::Plain(plain) => {
                if let Some(line) = plain.line(progress, now) {
                    self.terminal.line(&line);
                }
            }
            Form::Json(written) => {
                if written.is_none_or(|at| now.duration_since(at) >= plain::PERIOD) {
                    *written = Some(now);
                    self.terminal.line(&json_line(progress));
                }
            }
            Form::Silent => {}
        }
    }

    /// Takes the bars away.
    pub(crate) fn clear(&mut self) {
        if let Form::Bars(bars) = &mut self.form {
            bars.clear();
        }
    }

    /// The last line of a program that succeeded.
    pub(crate) fn program_done(&mut self, workers: u64) {
        self.clear();
        let seconds = self.started.elapsed().as_secs_f64();
        match self.form {
            Form::Bars(_) | Form::Plain(_) => self.terminal.line(&format!(
                "done: the program in {} on {}",
                duration(seconds),
                counted(workers, "worker")
            )),
            Form::Json(_) => {
                let line = json!({"type": "done", "seconds": seconds, "workers": workers});
                self.terminal.line(&line.to_string());
            }
            Form::Silent => {}
        }
    }

    /// The last line of a run that succeeded.
    pub(crate) fn done(&mut self, workers: u32) {
        self.clear();
        let tasks = self.tasks.max(self.merged.tasks());
        let seconds = self.started.elapsed().as_secs_f64();
        let workers = self.workers.max(workers);
        match self.form {
            Form::Bars(_) | Form::Plain(_) => self.terminal.line(&format!(
                "done: {} in {} on {}",
                counted(tasks, "task"),
                duration(seconds),
                counted(u64::from(workers), "worker")
            )),
            Form::Json(_) => {
                let line = json!({
                    "type": "done", "tasks": tasks, "seconds": seconds, "workers": workers,
                });
                self.terminal.line(&line.to_string());
            }
            Form::Silent => {}
        }
    }
}

fn json_line(progress: &wire::Progress) -> String {
    let groups: Vec<_> = progress
        .groups
        .iter()
        .map(|group| {
            json!({
                "name": group.name, "total": group.total, "done": group.done,
                "running": group.running, "failed": group.failed, "bytes": group.bytes,
                "rows": group.rows, "madeBytes": group.made_bytes,
            })
        })
        .collect();
    let cluster = progress.cluster.as_ref().map(|cluster| {
        json!({
            "workers": cluster.workers, "slots": cluster.slots, "running": cluster.running,
            "heldBytes": cluster.held_bytes, "memoryBytes": cluster.memory_bytes,
            "parked": cluster.parked, "parkedReason": cluster.parked_reason,
        })
    });
    json!({"type": "progress", "groups": groups, "cluster": cluster}).to_string()
}
