//! The processes of a worker, and which of them is free.
//!
//! Owns how many there are: one per slot, started when they are needed, and one more for each task that
//! has left its slot. Replays standing commands to those that start later. Lets all be replaced.
//!
//! Invariants: there are never more processes that take tasks than slots; no lock is held while anything
//! is waited for; a process that was replaced ends with the last run that it had been given.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use oxidask_exec::Programs;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::timeout;

use crate::child::Child;
use crate::config::PythonConfig;
use crate::error::PythonError;
use crate::fork_server::ForkServer;
use crate::segment::Segments;

/// Processes of tasks that have left their slots, at most; further ones wait.
const AWAY_MAX: usize = 256;

/// Runs at a process and in its line.
const LINE_MAX: usize = 64;

/// How old the count may be that a death is compared with.
const OUT_OF_MEMORY_AGE_MAX: Duration = Duration::from_millis(100);

/// A standing command holds tasks up: what takes longer has gone wrong.
const STANDING_SECONDS_MAX: u64 = 300;

/// How long a command lets a worker load libraries that it may not need.
const COMMAND_PATIENCE: Duration = Duration::from_secs(1);

/// Standing commands that are kept; far above what anybody has plugins or files.
const STANDING_MAX: usize = 10_000;

/// The processes of a worker.
#[derive(Debug)]
pub(crate) struct Pool {
    config: PythonConfig,
    pub(crate) segments: Arc<Segments>,
    server: AsyncMutex<Option<Arc<ForkServer>>>,
    /// Somebody waits for the server, not only to have it ready.
    hurry: Notify,
    state: Mutex<State>,
    changed: Arc<Notify>,
    next_run: AtomicU64,
    standing_count: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    children: Vec<Arc<Child>>,
    starting: usize,
    standing: Vec<Standing>,
    /// When it was looked at, and what it was.
    out_of_memory: Option<(Instant, Option<u64>)>,
    /// To close when the pool goes.
    server: Option<Arc<ForkServer>>,
}

#[derive(Debug)]
struct Standing {
    content: Bytes,
    /// What the first process said, or the first that said no.
    outcome: Option<(bool, Bytes)>,
}

/// A process that has room for one task. The room is free again when this goes.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) child: Arc<Child>,
    pool: Arc<Pool>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.child.load.fetch_sub(1, Ordering::SeqCst);
        self.child.close_if_replaced();
        self.pool.retire();
        self.pool.changed.notify_waiters();
    }
}

/// A process that is being started counts; it does not any more when this goes.
struct Starting(Arc<Pool>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.lock().starting -= 1;
        self.0.changed.notify_waiters();
    }
}

enum Choice {
    Child(Arc<Child>),
    Start(Starting),
    Wait,
}

impl Pool {
    pub(crate) fn new(config: PythonConfig) -> Arc<Self> {
        let segments = Segments::new(config.shared_memory, config.scratch_dir.clone());
        Arc::new(Self {
            config,
            segments,
            server: AsyncMutex::new(None),
            hurry: Notify::new(),
            state: Mutex::default(),
            changed: Arc::default(),
            next_run: AtomicU64::new(1),
            standing_count: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other run has.
    pub(crate) fn next_run(&self) -> u64 {
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }

    /// A process with room for one task, which does not wait for libraries that it may not need.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Lease, PythonError> {
        self.reserve(true).await
    }

    async fn reserve(self: &Arc<Self>, hurries: bool) -> Result<Lease, PythonError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let choice = self.choose();
            if hurries && !matches!(choice, Choice::Child(_)) {
                self.hurry.notify_one();
            }
            let child = match choice {
                Choice::Child(child) => child,
                Choice::Start(starting) => {
                    // Goes on if nobody waits for it any more: the process is there for others.
                    let started = tokio::spawn(start_child(starting));
                    started.await.unwrap_or(Err(PythonError::Cancelled))?;
                    continue;
                }
                Choice::Wait => {
                    changed.await;
                    continue;
                }
            };
            let lease = Lease {
                child,
                pool: Arc::clone(self),
            };
            if lease.child.caught_up_to.load(Ordering::Acquire) < self.standing_count() {
                self.catch_up(&lease.child).await;
            }
            return Ok(lease);
        }
    }

