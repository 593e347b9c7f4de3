//! Runs of tasks: at once on the loop, or beside it.
//!
//! Invariants: a panic ends its run only; whatever happens a run has exactly one outcome; the
//! folder of a run is gone when it has ended, and its share of the memory is given back.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Executor, Memory, NoStreams, Program, StreamedInputs, TaskContext, TaskError};
use oxidask_logbook::Logbook;
use oxidask_store::{Absent, Account, IdMap, Payload, ResultKey};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::inputs::{self, InputSizes, Trouble};
use crate::memory::RunMemory;
use crate::memory::runs::{RunName, Runs};
use crate::memory::watch::MemoryWatch;
use crate::pieces::Reader;
use crate::programs::Programs;
use crate::slots::{RunSlot, SlotChanges};
use crate::streams::{RunStreams, StreamsEnd};
use oxidask_worker_machine::{Input, Run, RunId};

/// How long cancelled runs get to end before the worker goes without them.
const RUNS_END_MILLIS_MAX: u64 = 500;

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) run: RunId,
    pub(crate) task: ResultKey,
    /// The task's name.
    pub(crate) key: Arc<str>,
    pub(crate) outcome: Result<Payload, Trouble>,
    pub(crate) duration_micros: u64,
    /// Rows that it has counted.
    pub(crate) rows: u64,
    /// What became of its streamed inputs.
    pub(crate) streams: StreamsEnd,
}

/// Starts runs and knows those that go on. Their number is bounded by the worker's slots, and by how
/// many may give theirs to others.
pub(crate) struct Runner {
    pub(crate) programs: Programs,
    reader: Arc<Reader>,
    account: Arc<Account>,
    no_streams: Arc<dyn StreamedInputs>,
    /// Numbers of graphs start anew with each scheduler, so their folders differ by this.
    session: u32,
    /// The runs beside the loop, for whoever watches the memory.
    watched: Arc<Runs>,
    /// What all runs have in common; the rest is filled in for each.
    context: TaskContext,
    beside: JoinSet<Ended>,
    /// Where programs run that compute.
    compute: Handle,
    cancellations: IdMap<RunId, CancellationToken>,
    /// What runs say of their slots.
    pub(crate) slots: Arc<SlotChanges>,
}

impl Runner {
    pub(crate) fn new(
        executors: Vec<Arc<dyn Executor>>,
        reader: Arc<Reader>,
        base_dir: PathBuf,
        scratch_dir: PathBuf,
        compute: Handle,
        session: u32,
    ) -> Self {
        let context = TaskContext::alone(reader.store.limit_bytes(), base_dir, scratch_dir);
        Self {
            programs: Programs::new(executors),
            account: reader.store.account(),
            reader,
            no_streams: Arc::new(NoStreams),
            session,
            watched: Arc::default(),
            context,
            beside: JoinSet::new(),
            compute,
            cancellations: IdMap::default(),
            slots: Arc::default(),
        }
    }

    /// Lets the memory of runs and of their programs be watched, and their lines be kept.
    #[must_use]
    pub(crate) fn watched_by(mut self, watch: &MemoryWatch, logbook: Arc<Logbook>) -> Self {
        self.watched = Arc::clone(&watch.runs);
        self.context.programs = Arc::clone(&watch.programs);
        self.context.logbook = logbook;
        self
    }

