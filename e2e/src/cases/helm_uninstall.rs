//! Uninstalling the charts leaves custom resources and running clusters alone.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{Sleeps, schedulers, start_cluster, uid, wait_ready, wait_workers, workers};
use crate::helm::{DEFINITIONS, NAMESPACE, OPERATOR, helm, install_chart, uninstall_chart};
use crate::process::failure;
use crate::wait::{done_if, stays};

pub(crate) const CASE: Case = Case {
    name: "helm_uninstall",
    about: "definitions and running clusters stay and work; a new install goes on with them",
    run,
};

const STAYS_SECONDS: u64 = 5;
const WORK: Sleeps = Sleeps {
    tasks: 4,
    seconds: 0.1,
};

fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    if !settings.has_helm() {
        return Err(failure(
            "there is no helm: name it, or filter this case out",
        ));
    }
    let result = without_operator(context);
    // Other runs want the charts, whatever came of this one.
    install_chart(settings, DEFINITIONS)?;
    install_chart(settings, OPERATOR)?;
    result?;
    // The new operator knows the cluster that the old one made.
    let kubectl = &context.kubectl;
    kubectl.run(&["scale", "daskcluster", "c", "--replicas=2"])?;
    wait_workers(kubectl, "c", 2)?;
    wait_ready(kubectl, "c")
}

fn without_operator(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    let before = pods(context)?;
    uninstall_chart(&context.settings, OPERATOR)?;
    uninstall_chart(&context.settings, DEFINITIONS)?;
    let releases = helm(&context.settings, &["list", "--short"])?;
    if !releases.trim().is_empty() {
        return Err(failure(format!("in {NAMESPACE} there still is {releases}")));
    }
    for kind in [
        "daskclusters",
        "daskworkergroups",
        "daskjobs",
        "daskautoscalers",
    ] {
        let definition = format!("customresourcedefinition/{kind}.kubernetes.dask.org");
        kubectl.get(&definition)?;
    }
    stays("the same pods", STAYS_SECONDS, || {
        let now = pods(context)?;
        done_if(now == before, format!("{now:?} instead of {before:?}"))
    })?;
    WORK.check(&submit(context, kubectl, "c", WORK)?)
}

fn pods(context: &Context) -> Outcome<Vec<String>> {
    let kubectl = &context.kubectl;
    let pods = [schedulers(kubectl, "c")?, workers(kubectl, "c")?].concat();
    Ok(pods.iter().map(|pod| uid(pod).to_owned()).collect())
}
