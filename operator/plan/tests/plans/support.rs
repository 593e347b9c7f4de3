//! A small API server in memory: it carries out plans and plays kubelet and garbage collector.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, PersistentVolumeClaim, Pod, PodCondition, PodStatus,
    Service,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskJob, DaskWorkerGroup, JobStatus, WorkerGroupStatus,
};
use oxidask_operator_plan::cluster::SecretState;
use oxidask_operator_plan::signal::{Signal, Standing, WorkerSignal};
use oxidask_operator_plan::{
    CertificateRequest, Deletion, Object, ObjectKind, Plan, PlannedEvent, Refusal, Settings,
    Timestamp, cluster, group, job, names,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Rounds after which everything has to be at rest.
const ROUNDS_MAX: usize = 30;

pub(crate) const DAY: i64 = 24 * 3600;

pub(crate) fn settings() -> Settings {
    Settings {
        image_pull_policy: Some("IfNotPresent".to_owned()),
        ..Settings::new("docker.io/oxidask/oxidask-runtime:0.1.0")
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn metadata(name: &str, uid: &str) -> Value {
    json!({"name": name, "namespace": "science", "uid": uid, "generation": 1})
}

pub(crate) fn cluster(name: &str, spec: Value) -> DaskCluster {
    read(json!({"metadata": metadata(name, &format!("uid-{name}")), "spec": spec}))
}

pub(crate) fn worker_group(name: &str, cluster: &str, worker: Value) -> DaskWorkerGroup {
    let spec = json!({"cluster": cluster, "worker": worker});
    read(json!({"metadata": metadata(name, &format!("uid-{name}")), "spec": spec}))
}

pub(crate) fn sql_job(name: &str) -> DaskJob {
    job_of(
        name,
        json!({
            "cluster": {"spec": {"worker": {"replicas": 2}}},
            "sql": {"statements": "SELECT 1"},
        }),
    )
}

pub(crate) fn job_of(name: &str, spec: Value) -> DaskJob {
    read(json!({"metadata": metadata(name, &format!("uid-{name}-job")), "spec": spec}))
}

pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> &'a Condition {
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.unwrap_or_else(|| panic!("no condition {kind} in {conditions:#?}"))
}

pub(crate) fn is_true(conditions: &[Condition], kind: &str) -> bool {
    condition(conditions, kind).status == "True"
}

pub(crate) fn reasons(events: &[PlannedEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.reason).collect()
}

pub(crate) fn pod_status(phase: &str, is_ready: bool, state: ContainerState) -> PodStatus {
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if is_ready { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        }]),
        container_statuses: Some(vec![ContainerStatus {
            name: "any".to_owned(),
            image: "image".to_owned(),
            ready: is_ready,
            state: Some(state),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    }
}

pub(crate) fn running(since: i64) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning {
            started_at: Some(Time(at(since))),
        }),
        ..ContainerState::default()
    }
}

pub(crate) fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

