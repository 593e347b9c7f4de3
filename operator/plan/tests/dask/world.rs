//! A namespace in memory with a Dask scheduler: carries out plans, plays kubelet and scheduler,
//! and counts what got lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskWorkerGroup, WorkerGroupStatus,
};
use oxidask_operator_plan::dask::load::{ReportedWorker, SchedulerReport, signal};
use oxidask_operator_plan::signal::{Signal, Standing};
use oxidask_operator_plan::{
    MetadataChange, Object, ObjectKind, Plan, PlannedEvent, Settings, Timestamp, cluster, group,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) const IMAGE: &str = "docker.io/dask/dask:latest";

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn worker_spec() -> Value {
    json!({"containers": [{
        "name": "worker", "image": IMAGE,
        "args": ["dask-worker", "--name", "$(DASK_WORKER_NAME)"],
        "env": [{"name": "WORKER_ENV", "value": "hello-world"}],
        "resources": {},
    }]})
}

pub(crate) fn cluster_spec(replicas: u32) -> Value {
    json!({
        "worker": {"replicas": replicas, "spec": worker_spec()},
        "scheduler": {
            "spec": {"containers": [{
                "name": "scheduler", "image": IMAGE,
                "args": ["dask-scheduler", "--host", "0.0.0.0"],
                "env": [{"name": "SCHEDULER_ENV", "value": "x"}],
            }]},
            "service": {
                "type": "ClusterIP",
                "selector": {"dask.org/cluster-name": "c", "dask.org/component": "scheduler"},
                "ports": [
                    {"name": "tcp-comm", "port": 8786, "targetPort": "tcp-comm"},
                    {"name": "http-dashboard", "port": 8787, "targetPort": "http-dashboard"},
                ],
            },
        },
    })
}

/// A worker, as the scheduler knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) host: String,
    pub(crate) deployment: String,
    pub(crate) running: u32,
    pub(crate) held: u64,
}

#[derive(Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the test"
)]
pub(crate) struct World {
    pub(crate) now: i64,
    next: u64,
    pub(crate) clusters: BTreeMap<String, DaskCluster>,
    pub(crate) groups: BTreeMap<String, DaskWorkerGroup>,
    pub(crate) deployments: BTreeMap<String, Deployment>,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) known: BTreeMap<String, Known>,
    pub(crate) wanted: Option<u64>,
    pub(crate) idle_since: Option<i64>,
    pub(crate) is_silent: bool,
    /// New pods stay as they are: unscheduled.
    pub(crate) is_full: bool,
    /// Workers have names that they chose themselves.
    pub(crate) is_nameless: bool,
    /// Nobody can take anybody's results.
    pub(crate) refuses: bool,
    pub(crate) lost_bytes: u64,
    pub(crate) repeated_tasks: u32,
    pub(crate) retired: Vec<String>,
    pub(crate) deleted: Vec<String>,
    pub(crate) written: usize,
    pub(crate) events: Vec<PlannedEvent>,
}

impl World {
    pub(crate) fn new(spec: Value) -> Self {
        let mut world = Self {
            now: 1_000_000,
            ..Self::default()
        };
        let cluster = json!({
            "metadata": {"name": "c", "namespace": "science", "uid": "uid-c", "generation": 1},
            "spec": spec,
        });
        world.clusters.insert("c".to_owned(), read(cluster));
        world
    }

    /// With that many workers, all known to the scheduler.
    pub(crate) fn settled(replicas: u32) -> Self {
        let mut world = Self::new(cluster_spec(replicas));
        world.rounds(8);
        world.events.clear();
        world.written = 0;
        world
    }

    pub(crate) fn add_group(&mut self, name: &str, replicas: u32) {
        let group = json!({
            "metadata": {
                "name": name, "namespace": "science", "uid": format!("uid-{name}"), "generation": 1,
            },
            "spec": {"cluster": "c", "worker": {"replicas": replicas, "spec": worker_spec()}},
        });
        self.groups.insert(name.to_owned(), read(group));
    }

    pub(crate) fn scale(&mut self, group: &str, replicas: u32) {
        let group = self.groups.get_mut(group).unwrap();
        group.spec.worker.replicas = Some(replicas);
        group.metadata.generation = group.metadata.generation.map(|it| it + 1);
    }

    pub(crate) fn workers(&self, group: &str) -> Vec<String> {
        let start = format!("{group}-worker-");
        let names = self
            .deployments
            .keys()
            .filter(|name| name.starts_with(&start));
        names.cloned().collect()
    }

    pub(crate) fn give(&mut self, deployment: &str, running: u32, held: u64) {
        let known = self.known.values_mut();
        for known in known.filter(|known| known.deployment == deployment) {
            (known.running, known.held) = (running, held);
        }
    }

