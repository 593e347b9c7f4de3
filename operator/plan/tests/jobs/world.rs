//! Jobs, their runners and clusters in one namespace. Clusters come up by themselves.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, JobState, JobStatus};
use oxidask_operator_plan::job::{self, Warning};
use oxidask_operator_plan::{
    DeletionReason, Object, ObjectKind, Plan, PlannedEvent, Refusal, Settings, Timestamp, names,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Rounds after which everything has to be at rest.
const ROUNDS_MAX: usize = 40;

pub(crate) const NAME: &str = "flights";
pub(crate) const RUNNER: &str = "flights-runner";

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn settings() -> Settings {
    Settings {
        runtime_image: "oxidask-runtime:1".to_owned(),
        image_pull_policy: None,
        ..Settings::default()
    }
}

/// A job of kind `sql` with these fields besides.
pub(crate) fn sql(fields: Value) -> Value {
    let mut spec = json!({
        "cluster": {"spec": {"worker": {"replicas": 2}}},
        "sql": {"statements": "SELECT 1"},
    });
    let (spec_fields, fields) = (spec.as_object_mut().unwrap(), fields.as_object().unwrap());
    spec_fields.extend(fields.clone());
    spec
}

/// A job as dask-kubernetes has it, with these fields besides.
pub(crate) fn stock(fields: Value) -> Value {
    let container = json!({"name": "c", "image": "dask:1"});
    let pod = json!({"containers": [container]});
    let mut spec = json!({
        "cluster": {"spec": {
            "idleTimeout": 60,
            "worker": {"replicas": 2, "spec": pod},
            "scheduler": {"spec": pod, "service": {"type": "ClusterIP"}},
        }},
        "job": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}},
            "spec": {
                "initContainers": [{"name": "i", "image": "i"}],
                "containers": [
                    {"name": "job", "image": "dask:1", "args": ["python", "a.py"],
                     "env": [{"name": "A", "value": "1"}]},
                    {"name": "side", "image": "side:1",
                     "env": [{"name": "DASK_SCHEDULER_ADDRESS", "value": "tcp://mine:1"}]},
                ],
            },
        },
    });
    let (spec_fields, fields) = (spec.as_object_mut().unwrap(), fields.as_object().unwrap());
    spec_fields.extend(fields.clone());
    spec
}

pub(crate) fn is_true(status: &JobStatus, kind: &str) -> bool {
    condition(status, kind).status == "True"
}

pub(crate) fn condition<'a>(status: &'a JobStatus, kind: &str) -> &'a Condition {
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|condition| condition.type_ == kind);
    found.unwrap_or_else(|| panic!("no condition {kind} in {:#?}", status.conditions))
}

#[derive(Default, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the test"
)]
pub(crate) struct World {
    pub(crate) now: i64,
    /// Whether pods start as soon as they are there.
    pub(crate) is_lazy: bool,
    /// Whether the quota has no room for pods.
    pub(crate) is_full: bool,
    /// Whether the operator sees an old state.
    pub(crate) is_stale: bool,
    next: u64,
    pub(crate) jobs: BTreeMap<String, DaskJob>,
    pub(crate) clusters: BTreeMap<String, DaskCluster>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) events: Vec<PlannedEvent>,
    /// `kind name`, in the order in which things were done.
    pub(crate) log: Vec<String>,
    /// Runners that were made.
    pub(crate) runners_made: u32,
    pub(crate) is_last_wake_set: bool,
}

impl World {
    pub(crate) fn new(spec: Value) -> Self {
        Self::labelled(spec, json!({}))
    }

    pub(crate) fn labelled(spec: Value, labels: Value) -> Self {
        let mut world = Self {
            now: 1_000_000_020,
            ..Self::default()
        };
        let job: DaskJob = read(json!({
            "metadata": {
                "name": NAME, "namespace": "science", "uid": "uid-job", "generation": 1,
                "labels": labels, "resourceVersion": "1",
                "creationTimestamp": at(world.now).to_string(),
            },
            "spec": spec,
        }));
        world.jobs.insert(NAME.to_owned(), job);
        world
    }

    pub(crate) fn running(spec: Value) -> Self {
        let mut world = Self::new(spec);
        world.settle();
        assert_eq!(world.state(), Some(JobState::Running));
        world.events.clear();
        world.log.clear();
        world
    }

    pub(crate) fn job(&mut self) -> &mut DaskJob {
        self.jobs.get_mut(NAME).unwrap()
    }

    pub(crate) fn status(&self) -> JobStatus {
        self.jobs[NAME].status.clone().unwrap_or_default()
    }

