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
    cluster_with(name, workers, json!({}))
}

/// A small cluster whose spec has more fields.
pub(crate) fn cluster_with(name: &str, workers: u32, fields: Value) -> String {
    json!({
        "apiVersion": API_VERSION,
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": cluster_spec(workers, fields),
    })
    .to_string()
}

/// The journal of a scheduler, on a volume of this class.
pub(crate) fn journal(class: &str) -> Value {
    json!({"journal": {"volumeClaim": {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class,
        "resources": {"requests": {"storage": "1Gi"}},
    }}})
}

/// A small cluster whose scheduler keeps its journal on a volume of this class.
pub(crate) fn cluster_with_journal(name: &str, workers: u32, class: &str) -> String {
    cluster_with(name, workers, json!({"scheduler": journal(class)}))
}

/// The wanted cluster with small workers, and more fields.
pub(crate) fn cluster_spec(workers: u32, fields: Value) -> Value {
    let mut spec = json!({"worker": worker(workers)});
    merge(&mut spec, fields);
    spec
}

/// Small workers.
pub(crate) fn worker(workers: u32) -> Value {
    json!({
        "replicas": workers,
        "threads": 1,
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "20m", "memory": "48Mi"}},
    })
}

/// Lays objects over each other, as a merge patch without deletions does.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Starts a small cluster whose spec has more fields, and waits until it is Ready.
pub(crate) fn start_cluster_with(
    kubectl: &Kubectl,
    name: &str,
    workers: u32,
    fields: Value,
) -> Outcome {
    kubectl.apply(&cluster_with(name, workers, fields))?;
    wait_ready(kubectl, name)
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

/// Ten thousand tasks and one.
pub(crate) const MANY: Sleeps = Sleeps {
    tasks: 5_000,
    seconds: 0.008,
};

/// Enough for something to happen meanwhile.
pub(crate) const A_WHILE: Sleeps = Sleeps {
    tasks: 30,
    seconds: 1.0,
};

impl Sleeps {
    /// How many tasks that is.
    pub(crate) fn count(self) -> u64 {
        2 * self.tasks + 1
    }

    /// The job, on two workers.
    pub(crate) fn job(self, name: &str) -> String {
        job(name, 2, &self.graph())
    }

    /// The tasks.
    pub(crate) fn graph(self) -> Value {
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
    job_with(name, workers, json!({"graph": graph}))
}

/// A job whose spec has these fields beside a small cluster.
pub(crate) fn job_with(name: &str, workers: u32, fields: Value) -> String {
    let mut spec = json!({"cluster": {"spec": cluster_spec(workers, json!({}))}});
    merge(&mut spec, fields);
    json!({
        "apiVersion": API_VERSION,
        "kind": "DaskJob",
        "metadata": {"name": name},
        "spec": spec,
    })
    .to_string()
}

/// Work that is done at once, and its row.
pub(crate) fn quick() -> Value {
    json!({"tasks": [{"key": "quick", "op": "value", "args": {"value": 7}}]})
}

/// Fails unless the rows of the job's log are those of [`quick`].
pub(crate) fn check_quick(kubectl: &Kubectl, job: &str) -> Outcome {
    let wanted = json!({"key": "quick", "value": 7});
    expect_rows(&rows(&runner_log(kubectl, job)?)?, &[wanted])
}

/// Work that fails on purpose.
pub(crate) fn failing() -> Value {
    json!({"tasks": [{"key": "bad", "op": "fail", "args": {"message": "this task fails on purpose"}}]})
}

/// Waits until the status of a cluster or a job has one of the words of each list.
pub(crate) fn wait_said(
    kubectl: &Kubectl,
    object: &str,
    lists: &[&[&str]],
    seconds: u64,
) -> Outcome {
    until(&format!("{object} to say {lists:?}"), seconds, || {
        let status = kubectl.get(object)?["status"].to_string();
        let has_one = |words: &&[&str]| words.iter().any(|word| status.contains(word));
        done_if(lists.iter().all(has_one), status.clone())
    })
}

/// Waits until a condition has this status.
pub(crate) fn wait_condition(
    kubectl: &Kubectl,
    object: &str,
    condition: &str,
    status: &str,
    seconds: u64,
) -> Outcome {
    until(
        &format!("{object} to have {condition}={status}"),
        seconds,
        || {
            let found = kubectl.get(object)?;
            done_if(has(&found, condition, status), found["status"].to_string())
        },
    )
}

/// Waits until an object is gone.
pub(crate) fn wait_gone(kubectl: &Kubectl, object: &str, seconds: u64) -> Outcome {
    until(&format!("{object} to be gone"), seconds, || {
        let found = kubectl.find(object)?;
        done_if(found.is_none(), found.unwrap_or_default().to_string())
    })
}

/// The number of workers that a group is asked to have.
pub(crate) fn group_replicas(kubectl: &Kubectl, group: &str) -> Outcome<u64> {
    let group = kubectl.get(&format!("daskworkergroup/{group}"))?;
    let replicas = group["spec"]["worker"]["replicas"].as_u64();
    replicas.ok_or_else(|| failure(format!("no number of workers: {}", group["spec"])))
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
