//! One link: asks its scheduler again and again, and has it retire workers.
//!
//! Owns the pace and what is remembered between two answers: which worker has which address, since
//! when each has nothing to do, and which are asked for. A worker that was chosen because it had nothing
//! to do is not retired if it has got something since.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use oxidask_operator_plan::Timestamp;
use oxidask_operator_plan::dask::load::{self, ReportedWorker, SchedulerReport};
use oxidask_operator_plan::signal::Standing;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Environment;
use super::ask::{self, Address, Answer, AskError};
use super::comm::Comm;
use crate::cache::ClusterKey;
use crate::signals::{News, concerned};

/// Time between two questions.
const PACE: Duration = Duration::from_secs(5);

/// The same while workers come or go.
const HURRY: Duration = Duration::from_secs(1);

/// How long something keeps a link in a hurry.
const HURRY_FOR: Duration = Duration::from_secs(15);

/// How long a scheduler may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// How long a scheduler may take to move what workers hold. What is not done then is asked for
/// again, which a scheduler takes as the same.
const RETIRE_LIMIT: Duration = Duration::from_mins(4);

/// A worker that was refused is not asked for again at once.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How long a name counts as retired: a process that is started again takes it again.
const RETIRED_FOR: Duration = Duration::from_mins(5);

/// Workers in one request.
const WORKERS_MAX: usize = 256;

/// Requests to retire workers at the same time; others are planned again.
const REQUESTS_MAX: usize = 8;

/// What a link's tasks and its users share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: ClusterKey,
    pub(super) address: Address,
    stop: CancellationToken,
    memory: Mutex<Memory>,
    /// Asks for an answer now.
    now: Notify,
}

#[derive(Debug, Default)]
struct Memory {
    addresses: HashMap<String, String>,
    busy: HashMap<String, Instant>,
    /// Those that had nothing to do, as of the last answer.
    idle: HashSet<String>,
    /// Until when each counts as asked for; none while the request is under way.
    asked: HashMap<String, Option<Instant>>,
    retired: HashMap<String, Instant>,
    requests: usize,
    hurry: Option<Instant>,
}

impl Shared {
    pub(super) fn new(key: ClusterKey, address: Address, stop: CancellationToken) -> Self {
        Self {
            key,
            address,
            stop,
            memory: Mutex::default(),
            now: Notify::new(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn object(&self) -> String {
        format!("{}/{}", self.key.namespace, self.key.cluster)
    }
}

/// Asks until the link is dropped.
pub(super) async fn run(environment: Arc<Environment>, shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = ask_always(&environment, &shared) => {}
    }
}

async fn ask_always(environment: &Environment, shared: &Shared) {
    let mut comm: Option<Comm> = None;
    let mut is_heard = None;
    loop {
        let answer = {
            // Never closed; without a permit there would only be more at the same time.
            let _turn = environment.questions.acquire().await.ok();
            let asked = ask::report(&shared.address, &mut comm);
            tokio::time::timeout(ANSWER_LIMIT, asked).await
        };
        let answer = answer.unwrap_or(Err(AskError::Protocol("it does not answer in time")));
        let news = if let Ok(answer) = &answer {
            heard(environment, shared, answer)
        } else {
            comm = None;
            // One lost answer is no news: the signal counts until it is too old.
            News::Nothing
        };
        told(shared, &answer, &mut is_heard);
        let is_news = news != News::Nothing;
        let targets = concerned(&news, &shared.key, &environment.caches);
        environment.queues.hurry(targets).await;
        let pace = shared.with(|memory| {
            if is_news {
                memory.hurry = Some(Instant::now());
            }
            let is_hurried = memory
                .hurry
                .is_some_and(|since| since.elapsed() < HURRY_FOR);
            if is_hurried || memory.requests > 0 || answer.is_err() {
                HURRY
            } else {
                PACE
            }
        });
        tokio::select! {
            () = tokio::time::sleep(pace) => {}
            () = shared.now.notified() => {}
        }
    }
}

/// Says once that a scheduler is heard, or why not.
fn told(shared: &Shared, answer: &Result<Answer, AskError>, is_heard: &mut Option<bool>) {
    if *is_heard == Some(answer.is_ok()) {
        return;
    }
    *is_heard = Some(answer.is_ok());
    let object = shared.object();
    match answer {
        Ok(answer) => {
            let workers = answer.workers.len();
            tracing::info!(object, workers, "the Dask scheduler is heard");
        }
        Err(error) => tracing::info!(object, %error, "the Dask scheduler is not heard"),
    }
}

fn heard(environment: &Environment, shared: &Shared, answer: &Answer) -> News {
    let report = shared.with(|memory| reported(memory, answer, Instant::now(), Timestamp::now()));
    let pods = environment.caches.pods.of_cluster(&shared.key);
    let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    let signal = load::signal(&report, &shared.key.cluster, &pods, report.heard_at);
    environment.signals.hear(&shared.key, signal)
}

/// The answer together with what is remembered.
fn reported(
    memory: &mut Memory,
    answer: &Answer,
    now: Instant,
    time: Timestamp,
) -> SchedulerReport {
    memory
        .asked
        .retain(|_, until| until.is_none_or(|until| until > now));
    memory
        .retired
        .retain(|_, since| now.duration_since(*since) < RETIRED_FOR);
    let known = answer.workers.iter();
    memory.addresses = known
        .clone()
        .map(|worker| (worker.name.clone(), worker.address.clone()))
        .collect();
    let idle = known.clone().filter(|worker| worker.running == 0);
    memory.idle = idle.map(|worker| worker.name.clone()).collect();
    let addresses = &memory.addresses;
    memory.busy.retain(|name, _| addresses.contains_key(name));
    let workers = known.map(|worker| {
        let is_free = worker.running == 0 && worker.held_bytes == 0;
        let standing = if is_free && memory.retired.contains_key(&worker.name) {
            Standing::Empty
        } else if memory.asked.contains_key(&worker.name) {
            Standing::Retiring
        } else {
            standing(&worker.status)
        };
        let busy = memory.busy.entry(worker.name.clone()).or_insert(now);
        if worker.running > 0 {
            *busy = now;
        }
        ReportedWorker {
            name: worker.name.clone(),
            host: worker.host.clone(),
            running: worker.running,
            held_bytes: worker.held_bytes,
            standing,
            idle: now.duration_since(*busy),
        }
    });
    let since = answer.idle_since.map(|seconds| {
        let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(time)
    });
    SchedulerReport {
        heard_at: time,
        workers_wanted: answer.wanted,
        idle_since: since,
        workers: workers.collect(),
    }
}

fn standing(status: &str) -> Standing {
    match status {
        "paused" => Standing::Paused,
        "closing" | "closing_gracefully" => Standing::Retiring,
        _ => Standing::Active,
    }
}

/// Has the scheduler retire these workers, and those that are asked for already left out.
pub(super) fn retire(shared: &Arc<Shared>, names: Vec<String>) {
    let (chosen, idle) = shared.with(|memory| {
        if memory.requests >= REQUESTS_MAX {
            return (Vec::new(), BTreeSet::new());
        }
        let is_new = |name: &String| !memory.asked.contains_key(name);
        let names = names.into_iter().filter(is_new).take(WORKERS_MAX);
        let chosen: Vec<(String, String)> = names
            .filter_map(|name| {
                let address = memory.addresses.get(&name)?.clone();
                Some((name, address))
            })
            .collect();
        let asked = chosen.iter().map(|(name, _)| (name.clone(), None));
        memory.asked.extend(asked);
        memory.requests += usize::from(!chosen.is_empty());
        let idle = chosen.iter().filter(|(name, _)| memory.idle.contains(name));
        let idle = idle.map(|(_, address)| address.clone()).collect();
        (chosen, idle)
    });
    if chosen.is_empty() {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stop = shared.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = ask_to_retire(&shared, chosen, &idle) => {}
        }
    });
}

