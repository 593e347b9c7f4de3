//! A worker's pod is deleted while a job runs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, name, rows, runner_log, uid, wait_busy, wait_job, wait_workers,
};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "worker_pod_deleted",
    about: "another one comes, and the job that runs meanwhile gives the right result",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    let before = wait_workers(kubectl, "j", 2)?;
    wait_busy(kubectl, "j")?;
    let gone = before.first().ok_or_else(|| failure("no worker"))?;
    kubectl.run(&["delete", "pod", name(gone), "--wait=false"])?;
    let after = wait_workers(kubectl, "j", 2)?;
    if after.iter().any(|pod| uid(pod) == uid(gone)) {
        return Err(failure("the deleted worker is still there"));
    }
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)
}
