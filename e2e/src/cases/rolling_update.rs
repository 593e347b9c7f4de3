//! A new image and new resources roll through a cluster that works.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    READY_SECONDS_MAX, Sleeps, cluster_with_journal, has, name, schedulers, uid, wait_ready,
    wait_said, workers,
};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::submission::Submission;
use crate::volume::Volume;
use crate::wait::{Seen, done_if, stays, until};

pub(crate) const CASE: Case = Case {
    name: "rolling_update",
    about: "new image and resources roll, nothing recomputed; a bad image stops and says why",
    run,
};

const WORKERS: usize = 2;
const WORK: Sleeps = Sleeps {
    tasks: 240,
    seconds: 0.5,
};
/// No image is there, and nobody listens: the kubelet knows at once.
pub(crate) const BAD_IMAGE: &str = "127.0.0.1:1/oxidask/none:1";
/// A scheduler and the workers, one after the other.
const ROLL_SECONDS_MAX: u64 = 120;
const SAID_SECONDS_MAX: u64 = 30;
const STAYS_SECONDS: u64 = 5;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let volume = Volume::create(kubectl)?;
    kubectl.apply(&cluster_with_journal("c", 2, &volume.name))?;
    wait_ready(kubectl, "c")?;
    let image = image(&scheduler(kubectl)?).to_owned();
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(20)?;

    // Resources are the workers' own: the scheduler goes on.
    let old = scheduler(kubectl)?;
    set(
        kubectl,
        &json!({"worker": {"resources": {"limits": {"memory": "384Mi"}}}}),
    )?;
    wait_rolled(kubectl, "c", WORKERS, |pod| {
        pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "384Mi"
    })?;
    if uid(&scheduler(kubectl)?) != uid(&old) {
        return Err(failure("workers' resources have restarted the scheduler"));
    }

    // The same image by another name, as a new tag would be: the scheduler comes first.
    let new = other_name(&image)?;
    let both = json!({"scheduler": {"image": new}, "worker": {"image": new}});
    set(kubectl, &both)?;
    wait_rolled(kubectl, "c", WORKERS, |pod| self::image(pod) == new)?;
    let scheduler = scheduler(kubectl)?;
    let is_first = |worker: &Value| created(&scheduler) <= created(worker);
    if self::image(&scheduler) != new || !workers(kubectl, "c")?.iter().all(is_first) {
        return Err(failure("the scheduler's new image was not the first"));
    }
    work.finish()?;
    let recomputed = work.recomputed()?;
    if recomputed != 0 {
        return Err(failure(format!("{recomputed} tasks were computed again")));
    }
    bad_image(kubectl, &new)
}

/// It stops at the first pod, says so, and goes on when the image is right.
fn bad_image(kubectl: &Kubectl, right: &str) -> Outcome {
    let before = ready_workers(kubectl)?;
    set(kubectl, &json!({"worker": {"image": BAD_IMAGE}}))?;
    wait_said(
        kubectl,
        "daskcluster/c",
        &[&[BAD_IMAGE], &["ErrImagePull", "ImagePullBackOff", "pull"]],
        SAID_SECONDS_MAX,
    )?;
    stays("all former workers ready", STAYS_SECONDS, || {
        let now = ready_workers(kubectl)?;
        done_if(
            before.iter().all(|uid| now.contains(uid)),
            format!("{now:?} instead of {before:?}"),
        )
    })?;
    set(kubectl, &json!({"worker": {"image": right}}))?;
    wait_rolled(kubectl, "c", WORKERS, |pod| image(pod) == right)
}

fn ready_workers(kubectl: &Kubectl) -> Outcome<Vec<String>> {
    let workers = workers(kubectl, "c")?;
    let ready = workers.iter().filter(|pod| has(pod, "Ready", "True"));
    Ok(ready.map(|pod| uid(pod).to_owned()).collect())
}

fn set(kubectl: &Kubectl, fields: &Value) -> Outcome {
    let patch = json!({"spec": fields});
    kubectl.patch("daskcluster/c", &patch).map(drop)
}

/// Waits until there are exactly so many workers, all of them new and ready.
pub(crate) fn wait_rolled(
    kubectl: &Kubectl,
    cluster: &str,
    count: usize,
    is_new: impl Fn(&Value) -> bool,
) -> Outcome {
    let what = format!("{count} workers of the new template");
    until(&what, ROLL_SECONDS_MAX, || {
        let workers = workers(kubectl, cluster)?;
        let new = workers
            .iter()
            .filter(|pod| is_new(pod) && has(pod, "Ready", "True"));
        let new = new.count();
        Ok(if workers.len() == count && new == count {
            Seen::Done(())
        } else {
            let names: Vec<&str> = workers.iter().map(name).collect();
            Seen::NotYet(format!("{new} new and ready ones of {names:?}"))
        })
    })?;
    let ready = format!("daskcluster/{cluster}");
    let is_ready = ["wait", "--for=condition=Ready", ready.as_str()];
    kubectl.run_long(&is_ready, READY_SECONDS_MAX).map(drop)
}

fn scheduler(kubectl: &Kubectl) -> Outcome<Value> {
    let mut pods = schedulers(kubectl, "c")?;
    pods.pop().ok_or_else(|| failure("no scheduler"))
}

fn image(pod: &Value) -> &str {
    let container = &pod["spec"]["containers"][0];
    container["image"].as_str().unwrap_or_default()
}

fn created(object: &Value) -> &str {
    let created = &object["metadata"]["creationTimestamp"];
    created.as_str().unwrap_or_default()
}

/// A shorter name of an image of Docker Hub, which means the same.
fn other_name(image: &str) -> Outcome<String> {
    let short = image.strip_prefix("docker.io/");
    short
        .map(str::to_owned)
        .ok_or_else(|| failure(format!("`{image}` has no other name that is known")))
}
