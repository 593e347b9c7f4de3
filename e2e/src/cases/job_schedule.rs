//! A job that runs again and again.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{GONE_SECONDS_MAX, check_quick, job_with, name, quick, wait_job};
use crate::process::failure;
use crate::wait::{Seen, done_if, until};

pub(crate) const CASE: Case = Case {
    name: "job_schedule",
    about: "schedule: each minute a job of its own, which goes with the scheduled one",
    run,
};

/// To the next minute, and a little.
const COMES_SECONDS_MAX: u64 = 75;
const RUN_SECONDS_MAX: u64 = 60;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({"graph": quick(), "schedule": "* * * * *"});
    kubectl.apply(&job_with("j", 1, fields))?;
    let run = until("a run of the job", COMES_SECONDS_MAX, || {
        let jobs = kubectl.list("daskjobs", "")?;
        let run = jobs.iter().map(name).find(|name| *name != "j");
        Ok(match run {
            Some(run) => Seen::Done(run.to_owned()),
            None => Seen::NotYet(format!("{}", kubectl.get("daskjob/j")?["status"])),
        })
    })?;
    if kubectl.find("pod/j-runner")?.is_some() {
        return Err(failure("the scheduled job itself has a runner"));
    }
    wait_job(kubectl, &run, "Successful", RUN_SECONDS_MAX)?;
    check_quick(kubectl, &run)?;
    kubectl.run(&["delete", "daskjob", "j"])?;
    until("its runs to be gone", GONE_SECONDS_MAX, || {
        let left = kubectl.run(&["get", "daskjobs,pods", "-o", "name"])?;
        done_if(left.trim().is_empty(), left)
    })
}
