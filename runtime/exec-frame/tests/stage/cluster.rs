//! A cluster in this process: the tasks of a planned graph, one after the other.
//!
//! Tasks run in a shuffled order that respects their inputs, each on a program of its own that was
//! just prepared from its body. What a task has consumed is gone afterwards; a result may be lost
//! in the middle, and is then computed again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::reader::StreamReader;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{
    Body, Executor, Piece, PieceRequest, StreamedInputs, TaskContext, TaskError, WHOLE,
};
use oxidask_exec_frame::{FrameExecutor, script};
use oxidask_proto::wire;
use oxidask_store::{Payload, PayloadKind};
use prost::Message;
use tokio_util::sync::CancellationToken;

/// One task of a graph.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) key: String,
    pub(crate) group: String,
    pub(crate) body: usize,
    pub(crate) part: u32,
    pub(crate) inputs: Vec<u32>,
    pub(crate) priority: i32,
    /// How many of its inputs, the first ones, it reads by itself.
    pub(crate) streamed: usize,
}

/// A planned graph, its chunks put together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub(crate) tasks: Vec<Task>,
    pub(crate) bodies: Vec<Bytes>,
    pub(crate) outputs: Vec<u32>,
    pub(crate) chunks: usize,
}

impl Graph {
    pub(crate) fn decode(payload: &Payload) -> Self {
        assert_eq!(payload.kind, PayloadKind::Graph);
        let planned = wire::PlannedGraph::decode(Bytes::from(payload.parts.concat())).unwrap();
        let mut graph = Self {
            outputs: planned.outputs,
            chunks: planned.chunks.len(),
            ..Self::default()
        };
        let mut groups = Vec::new();
        let (mut wanted, mut last) = (Vec::new(), 0);
        for (number, chunk) in planned.chunks.into_iter().enumerate() {
            assert_eq!(chunk.number as usize, number);
            groups.extend(chunk.new_groups);
            graph.bodies.extend(chunk.new_bodies);
            wanted.extend(chunk.wanted);
            last += usize::from(chunk.is_last);
            let (mut keys, mut inputs) = (chunk.keys.as_str(), chunk.inputs.as_slice());
            for task in 0..chunk.body.len() {
                let (key, rest) = keys.split_at(chunk.key_lengths[task] as usize);
                let (own, others) = inputs.split_at(chunk.input_counts[task] as usize);
                (keys, inputs) = (rest, others);
                let streamed = chunk.streamed_inputs[task] as usize;
                assert!(streamed == own.len() || streamed == 0);
                assert!(
                    own.iter()
                        .all(|input| (*input as usize) < graph.tasks.len())
                );
                graph.tasks.push(Task {
                    key: key.to_owned(),
                    group: groups[chunk.group[task] as usize].clone(),
                    body: chunk.body[task] as usize,
                    part: chunk.part[task],
                    inputs: own.to_vec(),
                    priority: chunk.priority[task],
                    streamed,
                });
            }
        }
        assert_eq!(last, 1);
        assert_eq!(wanted, graph.outputs);
        graph
    }

    /// The names of the stages, in order.
    pub(crate) fn stages(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for task in &self.tasks {
            if names.last() != Some(&task.group) {
                names.push(task.group.clone());
            }
        }
        names
    }
}

/// Results by task.
type Results = Arc<Mutex<HashMap<u32, Slices>>>;

/// A result as its holder keeps it; slices that were consumed are gone.
#[derive(Debug, Clone)]
struct Slices {
    whole: Payload,
    slices: Vec<Option<Bytes>>,
}

impl Slices {
    fn new(payload: Payload) -> Self {
        let lengths = payload.slice_lengths().unwrap_or_default();
        let bytes = Bytes::from(payload.parts.concat());
        let mut start = (lengths.len() + 1) * 8;
        let slices = lengths.iter().map(|length| {
            let slice = bytes.slice(start..start + *length as usize);
            start += *length as usize;
            Some(slice)
        });
        Self {
            slices: slices.collect(),
            whole: payload,
        }
    }
}

/// Serves results, as a worker does.
#[derive(Debug)]
struct Streams {
    inputs: Vec<u32>,
    results: Results,
    /// Bytes of one answer.
    answer_bytes: u64,
    consumed: Mutex<Vec<(u32, u32)>>,
    lost: Mutex<Option<u32>>,
}

impl Streams {
    fn piece(&self, request: &PieceRequest, left: &mut u64) -> Result<Piece, TaskError> {
        let task = self.inputs[request.input as usize];
        let results = self.results.lock().unwrap();
        let slice = results.get(&task).and_then(|result| {
            assert_ne!(request.slice, WHOLE);
            result.slices[request.slice as usize].clone()
        });
        let Some(slice) = slice else {
            *self.lost.lock().unwrap() = Some(task);
            let diagnostic = Diagnostic::new(Code::ResultUnavailable, "nobody has it");
            return Err(TaskError::retryable(diagnostic));
        };
        let start = usize::try_from(request.offset).unwrap().min(slice.len());
        let asked = request.bytes_max.min(*left);
        let end = (start + usize::try_from(asked).unwrap()).min(slice.len());
        *left -= (end - start) as u64;
        let parts = (end > start).then(|| slice.slice(start..end));
        Ok(Piece {
            slice_bytes: slice.len() as u64,
            parts: parts.into_iter().collect(),
        })
    }
}

