//! Two groups that follow their load, and work that only one of them may do.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, READY_SECONDS_MAX, Sleeps, group_replicas, job_with, rows, runner_log,
    wait_job, worker,
};
use crate::wait::{Seen, stays, until};

pub(crate) const CASE: Case = Case {
    name: "two_groups_one_loaded",
    about: "only the group grows that the waiting tasks are limited to",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 60,
    seconds: 1.0,
};
const STAYS_SECONDS: u64 = 5;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let bounds = json!({"minimum": 1, "maximum": 4});
    let mut special = worker(1);
    special["name"] = Value::from("special");
    special["autoscale"] = bounds.clone();
    let fields = json!({
        "cluster": {"spec": {"worker": {"autoscale": bounds}, "workerGroups": [special]}},
        "graph": limited(),
    });
    kubectl.apply(&job_with("j", 1, fields))?;
    until(
        "the loaded group to have 4 workers",
        READY_SECONDS_MAX,
        || {
            let (special, default) = numbers(kubectl)?;
            Ok(match (special, default) {
                (4, 1) => Seen::Done(()),
                (_, 1) => Seen::NotYet(format!("{special} workers")),
                _ => Seen::Never(format!("the group without work has {default} workers")),
            })
        },
    )?;
    stays("only the loaded group larger", STAYS_SECONDS, || {
        let (special, default) = numbers(kubectl)?;
        Ok(match (special, default) {
            (4, 1) => Seen::Done(()),
            _ => Seen::Never(format!("special {special}, default {default}")),
        })
    })?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    WORK.check(&rows(&runner_log(kubectl, "j")?)?)
}

fn numbers(kubectl: &crate::kubectl::Kubectl) -> Outcome<(u64, u64)> {
    Ok((
        group_replicas(kubectl, "j-special")?,
        group_replicas(kubectl, "j-default")?,
    ))
}

/// The work, for one of the groups.
fn limited() -> Value {
    let mut graph = WORK.graph();
    for task in graph["tasks"].as_array_mut().into_iter().flatten() {
        task["workers"] = json!(["special"]);
    }
    graph
}
