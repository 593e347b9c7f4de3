//! Rotations of an authority with real certificates: at every moment every process verifies every
//! other one, whatever it has loaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{DaskCluster, RotationPhase};
use oxidask_operator_plan::cluster::{self, AuthorityState, Observed, Origin, SecretState};
use oxidask_operator_plan::signal::{Loaded, Signal, Standing, WorkerSignal};
use oxidask_operator_plan::{AuthorityStep, CertificateRequest, Timestamp, names};
use oxidask_pki::{
    Authority, bundle_digest, certificate_digest, issuer_digest, joined_bundle, not_after,
    without_certificate,
};
use proptest::prelude::*;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::json;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::support::*;

const CLUSTER: &str = "flights";

/// The authority's Secret.
#[derive(Debug, Clone, Default)]
struct Kept {
    bundle: String,
    certificate: String,
    key: String,
    previous: Option<(String, Option<String>)>,
    phase: RotationPhase,
    recorded: Option<String>,
    rotated_for: Option<String>,
    origin: Origin,
    version: u64,
}

/// A role's Secret, or what a process loaded of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    bundle: String,
    certificate: String,
}

#[derive(Debug, Clone)]
struct Process {
    role: Role,
    loaded: Leaf,
    says: bool,
}

struct Rig {
    cluster: DaskCluster,
    started: i64,
    past: i64,
    kept: Option<Kept>,
    leaves: BTreeMap<Role, (Leaf, Timestamp)>,
    source: Option<(String, String)>,
    processes: BTreeMap<String, Process>,
    is_silent: bool,
    next: u32,
    phases: Vec<RotationPhase>,
}

