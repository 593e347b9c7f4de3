//! Programs of `exec` tasks, with real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::guard::{GuardCommand, watch};
use oxidask_exec::{
    Body, Builtin, Executor, MemoryEnd, Programs, RunningProgram, TableToCsv, TaskContext,
    TaskError,
};
use oxidask_logbook::{Bounds, Cursor, Level};
use oxidask_store::{Payload, PayloadKind};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

struct Csv;

impl TableToCsv for Csv {
    fn write_csv(&self, _: &Payload, to: &mut dyn std::io::Write) -> Result<(), Diagnostic> {
        to.write_all(b"a,b\n1,2\n")
            .map_err(|error| Diagnostic::new(Code::WorkerDisk, error.to_string()))
    }
}

struct Fixture {
    scratch: TempDir,
    base: TempDir,
    cancelled: CancellationToken,
}

impl Fixture {
    fn new() -> Self {
        Self {
            scratch: TempDir::new().unwrap(),
            base: TempDir::new().unwrap(),
            cancelled: CancellationToken::new(),
        }
    }

    fn context(&self) -> TaskContext {
        TaskContext {
            cancelled: self.cancelled.clone(),
            ..TaskContext::alone(
                1 << 30,
                self.base.path().to_owned(),
                self.scratch.path().to_owned(),
            )
        }
    }

    async fn body(&self, body: Body, inputs: Vec<Payload>) -> Result<Payload, TaskError> {
        let program = Builtin::new().with_tables(Arc::new(Csv)).prepare(&body)?;
        assert!(program.run_now(&inputs, &self.context()).is_none());
        let outcome = program.run(inputs, self.context()).await;
        let left: Vec<_> = std::fs::read_dir(self.scratch.path()).unwrap().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        outcome
    }

    async fn shell(&self, script: &str, inputs: Vec<Payload>) -> Result<Payload, TaskError> {
        self.body(shell(script), inputs).await
    }

    async fn text(&self, script: &str, inputs: Vec<Payload>) -> String {
        let result = self.shell(script, inputs).await.unwrap();
        assert_eq!(result.kind, PayloadKind::Bytes);
        String::from_utf8(result.parts.concat()).unwrap()
    }
}

fn shell(script: &str) -> Body {
    Body::new("exec").with("command", json!(["sh", "-c", script]))
}

fn value(json: &'static str) -> Payload {
    Payload::new(PayloadKind::Value, json)
}

fn is_running(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "waited too long: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn gives_standard_output_as_bytes() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.text("printf 'a\\nb'; echo noise >&2", vec![]).await,
        "a\nb"
    );
    assert_eq!(fixture.text("true", vec![]).await, "");
    let result = fixture.shell("printf '\\377\\000'", vec![]).await.unwrap();
    assert_eq!(result.parts.concat(), b"\xff\x00");
}

#[tokio::test]
async fn inputs_are_files_in_the_working_folder() {
    let fixture = Fixture::new();
    let bytes = Payload {
        kind: PayloadKind::Bytes,
        parts: vec![b"\xffab".as_slice().into(), b"c".as_slice().into()],
    };
    let table = Payload::new(PayloadKind::Table, &b""[..]);
    let inputs = vec![
        bytes,
        value("\"gr\\u00fcn\\n\""),
        value("{\"b\":[1,2.0]}"),
        value("null"),
        table,
    ];
    let result = fixture.shell("ls; cat 0 1 2 3 4", inputs).await.unwrap();
    assert_eq!(
        result.parts.concat(),
        b"0\n1\n2\n3\n4\n\xffabcgr\xc3\xbcn\n{\"b\":[1,2.0]}nulla,b\n1,2\n"
    );
}

#[tokio::test]
async fn tables_need_somebody_who_knows_them() {
    let fixture = Fixture::new();
    let program = Builtin::new().prepare(&shell("true")).unwrap();
    let table = Payload::new(PayloadKind::Table, &b""[..]);
    let error = program
        .run(vec![value("1"), table], fixture.context())
        .await
        .unwrap_err();
    assert_eq!(
        error.diagnostic.message,
        "input 1 is a table, which this worker cannot write as CSV"
    );
}

#[tokio::test]
async fn environment_is_added_and_standard_input_is_empty() {
    let fixture = Fixture::new();
    let body = shell("cat; printf '%s|%s|' \"$A\" \"$B\"; test -n \"$PATH\" && echo path")
        .with("env", json!({"A": "x y", "B": ""}));
    let result = fixture.body(body, vec![]).await.unwrap();
    assert_eq!(result.parts.concat(), b"x y||path\n");
}

