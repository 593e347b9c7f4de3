//! The lease by which one of several replicas writes and the others stand by.
//!
//! Owns when this process leads: from the moment it has written itself into the lease, as long as it
//! renews it in time. Another replica takes over when it has seen no renewal for the whole duration,
//! counted by its own steady clock from the moment it saw the last one, so that a clock that jumps
//! changes nothing. A holder stops writing well before that.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use oxidask_diagnostic::Coded as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api_error::request_error;
use crate::apply::FIELD_MANAGER;
use crate::error::{OneLine, OperatorError};
use crate::leadership::Leadership;
use crate::scope::Term;

/// How often a holder renews; more often if the lease is short.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// Renewals within the life of a lease, at least.
const RENEWALS_MIN: u32 = 5;

/// How often the others look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A lease of somebody else never counts for longer than this, whatever stands in it.
const DURATION_MAX: Duration = Duration::from_mins(1);

/// One lease, and what it is for.
#[derive(Debug, Clone)]
pub(crate) struct LeaseSettings {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Who we are: another one at each start.
    pub(crate) identity: String,
    duration: Duration,
    renew_deadline: Duration,
    renew_every: Duration,
    look_every: Duration,
}

impl LeaseSettings {
    /// A lease that counts for so long after its last renewal.
    pub(crate) fn new(namespace: String, name: String, duration: Duration) -> Self {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|it: &String| !it.is_empty())
        };
        let host = variable("POD_NAME").or_else(|| variable("HOSTNAME"));
        // Seeded by the system: equal for no two processes.
        let number = RandomState::new().build_hasher().finish();
        let host = host.as_deref().unwrap_or("oxidask-operator");
        Self {
            namespace,
            name,
            identity: format!("{host}_{number:016x}"),
            duration,
            // A holder that could not renew for so long stops writing, before another one starts.
            renew_deadline: duration * 2 / 3,
            renew_every: RENEW_EVERY.min(duration / RENEWALS_MIN),
            look_every: LOOK_EVERY,
        }
    }
}

/// Gets the lease and keeps it.
pub(crate) struct Keeper {
    settings: LeaseSettings,
    leases: Api<Lease>,
    leadership: Leadership,
    terms: watch::Sender<Term>,
    seen: Option<Seen>,
}

/// Another one's lease as it was seen last.
#[derive(Debug)]
struct Seen {
    /// What changes with each renewal.
    version: Option<String>,
    /// When it was seen first.
    at: Instant,
}

impl Keeper {
    pub(crate) fn new(
        settings: LeaseSettings,
        client: Client,
        leadership: Leadership,
        terms: watch::Sender<Term>,
    ) -> Self {
        let leases = Api::namespaced(client, &settings.namespace);
        Self {
            settings,
            leases,
            leadership,
            terms,
            seen: None,
        }
    }

    /// Runs until the token fires, then gives the lease back.
    pub(crate) async fn run(mut self, release: CancellationToken) {
        loop {
            let acquired = tokio::select! {
                biased;
                () = release.cancelled() => return,
                acquired = self.acquire() => acquired,
            };
            let (lease, began) = acquired;
            let term = self.leadership.begin();
            self.leadership
                .lead_until(began + self.settings.renew_deadline);
            self.terms.send_replace(Some(term));
            tracing::info!(
                identity = self.settings.identity,
                "holds the lease; leading"
            );
            let kept = self.keep(lease, began, &release).await;
            self.leadership.end();
            self.terms.send_replace(None);
            if let Some(lease) = kept {
                self.give_back(lease).await;
                return;
            }
            tracing::warn!("lost the lease; standing by");
        }
    }

    /// Waits until the lease is ours; with the moment from which it counts.
    async fn acquire(&mut self) -> (Lease, Instant) {
        let mut said = None;
        loop {
            let began = Instant::now();
            match self.try_acquire().await {
                Ok(Some(lease)) => return (lease, began),
                Ok(None) => said = None,
                Err(error) => {
                    let text = OneLine(&error).to_string();
                    if said.as_ref() != Some(&text) {
                        let (code, hint) = (error.code(), error.hint());
                        tracing::warn!(%code, error = text, %hint, "the lease cannot be had; trying again");
                        said = Some(text);
                    }
                }
            }
            tokio::time::sleep(self.settings.look_every).await;
        }
    }

