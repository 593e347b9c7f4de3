//! A scheduler that goes on from its journal.
//!
//! Owns the way from a folder to a core, with what the loop knows besides: bodies, parts, workers
//! that may come back. Never changes what it reads. Runs once, before anything is served.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use oxidask_core::{Core, CoreConfig, GraphId, Restored, WorkerId};
use oxidask_journal::{
    Committer, CommitterSettings, Disk, Incarnation, JournalError, Record, Recovered, Settings,
    Writer,
};
use oxidask_proto::wire;

use super::compact::{Compactor, FIRST_SNAPSHOT_AFTER, Schedule};
use super::health::{Health, gauge, reporter};
use super::keep::{Keeper, Kept, QUEUE_BYTES_MAX};
use super::record::{self, Kind, SCHEMA, Said};
use super::{GRAPH_NUMBERS_GAP, JournalConfig, WORKER_NUMBERS_GAP};
use crate::bodies::NewBodies;
use crate::error::SchedulerError;
use crate::input::Inputs;
use crate::main_loop::GraphLink;
use crate::metrics::Metrics;
use crate::parts::NewParts;

/// Time between two lines about a recovery that takes long.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// The compacting thread is told of the tail that often until a snapshot is due.
const TAIL_STEPS: u64 = 64;

/// What a scheduler begins with.
pub(crate) struct Beginning {
    pub(crate) core: Core,
    pub(crate) graphs: HashMap<GraphId, GraphLink>,
    pub(crate) workers: HashMap<WorkerId, wire::WorkerHello>,
    pub(crate) keeper: Option<Keeper>,
    /// Commands that stand, by number, with their names.
    pub(crate) commands: BTreeMap<u64, (String, wire::WorkerCommand)>,
    pub(crate) incarnation: u64,
    pub(crate) epoch: u32,
    pub(crate) next_graph: GraphId,
    pub(crate) next_worker: u32,
}

impl Beginning {
    /// Without a journal: nothing is there.
    pub(crate) fn new(config: CoreConfig, incarnation: u64) -> Self {
        Self {
            incarnation,
            epoch: config.epoch,
            core: Core::new(config),
            graphs: HashMap::new(),
            workers: HashMap::new(),
            keeper: None,
            commands: BTreeMap::new(),
            next_graph: GraphId(1),
            next_worker: 1,
        }
    }

    /// Numbers may have been handed out whose records were lost.
    fn skip_numbers(&mut self) {
        self.next_graph.0 = self.next_graph.0.saturating_add(GRAPH_NUMBERS_GAP);
        self.next_worker = self.next_worker.saturating_add(WORKER_NUMBERS_GAP);
    }

    pub(super) fn take(
        &mut self,
        kept: &mut HashMap<GraphId, Kept>,
        said: Said,
    ) -> Result<(), String> {
        match said {
            Said::Numbers(graph, worker) => {
                self.next_graph = self.next_graph.max(graph);
                self.next_worker = self.next_worker.max(worker.0);
                Ok(())
            }
            Said::Command(name, command) => {
                self.commands
                    .retain(|_, (other, _)| name.is_empty() || *other != name);
                self.commands.insert(command.command, (name, *command));
                Ok(())
            }
            Said::CommandEnded(number) => {
                self.commands.remove(&number);
                Ok(())
            }
            Said::WorkerJoined(worker, hello) => {
                self.next_worker = self.next_worker.max(worker.0);
                let info = (&*hello).into();
                // One that has the name of another takes its place.
                self.workers.retain(|_, other| other.name != hello.name);
                self.workers.insert(worker, *hello);
                self.restore(Restored::WorkerJoined { worker, info })
            }
            Said::Chunk(placed) => {
                let graph = placed.graph;
                let Some(link) = self.graphs.get_mut(&graph) else {
                    return Ok(());
                };
                let bodies = NewBodies::new(&placed.bodies, &placed.chunk.body);
                if link.bodies.accept(placed.number, bodies) {
                    let tasks = placed.chunk.len();
                    let parts = NewParts::new(tasks, placed.part, placed.streamed_inputs);
                    link.parts.append(parts.with_arguments(&placed.arguments));
                }
                self.restore(Restored::Chunk {
                    graph,
                    number: placed.number,
                    chunk: Box::new(placed.chunk),
                })
            }
            Said::Core(item) => {
                self.note(kept, &item);
                self.restore(item)
            }
        }
    }

    fn note(&mut self, kept: &mut HashMap<GraphId, Kept>, item: &Restored) {
        match item {
            Restored::GraphOpened { graph, name, .. } => {
                self.next_graph = self.next_graph.max(*graph);
                self.graphs.entry(*graph).or_default();
                let (name, promised) = (Arc::clone(name), 0);
                kept.insert(*graph, Kept { name, promised });
            }
            Restored::Closed { graph } => {
                self.graphs.remove(graph);
                kept.remove(graph);
            }
            Restored::WorkerGone { worker } => {
                self.workers.remove(worker);
            }
            _ => {}
        }
    }

    fn restore(&mut self, item: Restored) -> Result<(), String> {
        self.core.restore(item).map_err(|error| error.to_string())
    }
}

/// What a recovery needs to know.
pub(crate) struct Start<'a> {
    pub(crate) config: &'a JournalConfig,
    pub(crate) core: CoreConfig,
    /// Of a journal that begins now.
    pub(crate) fresh_incarnation: u64,
    pub(crate) inputs: &'a Inputs,
    pub(crate) metrics: &'a Arc<Metrics>,
}

