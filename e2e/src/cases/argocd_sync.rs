//! A real Argo CD installs all of it from a git repository, in waves.

use serde_json::Value;

use crate::Outcome;
use crate::argocd::{ArgoCd, REPOSITORY, resource, summary};
use crate::case::{Case, Context};
use crate::dask::{GONE_SECONDS_MAX, find_condition, name, wait_workers};
use crate::helm::{DEFINITIONS, OPERATOR, install_chart, uninstall_chart};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{done_if, stays, until};

pub(crate) const CASE: Case = Case {
    name: "argocd_sync",
    about: "definitions, operator, cluster and job by waves; Synced while scaling; git rolls; failures show",
    run,
};

const EXAMPLE: &str = "deploy/argocd/example";
const ROOT: &str = "dask";
const WORKLOAD: &str = "dask-workload";
/// Where the example puts the operator.
const OPERATOR_NAMESPACE: &str = "oxidask";
const CLUSTER: &str = "analytics";
const JOB: &str = "squares";
const SYNC_SECONDS_MAX: u64 = 240;
const STAYS_SECONDS: u64 = 8;
const BROKEN: &str = "deploy/argocd/example/workload/broken.yaml";
const BROKEN_JOB: &str = r#"
apiVersion: kubernetes.dask.org/v1
kind: DaskJob
metadata:
  name: broken
  annotations: {argocd.argoproj.io/sync-wave: "2"}
spec:
  cluster:
    spec:
      worker:
        replicas: 1
        resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 512Mi}}
  sql: {statements: "SELECT no_such_column"}
"#;
const GREETING: &str = "E2E_GREETING";
const DEFINED: [&str; 4] = [
    "daskclusters.kubernetes.dask.org",
    "daskworkergroups.kubernetes.dask.org",
    "daskjobs.kubernetes.dask.org",
    "daskautoscalers.kubernetes.dask.org",
];

fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    if !settings.has_helm() || settings.lab.as_os_str().is_empty() {
        return Err(failure(
            "this case installs the charts itself, in a lab: it needs `--helm` and `--lab`",
        ));
    }
    // What Helm installed is not Argo CD's to manage.
    uninstall_chart(settings, OPERATOR)?;
    uninstall_chart(settings, DEFINITIONS)?;
    delete_definitions(&context.kubectl)?;
    let argocd = ArgoCd::start(settings)?;
    let outcome = synced(context, &argocd);
    if let Err(error) = &outcome {
        crate::say!("argocd_sync: {error}; taking it down");
    }
    let removed = remove(context, &argocd);
    drop(argocd);
    // Other cases want the charts, whatever came of this one.
    install_chart(settings, DEFINITIONS)?;
    install_chart(settings, OPERATOR)?;
    outcome.and(removed)
}

fn synced(context: &Context, argocd: &ArgoCd<'_>) -> Outcome {
    publish(context, argocd)?;
    argocd.wait(ROOT, "Healthy", SYNC_SECONDS_MAX)?;
    let workload = argocd.wait(WORKLOAD, "Healthy", SYNC_SECONDS_MAX)?;
    for kind in ["DaskCluster", "DaskJob"] {
        let health = resource(&workload, kind).map(|found| &found["health"]["status"]);
        if health.and_then(Value::as_str) != Some("Healthy") {
            return Err(failure(format!("{kind}: {}", summary(&workload))));
        }
    }
    in_order(&context.kubectl)?;
    scaled(context, argocd)?;
    changed(context, argocd)?;
    broken(argocd)
}

/// The repository is the example, at this lab's addresses.
fn publish(context: &Context, argocd: &ArgoCd<'_>) -> Outcome {
    let namespace = format!("namespace: {}", context.kubectl.namespace());
    let localized = |text: &str| {
        text.replace("https://git.example.com/team/dask.git", REPOSITORY)
            .replace("namespace: analytics", &namespace)
    };
    argocd.copy("charts", &str::to_owned)?;
    argocd.copy(EXAMPLE, &localized)?;
    argocd.push("The example")?;
    let root = std::fs::read_to_string(context.settings.root.join(EXAMPLE).join("root.yaml"))?;
    argocd.kubectl.apply(&localized(&root)).map(drop)
}

/// The job was made when the cluster was ready, not before. Times of Kubernetes sort as texts.
fn in_order(kubectl: &Kubectl) -> Outcome {
    let cluster = kubectl.get(&format!("daskcluster/{CLUSTER}"))?;
    let job = kubectl.get(&format!("daskjob/{JOB}"))?;
    let ready = find_condition(&cluster, "Ready").map(|found| &found["lastTransitionTime"]);
    let ready = ready.and_then(Value::as_str).unwrap_or("never");
    let made = job["metadata"]["creationTimestamp"].as_str();
    match made {
        Some(made) if made >= ready => Ok(()),
        _ => Err(failure(format!(
            "the cluster was ready at {ready}, the job was made at {made:?}"
        ))),
    }
}

