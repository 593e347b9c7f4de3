//! Clusters and jobs that several cases use, and how they are looked at.

use serde_json::{Value, json};

use crate::Outcome;
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{Seen, done_if, until};

/// Time for a cluster to be Ready on a machine that is busy with other cases.
pub(crate) const READY_SECONDS_MAX: u64 = 120;
/// Time for a job of a few seconds to end on such a machine.
pub(crate) const JOB_SECONDS_MAX: u64 = 240;
/// Time for objects to be gone.
pub(crate) const GONE_SECONDS_MAX: u64 = 90;

/// Group and version of all kinds.
pub(crate) const API_VERSION: &str = "kubernetes.dask.org/v1";

/// A small cluster that fits beside others.
pub(crate) fn cluster(name: &str, workers: u32) -> String {
    json!({
        "apiVersion": API_VERSION,
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": cluster_spec(workers),
    })
    .to_string()
}

fn cluster_spec(workers: u32) -> Value {
    json!({"worker": {
        "replicas": workers,
        "threads": 1,
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "50m", "memory": "64Mi"}},
    }})
}

/// Starts a small cluster and waits until it is Ready.
pub(crate) fn start_cluster(kubectl: &Kubectl, name: &str, workers: u32) -> Outcome {
    kubectl.apply(&cluster(name, workers))?;
    wait_ready(kubectl, name)
}

/// `kubectl wait` for the condition.
pub(crate) fn wait_ready(kubectl: &Kubectl, cluster: &str) -> Outcome {
    let object = format!("daskcluster/{cluster}");
    let arguments = ["wait", "--for=condition=Ready", object.as_str()];
    let waited = kubectl.run_long(&arguments, READY_SECONDS_MAX);
    waited.map(drop).map_err(|error| {
        let conditions = kubectl
            .get(&object)
            .map(|object| object["status"].to_string());
        failure(format!(
            "{error}\nstatus: {}",
            conditions.unwrap_or_default()
        ))
    })
}

/// Work that takes a while, with a result that shows whether all of it was done once: one task
/// after the other on each worker, and the sum of `1..=tasks` at the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sleeps {
    /// How many.
    pub(crate) tasks: u64,
    /// How long each.
    pub(crate) seconds: f64,
}

/// Enough for something to happen meanwhile.
pub(crate) const A_WHILE: Sleeps = Sleeps {
    tasks: 30,
    seconds: 1.0,
};

impl Sleeps {
    /// The job, on two workers.
    pub(crate) fn job(self, name: &str) -> String {
        job(name, 2, &self.graph())
    }

    fn graph(self) -> Value {
        let mut tasks = Vec::new();
        let mut parts = Vec::new();
        for number in 1..=self.tasks {
            let (pause, part) = (format!("pause-{number}"), format!("part-{number}"));
            tasks.push(json!({"key": pause, "op": "sleep", "args": {"seconds": self.seconds}}));
            tasks.push(json!({
                "key": part, "op": "value", "inputs": [pause], "args": {"value": number},
            }));
            parts.push(part);
        }
        tasks.push(json!({"key": "total", "op": "sum", "inputs": parts}));
        json!({"outputs": ["total"], "tasks": tasks})
    }

    /// Fails unless these rows are the right result.
    pub(crate) fn check(self, rows: &[Value]) -> Outcome {
        let total = self.tasks * (self.tasks + 1) / 2;
        expect_rows(rows, &[json!({"key": "total", "value": total})])
    }
}

/// A job with work of kind `graph`.
pub(crate) fn job(name: &str, workers: u32, graph: &Value) -> String {
    json!({
        "apiVersion": API_VERSION,
        "kind": "DaskJob",
        "metadata": {"name": name},
        "spec": {"cluster": {"spec": cluster_spec(workers)}, "graph": graph},
    })
    .to_string()
}

/// Waits until the job has this final status.
pub(crate) fn wait_job(kubectl: &Kubectl, job: &str, wanted: &str, seconds: u64) -> Outcome {
    until(&format!("job {job} to be {wanted}"), seconds, || {
        let found = kubectl.get(&format!("daskjob/{job}"))?;
        let state = found["status"]["jobStatus"].as_str().unwrap_or_default();
        Ok(match state {
            state if state == wanted => Seen::Done(()),
            "Successful" | "Failed" => Seen::Never(format!(
                "{state}; the runner's log:\n{}",
                runner_log(kubectl, job).unwrap_or_default()
            )),
            _ => Seen::NotYet(format!("status {}", found["status"])),
        })
    })
}

/// Waits until some tasks of the job are done and others are not.
pub(crate) fn wait_busy(kubectl: &Kubectl, job: &str) -> Outcome {
    until(
        &format!("the runner's log of job {job} to show tasks done"),
        READY_SECONDS_MAX,
        || {
            let log = runner_log(kubectl, job)?;
            let is_over = log.lines().any(|line| line.starts_with("done: "));
            Ok(match tasks_done(&log) {
                _ if is_over => Seen::Never(format!("it is over: {log}")),
                Some(1..) => Seen::Done(()),
                _ => Seen::NotYet(log),
            })
        },
    )
}

