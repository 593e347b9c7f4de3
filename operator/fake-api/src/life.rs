//! What happens by itself: pods become ready and vanish, Deployments get their pod, children of
//! what is gone are collected.
//!
//! Every step is due at a time and looks at the store anew, so that nothing happens to an object
//! that has taken a name meanwhile.

use std::cmp::Reverse;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock;
use crate::fake::Shared;
use crate::kinds::{DEPLOYMENTS, PODS};
use crate::store::{Key, Store, Stored, owners};
use crate::verbs::Writer;

/// Steps that are done before others may have the lock.
const STEPS_MAX: usize = 64;

/// How long a Deployment's controller takes to look.
const LOOK_AFTER: Duration = Duration::from_millis(1);

/// The label by which pods of one template are known.
const TEMPLATE: &str = "pod-template-hash";

/// Something that is due. The text is a UID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A pod becomes ready.
    Start(Key, String),
    /// A pod that runs to its end has done so.
    Finish(Key, String),
    /// A pod that ends is gone.
    Vanish(Key, String),
    /// The pods of a Deployment are looked at.
    Rollout(Key),
    /// The children of what is gone are collected.
    Collect(String),
    /// An object whose owners were gone before it came.
    Orphan(Key, String),
}

/// Does what is due until the task is ended.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut bookmarks = tokio::time::interval(shared.bookmarks_every);
    bookmarks.reset();
    loop {
        let next = steps(&mut shared.lock());
        let wait = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = shared.work.notified() => {}
            _ = bookmarks.tick() => shared.lock().bookmark(),
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what is due now; when the next step is due.
fn steps(store: &mut Store) -> Option<Instant> {
    for _ in 0..STEPS_MAX {
        let Reverse((at, _, _)) = store.due.peek()?;
        if *at > Instant::now() {
            return Some(*at);
        }
        let Reverse((_, _, due)) = store.due.pop()?;
        step(store, due);
    }
    Some(Instant::now())
}

fn step(store: &mut Store, due: Due) {
    match due {
        Due::Start(key, uid) => {
            if let Some(pod) = same(store, &key, &uid).filter(|pod| !pod.is_ending()) {
                start(store, &key, &pod);
            }
        }
        Due::Finish(key, uid) => {
            if let Some(pod) = same(store, &key, &uid) {
                finish(store, &key, &pod);
            }
        }
        Due::Vanish(key, uid) => {
            let pod = same(store, &key, &uid);
            let is_free = pod.is_some_and(|pod| {
                let finalizers = pod.value["metadata"]["finalizers"].as_array();
                finalizers.is_none_or(Vec::is_empty)
            });
            if is_free {
                store.remove(&key);
            }
        }
        Due::Rollout(key) => rollout(store, &key),
        Due::Collect(uid) => {
            for child in store.children(&uid) {
                collect(store, &child);
            }
        }
        Due::Orphan(key, uid) => {
            if same(store, &key, &uid).is_some() {
                collect(store, &key);
            }
        }
    }
}

fn same(store: &Store, key: &Key, uid: &str) -> Option<Arc<Stored>> {
    store.get(key).filter(|it| it.uid() == uid).cloned()
}

/// Deletes an object none of whose owners is there.
fn collect(store: &mut Store, key: &Key) {
    let Some(child) = store.get(key) else { return };
    let is_owned = owners(child).iter().any(|uid| store.has_uid(uid));
    if !is_owned && !child.is_ending() {
        let _ = store.delete(key, &json!({}));
    }
}

impl Store {
    /// What follows from a version that was stored.
    pub(crate) fn lives(&mut self, key: &Key, old: Option<&Stored>, new: &Stored) {
        let Some(kubelet) = self.options.kubelet else {
            return;
        };
        let uid = || new.uid().to_owned();
        if key.kind == PODS {
            if old.is_none() {
                self.schedule(kubelet.ready_after, Due::Start(key.clone(), uid()));
            } else if new.is_ending() && old.is_some_and(|old| !old.is_ending()) {
                self.schedule(kubelet.vanish_after, Due::Vanish(key.clone(), uid()));
            }
        } else if key.kind == DEPLOYMENTS {
            let generation = |it: &Stored| it.value["metadata"]["generation"].clone();
            if old.map(generation) != Some(generation(new)) {
                self.schedule(LOOK_AFTER, Due::Rollout(key.clone()));
            }
        }
    }

    /// What follows from an object that is gone.
    pub(crate) fn ends(&mut self, key: &Key, last: &Stored) {
        let uid = last.uid().to_owned();
        if !self.children(&uid).is_empty() {
            self.schedule(self.options.collect_after, Due::Collect(uid));
        }
        if key.kind == PODS {
            self.look_at_deployment(key, last);
        }
    }

    fn look_at_deployment(&mut self, key: &Key, pod: &Stored) {
        let references = pod.value["metadata"]["ownerReferences"].as_array();
        let owner = references
            .into_iter()
            .flatten()
            .find(|it| it["kind"] == "Deployment");
        if let Some(name) = owner.and_then(|it| it["name"].as_str()) {
            let deployment = Key {
                kind: DEPLOYMENTS,
                namespace: key.namespace.clone(),
                name: name.to_owned(),
            };
            self.schedule(LOOK_AFTER, Due::Rollout(deployment));
        }
    }
}

fn start(store: &mut Store, key: &Key, pod: &Stored) {
    let mut new = pod.value.clone();
    let now = clock::now();
    let number = store.number();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let containers = new["spec"]["containers"].as_array();
    let statuses = containers.into_iter().flatten().map(|container| {
        json!({
            "name": container["name"], "image": container["image"], "imageID": "sha256:0",
            "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        })
    });
    let statuses: Vec<Value> = statuses.collect();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    new["spec"]["nodeName"] = json!(format!("node-{}", number % 16));
    new["status"] = json!({
        "phase": "Running", "hostIP": "10.0.0.1", "startTime": now,
        "podIP": format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255),
        "conditions": conditions,
        "containerStatuses": statuses,
    });
    let runs_to_its_end = new["spec"]["restartPolicy"] != "Always";
    store.put(key, new);
    let runs_for = store.options.kubelet.and_then(|it| it.runs_for);
    if let Some(after) = runs_for.filter(|_| runs_to_its_end) {
        store.schedule(after, Due::Finish(key.clone(), pod.uid().to_owned()));
    }
    store.look_at_deployment(key, pod);
}

fn finish(store: &mut Store, key: &Key, pod: &Stored) {
    let mut new = pod.value.clone();
    let now = clock::now();
    new["status"]["phase"] = json!("Succeeded");
    new["status"]["conditions"] = json!([
        {"type": "Ready", "status": "False", "reason": "PodCompleted", "lastTransitionTime": now},
    ]);
    for status in new["status"]["containerStatuses"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        status["ready"] = json!(false);
        status["state"] = json!({"terminated": {
            "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now,
        }});
    }
    store.put(key, new);
}

/// Makes the pods of a Deployment: old ones go before new ones come.
fn rollout(store: &mut Store, key: &Key) {
    let Some(deployment) = store.get(key).filter(|it| !it.is_ending()).cloned() else {
        return;
    };
    let template = &deployment.value["spec"]["template"];
    let hash = hash(&template.to_string());
    let wanted = deployment.value["spec"]["replicas"].as_u64().unwrap_or(1);
    let pods: Vec<Arc<Stored>> = store
        .children(deployment.uid())
        .iter()
        .filter_map(|child| store.get(child).cloned())
        .collect();
    let is_current =
        |pod: &&Arc<Stored>| pod.value["metadata"]["labels"][TEMPLATE] == hash.as_str();
    let living = pods
        .iter()
        .filter(is_current)
        .filter(|pod| !pod.is_ending());
    let living: Vec<_> = living.collect();
    let has_old = pods.iter().any(|pod| !is_current(&pod) || pod.is_ending());
    let count = u64::try_from(living.len()).unwrap_or(u64::MAX);
    let surplus = living
        .iter()
        .skip(usize::try_from(wanted).unwrap_or(usize::MAX));
    let old = pods
        .iter()
        .filter(|pod| !is_current(pod) && !pod.is_ending());
    for pod in old.chain(surplus.copied()) {
        let _ = store.delete(
            &pod_key(key, pod.metadata("name").unwrap_or_default()),
            &json!({}),
        );
    }
    if !has_old {
        for _ in count..wanted {
            make_pod(store, key, &deployment, &hash);
        }
    }
    report(store, key, &deployment, wanted);
}

fn pod_key(key: &Key, name: &str) -> Key {
    Key {
        kind: PODS,
        namespace: key.namespace.clone(),
        name: name.to_owned(),
    }
}

fn make_pod(store: &mut Store, key: &Key, deployment: &Stored, hash: &str) {
    let template = &deployment.value["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    metadata["labels"][TEMPLATE] = json!(hash);
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": key.name,
        "uid": deployment.uid(), "controller": true,
    }]);
    let name = format!("{}-{hash}-{:05x}", key.name, store.number());
    let body = json!({"metadata": metadata, "spec": template["spec"]});
    let writer = Writer {
        manager: "kube-controller-manager",
        subresource: "",
        is_forced: false,
    };
    let _ = store.create(pod_key(key, &name), body, writer);
}