    /// A process in whose line is room for one more run. The shortest line, so that all have some.
    pub(crate) fn join_line(self: &Arc<Self>) -> Option<Lease> {
        let standing_count = self.standing_count();
        let mut state = self.lock();
        state.children.retain(|child| !child.has_ended());
        let load = |child: &&Arc<Child>| child.load.load(Ordering::Relaxed);
        let is_ready = |child: &&Arc<Child>| {
            let is_away = child.is_away.load(Ordering::Relaxed);
            !is_away && child.caught_up_to.load(Ordering::Acquire) >= standing_count
        };
        let ready = state.children.iter().filter(is_ready);
        let child = ready
            .min_by_key(load)
            .filter(|child| load(child) < LINE_MAX)?;
        child.load.fetch_add(1, Ordering::Relaxed);
        Some(Lease {
            child: Arc::clone(child),
            pool: Arc::clone(self),
        })
    }

    /// Processes that the system has ended for want of memory, as of a moment ago: looked at before
    /// each run, and costs as much as a tiny one.
    pub(crate) fn out_of_memory_count(&self, programs: &Programs) -> Option<u64> {
        let mut state = self.lock();
        match state.out_of_memory {
            Some((at, count)) if at.elapsed() < OUT_OF_MEMORY_AGE_MAX => count,
            _ => {
                let count = programs.out_of_memory_count();
                state.out_of_memory = Some((Instant::now(), count));
                count
            }
        }
    }

    fn standing_count(&self) -> usize {
        self.standing_count.load(Ordering::Acquire)
    }

    /// A free process; else a new one if there may be one; else the least busy one.
    fn choose(self: &Arc<Self>) -> Choice {
        let mut state = self.lock();
        state.children.retain(|child| !child.has_ended());
        let slots = self.config.slots.max(1) as usize;
        let here = |child: &&Arc<Child>| !child.is_away.load(Ordering::Relaxed);
        let load = |child: &Arc<Child>| child.load.load(Ordering::Relaxed);
        let at_work = state.children.iter().filter(here).count() + state.starting;
        // The last that was free is the likeliest to have everything at hand.
        let best = state
            .children
            .iter()
            .rev()
            .filter(here)
            .min_by_key(|child| load(child));
        let best = best.map(|child| (Arc::clone(child), load(child)));
        let depth = self.config.tasks_per_child.max(1) as usize;
        let may_start = at_work < slots && state.children.len() < slots + AWAY_MAX;
        match best {
            Some((child, 0)) => take(child),
            _ if may_start => {
                state.starting += 1;
                drop(state);
                Choice::Start(Starting(Arc::clone(self)))
            }
            Some((child, load)) if load < depth => take(child),
            _ => Choice::Wait,
        }
    }

