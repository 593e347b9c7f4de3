//! An API server, kubelet and scheduler in memory. It notices when a worker is deleted that holds
//! what nobody else has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use oxidask_operator_api::kubernetes::{
    DaskAutoscaler, DaskCluster, DaskWorkerGroup, WorkerGroupStatus,
};
use oxidask_operator_plan::signal::{GroupSignal, Signal, Standing, WorkerSignal};
use oxidask_operator_plan::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlannedEvent, Refusal, Settings, Timestamp,
    autoscaler, group,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) const GROUP: &str = "flights-default";
const IMAGE: &str = "runtime:1";

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn settings() -> Settings {
    read_settings(IMAGE)
}

pub(crate) fn read_settings(image: &str) -> Settings {
    Settings {
        runtime_image: image.to_owned(),
        image_pull_policy: None,
        ..Settings::default()
    }
}

pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> &'a Condition {
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.unwrap_or_else(|| panic!("no condition {kind} in {conditions:#?}"))
}

/// A worker as the scheduler knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) uid: String,
    pub(crate) group: String,
    pub(crate) standing: Standing,
    /// Seconds that its tasks still take.
    pub(crate) running: u32,
    /// Bytes that only it holds.
    pub(crate) held: u64,
    pub(crate) idle: u64,
}

/// What a planner sees of a group.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) group: DaskWorkerGroup,
    pub(crate) observed: group::Observed,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: i64,
    version: u64,
    pub(crate) cluster: DaskCluster,
    pub(crate) scheduler: Deployment,
    pub(crate) settings: Settings,
    pub(crate) groups: BTreeMap<String, DaskWorkerGroup>,
    pub(crate) autoscaler: Option<DaskAutoscaler>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) known: BTreeMap<String, Known>,
    pub(crate) is_silent: bool,
    /// Workers that each group wants, by its short name.
    pub(crate) wanted: BTreeMap<String, u64>,
    /// Images that cannot be pulled.
    pub(crate) broken: BTreeSet<String>,
    /// Pods beyond these find no node.
    pub(crate) room: usize,
    /// Pods beyond these are refused.
    pub(crate) quota: usize,
    refusals: Vec<Refusal>,
    pub(crate) events: Vec<PlannedEvent>,
    pub(crate) deletions: Vec<Deletion>,
    /// Workers that were deleted with what only they held.
    pub(crate) lost: Vec<String>,
    pub(crate) told: Vec<(String, String)>,
    pub(crate) most_pods: usize,
    pub(crate) scalings: usize,
}

impl World {
    pub(crate) fn new(worker: Value) -> Self {
        Self::of(json!({"worker": worker}))
    }

