//! Watches the memory of the whole worker: its process, its programs, and the control group.
//!
//! Owns the look every [`LOOK_MILLIS`], the figures of the last one, and what the rules want done:
//! it tells the store to make room, the loop to pause, and ends programs and runs. Decides nothing
//! itself.
//!
//! Which figure counts: in a control group that is the worker's own, what is used there. Elsewhere
//! what the process and its programs use against the worker's limit, and besides, if there is a
//! group around several processes, what is used there against its limit; the one that is nearer to
//! its limit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxidask_exec::{MemoryEnd, Programs, RunningProgram};
use oxidask_store::Store;
use tokio::sync::watch;
use tokio::time::sleep;

use super::rules::{Action, Candidate, Reading, Rules};
use super::runs::Runs;
use super::thresholds::{MemoryThresholds, permille_of};
use super::tree::{Measure, Tree};
use crate::cgroup::{Cgroup, CgroupUsage};

/// Time between two looks, and when it is short.
const LOOK_MILLIS: u64 = 100;
const LOOK_MILLIS_TIGHT: u64 = 20;
/// What the process itself needs besides tasks: threads, connections, memory that the allocator
/// has not given back yet. Only a limit that nobody enforces leaves this out of the count.
const OWN_BYTES_FREE: u64 = 128 * 1024 * 1024;
/// A control group whose limit is at most so much above the worker's is the worker's own.
const OWN_GROUP_PERMILLE_MIN: u64 = 900;

/// What the loop needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Strain {
    /// No tasks are to start.
    pub(crate) is_paused: bool,
    /// And waiting will not help.
    pub(crate) is_stuck: bool,
}

/// The figures of the last look.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// This process and its programs.
    pub(crate) resident_bytes: AtomicU64,
    /// Of these, the programs.
    pub(crate) program_bytes: AtomicU64,
    pub(crate) programs: AtomicU64,
    /// What counts, and against what.
    pub(crate) used_bytes: AtomicU64,
    pub(crate) limit_bytes: AtomicU64,
    pub(crate) is_helpless: AtomicBool,
    pub(crate) programs_ended: AtomicU64,
    pub(crate) runs_ended: AtomicU64,
}

/// The watch. Lives as long as the worker.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    limit_bytes: u64,
    thresholds: MemoryThresholds,
    store: Arc<Store>,
    pub(crate) programs: Arc<Programs>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) figures: Figures,
    strain: watch::Sender<Strain>,
}

/// What only the task that looks has.
struct Probe {
    cgroup: Cgroup,
    tree: Tree,
    rules: Rules,
    since: Instant,
    programs: Vec<RunningProgram>,
    candidates: Vec<Candidate>,
    actions: Vec<Action>,
    /// How tight it was at the last look.
    permille: u64,
}

/// The figure that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figure {
    used_bytes: u64,
    limit_bytes: u64,
    is_enforced: bool,
}

impl MemoryWatch {
    pub(crate) fn new(limit_bytes: u64, thresholds: MemoryThresholds, store: Arc<Store>) -> Self {
        let programs = Arc::new(Programs::default());
        let watch = Self {
            limit_bytes,
            thresholds,
            store,
            programs,
            runs: Arc::default(),
            figures: Figures::default(),
            strain: watch::Sender::new(Strain::default()),
        };
        watch
            .figures
            .limit_bytes
            .store(limit_bytes, Ordering::Relaxed);
        watch
    }

    /// Tells when the strain changes.
    pub(crate) fn strain(&self) -> watch::Receiver<Strain> {
        self.strain.subscribe()
    }

    /// The strain at the last look.
    pub(crate) fn strain_now(&self) -> Strain {
        *self.strain.borrow()
    }

