//! A cluster's certificate authority is replaced in the middle of work.

use oxidask_identity::Role;
use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{Sleeps, name, schedulers, start_cluster, uid, workers};
use crate::kubectl::Kubectl;
use crate::probe::{BULK, GRPC, Papers, greeting, refusal};
use crate::process::failure;
use crate::submission::Submission;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "authority_rotates",
    about: "another authority in the middle of work: no break, and old certificates are refused then",
    run,
};

const SCHEDULER_PORT: u16 = 8786;
const WORKER_PORT: u16 = 8789;
/// A change of the annotation's value asks for another authority.
const ROTATE: &str = "kubernetes.dask.org/rotate-authority";
const REFUSED_SECONDS_MAX: u64 = 30;
/// Three phases; in each, kubelets bring the new files into the pods and all say what they loaded.
const ROTATED_SECONDS_MAX: u64 = 180;
const WORK: Sleeps = Sleeps {
    tasks: 240,
    seconds: 0.7,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let client = Papers::read(kubectl, "c", Role::Client)?;
    let worker = Papers::read(kubectl, "c", Role::Worker)?;
    let pods = pods(kubectl)?;
    let authority = kubectl.secret("c-ca", "tls.crt")?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(2)?;
    let annotation = format!("{ROTATE}=1");
    kubectl.run(&["annotate", "daskcluster", "c", &annotation])?;
    until(
        "only another authority to be trusted",
        ROTATED_SECONDS_MAX,
        || {
            let now = kubectl.secret("c-ca", "tls.crt")?;
            let trusted = kubectl.secret("c-tls-worker", "ca.crt")?;
            let count = trusted.matches("BEGIN CERTIFICATE").count();
            done_if(
                now != authority && count == 1 && !trusted.contains(authority.trim()),
                format!(
                    "{count} trusted; another one: {}; status: {}",
                    now != authority,
                    kubectl.get("daskcluster/c")?["status"]
                ),
            )
        },
    )?;
    wait_refused(kubectl, &client, &worker)?;
    work.finish()?;
    work.check_once()?;
    if pods != self::pods(kubectl)? {
        return Err(failure("the pods are not the same any more"));
    }
    Ok(())
}

/// Waits until the old certificates get nothing; the new ones get in all the time.
fn wait_refused(kubectl: &Kubectl, client: &Papers, worker: &Papers) -> Outcome {
    let workers = workers(kubectl, "c")?;
    let pod = format!("pod/{}", workers.first().map(name).unwrap_or_default());
    for (object, port, role, old, protocol) in [
        (
            "service/c-scheduler",
            SCHEDULER_PORT,
            Role::Client,
            client,
            GRPC,
        ),
        (pod.as_str(), WORKER_PORT, Role::Worker, worker, BULK),
    ] {
        let what = format!("the old certificate of {role} to be refused");
        until(&what, REFUSED_SECONDS_MAX, || {
            let forward = kubectl.forward(object, port)?;
            let received = refusal(&forward.address, Some(old), protocol)?;
            done_if(received.is_empty(), format!("{received:?}"))
        })?;
        let forward = kubectl.forward(object, port)?;
        let new = Papers::read(kubectl, "c", role)?;
        if greeting(&forward.address, &new, protocol)?.is_empty() {
            return Err(failure(format!("the new certificate of {role} is refused")));
        }
    }
    Ok(())
}

/// The pods, and how often each has started again.
pub(crate) fn pods(kubectl: &Kubectl) -> Outcome<Vec<String>> {
    let pods = [schedulers(kubectl, "c")?, workers(kubectl, "c")?].concat();
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].to_string();
    Ok(pods
        .iter()
        .map(|pod| format!("{} {}", uid(pod), restarts(pod)))
        .collect())
}