#[tokio::test]
async fn programs_beside_the_manifest_are_found() {
    let fixture = Fixture::new();
    let script = fixture.base.path().join("tool.sh");
    std::fs::copy("/bin/sh", &script).unwrap();
    std::fs::write(fixture.base.path().join("data"), "seen").unwrap();
    let command = json!(["./tool.sh", "-c", "cat \"$OXIDASK_BASE_DIR/data\""]);
    let result = fixture
        .body(Body::new("exec").with("command", command), vec![])
        .await
        .unwrap();
    assert_eq!(result.parts.concat(), b"seen");
}

#[tokio::test]
async fn a_failure_shows_the_last_lines_of_standard_error() {
    let fixture = Fixture::new();
    let script = "for i in $(seq 30); do echo \"line $i\" >&2; done; exit 3";
    let error = fixture.shell(script, vec![]).await.unwrap_err();
    assert!(error.is_retryable);
    let diagnostic = error.diagnostic;
    assert_eq!(diagnostic.code, Code::CommandFailed);
    assert_eq!(
        diagnostic.message,
        "the program `sh` ended with exit status 3"
    );
    let cause = &diagnostic.causes[0];
    assert!(cause.ends_with("\n    line 29\n    line 30"), "{cause}");
    assert!(
        cause.contains("line 11\n") && !cause.contains("line 10\n"),
        "{cause}"
    );
    let error = fixture.shell("exit 1", vec![]).await.unwrap_err();
    assert_eq!(
        error.diagnostic.causes,
        ["it printed nothing to standard error"]
    );
    let error = fixture.shell("kill -9 $$", vec![]).await.unwrap_err();
    assert_eq!(
        error.diagnostic.message,
        "the program `sh` ended with signal 9 (SIGKILL)"
    );
}

#[tokio::test]
async fn a_program_that_cannot_start_is_named() {
    let fixture = Fixture::new();
    let run = |program: &str| {
        fixture.body(
            Body::new("exec").with("command", json!([program, "x"])),
            vec![],
        )
    };
    for program in ["no-such-program", "./no-such-program", "/no/such/program"] {
        let diagnostic = run(program).await.unwrap_err().diagnostic;
        assert_eq!(diagnostic.code, Code::CommandFailed);
        assert_eq!(
            diagnostic.message,
            format!("the program `{program}` was not found")
        );
        assert!(
            diagnostic.hint.contains("no shell is implied"),
            "{}",
            diagnostic.hint
        );
    }
    let diagnostic = run("/etc/passwd").await.unwrap_err().diagnostic;
    assert_eq!(
        diagnostic.message,
        "the program `/etc/passwd` cannot be started"
    );
    assert!(
        diagnostic.causes[0].contains("ermission denied"),
        "{:?}",
        diagnostic.causes
    );
}

