//! One link: connects, listens, and begins anew when that ends.
//!
//! Telemetry comes when something changes. When nothing has come for [`REFRESH_AFTER`], the stream is
//! opened anew over the same connection: its first message proves that the scheduler's loop runs and
//! brings times up to date. A scheduler that does not answer that is silent.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use oxidask_comm::{CommError, Credentials, connect_with_tries};
use oxidask_diagnostic::Code;
use oxidask_identity::Role;
use oxidask_operator_plan::{Timestamp, names, scaling};
use oxidask_pki::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};
use oxidask_proto::{fault, wire};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Environment, MESSAGE_BYTES_MAX, SchedulerClient, Shared, convert};
use crate::error::OneLine;
use crate::signals::{News, concerned};

/// After so long without a message the scheduler is asked whether that is still so.
const REFRESH_AFTER: Duration = Duration::from_secs(4);

/// And has so long to answer; both together are less than `SILENT_AFTER`.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// How long the Secret may take to be read.
const SECRET_LIMIT: Duration = Duration::from_secs(5);

/// Between two attempts to reach a scheduler.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(5);

/// Attempts that fail before the planners are told that nobody hears the scheduler: one that is
/// found again at once is no news.
const FAILURES_SILENT: u32 = 3;

/// A pod that becomes ready so soon has not been away.
const READY_SOON: Duration = Duration::from_secs(1);

/// A scheduler whose pod is not ready is tried so often all the same.
const UNREADY_PAUSE: Duration = Duration::from_secs(30);

/// Why a link ended, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Broken(String);

/// Follows a scheduler until the token fires.
pub(super) async fn run(
    environment: Arc<Environment>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let work = follow(&environment, &shared);
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
    if shared.get().is_some() {
        environment.metrics.link_down();
    }
    shared.set(None);
}

async fn follow(environment: &Environment, shared: &Shared) {
    let mut is_ready = shared.is_ready.subscribe();
    let mut failures = 0_u32;
    let mut is_told = false;
    let mut said = None;
    loop {
        let mut is_silent = failures >= FAILURES_SILENT;
        if timeout(READY_SOON, is_ready.wait_for(|is_ready| *is_ready))
            .await
            .is_err()
        {
            is_silent = true;
        }
        if is_silent && !is_told {
            is_told = true;
            tell(environment, shared, &News::Everything).await;
        }
        // A pod that is not ready may have a scheduler that serves nevertheless.
        let _ = timeout(UNREADY_PAUSE, is_ready.wait_for(|is_ready| *is_ready)).await;
        let (broken, was_heard) = session(environment, shared).await;
        if was_heard {
            (failures, is_told, said) = (0, false, None);
        }
        failures = failures.saturating_add(1);
        if failures >= FAILURES_SILENT && said.as_ref() != Some(&broken) {
            let object = format!("{}/{}", shared.key.namespace, shared.key.cluster);
            let code = Code::TelemetryMissing;
            let (error, hint) = (&broken.0, code.hint());
            tracing::warn!(object, %code, error, hint, "a scheduler cannot be followed; trying again");
            said = Some(broken);
        }
        let factor = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let pause = PAUSE_FIRST.saturating_mul(factor).min(PAUSE_LAST);
        tokio::time::sleep(pause).await;
    }
}

/// One connection, from its start to its end; whether anything was heard.
async fn session(environment: &Environment, shared: &Shared) -> (Broken, bool) {
    let asked = target_seconds(environment, shared);
    let mut line = match open(environment, shared, asked).await {
        Ok((client, stream)) => Line {
            client,
            stream,
            asked,
        },
        Err(broken) => return (broken, false),
    };
    let mut was_heard = false;
    let broken = loop {
        let reply = match line.next(target_seconds(environment, shared)).await {
            Ok(reply) => reply,
            Err(broken) => break broken,
        };
        if !was_heard {
            was_heard = true;
            environment.metrics.link_up();
            shared.set(Some(line.client.clone()));
            let object = format!("{}/{}", shared.key.namespace, shared.key.cluster);
            tracing::info!(object, "following the scheduler");
        }
        let signal = convert::signal(reply, Timestamp::now());
        let news = environment.signals.hear(&shared.key, signal);
        tell(environment, shared, &news).await;
    };
    if was_heard {
        environment.metrics.link_down();
        shared.set(None);
        environment.signals.silence(&shared.key);
        let object = format!("{}/{}", shared.key.namespace, shared.key.cluster);
        tracing::info!(
            object,
            reason = broken.0,
            "the scheduler is not heard any more"
        );
    }
    (broken, was_heard)
}

/// An open connection.
struct Line {
    client: SchedulerClient,
    stream: Streaming<wire::TelemetryReply>,
    /// What the stream was opened with.
    asked: u64,
}