impl Rig {
    fn new(spec: serde_json::Value) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut rig = Self {
            cluster: cluster(CLUSTER, spec),
            started: i64::try_from(now).unwrap(),
            past: 0,
            kept: None,
            leaves: BTreeMap::new(),
            source: None,
            processes: BTreeMap::new(),
            is_silent: false,
            next: 0,
            phases: vec![RotationPhase::Stable],
        };
        rig.plan();
        rig
    }

    /// A cluster at rest with a scheduler and two workers.
    fn running() -> Self {
        let mut rig = Self::new(json!({"worker": {}}));
        rig.start("flights-scheduler-0", Role::Scheduler);
        rig.start("worker-a", Role::Worker);
        rig.start("worker-b", Role::Worker);
        rig
    }

    fn now(&self) -> Timestamp {
        at(self.started + self.past)
    }

    fn start(&mut self, name: &str, role: Role) {
        let loaded = self.leaves[&role].0.clone();
        let says = true;
        self.processes
            .insert(name.to_owned(), Process { role, loaded, says });
    }

    fn wish(&mut self, text: &str) {
        let wish = [(
            "kubernetes.dask.org/rotate-authority".to_owned(),
            text.to_owned(),
        )];
        self.cluster.metadata.annotations = Some(wish.into());
    }

    fn phase(&self) -> RotationPhase {
        self.kept
            .as_ref()
            .map(|kept| kept.phase)
            .unwrap_or_default()
    }

    fn loaded(leaf: &Leaf) -> Loaded {
        Loaded {
            bundle: bundle_digest(&leaf.bundle).unwrap(),
            certificate: certificate_digest(&leaf.certificate).unwrap(),
        }
    }

    fn secrets(&self) -> BTreeMap<String, SecretState> {
        let end = |pem: &str| Timestamp::try_from(not_after(pem).unwrap()).ok();
        let mut secrets = BTreeMap::new();
        let whole = |certificate: &str| SecretState {
            has_all_keys: true,
            not_after: end(certificate),
            certificate: certificate_digest(certificate),
            ..SecretState::default()
        };
        secrets.insert(
            names::http_token_secret(CLUSTER),
            SecretState {
                has_all_keys: true,
                ..SecretState::default()
            },
        );
        for (role, (leaf, written)) in &self.leaves {
            let state = SecretState {
                bundle: bundle_digest(&leaf.bundle),
                issuer: issuer_digest(&leaf.certificate, &leaf.bundle),
                written_at: Some(*written),
                ..whole(&leaf.certificate)
            };
            secrets.insert(names::certificate_secret(CLUSTER, *role), state);
        }
        if let Some(kept) = &self.kept {
            let previous = kept.previous.as_ref();
            let previous = previous.filter(|(_, key)| key.is_some());
            let state = SecretState {
                bundle: bundle_digest(&kept.bundle),
                version: Some(kept.version.to_string()),
                authority: Some(AuthorityState {
                    phase: kept.phase,
                    is_recorded: kept.recorded == certificate_digest(&kept.certificate),
                    previous: previous.and_then(|(pem, _)| certificate_digest(pem)),
                    origin: kept.origin,
                    rotated_for: kept.rotated_for.clone(),
                }),
                ..whole(&kept.certificate)
            };
            secrets.insert(names::authority_secret(CLUSTER), state);
        }
        if let Some((certificate, _)) = &self.source {
            secrets.insert("company-ca".to_owned(), whole(certificate));
        }
        secrets
    }

    fn signal(&self) -> Option<Signal> {
        let scheduler = self
            .processes
            .values()
            .find(|it| it.role == Role::Scheduler)?;
        let workers = self
            .processes
            .iter()
            .filter(|(_, it)| it.role == Role::Worker);
        let workers = workers.map(|(name, process)| {
            let worker = WorkerSignal {
                group: "default".to_owned(),
                pod_uid: format!("uid-{name}"),
                host: String::new(),
                standing: Standing::Active,
                running: 0,
                held_bytes: 0,
                idle: Duration::ZERO,
                loaded: process.says.then(|| Self::loaded(&process.loaded)),
            };
            (name.clone(), worker)
        });
        let clients = self.processes.values().filter(|it| it.role == Role::Client);
        let clients: Vec<&Process> = clients.collect();
        let signal = Signal {
            heard_at: self.now(),
            graphs: 0,
            clients: u32::try_from(clients.len()).unwrap(),
            unfinished_tasks: 0,
            idle: None,
            groups: BTreeMap::new(),
            workers: workers.collect(),
            loaded: Some(Self::loaded(&scheduler.loaded)),
            unplaced: Vec::new(),
            clients_loaded: clients.iter().map(|it| Self::loaded(&it.loaded)).collect(),
        };
        (!self.is_silent).then_some(signal)
    }

    fn observed(&self) -> Observed {
        let pods = |role: Role| {
            let processes = self.processes.iter();
            let processes = processes.filter(move |(_, process)| process.role == role);
            let pods = processes.map(|(name, _)| {
                let mut pod: k8s_openapi::api::core::v1::Pod = read(json!({
                    "metadata": {"name": name, "uid": format!("uid-{name}")},
                    "spec": {"nodeName": "node", "containers": []},
                }));
                pod.status = Some(pod_status("Running", true, running(1)));
                Arc::new(pod)
            });
            pods.collect::<Vec<_>>()
        };
        Observed {
            secrets: self.secrets(),
            scheduler_pods: pods(Role::Scheduler),
            worker_pods: pods(Role::Worker),
            runner_pods: pods(Role::Client),
            signal: self.signal(),
            ..Observed::default()
        }
    }

    /// One plan, carried out as the controller does it; the message of `TLSReady`.
    fn plan(&mut self) -> String {
        let observed = self.observed();
        let plan = cluster::plan(&self.cluster, &observed, &settings(), self.now());
        if let Some(status) = plan.status {
            self.cluster.status = Some(status);
        }
        if let Some(request) = plan.certificates {
            self.carry_out(&request);
        }
        let status = self.cluster.status.as_ref().unwrap();
        condition(&status.conditions, "TLSReady").message.clone()
    }

    fn carry_out(&mut self, request: &CertificateRequest) {
        if let Some(step) = request.authority {
            self.step(step, request);
        }
        let Some(kept) = self.kept.clone() else {
            return;
        };
        let is_distributing = kept.phase == RotationPhase::Distribute;
        let (certificate, key) = match &kept.previous {
            Some((certificate, Some(key))) if is_distributing => (certificate.clone(), key),
            _ => (kept.certificate.clone(), &kept.key),
        };
        let signer = Authority::from_user("science", CLUSTER, &certificate, key).unwrap();
        for role in &request.roles {
            let leaf = signer.issue(*role, request.lifetime).unwrap();
            let leaf = Leaf {
                bundle: kept.bundle.clone(),
                certificate: leaf.cert_pem,
            };
            self.leaves.insert(*role, (leaf, self.now()));
        }
        let now = self.now();
        for role in &request.bundles {
            let (leaf, written) = self.leaves.get_mut(role).unwrap();
            leaf.bundle.clone_from(&kept.bundle);
            *written = now;
        }
    }

    fn step(&mut self, step: AuthorityStep, request: &CertificateRequest) {
        let new = || match &self.source {
            Some((certificate, key)) if request.authority_source.is_some() => {
                (certificate.clone(), key.clone(), Origin::Secret)
            }
            _ => {
                let new = Authority::new("science", CLUSTER).unwrap();
                (new.ca_pem(), new.key_pem(), Origin::Operator)
            }
        };
        let trusted: Vec<&str> = self
            .leaves
            .values()
            .map(|(leaf, _)| leaf.bundle.as_str())
            .collect();
        let trusted = joined_bundle(&trusted);
        let mut kept = self.kept.clone().unwrap_or_default();
        match step {
            AuthorityStep::Create | AuthorityStep::Adopt => {
                if step == AuthorityStep::Create {
                    (kept.certificate, kept.key, kept.origin) = new();
                } else {
                    kept.origin = Origin::Hand;
                }
                let digest = certificate_digest(&kept.certificate).unwrap();
                let others = without_certificate(&trusted, &digest);
                kept.phase = if others.is_empty() {
                    RotationPhase::Stable
                } else {
                    RotationPhase::Distribute
                };
                kept.bundle = joined_bundle(&[&kept.certificate, &others]);
                kept.previous = (!others.is_empty()).then_some((others, None));
                kept.recorded = Some(digest);
                kept.rotated_for.clone_from(&request.rotated_for);
            }
            AuthorityStep::Begin => {
                assert_eq!(kept.phase, RotationPhase::Stable);
                let (certificate, key, origin) = new();
                kept.previous = Some((kept.certificate.clone(), Some(kept.key.clone())));
                kept.bundle = joined_bundle(&[&certificate, &kept.bundle]);
                kept.recorded = certificate_digest(&certificate);
                (kept.certificate, kept.key, kept.origin) = (certificate, key, origin);
                kept.phase = RotationPhase::Distribute;
                kept.rotated_for.clone_from(&request.rotated_for);
            }
            AuthorityStep::Issue => {
                self.everybody(|loaded| loaded.bundle == bundle_digest(&kept.bundle).unwrap());
                kept.phase = RotationPhase::Issue;
                kept.previous = kept.previous.map(|(certificate, _)| (certificate, None));
            }
            AuthorityStep::Retire => {
                let newest = certificate_digest(&kept.certificate);
                for process in self.processes.values().filter(|it| it.role != Role::Client) {
                    let issuer = issuer_digest(&process.loaded.certificate, &kept.bundle);
                    assert_eq!(issuer, newest, "somebody has an old certificate");
                }
                kept.phase = RotationPhase::Retire;
                kept.bundle = joined_bundle(&[&kept.certificate]);
                kept.previous = None;
            }
            AuthorityStep::Finish => {
                self.everybody(|loaded| loaded.bundle == bundle_digest(&kept.bundle).unwrap());
                kept.phase = RotationPhase::Stable;
            }
        }
        kept.version += 1;
        if self.phases.last() != Some(&kept.phase) {
            self.phases.push(kept.phase);
        }
        self.kept = Some(kept);
    }

    fn everybody(&self, has: impl Fn(&Loaded) -> bool) {
        for (name, process) in &self.processes {
            if process.role != Role::Client {
                assert!(
                    has(&Self::loaded(&process.loaded)),
                    "{name} has not reported it"
                );
                assert!(process.says && !self.is_silent, "{name} has said nothing");
            }
        }
    }

    fn reload(&mut self, name: &str) {
        let process = self.processes.get_mut(name).unwrap();
        // Without a Secret kubelet leaves the files as they are.
        if let Some((leaf, _)) = self.leaves.get(&process.role) {
            process.loaded = leaf.clone();
        }
    }

    fn reload_all(&mut self) {
        for name in self.processes.keys().cloned().collect::<Vec<_>>() {
            self.reload(&name);
        }
    }

    /// Plans and reloads until the rotation is over.
    fn finish(&mut self) {
        for _ in 0..40 {
            self.plan();
            self.reload_all();
            self.past += 60;
            self.check();
        }
        assert_eq!(self.phase(), RotationPhase::Stable, "{:?}", self.phases);
    }

    /// Every pair of running processes verifies, and so would one that starts now.
    fn check(&self) {
        let fresh = self.leaves.values().map(|(leaf, _)| leaf);
        let loaded = self.processes.values().map(|process| &process.loaded);
        let mut all: Vec<&Leaf> = Vec::new();
        for leaf in loaded.chain(fresh) {
            if !all.contains(&leaf) {
                all.push(leaf);
            }
        }
        for one in &all {
            for other in &all {
                assert!(
                    verifies(one, other),
                    "phase {:?}: {:?}",
                    self.phase(),
                    self.phases
                );
            }
        }
    }
}

