//! Who is asked to go, and what is said of it.
//!
//! Owns the answer to requests to retire workers, by name or by number of a group, and what a worker
//! hears of its own retirement. Whether it can go and what is copied where is the core's business.

use std::collections::{BTreeSet, HashMap};

use oxidask_core::{Event, WorkerId, WorkerStanding, WorkerSummary};
use oxidask_diagnostic::{Code, Diagnostic, nearest};
use oxidask_proto::wire;

use crate::main_loop::MainLoop;

/// Names in one request.
const NAMES_MAX: usize = 10_000;

/// Why a worker that is not heard cannot go.
const NOT_HEARD: &str = "nobody hears of it at the moment";

/// Those of a group that can go most cheaply: idle ones first, then those that hold the least. None
/// that goes already or is not heard.
pub(crate) fn choose(workers: &[WorkerSummary], group: &str, count: usize) -> Vec<WorkerId> {
    let may_go = |worker: &&WorkerSummary| {
        let stays = matches!(
            worker.standing,
            WorkerStanding::Active | WorkerStanding::Paused
        );
        worker.group == group && stays
    };
    let mut able: Vec<&WorkerSummary> = workers.iter().filter(may_go).collect();
    able.sort_unstable_by_key(|worker| {
        let tasks = worker.running + worker.queued;
        (tasks > 0, worker.held_bytes, tasks, worker.worker)
    });
    able.iter()
        .take(count)
        .map(|worker| worker.worker)
        .collect()
}

impl MainLoop {
    /// Answers a request to retire workers, or to let them stay.
    pub(crate) fn retire(
        &mut self,
        request: &wire::RetireRequest,
    ) -> Result<wire::RetireReply, Diagnostic> {
        check(request)?;
        let mut refused = Vec::new();
        let all = self.core.workers();
        let workers = if request.workers.is_empty() {
            of_group(&all, request, &mut refused)
        } else {
            by_name(&all, &request.workers, &mut refused)
        };
        let workers = self.without_unable(workers, request, &mut refused);
        if request.is_cancelled {
            self.keep(&workers);
        } else {
            self.refusals.clear();
            self.send_away(&workers, request);
        }
        let unable = std::mem::take(&mut self.refusals);
        let mut accepted = Vec::new();
        for worker in workers {
            let name = self.name(worker);
            match unable.iter().find(|(other, _)| *other == worker) {
                Some((_, reason)) => refused.push(refusal(&name, reason)),
                None => accepted.push(name),
            }
        }
        Ok(wire::RetireReply { accepted, refused })
    }

    /// A worker that cannot be told, or that does not ask us whether it may go.
    fn without_unable(
        &self,
        mut workers: Vec<WorkerId>,
        request: &wire::RetireRequest,
        refused: &mut Vec<wire::RetireRefused>,
    ) -> Vec<WorkerId> {
        workers.retain(|worker| {
            let reason = match self.workers.get(worker) {
                Some(link) if request.is_cancelled && link.leaves_by.is_some() => {
                    Some("it was told to end by whoever started it")
                }
                _ if !request.is_cancelled && self.suspects.contains(worker) => Some(NOT_HEARD),
                Some(_) => None,
                None => Some(NOT_HEARD),
            };
            if let Some(reason) = reason {
                refused.push(refusal(&self.name(*worker), reason));
            }
            reason.is_none()
        });
        workers
    }

    fn send_away(&mut self, workers: &[WorkerId], request: &wire::RetireRequest) {
        let deadline_micros = match request.deadline_ms {
            0 => u64::MAX,
            milliseconds => milliseconds.saturating_mul(1_000),
        };
        let mut empty = Vec::new();
        for worker in workers {
            if let Some(link) = self.workers.get_mut(worker) {
                link.ends |= request.ends;
                if link.is_empty && link.ends {
                    empty.push(*worker);
                }
            }
        }
        let workers = workers.to_vec();
        self.take_event(Event::WorkersRetiring {
            workers,
            deadline_micros,
        });
        for worker in empty {
            self.tell_worker(worker, 1, |batch| batch.is_empty = true);
        }
        // What has no room elsewhere shows when the first copies are planned.
        self.place();
    }

