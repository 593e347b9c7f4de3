//! A worker's data port gives nothing to callers without a right certificate.

use oxidask_identity::Role;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{cluster, name, start_cluster, wait_ready, workers};
use crate::probe::{BULK, BULK_REFUSAL, Papers, greeting, plain_answer, refusal};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "identity_worker_port",
    about: "8789: no TLS, no certificate, another cluster's, a wrong role get nothing; readers do",
    run,
};

const PORT: u16 = 8789;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&cluster("other", 0))?;
    start_cluster(kubectl, "c", 1)?;
    wait_ready(kubectl, "other")?;
    let workers = workers(kubectl, "c")?;
    let object = format!("pod/{}", workers.first().map(name).unwrap_or_default());
    let own = |role| Papers::read(kubectl, "c", role);
    let get_in = |role| {
        let forward = kubectl.forward(&object, PORT)?;
        let received = greeting(&forward.address, &own(role)?, BULK)?;
        if received.is_empty() || received == BULK_REFUSAL {
            return Err(failure(format!("the role {role} gets {received:?}")));
        }
        Ok(())
    };
    get_in(Role::Worker)?;
    get_in(Role::Scheduler)?;
    // Clients read large results where they are.
    get_in(Role::Client)?;
    let stranger = Papers::read(kubectl, "other", Role::Worker)?;
    for (who, papers, wanted) in [
        ("no certificate", None, &[][..]),
        ("another cluster's certificate", Some(stranger), &[]),
        (
            "the role operator",
            Some(own(Role::Operator)?),
            BULK_REFUSAL,
        ),
    ] {
        let forward = kubectl.forward(&object, PORT)?;
        let received = refusal(&forward.address, papers.as_ref(), BULK)?;
        if received != wanted {
            let text = format!("a caller with {who} receives {received:?}, not {wanted:?}");
            return Err(failure(text));
        }
    }
    let received = plain_answer(&kubectl.forward(&object, PORT)?.address)?;
    if !received.is_empty() {
        let text = String::from_utf8_lossy(&received);
        return Err(failure(format!("a caller without TLS receives `{text}`")));
    }
    // And nobody was harmed.
    get_in(Role::Worker)
}
