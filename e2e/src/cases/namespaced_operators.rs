//! Two operators, each for a namespace of its own.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{cluster, start_cluster};
use crate::helm::{OPERATOR, install_chart, uninstall_chart, uninstall_chart_in, upgrade_chart};
use crate::kubectl::Kubectl;
use crate::namespace;
use crate::process::failure;
use crate::wait::{done_if, stays};

pub(crate) const CASE: Case = Case {
    name: "namespaced_operators",
    about: "two operators with Roles only serve two namespaces, and leave a third one alone",
    run,
};

const STAYS_SECONDS: u64 = 5;

fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    if !settings.has_helm() {
        return Err(failure(
            "there is no helm: name it, or filter this case out",
        ));
    }
    uninstall_chart(settings, OPERATOR)?;
    let outcome = with_two(context);
    // Other cases expect one for all.
    install_chart(settings, OPERATOR)?;
    outcome
}

fn with_two(context: &Context) -> Outcome {
    let settings = &context.settings;
    let mut made = Vec::new();
    let outcome = (|| {
        for place in ["one", "two"] {
            made.push(namespace::create(
                settings,
                &format!("{}-{place}", CASE.name),
            )?);
        }
        serve(context, &made)
    })();
    for kubectl in &made {
        // Deleting a namespace leaves nothing of the release behind either.
        let _ = kubectl.run(&["delete", "daskclusters", "--all"]);
        let _ = uninstall_chart_in(settings, kubectl.namespace(), OPERATOR);
        namespace::delete(kubectl);
    }
    outcome
}

fn serve(context: &Context, places: &[Kubectl]) -> Outcome {
    let settings = &context.settings;
    for kubectl in places {
        let values = ["rbac.cluster=false"];
        upgrade_chart(settings, kubectl.namespace(), OPERATOR, &values)?;
    }
    let roles = context
        .kubectl
        .run(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    if roles
        .lines()
        .any(|line| line.ends_with("/oxidask-operator"))
    {
        return Err(failure(format!("a right for the whole cluster:\n{roles}")));
    }
    context.kubectl.apply(&cluster("c", 1))?;
    for kubectl in places {
        start_cluster(kubectl, "c", 1)?;
    }
    stays("left alone", STAYS_SECONDS, || {
        let pods = context.kubectl.list("pods", "")?.len();
        let cluster = context.kubectl.get("daskcluster/c")?;
        done_if(
            pods == 0 && cluster["status"].is_null(),
            format!("{pods} pods; {}", cluster["status"]),
        )
    })
}
