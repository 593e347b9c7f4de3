//! Work that a pod submits to a cluster that goes on afterwards, and the counts of what ran.
//!
//! A job's own cluster is gone when the job is done, and with it what its parts have counted. Here
//! the cluster stays, so that a case can tell how often its tasks ran.

use serde_json::{Value, json};

use crate::Outcome;
use crate::dask::{Sleeps, name, rows, schedulers, tasks_done, workers};
use crate::kubectl::Kubectl;
use crate::probe::{http_get, open_path};
use crate::process::failure;
use crate::wait::{Seen, until};

/// Time for all of the work on a machine that is busy.
const WORK_SECONDS_MAX: u64 = 300;
/// Time for a number of tasks to be done.
const TASKS_SECONDS_MAX: u64 = 180;
const POD: &str = "submission";
const SCHEDULER_HTTP_PORT: u16 = 8787;
const WORKER_HTTP_PORT: u16 = 8788;
const SPANS_PATH: &str = "/api/v1/spans?limit=10000";
/// Enough to see why.
const ODD_SPANS_MAX: usize = 20;

/// Work in progress.
#[derive(Debug)]
pub(crate) struct Submission<'a> {
    kubectl: &'a Kubectl,
    cluster: &'a str,
    work: Sleeps,
}

impl<'a> Submission<'a> {
    /// Starts the pod that submits; on this node, if one is given.
    pub(crate) fn start(
        kubectl: &'a Kubectl,
        cluster: &'a str,
        work: Sleeps,
        node: Option<&str>,
    ) -> Outcome<Self> {
        // There may be no worker yet.
        let some = schedulers(kubectl, cluster)?;
        let image = some
            .first()
            .and_then(|pod| pod["spec"]["containers"][0]["image"].as_str())
            .ok_or_else(|| failure("no scheduler to take the image from"))?;
        kubectl.create(&config_map(work))?;
        kubectl.create(&pod(cluster, image, node))?;
        Ok(Self {
            kubectl,
            cluster,
            work,
        })
    }

    /// Waits until so many tasks are done, and others are not.
    pub(crate) fn wait_done(&self, tasks: u64) -> Outcome {
        until(
            &format!("{tasks} tasks to be done"),
            TASKS_SECONDS_MAX,
            || {
                let log = self.log()?;
                let is_over = log.lines().any(|line| line.starts_with("done: "));
                Ok(match tasks_done(&log) {
                    _ if is_over => Seen::Never(format!("it is over: {log}")),
                    Some(done) if done >= tasks => Seen::Done(()),
                    _ => Seen::NotYet(log),
                })
            },
        )
    }

    /// Waits for the end; the result must be right.
    pub(crate) fn finish(&self) -> Outcome {
        until("the work to be done", WORK_SECONDS_MAX, || {
            let found = self.kubectl.get(&format!("pod/{POD}"))?;
            Ok(match found["status"]["phase"].as_str() {
                Some("Succeeded") => Seen::Done(()),
                Some("Failed") => Seen::Never(self.log()?),
                _ => Seen::NotYet(self.log()?),
            })
        })?;
        self.work.check(&rows(&self.log()?)?)
    }

    /// Tasks of the work.
    pub(crate) fn tasks(&self) -> u64 {
        self.work.count()
    }

    /// Attempts that made a result, over all workers that are there.
    pub(crate) fn runs(&self) -> Outcome<u64> {
        let mut runs = 0;
        for worker in workers(self.kubectl, self.cluster)? {
            let object = format!("pod/{}", name(&worker));
            let counter = "oxidask_worker_tasks_finished_total";
            runs += count(self.kubectl, &object, WORKER_HTTP_PORT, counter)?;
        }
        Ok(runs)
    }

    /// Fails if any task ran twice, or a result had to be made again.
    pub(crate) fn check_once(&self) -> Outcome {
        check_once(self.kubectl, self.cluster, self.work)
    }

    /// Results that the scheduler had made again because nobody held them any more.
    pub(crate) fn recomputed(&self) -> Outcome<u64> {
        recomputed(self.kubectl, self.cluster)
    }

    fn log(&self) -> Outcome<String> {
        self.kubectl.run(&["logs", POD])
    }
}

/// Attempts that ended at the workers of a cluster since its scheduler's process began.
pub(crate) fn attempts(kubectl: &Kubectl, cluster: &str) -> Outcome<u64> {
    let object = format!("service/{cluster}-scheduler");
    count(
        kubectl,
        &object,
        SCHEDULER_HTTP_PORT,
        "oxidask_scheduler_spans",
    )
}

