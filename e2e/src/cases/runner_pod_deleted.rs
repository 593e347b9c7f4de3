//! The runner's pod is deleted while its job runs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, READY_SECONDS_MAX, rows, runner_log, uid, wait_busy, wait_job,
};
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "runner_pod_deleted",
    about: "another one comes and gives the right result",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    wait_busy(kubectl, "j")?;
    let old = kubectl.get("pod/j-runner")?;
    kubectl.run(&["delete", "pod", "j-runner", "--wait=false"])?;
    until("another runner", READY_SECONDS_MAX, || {
        Ok(match kubectl.find("pod/j-runner")? {
            Some(new) if uid(&new) != uid(&old) => Seen::Done(()),
            other => Seen::NotYet(format!("{} runner", other.map_or("no", |_| "the old"))),
        })
    })?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)
}