#[tokio::test]
async fn a_scratch_folder_that_cannot_be_made_is_an_error_of_the_worker() {
    let fixture = Fixture::new();
    let mut context = fixture.context();
    let file = fixture.scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    context.scratch_dir = file.join("folder");
    let program = Builtin::new().prepare(&shell("true")).unwrap();
    let error = program.run(vec![], context).await.unwrap_err();
    assert_eq!(error.diagnostic.code, Code::WorkerDisk);
    assert_eq!(
        error.diagnostic.message,
        "the working folder of the program `sh` cannot be made"
    );
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree() {
    let fixture = Fixture::new();
    let pids = fixture.base.path().join("pids");
    let script = format!(
        "trap '' TERM; (trap '' TERM; echo $$ >> {0}; sleep 40) & echo $! >> {0}; \
         echo waiting >&2; wait; sleep 40",
        pids.display()
    );
    let start = Instant::now();
    let body = shell(&script).with("timeoutSeconds", 0.3);
    let diagnostic = fixture.body(body, vec![]).await.unwrap_err().diagnostic;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(diagnostic.code, Code::TaskTimeout);
    assert_eq!(
        diagnostic.message,
        "the program `sh` took longer than 0.3 s and was ended"
    );
    assert!(
        diagnostic.causes[0].ends_with("    waiting"),
        "{:?}",
        diagnostic.causes
    );
    for pid in std::fs::read_to_string(pids).unwrap().lines() {
        wait_until("the tree is gone", || !is_running(pid));
    }
}

#[tokio::test]
async fn a_cancelled_attempt_ends_soon_with_its_tree() {
    let fixture = Fixture::new();
    let pid_file = fixture.base.path().join("pid");
    let script = format!(
        "sleep 40 & echo $! > {}.new; mv {0}.new {0}; wait",
        pid_file.display()
    );
    let canceller = fixture.cancelled.clone();
    let seen = pid_file.clone();
    std::thread::spawn(move || {
        wait_until("the program runs", || seen.exists());
        canceller.cancel();
    });
    let error = fixture.shell(&script, vec![]).await.unwrap_err();
    assert_eq!(error.diagnostic.code, Code::GraphCancelled);
    let pid = std::fs::read_to_string(pid_file).unwrap();
    wait_until("the child is gone", || !is_running(&pid));
}

#[tokio::test]
async fn a_dropped_run_leaves_nothing_running() {
    let fixture = Fixture::new();
    let pid_file = fixture.base.path().join("pid");
    let script = format!(
        "sleep 40 & echo $! > {}.new; mv {0}.new {0}; wait",
        pid_file.display()
    );
    let program = Builtin::new().prepare(&shell(&script)).unwrap();
    let run = tokio::spawn(program.run(vec![], fixture.context()));
    while !pid_file.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    let pid = std::fs::read_to_string(pid_file).unwrap();
    wait_until("the child is gone", || !is_running(&pid));
    wait_until("the folder is gone", || {
        std::fs::read_dir(fixture.scratch.path())
            .unwrap()
            .next()
            .is_none()
    });
}

#[tokio::test]
async fn children_in_the_background_end_with_their_program() {
    let fixture = Fixture::new();
    let start = Instant::now();
    let pid = fixture.text("sleep 40 & echo $!", vec![]).await;
    wait_until("the child is gone", || !is_running(&pid));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn too_much_output_ends_the_program() {
    let fixture = Fixture::new();
    let diagnostic = fixture
        .shell("cat /dev/zero", vec![])
        .await
        .unwrap_err()
        .diagnostic;
    assert_eq!(diagnostic.code, Code::LimitPassed);
    assert_eq!(
        diagnostic.message,
        "the program `sh` printed more than 64 MiB and was ended"
    );
    let diagnostic = fixture
        .shell("head -c 100000000 /dev/zero", vec![])
        .await
        .unwrap_err()
        .diagnostic;
    assert_eq!(diagnostic.code, Code::LimitPassed);
    let result = fixture
        .shell("head -c 67108864 /dev/zero", vec![])
        .await
        .unwrap();
    assert_eq!(result.len(), 64 << 20);
    let result = fixture
        .shell("head -c 100000000 /dev/zero >&2; echo ok", vec![])
        .await
        .unwrap();
    assert_eq!(result.parts.concat(), b"ok\n");
}

/// The only program of a list, once it runs.
async fn only_program(programs: &Programs) -> RunningProgram {
    let mut list = Vec::new();
    loop {
        programs.list(&mut list);
        if let [program] = list.as_slice() {
            return program.clone();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs a script that does not end by itself and ends it because of its memory.
async fn end_for_memory(script: &str, is_killed: bool) -> (TaskError, Duration) {
    let fixture = Fixture::new();
    let context = TaskContext {
        graph: 7,
        key: "hungry".into(),
        ..fixture.context()
    };
    let programs = Arc::clone(&context.programs);
    let program = Builtin::new().prepare(&shell(script)).unwrap();
    let running = tokio::spawn(program.run(vec![], context));
    let found = only_program(&programs).await;
    assert_eq!((&*found.key, found.graph, found.attempt), ("hungry", 7, 1));
    assert!(is_running(&found.leader.to_string()));
    // Until it has set its traps.
    tokio::time::sleep(Duration::from_millis(200)).await;
    programs.measured(found.id, 96 << 20);
    programs.measured(found.id, 64 << 20);
    let end = MemoryEnd {
        program_bytes: 64 << 20,
        used_bytes: 126 << 20,
        limit_bytes: 128 << 20,
    };
    programs.end(found.id, end);
    let start = Instant::now();
    if is_killed {
        programs.kill(found.id);
    }
    let error = running.await.unwrap().unwrap_err();
    let took = start.elapsed();
    wait_until("the program is gone", || {
        !is_running(&found.leader.to_string())
    });
    assert_eq!(programs.count(), 0);
    (error, took)
}

#[tokio::test]
async fn a_program_that_is_ended_for_its_memory_says_so() {
    let (error, _) =
        end_for_memory("trap 'echo bye >&2; exit 3' TERM; sleep 40 & wait", false).await;
    assert!(error.is_retryable);
    let diagnostic = error.diagnostic;
    assert_eq!(diagnostic.code, Code::MemoryRanOut);
    assert_eq!(
        diagnostic.message,
        "the program `sh` was ended because memory ran out: it used 64.0 MiB of the worker's \
         128.0 MiB"
    );
    assert_eq!(
        diagnostic.causes,
        [
            "126.0 MiB of 128.0 MiB were used in all",
            "it was seen to use at most 96.0 MiB of memory",
            "the last lines (at most 20) of its standard error:\n    bye"
        ]
    );
}

#[tokio::test]
async fn a_program_that_does_not_end_is_killed_at_once_if_need_be() {
    let script = "trap '' TERM; while :; do sleep 0.05; done";
    let (error, took) = end_for_memory(script, false).await;
    assert_eq!(error.diagnostic.code, Code::MemoryRanOut);
    assert!(took >= Duration::from_millis(400), "{took:?}");
    let (error, took) = end_for_memory(script, true).await;
    assert_eq!(error.diagnostic.code, Code::MemoryRanOut);
    assert!(took < Duration::from_millis(400), "{took:?}");
}

#[tokio::test]
async fn a_program_that_the_system_killed_for_its_memory_says_so() {
    let fixture = Fixture::new();
    let failure = async |script: &str, kills: bool| {
        let context = fixture.context();
        let calls = AtomicU64::new(0);
        // One more each time that it is asked: before and after the run.
        let count = move || Some(calls.fetch_add(u64::from(kills), Ordering::Relaxed));
        context.programs.set_out_of_memory_counter(Box::new(count));
        let program = Builtin::new().prepare(&shell(script)).unwrap();
        program.run(vec![], context).await.unwrap_err().diagnostic
    };
    for script in ["kill -9 $$", "sh -c 'kill -9 $$'; exit $?"] {
        let diagnostic = failure(script, true).await;
        assert_eq!(diagnostic.code, Code::MemoryRanOut, "{script}");
        assert!(diagnostic.message.ends_with("because memory ran out"));
        let diagnostic = failure(script, false).await;
        assert_eq!(diagnostic.code, Code::CommandFailed, "{script}");
    }
    let killed = failure("kill -9 $$", true).await.message;
    assert!(killed.contains("signal 9 (SIGKILL)"), "{killed}");
    let failed = failure("exit 4", true).await;
    assert_eq!(failed.code, Code::CommandFailed);
    assert_eq!(
        failed.causes[0],
        "while it ran, the system ended other processes because memory ran out (1 in all)"
    );
}

#[tokio::test]
async fn lines_of_standard_error_are_logged_with_their_task() {
    let fixture = Fixture::new();
    let context = TaskContext {
        graph: 7,
        key: "talkative".into(),
        attempt: 3,
        ..fixture.context()
    };
    let logbook = Arc::clone(&context.logbook);
    let program = Builtin::new()
        .prepare(&shell("echo result; echo one >&2; printf two >&2"))
        .unwrap();
    program.run(vec![], context).await.unwrap();
    let bounds = Bounds {
        items_max: 100,
        bytes_max: 100_000,
    };
    let lines = logbook.take(&mut Cursor::default(), bounds).lines;
    let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
    for line in &lines {
        let place = (line.graph.as_str(), line.key.as_str(), line.attempt);
        assert_eq!(place, ("7", "talkative", 3));
        assert_eq!((line.level, line.target.as_str()), (Level::Err, "sh"));
    }
}

#[tokio::test]
async fn the_system_ends_programs_before_their_worker() {
    let fixture = Fixture::new();
    let script = "while [ $(cat /proc/$$/oom_score_adj) != 1000 ]; do sleep 0.01; done; echo so";
    let waiting = fixture.text(script, vec![]);
    let text = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(text.unwrap(), "so\n");
}

/// The other process of the test below: this test program again, as guard or as worker.
#[test]
fn role() {
    match std::env::var("OXIDASK_TEST_ROLE").as_deref() {
        Ok("guard") => watch(std::io::stdin()),
        Ok("worker") => {
            let guard = GuardCommand {
                program: "env".into(),
                arguments: vec![
                    "OXIDASK_TEST_ROLE=guard".into(),
                    std::env::current_exe().unwrap().into(),
                    "role".into(),
                    "--exact".into(),
                ],
            };
            let fixture = Fixture::new();
            let script = std::env::var("OXIDASK_TEST_SCRIPT").unwrap();
            let program = Builtin::new()
                .with_guard(guard)
                .prepare(&shell(&script))
                .unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let _ = runtime.block_on(program.run(vec![], fixture.context()));
        }
        _ => {}
    }
}

#[test]
fn programs_end_with_a_worker_that_is_killed() {
    let folder = TempDir::new().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!(
        "trap '' TERM; sleep 40 & echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; wait",
        pid_file.display()
    );
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["role", "--exact"])
        .env("OXIDASK_TEST_ROLE", "worker")
        .env("OXIDASK_TEST_SCRIPT", script)
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    wait_until("the program runs", || pid_file.exists());
    let pids = std::fs::read_to_string(&pid_file).unwrap();
    assert!(pids.lines().all(is_running));
    assert_eq!(pids.lines().count(), 2);
    // The worker's next step after the start is to tell the guard.
    std::thread::sleep(Duration::from_millis(500));
    worker.kill().unwrap();
    worker.wait().unwrap();
    for pid in pids.lines() {
        wait_until("the program is gone", || !is_running(pid));
    }
    // The guard holds nothing open and is gone too: the pipe of the worker's errors has ended.
    let mut rest = String::new();
    worker
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
}
