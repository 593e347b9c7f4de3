//! The charts of the version before are brought up to date, as the documentation says.
//!
//! The images of then are not at hand, so the operator is that of now in both charts. It may do more
//! than the chart of then allows: the built-in role `admin` lends it the rest until the upgrade. It
//! also writes fields of statuses that the definitions of then lack, so the cluster comes after those
//! were brought up to date, which is done first in any case.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{Sleeps, schedulers, start_cluster, uid, wait_ready, workers};
use crate::helm::{DEFINITIONS, NAMESPACE, OPERATOR, helm, install_chart, uninstall_chart};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{done_if, stays};

pub(crate) const CASE: Case = Case {
    name: "helm_from_previous",
    about: "the packages of the version before, a cluster, the upgrade: its pods stay and work",
    run,
};

/// Charts as they were published, packed by Helm.
const PACKAGES: &str = "e2e/previous";
const PREVIOUS: &str = "0.1.0";
const LOAN: &str = "e2e-previous-admin";
const WAIT: &str = "180s";
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
    uninstall_chart(settings, OPERATOR)?;
    uninstall_chart(settings, DEFINITIONS)?;
    let outcome = upgraded(context);
    let _ = loan(&context.kubectl, false);
    // Other cases want the charts as they are, whatever came of this one.
    install_chart(settings, DEFINITIONS)?;
    install_chart(settings, OPERATOR)?;
    outcome
}

fn upgraded(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    loan(kubectl, true)?;
    for chart in [DEFINITIONS, OPERATOR] {
        let package = context.settings.root.join(PACKAGES);
        let package = package.join(format!("{chart}-{PREVIOUS}.tgz"));
        upgrade(context, chart, &package.display().to_string())?;
    }
    to_present(context, DEFINITIONS)?;
    start_cluster(kubectl, "c", 1)?;
    let before = pods(kubectl)?;
    loan(kubectl, false)?;
    to_present(context, OPERATOR)?;
    wait_ready(kubectl, "c")?;
    stays("the same pods", STAYS_SECONDS, || {
        let now = pods(kubectl)?;
        done_if(now == before, format!("{now:?} instead of {before:?}"))
    })?;
    WORK.check(&submit(context, kubectl, "c", WORK)?)?;
    kubectl.run(&["scale", "daskcluster", "c", "--replicas=2"])?;
    wait_ready(kubectl, "c")
}

/// Brings a chart up to date.
fn to_present(context: &Context, chart: &str) -> Outcome {
    let folder = context.settings.root.join("charts").join(chart);
    upgrade(context, chart, &folder.display().to_string())?;
    let history = helm(&context.settings, &["history", chart, "--max", "1"])?;
    if history.contains("deployed") {
        return Ok(());
    }
    Err(failure(format!("{chart}: {history}")))
}

/// As the documentation says, so that values which somebody set stay.
fn upgrade(context: &Context, chart: &str, source: &str) -> Outcome {
    let arguments = [
        "upgrade",
        "--install",
        chart,
        source,
        "--create-namespace",
        "--reset-then-reuse-values",
        "--wait",
        "--timeout",
        WAIT,
    ];
    helm(&context.settings, &arguments).map(drop)
}

fn loan(kubectl: &Kubectl, is_given: bool) -> Outcome {
    if !is_given {
        let delete = ["delete", "clusterrolebinding", LOAN, "--ignore-not-found"];
        return kubectl.run(&delete).map(drop);
    }
    let account = format!("--serviceaccount={NAMESPACE}:{OPERATOR}");
    let create = ["create", "clusterrolebinding", LOAN, "--clusterrole=admin"];
    kubectl.run(&[&create[..], &[&account]].concat()).map(drop)
}

fn pods(kubectl: &Kubectl) -> Outcome<Vec<String>> {
    let pods = [schedulers(kubectl, "c")?, workers(kubectl, "c")?].concat();
    Ok(pods.iter().map(|pod| uid(pod).to_owned()).collect())
}