fn report(store: &mut Store, key: &Key, deployment: &Stored, wanted: u64) {
    let own = store.children(deployment.uid());
    let own = own.iter().filter_map(|child| store.get(child));
    let own: Vec<&Arc<Stored>> = own.filter(|pod| !pod.is_ending()).collect();
    let is_ready = |pod: &&&Arc<Stored>| {
        let conditions = pod.value["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let ready = own.iter().filter(is_ready).count();
    let is_available = u64::try_from(ready).unwrap_or(0) >= wanted;
    let old = &deployment.value["status"]["conditions"][0];
    let status = if is_available { "True" } else { "False" };
    let since = if old["status"] == status {
        old["lastTransitionTime"].clone()
    } else {
        json!(clock::now())
    };
    let mut new = deployment.value.clone();
    new["status"] = json!({
        "observedGeneration": new["metadata"]["generation"], "replicas": own.len(),
        "updatedReplicas": own.len(), "readyReplicas": ready, "availableReplicas": ready,
        "conditions": [{
            "type": "Available", "status": status, "reason": "MinimumReplicas",
            "lastTransitionTime": since,
        }],
    });
    if new != deployment.value {
        store.put(key, new);
    }
}

/// FNV-1a, eight digits.
fn hash(text: &str) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:08x}")
}
