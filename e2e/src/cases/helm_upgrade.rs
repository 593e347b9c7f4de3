//! `helm upgrade` of the operator while new resources roll through a cluster that works.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::rolling_update::wait_rolled;
use crate::dask::{READY_SECONDS_MAX, Sleeps, start_cluster};
use crate::helm::{NAMESPACE, OPERATOR, install_chart, upgrade_chart};
use crate::process::failure;
use crate::submission::Submission;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "helm_upgrade",
    about: "the operator's own upgrade in the middle of a roll: it goes on, and nothing runs twice",
    run,
};

/// From then on clusters get network policies.
const POLICIES: &str = "clusters.networkPolicies.enabled=true";
const WORK: Sleeps = Sleeps {
    tasks: 100,
    seconds: 0.4,
};

fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    if !settings.has_helm() {
        return Err(failure(
            "there is no helm: name it, or filter this case out",
        ));
    }
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(10)?;
    let memory = json!({"resources": {"limits": {"memory": "384Mi"}}});
    kubectl.patch("daskcluster/c", &json!({"spec": {"worker": memory}}))?;
    let outcome = upgrade_chart(settings, NAMESPACE, OPERATOR, &[POLICIES])
        .and_then(|()| {
            wait_rolled(kubectl, "c", 2, |pod| {
                pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "384Mi"
            })
        })
        .and_then(|()| {
            until("a network policy of the cluster", READY_SECONDS_MAX, || {
                let policies = kubectl.list("networkpolicies", "dask.org/cluster-name=c")?;
                done_if(!policies.is_empty(), "none")
            })
        });
    // As other cases expect it.
    install_chart(settings, OPERATOR)?;
    outcome?;
    work.finish()?;
    work.check_once()
}
