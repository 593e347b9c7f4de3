//! Certificates that live shortly are renewed in the middle of work.

use oxidask_identity::Role;
use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::authority_rotates::pods;
use crate::dask::{Sleeps, name, start_cluster_with, workers};
use crate::kubectl::Kubectl;
use crate::probe::{BULK, GRPC, Papers, shown_certificate};
use crate::process::failure;
use crate::submission::Submission;
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "certificates_renewed",
    about: "a new certificate before the old one ends; all processes use it, none starts again",
    run,
};

const SCHEDULER_PORT: u16 = 8786;
const WORKER_PORT: u16 = 8789;
/// The shortest that is allowed, and the most of it that may be left: this case takes a while.
const LIFETIME: &str = "5m";
const RENEW_BEFORE: &str = "150s";
const RENEWED_SECONDS_MAX: u64 = 180;
/// Kubelets bring new files into pods now and then.
const USED_SECONDS_MAX: u64 = 60;
/// Longer than that.
const WORK: Sleeps = Sleeps {
    tasks: 200,
    seconds: 2.0,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let tls = json!({"tls": {"certificateLifetime": LIFETIME, "renewBefore": RENEW_BEFORE}});
    start_cluster_with(kubectl, "c", 2, tls)?;
    let before = pods(kubectl)?;
    let old = [Role::Scheduler, Role::Worker].map(|role| certificate(kubectl, role));
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(2)?;
    let workers = workers(kubectl, "c")?;
    let pod = format!("pod/{}", workers.first().map(name).unwrap_or_default());
    let places = [
        ("service/c-scheduler", SCHEDULER_PORT, Role::Scheduler, GRPC),
        (pod.as_str(), WORKER_PORT, Role::Worker, BULK),
    ];
    for ((object, port, role, protocol), old) in places.into_iter().zip(old) {
        let old = old?;
        let what = format!("another certificate of {role}");
        let new = until(&what, RENEWED_SECONDS_MAX, || {
            let now = certificate(kubectl, role)?;
            Ok(if now == old {
                Seen::NotYet("the same".to_owned())
            } else {
                Seen::Done(now)
            })
        })?;
        let what = format!("{object} to use the new certificate of {role}");
        until(&what, USED_SECONDS_MAX, || {
            let papers = Papers::read(kubectl, "c", Role::Worker)?;
            let forward = kubectl.forward(object, port)?;
            let shown = shown_certificate(&forward.address, &papers, protocol)?;
            Ok(if shown == new {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("the old one: {}", shown == old))
            })
        })?;
    }
    work.finish()?;
    work.check_once()?;
    if before != pods(kubectl)? {
        return Err(failure("the pods are not the same any more"));
    }
    Ok(())
}

fn certificate(kubectl: &Kubectl, role: Role) -> Outcome<Vec<u8>> {
    Papers::read(kubectl, "c", role)?.certificate()
}
