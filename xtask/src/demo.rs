//! `cargo xtask demo`: a Kubernetes of one's own with the operator and a finished job, to play with.
//!
//! Owns the steps that a newcomer sees. Uses what an earlier demo left running.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::e2e::{Stand, Tools};
use crate::process::{output, run as run_command};
use crate::{Failure, lab, say};

const LAB: &str = "demo";
const JOB: &str = "flights";
const MANIFEST: &str = "examples/flights/flights.yaml";
/// A cluster that stays, with a name of its own.
const CLUSTER: &str = r#"{
  "apiVersion": "kubernetes.dask.org/v1",
  "kind": "DaskCluster",
  "metadata": {"name": "demo"},
  "spec": {"worker": {"replicas": 2, "threads": 1, "resources": {
    "limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}}}}
}"#;

const JOB_SECONDS_MAX: u64 = 300;
const POLL: Duration = Duration::from_millis(500);

/// Runs the demonstration and leaves everything running.
pub(crate) fn run(root: &Path) -> Result<(), Failure> {
    let tools = Tools::build(root)?;
    let is_there = lab::kubeconfig(LAB).exists();
    let stand = Stand::up(tools, LAB)?;
    run_command(stand.cases(root).arg("install"))?;
    if is_there {
        // The images may be newer than the pods, under the same names.
        restart_operator(&stand)?;
    }
    // A job's work cannot be changed, so one of an earlier demo goes first.
    run_command(&mut stand.kubectl(&["delete", "daskjob", JOB, "--ignore-not-found"]))?;
    let manifest = root.join(MANIFEST).display().to_string();
    run_command(&mut stand.kubectl(&["apply", "-f", &manifest]))?;
    let state = follow(&stand)?;
    let log = ["logs", "flights-runner"];
    run_command(&mut stand.kubectl(&log))?;
    if state != "Successful" {
        return Err(format!("the job is {state}").into());
    }
    let gone = [
        "wait",
        "--for=delete",
        "daskcluster/flights",
        "--timeout=60s",
    ];
    run_command(&mut stand.kubectl(&gone))?;
    leave_cluster(root, &stand)
}

fn restart_operator(stand: &Stand) -> Result<(), Failure> {
    let rollout = |verb: &[&str]| {
        let mut command = stand.kubectl(&["rollout", "--namespace=oxidask-system"]);
        run_command(command.args(verb).arg("deployment/oxidask-operator"))
    };
    rollout(&["restart"])?;
    rollout(&["status", "--timeout=120s"])
}

/// Says each new status of the job, and returns the last.
fn follow(stand: &Stand) -> Result<String, Failure> {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed().as_secs() < JOB_SECONDS_MAX {
        let path = "-o=jsonpath={.status.jobStatus}";
        let state = output(&mut stand.kubectl(&["get", "daskjob", JOB, path]))?;
        if state != last {
            say!("{:>5.1} s  {state}", start.elapsed().as_secs_f64());
            last = state;
        }
        if matches!(last.as_str(), "Successful" | "Failed") {
            return Ok(last);
        }
        std::thread::sleep(POLL);
    }
    Err(format!("the job did not end within {JOB_SECONDS_MAX} s; it is `{last}`").into())
}

fn leave_cluster(root: &Path, stand: &Stand) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("cluster.json");
    std::fs::write(&manifest, CLUSTER)?;
    let manifest = manifest.display().to_string();
    run_command(&mut stand.kubectl(&["apply", "-f", &manifest]))?;
    let ready = "--for=condition=Ready";
    run_command(&mut stand.kubectl(&["wait", ready, "daskcluster/demo", "--timeout=120s"]))?;
    run_command(&mut stand.kubectl(&["get", "daskclusters,daskjobs,pods"]))?;
    say!("\nTwo nodes, the operator, a finished job and a cluster of two workers are yours:");
    say!("  export KUBECONFIG={}", stand.kubeconfig.display());
    say!("  kubectl scale daskcluster demo --replicas=3");
    let example = root.join("examples/graphs/map-reduce.yaml");
    say!("  kubectl apply -f {}", example.display());
    say!("To end it:");
    say!("  cargo xtask lab down --name {LAB}");
    Ok(())
}