    pub(crate) fn of(spec: Value) -> Self {
        let metadata = |name: &str| {
            json!({"name": name, "namespace": "science",
            "uid": format!("uid-{name}"), "generation": 1, "resourceVersion": "1"})
        };
        let cluster: DaskCluster = read(json!({"metadata": metadata("flights"), "spec": spec}));
        let scheduler = read(json!({
            "metadata": {"name": "flights-scheduler", "generation": 1},
            "spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "scheduler", "image": IMAGE},
            ]}}},
            "status": {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1},
        }));
        let mut world = Self {
            now: 1_000_000,
            version: 1,
            scheduler,
            settings: settings(),
            groups: BTreeMap::new(),
            autoscaler: None,
            pods: BTreeMap::new(),
            known: BTreeMap::new(),
            is_silent: false,
            wanted: BTreeMap::new(),
            broken: BTreeSet::new(),
            room: usize::MAX,
            quota: usize::MAX,
            refusals: Vec::new(),
            events: Vec::new(),
            deletions: Vec::new(),
            lost: Vec::new(),
            told: Vec::new(),
            most_pods: 0,
            scalings: 0,
            cluster,
        };
        let mut workers = vec![("default".to_owned(), json!(world.cluster.spec.worker))];
        for further in &world.cluster.spec.worker_groups {
            workers.push((further.name.clone(), json!(further.to_worker())));
        }
        for (short, worker) in workers {
            let name = format!("flights-{short}");
            let mut group: DaskWorkerGroup = read(json!({
                "metadata": metadata(&name),
                "spec": {"cluster": "flights", "worker": worker},
            }));
            let annotations = [("kubernetes.dask.org/applied-hash", "0")];
            let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
            group.metadata.annotations = Some(annotations.into());
            world.groups.insert(name, group);
        }
        world
    }

    pub(crate) fn settled(worker: Value) -> Self {
        let mut world = Self::new(worker);
        world.settle();
        world.events.clear();
        world.deletions.clear();
        world
    }

    pub(crate) fn group_mut(&mut self, name: &str) -> &mut DaskWorkerGroup {
        self.version += 1;
        let version = self.version.to_string();
        let group = self.groups.get_mut(name).unwrap();
        group.metadata.resource_version = Some(version);
        group.metadata.generation = group.metadata.generation.map(|it| it + 1);
        group
    }

    pub(crate) fn scale(&mut self, name: &str, replicas: u32) {
        self.group_mut(name).spec.worker.replicas = Some(replicas);
    }

    pub(crate) fn replicas(&self, name: &str) -> u32 {
        self.groups[name].spec.worker.replicas.unwrap()
    }

    pub(crate) fn status(&self, name: &str) -> WorkerGroupStatus {
        self.groups[name].status.clone().unwrap_or_default()
    }

    pub(crate) fn message(&self) -> String {
        condition(&self.status(GROUP).conditions, "Ready")
            .message
            .clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    pub(crate) fn pods_of(&self, name: &str) -> usize {
        let uid = format!("uid-{name}");
        let pods = self.pods.values();
        pods.filter(|pod| is_owned(&pod.metadata, &uid)).count()
    }

    pub(crate) fn has_event(&self, reason: &str) -> bool {
        self.events.iter().any(|event| event.reason == reason)
    }

    pub(crate) fn signal(&self) -> Option<Signal> {
        let groups = self.wanted.iter().map(|(name, wanted)| {
            let signal = GroupSignal {
                workers_wanted: *wanted,
                waiting: Duration::from_secs(wanted * 10),
                idle: Duration::ZERO,
                reason: format!("{} s of work wait", wanted * 10),
            };
            (name.clone(), signal)
        });
        let workers = self.known.iter().map(|(name, known)| {
            let signal = WorkerSignal {
                group: known.group.clone(),
                pod_uid: known.uid.clone(),
                host: String::new(),
                standing: known.standing,
                running: known.running.min(1),
                held_bytes: known.held,
                idle: Duration::from_secs(known.idle),
                loaded: None,
            };
            (name.clone(), signal)
        });
        (!self.is_silent).then(|| Signal {
            heard_at: at(self.now),
            graphs: 1,
            clients: 1,
            unfinished_tasks: 0,
            idle: None,
            groups: groups.collect(),
            workers: workers.collect(),
            loaded: None,
            clients_loaded: Vec::new(),
            unplaced: Vec::new(),
        })
    }

    pub(crate) fn snapshot(&self, name: &str) -> Snapshot {
        let group = self.groups[name].clone();
        let observed = group::Observed {
            cluster: Some(self.cluster.clone()),
            // Those of others too: names are taken whoever owns a pod.
            pods: self.pods.values().cloned().map(Arc::new).collect(),
            has_certificates: true,
            scheduler: Some(self.scheduler.clone()),
            signal: self.signal(),
            refusals: self.refusals.clone(),
            ..group::Observed::default()
        };
        Snapshot { group, observed }
    }

    pub(crate) fn plan(&self, snapshot: &Snapshot) -> Plan<WorkerGroupStatus> {
        let Snapshot { group, observed } = snapshot;
        group::plan(group, observed, &self.settings, at(self.now))
    }

    pub(crate) fn plan_group(&self, name: &str) -> Plan<WorkerGroupStatus> {
        self.plan(&self.snapshot(name))
    }

    /// Plans and carries out; true if there was nothing to do.
    pub(crate) fn reconcile(&mut self, name: &str) -> bool {
        let plan = self.plan_group(name);
        let is_empty = plan.is_empty();
        self.carry_out(name, plan, usize::MAX);
        is_empty
    }

    pub(crate) fn reconcile_autoscaler(&mut self) -> bool {
        let Some(own) = self.autoscaler.clone() else {
            return true;
        };
        let observed = autoscaler::Observed {
            cluster: Some(self.cluster.clone()),
            groups: self.groups.values().cloned().collect(),
            autoscalers: vec![own.clone()],
            signal: self.signal(),
            ..autoscaler::Observed::default()
        };
        let mut plan = autoscaler::plan(&own, &observed, &self.settings, at(self.now));
        let is_empty = plan.is_empty();
        if let Some(status) = plan.status.take() {
            self.autoscaler.as_mut().unwrap().status = Some(status);
        }
        for object in &plan.apply {
            assert_eq!(object.kind(), ObjectKind::Autoscaler);
            let owners = object.metadata().owner_references.clone();
            self.autoscaler.as_mut().unwrap().metadata.owner_references = owners;
        }
        for scaling in &plan.scale {
            let group = &self.groups[&scaling.object.name];
            if group.metadata.resource_version == scaling.resource_version {
                self.scale(&scaling.object.name, scaling.to);
                self.scalings += 1;
            }
        }
        self.events.extend(plan.events);
        is_empty
    }

    /// Carries out at most that many steps of a plan; a conflict ends it.
    pub(crate) fn carry_out(&mut self, name: &str, plan: Plan<WorkerGroupStatus>, steps: usize) {
        let mut steps = steps;
        let mut goes_on = move || {
            let goes_on = steps > 0;
            steps = steps.saturating_sub(1);
            goes_on
        };
        for change in plan.metadata {
            if !goes_on() || !self.change_metadata(change) {
                return;
            }
        }
        if let Some(status) = plan.status {
            if !goes_on() {
                return;
            }
            if let Some(group) = self.groups.get_mut(name) {
                group.status = Some(status);
            }
        }
        self.refusals.clear();
        for object in plan.apply {
            if !goes_on() {
                return;
            }
            self.apply(object);
        }
        for scaling in plan.scale {
            let version = &self.groups[name].metadata.resource_version;
            if !goes_on() || *version != scaling.resource_version {
                return;
            }
            self.scale(name, scaling.to);
            self.scalings += 1;
        }
        for retirement in plan.retire {
            if !goes_on() || self.is_silent {
                return;
            }
            self.retire(&retirement.worker, retirement.is_cancelled);
        }
        for end in plan.ended {
            let is_same = |known: &Known| known.uid == end.pod_uid;
            if self.known.get(&end.worker).is_some_and(is_same) {
                self.known.remove(&end.worker);
            }
            self.told.push((end.worker, end.reason));
        }
        for deletion in plan.delete {
            if !goes_on() {
                return;
            }
            self.delete(deletion);
        }
        self.events.extend(plan.events);
    }

    fn change_metadata(&mut self, change: oxidask_operator_plan::MetadataChange) -> bool {
        let key = &change.object;
        let metadata = match key.kind {
            ObjectKind::Pod => self.pods.get_mut(&key.name).map(|it| &mut it.metadata),
            _ => self.groups.get_mut(&key.name).map(|it| &mut it.metadata),
        };
        let Some(metadata) = metadata else {
            return false;
        };
        if metadata.resource_version != change.resource_version {
            return false;
        }
        if let Some(finalizers) = change.finalizers {
            metadata.finalizers = Some(finalizers);
        }
        let annotations = metadata.annotations.get_or_insert_default();
        for (key, value) in change.annotations {
            match value {
                Some(value) => annotations.insert(key, value),
                None => annotations.remove(&key),
            };
        }
        self.version += 1;
        metadata.resource_version = Some(self.version.to_string());
        true
    }

    fn apply(&mut self, object: Object) {
        let name = object.name().to_owned();
        let Object::Pod(mut pod) = object else {
            panic!("a group applies pods only");
        };
        if self.pods.contains_key(&name) {
            return;
        }
        if self.pods.len() >= self.quota {
            self.refusals.push(Refusal {
                object: format!("Pod {name}"),
                message: "exceeded quota: pods".to_owned(),
            });
            return;
        }
        self.version += 1;
        pod.metadata.uid = Some(format!("pod-{}", self.version));
        pod.metadata.resource_version = Some(self.version.to_string());
        pod.metadata.creation_timestamp = Some(Time(at(self.now)));
        self.pods.insert(name, *pod);
        self.most_pods = self.most_pods.max(self.pods.len());
    }

    fn retire(&mut self, name: &str, is_cancelled: bool) {
        let others = self.known.iter();
        let mut others = others.filter(|(other, it)| {
            *other != name && matches!(it.standing, Standing::Active | Standing::Paused)
        });
        let has_room = others.next().is_some();
        let Some(known) = self.known.get_mut(name) else {
            return;
        };
        let is_retired = matches!(known.standing, Standing::Retiring | Standing::Empty);
        if is_cancelled && is_retired {
            known.standing = Standing::Active;
        } else if !is_cancelled
            && matches!(known.standing, Standing::Active | Standing::Paused)
            && (has_room || known.held == 0)
        {
            known.standing = Standing::Retiring;
        }
    }

    fn delete(&mut self, deletion: Deletion) {
        let key = &deletion.object;
        let Some(pod) = self.pods.get_mut(&key.name) else {
            return;
        };
        let is_same = pod.metadata.uid.as_deref() == Some(&key.uid);
        let wanted = &deletion.resource_version;
        let is_as_seen = wanted.is_none() || *wanted == pod.metadata.resource_version;
        if !is_same || !is_as_seen {
            return;
        }
        pod.metadata.deletion_timestamp = Some(Time(at(self.now)));
        let known = self.known.get(&key.name);
        let known = known.filter(|known| known.uid == key.uid);
        let holds = known.is_some_and(|it| it.held + u64::from(it.running) > 0);
        let is_told = matches!(
            deletion.reason,
            DeletionReason::DrainTimeout
                | DeletionReason::Suspended
                | DeletionReason::GroupDeleted
                | DeletionReason::WorkerEnded
        );
        if holds && !is_told {
            self.lost.push(key.name.clone());
        }
        self.deletions.push(deletion);
    }

    /// A second passes.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        self.pods
            .retain(|_, pod| pod.metadata.deletion_timestamp.is_none());
        let pods = &self.pods;
        self.known.retain(|name, known| {
            let pod = pods.get(name);
            pod.is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&known.uid))
        });
        self.play_kubelet();
        self.play_scheduler();
    }

    fn play_kubelet(&mut self) {
        let placed = self.pods.values().filter(|pod| is_running(pod)).count();
        let mut room = self.room.saturating_sub(placed);
        for (name, pod) in &mut self.pods {
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone();
            let image = image.unwrap_or_default();
            let next = match phase(pod) {
                _ if is_ready(pod) => continue,
                "Failed" | "Succeeded" => continue,
                _ if is_running(pod) => running(self.now - 1, Some(self.now)),
                _ if self.broken.contains(&image) => waiting("ImagePullBackOff"),
                _ if room == 0 => unschedulable(),
                _ => {
                    room -= 1;
                    running(self.now, None)
                }
            };
            let next = Some(read(next));
            if pod.status != next {
                pod.status = next;
                self.version += 1;
                pod.metadata.resource_version = Some(self.version.to_string());
            }
            if is_ready(pod) {
                let labels = pod.metadata.labels.as_ref().unwrap();
                let group = labels["dask.org/workergroup-name"].clone();
                let known = Known {
                    uid: pod.metadata.uid.clone().unwrap(),
                    group: group.trim_start_matches("flights-").to_owned(),
                    standing: Standing::Active,
                    running: 0,
                    held: 0,
                    idle: 0,
                };
                self.known.insert(name.clone(), known);
            }
        }
    }

    fn play_scheduler(&mut self) {
        let open = self.known.iter();
        let mut open = open.filter(|(_, it)| it.standing == Standing::Active);
        let taker = open.next().map(|(name, _)| name.clone());
        let mut moved = 0;
        for known in self.known.values_mut() {
            known.running = known.running.saturating_sub(1);
            if known.standing == Standing::Retiring && known.running == 0 {
                if known.held > 0 && taker.is_none() {
                    continue;
                }
                moved += known.held;
                known.held = 0;
                known.standing = Standing::Empty;
            }
        }
        if let Some(taker) = taker {
            self.known.get_mut(&taker).unwrap().held += moved;
        }
    }

    /// One round of everybody and a second; true if nothing was to be done.
    pub(crate) fn round(&mut self) -> bool {
        let mut is_at_rest = self.reconcile_autoscaler();
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            is_at_rest &= self.reconcile(&name);
        }
        self.tick();
        is_at_rest
    }

    /// Rounds until nothing has been to do for a while.
    pub(crate) fn settle(&mut self) {
        let mut rest = 0;
        for _ in 0..1_000 {
            let is_quiet = self.round() && !self.is_about_to_scale_down();
            rest = if is_quiet { rest + 1 } else { 0 };
            if rest == 20 {
                return;
            }
        }
        let deletions = &self.deletions;
        panic!("not at rest: {:#?} {deletions:#?}", self.status(GROUP));
    }

    /// Whether a group only waits until fewer workers have been enough for as long as pods take to start.
    fn is_about_to_scale_down(&self) -> bool {
        let statuses = self.groups.values().flat_map(|group| &group.status);
        let mut scaling = statuses.flat_map(|status| &status.scaling);
        scaling.any(|scaling| scaling.fewer_since.is_some())
    }

    pub(crate) fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }

    pub(crate) fn known_mut(&mut self, name: &str) -> &mut Known {
        self.known.get_mut(name).unwrap()
    }
}

pub(crate) fn is_owned(metadata: &ObjectMeta, uid: &str) -> bool {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.uid == uid)
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    phase.unwrap_or("Pending")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|it| it.conditions.iter().flatten());
    let mut conditions = conditions.into_iter();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

fn is_running(pod: &Pod) -> bool {
    phase(pod) == "Running"
}

fn time(second: i64) -> String {
    at(second).to_string()
}

/// A running pod; ready since then.
pub(crate) fn running(started: i64, ready: Option<i64>) -> Value {
    let (status, since) = match ready {
        Some(since) => ("True", since),
        None => ("False", started - 1),
    };
    json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": time(since)}],
        "containerStatuses": [{
            "name": "worker", "image": "i", "imageID": "", "ready": ready.is_some(),
            "restartCount": 0, "state": {"running": {"startedAt": time(started)}},
        }],
    })
}

pub(crate) fn waiting(reason: &str) -> Value {
    json!({
        "phase": "Pending",
        "containerStatuses": [{
            "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason}},
        }],
    })
}

pub(crate) fn unschedulable() -> Value {
    json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient cpu.",
    }]})
}
