//! A real Prometheus finds operator, scheduler and workers, and tells when a scheduler is down.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{Sleeps, name, schedulers, start_cluster, wait_ready, workers};
use crate::helm;
use crate::host;
use crate::kubectl::Kubectl;
use crate::probe::open_path;
use crate::process::failure;
use crate::prometheus::{Prometheus, check_metrics};
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "prometheus_scrapes",
    about: "operator, scheduler and workers are found and scraped; promtool finds nothing wrong; an alert fires",
    run,
};

const RULES: &str = "charts/oxidask-operator/files/alerts.yaml";
const SCRAPED_SECONDS_MAX: u64 = 30;
const FIRING_SECONDS_MAX: u64 = 120;
const HTTP_PORT: u16 = 8787;
const WORKER_HTTP_PORT: u16 = 8788;
const OPERATOR_PORT: u16 = 8080;
const WORK: Sleeps = Sleeps {
    tasks: 4,
    seconds: 0.1,
};

fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    let kubectl = &context.kubectl;
    if settings.lab.as_os_str().is_empty() {
        return Err(failure("Prometheus runs in a lab: this case needs `--lab`"));
    }
    start_cluster(kubectl, "c", 2)?;
    let rules = std::fs::read_to_string(settings.root.join(RULES))?;
    let prometheus = Prometheus::start(settings, &impatient(&rules))?;
    scraped(context, &prometheus)?;
    linted(context)?;
    fires(context, &prometheus)?;
    wait_ready(kubectl, "c")?;
    prometheus.wait(&alert(kubectl, "DaskSchedulerDown"), 0, FIRING_SECONDS_MAX)?;
    Ok(())
}

/// The same rules with the patience of a test.
fn impatient(rules: &str) -> String {
    let lines = rules.lines().map(|line| {
        let indent = line.len() - line.trim_start().len();
        if line.trim_start().starts_with("for: ") {
            format!("{}for: 3s", &line[..indent])
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn scraped(context: &Context, prometheus: &Prometheus<'_>) -> Outcome {
    let kubectl = &context.kubectl;
    let namespace = kubectl.namespace();
    for (job, count) in [("dask-scheduler", 1), ("dask-worker", 2)] {
        let up = format!(
            "up{{job=\"{job}\",namespace=\"{namespace}\",dask_org_cluster_name=\"c\"}} == 1"
        );
        prometheus.wait(&up, count, SCRAPED_SECONDS_MAX)?;
    }
    let operators = format!(
        "up{{job=\"oxidask-operator\",namespace=\"{}\"}} == 1",
        helm::NAMESPACE
    );
    prometheus.wait(&operators, 1, SCRAPED_SECONDS_MAX)?;
    WORK.check(&submit(context, kubectl, "c", WORK)?)?;
    // Each sleep, each number, and their sum.
    let finished = format!(
        "sum(oxidask_worker_tasks_finished_total{{namespace=\"{namespace}\"}}) >= {}",
        2 * WORK.tasks + 1
    );
    prometheus.wait(&finished, 1, SCRAPED_SECONDS_MAX)?;
    let reconciled = "sum(oxidask_operator_reconciliations_total{kind=\"DaskCluster\"}) > 0";
    prometheus.wait(reconciled, 1, SCRAPED_SECONDS_MAX)?;
    prometheus.wait(&alert(kubectl, "DaskSchedulerDown"), 0, SCRAPED_SECONDS_MAX)?;
    Ok(())
}

fn alert(kubectl: &Kubectl, name: &str) -> String {
    format!(
        "ALERTS{{alertname=\"{name}\",alertstate=\"firing\",namespace=\"{}\"}}",
        kubectl.namespace()
    )
}

fn linted(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let operator = Kubectl::new(&context.settings, helm::NAMESPACE);
    let workers = workers(kubectl, "c")?;
    let worker = format!("pod/{}", workers.first().map(name).unwrap_or_default());
    for (kubectl, object, port) in [
        (kubectl, "service/c-scheduler", HTTP_PORT),
        (kubectl, worker.as_str(), WORKER_HTTP_PORT),
        (&operator, "deployment/oxidask-operator", OPERATOR_PORT),
    ] {
        let forward = kubectl.forward(object, port)?;
        let text = open_path(&forward.address, "/metrics")?;
        check_metrics(&text).map_err(|error| failure(format!("{object}: {error}")))?;
    }
    Ok(())
}

/// A scheduler that ends as soon as it starts: the kubelet waits longer each time.
fn fires(context: &Context, prometheus: &Prometheus<'_>) -> Outcome {
    let kubectl = &context.kubectl;
    until("the alert about the scheduler", FIRING_SECONDS_MAX, || {
        if let Some(pod) = schedulers(kubectl, "c")?.first() {
            // While the kubelet waits there is nothing to end.
            let _ = host::kill(pod, "scheduler");
        }
        let alerts = prometheus.query(&alert(kubectl, "DaskSchedulerDown"))?;
        Ok(match alerts.as_slice() {
            [] => Seen::NotYet("nothing fires".to_owned()),
            _ => Seen::Done(()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_patience_of_rules_changes() {
        let rules = "- alert: A\n  for: 5m\n  labels: {for: ever}\n";
        assert_eq!(
            impatient(rules),
            "- alert: A\n  for: 3s\n  labels: {for: ever}"
        );
    }
}