/// Whether the holder of `bundle` accepts the certificate, as `oxidask-comm` asks webpki.
fn verifies(bundle: &Leaf, certificate: &Leaf) -> bool {
    let der = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap();
    let leaf = EndEntityCert::try_from(&der).unwrap();
    let authorities: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(bundle.bundle.as_bytes())
            .map(Result::unwrap)
            .collect();
    let anchors: Vec<_> = authorities
        .iter()
        .map(|der| anchor_from_trusted_cert(der).unwrap())
        .collect();
    [KeyUsage::server_auth(), KeyUsage::client_auth()]
        .into_iter()
        .all(|usage| {
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            let verified = leaf.verify_for_usage(
                algorithms,
                &anchors,
                &[],
                UnixTime::now(),
                usage,
                None,
                None,
            );
            verified.is_ok()
        })
}

const WHOLE: [RotationPhase; 5] = [
    RotationPhase::Stable,
    RotationPhase::Distribute,
    RotationPhase::Issue,
    RotationPhase::Retire,
    RotationPhase::Stable,
];

#[test]
fn a_wish_rotates_the_authority_through_all_phases_once() {
    let mut rig = Rig::running();
    let old = rig.leaves[&Role::Worker].0.clone();
    rig.wish("2026-11");
    rig.finish();
    assert_eq!(rig.phases, WHOLE);
    let new = rig.leaves[&Role::Worker].0.clone();
    assert!(
        !verifies(&new, &old),
        "an old certificate is refused afterwards"
    );
    rig.finish();
    assert_eq!(rig.phases, WHOLE, "one wish is one rotation");
    let status = rig.cluster.status.unwrap().certificates.unwrap();
    assert_eq!(status.phase, Some(RotationPhase::Stable));
    assert!(status.authority_not_after.is_some() && status.not_after.is_some());
}

