//! The scheduler's port gives nothing to callers without a right certificate.

use oxidask_identity::Role;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{start_cluster, wait_ready};
use crate::probe::{self, GRPC, Papers, greeting, plain_answer, refusal};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "identity_scheduler_port",
    about: "8786: no TLS, no certificate, another cluster's, a wrong role get nothing; a client does",
    run,
};

const PORT: u16 = 8786;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&crate::dask::cluster("other", 0))?;
    start_cluster(kubectl, "c", 1)?;
    wait_ready(kubectl, "other")?;
    let client = Papers::read(kubectl, "c", Role::Client)?;
    let stranger = Papers::read(kubectl, "other", Role::Client)?;
    let object = "service/c-scheduler";

    // The right one first: what follows would prove nothing with a scheduler that answers nobody.
    let forward = kubectl.forward(object, PORT)?;
    let workers = probe::status(&forward.address, &client)?;
    if workers.len() != 1 {
        return Err(failure(format!(
            "a client sees the workers {workers:?} instead of one"
        )));
    }
    for role in [Role::Worker, Role::Scheduler, Role::Operator] {
        let papers = Papers::read(kubectl, "c", role)?;
        let forward = kubectl.forward(object, PORT)?;
        match probe::status(&forward.address, &papers) {
            Ok(workers) => return Err(failure(format!("the role {role} sees {workers:?}"))),
            Err(error) if error.to_string().contains(role.name()) => {}
            Err(error) => return Err(failure(format!("the role {role} is not told why: {error}"))),
        }
    }
    if greeting(&kubectl.forward(object, PORT)?.address, &client, GRPC)?.is_empty() {
        return Err(failure(
            "the raw caller gets nothing even with a right certificate",
        ));
    }
    for (who, papers) in [
        ("no certificate", None),
        ("another cluster's", Some(&stranger)),
    ] {
        let received = refusal(&kubectl.forward(object, PORT)?.address, papers, GRPC)?;
        if !received.is_empty() {
            return Err(failure(format!(
                "a caller with {who} receives {received:?}"
            )));
        }
    }
    let received = plain_answer(&kubectl.forward(object, PORT)?.address)?;
    if !received.is_empty() {
        let text = String::from_utf8_lossy(&received);
        return Err(failure(format!("a caller without TLS receives `{text}`")));
    }
    // And nobody was harmed.
    probe::status(&kubectl.forward(object, PORT)?.address, &client).map(drop)
}
