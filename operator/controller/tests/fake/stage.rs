//! A server, operators beside it, manifests, and what has to hold in the end.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oxidask_fake_api::{Fake, FakeScheduler, Kubelet, Options, Verb};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long anything may take that needs no waiting by design. The machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(200);

/// No write for this long counts as silence.
const SILENCE: Duration = Duration::from_millis(1500);

pub(crate) const NAMESPACE: &str = "n";

const KINDS: [&str; 10] = [
    "Pod",
    "Service",
    "Deployment",
    "Secret",
    "ConfigMap",
    "DaskWorkerGroup",
    "DaskCluster",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ServiceAccount",
];

/// A server and a folder for what its operators say.
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    folder: TempDir,
    started: AtomicU32,
    /// Where operators look for the scheduler of any cluster.
    scheduler: SocketAddr,
}

/// An operator; it is killed when it is dropped.
pub(crate) struct Operator(Child);

impl Operator {
    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    /// One whose jobs' runners end well after a moment.
    pub(crate) async fn with_runners() -> Self {
        let kubelet = Kubelet {
            runs_for: Some(Duration::from_millis(50)),
            ..Kubelet::default()
        };
        Self::with(Options {
            kubelet: Some(kubelet),
            ..Options::default()
        })
        .await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let fake = Fake::start(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), fake.kubeconfig()).unwrap();
        Self {
            fake,
            folder,
            started: AtomicU32::new(0),
            scheduler: free_address(),
        }
    }

    /// Starts the scheduler of a cluster; only one cluster of a stage can have one.
    pub(crate) async fn scheduler(&self, cluster: &str) -> FakeScheduler {
        let place = (NAMESPACE, cluster);
        FakeScheduler::start(&self.fake, place, self.scheduler)
            .await
            .unwrap()
    }

    /// Starts an operator.
    pub(crate) fn operator(&self) -> Operator {
        self.operator_with(&[])
    }

    /// Starts an operator with further arguments.
    pub(crate) fn operator_with(&self, arguments: &[&str]) -> Operator {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.path().join(format!("operator-{number:03}.log"));
        let log = File::create(log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_oxidask-operator"))
            .args(["--http-bind", "127.0.0.1:0", "--log-level", "debug"])
            .args(["--scheduler-address-template", &self.scheduler.to_string()])
            .args(arguments)
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("HOSTNAME", format!("operator-{number}"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Operator(child)
    }

    /// Waits until an operator has listed what it watches, or is about to.
    pub(crate) async fn until_it_begins(&self) {
        self.until(|| match self.fake.calls().of(Verb::Watch, "Pod") {
            0 => Err("the operator watches no pods".to_owned()),
            _ => Ok(()),
        })
        .await;
    }

    /// Waits until something holds, and says what does not if it takes too long.
    pub(crate) async fn until(&self, what: impl Fn() -> Result<(), String>) {
        let holds = self.fake.until(SOON, |_| what().is_ok()).await;
        assert!(holds, "{}", what().unwrap_err());
    }

    /// Waits until the cluster is there as it should be.
    pub(crate) async fn until_whole(&self, cluster: &str, workers: usize) {
        self.until(|| self.is_whole(cluster, workers)).await;
    }

    /// Whether the cluster is there as it should be: everything once, workers as many as wanted.
    pub(crate) fn is_whole(&self, cluster: &str, workers: usize) -> Result<(), String> {
        let fake = &self.fake;
        let found = fake.get("DaskCluster", NAMESPACE, cluster);
        let found = found.ok_or_else(|| format!("{cluster} is not there"))?;
        let status = &found["status"];
        if !is_true(status, "Ready") || status["readyReplicas"] != json!(workers) {
            return Err(format!("{cluster}: {status}"));
        }
        let of = |component: &str| {
            format!("dask.org/cluster-name={cluster},dask.org/component={component}")
        };
        let pods = |component: &str| {
            let pods = fake.list("Pod", Some(NAMESPACE), &of(component));
            let ready = pods
                .iter()
                .filter(|pod| is_true(&pod["status"], "Ready"))
                .count();
            (pods.len(), ready)
        };
        for (component, wanted) in [("scheduler", 1), ("worker", workers)] {
            if pods(component) != (wanted, wanted) {
                return Err(format!("{cluster}: {component} pods {:?}", pods(component)));
            }
        }
        let count = |kind: &str, labels: &str| fake.count(kind, Some(NAMESPACE), labels);
        for kind in ["Service", "Deployment"] {
            if count(kind, &of("scheduler")) != 1 {
                return Err(format!("{cluster}: not one {kind}"));
            }
        }
        let secrets = count("Secret", &format!("dask.org/cluster-name={cluster}"));
        if secrets < 5 {
            return Err(format!("{cluster}: {secrets} Secrets"));
        }
        Ok(())
    }

    /// Everything that carries the cluster's label.
    pub(crate) fn left_of(&self, cluster: &str) -> Vec<String> {
        let labels = format!("dask.org/cluster-name={cluster}");
        let named = |kind: &'static str| {
            let of = move |object: &Value| format!("{kind} {}", name(object));
            self.fake.map(kind, Some(NAMESPACE), &labels, of)
        };
        KINDS.iter().flat_map(|kind| named(kind)).collect()
    }

    /// Waits until nothing has been written for a while. An operator that goes on writing fails.
    pub(crate) async fn until_silent(&self) {
        let end = Instant::now() + SOON;
        loop {
            // Leases are renewed for ever.
            let before = self.fake.calls().writes_but("Lease");
            tokio::time::sleep(SILENCE).await;
            if self.fake.calls().writes_but("Lease") == before {
                return;
            }
            let lines = self.fake.calls().lines().join("\n");
            assert!(Instant::now() < end, "it goes on writing:\n{lines}");
        }
    }

    /// The group has at no time had more workers.
    pub(crate) fn assert_never_more(&self, group: &str, workers: usize) {
        let (_, most) = self.fake.living(NAMESPACE, group);
        assert!(
            most <= workers,
            "{group} had {most} workers at once, {workers} were wanted"
        );
    }

    pub(crate) fn cluster(&self, name: &str, workers: usize) {
        self.fake.create(cluster(name, workers)).unwrap();
    }

    pub(crate) fn scale(&self, cluster: &str, workers: usize) {
        let patch = json!({"spec": {"worker": {"replicas": workers}}});
        self.fake
            .merge("DaskCluster", NAMESPACE, cluster, &patch)
            .unwrap();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let logs = std::fs::read_dir(self.folder.path())
            .into_iter()
            .flatten()
            .flatten();
        let mut logs: Vec<_> = logs.map(|log| log.path()).collect();
        logs.sort();
        for log in logs.iter().rev().take(2) {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.len().saturating_sub(60);
            println!("== {}\n{}", log.display(), lines[last..].join("\n"));
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

pub(crate) fn cluster(name: &str, workers: usize) -> Value {
    json!({
        "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"worker": {"replicas": workers}},
    })
}

pub(crate) fn job(name: &str, workers: usize) -> Value {
    json!({
        "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "cluster": {"spec": {"worker": {"replicas": workers}}},
            "sql": {"statements": "SELECT 1"},
        },
    })
}

pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

pub(crate) fn is_true(status: &Value, condition: &str) -> bool {
    find_condition(status, condition).is_some_and(|it| it["status"] == "True")
}

pub(crate) fn find_condition(status: &Value, condition: &str) -> Option<Value> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|it| it["type"] == condition).cloned()
}
