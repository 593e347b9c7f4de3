//! Deleting a job that runs leaves no object behind.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::cluster_deletion::wait_nothing_added;
use crate::dask::{A_WHILE, GONE_SECONDS_MAX, wait_busy};

pub(crate) const CASE: Case = Case {
    name: "job_deletion",
    about: "a job deleted while it runs takes its cluster and everything else with it",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let before = kubectl.everything()?;
    kubectl.apply(&A_WHILE.job("j"))?;
    wait_busy(kubectl, "j")?;
    kubectl.run_long(&["delete", "daskjob", "j"], GONE_SECONDS_MAX)?;
    wait_nothing_added(kubectl, &before)
}
