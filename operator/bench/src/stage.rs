//! A server and an operator beside it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use oxidask_fake_api::{Fake, Kubelet, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Operator;
use crate::{Failure, Settings};

/// How long a load may take at most.
pub(crate) const LIMIT: Duration = Duration::from_mins(5);

/// No write for this long counts as the end of the work.
const SILENCE: Duration = Duration::from_millis(1500);

pub(crate) const NAMESPACE: &str = "n";

/// A server and where its kubeconfig is.
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    folder: TempDir,
    binary: PathBuf,
}

impl Stage {
    pub(crate) async fn new(settings: &Settings) -> Result<Self, Failure> {
        let kubelet = Kubelet {
            ready_after: Duration::from_millis(20),
            vanish_after: Duration::from_millis(20),
            runs_for: None,
        };
        let options = Options {
            kubelet: Some(kubelet),
            ..Options::default()
        };
        let fake = Fake::start(options).await?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config"), fake.kubeconfig())?;
        Ok(Self {
            fake,
            folder,
            binary: settings.operator.clone(),
        })
    }

    pub(crate) async fn operator(&self, arguments: &[String]) -> Result<Operator, Failure> {
        let operator =
            Operator::start(&self.binary, &self.folder.path().join("config"), arguments).await?;
        self.until("the operator does not become ready", || {
            self.fake.calls().of(oxidask_fake_api::Verb::Watch, "Pod") > 0
        })
        .await?;
        Ok(operator)
    }

    /// Starts one without waiting for anything.
    pub(crate) async fn operator_at_once(&self) -> Result<Operator, Failure> {
        Operator::start(&self.binary, &self.folder.path().join("config"), &[]).await
    }

    /// Waits until something holds; how long that took.
    pub(crate) async fn until(
        &self,
        otherwise: &str,
        holds: impl Fn() -> bool,
    ) -> Result<Duration, Failure> {
        let start = Instant::now();
        if self.fake.until(LIMIT, |_| holds()).await {
            return Ok(start.elapsed());
        }
        let log = self.folder.path().join("config.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        Err(format!("{otherwise}; the operator said last: {}", lines.join("\n")).into())
    }

    /// Waits until nothing is written any more.
    pub(crate) async fn until_silent(&self) -> Result<(), Failure> {
        let end = Instant::now() + LIMIT;
        loop {
            let before = self.fake.calls().writes_but("Lease");
            tokio::time::sleep(SILENCE).await;
            if self.fake.calls().writes_but("Lease") == before {
                return Ok(());
            }
            if Instant::now() > end {
                return Err("the operator goes on writing".into());
            }
        }
    }

    pub(crate) fn create(&self, name: &str, workers: usize) -> Result<(), Failure> {
        self.fake.create(cluster(name, workers))?;
        Ok(())
    }

    pub(crate) fn scale(&self, cluster: &str, workers: usize) -> Result<(), Failure> {
        let patch = json!({"spec": {"worker": {"replicas": workers}}});
        self.fake.merge("DaskCluster", NAMESPACE, cluster, &patch)?;
        Ok(())
    }

    /// Workers of the default group that live.
    pub(crate) fn workers(&self, cluster: &str) -> usize {
        self.fake.living(NAMESPACE, &format!("{cluster}-default")).0
    }

    /// Whether the status says that so many workers are ready.
    pub(crate) fn is_ready(&self, cluster: &str, workers: usize) -> bool {
        let found = self.fake.get("DaskCluster", NAMESPACE, cluster);
        found.is_some_and(|it| it["status"]["readyReplicas"] == json!(workers) && is_ready(&it))
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
}

pub(crate) fn cluster(name: &str, workers: usize) -> Value {
    json!({
        "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"worker": {"replicas": workers, "resources": {
            "limits": {"cpu": "2", "memory": "4Gi"},
        }}},
    })
}