/// Results that the scheduler had made again because nobody held them any more.
fn recomputed(kubectl: &Kubectl, cluster: &str) -> Outcome<u64> {
    let object = format!("service/{cluster}-scheduler");
    let counter = "oxidask_scheduler_tasks_recomputed_total";
    count(kubectl, &object, SCHEDULER_HTTP_PORT, counter)
}

/// Fails if a task of the work ran twice, or a result had to be made again. The cluster has done
/// nothing else.
pub(crate) fn check_once(kubectl: &Kubectl, cluster: &str, work: Sleeps) -> Outcome {
    let (attempts, recomputed) = (attempts(kubectl, cluster)?, recomputed(kubectl, cluster)?);
    let tasks = work.count();
    if attempts == tasks && recomputed == 0 {
        return Ok(());
    }
    let odd = odd_spans(kubectl, cluster)?.join("\n");
    Err(failure(format!(
        "{tasks} tasks ran {attempts} times in all; {recomputed} were computed again\n{odd}"
    )))
}

/// The newest spans of tasks that ended without a result or more than once.
fn odd_spans(kubectl: &Kubectl, cluster: &str) -> Outcome<Vec<String>> {
    let token = kubectl.secret(&format!("{cluster}-http-token"), "operator-token")?;
    let forward = kubectl.forward(&format!("service/{cluster}-scheduler"), SCHEDULER_HTTP_PORT)?;
    let (_, body) = http_get(&forward.address, SPANS_PATH, Some(&token))?;
    let told: Value = serde_json::from_str(&body)?;
    let spans = told["spans"].as_array().map_or(&[][..], Vec::as_slice);
    let is_odd = |span: &&Value| {
        let task = (&span["graph"], &span["key"]);
        let same = |other: &&Value| (&other["graph"], &other["key"]) == task;
        span["end"] != "finished" || spans.iter().filter(same).nth(1).is_some()
    };
    let odd = spans.iter().filter(is_odd).map(Value::to_string);
    Ok(odd.take(ODD_SPANS_MAX).collect())
}

/// A number of an open `/metrics`.
pub(crate) fn count(kubectl: &Kubectl, object: &str, port: u16, counter: &str) -> Outcome<u64> {
    let forward = kubectl.forward(object, port)?;
    let body = open_path(&forward.address, "/metrics")?;
    sum(&body, counter).ok_or_else(|| failure(format!("{object} does not count {counter}")))
}

/// The sum over all series of a counter.
fn sum(metrics: &str, counter: &str) -> Option<u64> {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(counter)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.split_once('}')?.1,
            None => rest,
        };
        // Gauges are written with a fraction.
        let value = value.strip_prefix(' ')?.trim();
        value
            .strip_suffix(".0")
            .unwrap_or(value)
            .parse::<u64>()
            .ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
}

fn config_map(work: Sleeps) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": POD},
        "data": {"job.json": work.job(POD)},
    })
    .to_string()
}

fn pod(cluster: &str, image: &str, node: Option<&str>) -> String {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65_532, "fsGroup": 65_532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "submit",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": [
                    "submit", "/work/job.json", "--progress", "plain", "-o", "json",
                    "--wait-seconds", "120",
                ],
                "env": [{
                    "name": "DASK_SCHEDULER_ADDRESS",
                    "value": format!("oxidask://{cluster}-scheduler:8786"),
                }],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "tls", "mountPath": "/etc/oxidask/tls", "readOnly": true},
                    {"name": "work", "mountPath": "/work", "readOnly": true},
                ],
            }],
            "volumes": [
                {"name": "tls", "secret": {
                    "secretName": format!("{cluster}-tls-client"), "defaultMode": 0o440,
                }},
                {"name": "work", "configMap": {"name": POD}},
            ],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = Value::from(node);
    }
    pod.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_series() {
        let text = "# TYPE a counter\na_total 3\nb_total{x=\"1\"} 4\nb_total{x=\"2\"} 5\nb_total_more 9\nd 7.0\n";
        assert_eq!(sum(text, "a_total"), Some(3));
        assert_eq!(sum(text, "b_total"), Some(9));
        assert_eq!(sum(text, "c_total"), None);
        assert_eq!(sum(text, "d"), Some(7));
    }
}
