//! Why a task is as it is, in lines for people.
//!
//! Asks the core for its facts and puts them in order, the most important first. Looks only.

use oxidask_core::{Explanation, FailureFacts, PlaceFacts, TaskState, WaitFacts};
use oxidask_proto::wire;

use crate::main_loop::MainLoop;

/// Graphs whose tasks are explained in one answer: a key may stand in many.
const TASKS_MAX: usize = 16;

impl MainLoop {
    /// The tasks with this key, of the newest graphs first.
    pub(crate) fn explain(&self, request: &wire::ExplainRequest) -> wire::ExplainReply {
        let mut tasks = Vec::new();
        for graph in self.core.graphs().into_iter().rev() {
            if !request.graph.is_empty() && *graph.name != *request.graph {
                continue;
            }
            let found = self.core.find(graph.graph, &request.key);
            if let Some(explanation) = found.and_then(|task| self.core.explain(task)) {
                tasks.push(told(&graph.name, explanation));
                if tasks.len() == TASKS_MAX {
                    break;
                }
            }
        }
        wire::ExplainReply { tasks }
    }
}

fn told(graph: &str, explanation: Explanation) -> wire::TaskExplanation {
    let lines = lines(&explanation);
    wire::TaskExplanation {
        graph: graph.to_owned(),
        state: state(&explanation),
        attempts: explanation.attempts,
        retries_left: explanation.retries_left,
        crashes: explanation.crashes,
        fetch_failures: explanation.fetch_failures,
        worker: worker(&explanation),
        fault: explanation
            .failure
            .map(|failure| wire::Fault::from(&*failure.error)),
        key: explanation.key,
        lines,
    }
}

/// A task that could run, but on no worker that is there, is parked.
fn state(explanation: &Explanation) -> String {
    let is_parked = explanation.state == TaskState::Ready
        && explanation.waits.iter().any(|wait| {
            matches!(
                wait,
                WaitFacts::NoWorkers
                    | WaitFacts::Limits { .. }
                    | WaitFacts::Resources { .. }
                    | WaitFacts::Combination
            )
        });
    if is_parked {
        "parked".to_owned()
    } else {
        explanation.state.to_string()
    }
}

fn worker(explanation: &Explanation) -> String {
    match &explanation.place {
        Some(PlaceFacts::Worker { name, .. }) => name.clone(),
        Some(PlaceFacts::Held { workers, .. }) => workers.first().cloned().unwrap_or_default(),
        Some(PlaceFacts::Released) | None => String::new(),
    }
}

fn lines(explanation: &Explanation) -> Vec<String> {
    let failure = explanation.failure.as_ref().map(FailureFacts::to_string);
    let waits = explanation.waits.iter().map(ToString::to_string);
    let place = explanation.place.as_ref().map(ToString::to_string);
    let mut lines: Vec<String> = failure.into_iter().chain(waits).chain(place).collect();
    if explanation.attempts > 1 {
        lines.push(format!(
            "was handed to workers {} times",
            explanation.attempts
        ));
    }
    let of = |count: u32, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {more}")),
    };
    lines.extend(of(
        explanation.crashes,
        "worker died while it ran it",
        "workers died while they ran it",
    ));
    lines.extend(of(
        explanation.fetch_failures,
        "attempt could not fetch its inputs",
        "attempts could not fetch their inputs",
    ));
    if explanation.retries_left > 0 && explanation.state != TaskState::Finished {
        let left = of(
            explanation.retries_left,
            "retry is left",
            "retries are left",
        );
        lines.extend(left);
    }
    lines
}