    /// Looks until it is dropped. The system's files are below `root`.
    pub(crate) async fn run(self: Arc<Self>, root: Box<Path>) {
        let counter = Cgroup::find(&root);
        self.programs
            .set_out_of_memory_counter(Box::new(move || counter.out_of_memory_count()));
        let mut probe = Probe {
            cgroup: Cgroup::find(&root),
            tree: Tree::new(),
            rules: Rules::new(self.thresholds),
            since: Instant::now(),
            programs: Vec::new(),
            candidates: Vec::new(),
            actions: Vec::new(),
            permille: 0,
        };
        loop {
            self.look(&mut probe);
            let is_tight = self
                .thresholds
                .lowest()
                .is_some_and(|lowest| probe.permille >= lowest);
            let pause = if is_tight {
                LOOK_MILLIS_TIGHT
            } else {
                LOOK_MILLIS
            };
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn look(&self, probe: &mut Probe) {
        let used = self.measure(probe);
        let pressure = self.store.pressure();
        let reading = Reading {
            now_millis: u64::try_from(probe.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            used_bytes: used.used_bytes,
            limit_bytes: used.limit_bytes,
            is_enforced: used.is_enforced,
            programs: &probe.candidates,
            runs: pressure.runs,
            run_bytes: self.runs.taken_bytes(),
            is_spilling: pressure.is_spilling,
        };
        probe.permille = permille_of(used.used_bytes, used.limit_bytes);
        probe.actions.clear();
        probe.rules.step(&reading, &mut probe.actions);
        for action in &probe.actions {
            self.act(*action, used, &probe.programs);
        }
        let strain = Strain {
            is_paused: probe.rules.is_paused(),
            is_stuck: probe.rules.is_stuck(),
        };
        let figures = &self.figures;
        if probe.permille < self.thresholds.terminate {
            figures.is_helpless.store(false, Ordering::Relaxed);
        }
        self.strain.send_if_modified(|before| {
            let has_changed = *before != strain;
            if before.is_paused != strain.is_paused {
                let (used, limit) = (used.used_bytes, used.limit_bytes);
                if strain.is_paused {
                    tracing::warn!(used, limit, "memory is short: no further task starts");
                } else {
                    tracing::info!(used, limit, "there is memory again: tasks start");
                }
            }
            *before = strain;
            has_changed
        });
    }

    fn measure(&self, probe: &mut Probe) -> Figure {
        let used = self.measure_as(probe, Measure::Resident);
        let permille = permille_of(used.used_bytes, used.limit_bytes);
        let is_short = self
            .thresholds
            .lowest()
            .is_some_and(|lowest| permille >= lowest);
        // What programs share is told apart when it matters.
        if is_short && !used.is_enforced && !probe.programs.is_empty() {
            return self.measure_as(probe, Measure::Proportional);
        }
        used
    }

    fn measure_as(&self, probe: &mut Probe, measure: Measure) -> Figure {
        let own = probe.tree.own();
        self.programs.list(&mut probe.programs);
        probe.candidates.clear();
        let exact_from = self.thresholds.lowest().unwrap_or(u64::MAX);
        let mut program_bytes = 0_u64;
        for program in &probe.programs {
            let bytes = probe.tree.program_bytes(program.leader, measure);
            self.programs.measured(program.id, bytes);
            program_bytes = program_bytes.saturating_add(bytes);
            probe.candidates.push(Candidate {
                bytes,
                is_ending: program.is_ending,
            });
        }
        let tree_bytes = own
            .anonymous_bytes
            .saturating_sub(OWN_BYTES_FREE)
            .saturating_add(program_bytes);
        let group = probe.cgroup.usage(exact_from);
        let used = decisive(tree_bytes, self.limit_bytes, group);
        let figures = &self.figures;
        let resident_bytes = own.resident_bytes.saturating_add(program_bytes);
        for (figure, value) in [
            (&figures.resident_bytes, resident_bytes),
            (&figures.program_bytes, program_bytes),
            (&figures.programs, probe.programs.len() as u64),
            (&figures.used_bytes, used.used_bytes),
            (&figures.limit_bytes, used.limit_bytes),
        ] {
            figure.store(value, Ordering::Relaxed);
        }
        used
    }

    fn act(&self, action: Action, used: Figure, programs: &[RunningProgram]) {
        let Figure {
            used_bytes,
            limit_bytes,
            ..
        } = used;
        match action {
            Action::Spill(bytes) => self.store.spill_down(bytes),
            Action::EndProgram(place) => {
                let Some(program) = programs.get(place) else {
                    return;
                };
                self.figures.programs_ended.fetch_add(1, Ordering::Relaxed);
                // What was measured at this look, not what the list said before it.
                let end = MemoryEnd {
                    program_bytes: self.measured_bytes(program),
                    used_bytes,
                    limit_bytes,
                };
                let (graph, key, attempt) = (program.graph, &*program.key, program.attempt);
                tracing::warn!(
                    graph,
                    key,
                    attempt,
                    bytes = end.program_bytes,
                    used = used_bytes,
                    limit = limit_bytes,
                    "memory runs out: the largest program is ended"
                );
                self.programs.end(program.id, end);
            }
            Action::KillProgram(place) => {
                if let Some(program) = programs.get(place) {
                    self.programs.kill(program.id);
                }
            }
            Action::EndRun => self.end_run(used),
            Action::SayStuck => tracing::error!(
                used = used_bytes,
                limit = limit_bytes,
                own = self.figures.resident_bytes.load(Ordering::Relaxed),
                "memory is short and will not come back by itself: no task runs here and nothing \
                 can be moved to the disk; other processes use it, or it was never given back. \
                 What is here runs one task at a time, and no more is taken; raise the limit or \
                 start this worker anew"
            ),
            Action::SayHelpless => {
                self.figures.is_helpless.store(true, Ordering::Relaxed);
                tracing::error!(
                    used = used_bytes,
                    limit = limit_bytes,
                    taken = self.runs.taken_bytes(),
                    "memory runs out, and ending what runs here would not help: the system may end \
                     this worker"
                );
            }
        }
    }

    fn measured_bytes(&self, program: &RunningProgram) -> u64 {
        let mut list = Vec::new();
        self.programs.list(&mut list);
        let found = list.iter().find(|listed| listed.id == program.id);
        found.map_or(program.resident_bytes, |listed| listed.resident_bytes)
    }

    fn end_run(&self, used: Figure) {
        let ended = self.runs.end_largest(used.used_bytes, used.limit_bytes);
        if let Some((name, bytes)) = ended {
            self.figures.runs_ended.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                graph = name.task.graph(),
                key = &*name.key,
                attempt = name.attempt,
                bytes,
                used = used.used_bytes,
                limit = used.limit_bytes,
                "memory runs out: the task that has taken the most is cancelled"
            );
        }
    }
}

/// Which figure counts: see the module.
fn decisive(tree_bytes: u64, limit_bytes: u64, group: Option<CgroupUsage>) -> Figure {
    let tree = Figure {
        used_bytes: tree_bytes,
        limit_bytes,
        is_enforced: false,
    };
    let Some(group) = group else { return tree };
    let enforced = |limit_bytes| Figure {
        used_bytes: group.used_bytes,
        limit_bytes,
        is_enforced: true,
    };
    if permille_of(limit_bytes, group.limit_bytes) >= OWN_GROUP_PERMILLE_MIN {
        return enforced(limit_bytes.min(group.limit_bytes));
    }
    let around = enforced(group.limit_bytes);
    let tightness = |used: Figure| permille_of(used.used_bytes, used.limit_bytes);
    if tightness(around) >= tightness(tree) {
        around
    } else {
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_that_counts() {
        let group = |used_bytes, limit_bytes| {
            Some(CgroupUsage {
                used_bytes,
                limit_bytes,
            })
        };
        let used = |used_bytes, limit_bytes, is_enforced| Figure {
            used_bytes,
            limit_bytes,
            is_enforced,
        };
        assert_eq!(decisive(500, 1_000, None), used(500, 1_000, false));
        // The group is the worker's own: what its processes share is not counted twice.
        assert_eq!(
            decisive(990, 1_000, group(700, 1_000)),
            used(700, 1_000, true)
        );
        assert_eq!(decisive(990, 950, group(700, 1_000)), used(700, 950, true));
        assert_eq!(
            decisive(990, 2_000, group(700, 1_000)),
            used(700, 1_000, true)
        );
        // Several workers in one group.
        assert_eq!(
            decisive(500, 1_000, group(1_000, 4_000)),
            used(500, 1_000, false)
        );
        assert_eq!(
            decisive(500, 1_000, group(3_900, 4_000)),
            used(3_900, 4_000, true)
        );
    }
}
