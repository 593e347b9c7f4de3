//! The scheduler's container is killed and then its pod deleted, in the middle of 10,000 tasks.

use serde_json::Value;

use crate::case::{Case, Context};
use crate::dask::{
    MANY, READY_SECONDS_MAX, cluster_with_journal, has, name, schedulers, uid, wait_ready, workers,
};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::submission::Submission;
use crate::volume::Volume;
use crate::wait::{Seen, until};
use crate::{Outcome, host};

pub(crate) const CASE: Case = Case {
    name: "scheduler_dies",
    about: "with its journal on a volume it goes on after either, and no task runs twice",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let volume = Volume::create(kubectl)?;
    kubectl.apply(&cluster_with_journal("c", 2, &volume.name))?;
    wait_ready(kubectl, "c")?;
    let before = workers(kubectl, "c")?;
    let work = Submission::start(kubectl, "c", MANY, None)?;
    work.wait_done(1_000)?;

    let old = scheduler(kubectl)?;
    host::kill(&old, "scheduler")?;
    work.wait_done(3_000)?;
    let same = scheduler(kubectl)?;
    let restarts = same["status"]["containerStatuses"][0]["restartCount"].as_u64();
    if uid(&same) != uid(&old) || restarts != Some(1) {
        return Err(failure(format!("not the same pod, restarted once: {same}")));
    }

    kubectl.run(&["delete", "pod", name(&old), "--wait=false"])?;
    wait_other(kubectl, &old)?;
    work.finish()?;
    let after = workers(kubectl, "c")?;
    if before.iter().map(uid).ne(after.iter().map(uid)) {
        return Err(failure("the workers' pods are not the same any more"));
    }
    let (runs, tasks) = (work.runs()?, work.tasks());
    if runs != tasks {
        return Err(failure(format!("{tasks} tasks ran {runs} times in all")));
    }
    Ok(())
}

fn scheduler(kubectl: &Kubectl) -> Outcome<Value> {
    let mut pods = schedulers(kubectl, "c")?;
    pods.pop().ok_or_else(|| failure("no scheduler"))
}

fn wait_other(kubectl: &Kubectl, old: &Value) -> Outcome {
    until("another scheduler to be ready", READY_SECONDS_MAX, || {
        let pods = schedulers(kubectl, "c")?;
        let is_new = |pod: &Value| uid(pod) != uid(old) && has(pod, "Ready", "True");
        Ok(if pods.iter().any(is_new) {
            Seen::Done(())
        } else {
            Seen::NotYet(format!("{} scheduler pods", pods.len()))
        })
    })
}