async fn ask_to_retire(shared: &Shared, chosen: Vec<(String, String)>, idle: &BTreeSet<String>) {
    let addresses: Vec<String> = chosen.iter().map(|(_, address)| address.clone()).collect();
    let asked = ask::retire(&shared.address, &addresses, idle);
    let answer = tokio::time::timeout(RETIRE_LIMIT, asked).await;
    let answer = answer.unwrap_or(Err(AskError::Protocol("it does not answer in time")));
    let object = shared.object();
    let gone = match answer {
        Ok(gone) => {
            let (asked, gone_count) = (addresses.len(), gone.len());
            tracing::info!(object, asked, gone = gone_count, "retired Dask workers");
            gone
        }
        // Some may have gone all the same: the list of workers will tell.
        Err(error) => {
            tracing::warn!(object, %error, "it is not known whether Dask workers were retired");
            BTreeSet::new()
        }
    };
    let now = Instant::now();
    shared.with(|memory| {
        memory.requests = memory.requests.saturating_sub(1);
        memory.hurry = Some(now);
        for (name, address) in chosen {
            if gone.contains(&address) {
                memory.asked.remove(&name);
                memory.retired.insert(name, now);
            } else {
                memory.asked.insert(name, Some(now + REFUSED_FOR));
            }
        }
    });
    shared.now.notify_one();
}

#[cfg(test)]
mod tests {
    use super::super::ask::Described;
    use super::*;

    fn worker(name: &str, running: u32, held_bytes: u64) -> Described {
        Described {
            name: name.to_owned(),
            address: format!("tcp://{name}:1"),
            host: name.to_owned(),
            status: "running".to_owned(),
            running,
            held_bytes,
        }
    }

    fn answer(workers: Vec<Described>) -> Answer {
        Answer {
            wanted: Some(1),
            idle_since: Some(5.5),
            workers,
        }
    }

    #[test]
    fn idleness_counts_from_the_last_work() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let mut look = |running, seconds| {
            let answer = answer(vec![worker("a", running, 0)]);
            let now = start + Duration::from_secs(seconds);
            let report = reported(&mut memory, &answer, now, Timestamp::UNIX_EPOCH);
            report.workers[0].idle.as_secs()
        };
        assert_eq!(look(0, 0), 0);
        assert_eq!(look(0, 7), 7);
        assert_eq!(look(1, 9), 0);
        assert_eq!(look(0, 12), 3);
    }

    #[test]
    fn a_process_started_again_under_a_retired_name_is_empty_until_it_works() {
        let mut memory = Memory::default();
        let now = Instant::now();
        memory.retired.insert("a".to_owned(), now);
        memory.asked.insert("b".to_owned(), None);
        let mut standings = |running, held, after: Duration| {
            let answer = answer(vec![worker("a", running, held), worker("b", 0, 0)]);
            let report = reported(&mut memory, &answer, now + after, Timestamp::UNIX_EPOCH);
            [report.workers[0].standing, report.workers[1].standing]
        };
        assert_eq!(
            standings(0, 0, Duration::ZERO),
            [Standing::Empty, Standing::Retiring]
        );
        assert_eq!(standings(1, 0, Duration::ZERO)[0], Standing::Active);
        assert_eq!(standings(0, 0, RETIRED_FOR)[0], Standing::Active);
    }
}
