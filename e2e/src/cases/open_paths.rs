//! Health and metrics of the scheduler, of a worker and of the operator are open.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{name, start_cluster, workers};
use crate::helm;
use crate::kubectl::Kubectl;
use crate::probe::open_path;
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "open_paths",
    about: "/livez, /readyz and /metrics of scheduler, worker and operator answer",
    run,
};

const SCHEDULER_PORT: u16 = 8787;
const WORKER_PORT: u16 = 8788;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    check(kubectl, "service/c-scheduler", SCHEDULER_PORT)?;
    let workers = workers(kubectl, "c")?;
    let worker = workers.first().map(name).unwrap_or_default();
    check(kubectl, &format!("pod/{worker}"), WORKER_PORT)?;
    let operator = Kubectl::new(&context.settings, helm::NAMESPACE);
    let port = operator_port(&operator)?;
    check(&operator, "deployment/oxidask-operator", port)
}

fn check(kubectl: &Kubectl, object: &str, port: u16) -> Outcome {
    for path in ["/livez", "/readyz", "/metrics"] {
        // A connection each: kubectl ends a forward when the far end closes.
        let forward = kubectl.forward(object, port)?;
        let body = open_path(&forward.address, path)
            .map_err(|error| failure(format!("{object} port {port}: {error}")))?;
        if path == "/metrics" && !body.contains("oxidask_") {
            return Err(failure(format!("{object} has no metrics of ours: {body}")));
        }
    }
    Ok(())
}

/// The port of the operator's probes.
fn operator_port(operator: &Kubectl) -> Outcome<u16> {
    let deployment = operator.get("deployment/oxidask-operator")?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let port = container["ports"][0]["containerPort"].as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok());
    port.ok_or_else(|| failure(format!("the operator names no port: {container}")))
}
