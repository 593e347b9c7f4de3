//! A worker's process is killed while a job runs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, READY_SECONDS_MAX, has, name, rows, runner_log, uid, wait_busy,
    wait_job, wait_workers,
};
use crate::host;
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "worker_container_killed",
    about: "the same pod starts again, and the job that runs meanwhile gives the right result",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    let before = wait_workers(kubectl, "j", 2)?;
    wait_busy(kubectl, "j")?;
    let worker = before.first().ok_or_else(|| failure("no worker"))?;
    host::kill(worker, "worker")?;
    let object = format!("pod/{}", name(worker));
    until("the same pod to be ready again", READY_SECONDS_MAX, || {
        let pod = kubectl.get(&object)?;
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        done_if(
            uid(&pod) == uid(worker) && restarts > Some(0) && has(&pod, "Ready", "True"),
            pod["status"].to_string(),
        )
    })?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)
}