/// The operator's own objects are none of Argo CD's concern: scaling them is no difference.
fn scaled(context: &Context, argocd: &ArgoCd<'_>) -> Outcome {
    let kubectl = &context.kubectl;
    let group = format!("{CLUSTER}-default");
    kubectl.run(&["scale", "daskworkergroup", &group, "--replicas=3"])?;
    let workers = wait_workers(kubectl, CLUSTER, 3)?;
    let group = kubectl.get(&format!("daskworkergroup/{group}"))?;
    for object in workers.iter().chain([&group]) {
        let metadata = object["metadata"].to_string();
        if metadata.contains("argocd.argoproj.io/tracking-id") {
            return Err(failure(format!(
                "{} is tracked by Argo CD: {metadata}",
                name(object)
            )));
        }
    }
    argocd.refresh(WORKLOAD)?;
    stays("Synced while scaled", STAYS_SECONDS, || {
        let found = argocd.application(WORKLOAD)?;
        let is_synced = found["status"]["sync"]["status"] == "Synced";
        done_if(is_synced, summary(&found))
    })
}

/// A change in git reaches the pods.
fn changed(context: &Context, argocd: &ArgoCd<'_>) -> Outcome {
    let kubectl = &context.kubectl;
    let path = format!("{EXAMPLE}/workload/cluster.yaml");
    let text = std::fs::read_to_string(context.settings.root.join(&path))?;
    let text = text.replace(
        "    replicas: 2\n",
        &format!("    replicas: 1\n    env: [{{name: {GREETING}, value: hello}}]\n"),
    );
    argocd.write(&path, &text)?;
    argocd.push("Fewer workers, with a greeting")?;
    argocd.wait_newest(WORKLOAD, "Healthy", SYNC_SECONDS_MAX)?;
    until(
        "the one worker to be of the new kind",
        SYNC_SECONDS_MAX,
        || {
            let workers = wait_workers(kubectl, CLUSTER, 1)?;
            let pods: Vec<String> = workers.iter().map(Value::to_string).collect();
            let is_new = pods.iter().all(|pod| pod.contains(GREETING));
            done_if(is_new, format!("{} without it", pods.len()))
        },
    )?;
    argocd.wait(WORKLOAD, "Healthy", SYNC_SECONDS_MAX).map(drop)
}

/// A job that fails shows in Argo CD, with the reason; without it all is well again.
fn broken(argocd: &ArgoCd<'_>) -> Outcome {
    argocd.write(BROKEN, BROKEN_JOB)?;
    argocd.push("A job that fails")?;
    let found = argocd.wait_newest(WORKLOAD, "Degraded", SYNC_SECONDS_MAX)?;
    let resources = found["status"]["resources"].as_array();
    let shown = resources
        .into_iter()
        .flatten()
        .find(|resource| resource["name"] == "broken");
    let message = shown.and_then(|shown| shown["health"]["message"].as_str());
    if !message.is_some_and(|message| message.contains("no_such_column")) {
        return Err(failure(format!("no reason: {}", summary(&found))));
    }
    argocd.remove(BROKEN)?;
    argocd.push("No job that fails")?;
    argocd
        .wait_newest(WORKLOAD, "Healthy", SYNC_SECONDS_MAX)
        .map(drop)
}

/// First what is worked on, then who works on it.
fn remove(context: &Context, argocd: &ArgoCd<'_>) -> Outcome {
    let kubectl = &context.kubectl;
    // The root would make its applications again.
    let pause = r#"{"spec":{"syncPolicy":null},"metadata":{"finalizers":null}}"#;
    let root = format!("application/{ROOT}");
    argocd
        .kubectl
        .run(&["patch", &root, "--type=merge", "--patch", pause])?;
    argocd.kubectl.run(&["delete", &root])?;
    let workload = format!("application/{WORKLOAD}");
    argocd.kubectl.run_long(
        &["delete", &workload, "--ignore-not-found"],
        GONE_SECONDS_MAX,
    )?;
    until("nothing of the workload", GONE_SECONDS_MAX, || {
        let left = kubectl.run(&["get", "daskclusters,daskjobs", "-o", "name"])?;
        done_if(left.trim().is_empty(), left)
    })?;
    argocd
        .kubectl
        .run_long(&["delete", "applications", "--all"], GONE_SECONDS_MAX)?;
    let instances = "app.kubernetes.io/part-of=oxidask";
    for kind in ["clusterrole", "clusterrolebinding"] {
        kubectl.run(&["delete", kind, "--selector", instances])?;
    }
    kubectl.run(&[
        "delete",
        "clusterrole",
        "dask-definitions-edit",
        "dask-definitions-view",
        "--ignore-not-found",
    ])?;
    kubectl.run_long(
        &[
            "delete",
            "namespace",
            OPERATOR_NAMESPACE,
            "argocd",
            "--ignore-not-found",
        ],
        GONE_SECONDS_MAX,
    )?;
    delete_definitions(kubectl)
}

/// So that the next one to install them owns them.
fn delete_definitions(kubectl: &Kubectl) -> Outcome {
    let arguments = [
        &["delete", "customresourcedefinition", "--ignore-not-found"][..],
        &DEFINED,
    ];
    kubectl
        .run_long(&arguments.concat(), GONE_SECONDS_MAX)
        .map(drop)
}