/// How many tasks the last line of progress says are done.
pub(crate) fn tasks_done(log: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.contains(" tasks done"))?;
    line.split_whitespace()
        .next()?
        .replace(',', "")
        .parse()
        .ok()
}

/// Both outputs of the runner.
pub(crate) fn runner_log(kubectl: &Kubectl, job: &str) -> Outcome<String> {
    kubectl.run(&["logs", &format!("{job}-runner")])
}

/// The data among lines: each is an object.
pub(crate) fn rows(log: &str) -> Outcome<Vec<Value>> {
    let lines = log.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Fails unless the rows are these.
pub(crate) fn expect_rows(found: &[Value], wanted: &[Value]) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(failure(format!(
        "the rows are\n{}\ninstead of\n{}",
        lines(found),
        lines(wanted)
    )))
}

fn lines(rows: &[Value]) -> String {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    lines.join("\n")
}

/// Waits until the job's cluster and everything of it is gone and the job with its runner stays.
pub(crate) fn wait_only_job_left(kubectl: &Kubectl, job: &str) -> Outcome {
    until(
        &format!("the cluster of job {job} to be gone"),
        GONE_SECONDS_MAX,
        || {
            let cluster = kubectl.find(&format!("daskcluster/{job}"))?;
            let workers = workers(kubectl, job)?;
            done_if(
                cluster.is_none() && workers.is_empty(),
                format!("cluster: {}, workers: {}", cluster.is_some(), workers.len()),
            )
        },
    )?;
    kubectl.get(&format!("daskjob/{job}"))?;
    kubectl.get(&format!("pod/{job}-runner")).map(drop)
}

/// The scheduler's pods that are not being deleted.
pub(crate) fn schedulers(kubectl: &Kubectl, cluster: &str) -> Outcome<Vec<Value>> {
    pods(kubectl, cluster, "scheduler")
}

/// The workers' pods that are not being deleted.
pub(crate) fn workers(kubectl: &Kubectl, cluster: &str) -> Outcome<Vec<Value>> {
    pods(kubectl, cluster, "worker")
}

fn pods(kubectl: &Kubectl, cluster: &str, component: &str) -> Outcome<Vec<Value>> {
    let selector = format!("dask.org/cluster-name={cluster},dask.org/component={component}");
    let mut pods = kubectl.list("pods", &selector)?;
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

/// Waits until the cluster has exactly so many workers and all are ready.
pub(crate) fn wait_workers(kubectl: &Kubectl, cluster: &str, count: usize) -> Outcome<Vec<Value>> {
    until(
        &format!("cluster {cluster} to have {count} ready workers"),
        READY_SECONDS_MAX,
        || {
            let workers = workers(kubectl, cluster)?;
            let ready = workers
                .iter()
                .filter(|pod| has(pod, "Ready", "True"))
                .count();
            if workers.len() == count && ready == count {
                return Ok(Seen::Done(workers));
            }
            Ok(Seen::NotYet(format!(
                "{} workers, {ready} ready",
                workers.len()
            )))
        },
    )
}

/// Whether an object has a condition with this status.
pub(crate) fn has(object: &Value, condition: &str, status: &str) -> bool {
    find_condition(object, condition).is_some_and(|found| found["status"] == status)
}

/// A condition of an object.
pub(crate) fn find_condition<'a>(object: &'a Value, condition: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|found| found["type"] == condition)
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object's identity, which a new object of the same name does not have.
pub(crate) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The events about objects whose name begins so, one line each.
pub(crate) fn events(kubectl: &Kubectl, name: &str) -> Outcome<Vec<String>> {
    let events = kubectl.list("events", "")?;
    let lines = events.iter().filter_map(|event| {
        let object = &event["involvedObject"]["name"];
        let line = format!(
            "{} {} {}",
            event["type"].as_str()?,
            event["reason"].as_str()?,
            event["message"].as_str().unwrap_or_default()
        );
        object.as_str()?.starts_with(name).then_some(line)
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_and_rows_are_found_in_a_log() {
        let log = "waiting\n12 of 1,061 tasks done (pause 12/30); 2 workers\n{\"a\": 1}\n\
                   1,001 of 1,061 tasks done; 2 workers\n{\"a\": 2}\ndone: 61 tasks in 1 s\n";
        assert_eq!(tasks_done(log), Some(1_001));
        assert_eq!(tasks_done("nothing yet"), None);
        assert_eq!(rows(log).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
    }

    #[test]
    fn the_sum_is_checked() {
        let sleeps = Sleeps {
            tasks: 4,
            seconds: 0.5,
        };
        let right = json!({"key": "total", "value": 10});
        assert!(sleeps.check(std::slice::from_ref(&right)).is_ok());
        assert!(sleeps.check(&[]).is_err());
        assert!(
            sleeps
                .check(&[json!({"key": "total", "value": 9})])
                .is_err()
        );
        assert!(sleeps.check(&[right.clone(), right]).is_err());
    }
}
