//! Real `oxidask` processes for tests: each test has a folder, and can see every process and every
//! temporary file that its commands leave behind.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is part of tests")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Time that any command of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A folder with manifests, and a folder for temporary files of its own.
pub(crate) struct Workspace {
    folder: TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file and answers its path.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A job of a graph given as JSON lines, on so many workers of one slot.
    pub(crate) fn graph_job(&self, workers: u32, lines: &str) -> PathBuf {
        self.write("graph.jsonl", lines);
        self.job(workers, "graph: {file: graph.jsonl}")
    }

    /// A job of SQL statements.
    pub(crate) fn sql_job(&self, workers: u32, statements: &str) -> PathBuf {
        self.write("query.sql", statements);
        self.job(workers, "sql: {file: query.sql}")
    }

    /// A job with its work as a line of YAML.
    pub(crate) fn job(&self, workers: u32, work: &str) -> PathBuf {
        let text = format!(
            "apiVersion: kubernetes.dask.org/v1\nkind: DaskJob\nmetadata: {{name: test}}\nspec:\n  \
             cluster: {{spec: {{worker: {{replicas: {workers}, threads: 1}}}}}}\n  {work}\n"
        );
        self.write("job.yaml", text)
    }

    /// A cluster without work.
    pub(crate) fn cluster(&self, workers: u32) -> PathBuf {
        let text = format!(
            "apiVersion: kubernetes.dask.org/v1\nkind: DaskCluster\nmetadata: {{name: test}}\n\
             spec: {{worker: {{replicas: {workers}, threads: 1}}}}\n"
        );
        self.write("cluster.yaml", text)
    }

    fn temporary(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// The command with this workspace's temporary folder and nothing else of our environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oxidask"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", self.temporary())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).finish()
    }

    /// Starts a command.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::spawn(self.command(arguments))
    }

    /// Temporary files that are there now.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        fs::read_dir(self.temporary())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// Every living process that was started with this workspace's environment, with its command
    /// line.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("TMPDIR={}", self.temporary().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(environment) = fs::read(entry.path().join("environ")) else {
                continue;
            };
            if environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == mark.as_bytes())
            {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                found.push((pid, line));
            }
        }
        found
    }

    /// The processes of a role: `scheduler`, `worker`, or a worker by its name.
    pub(crate) fn services(&self, role: &str) -> Vec<i32> {
        let (service, name) = match role {
            "scheduler" | "worker" | "exec-guard" => (format!("oxidask {role} "), String::new()),
            name => ("oxidask worker ".to_owned(), format!(" --name={name} ")),
        };
        let matches = |line: &String| line.contains(&service) && line.contains(&name);
        self.processes()
            .into_iter()
            .filter(|(_, line)| matches(line))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Waits until a role has a process, and answers its id.
    pub(crate) fn service(&self, role: &str) -> i32 {
        let mut found = None;
        eventually(&format!("a process of {role}"), PATIENCE, || {
            found = self.services(role).first().copied();
            found.is_some()
        });
        found.unwrap()
    }

    /// Nothing is left: no process, no file.
    pub(crate) fn assert_clean(&self, within: Duration) {
        eventually("the end of all processes", within, || {
            self.processes().is_empty()
        });
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
    }
}

/// Sends a signal; the process may have ended.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < within, "waited {within:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    stdout: Pipe,
    stderr: Pipe,
}

impl Running {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let started = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = Pipe::read(child.stdout.take().unwrap());
        let stderr = Pipe::read(child.stderr.take().unwrap());
        Self {
            child,
            started,
            stdout,
            stderr,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, kind: Signal) {
        signal(self.pid(), kind);
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until standard output holds a text.
    pub(crate) fn await_stdout(&self, text: &str) {
        eventually(&format!("`{text}` on stdout"), PATIENCE, || {
            self.stdout().contains(text)
        });
    }

    /// Waits until standard error holds a text.
    pub(crate) fn await_stderr(&self, text: &str) {
        eventually(&format!("`{text}` on stderr"), PATIENCE, || {
            self.stderr().contains(text)
        });
    }

    /// Waits for the end.
    pub(crate) fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    pub(crate) fn finish_within(mut self, within: Duration) -> Finished {
        let waiting = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if waiting.elapsed() > within {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("not finished in {within:?}; stderr:\n{}", self.stderr());
            }
            thread::sleep(Duration::from_millis(2));
        };
        let waited = waiting.elapsed();
        Finished {
            status: status.code(),
            elapsed: self.started.elapsed(),
            waited,
            stdout: std::mem::take(&mut self.stdout).end(),
            stderr: std::mem::take(&mut self.stderr).end(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: Option<i32>,
    /// Since the start of the command.
    pub(crate) elapsed: Duration,
    /// Since the wait for its end began.
    pub(crate) waited: Duration,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The exit status must be this one.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as JSON lines.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<Value> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {line}"),
        };
        self.stdout.lines().map(parse).collect()
    }

    /// One error block: its code, some words of it in any order, and a hint. Returns the block.
    #[track_caller]
    pub(crate) fn assert_error(&self, what: &str, code: &str, words: &[&str]) -> &str {
        let stderr = &self.stderr;
        let start = stderr.find("error[");
        let block = start.map_or("", |start| &stderr[start..]);
        let is_one = block.starts_with(&format!("error[{code}]: "))
            && stderr.matches("error[").count() == 1
            && block.contains("\n\nhint: ");
        assert!(is_one, "{what}: no error block of {code} in:\n{stderr}");
        for word in words {
            assert!(block.contains(word), "{what}: no `{word}` in:\n{stderr}");
        }
        block
    }

    /// Refused before anything was started: status 2, an error block and nothing else.
    #[track_caller]
    pub(crate) fn assert_refused(&self, what: &str, code: &str, words: &[&str]) {
        assert_eq!(self.status, Some(2), "{what}:\n{}", self.stderr);
        assert_eq!(self.stdout, "", "{what}");
        let block = self.assert_error(what, code, words);
        assert_eq!(block, self.stderr, "{what}");
    }

    /// Failed while it ran: status 1, an error block, these lines on standard output.
    #[track_caller]
    pub(crate) fn assert_failed(&self, what: &str, code: &str, words: &[&str], stdout: &str) {
        assert_eq!(self.status, Some(1), "{what}:\n{}", self.stderr);
        self.assert_error(what, code, words);
        assert_eq!(self.stdout, stdout, "{what}");
        let defect = self.stderr.contains("panicked") && code != "OX302";
        assert!(!defect, "{what}: a panic in:\n{}", self.stderr);
    }

    #[track_caller]
    pub(crate) fn assert_stderr(&self, text: &str) {
        assert!(
            self.stderr.contains(text),
            "no `{text}` in:\n{}",
            self.stderr
        );
    }
}

/// Text that a thread reads from a pipe.
#[derive(Default)]
struct Pipe {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count) = from.read(&mut buffer) {
                if count == 0 {
                    return;
                }
                into.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// All of it. Somebody else may hold the pipe, so the wait is short.
    fn end(mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let start = Instant::now();
            while !reader.is_finished() && start.elapsed() < Duration::from_secs(2) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.text()
    }
}