#[test]
fn a_silent_scheduler_holds_a_rotation_and_it_is_said() {
    let mut rig = Rig::running();
    rig.wish("x");
    rig.is_silent = true;
    for _ in 0..20 {
        rig.plan();
        rig.reload_all();
        rig.past += 3600;
    }
    assert_eq!(
        rig.phase(),
        RotationPhase::Distribute,
        "time alone is not enough"
    );
    let message = rig.plan();
    assert!(message.contains("the scheduler is silent"), "{message}");
    rig.is_silent = false;
    rig.finish();
    assert_eq!(rig.phases, WHOLE);
}

#[test]
fn a_worker_that_does_not_say_what_it_loaded_is_waited_for_and_named() {
    let mut rig = Rig::running();
    rig.processes.get_mut("worker-b").unwrap().says = false;
    rig.wish("x");
    for _ in 0..20 {
        rig.plan();
        rig.reload_all();
        rig.past += 60;
    }
    assert_eq!(rig.phase(), RotationPhase::Distribute);
    let message = rig.plan();
    assert!(
        message.contains("waits for `worker-b`") && message.contains("OX531"),
        "{message}"
    );
    rig.processes.remove("worker-b");
    rig.finish();
}

#[test]
fn clients_that_keep_old_files_hold_it_up_for_three_minutes_and_no_longer() {
    let mut rig = Rig::running();
    rig.start("somebody", Role::Client);
    rig.wish("x");
    let mut seconds = 0;
    while rig.phase() != RotationPhase::Issue {
        rig.plan();
        for name in ["flights-scheduler-0", "worker-a", "worker-b"] {
            rig.reload(name);
        }
        rig.past += 10;
        seconds += 10;
        assert!(seconds < 300, "it waits for ever");
    }
    assert!(seconds >= 180, "{seconds}");
}

