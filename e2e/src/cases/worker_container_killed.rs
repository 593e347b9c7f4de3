//! A worker's process is killed while a job runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, JOB_SECONDS_MAX, READY_SECONDS_MAX, has, name, rows, runner_log, uid, wait_busy,
    wait_job, wait_workers,
};
use crate::process::{failure, finish};
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "worker_container_killed",
    about: "the same pod starts again, and the job that runs meanwhile gives the right result",
    run,
};

const KILL: Duration = Duration::from_secs(5);

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    let before = wait_workers(kubectl, "j", 2)?;
    wait_busy(kubectl, "j")?;
    let worker = before.first().ok_or_else(|| failure("no worker"))?;
    let process = worker_process(worker)?;
    finish(Command::new("kill").args(["-KILL", &process]), None, KILL)?.succeeded()?;
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

/// The worker's process on this host, which is also the node: by the pod's name among the control
/// groups, and by what it runs, because the pod's pause process is there too.
fn worker_process(pod: &Value) -> Outcome<String> {
    let marker = format!("pod{}", uid(pod));
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let is_of_pod = read(&folder, "cgroup").contains(&marker);
        let command = read(&folder, "cmdline");
        let is_worker = command.split('\0').nth(1) == Some("worker");
        if let (true, true, Some(id)) = (is_of_pod, is_worker, folder.file_name()) {
            return Ok(id.to_string_lossy().into_owned());
        }
    }
    Err(failure(format!(
        "no process of pod {} on this host: this case needs nodes that are on it",
        name(pod)
    )))
}

fn read(folder: &Path, file: &str) -> String {
    // Processes end while they are looked at.
    std::fs::read_to_string(folder.join(file)).unwrap_or_default()
}
