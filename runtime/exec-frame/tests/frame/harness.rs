//! A folder with files, and a worker's way to run tasks in it.

use std::path::{Path, PathBuf};

use oxidask_diagnostic::Diagnostic;
use oxidask_exec::{Body, Executor, TaskContext, TaskError};
use oxidask_exec_frame::{FrameExecutor, render, script};
use oxidask_store::{Payload, PayloadKind};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) struct Worker {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) base_dir: PathBuf,
    pub(crate) memory_bytes: u64,
    pub(crate) slots: u32,
    pub(crate) cancelled: CancellationToken,
    pub(crate) executor: FrameExecutor,
}

impl Worker {
    /// With an empty base folder.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base_dir = dir.path().join("base");
        std::fs::create_dir(&base_dir).unwrap();
        std::fs::create_dir(dir.path().join("scratch")).unwrap();
        Self {
            dir,
            base_dir,
            memory_bytes: 1 << 30,
            slots: 2,
            cancelled: CancellationToken::new(),
            executor: FrameExecutor::new(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base_dir.join(name)
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn context(&self) -> TaskContext {
        TaskContext {
            slots: self.slots,
            cancelled: self.cancelled.clone(),
            ..TaskContext::alone(
                self.memory_bytes,
                self.base_dir.clone(),
                self.dir.path().join("scratch"),
            )
        }
    }

    pub(crate) async fn run(
        &self,
        body: &Body,
        inputs: Vec<Payload>,
    ) -> Result<Payload, TaskError> {
        self.executor
            .prepare(body)?
            .run(inputs, self.context())
            .await
    }

    /// Runs the tasks of a text one after the other. Gives the results of all but definitions.
    pub(crate) async fn sql(&self, text: &str) -> Result<Vec<Payload>, TaskError> {
        let statements = script::parse(text, "test.sql").map_err(TaskError::permanent)?;
        let tasks = script::to_graph(&statements, "test.sql", script::ClusterSize::default())
            .map_err(TaskError::permanent)?;
        let mut results = Vec::new();
        for task in tasks {
            results.push(self.run(&task.body, Vec::new()).await?);
        }
        Ok(results)
    }

    /// The rows of the last statement.
    pub(crate) async fn rows(&self, text: &str) -> Vec<Value> {
        match self.sql(text).await {
            Ok(results) => rows(results.last().unwrap()),
            Err(error) => panic!("{}", error.diagnostic),
        }
    }

    /// The error of the text.
    pub(crate) async fn error(&self, text: &str) -> Diagnostic {
        self.task_error(text).await.diagnostic
    }

    pub(crate) async fn task_error(&self, text: &str) -> TaskError {
        match self.sql(text).await {
            Ok(_) => panic!("no error: {text}"),
            Err(error) => error,
        }
    }

    /// What is left in the scratch folder.
    pub(crate) fn scratch(&self) -> Vec<String> {
        files(&self.dir.path().join("scratch"))
    }
}

pub(crate) fn rows(table: &Payload) -> Vec<Value> {
    assert_eq!(table.kind, PayloadKind::Table);
    let mut bytes = Vec::new();
    let count = render::json_lines(table, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len() as u64, count);
    rows
}

/// All files below a folder, relative and sorted.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}