#[test]
fn an_authority_put_there_by_hand_or_lost_is_taken_up_gently() {
    let mut rig = Rig::running();
    let mine = Authority::new("science", CLUSTER).unwrap();
    let kept = rig.kept.as_mut().unwrap();
    kept.certificate = mine.ca_pem();
    kept.bundle = mine.ca_pem();
    kept.key = mine.key_pem();
    rig.finish();
    assert_eq!(rig.phases, WHOLE);
    let issuer = issuer_digest(&rig.leaves[&Role::Worker].0.certificate, &mine.ca_pem());
    assert!(issuer.is_some());
    rig.kept = None;
    rig.finish();
    assert_eq!(rig.phases.len(), 9, "{:?}", rig.phases);
}

#[test]
fn a_users_authority_is_used_and_followed() {
    let source = || {
        let authority = Authority::new("company", "root").unwrap();
        (authority.ca_pem(), authority.key_pem())
    };
    let mut rig = Rig::new(json!({"worker": {}, "tls": {"caSecretRef": {"name": "company-ca"}}}));
    assert!(rig.kept.is_none(), "nothing is made without it");
    let status = rig.cluster.status.clone().unwrap();
    let tls = condition(&status.conditions, "TLSReady");
    assert_eq!(
        (tls.status.as_str(), tls.reason.as_str()),
        ("False", "OX530")
    );
    assert!(
        tls.message
            .contains("Secret `company-ca`, which does not exist"),
        "{}",
        tls.message
    );
    assert_eq!(condition(&status.conditions, "Ready").reason, "OX530");
    rig.source = Some(source());
    rig.plan();
    let kept = rig.kept.clone().unwrap();
    assert_eq!(kept.certificate, rig.source.clone().unwrap().0);
    rig.start("flights-scheduler-0", Role::Scheduler);
    rig.start("worker-a", Role::Worker);
    rig.source = Some(source());
    rig.finish();
    assert_eq!(rig.phases, WHOLE);
    // Without the Secret what runs goes on, and it is said.
    rig.source = None;
    let message = rig.plan();
    assert!(message.contains("does not exist"), "{message}");
    rig.check();
}