    /// The fork server, started if there is none.
    pub(crate) async fn server(&self) -> Result<Arc<ForkServer>, PythonError> {
        let mut server = self.server.lock().await;
        if let Some(running) = server.as_ref().filter(|server| !server.has_ended()) {
            return Ok(Arc::clone(running));
        }
        let started = ForkServer::start(&self.config, &self.hurry).await?;
        *server = Some(Arc::clone(&started));
        self.lock().server = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Ends free processes that are too many: those of tasks that have come back to their slots.
    fn retire(&self) {
        let slots = self.config.slots.max(1) as usize;
        let mut state = self.lock();
        while state.children.len() > slots {
            let is_here = |child: &&Arc<Child>| !child.is_away.load(Ordering::Relaxed);
            let at_work = state.children.iter().filter(is_here).count();
            let is_free = |child: &Arc<Child>| child.load.load(Ordering::Relaxed) == 0;
            let free = state.children.iter().position(is_free);
            let Some(free) = free.filter(|_| at_work > slots) else {
                return;
            };
            state.children.swap_remove(free).close();
        }
    }

    /// A command holds for all processes, also for those that start later. Its number.
    pub(crate) fn add_standing(&self, content: Bytes) -> Option<usize> {
        let mut state = self.lock();
        if state.standing.len() >= STANDING_MAX {
            return None;
        }
        state.standing.push(Standing {
            content,
            outcome: None,
        });
        self.standing_count
            .store(state.standing.len(), Ordering::Release);
        Some(state.standing.len() - 1)
    }

    /// Lets a process carry out the standing commands that it has not. One that does not answer is
    /// ended.
    async fn catch_up(&self, child: &Arc<Child>) {
        let mut caught_up = child.caught_up.lock().await;
        loop {
            let content = {
                let state = self.lock();
                state
                    .standing
                    .get(*caught_up)
                    .map(|standing| standing.content.clone())
            };
            let Some(content) = content else { return };
            let limit = Duration::from_secs(STANDING_SECONDS_MAX);
            match timeout(limit, child.command(&content)).await {
                Ok(Ok(outcome)) => self.note(*caught_up, outcome),
                Ok(Err(_)) => return, // It has ended; whoever gives it a task hears so.
                Err(_) => {
                    tracing::warn!(
                        pid = child.pid,
                        "a command took too long: its process is ended"
                    );
                    child.kill();
                    return;
                }
            }
            *caught_up += 1;
            child.caught_up_to.store(*caught_up, Ordering::Release);
        }
    }

    fn note(&self, number: usize, outcome: (bool, Bytes)) {
        if let Some(standing) = self.lock().standing.get_mut(number) {
            let is_first = standing.outcome.is_none();
            let is_worse = !outcome.0
                && standing
                    .outcome
                    .as_ref()
                    .is_some_and(|(is_well, _)| *is_well);
            if is_first || is_worse {
                standing.outcome = Some(outcome);
            }
        }
    }

    /// The processes that are there, or a new one.
    async fn live(self: &Arc<Self>) -> Result<Vec<Arc<Child>>, PythonError> {
        let live = {
            let mut state = self.lock();
            state.children.retain(|child| !child.has_ended());
            state.children.clone()
        };
        if live.is_empty() {
            // Clients look at versions when they connect, which is no reason to stop loading libraries.
            let lease = match timeout(COMMAND_PATIENCE, self.reserve(false)).await {
                Ok(lease) => lease?,
                Err(_) => self.acquire().await?,
            };
            return Ok(vec![Arc::clone(&lease.child)]);
        }
        Ok(live)
    }

    /// Carries out a standing command everywhere. What the first process said, or one that said no.
    pub(crate) async fn carry_out_standing(
        self: &Arc<Self>,
        number: usize,
    ) -> Result<Bytes, PythonError> {
        let live = self.live().await?;
        join_all(live.iter().map(|child| self.catch_up(child))).await;
        let outcome = {
            let mut state = self.lock();
            state
                .standing
                .get_mut(number)
                .and_then(|standing| standing.outcome.clone())
        };
        outcome
            .map(|(_, answer)| answer)
            .ok_or(PythonError::CommandTimeout(STANDING_SECONDS_MAX))
    }

    /// Carries out a command in each process that is there. What the first process said, or one that
    /// said no.
    pub(crate) async fn carry_out(self: &Arc<Self>, content: &Bytes) -> Result<Bytes, PythonError> {
        let live = self.live().await?;
        let outcomes = join_all(live.iter().map(|child| child.command(content))).await;
        let mut first = None;
        for outcome in outcomes {
            match outcome {
                Ok((false, answer)) => return Ok(answer),
                Ok((true, answer)) if !matches!(first, Some(Ok(_))) => first = Some(Ok(answer)),
                Err(error) if first.is_none() => first = Some(Err(error)),
                _ => {}
            }
        }
        first.unwrap_or(Err(PythonError::NeverBegun(0)))
    }

    /// What is given from now on runs in new processes. Those that are there end when they have nothing
    /// to do any more; nobody waits for that.
    pub(crate) fn replace_all(&self) {
        // Taken out first: nobody gives them anything any more.
        let replaced = std::mem::take(&mut self.lock().children);
        for child in replaced {
            child.replace();
        }
    }

    /// Ends all processes.
    pub(crate) fn close(&self) {
        if let Some(server) = self.lock().server.take() {
            server.close();
        }
    }
}

/// Starts a process, which is free then.
async fn start_child(starting: Starting) -> Result<(), PythonError> {
    let pool = &starting.0;
    let server = pool.server().await?;
    let segments = Arc::clone(&pool.segments);
    let child = Child::start(server, segments, Arc::clone(&pool.changed)).await?;
    pool.catch_up(&child).await;
    pool.lock().children.push(child);
    Ok(())
}

fn take(child: Arc<Child>) -> Choice {
    child.load.fetch_add(1, Ordering::Relaxed);
    Choice::Child(child)
}