    /// Runs a task here if it ends at once, else starts it beside the loop.
    pub(crate) fn begin(&mut self, run: Run) -> Option<Ended> {
        let start = Instant::now();
        let memory = Arc::new(RunMemory::new(Arc::clone(&self.account)));
        self.context.graph = run.task.graph();
        self.context.key = Arc::clone(&run.key);
        self.context.attempt = run.attempt.number;
        self.context.slots = run.slots;
        self.context.is_ahead = run.is_ahead;
        self.context.part = run.part;
        self.context.arguments = run.arguments.clone();
        self.context.progress = Arc::default();
        self.context.memory = Arc::clone(&memory) as Arc<dyn Memory>;
        let outcome = match self.prepare(&run) {
            Err(trouble) => Err(trouble),
            Ok((program, given)) => {
                let at_once = match &given {
                    Given::Here(inputs) if run.streamed.is_empty() && !run.is_ahead => {
                        self.run_now(&*program, inputs)
                    }
                    _ => None,
                };
                let Some(outcome) = at_once else {
                    self.start_beside(run, program, given, memory);
                    return None;
                };
                outcome.map_err(Trouble::Failed)
            }
        };
        memory.close();
        Some(Ended {
            run: run.run,
            task: run.task,
            key: run.key,
            outcome,
            duration_micros: micros_since(start),
            rows: self.context.progress.rows(),
            streams: StreamsEnd::default(),
        })
    }

    fn run_now(
        &self,
        program: &dyn Program,
        inputs: &[Payload],
    ) -> Option<Result<Payload, TaskError>> {
        let at_once = catch_unwind(AssertUnwindSafe(|| program.run_now(inputs, &self.context)));
        at_once.unwrap_or_else(|panic| Some(Err(panicked(panic.as_ref()))))
    }

    fn prepare(&mut self, run: &Run) -> Result<(Arc<dyn Program>, Given), Trouble> {
        let program = self.programs.get(run.task.graph(), &run.body);
        let program = program.map_err(Trouble::Failed)?;
        match self.reader.store.get_all(&run.inputs) {
            Ok(inputs) => Ok((program, Given::Here(inputs))),
            Err(Absent::OnDisk(_)) => Ok((program, Given::ToLoad)),
            // The scheduler finds another holder, or has it made again.
            Err(Absent::Missing(key)) => Err(Trouble::Lost(vec![(key, self.reader.own)])),
        }
    }

    fn start_beside(
        &mut self,
        run: Run,
        program: Arc<dyn Program>,
        given: Given,
        memory: Arc<RunMemory>,
    ) {
        // Said here, so that it counts before the next run is thought of.
        memory.open();
        let cancelled = CancellationToken::new();
        self.cancellations.insert(run.run, cancelled.clone());
        let folder = format!(
            "{}-{}-{}-{}-{}",
            self.session,
            run.task.graph(),
            run.task.task(),
            run.attempt.epoch,
            run.attempt.number
        );
        let name = RunName {
            task: run.task,
            key: Arc::clone(&run.key),
            attempt: run.attempt.number,
        };
        let span = name.span();
        let watched = self
            .watched
            .enter(name, Arc::clone(&memory), cancelled.clone());
        let streams = self.streams(run.streamed, &run.key, &cancelled);
        let context = TaskContext {
            cancelled,
            slot: Arc::new(RunSlot {
                run: run.run,
                changes: Arc::clone(&self.slots),
            }),
            scratch_dir: self.context.scratch_dir.join(folder),
            streams: match &streams {
                Some(streams) => Arc::clone(streams) as Arc<dyn StreamedInputs>,
                None => Arc::clone(&self.no_streams),
            },
            ..self.context.clone()
        };
        let reader = Arc::clone(&self.reader);
        let (number, task, keys) = (run.run, run.task, run.inputs);
        let computes = program.computes();
        let running = async move {
            let start = Instant::now();
            let key = Arc::clone(&context.key);
            let progress = Arc::clone(&context.progress);
            let ran = run_with_inputs(&reader, program, keys, given, context);
            let outcome = AssertUnwindSafe(ran).catch_unwind().await;
            let outcome =
                outcome.unwrap_or_else(|panic| Err(Trouble::Failed(panicked(panic.as_ref()))));
            let outcome = watched.judge(outcome);
            memory.close();
            let work_micros = progress.work_micros();
            Ended {
                run: number,
                task,
                key,
                outcome,
                duration_micros: work_micros.unwrap_or_else(|| micros_since(start)),
                rows: progress.rows(),
                streams: streams.map_or_else(StreamsEnd::default, |streams| streams.end()),
            }
        };
        let running = running.instrument(span);
        if computes {
            self.beside.spawn_on(running, &self.compute);
        } else {
            self.beside.spawn(running);
        }
    }