pub(crate) fn terminated(
    exit_code: i32,
    message: &str,
    started: i64,
    finished: i64,
) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code,
            message: Some(message.to_owned()),
            started_at: Some(Time(at(started))),
            finished_at: Some(Time(at(finished))),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// Everything in one namespace.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) now: i64,
    /// Whether pods start as soon as they are there.
    pub(crate) is_lazy: bool,
    next: u64,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) deployments: BTreeMap<String, Deployment>,
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) claims: BTreeMap<String, PersistentVolumeClaim>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) groups: BTreeMap<String, DaskWorkerGroup>,
    pub(crate) clusters: BTreeMap<String, DaskCluster>,
    pub(crate) jobs: BTreeMap<String, DaskJob>,
    /// UIDs of pods whose workers are empty.
    drained: BTreeSet<String>,
    pub(crate) secrets: BTreeMap<String, (String, SecretState)>,
    pub(crate) budgets: BTreeMap<String, PodDisruptionBudget>,
    pub(crate) policies: BTreeMap<String, NetworkPolicy>,
    pub(crate) signal: Option<Signal>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) settings: Option<Settings>,
    pub(crate) events: Vec<PlannedEvent>,
    pub(crate) deletions: Vec<Deletion>,
    /// `kind name`, in the order in which things were done.
    pub(crate) log: Vec<String>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: 1_000_000,
            ..Self::default()
        }
    }

    pub(crate) fn with_cluster(cluster: DaskCluster) -> Self {
        let mut world = Self::new();
        world
            .clusters
            .insert(cluster.metadata.name.clone().unwrap(), cluster);
        world
    }

    pub(crate) fn with_job(job: DaskJob) -> Self {
        let mut world = Self::new();
        world.jobs.insert(job.metadata.name.clone().unwrap(), job);
        world
    }

    pub(crate) fn cluster_status(&self, name: &str) -> ClusterStatus {
        self.clusters[name].status.clone().unwrap_or_default()
    }

    pub(crate) fn group_status(&self, name: &str) -> WorkerGroupStatus {
        self.groups[name].status.clone().unwrap_or_default()
    }

    pub(crate) fn job_status(&self, name: &str) -> JobStatus {
        self.jobs[name].status.clone().unwrap_or_default()
    }

    pub(crate) fn workers(&self) -> Vec<String> {
        let names = self.pods.keys().filter(|name| name.contains("-worker-"));
        names.cloned().collect()
    }

    pub(crate) fn has_event(&self, reason: &str) -> bool {
        self.events.iter().any(|event| event.reason == reason)
    }

    pub(crate) fn observe_cluster(&self, name: &str) -> cluster::Observed {
        let label = |pod: &&Pod, key: &str, value: &str| {
            let labels = pod.metadata.labels.as_ref();
            labels
                .and_then(|labels| labels.get(key))
                .is_some_and(|found| found == value)
        };
        let of_cluster = |pod: &&Pod| label(pod, "dask.org/cluster-name", name);
        let of = |component: &'static str| {
            let pods = self.pods.values().filter(of_cluster);
            let pods = pods.filter(move |pod| label(pod, "dask.org/component", component));
            pods.cloned().map(Arc::new).collect::<Vec<_>>()
        };
        let secrets = self.secrets.iter();
        cluster::Observed {
            service: self.services.get(&names::scheduler(name)).cloned(),
            scheduler: self.deployments.get(&names::scheduler(name)).cloned(),
            journal_claim: self
                .claims
                .get(&names::journal_claim(name))
                .map(|claim| claim.metadata.clone()),
            groups: self
                .groups
                .values()
                .filter(|g| g.spec.cluster == name)
                .cloned()
                .collect(),
            secrets: secrets
                .map(|(name, (_, state))| (name.clone(), state.clone()))
                .collect(),
            scheduler_pods: of("scheduler"),
            worker_pods: of("worker"),
            runner_pods: of("job-runner"),
            disruption_budgets: self.budgets.values().cloned().collect(),
            network_policies: self.policies.values().cloned().collect(),
            signal: self.signal.clone(),
            refusals: self.refusals.clone(),
            ..cluster::Observed::default()
        }
    }

    pub(crate) fn plan_cluster(&self, name: &str) -> Plan<ClusterStatus> {
        let observed = self.observe_cluster(name);
        let settings = self.settings.clone().unwrap_or_else(settings);
        cluster::plan(&self.clusters[name], &observed, &settings, at(self.now))
    }

    pub(crate) fn observe_group(&self, name: &str) -> group::Observed {
        let group = &self.groups[name];
        let uid = group.metadata.uid.as_deref();
        let cluster = group.spec.cluster.as_str();
        let secret = names::certificate_secret(cluster, Role::Worker);
        group::Observed {
            cluster: self.clusters.get(cluster).cloned(),
            pods: self
                .pods
                .values()
                .filter(|pod| is_owned(&pod.metadata, uid))
                .cloned()
                .map(Arc::new)
                .collect(),
            has_certificates: self.secrets.contains_key(&secret),
            signal: Some(self.signal()),
            scheduler: self.deployments.get(&names::scheduler(cluster)).cloned(),
            ..group::Observed::default()
        }
    }

    /// Every ready worker, drained as soon as it is asked to.
    fn signal(&self) -> Signal {
        let ready = self.pods.iter().filter(|(_, pod)| {
            let conditions = pod
                .status
                .iter()
                .flat_map(|it| it.conditions.iter().flatten());
            let mut conditions = conditions.into_iter();
            conditions.any(|it| it.type_ == "Ready" && it.status == "True")
        });
        let workers = ready.map(|(name, pod)| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let is_drained = self.drained.contains(&uid);
            let worker = WorkerSignal {
                group: String::new(),
                pod_uid: uid,
                host: String::new(),
                standing: if is_drained {
                    Standing::Empty
                } else {
                    Standing::Active
                },
                running: 0,
                held_bytes: 0,
                idle: std::time::Duration::ZERO,
                loaded: None,
            };
            (name.clone(), worker)
        });
        Signal {
            heard_at: at(self.now),
            graphs: 0,
            clients: 0,
            unfinished_tasks: 0,
            idle: None,
            groups: BTreeMap::new(),
            workers: workers.collect(),
            loaded: None,
            clients_loaded: Vec::new(),
            unplaced: Vec::new(),
        }
    }

    pub(crate) fn plan_group(&self, name: &str) -> Plan<WorkerGroupStatus> {
        let observed = self.observe_group(name);
        group::plan(&self.groups[name], &observed, &settings(), at(self.now))
    }

    pub(crate) fn observe_job(&self, name: &str) -> job::Observed {
        job::Observed {
            cluster: self.clusters.get(name).cloned(),
            runner: self.pods.get(&names::runner(name)).cloned(),
            work: self.config_maps.get(&names::work(name)).cloned(),
            ..job::Observed::default()
        }
    }

    pub(crate) fn plan_job(&self, name: &str) -> Plan<JobStatus> {
        let observed = self.observe_job(name);
        job::plan(&self.jobs[name], &observed, &settings(), at(self.now))
    }

    /// One round of every planner; true if nothing was to be done.
    pub(crate) fn round(&mut self) -> bool {
        self.now += 1;
        let mut is_at_rest = true;
        for name in self.jobs.keys().cloned().collect::<Vec<_>>() {
            let plan = self.plan_job(&name);
            is_at_rest &= plan.is_empty();
            if let Some(status) = &plan.status {
                self.log
                    .push(format!("status {:?}", status.job_status.unwrap()));
                self.jobs.get_mut(&name).unwrap().status = Some(status.clone());
            }
            self.carry_out(plan);
        }
        for name in self.clusters.keys().cloned().collect::<Vec<_>>() {
            let plan = self.plan_cluster(&name);
            is_at_rest &= plan.is_empty();
            if let Some(status) = &plan.status {
                self.clusters.get_mut(&name).unwrap().status = Some(status.clone());
            }
            self.carry_out(plan);
        }
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            let plan = self.plan_group(&name);
            is_at_rest &= plan.is_empty();
            if let Some(status) = &plan.status {
                self.groups.get_mut(&name).unwrap().status = Some(status.clone());
            }
            self.carry_out(plan);
        }
        if !self.is_lazy {
            self.play_kubelet();
        }
        self.collect_garbage();
        is_at_rest
    }

    /// Rounds until two in a row have nothing to do.
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

    fn carry_out<S>(&mut self, plan: Plan<S>) {
        for change in &plan.metadata {
            let name = &change.object.name;
            let metadata = match change.object.kind {
                ObjectKind::Pod => self.pods.get_mut(name).map(|it| &mut it.metadata),
                _ => self.groups.get_mut(name).map(|it| &mut it.metadata),
            };
            let metadata = metadata.unwrap();
            if change.finalizers.is_some() {
                metadata.finalizers.clone_from(&change.finalizers);
            }
            let annotations = metadata.annotations.get_or_insert_default();
            for (key, value) in &change.annotations {
                match value {
                    Some(value) => annotations.insert(key.clone(), value.clone()),
                    None => annotations.remove(key),
                };
            }
        }
        for retirement in &plan.retire {
            let uid = self.pods[&retirement.worker].metadata.uid.clone().unwrap();
            if retirement.is_cancelled {
                self.drained.remove(&uid);
            } else {
                self.drained.insert(uid);
            }
        }
        if let Some(request) = &plan.certificates {
            self.issue(request);
        }
        for object in plan.apply {
            self.apply(object);
        }
        for deletion in plan.delete {
            self.log.push(format!(
                "delete {} {}",
                deletion.object.kind, deletion.object.name
            ));
            self.delete(&deletion);
            self.deletions.push(deletion);
        }
        self.events.extend(plan.events);
    }

    /// What stands in Secrets is played in `rotations`; here they are only whole.
    fn issue(&mut self, request: &CertificateRequest) {
        let digest = || Some("authority".to_owned());
        let authority = request.authority.is_some();
        let authority = authority.then(|| names::authority_secret(&request.cluster));
        let roles = request.roles.iter().chain(&request.bundles);
        let roles = roles.map(|role| names::certificate_secret(&request.cluster, *role));
        let tokens = request.needs_http_token;
        let tokens = tokens.then(|| names::http_token_secret(&request.cluster));
        for name in authority.into_iter().chain(roles).chain(tokens) {
            let is_authority = name == names::authority_secret(&request.cluster);
            let years = if is_authority { 10 * 365 } else { 90 };
            let state = SecretState {
                has_all_keys: true,
                not_after: Some(at(self.now + years * DAY)),
                bundle: digest(),
                certificate: digest(),
                issuer: digest(),
                written_at: Some(at(self.now)),
                ..SecretState::default()
            };
            self.log.push(format!("Secret {name}"));
            let owner = request.owner.uid.clone();
            self.secrets.insert(name, (owner, state));
        }
    }

    pub(crate) fn apply(&mut self, object: Object) {
        let name = object.name().to_owned();
        assert_eq!(object.namespace(), "science");
        self.log.push(format!("{} {name}", object.kind()));
        let id = self.next;
        self.next += 1;
        let now = self.now;
        match object {
            Object::Service(mut object) => {
                let before = self.services.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.services.insert(name, *object);
            }
            Object::Deployment(mut object) => {
                let before = self.deployments.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.deployments.insert(name, *object);
            }
            Object::VolumeClaim(mut object) => {
                let before = self.claims.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.claims.insert(name, *object);
            }
            Object::ConfigMap(mut object) => {
                let before = self.config_maps.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.config_maps.insert(name, *object);
            }
            Object::Pod(mut object) => {
                let before = self.pods.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.pods.insert(name, *object);
            }
            Object::WorkerGroup(mut object) => {
                let before = self.groups.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.groups.insert(name, *object);
            }
            Object::Cluster(mut object) => {
                let before = self.clusters.get(&name);
                object.status = before.and_then(|before| before.status.clone());
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.clusters.insert(name, *object);
            }
            Object::DisruptionBudget(mut object) => {
                let before = self.budgets.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.budgets.insert(name, *object);
            }
            Object::NetworkPolicy(mut object) => {
                let before = self.policies.get(&name);
                written(&mut object.metadata, before.map(|o| &o.metadata), id, now);
                self.policies.insert(name, *object);
            }
            Object::Extended(extended) => self.apply(extended.object),
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

    fn delete(&mut self, deletion: &Deletion) {
        let key = &deletion.object;
        let now = Some(Time(at(self.now)));
        let metadata = match key.kind {
            ObjectKind::Pod => self.pods.get_mut(&key.name).map(|o| &mut o.metadata),
            ObjectKind::Cluster => self.clusters.get_mut(&key.name).map(|o| &mut o.metadata),
            ObjectKind::WorkerGroup => self.groups.get_mut(&key.name).map(|o| &mut o.metadata),
            ObjectKind::DisruptionBudget => {
                self.budgets.remove(&key.name).unwrap();
                return;
            }
            ObjectKind::NetworkPolicy => {
                self.policies.remove(&key.name).unwrap();
                return;
            }
            kind => panic!("nobody deletes a {kind}"),
        };
        let metadata = metadata.unwrap();
        assert_eq!(metadata.uid.as_deref(), Some(key.uid.as_str()));
        metadata.deletion_timestamp = now;
    }

    /// Pods and Deployments come up one round after they were made.
    fn play_kubelet(&mut self) {
        let now = self.now;
        for pod in self.pods.values_mut().filter(|pod| pod.status.is_none()) {
            pod.status = Some(pod_status("Running", true, running(now)));
        }
        for deployment in self.deployments.values_mut() {
            deployment.status = Some(DeploymentStatus {
                observed_generation: deployment.metadata.generation,
                replicas: deployment.spec.as_ref().unwrap().replicas,
                updated_replicas: deployment.spec.as_ref().unwrap().replicas,
                available_replicas: deployment.spec.as_ref().unwrap().replicas,
                ..DeploymentStatus::default()
            });
        }
    }

    /// What is being deleted goes, and what it owned.
    pub(crate) fn collect_garbage(&mut self) {
        loop {
            let count = self.count();
            self.clusters
                .retain(|_, object| object.metadata.deletion_timestamp.is_none());
            self.groups
                .retain(|_, object| object.metadata.deletion_timestamp.is_none());
            self.pods
                .retain(|_, object| object.metadata.deletion_timestamp.is_none());
            let mut uids: Vec<String> = Vec::new();
            uids.extend(self.jobs.values().filter_map(|o| o.metadata.uid.clone()));
            uids.extend(
                self.clusters
                    .values()
                    .filter_map(|o| o.metadata.uid.clone()),
            );
            uids.extend(self.groups.values().filter_map(|o| o.metadata.uid.clone()));
            let stays = |metadata: &ObjectMeta| {
                let mut owners = metadata.owner_references.iter().flatten();
                let is_free = metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
                is_free || owners.any(|owner| uids.contains(&owner.uid))
            };
            self.clusters.retain(|_, object| stays(&object.metadata));
            self.groups.retain(|_, object| stays(&object.metadata));
            self.pods.retain(|_, object| stays(&object.metadata));
            self.services.retain(|_, object| stays(&object.metadata));
            self.deployments.retain(|_, object| stays(&object.metadata));
            self.config_maps.retain(|_, object| stays(&object.metadata));
            self.claims.retain(|_, object| stays(&object.metadata));
            self.budgets.retain(|_, object| stays(&object.metadata));
            self.policies.retain(|_, object| stays(&object.metadata));
            self.secrets.retain(|_, (owner, _)| uids.contains(owner));
            if self.count() == count {
                return;
            }
        }
    }

    fn count(&self) -> usize {
        self.clusters.len() + self.groups.len() + self.pods.len()
    }
}

pub(crate) fn is_owned(metadata: &ObjectMeta, uid: Option<&str>) -> bool {
    let owners: &[OwnerReference] = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| Some(owner.uid.as_str()) == uid)
}

/// What the API server fills in when it takes an apply.
fn written(metadata: &mut ObjectMeta, before: Option<&ObjectMeta>, id: u64, now: i64) {
    if let (Some(wanted), Some(before)) = (&metadata.resource_version, before) {
        assert_eq!(Some(wanted), before.resource_version.as_ref(), "a conflict");
    }
    metadata.resource_version = Some(id.to_string());
    metadata.uid = Some(
        before
            .and_then(|b| b.uid.clone())
            .unwrap_or_else(|| format!("uid-{id}")),
    );
    let created = before.and_then(|before| before.creation_timestamp.clone());
    metadata.creation_timestamp = Some(created.unwrap_or_else(|| Time(at(now))));
    let generation = before.and_then(|before| before.generation).unwrap_or(0);
    metadata.generation = Some(generation + 1);
}