impl Start<'_> {
    /// Recovers from the journal and goes on with it.
    pub(crate) fn recover<D: Disk>(
        mut self,
        make_disk: impl Fn() -> D,
    ) -> Result<Beginning, SchedulerError> {
        let began = Instant::now();
        let mut recovered = self.open(make_disk())?;
        let (is_new, bytes) = (recovered.is_new(), recovered.bytes());
        let incarnation = u64::try_from(recovered.incarnation().0 & u128::from(u64::MAX));
        let epoch = u32::try_from(recovered.epoch()).unwrap_or(u32::MAX);
        self.core.epoch = epoch;
        let core = std::mem::take(&mut self.core);
        let mut beginning = Beginning::new(core, incarnation.unwrap_or(1));
        let mut kept = HashMap::new();
        let records = read_all(&mut recovered, &mut beginning, &mut kept)?;
        self.metrics.journal.replayed.set(gauge(records));
        if !is_new {
            beginning.skip_numbers();
        }
        let writer = write_numbers(recovered.start()?, &beginning)?;
        beginning.core.keep_notes();
        beginning.keeper = Some(self.keep((make_disk(), writer), is_new, kept)?);
        if !is_new {
            tracing::info!(
                graphs = beginning.graphs.len(),
                workers = beginning.workers.len(),
                bytes,
                seconds = began.elapsed().as_secs_f64(),
                epoch,
                "went on from the journal"
            );
        }
        Ok(beginning)
    }

    fn open<D: Disk>(&self, disk: D) -> Result<Recovered<D>, JournalError> {
        let mut settings = Settings::new(SCHEMA);
        if let Some(bytes) = self.config.segment_bytes {
            settings.segment_bytes = bytes;
        }
        let fresh = Incarnation(u128::from(self.fresh_incarnation));
        let recovered = Recovered::open(disk, settings, fresh, None)?;
        if let Some(cut) = recovered.cut() {
            tracing::warn!(
                path = %cut.path.display(),
                offset = cut.offset,
                bytes = cut.bytes,
                "the last write to the journal was not complete: it is left out, nobody was told \
                 that it was kept"
            );
        }
        Ok(recovered)
    }

    /// Starts the threads that write.
    fn keep<D: Disk>(
        &self,
        (disk, writer): (D, Writer<D>),
        is_new: bool,
        kept: HashMap<GraphId, Kept>,
    ) -> Result<Keeper, SchedulerError> {
        let pace = CommitterSettings {
            max_delay: self.config.delay,
            queue_bytes_max: QUEUE_BYTES_MAX,
            ..CommitterSettings::default()
        };
        let snapshot_bytes = writer.snapshot_bytes();
        let size = snapshot_bytes + writer.tail_bytes();
        self.metrics.journal.size_bytes.set(gauge(size));
        let health = Arc::new(Health::new(writer.durable(), Arc::clone(self.metrics)));
        let (orders, receiver) = channel();
        let tail_bytes_min = self.config.snapshot_tail_bytes_min;
        let sizes = ((tail_bytes_min / TAIL_STEPS).max(1), snapshot_bytes);
        let wake = self.inputs.waker();
        let report = reporter(Arc::clone(&health), wake, orders.clone(), sizes);
        let committer = Arc::new(Committer::start(writer, pace, report)?);
        let after = self.config.first_snapshot_after;
        let after = after.unwrap_or(FIRST_SNAPSHOT_AFTER);
        let compactor = Compactor {
            disk,
            committer: Arc::clone(&committer),
            orders: receiver,
            schedule: Schedule {
                tail_bytes_min,
                first_at: (!is_new).then(|| Instant::now() + after),
            },
            snapshot_bytes,
        };
        let thread = thread::Builder::new()
            .name("journal-compact".to_owned())
            .spawn(move || compactor.run())
            .map_err(|source| SchedulerError::StartLoop { source })?;
        Ok(Keeper::new(committer, (orders, thread), health, kept))
    }
}

fn read_all<D: Disk>(
    recovered: &mut Recovered<D>,
    beginning: &mut Beginning,
    kept: &mut HashMap<GraphId, Kept>,
) -> Result<u64, SchedulerError> {
    let total = recovered.bytes();
    let mut told = Instant::now();
    let (mut read, mut records): (u64, u64) = (0, 0);
    while let Some(record) = recovered.next_record()? {
        read += record.payload.len() as u64;
        records += 1;
        take_record(&record, beginning, kept)?;
        if told.elapsed() > PROGRESS_INTERVAL {
            told = Instant::now();
            tracing::info!(read, total, "recovering from the journal");
        }
    }
    Ok(records)
}

fn take_record(
    record: &Record<'_>,
    beginning: &mut Beginning,
    kept: &mut HashMap<GraphId, Kept>,
) -> Result<(), SchedulerError> {
    let failed = |reason: String| SchedulerError::JournalRecord {
        sequence: record.sequence,
        reason,
    };
    let kind = Kind::new(record.kind);
    let kind = kind.ok_or_else(|| failed(format!("its kind `{}` is not known", record.kind)))?;
    let mut result = Ok(());
    let understood = record::read(kind, record.payload, &mut |said| {
        if result.is_ok() {
            result = beginning.take(kept, said);
        }
    });
    understood.map_err(|_| failed("its contents cannot be understood".to_owned()))?;
    result.map_err(failed)
}

/// Makes durable which numbers may have been handed out: nobody knows which of them were, if their
/// records were lost.
fn write_numbers<D: Disk>(
    mut writer: Writer<D>,
    beginning: &Beginning,
) -> Result<Writer<D>, SchedulerError> {
    let graph = beginning.next_graph.0.saturating_sub(1).to_le_bytes();
    let worker = beginning.next_worker.saturating_sub(1).to_le_bytes();
    writer.append(Kind::Numbers as u16, &[&graph, &worker])?;
    writer.commit()?;
    Ok(writer)
}
