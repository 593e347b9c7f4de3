//! What is done when the memory of a whole worker becomes short. Pure: the caller brings the figures
//! and the time.
//!
//! Above the first share results go to the disk; above the second no tasks start; above the third
//! programs, and then tasks, are ended one by one, with a new look in between, before the system
//! ends the whole worker.
//!
//! Invariants: one thing is ended at a time; nothing is ended below the third share, or if it could
//! not help.

use super::thresholds::{MemoryThresholds, permille_of, share_of};

/// Results go to the disk until this share is left.
const SPILL_TARGET_PERMILLE: u64 = 600;
/// Memory that was given back is seen late: the allocator keeps it for a second.
const SETTLE_MILLIS: u64 = 1_500;
/// Without a share at which spilling begins, tasks start again so far below the one at which they
/// pause.
const RESUME_BELOW_PERMILLE: u64 = 100;
/// How long a program gets to end by itself. Whoever grows quickly does not get that long.
const PROGRAM_END_MILLIS: u64 = 300;
/// Pause after something has ended, before the next one is thought of.
const AFTER_END_MILLIS: u64 = 100;
/// How long it must be too much before tasks of the worker itself are cancelled: what they gave
/// back may be on its way.
const RUN_PATIENCE_MILLIS: u64 = 300;
/// A program that uses less is not worth ending.
const PROGRAM_PERMILLE_MIN: u64 = 10;
/// A pause in which nothing could have changed for so long will not end by itself.
const STUCK_MILLIS: u64 = 5_000;
/// That much less counts as a change.
const CHANGE_PERMILLE: u64 = 10;
/// How often the same trouble is told.
const SAY_AGAIN_MILLIS: u64 = 60_000;

/// A program that could be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) bytes: u64,
    /// It has been asked to end.
    pub(crate) is_ending: bool,
}

/// What there is to know at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) now_millis: u64,
    pub(crate) used_bytes: u64,
    pub(crate) limit_bytes: u64,
    /// Whether the system ends processes at the limit.
    pub(crate) is_enforced: bool,
    pub(crate) programs: &'a [Candidate],
    /// Tasks that run.
    pub(crate) runs: u64,
    /// Memory that they have taken from the account.
    pub(crate) run_bytes: u64,
    /// Whether results are on their way to the disk.
    pub(crate) is_spilling: bool,
}

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have results go to the disk until that much less is in memory.
    Spill(u64),
    /// Ask the program at this place of the list to end.
    EndProgram(usize),
    /// Do not wait for it any longer.
    KillProgram(usize),
    /// Cancel the run that has taken the most.
    EndRun,
    /// Say that the pause will not end by itself.
    SayStuck,
    /// Say that nothing that could be ended here would help.
    SayHelpless,
}

/// What is remembered between two looks.
#[derive(Debug)]
pub(crate) struct Rules {
    thresholds: MemoryThresholds,
    is_paused: bool,
    /// Since when nothing could have changed, and what was used then.
    unchanged: Option<(u64, u64)>,
    is_stuck: bool,
    spill_told: Option<u64>,
    too_much_since: Option<u64>,
    /// When a program was asked to end.
    ending_since: Option<u64>,
    /// When something had ended, or was told to.
    ended_at: Option<u64>,
    said_stuck: Option<u64>,
    said_helpless: Option<u64>,
}

impl Rules {
    pub(crate) fn new(thresholds: MemoryThresholds) -> Self {
        Self {
            thresholds,
            is_paused: false,
            unchanged: None,
            is_stuck: false,
            spill_told: None,
            too_much_since: None,
            ending_since: None,
            ended_at: None,
            said_stuck: None,
            said_helpless: None,
        }
    }

    /// Whether no tasks are to start.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether the pause will not end by itself.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Decides what is to be done now.
    pub(crate) fn step(&mut self, reading: &Reading<'_>, actions: &mut Vec<Action>) {
        let permille = permille_of(reading.used_bytes, reading.limit_bytes);
        self.spill(reading, permille, actions);
        self.pause(reading, permille, actions);
        self.terminate(reading, permille, actions);
    }