#[derive(Debug, Clone)]
enum Act {
    Plan,
    Reload(usize),
    Start,
    Stop(usize),
    Silence(bool),
    Pass(i64),
    Wish,
    Lose,
    LoseLeaf(usize),
    Replace,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => Just(Act::Plan),
        6 => (0..8_usize).prop_map(Act::Reload),
        2 => Just(Act::Start),
        1 => (0..8_usize).prop_map(Act::Stop),
        1 => any::<bool>().prop_map(Act::Silence),
        2 => prop::sample::select(vec![1, 30, 200, 7200]).prop_map(Act::Pass),
        1 => Just(Act::Wish),
    ]
}

fn rough_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => act(),
        1 => Just(Act::Lose),
        1 => (0..4_usize).prop_map(Act::LoseLeaf),
        1 => Just(Act::Replace),
    ]
}

fn perform(rig: &mut Rig, act: &Act) {
    let nth = |rig: &Rig, index: usize| {
        let names: Vec<String> = rig.processes.keys().cloned().collect();
        names.get(index % names.len().max(1)).cloned()
    };
    match act {
        Act::Plan => {
            rig.plan();
        }
        Act::Reload(index) => {
            if let Some(name) = nth(rig, *index) {
                let role = rig.processes[&name].role;
                if rig.leaves.contains_key(&role) {
                    rig.reload(&name);
                }
            }
        }
        Act::Start => {
            rig.next += 1;
            if rig.leaves.contains_key(&Role::Worker) {
                rig.start(&format!("worker-{}", rig.next), Role::Worker);
            }
        }
        Act::Stop(index) => {
            if let Some(name) = nth(rig, *index)
                && rig.processes[&name].role == Role::Worker
            {
                rig.processes.remove(&name);
            }
        }
        Act::Silence(is_silent) => rig.is_silent = *is_silent,
        Act::Pass(seconds) => rig.past += seconds,
        Act::Wish => {
            rig.next += 1;
            let wish = rig.next.to_string();
            rig.wish(&wish);
        }
        Act::Lose => rig.kept = None,
        Act::LoseLeaf(index) => {
            rig.leaves.remove(&Role::ALL[*index]);
        }
        Act::Replace => {
            let mine = Authority::new("science", CLUSTER).unwrap();
            if let Some(kept) = rig.kept.as_mut() {
                (kept.certificate, kept.key) = (mine.ca_pem(), mine.key_pem());
                kept.bundle.clone_from(&kept.certificate);
            }
        }
    }
}

/// No phase is skipped, whatever happens.
fn in_order(phases: &[RotationPhase]) -> bool {
    phases.windows(2).all(|pair| {
        matches!(
            (pair[0], pair[1]),
            (
                RotationPhase::Stable | RotationPhase::Issue | RotationPhase::Retire,
                RotationPhase::Distribute
            ) | (RotationPhase::Distribute, RotationPhase::Issue)
                | (RotationPhase::Issue, RotationPhase::Retire)
                | (RotationPhase::Retire, RotationPhase::Stable)
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_pair_verifies_at_every_moment(acts in prop::collection::vec(act(), 1..80)) {
        let mut rig = Rig::running();
        for act in &acts {
            perform(&mut rig, act);
            rig.check();
        }
        prop_assert!(in_order(&rig.phases), "{:?}", rig.phases);
        rig.is_silent = false;
        rig.finish();
    }

    #[test]
    fn it_converges_after_losses_and_replacements(
        acts in prop::collection::vec(rough_act(), 1..60),
    ) {
        let mut rig = Rig::running();
        for act in &acts {
            perform(&mut rig, act);
        }
        rig.is_silent = false;
        for _ in 0..60 {
            rig.plan();
            rig.reload_all();
            rig.past += 60;
        }
        prop_assert_eq!(rig.phase(), RotationPhase::Stable);
        rig.check();
    }
}