    /// The lease if it is ours now.
    async fn try_acquire(&mut self) -> Result<Option<Lease>, OperatorError> {
        let Some(lease) = self.find().await? else {
            let lease = self.ours(None);
            let parameters = parameters();
            let created = self.timed(self.leases.create(&parameters, &lease)).await;
            return unless_conflict(created);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if !holder.is_empty() && holder != self.settings.identity {
            let version = lease.metadata.resource_version.clone();
            let seen = match self.seen.take() {
                Some(seen) if seen.version == version => seen,
                _ => Seen {
                    version,
                    at: Instant::now(),
                },
            };
            let seconds = spec
                .lease_duration_seconds
                .and_then(|it| it.try_into().ok());
            let duration = seconds.map_or(self.settings.duration, Duration::from_secs);
            let is_over = seen.at.elapsed() >= duration.min(DURATION_MAX);
            self.seen = Some(seen);
            if !is_over {
                return Ok(None);
            }
            tracing::info!(holder, "the lease has not been renewed; taking it");
        }
        let taken = self.ours(Some(&lease));
        unless_conflict(self.replace(&taken).await)
    }

    async fn find(&self) -> Result<Option<Lease>, OperatorError> {
        match self.timed(self.leases.get(&self.settings.name)).await {
            Ok(lease) => Ok(Some(lease)),
            Err(OperatorError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until that is too late (None), or until the token fires.
    async fn keep(
        &self,
        mut lease: Lease,
        mut renewed: Instant,
        release: &CancellationToken,
    ) -> Option<Lease> {
        loop {
            let deadline = renewed + self.settings.renew_deadline;
            tokio::select! {
                biased;
                () = release.cancelled() => return Some(lease),
                () = tokio::time::sleep(self.settings.renew_every) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let began = Instant::now();
            let next = self.ours(Some(&lease));
            match tokio::time::timeout(left, self.replace(&next)).await {
                Ok(Ok(written)) => {
                    (lease, renewed) = (written, began);
                    let until = renewed + self.settings.renew_deadline;
                    self.leadership.lead_until(until);
                }
                Ok(Err(OperatorError::Conflict { .. } | OperatorError::Gone { .. })) => {
                    // Our own renewal whose answer was lost, or another holder.
                    match self.find().await {
                        Ok(Some(found)) if self.is_ours(&found) => lease = found,
                        Ok(_) => return None,
                        Err(error) => warn(&error),
                    }
                }
                Ok(Err(error)) => warn(&error),
                Err(_) => return None,
            }
        }
    }

    /// Lets the next one begin at once. Nobody waits for this for long.
    async fn give_back(&self, lease: Lease) {
        let mut free = lease;
        let spec = free.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        match self.replace(&free).await {
            Ok(_) => tracing::info!("gave the lease back"),
            Err(error) => tracing::info!(error = %OneLine(&error), "the lease was not given back"),
        }
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let spec = lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_ref()) == Some(&self.settings.identity)
    }

    /// The lease with ourselves in it. Only if nobody has changed it since.
    fn ours(&self, before: Option<&Lease>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let spec = before.and_then(|lease| lease.spec.clone());
        let spec = spec.unwrap_or_default();
        let is_ours = before.is_some_and(|lease| self.is_ours(lease));
        let transitions = spec.lease_transitions.unwrap_or_default();
        let seconds = i32::try_from(self.settings.duration.as_secs().max(1));
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                resource_version: before.and_then(|it| it.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.settings.identity.clone()),
                lease_duration_seconds: seconds.ok(),
                acquire_time: if is_ours {
                    spec.acquire_time
                } else {
                    now.clone()
                },
                renew_time: now,
                lease_transitions: Some(transitions.saturating_add(i32::from(!is_ours))),
                ..spec
            }),
        }
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, OperatorError> {
        let parameters = parameters();
        let name = &self.settings.name;
        self.timed(self.leases.replace(name, &parameters, lease))
            .await
    }

    async fn timed<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, OperatorError> {
        let LeaseSettings {
            namespace, name, ..
        } = &self.settings;
        let what = || format!("the lease `{namespace}/{name}` cannot be read or written");
        let limit = self.settings.renew_deadline;
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| request_error(what(), error)),
            Err(_) => Err(OperatorError::Timeout {
                what: what(),
                seconds: limit.as_secs(),
            }),
        }
    }
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Somebody else was faster: then the lease is not ours.
fn unless_conflict(written: Result<Lease, OperatorError>) -> Result<Option<Lease>, OperatorError> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(OperatorError::Conflict { .. } | OperatorError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn warn(error: &OperatorError) {
    tracing::warn!(code = %error.code(), error = %OneLine(error), "the lease was not renewed");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;
    use crate::server::{self, Answer, Asked, failure};

    /// A lease as the API server keeps it.
    #[derive(Clone, Default)]
    struct Stored {
        lease: Arc<Mutex<Option<(u64, Value)>>>,
        is_down: Arc<AtomicBool>,
    }

    impl Stored {
        fn answer(&self, asked: &Asked) -> Answer {
            if self.is_down.load(Ordering::SeqCst) {
                return failure(500, "etcd has no leader");
            }
            let mut stored = self.lease.lock().unwrap();
            let put = |version: u64| {
                let mut body = asked.body.clone();
                body["metadata"]["resourceVersion"] = json!(version.to_string());
                (version, body)
            };
            match (asked.method.as_str(), stored.as_ref()) {
                ("GET", None) => failure(404, "not found"),
                ("GET", Some((_, lease))) => (200, lease.clone()),
                ("POST", Some(_)) => failure(409, "already exists"),
                ("POST", None) => {
                    let new = put(1);
                    *stored = Some(new.clone());
                    (201, new.1)
                }
                ("PUT", Some((version, _)))
                    if asked.body["metadata"]["resourceVersion"] == json!(version.to_string()) =>
                {
                    let new = put(version + 1);
                    *stored = Some(new.clone());
                    (200, new.1)
                }
                _ => failure(409, "the object has been modified"),
            }
        }

        fn holder(&self) -> String {
            let stored = self.lease.lock().unwrap();
            let holder = stored
                .as_ref()
                .map(|(_, lease)| lease["spec"]["holderIdentity"].clone());
            holder
                .unwrap_or_default()
                .as_str()
                .unwrap_or_default()
                .to_owned()
        }
    }

    struct Replica {
        leadership: Leadership,
        terms: watch::Receiver<Term>,
        release: CancellationToken,
        keeping: tokio::task::JoinHandle<()>,
        is_cut_off: Arc<AtomicBool>,
    }

    fn replica(stored: &Stored, identity: &str) -> Replica {
        let (mine, is_cut_off) = (stored.clone(), Arc::new(AtomicBool::new(false)));
        let cut_off = Arc::clone(&is_cut_off);
        let (context, _log) = server::context(move |asked| {
            if cut_off.load(Ordering::SeqCst) {
                return failure(500, "no route");
            }
            mine.answer(asked)
        });
        let settings = LeaseSettings {
            identity: identity.to_owned(),
            look_every: Duration::from_millis(25),
            ..LeaseSettings::new("n".to_owned(), "l".to_owned(), Duration::from_secs(1))
        };
        let leadership = Leadership::waiting();
        let (terms, term) = watch::channel(None);
        let keeper = Keeper::new(settings, context.client, leadership.clone(), terms);
        let release = CancellationToken::new();
        Replica {
            leadership,
            terms: term,
            keeping: tokio::spawn(keeper.run(release.clone())),
            release,
            is_cut_off,
        }
    }

    impl Replica {
        async fn leads(&mut self) -> CancellationToken {
            let term = self.terms.wait_for(Option::is_some);
            let term = tokio::time::timeout(Duration::from_secs(20), term).await;
            term.unwrap().unwrap().clone().unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_leads_and_the_next_one_follows_at_once_when_it_goes() {
        let stored = Stored::default();
        let mut first = replica(&stored, "first");
        first.leads().await;
        let mut second = replica(&stored, "second");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(first.leadership.holds());
        assert!(!second.leadership.holds(), "the first one renews");
        assert_eq!(stored.holder(), "first");
        let began = Instant::now();
        first.release.cancel();
        first.keeping.await.unwrap();
        assert!(!first.leadership.holds());
        second.leads().await;
        assert!(
            began.elapsed() < Duration::from_millis(900),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(stored.holder(), "second");
        let transitions = stored.lease.lock().unwrap().clone().unwrap().1;
        assert_eq!(transitions["spec"]["leaseTransitions"], 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_cannot_renew_stops_before_the_next_one_starts() {
        let stored = Stored::default();
        let mut first = replica(&stored, "first");
        let term = first.leads().await;
        let mut second = replica(&stored, "second");
        first.is_cut_off.store(true, Ordering::SeqCst);
        while second.terms.borrow().is_none() {
            let (both, first) = (second.leadership.holds(), first.leadership.holds());
            assert!(!(both && first), "two lead");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!first.leadership.holds());
        assert!(term.is_cancelled(), "what was under way was stopped");
        second.leads().await;
        first.is_cut_off.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!first.leadership.holds(), "it stands by");
        assert_eq!(stored.holder(), "second");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_outage_takes_the_lead_and_gives_it_back() {
        let stored = Stored::default();
        let mut only = replica(&stored, "only");
        let term = only.leads().await;
        stored.is_down.store(true, Ordering::SeqCst);
        term.cancelled().await;
        assert!(!only.leadership.holds());
        only.terms.wait_for(Option::is_none).await.unwrap();
        stored.is_down.store(false, Ordering::SeqCst);
        only.leads().await;
        assert!(only.leadership.holds());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn times_in_the_lease_are_never_compared() {
        // The other one's clock is a century ahead, or behind.
        for time in ["2126-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000000Z"] {
            let stored = Stored::default();
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "l", "namespace": "n", "resourceVersion": "1"},
                "spec": {"holderIdentity": "other", "leaseDurationSeconds": 1,
                    "renewTime": time, "acquireTime": time},
            });
            *stored.lease.lock().unwrap() = Some((1, lease));
            let began = Instant::now();
            let mut replica = replica(&stored, "next");
            replica.leads().await;
            let took = began.elapsed();
            assert!(
                took >= Duration::from_secs(1),
                "{took:?}: a whole duration was seen"
            );
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
    }
}