impl StreamedInputs for Streams {
    fn count(&self) -> u32 {
        self.inputs.len() as u32
    }

    fn input_bytes(&self, input: u32) -> u64 {
        let results = self.results.lock().unwrap();
        let result = results.get(&self.inputs[input as usize]);
        result.map_or(0, |result| result.whole.len())
    }

    fn read(&self, requests: Vec<PieceRequest>) -> BoxFuture<'_, Result<Vec<Piece>, TaskError>> {
        async move {
            tokio::task::yield_now().await;
            let mut left = self.answer_bytes;
            let pieces = requests
                .iter()
                .map(|request| self.piece(request, &mut left));
            pieces.collect()
        }
        .boxed()
    }

    fn consumed(&self, input: u32, slice: u32) {
        let task = self.inputs[input as usize];
        self.consumed.lock().unwrap().push((task, slice));
    }
}

/// What happened while a graph ran.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) runs: usize,
    pub(crate) recomputed: usize,
    pub(crate) freed: usize,
    pub(crate) statistics: Vec<(String, serde_json::Value)>,
}

pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) base_dir: PathBuf,
    pub(crate) executor: FrameExecutor,
    pub(crate) size: script::ClusterSize,
    pub(crate) slots: u32,
    pub(crate) seed: u64,
    /// Bytes of one answer to a read.
    pub(crate) answer_bytes: u64,
    /// Loses each result once, with this chance in a thousand, before somebody reads it.
    pub(crate) loses: u64,
    /// Runs each task twice and compares the results.
    pub(crate) twice: bool,
    pub(crate) report: Mutex<Report>,
    pub(crate) cancelled: CancellationToken,
    pub(crate) was_cut: AtomicBool,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::over(None)
    }

    pub(crate) fn over(folder: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base_dir = folder.map_or_else(|| dir.path().join("base"), Path::to_owned);
        std::fs::create_dir_all(&base_dir).unwrap();
        std::fs::create_dir_all(dir.path().join("scratch")).unwrap();
        Self {
            dir,
            base_dir,
            executor: FrameExecutor::new(),
            size: script::ClusterSize {
                workers: 2,
                slots: 2,
                memory_bytes: 1 << 30,
            },
            slots: 1,
            seed: 1,
            answer_bytes: 1 << 20,
            loses: 0,
            twice: false,
            report: Mutex::default(),
            cancelled: CancellationToken::new(),
            was_cut: AtomicBool::new(false),
        }
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.base_dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn context(&self, key: &str) -> TaskContext {
        TaskContext {
            key: key.into(),
            slots: self.slots,
            cancelled: self.cancelled.clone(),
            ..TaskContext::alone(
                1 << 30,
                self.base_dir.clone(),
                self.dir.path().join("scratch"),
            )
        }
    }

    /// The result of the last statement's task: a table or a graph.
    pub(crate) async fn plan(&self, text: &str) -> Result<Payload, TaskError> {
        let statements = script::parse(text, "q.sql").map_err(TaskError::permanent)?;
        let tasks = script::to_graph(&statements, "q.sql", self.size);
        let mut last = Payload::null();
        for task in tasks.map_err(TaskError::permanent)? {
            let program = self.executor.prepare(&task.body)?;
            last = program.run(Vec::new(), self.context(&task.key)).await?;
        }
        Ok(last)
    }

    /// The tables of the last statement, whichever way it runs.
    pub(crate) async fn tables(&self, text: &str) -> Result<Vec<Payload>, TaskError> {
        let planned = self.plan(text).await?;
        let is_graph = planned.kind == PayloadKind::Graph;
        self.was_cut.store(is_graph, Ordering::Relaxed);
        if !is_graph {
            return Ok(vec![planned]);
        }
        self.run(&Graph::decode(&planned)).await
    }

    /// The rows of the last statement.
    pub(crate) async fn batches(
        &self,
        text: &str,
    ) -> Result<(SchemaRef, Vec<RecordBatch>), TaskError> {
        let tables = self.tables(text).await?;
        let mut schema = None;
        let mut rows = Vec::new();
        for table in tables {
            assert_eq!(table.kind, PayloadKind::Table);
            let bytes = table.parts.concat();
            let reader = StreamReader::try_new(std::io::Cursor::new(bytes), None).unwrap();
            schema = Some(reader.schema());
            rows.extend(reader.map(Result::unwrap));
        }
        Ok((schema.unwrap(), rows))
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Runs the tasks of a graph. Gives the results of its outputs.
    pub(crate) async fn run(&self, graph: &Graph) -> Result<Vec<Payload>, TaskError> {
        let results: Results = Results::default();
        let mut report = Report::default();
        let mut random = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut lost_once = HashSet::new();
        let mut waiting: Vec<u32> = (0..graph.tasks.len() as u32).collect();
        while !waiting.is_empty() {
            let ready = ready(graph, &results, &waiting);
            let at = ready[(Self::random(&mut random) % ready.len() as u64) as usize];
            let number = waiting[at];
            let task = &graph.tasks[number as usize];
            if let Some(input) = task.inputs.first()
                && Self::random(&mut random) % 1000 < self.loses
                && lost_once.insert(*input)
            {
                let mut results = results.lock().unwrap();
                results.get_mut(input).unwrap().slices.fill(None);
            }
            report.runs += 1;
            match self.attempt(graph, task, &results).await? {
                Attempt::Done { payload, consumed } => {
                    waiting.swap_remove(at);
                    report.freed += consumed.len();
                    let slices = Slices::new(payload);
                    if let Some(Some(statistics)) = slices.slices.last() {
                        let statistics = serde_json::from_slice(statistics).unwrap();
                        report.statistics.push((task.key.clone(), statistics));
                    }
                    let mut results = results.lock().unwrap();
                    for (input, slice) in consumed {
                        let held = &mut results.get_mut(&input).unwrap().slices;
                        assert!(held[slice as usize].take().is_some(), "{}", task.key);
                    }
                    results.insert(number, slices);
                }
                Attempt::Lost(input) => {
                    report.recomputed += 1;
                    // Whatever it needs and was consumed is computed again as well.
                    recompute(graph, &results, input, &mut waiting);
                }
            }
        }
        *self.report.lock().unwrap() = report;
        let results = results.lock().unwrap();
        let outputs = graph.outputs.iter();
        Ok(outputs
            .map(|output| results[output].whole.clone())
            .collect())
    }

    /// Runs one task on a program of its own.
    async fn attempt(
        &self,
        graph: &Graph,
        task: &Task,
        results: &Results,
    ) -> Result<Attempt, TaskError> {
        let streams = Arc::new(Streams {
            inputs: task.inputs[..task.streamed].to_vec(),
            results: Arc::clone(results),
            answer_bytes: self.answer_bytes,
            consumed: Mutex::default(),
            lost: Mutex::default(),
        });
        let mut context = self.context(&task.key);
        context.part = task.part;
        context.streams = Arc::clone(&streams) as Arc<dyn StreamedInputs>;
        let memory = Arc::clone(&context.memory);
        let inputs: Vec<Payload> = {
            let results = results.lock().unwrap();
            let inputs = task.inputs[task.streamed..].iter();
            inputs.map(|input| results[input].whole.clone()).collect()
        };
        let body = Body::decode(&graph.bodies[task.body]).unwrap();
        let program = self.executor.prepare(&body)?;
        let first = program.run(inputs.clone(), context.clone()).await;
        assert_eq!(memory.taken_bytes(), 0, "{}", task.key);
        let payload = match first {
            Ok(payload) => payload,
            Err(error) => {
                let Some(lost) = streams.lost.lock().unwrap().take() else {
                    return Err(error);
                };
                assert_eq!(error.diagnostic.message, "nobody has it");
                return Ok(Attempt::Lost(lost));
            }
        };
        if self.twice {
            let second = self.executor.prepare(&body)?.run(inputs, context).await?;
            assert_same(&payload, &second, &task.key);
        }
        let consumed: HashSet<_> = streams.consumed.lock().unwrap().drain(..).collect();
        Ok(Attempt::Done { payload, consumed })
    }
}

/// How an attempt ended.
enum Attempt {
    Done {
        payload: Payload,
        consumed: HashSet<(u32, u32)>,
    },
    Lost(u32),
}

/// Places in `waiting` of tasks that could run.
fn ready(graph: &Graph, results: &Results, waiting: &[u32]) -> Vec<usize> {
    let done = results.lock().unwrap();
    let is_ready = |task: &u32| {
        let inputs = &graph.tasks[*task as usize].inputs;
        inputs.iter().all(|input| done.contains_key(input))
    };
    let places = waiting.iter().enumerate();
    let ready = places.filter(|(_, task)| is_ready(task));
    ready.map(|(at, _)| at).collect()
}

/// The rows of both are the same, byte by byte; the times are not.
fn assert_same(first: &Payload, second: &Payload, key: &str) {
    let (first, second) = (Slices::new(first.clone()), Slices::new(second.clone()));
    match first.slices.split_last() {
        None => assert_eq!(
            first.whole.parts.concat(),
            second.whole.parts.concat(),
            "{key}"
        ),
        Some((_, rows)) => assert!(second.slices.starts_with(rows), "{key}"),
    }
}

fn recompute(graph: &Graph, results: &Results, lost: u32, waiting: &mut Vec<u32>) {
    results.lock().unwrap().remove(&lost);
    if !waiting.contains(&lost) {
        waiting.push(lost);
    }
    for input in &graph.tasks[lost as usize].inputs {
        let is_whole = results
            .lock()
            .unwrap()
            .get(input)
            .is_some_and(|result| result.slices.iter().all(Option::is_some));
        if !is_whole {
            recompute(graph, results, *input, waiting);
        }
    }
}