    fn streams(
        &self,
        streamed: Vec<Input>,
        key: &Arc<str>,
        cancelled: &CancellationToken,
    ) -> Option<Arc<RunStreams>> {
        if streamed.is_empty() {
            return None;
        }
        let (reader, key) = (Arc::clone(&self.reader), Arc::clone(key));
        Some(Arc::new(RunStreams::new(
            reader,
            key,
            streamed,
            cancelled.clone(),
        )))
    }

    /// Makes a run end soon.
    pub(crate) fn cancel(&self, run: RunId) {
        if let Some(cancellation) = self.cancellations.get(&run) {
            cancellation.cancel();
        }
    }

    /// The next run beside the loop that ends; never, if there is none.
    pub(crate) async fn next_ended(&mut self) -> Ended {
        loop {
            match self.beside.join_next().await {
                Some(Ok(ended)) => {
                    self.cancellations.remove(&ended.run);
                    return ended;
                }
                // Panics are caught inside, and nothing is aborted before the worker ends.
                Some(Err(error)) => tracing::error!(%error, "a run was lost"),
                None => return std::future::pending().await,
            }
        }
    }

    /// A run beside the loop that has ended already.
    pub(crate) fn try_next_ended(&mut self) -> Option<Ended> {
        let ended = self.beside.try_join_next()?.ok()?;
        self.cancellations.remove(&ended.run);
        Some(ended)
    }

    /// Cancels all runs and gives them a moment to end.
    pub(crate) async fn end(&mut self) {
        for cancellation in self.cancellations.values() {
            cancellation.cancel();
        }
        let all = async { while self.beside.join_next().await.is_some() {} };
        if timeout(Duration::from_millis(RUNS_END_MILLIS_MAX), all)
            .await
            .is_err()
        {
            tracing::warn!(
                runs = self.beside.len(),
                "some tasks did not end when cancelled"
            );
            self.beside.abort_all();
        }
    }
}

/// What a run is given.
enum Given {
    Here(Vec<Payload>),
    /// Some of it lies on the disk.
    ToLoad,
}

/// Keeps the inputs in memory while the program runs, and those on the disk come there first.
async fn run_with_inputs(
    reader: &Reader,
    program: Arc<dyn Program>,
    keys: Vec<ResultKey>,
    given: Given,
    context: TaskContext,
) -> Result<Payload, Trouble> {
    let store = &reader.store;
    let (inputs, pins) = match given {
        Given::Here(inputs) => (inputs, store.pin(&keys)),
        Given::ToLoad => {
            inputs::check_room(store, &keys, &context.key)?;
            let loading = store.load_all(keys);
            let loaded = tokio::select! {
                biased;
                () = context.cancelled.cancelled() => return Err(inputs::cancelled(&context.key)),
                loaded = loading => loaded,
            };
            let loaded =
                loaded.map_err(|error| inputs::not_loaded(&context.key, &error, reader.own))?;
            (loaded.payloads, loaded.pins)
        }
    };
    let sizes = InputSizes::of(&inputs);
    let (key, limit_bytes) = (Arc::clone(&context.key), store.limit_bytes());
    let folder = Folder(context.scratch_dir.clone());
    let outcome = program.run(inputs, context).await;
    drop(folder);
    let payload = outcome.map_err(Trouble::Failed)?;
    sizes.check_fits(&payload, &key, limit_bytes)?;
    drop(pins);
    Ok(payload)
}

/// A folder that goes with its run, also when the run panics or is dropped. The run makes it, if it
/// needs one at all.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.0.display(), %error, "a folder could not be removed");
            }
            _ => {}
        }
    }
}

/// A panic as the failure of its task. The user's `retries` apply.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let text = panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    TaskError::retryable(Diagnostic::new(
        Code::TaskPanicked,
        format!("the task panicked: {text}"),
    ))
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