    fn spill(&mut self, reading: &Reading<'_>, permille: u64, actions: &mut Vec<Action>) {
        let threshold = self.thresholds.spill;
        let now = reading.now_millis;
        if threshold == 0
            || permille < threshold
            || !has_passed(self.spill_told, now, SETTLE_MILLIS)
        {
            return;
        }
        let target = share_of(reading.limit_bytes, SPILL_TARGET_PERMILLE.min(threshold));
        self.spill_told = Some(now);
        actions.push(Action::Spill(reading.used_bytes.saturating_sub(target)));
    }

    fn pause(&mut self, reading: &Reading<'_>, permille: u64, actions: &mut Vec<Action>) {
        let MemoryThresholds { spill, pause, .. } = self.thresholds;
        let resume = match spill {
            0 => pause.saturating_sub(RESUME_BELOW_PERMILLE),
            spill => spill.min(pause),
        };
        if pause > 0 && permille >= pause {
            self.is_paused = true;
        } else if permille < resume || pause == 0 {
            self.is_paused = false;
        }
        if !self.is_paused {
            self.unchanged = None;
            self.is_stuck = false;
            return;
        }
        let now = reading.now_millis;
        let may_change = reading.runs > 0 || !reading.programs.is_empty() || reading.is_spilling;
        let change = share_of(reading.limit_bytes, CHANGE_PERMILLE);
        match self.unchanged {
            _ if may_change => self.unchanged = None,
            Some((since, used)) if reading.used_bytes.saturating_add(change) > used => {
                self.is_stuck |= now.saturating_sub(since) >= STUCK_MILLIS;
            }
            _ => self.unchanged = Some((now, reading.used_bytes)),
        }
        if self.is_stuck && has_passed(self.said_stuck, now, SAY_AGAIN_MILLIS) {
            self.said_stuck = Some(now);
            actions.push(Action::SayStuck);
        }
    }

    fn terminate(&mut self, reading: &Reading<'_>, permille: u64, actions: &mut Vec<Action>) {
        let threshold = self.thresholds.terminate;
        let now = reading.now_millis;
        let ending = reading
            .programs
            .iter()
            .position(|program| program.is_ending);
        if ending.is_none() && self.ending_since.take().is_some() {
            self.ended_at = Some(now);
        }
        if threshold == 0 || permille < threshold {
            self.too_much_since = None;
            return;
        }
        let since = *self.too_much_since.get_or_insert(now);
        if let Some(place) = ending {
            let asked = *self.ending_since.get_or_insert(now);
            let is_urgent = permille >= u64::midpoint(threshold, 1_000).max(threshold + 1);
            if is_urgent || now.saturating_sub(asked) >= PROGRAM_END_MILLIS {
                actions.push(Action::KillProgram(place));
            }
            return;
        }
        if !has_passed(self.ended_at, now, AFTER_END_MILLIS) {
            return;
        }
        if let Some(place) = largest(reading) {
            self.ending_since = Some(now);
            actions.push(Action::EndProgram(place));
            return;
        }
        self.end_run(reading, since, actions);
    }

    /// Nobody ends this worker at a limit that is only its own: then its tasks go on.
    fn end_run(&mut self, reading: &Reading<'_>, since: u64, actions: &mut Vec<Action>) {
        let now = reading.now_millis;
        if !reading.is_enforced || now.saturating_sub(since) < RUN_PATIENCE_MILLIS {
            return;
        }
        let allowed = share_of(reading.limit_bytes, self.thresholds.terminate);
        let excess = reading.used_bytes.saturating_sub(allowed).max(1);
        if reading.run_bytes >= excess {
            if has_passed(self.ended_at, now, SETTLE_MILLIS) {
                self.ended_at = Some(now);
                actions.push(Action::EndRun);
            }
        } else if has_passed(self.said_helpless, now, SAY_AGAIN_MILLIS) {
            self.said_helpless = Some(now);
            actions.push(Action::SayHelpless);
        }
    }
}

/// The program to be ended first; of several, the youngest.
fn largest(reading: &Reading<'_>) -> Option<usize> {
    let least = share_of(reading.limit_bytes, PROGRAM_PERMILLE_MIN);
    let worth = reading.programs.iter().enumerate();
    let worth = worth.filter(|(_, program)| program.bytes >= least.max(1));
    let largest = worth.max_by_key(|(place, program)| (program.bytes, *place));
    largest.map(|(place, _)| place)
}

fn has_passed(since: Option<u64>, now: u64, millis: u64) -> bool {
    since.is_none_or(|since| now.saturating_sub(since) >= millis)
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