    pub(crate) fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }

    fn round(&mut self) {
        self.now += 1;
        for name in self.clusters.keys().cloned().collect::<Vec<_>>() {
            let plan = self.plan_cluster(&name);
            if let Some(status) = &plan.status {
                self.clusters.get_mut(&name).unwrap().status = Some(status.clone());
            }
            self.carry_out(plan);
        }
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            let plan = self.plan_group(&name);
            if let Some(status) = &plan.status {
                self.groups.get_mut(&name).unwrap().status = Some(status.clone());
            }
            self.carry_out(plan);
        }
        self.play_kubelet();
        self.collect_garbage();
    }

    pub(crate) fn heard(&self) -> Signal {
        self.signal().unwrap()
    }

    fn signal(&self) -> Option<Signal> {
        if self.is_silent {
            return None;
        }
        let workers = self.known.iter().map(|(name, known)| ReportedWorker {
            name: name.clone(),
            host: known.host.clone(),
            running: known.running,
            held_bytes: known.held,
            standing: Standing::Active,
            idle: std::time::Duration::ZERO,
        });
        let report = SchedulerReport {
            heard_at: at(self.now),
            workers_wanted: self.wanted,
            idle_since: self.idle_since.map(at),
            workers: workers.collect(),
        };
        let pods: Vec<&Pod> = self.pods.values().collect();
        Some(signal(&report, "c", &pods, at(self.now)))
    }

    pub(crate) fn plan_cluster(&self, name: &str) -> Plan<ClusterStatus> {
        let scheduler = format!("{name}-scheduler");
        let observed = cluster::Observed {
            service: self.services.get(&scheduler).cloned(),
            scheduler: self.deployments.get(&scheduler).cloned(),
            groups: self.groups.values().cloned().collect(),
            signal: self.signal(),
            ..cluster::Observed::default()
        };
        cluster::plan(&self.clusters[name], &observed, &settings(), at(self.now))
    }

    pub(crate) fn plan_group(&self, name: &str) -> Plan<WorkerGroupStatus> {
        let group = &self.groups[name];
        let uid = group.metadata.uid.as_deref();
        let of_group = |pod: &&Pod| {
            pod.metadata
                .labels
                .as_ref()
                .unwrap()
                .get("dask.org/workergroup-name")
                .is_some_and(|it| it == name)
        };
        let own = self
            .deployments
            .values()
            .filter(|it| is_owned(&it.metadata, uid));
        let observed = group::Observed {
            cluster: self.clusters.get(&group.spec.cluster).cloned(),
            pods: self
                .pods
                .values()
                .filter(of_group)
                .cloned()
                .map(Arc::new)
                .collect(),
            deployments: own.cloned().collect(),
            signal: self.signal(),
            ..group::Observed::default()
        };
        group::plan(group, &observed, &settings(), at(self.now))
    }

    pub(crate) fn carry_out<S>(&mut self, plan: Plan<S>) {
        self.written += plan.metadata.len() + plan.apply.len() + plan.delete.len();
        for change in plan.metadata {
            self.change(&change);
        }
        for object in plan.apply {
            self.apply(object);
        }
        for retirement in plan.retire {
            self.retire(&retirement.worker);
        }
        for deletion in plan.delete {
            let name = deletion.object.name.clone();
            self.deleted.push(name.clone());
            match deletion.object.kind {
                ObjectKind::Deployment => self.end(&name),
                ObjectKind::WorkerGroup => {
                    let group = self.groups.get_mut(&name).unwrap();
                    group.metadata.deletion_timestamp = Some(Time(at(self.now)));
                }
                ObjectKind::Cluster => drop(self.clusters.remove(&name)),
                kind => panic!("nobody deletes a {kind}"),
            }
        }
        self.events.extend(plan.events);
    }

    fn change(&mut self, change: &MetadataChange) {
        let name = &change.object.name;
        let metadata = match change.object.kind {
            ObjectKind::Cluster => &mut self.clusters.get_mut(name).unwrap().metadata,
            ObjectKind::WorkerGroup => &mut self.groups.get_mut(name).unwrap().metadata,
            ObjectKind::Deployment => &mut self.deployments.get_mut(name).unwrap().metadata,
            ObjectKind::Service => &mut self.services.get_mut(name).unwrap().metadata,
            kind => panic!("nobody changes a {kind}"),
        };
        if let Some(finalizers) = &change.finalizers {
            metadata.finalizers = Some(finalizers.clone());
        }
        let annotations = metadata.annotations.get_or_insert_default();
        for (key, value) in &change.annotations {
            match value {
                Some(value) => drop(annotations.insert(key.clone(), value.clone())),
                None => drop(annotations.remove(key)),
            }
        }
    }

    fn apply(&mut self, object: Object) {
        let name = object.name().to_owned();
        self.next += 1;
        let (id, now) = (self.next, self.now);
        match object {
            Object::Service(mut object) => {
                let before = self.services.get(&name);
                taken(&mut object.metadata, before.map(|it| &it.metadata), id, now);
                self.services.insert(name, *object);
            }
            Object::Deployment(mut object) => {
                let before = self.deployments.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                taken(&mut object.metadata, before.map(|it| &it.metadata), id, now);
                self.deployments.insert(name, *object);
            }
            Object::WorkerGroup(mut object) => {
                let before = self.groups.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                taken(&mut object.metadata, before.map(|it| &it.metadata), id, now);
                self.groups.insert(name, *object);
            }
            Object::Adoption(object) => {
                let group = self.groups.get_mut(&name).unwrap();
                group
                    .metadata
                    .owner_references
                    .clone_from(&object.metadata.owner_references);
            }
            other => panic!("nobody applies a {}", other.kind()),
        }
    }

    /// What a stock scheduler does: moves results at once, and repeats running tasks elsewhere.
    fn retire(&mut self, name: &str) {
        self.retired.push(name.to_owned());
        let Some(gone) = self.known.get(name).cloned() else {
            return;
        };
        let taker = self.known.keys().find(|other| *other != name).cloned();
        match taker {
            Some(taker) if !self.refuses => {
                self.known.get_mut(&taker).unwrap().held += gone.held;
            }
            _ if gone.held > 0 => return,
            _ => {}
        }
        self.repeated_tasks += gone.running;
        self.known.remove(name);
    }

    fn end(&mut self, deployment: &str) {
        self.deployments.remove(deployment);
        self.pods.remove(&format!("{deployment}-1-x"));
        self.known.retain(|_, known| {
            if known.deployment == deployment {
                self.lost_bytes += known.held;
                self.repeated_tasks += known.running;
            }
            known.deployment != deployment
        });
    }

    fn play_kubelet(&mut self) {
        for (name, deployment) in &mut self.deployments {
            deployment.status = Some(DeploymentStatus {
                observed_generation: deployment.metadata.generation,
                available_replicas: Some(1),
                ..DeploymentStatus::default()
            });
            let pod = format!("{name}-1-x");
            if !name.contains("-worker-") || self.pods.contains_key(&pod) {
                continue;
            }
            self.next += 1;
            let host = format!("10.0.{}.{}", self.next / 250, self.next % 250);
            let template = &deployment.spec.as_ref().unwrap().template;
            let mut labels = template.metadata.as_ref().unwrap().labels.clone().unwrap();
            labels.insert("pod-template-hash".to_owned(), "1".to_owned());
            let status = if self.is_full {
                json!({"phase": "Pending"})
            } else {
                json!({
                    "phase": "Running", "podIP": host,
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{
                        "name": "worker", "ready": true, "restartCount": 0, "image": IMAGE,
                        "imageID": "", "state": {"running": {}},
                    }],
                })
            };
            let object = json!({
                "metadata": {
                    "name": pod, "namespace": "science", "uid": format!("uid-{pod}"),
                    "labels": labels,
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-1"),
                        "uid": "x", "controller": true,
                    }],
                },
                "status": status,
            });
            self.pods.insert(pod, read(object));
            if !self.is_full {
                let known = Known {
                    host: host.clone(),
                    deployment: name.clone(),
                    ..Known::default()
                };
                let own = if self.is_nameless {
                    format!("tcp://{host}:4000")
                } else {
                    name.clone()
                };
                self.known.insert(own, known);
            }
        }
    }

    fn collect_garbage(&mut self) {
        let ends = |metadata: &ObjectMeta| {
            let is_free = metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
            metadata.deletion_timestamp.is_some() && is_free
        };
        self.clusters.retain(|_, it| !ends(&it.metadata));
        self.groups.retain(|_, it| !ends(&it.metadata));
        let uids: Vec<String> = self
            .groups
            .values()
            .filter_map(|it| it.metadata.uid.clone())
            .collect();
        let left: Vec<String> = self
            .deployments
            .iter()
            .filter(|(name, it)| {
                let mut owners = it.metadata.owner_references.iter().flatten();
                name.contains("-worker-") && !owners.any(|owner| uids.contains(&owner.uid))
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in left {
            self.end(&name);
        }
    }
}

fn settings() -> Settings {
    Settings {
        runtime_image: "unused".to_owned(),
        image_pull_policy: None,
        ..Settings::default()
    }
}

fn is_owned(metadata: &ObjectMeta, uid: Option<&str>) -> bool {
    let owners: &[OwnerReference] = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| Some(owner.uid.as_str()) == uid)
}

/// What the API server fills in; annotations that others wrote stay.
fn taken(metadata: &mut ObjectMeta, before: Option<&ObjectMeta>, id: u64, now: i64) {
    let uid = before.and_then(|before| before.uid.clone());
    metadata.uid = Some(uid.unwrap_or_else(|| format!("uid-{id}")));
    metadata.resource_version = Some(id.to_string());
    let created = before.and_then(|before| before.creation_timestamp.clone());
    metadata.creation_timestamp = Some(created.unwrap_or_else(|| Time(at(now))));
    let generation = before
        .and_then(|before| before.generation)
        .unwrap_or_default();
    metadata.generation = Some(generation + 1);
    metadata.finalizers = before.and_then(|before| before.finalizers.clone());
}