impl Line {
    /// The next message; asks anew if there is none for a while, or if the target is another one.
    async fn next(&mut self, wanted: u64) -> Result<wire::TelemetryReply, Broken> {
        if wanted == self.asked
            && let Ok(message) = timeout(REFRESH_AFTER, self.stream.message()).await
        {
            return match message {
                Ok(Some(reply)) => Ok(reply),
                Ok(None) => Err(Broken("the scheduler ended the stream".to_owned())),
                Err(status) => Err(Broken(said(&status))),
            };
        }
        let (fresh, first) = reopen(&mut self.client, wanted).await?;
        (self.stream, self.asked) = (fresh, wanted);
        Ok(first)
    }
}

async fn tell(environment: &Environment, shared: &Shared, news: &News) {
    let targets = concerned(news, &shared.key, &environment.caches);
    environment.queues.hurry(targets).await;
}

/// Work that a worker should have at most, as the cluster's manifests say; 0: the scheduler's own.
fn target_seconds(environment: &Environment, shared: &Shared) -> u64 {
    let groups = environment.caches.groups.of_cluster(&shared.key);
    let autoscalers = environment.caches.autoscalers.of_cluster(&shared.key);
    let groups = groups.iter().map(AsRef::as_ref);
    let seconds = scaling::target_seconds(groups, autoscalers.iter().map(AsRef::as_ref));
    seconds.map_or(0, u64::from)
}

async fn open(
    environment: &Environment,
    shared: &Shared,
    target_seconds: u64,
) -> Result<(SchedulerClient, Streaming<wire::TelemetryReply>), Broken> {
    // Never closed.
    let _permit = environment.connects.acquire().await.ok();
    let credentials = credentials(environment, shared).await?;
    let address = environment.addresses.address(&shared.key);
    let channel = connect_with_tries(&address, &credentials, Role::Scheduler, 1)
        .await
        .map_err(|error| Broken(OneLine(&error).to_string()))?;
    let mut client = SchedulerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let stream = ask(&mut client, target_seconds).await?;
    Ok((client, stream))
}

async fn ask(
    client: &mut SchedulerClient,
    target_seconds: u64,
) -> Result<Streaming<wire::TelemetryReply>, Broken> {
    let asked = client.telemetry(wire::TelemetryRequest { target_seconds });
    match timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(stream)) => Ok(stream.into_inner()),
        Ok(Err(status)) => Err(Broken(said(&status))),
        Err(_) => Err(silent()),
    }
}

/// Opens the stream anew and waits for its first message.
async fn reopen(
    client: &mut SchedulerClient,
    target_seconds: u64,
) -> Result<(Streaming<wire::TelemetryReply>, wire::TelemetryReply), Broken> {
    let opened = async {
        let mut stream = ask(client, target_seconds).await?;
        match stream.message().await {
            Ok(Some(first)) => Ok((stream, first)),
            Ok(None) => Err(Broken("the scheduler ended the stream".to_owned())),
            Err(status) => Err(Broken(said(&status))),
        }
    };
    match timeout(ANSWER_LIMIT, opened).await {
        Ok(opened) => opened,
        Err(_) => Err(silent()),
    }
}

fn silent() -> Broken {
    let seconds = ANSWER_LIMIT.as_secs();
    Broken(format!("the scheduler said nothing for {seconds} s"))
}

/// Read anew for each connection: certificates are renewed. Kept only inside of the connection.
async fn credentials(environment: &Environment, shared: &Shared) -> Result<Credentials, Broken> {
    let name = names::certificate_secret(&shared.key.cluster, Role::Operator);
    let namespace = &shared.key.namespace;
    if !environment.leadership.holds() {
        return Err(Broken("this process does not lead any more".to_owned()));
    }
    let secrets = Api::<Secret>::namespaced(environment.client.clone(), namespace);
    let problem = |text: &str| Broken(format!("Secret `{namespace}/{name}` {text}"));
    let secret = match timeout(SECRET_LIMIT, secrets.get_opt(&name)).await {
        Ok(Ok(Some(secret))) => secret,
        Ok(Ok(None)) => return Err(problem("does not exist yet")),
        Ok(Err(error)) => return Err(problem(&format!("cannot be read: {}", OneLine(&error)))),
        Err(_) => return Err(problem("was not read in time")),
    };
    let data = secret.data.unwrap_or_default();
    let text = |key: &str| {
        let bytes = data.get(key).map(|bytes| bytes.0.as_slice());
        std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    };
    let credentials: Result<_, CommError> =
        Credentials::from_pem(text(AUTHORITY_FILE), text(CERTIFICATE_FILE), text(KEY_FILE));
    credentials.map_err(|error| problem(&format!("cannot be used: {}", OneLine(&error))))
}

/// An answer of a scheduler that is none, in words.
pub(super) fn said(status: &Status) -> String {
    let diagnostic = fault::from_status(status);
    format!("{}: {}", diagnostic.code, diagnostic.message)
}
