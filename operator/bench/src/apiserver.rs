//! Worker pods on a real API server, beside a bare client that does nothing but create the same pods.
//!
//! No kubelet and no scheduler of Kubernetes takes the pods, so what is compared is the API server's
//! time for them and what the operator adds. Both sides take turns in one run, each in a namespace of
//! its own that is gone before the next begins.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::figure::{Figure, amount, quantile};
use crate::process::Operator;
use crate::stage::{LIMIT, cluster};
use crate::{Failure, Settings};

const CLUSTERS: usize = 10;
const WORKERS: usize = 500;

/// Requests that the bare client has on their way, as many as the operator.
const REQUESTS_MAX: usize = 64;

/// Each look costs the server as much as a pod; the bare client does not look.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Nobody of this name binds pods.
const NO_SCHEDULER: &str = "nobody";

/// Pods a second by the operator as a part of those by the bare client.
pub(crate) async fn rate(settings: &Settings, kubeconfig: &Path) -> Result<Vec<Figure>, Failure> {
    let options = KubeConfigOptions::default();
    let config = Kubeconfig::read_from(kubeconfig)?;
    let client = Client::try_from(Config::from_custom_kubeconfig(config, &options).await?)?;
    let workers = settings.size(WORKERS);
    let pods = CLUSTERS * workers;
    let (mut parts, mut bare, mut operated) = (Vec::new(), Vec::new(), Vec::new());
    // One made by the operator is what the bare client makes, too.
    let mut body = None;
    for run in 0..=settings.runs {
        let space = Space::create(&client, &format!("bench-operator-{run}")).await?;
        let operator = Operator::start(&settings.operator, kubeconfig, &[]).await?;
        let seconds = operated_seconds(&space, workers).await?;
        let by_operator = amount(pods) / seconds;
        body = body.or(space.worker().await?);
        space.delete_clusters().await?;
        space.delete().await?;
        operator.kill().await?;
        if run == 0 {
            // The server's caches are cold, and there was no body yet.
            continue;
        }
        let pod = body.clone().ok_or("the operator made no worker")?;
        let space = Space::create(&client, &format!("bench-bare-{run}")).await?;
        let alone = amount(pods) / bare_seconds(&space, &pod, pods).await?;
        space.delete().await?;
        parts.push(100.0 * by_operator / alone);
        operated.push(by_operator);
        bare.push(alone);
    }
    let (operated, bare) = (quantile(&operated, 0.5), quantile(&bare, 0.5));
    let what = format!("{pods} pods on a real API server, part of a bare client's rate");
    let note = format!(
        "{operated:.0} against {bare:.0} pods a second, {REQUESTS_MAX} requests at a time; no \
         kubelet or scheduler takes them"
    );
    Ok(vec![Figure::new(what, "70 %", "%", parts).note(note)])
}

/// From the manifests to the last pod.
async fn operated_seconds(space: &Space, workers: usize) -> Result<f64, Failure> {
    // The operator is there and has seen that there is nothing.
    space.create_cluster("warm", 1).await?;
    space.wait_for_pods(2).await?;
    let start = Instant::now();
    for number in 0..CLUSTERS {
        space.create_cluster(&format!("c{number}"), workers).await?;
    }
    // Each has a scheduler.
    space.wait_for_pods(2 + CLUSTERS * (workers + 1)).await?;
    Ok(start.elapsed().as_secs_f64())
}

async fn bare_seconds(space: &Space, pod: &Pod, pods: usize) -> Result<f64, Failure> {
    let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
    let mut requests = JoinSet::new();
    let start = Instant::now();
    for number in 0..pods {
        let (api, turns) = (space.pods.clone(), Arc::clone(&turns));
        let mut pod = pod.clone();
        pod.metadata.name = Some(format!("pod-{number}"));
        requests.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            api.create(&PostParams::default(), &pod).await?;
            Ok::<(), Failure>(())
        });
    }
    while let Some(request) = requests.join_next().await {
        request??;
    }
    let seconds = start.elapsed().as_secs_f64();
    space.wait_for_pods(pods).await?;
    Ok(seconds)
}

/// A namespace and what is looked at in it.
struct Space {
    client: Client,
    name: String,
    pods: Api<Pod>,
    clusters: Api<DynamicObject>,
}

impl Space {
    async fn create(client: &Client, name: &str) -> Result<Self, Failure> {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let namespaces = Api::<Namespace>::all(client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        // Without it no pod is admitted.
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), name);
        until("service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await?;
        let kind = GroupVersionKind::gvk("kubernetes.dask.org", "v1", "DaskCluster");
        let kind = ApiResource::from_gvk(&kind);
        Ok(Self {
            client: client.clone(),
            name: name.to_owned(),
            pods: Api::namespaced(client.clone(), name),
            clusters: Api::namespaced_with(client.clone(), name, &kind),
        })
    }

    async fn create_cluster(&self, name: &str, workers: usize) -> Result<(), Failure> {
        let mut manifest = cluster(name, workers);
        manifest["metadata"]["namespace"] = json!(self.name);
        manifest["spec"]["runtime"] = json!("Rust");
        for part in ["scheduler", "worker"] {
            manifest["spec"][part]["spec"] = json!({
                "schedulerName": NO_SCHEDULER, "containers": [{"name": part}],
            });
        }
        let manifest: DynamicObject = serde_json::from_value(manifest)?;
        self.clusters
            .create(&PostParams::default(), &manifest)
            .await?;
        Ok(())
    }

    /// How many pods there are, without reading them all.
    async fn count(&self) -> Result<usize, Failure> {
        let one = ListParams::default().limit(1);
        let page = self.pods.list_metadata(&one).await?;
        let others = page.metadata.remaining_item_count.unwrap_or(0);
        Ok(page.items.len() + usize::try_from(others)?)
    }

    async fn wait_for_pods(&self, pods: usize) -> Result<(), Failure> {
        until("last pod", async || Ok(self.count().await? >= pods)).await
    }

    /// A worker as the operator makes it, without what belongs to that one alone.
    async fn worker(&self) -> Result<Option<Pod>, Failure> {
        let workers = ListParams::default()
            .labels("dask.org/component=worker")
            .limit(1);
        let mut found = self.pods.list(&workers).await?.items;
        Ok(found.pop().map(|pod| {
            let mut spec = pod.spec.unwrap_or_default();
            // The cluster's own.
            (spec.service_account, spec.service_account_name) = (None, None);
            Pod {
                metadata: ObjectMeta {
                    labels: pod.metadata.labels,
                    annotations: pod.metadata.annotations,
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
                status: None,
            }
        }))
    }

    /// The operator takes their children down.
    async fn delete_clusters(&self) -> Result<(), Failure> {
        let all = ListParams::default();
        self.clusters
            .delete_collection(&DeleteParams::default(), &all)
            .await?;
        until("end of the clusters", async || {
            Ok(self.clusters.list_metadata(&all).await?.items.is_empty())
        })
        .await
    }

    async fn delete(self) -> Result<(), Failure> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        // Not one by one at the end of a grace period: no kubelet will confirm it.
        self.pods
            .delete_collection(
                &DeleteParams::default().grace_period(0),
                &ListParams::default(),
            )
            .await?;
        namespaces
            .delete(&self.name, &DeleteParams::default())
            .await?;
        until("end of the namespace", async || {
            Ok(namespaces.get_opt(&self.name).await?.is_none())
        })
        .await
    }
}

async fn until(
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let start = Instant::now();
    while !holds().await? {
        if start.elapsed() > LIMIT {
            return Err(format!("the {what} does not come").into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