    fn keep(&mut self, workers: &[WorkerId]) {
        for worker in workers {
            if let Some(link) = self.workers.get_mut(worker) {
                (link.is_empty, link.ends) = (false, false);
            }
        }
        let workers = workers.to_vec();
        self.take_event(Event::RetirementCancelled { workers });
    }

    /// A worker asks to be drained because it must end.
    pub(crate) fn leaves(&mut self, worker: WorkerId, deadline_micros: u64) {
        tracing::info!(worker = self.name(worker), deadline_micros, "worker leaves");
        let leaves_by = Some(self.now().plus_micros(deadline_micros));
        if let Some(link) = self.workers.get_mut(&worker) {
            (link.ends, link.leaves_by) = (true, leaves_by);
        }
        self.leave(worker);
        if self.workers.get(&worker).is_some_and(|link| link.is_empty) {
            self.tell_worker(worker, 1, |batch| batch.is_empty = true);
        }
    }

    fn leave(&mut self, worker: WorkerId) {
        let now = self.now();
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let Some(leaves_by) = link.leaves_by else {
            return;
        };
        link.is_leaving_refused = false;
        let workers = vec![worker];
        self.take_event(Event::WorkersRetiring {
            workers,
            deadline_micros: leaves_by.micros_since(now),
        });
    }

    /// Who leaves and could not be drained tries again when a worker has joined.
    pub(crate) fn leave_again(&mut self) {
        if !std::mem::take(&mut self.has_newcomer) {
            return;
        }
        let again = self.workers.iter();
        let again =
            again.filter(|(id, link)| link.is_leaving_refused && !self.suspects.contains(id));
        let again: Vec<WorkerId> = again.map(|(worker, _)| *worker).collect();
        for worker in again {
            self.leave(worker);
        }
    }

    /// A worker is drained.
    pub(crate) fn emptied(&mut self, worker: WorkerId) {
        tracing::info!(worker = self.name(worker), "worker is drained");
        self.metrics.fleet.retired.inc();
        if let Some(link) = self.workers.get_mut(&worker) {
            link.is_empty = true;
            if link.ends {
                self.tell_worker(worker, 1, |batch| batch.is_empty = true);
            }
        }
    }

    /// A worker cannot be drained.
    pub(crate) fn retirement_refused(&mut self, worker: WorkerId, reason: String) {
        tracing::warn!(
            worker = self.name(worker),
            reason,
            "worker cannot be drained"
        );
        self.metrics.fleet.retire_refused.inc();
        if let Some(link) = self.workers.get_mut(&worker) {
            link.is_empty = false;
            if link.leaves_by.is_some() {
                link.is_leaving_refused = true;
                let text = reason.clone();
                self.tell_worker(worker, text.len(), |batch| batch.leaving_refused = text);
            } else {
                link.ends = false;
            }
        }
        self.refusals.push((worker, reason));
    }

    pub(crate) fn name(&self, worker: WorkerId) -> String {
        let link = self.workers.get(&worker);
        link.map_or_else(|| worker.to_string(), |link| link.hello.name.clone())
    }
}

fn check(request: &wire::RetireRequest) -> Result<(), Diagnostic> {
    if request.workers.len() > NAMES_MAX {
        let message = format!(
            "`{}` workers are named at once, more than {NAMES_MAX}",
            request.workers.len()
        );
        return Err(Diagnostic::new(Code::LimitPassed, message));
    }
    let is_by_count = !request.group.is_empty() && (request.count > 0 || request.is_cancelled);
    if request.workers.is_empty() && !is_by_count {
        let message = "no worker is named, nor a group with the number of workers that are to go";
        return Err(Diagnostic::new(Code::ProtocolMismatch, message)
            .with_hint("name the workers, or a group and how many of it are to go"));
    }
    Ok(())
}

