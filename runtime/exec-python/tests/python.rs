//! Real processes of Python run real tasks.
//!
//! Python is `OXIDASK_PYTHON`, or `python3`; it needs dask, distributed, pandas and pyarrow.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command as StdCommand;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_diagnostic::Code;
use oxidask_exec::{Body, Command, Executor, MemoryEnd, Slot, TaskContext, TaskError};
use oxidask_exec_python::{PythonConfig, PythonExecutor, SharedMemory};
use oxidask_logbook::{Bounds, Cursor, Level};
use oxidask_store::{Payload, PayloadKind};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn python_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python")
}

/// Tables and arguments by the name of the function.
static CALLS: LazyLock<HashMap<String, (Bytes, Bytes)>> = LazyLock::new(|| {
    let output = StdCommand::new(config(1).program)
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tasks.py"))
        .env("PYTHONPATH", python_folder())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let call = |line: &str| {
        let mut parts = line.split(' ');
        let name = parts.next().unwrap().to_owned();
        (
            name,
            (hex(parts.next().unwrap()), hex(parts.next().unwrap())),
        )
    };
    text.lines().map(call).collect()
});

fn hex(text: &str) -> Bytes {
    let pairs = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

fn config(slots: u32) -> PythonConfig {
    let folder = std::env::temp_dir().join(format!("oxidask-exec-python-{}", std::process::id()));
    PythonConfig {
        slots,
        environment: vec![("PYTHONPATH".into(), python_folder().into())],
        scratch_dir: folder.join("scratch"),
        worker_dir: folder.join("worker"),
        worker_name: "w1".to_owned(),
        ..PythonConfig::default()
    }
}

/// A worker's part.
struct Worker {
    executor: PythonExecutor,
    context: TaskContext,
}

impl Worker {
    fn new(config: PythonConfig) -> Self {
        let scratch_dir = config.scratch_dir.clone();
        Self {
            executor: PythonExecutor::new(config),
            context: TaskContext::alone(1 << 30, ".".into(), scratch_dir),
        }
    }

    fn context(&self, name: &str) -> TaskContext {
        TaskContext {
            key: name.into(),
            arguments: CALLS[name].1.clone(),
            cancelled: CancellationToken::new(),
            ..self.context.clone()
        }
    }

    async fn run_in(
        &self,
        name: &str,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> Result<Payload, TaskError> {
        let body = Body {
            content: CALLS[name].0.clone(),
            ..Body::new("python")
        };
        let program = self.executor.prepare(&body)?;
        tokio::time::timeout(Duration::from_mins(1), program.run(inputs, context))
            .await
            .unwrap()
    }

    async fn run(&self, name: &str, inputs: Vec<Payload>) -> Result<Payload, TaskError> {
        self.run_in(name, inputs, self.context(name)).await
    }

    async fn text(&self, name: &str, inputs: Vec<Payload>) -> String {
        text(&self.run(name, inputs).await.unwrap())
    }

    async fn failure(&self, name: &str) -> TaskError {
        self.run(name, vec![]).await.unwrap_err()
    }
}

fn text(payload: &Payload) -> String {
    assert_eq!(payload.kind, PayloadKind::Bytes);
    String::from_utf8(payload.parts.concat()).unwrap()
}

fn json(text: &str) -> Payload {
    Payload::new(PayloadKind::Value, Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_come_and_go_in_every_form() {
    for shared_memory in [SharedMemory::Memory, SharedMemory::Files] {
        let worker = Worker::new(PythonConfig {
            shared_memory,
            ..config(1)
        });
        let one = worker.run("one", vec![]).await.unwrap();
        assert_eq!(one.kind, PayloadKind::Python);
        assert_eq!(worker.text("text", vec![one.clone()]).await, "1");
        assert_eq!(
            worker
                .text("text", vec![json(r#"{"ä":[1,2.5,null]}"#)])
                .await,
            "{'ä': [1, 2.5, None]}"
        );
        let frame = worker.run("table", vec![]).await.unwrap();
        assert_eq!((frame.kind, frame.parts.len()), (PayloadKind::Table, 1));
        assert_eq!(
            worker.text("table_sum", vec![frame.clone()]).await,
            "1249975000"
        );
        let array = worker.run("array", vec![]).await.unwrap();
        assert!(array.len() > 8 << 20);
        assert_eq!(
            worker.text("array_sum", vec![array.clone()]).await,
            "1572864.0 False"
        );
        // As it comes from another worker: elsewhere in memory, in parts.
        let bytes = array.parts.concat();
        let parts = bytes
            .chunks(3_000_001)
            .map(Bytes::copy_from_slice)
            .collect();
        let copied = Payload {
            kind: PayloadKind::Python,
            parts,
        };
        assert_eq!(
            worker.text("array_sum", vec![copied.clone()]).await,
            "1572864.0 False"
        );
        let inputs = vec![copied, frame, one];
        let types = "numpy.ndarray, pandas.DataFrame, builtins.int";
        assert_eq!(worker.text("types", inputs).await, types);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_value_is_taken_without_python() {
    let worker = Worker::new(config(1));
    let groups = worker.run("groups", vec![]).await.unwrap();
    let nowhere = Worker::new(PythonConfig {
        program: "/no/such/python".into(),
        ..config(1)
    });
    let group = nowhere.run("group", vec![groups.clone()]).await.unwrap();
    assert!(group.len() > 40_000 && group.len() < 45_000);
    assert_eq!(worker.text("table_sum", vec![group]).await, "12497500");
    // What is not there, and values that have no parts, Python itself deals with.
    let error = nowhere
        .run("no_group", vec![groups.clone()])
        .await
        .unwrap_err();
    assert_eq!(error.diagnostic.code, Code::PythonStart);
    let error = worker.run("no_group", vec![groups]).await.unwrap_err();
    assert!(error.diagnostic.message.contains("KeyError: 8"));
    let array = worker.run("array", vec![]).await.unwrap();
    let number = worker.run("group", vec![array]).await.unwrap();
    assert_eq!(worker.text("text", vec![number]).await, "np.float64(1.5)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_are_read_only_unless_copies_are_asked_for() {
    let worker = Worker::new(config(1));
    let array = worker.run("array", vec![]).await.unwrap();
    let refused = worker
        .run("array_write", vec![array.clone()])
        .await
        .unwrap_err();
    assert!(
        refused.diagnostic.message.contains("read-only"),
        "{:?}",
        refused.diagnostic
    );
    let worker = Worker::new(PythonConfig {
        copy_inputs: true,
        ..config(1)
    });
    let array = worker.run("array", vec![]).await.unwrap();
    assert_eq!(worker.text("array_write", vec![array.clone()]).await, "7.0");
    assert_eq!(
        worker.text("array_sum", vec![array]).await,
        "1572864.0 True"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tasks_raise_reaches_the_client() {
    let worker = Worker::new(config(1));
    let failure = worker.failure("fail").await;
    assert!(failure.is_retryable);
    assert_eq!(failure.diagnostic.code, Code::TaskFailed);
    assert_eq!(failure.diagnostic.message, "ValueError: no such luck: ä");
    assert!(!failure.diagnostic.attachment.unwrap().is_empty());
    for (name, start) in [
        ("fail_oddly", "__main__.Odd: 1"),
        ("recurse", "RecursionError: maximum recursion"),
        ("interrupt", "KeyboardInterrupt: now"),
        ("leave", "SystemExit: 3"),
    ] {
        let diagnostic = worker.failure(name).await.diagnostic;
        assert!(diagnostic.message.starts_with(start), "{diagnostic:?}");
        let attachment = diagnostic.attachment.unwrap();
        assert!(attachment.len() <= 256 << 10);
    }
    let failure = worker.failure("generator").await;
    assert_eq!(failure.diagnostic.code, Code::PythonValue);
    let first = worker.text("pid", vec![]).await;
    assert_eq!(first, worker.text("pid", vec![]).await, "nobody has died");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_blamed_on_its_task_alone() {
    let worker = Arc::new(Worker::new(config(1)));
    for (name, how, last) in [
        ("exit_now", "exit status 7", "last words"),
        ("crash", "signal 11 (SIGSEGV)", "Segmentation fault"),
    ] {
        let before = worker.text("pid", vec![]).await;
        let others: Vec<_> = (0..6)
            .map(|_| {
                let worker = Arc::clone(&worker);
                tokio::spawn(async move { worker.text("sleeps", vec![]).await })
            })
            .collect();
        let failure = worker.failure(name).await;
        assert_eq!(failure.diagnostic.code, Code::PythonDied);
        assert!(
            failure.diagnostic.message.ends_with(how),
            "{:?}",
            failure.diagnostic
        );
        assert!(
            failure.diagnostic.causes[0].contains(last),
            "{:?}",
            failure.diagnostic
        );
        assert!(failure.is_retryable);
        for other in others {
            assert_eq!(other.await.unwrap(), "slept");
        }
        assert_ne!(before, worker.text("pid", vec![]).await);
    }
    let failure = worker.failure("close_all").await;
    assert_eq!(
        failure.diagnostic.code,
        Code::PythonDied,
        "{:?}",
        failure.diagnostic
    );
    assert_eq!(worker.text("forks", vec![]).await, "[1]");
    assert_eq!(worker.text("awaits", vec![]).await, "awaited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_to_the_log_with_their_task() {
    let worker = Worker::new(config(1));
    assert_eq!(worker.text("printing", vec![]).await, "printed");
    let bounds = Bounds {
        items_max: 100,
        bytes_max: 100_000,
    };
    let (mut cursor, mut lines) = (Cursor::default(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(5);
    while lines.len() < 4 && Instant::now() < deadline {
        lines.extend(worker.context.logbook.take(&mut cursor, bounds).lines);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(lines.iter().all(|line| line.key == "printing"), "{lines:?}");
    let mut said: Vec<_> = lines
        .iter()
        .map(|line| (line.level, line.text.as_str()))
        .collect();
    said.sort_by_key(|(_, text)| *text);
    let expected = [
        (Level::Out, "from a program"),
        (Level::Out, "no end"),
        (Level::Err, "to errors"),
        (Level::Out, "to output"),
    ];
    assert_eq!(said, expected);
    assert_eq!(worker.text("close_output", vec![]).await, "closed");
    assert_eq!(worker.text("printing", vec![]).await, "printed");
    let again = worker.context.logbook.take(&mut cursor, bounds).lines;
    assert!(
        again.iter().any(|line| line.text == "to output"),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_ends_at_once_and_leaves_nothing() {
    let worker = Arc::new(Worker::new(config(1)));
    let before = worker.text("pid", vec![]).await;
    let context = worker.context("forever");
    let cancelled = context.cancelled.clone();
    let running = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.run_in("forever", vec![], context).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    cancelled.cancel();
    let error = tokio::time::timeout(Duration::from_secs(10), running).await;
    let error = error.unwrap().unwrap().unwrap_err();
    assert_eq!(error.diagnostic.code, Code::GraphCancelled);
    let after = worker.text("pid", vec![]).await;
    assert_ne!(before, after);
    assert!(is_gone(&before).await);
    // What a task has started goes with its process, and all goes with the worker.
    let program = worker.text("leaves_a_program", vec![]).await;
    assert!(!is_gone_now(&program));
    drop(Arc::into_inner(worker).unwrap());
    assert!(is_gone(&after).await && is_gone(&program).await);
}

fn is_gone_now(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|text| text.contains("State:\tZ"))
        || !std::path::Path::new("/proc").join(pid).exists()
}

async fn is_gone(pid: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if is_gone_now(pid) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[derive(Debug, Default)]
struct CountedSlot {
    left: AtomicUsize,
    back: AtomicUsize,
    begun: AtomicUsize,
}

impl Slot for CountedSlot {
    fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    fn take_back(&self) {
        self.back.fetch_add(1, Ordering::Relaxed);
    }

    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs that are handed over ahead of their slot.
struct InLine {
    worker: Arc<Worker>,
    slot: Arc<CountedSlot>,
}

impl InLine {
    /// The process is there.
    async fn new() -> Self {
        let worker = Arc::new(Worker::new(config(1)));
        worker.text("key", vec![]).await;
        let slot = Arc::default();
        Self { worker, slot }
    }

    fn join(&self, name: &str, is_ahead: bool) -> (JoinHandle<Outcome>, CancellationToken) {
        let context = TaskContext {
            is_ahead,
            slot: Arc::clone(&self.slot) as Arc<dyn Slot>,
            ..self.worker.context(name)
        };
        let cancelled = context.cancelled.clone();
        let (worker, name) = (Arc::clone(&self.worker), name.to_owned());
        let running = async move { worker.run_in(&name, vec![], context).await };
        (tokio::spawn(running), cancelled)
    }

    fn begun(&self) -> usize {
        self.slot.begun.load(Ordering::Relaxed)
    }
}

type Outcome = Result<Payload, TaskError>;

async fn assert_given_back(joined: JoinHandle<Outcome>) {
    let outcome = joined.await.unwrap();
    let is_given_back = matches!(&outcome, Err(error) if error.is_given_back);
    assert!(is_given_back, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_in_line_begin_in_their_turn() {
    let line = InLine::new().await;
    let runs: Vec<_> = (0..40).map(|_| line.join("key", true).0).collect();
    let mut begun = 0;
    for run in runs {
        match run.await.unwrap() {
            Ok(payload) => {
                assert_eq!(text(&payload), "key w1 None");
                begun += 1;
            }
            // A slow machine: they waited for too long.
            Err(error) => assert!(error.is_given_back),
        }
    }
    assert!(begun > 0);
    assert_eq!(line.begun(), begun);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_wait_behind_a_long_one_are_given_back() {
    let line = InLine::new().await;
    let (long, _) = line.join("sleeps_long", false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiting: Vec<_> = (0..3).map(|_| line.join("key", true).0).collect();
    for run in waiting {
        assert_given_back(run).await;
    }
    assert!(!long.is_finished());
    assert_eq!(line.begun(), 0);
    assert_eq!(text(&long.await.unwrap().unwrap()), "slept long");
    assert_eq!(line.worker.text("key", vec![]).await, "key w1 None");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_process_is_not_blamed_on_those_in_line() {
    let line = InLine::new().await;
    let (dies, _) = line.join("exit_now", false);
    let waiting: Vec<_> = (0..3).map(|_| line.join("key", true).0).collect();
    for run in waiting {
        match run.await.unwrap() {
            Ok(payload) => assert_eq!(text(&payload), "key w1 None"),
            Err(error) => assert!(error.is_given_back, "{error:?}"),
        }
    }
    let died = dies.await.unwrap().unwrap_err();
    assert!(died.diagnostic.message.contains("status 7"), "{died:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_cancelled_in_line_never_runs() {
    let line = InLine::new().await;
    let (long, _) = line.join("sleeps_long", false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (waiting, cancelled) = line.join("exit_now", true);
    cancelled.cancel();
    assert!(waiting.await.unwrap().is_err());
    assert_eq!(text(&long.await.unwrap().unwrap()), "slept long");
    // The process is the same.
    assert_eq!(line.worker.text("key", vec![]).await, "key w1 None");
    assert_eq!(line.begun(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_the_line_is_given_back() {
    let line = InLine::new().await;
    let context = TaskContext {
        is_ahead: true,
        ..line.worker.context("text")
    };
    let large = Payload::new(PayloadKind::Bytes, Bytes::from(vec![b'x'; 1 << 20]));
    let outcome = line.worker.run_in("text", vec![large], context).await;
    assert!(outcome.is_err_and(|error| error.is_given_back));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_leaves_its_slot_makes_room_for_another() {
    let worker = Arc::new(Worker::new(config(1)));
    assert_eq!(worker.text("key", vec![]).await, "key w1 None");
    let slot = Arc::new(CountedSlot::default());
    let context = TaskContext {
        slot: Arc::clone(&slot) as Arc<dyn Slot>,
        ..worker.context("secedes")
    };
    let away = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.run_in("secedes", vec![], context).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(slot.left.load(Ordering::Relaxed), 1);
    assert!(!away.is_finished());
    assert_eq!(worker.text("sleeps", vec![]).await, "slept");
    assert!(!away.is_finished(), "the other ran beside it");
    assert_eq!(text(&away.await.unwrap().unwrap()), "back");
    assert_eq!(slot.back.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_hold_for_all_processes() {
    let worker = Arc::new(Worker::new(config(2)));
    let command = |name: &str, is_standing| Command {
        content: CALLS[name].0.clone(),
        is_standing,
    };
    let contains = |answer: &Bytes, text: &str| {
        answer
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let answer = worker
        .executor
        .command(command("command_plugin", true))
        .await
        .unwrap();
    assert!(contains(&answer, "OK"));
    let answer = worker
        .executor
        .command(command("command_run", false))
        .await
        .unwrap();
    assert!(contains(&answer, "OK") && contains(&answer, "w1"));
    let answer = worker
        .executor
        .command(command("command_fail", false))
        .await
        .unwrap();
    assert!(contains(&answer, "error") && contains(&answer, "no such luck"));
    // Also for one that starts now.
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let worker = Arc::clone(&worker);
            tokio::spawn(async move {
                worker.text("sleeps", vec![]).await;
                worker.text("key", vec![]).await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), "key w1 plugin of True");
    }
    worker.failure("exit_now").await;
    assert_eq!(worker.text("key", vec![]).await, "key w1 plugin of True");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_command_replaces_processes_and_breaks_nothing() {
    let worker = Arc::new(Worker::new(config(2)));
    let command = |content: &Bytes, is_standing| {
        let content = content.clone();
        let command = Command {
            content,
            is_standing,
        };
        worker.executor.command(command)
    };
    let plugin = &CALLS["command_plugin"].0;
    command(plugin, true).await.unwrap();
    let idle = worker.text("pid", vec![]).await;
    let busy = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.text("pid_after_a_while", vec![]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(command(&Bytes::new(), false).await.unwrap().is_empty());
    // The plugin is there in new ones too.
    assert_eq!(worker.text("key", vec![]).await, "key w1 plugin of True");
    let new = worker.text("pid", vec![]).await;
    assert!(
        !busy.is_finished(),
        "the new one did not wait for the busy one"
    );
    let busy = busy.await.unwrap();
    assert!(new != idle && new != busy);
    assert!(is_gone(&idle).await && is_gone(&busy).await);
    assert!(!is_gone_now(&new));
    assert_eq!(worker.text("pid", vec![]).await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_draw_numbers_of_their_own() {
    let worker = Arc::new(Worker::new(config(2)));
    let first = worker.text("random_number", vec![]).await;
    worker.failure("exit_now").await;
    assert_ne!(first, worker.text("random_number", vec![]).await);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    for (program, reason) in [
        ("/nonexistent/python", "does not start"),
        ("false", "ended before it was ready"),
    ] {
        let worker = Worker::new(PythonConfig {
            program: program.into(),
            ..config(1)
        });
        let failure = worker.failure("one").await.diagnostic;
        assert_eq!(failure.code, Code::PythonStart);
        assert!(
            failure.message.contains(program) && failure.message.contains(reason),
            "{failure:?}"
        );
    }
    let environment = vec![("PYTHONPATH".into(), "/nonexistent".into())];
    let worker = Worker::new(PythonConfig {
        environment,
        ..config(1)
    });
    let failure = worker.failure("one").await.diagnostic;
    assert!(failure.causes[0].contains("No module named"), "{failure:?}");
    let empty = worker.executor.prepare(&Body::new("python"));
    assert!(!empty.err().unwrap().is_retryable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_many_inputs_gets_all_of_them() {
    let worker = Worker::new(config(1));
    let array = worker.run("array", vec![]).await.unwrap();
    let small = worker.run("one", vec![]).await.unwrap();
    let bytes = Bytes::from(vec![b'x'; 40_000]);
    let other = Payload::new(PayloadKind::Bytes, bytes);
    let inputs: Vec<_> = (0..900)
        .map(|number| [&array, &small, &other][number % 3].clone())
        .collect();
    assert_eq!(worker.text("count", inputs).await, "300 300 300");
    // Nothing is left open.
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    for _ in 0..20 {
        worker.run("array", vec![]).await.unwrap();
        worker.text("array_sum", vec![array.clone()]).await;
    }
    assert!(files() <= before + 60, "{} of {before}", files());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_when_memory_runs_out() {
    let worker = Arc::new(Worker::new(config(1)));
    let running = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.failure("forever").await })
    };
    let mut list = Vec::new();
    while list.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        worker.context.programs.list(&mut list);
    }
    assert_eq!(&*list[0].key, "forever");
    let (program_bytes, used_bytes, limit_bytes) = (900 << 20, 1000 << 20, 1 << 30);
    let end = MemoryEnd {
        program_bytes,
        used_bytes,
        limit_bytes,
    };
    worker.context.programs.end(list[0].id, end);
    let diagnostic = running.await.unwrap().diagnostic;
    assert_eq!(diagnostic.code, Code::MemoryRanOut);
    assert!(
        diagnostic
            .message
            .contains("900.0 MiB of the worker's 1.0 GiB"),
        "{diagnostic:?}"
    );
    assert!(is_gone(&list[0].leader.to_string()).await);
    assert_eq!(worker.text("sleeps", vec![]).await, "slept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_fork_server_takes_the_place_of_one_that_was_killed() {
    let worker = Worker::new(config(1));
    let child = worker.text("pid", vec![]).await;
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:\t"))
        .unwrap();
    assert!(
        StdCommand::new("kill")
            .args(["-9", parent])
            .status()
            .unwrap()
            .success()
    );
    assert!(is_gone(&child).await, "no child outlives the fork server");
    assert_ne!(worker.text("pid", vec![]).await, child);
    // A child that dies while it has nothing to do is nobody's fault.
    let idle = worker.text("pid", vec![]).await;
    assert!(
        StdCommand::new("kill")
            .args(["-9", &idle])
            .status()
            .unwrap()
            .success()
    );
    assert_ne!(worker.text("pid", vec![]).await, idle);
}

/// Processor time of a process so far.
fn processor_time(pid: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|at| fields[*at].parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Prints figures; fails only if something is badly wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_tasks_are_cheap() {
    const TASKS: u32 = 20_000;
    let worker = Arc::new(Worker::new(config(1)));
    let body = Body {
        content: CALLS["one"].0.clone(),
        ..Body::new("python")
    };
    let program = worker.executor.prepare(&body).unwrap();
    let run = || Arc::clone(&program).run(vec![], worker.context("one"));
    for _ in 0..200 {
        run().await.unwrap();
    }
    let child = worker.text("pid", vec![]).await;
    let spent = || (processor_time("self"), processor_time(&child));
    let since = |before: (Duration, Duration)| {
        let now = spent();
        (
            now.0.saturating_sub(before.0) / TASKS,
            now.1.saturating_sub(before.1) / TASKS,
        )
    };
    let (start, before) = (Instant::now(), spent());
    for _ in 0..TASKS {
        run().await.unwrap();
    }
    let (alone, alone_spent) = (start.elapsed() / TASKS, since(before));
    let (start, before) = (Instant::now(), spent());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        running.spawn(run());
        if running.len() >= 8 {
            running.join_next().await.unwrap().unwrap().unwrap();
        }
    }
    while running.join_next().await.is_some() {}
    let (together, together_spent) = (start.elapsed() / TASKS, since(before));
    println!("a tiny task alone: {alone:?}, processor time of worker and child {alone_spent:?}");
    println!(
        "eight at a time: {together:?}, processor time of worker and child {together_spent:?}"
    );
    assert!(alone < Duration::from_millis(2) && together < Duration::from_millis(2));
}
