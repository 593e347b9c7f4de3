//! The operator's own pods: which there are, which of them leads, and ends that nobody announces.

use std::time::Duration;

use serde_json::Value;

use crate::dask::{READY_SECONDS_MAX, has, name};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::settings::Settings;
use crate::wait::{Seen, until};
use crate::{Outcome, helm, host};

/// Its Deployment.
pub(crate) const DEPLOYMENT: &str = "deployment/oxidask-operator";
/// The command that its process runs.
const COMMAND: &str = "run";
const SELECTOR: &str = "app.kubernetes.io/name=oxidask-operator";

/// The operator of all namespaces.
#[derive(Debug)]
pub(crate) struct Operator {
    /// `kubectl` in its namespace.
    pub(crate) kubectl: Kubectl,
}

impl Operator {
    /// The one that this program installed.
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            kubectl: Kubectl::new(settings, helm::NAMESPACE),
        }
    }

    /// Its pods that are not being deleted.
    pub(crate) fn pods(&self) -> Outcome<Vec<Value>> {
        let mut pods = self.kubectl.list("pods", SELECTOR)?;
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(pods)
    }

    /// Its pods, as soon as there are exactly so many and all are ready.
    pub(crate) fn wait_pods(&self, count: usize) -> Outcome<Vec<Value>> {
        let what = format!("{count} ready pods of the operator");
        until(&what, READY_SECONDS_MAX, || {
            let pods = self.pods()?;
            let ready = pods.iter().filter(|pod| has(pod, "Ready", "True")).count();
            Ok(if pods.len() == count && ready == count {
                Seen::Done(pods)
            } else {
                Seen::NotYet(format!("{} pods, {ready} ready", pods.len()))
            })
        })
    }

    /// Changes the number of its pods, and waits for them.
    pub(crate) fn scale(&self, count: usize) -> Outcome<Vec<Value>> {
        let replicas = format!("--replicas={count}");
        self.kubectl.run(&["scale", DEPLOYMENT, &replicas])?;
        self.wait_pods(count)
    }

    /// The name of the pod that holds the lease.
    pub(crate) fn leader(&self) -> Outcome<String> {
        let pods = self.pods()?;
        let leases = self.kubectl.list("leases", "")?;
        let holders: Vec<&str> = leases
            .iter()
            .filter_map(|lease| lease["spec"]["holderIdentity"].as_str())
            .collect();
        let is_holder = |pod: &&Value| holders.iter().any(|holder| holder.contains(name(pod)));
        let leader = pods.iter().find(is_holder);
        leader
            .map(|pod| name(pod).to_owned())
            .ok_or_else(|| failure(format!("no pod of the operator is among {holders:?}")))
    }

    /// Ends a pod's process without a warning and removes the pod before it starts again.
    pub(crate) fn kill(&self, pod: &Value) -> Outcome {
        host::kill(pod, COMMAND)?;
        let arguments = [
            "delete",
            "pod",
            name(pod),
            "--force",
            "--grace-period=0",
            "--wait=false",
        ];
        self.kubectl
            .call(&arguments, None, CALL)?
            .succeeded()
            .map(drop)
    }

    /// Lets the next pod lead at once, as if the lease of one that was killed had ended.
    pub(crate) fn end_lease(&self) -> Outcome {
        self.kubectl
            .run(&["delete", "leases", "--all", "--wait=false"])
            .map(drop)
    }

    /// Bytes of memory that its only pod uses.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        match self.pods()?.as_slice() {
            [pod] => host::resident_bytes(pod, COMMAND),
            pods => Err(failure(format!("{} pods of the operator", pods.len()))),
        }
    }
}

const CALL: Duration = Duration::from_secs(30);
