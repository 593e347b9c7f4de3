//! The scheduler's pod is deleted while nothing runs.

use std::process::Command;
use std::time::Duration;

use oxidask_identity::Role;
use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    READY_SECONDS_MAX, Sleeps, has, name, rows, schedulers, start_cluster, uid, wait_ready, workers,
};
use crate::kubectl::Kubectl;
use crate::probe::{self, Papers};
use crate::process::{failure, finish};
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "scheduler_pod_deleted",
    about: "another one comes, the workers find it, and work submitted then is done",
    run,
};

const PORT: u16 = 8786;
const SUBMIT: Duration = Duration::from_mins(3);
const WORK: Sleeps = Sleeps {
    tasks: 6,
    seconds: 0.2,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let before = workers(kubectl, "c")?;
    let old = schedulers(kubectl, "c")?;
    let old = old.first().ok_or_else(|| failure("no scheduler"))?;
    kubectl.run(&["delete", "pod", name(old), "--wait=false"])?;
    until("another scheduler to be ready", READY_SECONDS_MAX, || {
        let pods = schedulers(kubectl, "c")?;
        let is_new = |pod: &&Value| uid(pod) != uid(old) && has(pod, "Ready", "True");
        Ok(match pods.iter().find(is_new) {
            Some(_) => Seen::Done(()),
            None => Seen::NotYet(format!("{} scheduler pods", pods.len())),
        })
    })?;
    let client = Papers::read(kubectl, "c", Role::Client)?;
    until(
        "both workers at the new scheduler",
        READY_SECONDS_MAX,
        || {
            let forward = kubectl.forward("service/c-scheduler", PORT)?;
            let names = probe::status(&forward.address, &client)?;
            Ok(if names.len() == 2 {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{names:?}"))
            })
        },
    )?;
    wait_ready(kubectl, "c")?;
    let after = workers(kubectl, "c")?;
    if before.iter().map(uid).ne(after.iter().map(uid)) {
        return Err(failure("the workers' pods are not the same any more"));
    }
    WORK.check(&submit(context, kubectl, "c", WORK)?)
}

/// Runs work on a running cluster, from this host.
pub(crate) fn submit(
    context: &Context,
    kubectl: &Kubectl,
    cluster: &str,
    work: Sleeps,
) -> Outcome<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    Papers::read(kubectl, cluster, Role::Client)?.write(folder.path())?;
    let manifest = folder.path().join("job.json");
    std::fs::write(&manifest, work.job("submitted"))?;
    let forward = kubectl.forward(&format!("service/{cluster}-scheduler"), PORT)?;
    let mut command = Command::new(&context.settings.oxidask);
    command
        .arg("submit")
        .arg(&manifest)
        .arg("--scheduler")
        .arg(format!("oxidask://{}", forward.address))
        .arg("--tls-dir")
        .arg(folder.path())
        .args(["--output", "json", "--progress", "none"]);
    rows(&finish(&mut command, None, SUBMIT)?.succeeded()?)
}
