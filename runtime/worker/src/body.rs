//! What a worker has of one scheduler: the machine with everything that it drives.
//!
//! Owns the parts from the answer that a worker begins anew until the next such answer. A stream that
//! breaks changes nothing here: runs and fetches go on.
//!
//! Invariant: nothing of a body, not even the folder of a run that will not end, meets the next one.

use std::collections::VecDeque;
use std::sync::Arc;

use oxidask_comm::BulkPool;
use oxidask_core::{Attempt, WorkerId};
use oxidask_store::{IdMap, ResultKey};
use oxidask_worker_machine::{Effect, Event, Machine, RunId};

use crate::commands::Commands;
use crate::config::WorkerConfig;
use crate::consumed::Freer;
use crate::copies::AwaitedCopies;
use crate::fetch::Fetcher;
use crate::http::Shown;
use crate::pieces::{Peers, Reader};
use crate::run::{Ended, Runner};
use crate::values::ValuesWanted;

/// The machine and what it drives.
pub(crate) struct Body {
    pub(crate) machine: Machine,
    /// What the machine wants, not yet carried out.
    pub(crate) effects: Vec<Effect>,
    /// Runs that ended on the loop itself.
    pub(crate) ended_here: VecDeque<Ended>,
    /// Attempts of runs beside the loop, whose start may not have been told.
    pub(crate) beside: IdMap<RunId, (ResultKey, Attempt)>,
    pub(crate) runner: Runner,
    pub(crate) fetcher: Fetcher,
    pub(crate) freer: Freer,
    pub(crate) peers: Arc<Peers>,
    /// Copies that attempts wait for.
    pub(crate) awaited: AwaitedCopies,
    /// What is done beside tasks.
    pub(crate) commands: Commands,
    /// Results that go with their reports.
    pub(crate) values: ValuesWanted,
}

impl Body {
    /// A body without anything to do. `number` differs from that of every other body.
    pub(crate) fn new(own: WorkerId, config: &WorkerConfig, shown: &Shown, number: u32) -> Self {
        let Shown {
            metrics,
            store,
            watch,
            ..
        } = shown;
        let pool = BulkPool::new(config.credentials.clone());
        let peers = Arc::new(Peers::default());
        let reader = Arc::new(Reader::new(
            own,
            Arc::clone(store),
            Arc::clone(&peers),
            pool.clone(),
            Arc::clone(metrics),
        ));
        let runner = Runner::new(
            config.executors.clone(),
            Arc::clone(&reader),
            config.base_dir.clone(),
            config.scratch_dir.clone(),
            config.compute.clone(),
            number,
        )
        .watched_by(watch, Arc::clone(&config.logbook));
        Self {
            machine: Machine::new(own, config.slots),
            effects: Vec::new(),
            ended_here: VecDeque::new(),
            beside: IdMap::default(),
            runner,
            fetcher: Fetcher::new(pool.clone(), Arc::clone(&peers)),
            freer: Freer::new(reader, pool),
            peers,
            awaited: AwaitedCopies::new(Arc::clone(store)),
            commands: Commands::new(&config.executors),
            values: ValuesWanted::default(),
        }
    }

    /// Tells the machine.
    pub(crate) fn react(&mut self, event: Event) {
        self.machine.react(event, &mut self.effects);
    }

    /// Whether nothing runs, waits or is held.
    pub(crate) fn has_nothing(&self) -> bool {
        self.machine.is_idle() && self.machine.held().next().is_none()
    }
}
