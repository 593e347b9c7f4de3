//! The operator's pod is deleted while a job runs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, READY_SECONDS_MAX, rows, runner_log, wait_busy, wait_job,
    wait_only_job_left,
};
use crate::helm;
use crate::kubectl::Kubectl;

pub(crate) const CASE: Case = Case {
    name: "operator_deleted",
    about: "another one comes and ends the job that ran meanwhile, with the right result",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    wait_busy(kubectl, "j")?;
    let operator = Kubectl::new(&context.settings, helm::NAMESPACE);
    operator.run_long(&["delete", "pods", "--all"], READY_SECONDS_MAX)?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)?;
    operator.run_long(
        &["rollout", "status", "deployment/oxidask-operator"],
        READY_SECONDS_MAX,
    )?;
    wait_only_job_left(kubectl, "j")
}
