//! Two pods of the operator, and the end of the one that leads.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{READY_SECONDS_MAX, name, start_cluster, wait_workers, workers};
use crate::operator::Operator;
use crate::process::failure;
use crate::wait::{Seen, done_if, until};

pub(crate) const CASE: Case = Case {
    name: "operator_standby",
    about: "of two operators one leads; when it is killed the other acts within 15 s",
    run,
};

const ACTS_WITHIN: Duration = Duration::from_secs(15);

fn run(context: &Context) -> Outcome {
    let operator = Operator::new(&context.settings);
    operator.scale(2)?;
    let outcome = with_two(context, &operator);
    // Other cases expect one.
    operator.scale(1)?;
    outcome
}

fn with_two(context: &Context, operator: &Operator) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    let leader = until("a pod of the operator to lead", READY_SECONDS_MAX, || {
        operator.leader().map(Seen::Done)
    })?;
    let pods = operator.pods()?;
    let pod = pods.iter().find(|pod| name(pod) == leader);
    let begin = Instant::now();
    operator.kill(pod.ok_or_else(|| failure("the leader is gone"))?)?;
    kubectl.run(&["scale", "daskcluster", "c", "--replicas=2"])?;
    until("another worker", READY_SECONDS_MAX, || {
        let count = workers(kubectl, "c")?.len();
        done_if(count == 2, format!("{count} workers"))
    })?;
    let took = begin.elapsed();
    if took > ACTS_WITHIN {
        return Err(failure(format!("the standby acted after {took:?}")));
    }
    let next = operator.leader()?;
    let was_there = pods.iter().any(|pod| name(pod) == next);
    if next == leader || !was_there {
        return Err(failure(format!(
            "{next} leads after {leader}; it was there: {was_there}"
        )));
    }
    wait_workers(kubectl, "c", 2).map(drop)
}
