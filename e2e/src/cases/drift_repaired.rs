//! Whatever belongs to a cluster comes back when somebody deletes it.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{READY_SECONDS_MAX, Sleeps, start_cluster, uid, wait_ready, wait_workers};
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "drift_repaired",
    about: "Service, Deployment, group and a role's Secret come back, and the cluster works",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 4,
    seconds: 0.1,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    for object in [
        "service/c-scheduler",
        "secret/c-tls-client",
        "deployment/c-scheduler",
        "daskworkergroup/c-default",
    ] {
        let old = kubectl.get(object)?;
        kubectl.run(&["delete", object])?;
        until(&format!("another {object}"), READY_SECONDS_MAX, || {
            Ok(match kubectl.find(object)? {
                Some(new) if uid(&new) != uid(&old) => Seen::Done(()),
                Some(_) => Seen::NotYet("the old one".to_owned()),
                None => Seen::NotYet("none".to_owned()),
            })
        })?;
    }
    wait_workers(kubectl, "c", 1)?;
    wait_ready(kubectl, "c")?;
    // The scheduler is a new one, too: a client may come before it listens.
    until("work to be done", READY_SECONDS_MAX, || {
        Ok(match WORK.check(&submit(context, kubectl, "c", WORK)?) {
            Ok(()) => Seen::Done(()),
            Err(error) => Seen::Never(error.to_string()),
        })
    })
}
