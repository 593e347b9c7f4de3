//! The runner's pod is evicted, as a node does that has too little memory.

use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, READY_SECONDS_MAX, events, rows, runner_log, uid, wait_busy, wait_job,
};
use crate::wait::{Seen, done_if, until};

pub(crate) const CASE: Case = Case {
    name: "job_evicted_runner",
    about: "an evicted runner is said within 10 s, and another one gives the right result",
    run,
};

const SAID_SECONDS_MAX: u64 = 10;
const PATCH: Duration = Duration::from_secs(10);

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    wait_busy(kubectl, "j")?;
    let old = kubectl.get("pod/j-runner")?;
    // What a kubelet writes. Refused if the pod is another one by now.
    let evicted = json!({"metadata": {"uid": uid(&old)}, "status": {
        "phase": "Failed", "reason": "Evicted",
        "message": "The node was low on resource: memory.",
    }});
    let evicted = evicted.to_string();
    let patch = [
        "patch",
        "pod",
        "j-runner",
        "--subresource=status",
        "--type=merge",
        "-p",
        &evicted,
    ];
    until("a warning about the eviction", SAID_SECONDS_MAX, || {
        // The pod's own kubelet knows better and soon writes `Running` again. One that evicts stays
        // with what it says, and so does this case.
        kubectl.call(&patch, None, PATCH)?;
        let events = events(kubectl, "j")?;
        let is_said = |line: &String| line.starts_with("Warning") && line.contains("vict");
        done_if(events.iter().any(is_said), events.join("\n"))
    })?;
    until("another runner", READY_SECONDS_MAX, || {
        Ok(match kubectl.find("pod/j-runner")? {
            Some(new) if uid(&new) != uid(&old) => Seen::Done(()),
            other => Seen::NotYet(format!("{} runner", other.map_or("no", |_| "the old"))),
        })
    })?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)
}