/// A number of a group; or all of it that go, if they are to stay.
fn of_group(
    all: &[WorkerSummary],
    request: &wire::RetireRequest,
    refused: &mut Vec<wire::RetireRefused>,
) -> Vec<WorkerId> {
    let group = &request.group;
    if request.is_cancelled {
        let of_it = all.iter().filter(|worker| worker.group == *group);
        return of_it.map(|worker| worker.worker).collect();
    }
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    let chosen = choose(all, group, count);
    if chosen.len() < count {
        let reason = match chosen.len() {
            0 => format!("no worker of group `{group}` can go"),
            1 => format!("only 1 worker of group `{group}` can go"),
            able => format!("only {able} workers of group `{group}` can go"),
        };
        let reason = match nearest(group, all.iter().map(|worker| worker.group.as_str())) {
            Some(other) if !all.iter().any(|worker| worker.group == *group) => {
                format!("{reason}; did you mean group `{other}`?")
            }
            _ => reason,
        };
        refused.push(refusal("", &reason));
    }
    chosen
}

fn by_name(
    all: &[WorkerSummary],
    names: &[String],
    refused: &mut Vec<wire::RetireRefused>,
) -> Vec<WorkerId> {
    let by_name: HashMap<&str, WorkerId> = all
        .iter()
        .map(|worker| (worker.name.as_str(), worker.worker))
        .collect();
    let mut found = BTreeSet::new();
    for name in names {
        if let Some(worker) = by_name.get(name.as_str()) {
            found.insert(*worker);
            continue;
        }
        let known = all.iter().map(|worker| worker.name.as_str());
        let reason = match nearest(name, known) {
            Some(other) => format!("no worker has this name; did you mean `{other}`?"),
            None => "no worker has this name".to_owned(),
        };
        refused.push(refusal(name, &reason));
    }
    found.into_iter().collect()
}

fn refusal(worker: &str, reason: &str) -> wire::RetireRefused {
    wire::RetireRefused {
        worker: worker.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u32, tasks: u32, held_bytes: u64) -> WorkerSummary {
        WorkerSummary {
            worker: WorkerId(number),
            name: format!("w-{number}"),
            group: "default".to_owned(),
            slots: 1,
            running: tasks.min(1),
            queued: tasks.saturating_sub(1),
            held_bytes,
            memory_bytes: 1 << 30,
            standing: WorkerStanding::Active,
            idle_since: None,
        }
    }

    fn chosen(workers: &[WorkerSummary], count: usize) -> Vec<u32> {
        let chosen = choose(workers, "default", count);
        chosen.into_iter().map(|worker| worker.0).collect()
    }

    #[test]
    fn idle_workers_go_first_then_those_that_hold_the_least() {
        let workers = [
            worker(1, 1, 0),
            worker(2, 0, 500),
            worker(3, 2, 100),
            worker(4, 0, 20),
            worker(5, 1, 100),
        ];
        assert_eq!(chosen(&workers, 9), [4, 2, 1, 5, 3]);
        assert_eq!(chosen(&workers, 2), [4, 2]);
        assert_eq!(chosen(&workers, 0), [0; 0]);
    }

    #[test]
    fn others_of_the_group_only_and_none_that_goes_or_is_not_heard() {
        let with = |number, standing| WorkerSummary {
            standing,
            ..worker(number, 0, 0)
        };
        let workers = [
            with(1, WorkerStanding::Suspect),
            with(2, WorkerStanding::Retiring),
            with(3, WorkerStanding::Paused),
            WorkerSummary {
                group: "other".to_owned(),
                ..worker(4, 0, 0)
            },
            worker(5, 0, 9),
        ];
        assert_eq!(chosen(&workers, 9), [3, 5]);
    }

    #[test]
    fn names_that_nobody_has_are_refused_with_the_nearest_one() {
        let workers = [worker(1, 0, 0), worker(2, 0, 0)];
        let mut refused = Vec::new();
        let names = ["w-2", "W_1", "nobody", "w-2"].map(str::to_owned);
        assert_eq!(by_name(&workers, &names, &mut refused), [WorkerId(2)]);
        let said: Vec<_> = refused.iter().map(|r| r.reason.as_str()).collect();
        assert!(said[0].ends_with("did you mean `w-1`?"), "{said:?}");
        assert_eq!(said[1], "no worker has this name");
    }
}