    pub(crate) fn state(&self) -> Option<JobState> {
        self.status().job_status
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<String> {
        let annotations = self.jobs[NAME].metadata.annotations.as_ref()?;
        annotations.get(key).cloned()
    }

    pub(crate) fn runner(&mut self) -> &mut Pod {
        self.pods.get_mut(RUNNER).unwrap()
    }

    pub(crate) fn count(&self, reason: &str) -> usize {
        let events = self.events.iter();
        events.filter(|event| event.reason == reason).count()
    }

    pub(crate) fn position(&self, line: &str) -> usize {
        let mut log = self.log.iter();
        log.position(|found| found == line)
            .unwrap_or_else(|| panic!("no `{line}` in {:#?}", self.log))
    }

    /// Gives the runner a status.
    pub(crate) fn set_runner(&mut self, status: Value) {
        self.runner().status = Some(read(status));
    }

    pub(crate) fn end_runner(&mut self, phase: &str, code: i32, log: &str) {
        let end = at(self.now).to_string();
        self.set_runner(json!({"phase": phase, "containerStatuses": [{
            "name": "runner", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "message": log, "finishedAt": end,
                                     "startedAt": end}},
        }]}));
    }

    pub(crate) fn hold_runner(&mut self, reason: &str, message: &str) {
        self.set_runner(json!({"phase": "Pending", "containerStatuses": [{
            "name": "runner", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
        }]}));
    }

    pub(crate) fn observe(&self, name: &str) -> job::Observed {
        let uid = self.jobs[name].metadata.uid.clone();
        let is_run = |run: &&DaskJob| {
            let owners = run.metadata.owner_references.iter().flatten();
            owners
                .into_iter()
                .any(|owner| Some(&owner.uid) == uid.as_ref())
        };
        job::Observed {
            cluster: self.clusters.get(name).cloned(),
            runner: self.pods.get(&names::runner(name)).cloned(),
            work: self.config_maps.get(&names::work(name)).cloned(),
            runs: self.jobs.values().filter(is_run).cloned().collect(),
            refusals: self.refusals.clone(),
            warnings: self.warnings.clone(),
        }
    }

    pub(crate) fn plan_of(&self, name: &str) -> Plan<JobStatus> {
        job::plan(
            &self.jobs[name],
            &self.observe(name),
            &settings(),
            at(self.now),
        )
    }

    pub(crate) fn plan(&self) -> Plan<JobStatus> {
        self.plan_of(NAME)
    }

    pub(crate) fn plan_from(&self, observed: &job::Observed) -> Plan<JobStatus> {
        job::plan(&self.jobs[NAME], observed, &settings(), at(self.now))
    }

    /// One round of the planner; true if nothing was to be done.
    pub(crate) fn round(&mut self) -> bool {
        let mut is_at_rest = true;
        for name in self.jobs.keys().cloned().collect::<Vec<_>>() {
            if self.jobs.contains_key(&name) {
                let plan = self.plan_of(&name);
                is_at_rest &= plan.is_empty();
                self.carry_out(&name, plan);
            }
        }
        if !self.is_lazy {
            self.play_kubelet();
        }
        self.collect_garbage();
        is_at_rest
    }

    /// Rounds until two in a row have nothing to do; time stands still.
    pub(crate) fn settle(&mut self) {
        let mut rest = 0;
        for _ in 0..ROUNDS_MAX {
            rest = if self.round() { rest + 1 } else { 0 };
            if rest == 2 {
                return;
            }
        }
        panic!("not at rest after {ROUNDS_MAX} rounds: {:#?}", self.log);
    }

    pub(crate) fn carry_out(&mut self, name: &str, plan: Plan<JobStatus>) {
        self.is_last_wake_set = plan.wake_after.is_some();
        self.refusals.clear();
        for change in plan.metadata {
            let job = self.jobs.get_mut(name).unwrap();
            assert_eq!(change.object.uid, job.metadata.uid.clone().unwrap());
            let annotations = job.metadata.annotations.get_or_insert_default();
            for (key, value) in change.annotations {
                match value {
                    Some(value) => annotations.insert(key, value),
                    None => annotations.remove(&key),
                };
            }
        }
        if let Some(status) = plan.status {
            self.write_status(name, &status);
        }
        self.events.extend(plan.events);
        for object in plan.apply {
            if !self.apply(object) {
                return;
            }
        }
        for deletion in plan.delete {
            let key = &deletion.object;
            self.log.push(format!("delete {} {}", key.kind, key.name));
            let status = self.jobs[name].status.clone().unwrap_or_default();
            if matches!(
                deletion.reason,
                DeletionReason::JobFinished | DeletionReason::Expired
            ) {
                let state = status.job_status;
                assert!(
                    state.is_some_and(JobState::is_final),
                    "the final status comes first, not {state:?}"
                );
            }
            let now = Some(Time(at(self.now)));
            let metadata = match key.kind {
                ObjectKind::Pod => self.pods.get_mut(&key.name).map(|o| &mut o.metadata),
                ObjectKind::Cluster => self.clusters.get_mut(&key.name).map(|o| &mut o.metadata),
                ObjectKind::Job => self.jobs.get_mut(&key.name).map(|o| &mut o.metadata),
                kind => panic!("nobody deletes a {kind}"),
            };
            // Somebody else may have been faster.
            let metadata = metadata.filter(|found| found.uid.as_deref() == Some(&key.uid));
            if let Some(metadata) = metadata {
                metadata.deletion_timestamp = now;
            }
        }
    }

    fn write_status(&mut self, name: &str, status: &JobStatus) {
        const ORDER: [JobState; 4] = [
            JobState::JobCreated,
            JobState::ClusterCreated,
            JobState::Running,
            JobState::Successful,
        ];
        let rank = |state: Option<JobState>| match state {
            None => 0,
            Some(JobState::Failed) => ORDER.len(),
            Some(state) => 1 + ORDER.iter().position(|found| *found == state).unwrap(),
        };
        let job = self.jobs.get_mut(name).unwrap();
        let before = job.status.clone().unwrap_or_default();
        let (from, to) = (before.job_status, status.job_status);
        assert!(rank(from) <= rank(to), "{from:?} to {to:?}");
        assert!(!from.is_some_and(JobState::is_final), "the end is the end");
        if from != to {
            self.log.push(format!("status {:?}", to.unwrap()));
        }
        // The API server keeps whole seconds only.
        job.status = Some(read(serde_json::to_value(status).unwrap()));
    }

    /// False if it is refused.
    fn apply(&mut self, object: Object) -> bool {
        let name = object.name().to_owned();
        let kind = object.kind();
        assert_eq!(object.namespace(), "science");
        if self.is_full && kind == ObjectKind::Pod && !self.pods.contains_key(&name) {
            self.refusals.push(Refusal {
                object: format!("Pod {name}"),
                message: "exceeded quota: small, requested: pods=1".to_owned(),
            });
            return false;
        }
        self.log.push(format!("{kind} {name}"));
        self.next += 1;
        let (id, now) = (self.next, self.now);
        match object {
            Object::ConfigMap(mut object) => {
                let before = self.config_maps.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.config_maps.insert(name, *object);
            }
            Object::Pod(mut object) => {
                let before = self.pods.get(&name);
                if before.is_none() {
                    self.runners_made += 1;
                }
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.pods.insert(name, *object);
            }
            Object::Cluster(mut object) => {
                let before = self.clusters.get(&name);
                let has_runner = self.pods.contains_key(&names::runner(&name));
                assert!(
                    before.is_some() || has_runner || self.is_stale,
                    "the runner comes first"
                );
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.clusters.insert(name, *object);
            }
            Object::Job(mut object) => {
                let before = self.jobs.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.jobs.insert(name, *object);
            }
            other => panic!("a job makes no {}", other.kind()),
        }
        true
    }

    /// Pods and clusters come up.
    pub(crate) fn play_kubelet(&mut self) {
        for cluster in self.clusters.values_mut() {
            cluster.status = Some(read(json!({"phase": "Running"})));
        }
        let started = at(self.now).to_string();
        for pod in self.pods.values_mut().filter(|pod| pod.status.is_none()) {
            let status: PodStatus = read(json!({"phase": "Running", "containerStatuses": [{
                "name": "runner", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": started}},
            }]}));
            pod.status = Some(status);
        }
    }

    /// What is being deleted goes, and what it owned.
    pub(crate) fn collect_garbage(&mut self) {
        for _ in 0..3 {
            let stays = |metadata: &ObjectMeta| metadata.deletion_timestamp.is_none();
            self.jobs.retain(|_, object| stays(&object.metadata));
            self.clusters.retain(|_, object| stays(&object.metadata));
            self.pods.retain(|_, object| stays(&object.metadata));
            let uids: Vec<String> = self
                .jobs
                .values()
                .filter_map(|job| job.metadata.uid.clone())
                .collect();
            let has_owner = |metadata: &ObjectMeta| {
                let owners = metadata.owner_references.iter().flatten();
                let mut owners = owners.into_iter().peekable();
                owners.peek().is_none() || owners.any(|owner| uids.contains(&owner.uid))
            };
            self.jobs.retain(|_, object| has_owner(&object.metadata));
            self.clusters
                .retain(|_, object| has_owner(&object.metadata));
            self.pods.retain(|_, object| has_owner(&object.metadata));
            self.config_maps
                .retain(|_, object| has_owner(&object.metadata));
        }
    }
}

/// What the API server fills in when it takes an apply.
fn written(metadata: &mut ObjectMeta, before: Option<&ObjectMeta>, id: u64, now: i64) {
    let kept = before.and_then(|before| before.uid.clone());
    metadata.uid = Some(kept.unwrap_or_else(|| format!("uid-{id}")));
    let created = before.and_then(|before| before.creation_timestamp.clone());
    metadata.creation_timestamp = Some(created.unwrap_or_else(|| Time(at(now))));
    metadata.deletion_timestamp = before.and_then(|before| before.deletion_timestamp.clone());
    metadata.generation = Some(1);
    metadata.resource_version = Some(id.to_string());
}
