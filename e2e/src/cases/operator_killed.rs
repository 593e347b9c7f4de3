//! The operator is killed again and again while a cluster grows and shrinks.

use std::time::Duration;

use serde_json::Value;

use crate::case::{Case, Context};
use crate::dask::{
    READY_SECONDS_MAX, Sleeps, schedulers, start_cluster, uid, wait_ready, wait_workers,
};
use crate::kubectl::Kubectl;
use crate::operator::Operator;
use crate::process::failure;
use crate::random::Random;
use crate::submission::Submission;
use crate::wait::{done_if, until};
use crate::{Outcome, say};

pub(crate) const CASE: Case = Case {
    name: "operator_killed",
    about: "20 kills amid scale-ups and scale-downs: right at the end, nothing doubled or run twice",
    run,
};

const KILLS: u64 = 20;
const SEED: u64 = 7;
const WORKERS_MAX: u64 = 5;
/// A kill comes at any time from a change to when it is mostly done.
const KILL_AFTER_MILLISECONDS_MAX: u64 = 2_500;
/// Work for all the time that the kills take.
const WORK: Sleeps = Sleeps {
    tasks: 700,
    seconds: 0.4,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let operator = Operator::new(&context.settings);
    start_cluster(kubectl, "c", 2)?;
    let before = schedulers(kubectl, "c")?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(1)?;
    let mut random = Random::new(SEED);
    let mut wanted = 2;
    for kill in 1..=KILLS {
        operator.wait_pods(1)?;
        // Never the same number again.
        wanted = 1 + (wanted + random.below(WORKERS_MAX - 1)) % WORKERS_MAX;
        scale(kubectl, wanted)?;
        let after = Duration::from_millis(random.below(KILL_AFTER_MILLISECONDS_MAX));
        std::thread::sleep(after);
        kill_leader(&operator).map_err(|error| {
            failure(format!("kill {kill} after {after:?}, seed {SEED}: {error}"))
        })?;
    }
    scale(kubectl, 3)?;
    wait_workers(kubectl, "c", 3)?;
    work.finish()?;
    work.check_once()?;
    wait_ready(kubectl, "c")?;
    check_nothing_doubled(kubectl, &before)
}

fn scale(kubectl: &Kubectl, workers: u64) -> Outcome {
    let replicas = format!("--replicas={workers}");
    let scaled = kubectl.run(&["scale", "daskcluster", "c", &replicas]);
    scaled.map(drop)
}

/// Kills the only pod, and waits until another one is ready, which is when it has seen everything.
fn kill_leader(operator: &Operator) -> Outcome {
    let pods = operator.wait_pods(1)?;
    let pod = pods.first().ok_or_else(|| failure("no operator"))?;
    operator.kill(pod)?;
    // How long a standby waits for a lease is shown by a case of its own.
    operator.end_lease()?;
    until("another pod of the operator", READY_SECONDS_MAX, || {
        let pods = operator.pods()?;
        let is_other = |other: &Value| uid(other) != uid(pod);
        done_if(pods.iter().any(is_other), format!("{} pods", pods.len()))
    })
}

fn check_nothing_doubled(kubectl: &Kubectl, before: &[Value]) -> Outcome {
    let after = schedulers(kubectl, "c")?;
    if before.iter().map(uid).ne(after.iter().map(uid)) {
        return Err(failure("the scheduler's pod is not the same any more"));
    }
    for (kind, wanted) in [
        ("deployments", 1),
        ("services", 1),
        ("daskworkergroups", 1),
        ("pods", 4),
    ] {
        let found = kubectl.list(kind, "dask.org/cluster-name=c")?;
        if found.len() != wanted {
            return Err(failure(format!("{} {kind}, not {wanted}", found.len())));
        }
    }
    say!("  operator_killed: {KILLS} kills with seed {SEED}");
    Ok(())
}
