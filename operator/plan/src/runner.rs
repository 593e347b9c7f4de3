//! What the pod of a job's runner says about the work.
//!
//! Owns the difference between work that failed and a pod that was lost. A pod that was ended from
//! outside says nothing about the work: it is made again.

use k8s_openapi::api::core::v1::{ContainerState, Pod};
use oxidask_diagnostic::Code;

use crate::build::labels::{RUNNER_ATTEMPT, RUNNER_START, RUNNERS_LOST, annotation};
use crate::build::runner::CONTAINER;
use crate::status::{cut, cut_start};
use crate::{Timestamp, pods};

/// Bytes of the runner's last lines in a condition.
const EXCERPT_BYTES_MAX: usize = 1024;

/// How the program writes an error that has a code.
const ERROR_MARK: &str = "error[";

/// The runner of a job.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) state: State,
    /// What the pod carries; none without a pod.
    pub(crate) count: Option<Count>,
    /// When its program started.
    pub(crate) started: Option<Timestamp>,
    /// When its program ended.
    pub(crate) finished: Option<Timestamp>,
}

/// The number of a pod among the runners of its job, and why it is not the first one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// The number of the pod, from 1.
    pub(crate) start: u32,
    /// The attempt at the work that it makes, from 1.
    pub(crate) attempt: u32,
    /// Pods before it that were lost.
    pub(crate) lost: u32,
}

impl Count {
    /// Of a pod of which only the number is known: those before it were lost.
    pub(crate) fn of_start(start: u32) -> Self {
        Self {
            start,
            attempt: start.min(1),
            lost: start.saturating_sub(1),
        }
    }

    fn of(pod: &Pod) -> Self {
        let number = |key| {
            let text = annotation(pod.metadata.annotations.as_ref(), key)?;
            text.parse::<u32>().ok()
        };
        let plain = Self::of_start(number(RUNNER_START).unwrap_or(1).max(1));
        Self {
            start: plain.start,
            attempt: number(RUNNER_ATTEMPT).unwrap_or(plain.attempt).max(1),
            lost: number(RUNNERS_LOST).unwrap_or(plain.lost),
        }
    }
}

/// The state of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no pod.
    Absent,
    /// The pod waits for a node, an image or a volume.
    Starting,
    /// The program runs.
    Running,
    /// The pod is being deleted.
    Leaving,
    /// The pod was ended from outside; it is still there.
    Lost,
    /// The work is done.
    Succeeded,
    /// The work failed.
    Failed(Failure),
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    has_passed_deadline: bool,
    was_out_of_memory: bool,
    exit_status: Option<i32>,
    log: String,
}

impl Runner {
    /// The runner in this pod.
    pub(crate) fn of(pod: Option<&Pod>, now: Timestamp) -> Self {
        let Some(pod) = pod else {
            return Self {
                state: State::Absent,
                count: None,
                started: None,
                finished: None,
            };
        };
        let none = ContainerState::default();
        let container = pods::container(pod, CONTAINER);
        let container = container
            .and_then(|container| container.state.as_ref())
            .unwrap_or(&none);
        let running = container
            .running
            .as_ref()
            .and_then(|state| state.started_at.as_ref());
        let ended = container.terminated.as_ref();
        let started = running.or_else(|| ended.and_then(|state| state.started_at.as_ref()));
        let finished = ended
            .and_then(|state| state.finished_at.as_ref())
            .map(|time| time.0);
        let is_running = pods::phase(pod) == "Running";
        Self {
            state: state(pod, container),
            count: Some(Count::of(pod)),
            started: started
                .map(|time| time.0)
                .or_else(|| is_running.then_some(now)),
            finished,
        }
    }
}

fn state(pod: &Pod, container: &ContainerState) -> State {
    match pods::phase(pod) {
        "Succeeded" => State::Succeeded,
        // Told to end, the program fails; that is not the work's failure.
        _ if pods::is_terminating(pod) => State::Leaving,
        "Failed" if pods::was_disrupted(pod) => State::Lost,
        "Failed" => State::Failed(failure(pod, container)),
        "Pending" => State::Starting,
        _ => State::Running,
    }
}

fn failure(pod: &Pod, container: &ContainerState) -> Failure {
    let reason = pod
        .status
        .as_ref()
        .and_then(|status| status.reason.as_deref());
    let ended = container.terminated.as_ref();
    let log = ended
        .and_then(|ended| ended.message.as_deref())
        .unwrap_or_default();
    Failure {
        has_passed_deadline: reason == Some("DeadlineExceeded"),
        was_out_of_memory: ended.is_some_and(|end| end.reason.as_deref() == Some("OOMKilled")),
        exit_status: ended.map(|ended| ended.exit_code),
        log: excerpt(log),
    }
}

impl Failure {
    /// Whether kubelet ended it because of its deadline.
    pub(crate) fn has_passed_deadline(&self) -> bool {
        self.has_passed_deadline
    }

    /// The reason and the message of the condition.
    pub(crate) fn explain(&self, deadline_seconds: Option<u64>) -> (String, String) {
        if self.has_passed_deadline {
            let message = match deadline_seconds {
                Some(seconds) => {
                    format!("the job took longer than its deadline of {seconds} seconds")
                }
                None => "the runner took longer than the deadline of its pod".to_owned(),
            };
            return ("DeadlineExceeded".to_owned(), message);
        }
        let mut message = match (self.was_out_of_memory, self.exit_status) {
            (true, _) => "the runner was killed because it passed its memory limit".to_owned(),
            (false, Some(status)) => format!("the runner ended with exit status {status}"),
            (false, None) => "the runner ended without an exit status".to_owned(),
        };
        if !self.log.is_empty() {
            message.push_str(": ");
            message.push_str(&self.log);
        }
        let code = code(&self.log).unwrap_or(Code::RunnerFailed);
        (code.to_string(), message)
    }
}

/// The error that the program ended with, else its last lines.
fn excerpt(log: &str) -> String {
    let log = log.trim();
    let mut starts = log.rmatch_indices(ERROR_MARK).map(|(start, _)| start);
    match starts.find(|start| *start == 0 || log[..*start].ends_with('\n')) {
        Some(start) => cut(&log[start..], EXCERPT_BYTES_MAX),
        None => cut_start(log, EXCERPT_BYTES_MAX),
    }
}

fn code(excerpt: &str) -> Option<Code> {
    let rest = excerpt.strip_prefix(ERROR_MARK)?;
    rest.split(']').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_found_in_the_log() {
        let log = "12 of 40 tasks\nerror[OX221]: no table `a`\n  caused by: x\n\nhint: y\n";
        let excerpt = excerpt(log);
        assert!(excerpt.starts_with("error[OX221]: no table"));
        assert!(excerpt.ends_with("hint: y"));
        assert_eq!(code(&excerpt), Some(Code::SqlPlan));
    }

    #[test]
    fn without_an_error_the_end_of_the_log_is_kept() {
        let log = format!(
            "{}the end, which mentions error[OX221] only",
            "x".repeat(2000)
        );
        let excerpt = excerpt(&log);
        assert!(excerpt.len() <= EXCERPT_BYTES_MAX);
        assert!(excerpt.ends_with("only"));
        assert_eq!(code(&excerpt), None);
    }
}
