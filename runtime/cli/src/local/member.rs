//! One process of a local cluster: what it is told when it starts.

use std::path::Path;
use std::process::Stdio;

use oxidask_identity::Role;
use oxidask_operator_api::GroupPlan;
use tokio::process::Command;

use super::cluster::Listening;
use super::folder::RunFolder;
use super::process::LastLines;
use super::restarts::Restarts;
use super::tokens;
use crate::arguments::{LogFormat, LoggingArguments};

/// Level of the log lines of processes unless the user asks for another; what is worth a line
/// below that, the parent says itself.
const LOG_LEVEL: &str = "error";
/// Seconds for which a worker keeps what it has when the scheduler is gone. Whether another is
/// started is up to whoever started the worker, and the worker ends with that.
const RECONNECT_SECONDS: u32 = 600;

/// A process and how to start it again.
#[derive(Debug)]
pub(super) struct Member {
    /// `scheduler`, or a worker's name.
    pub(super) name: String,
    pub(super) is_scheduler: bool,
    pub(super) arguments: Vec<String>,
    environment: Vec<(String, String)>,
    pub(super) lines: LastLines,
    pub(super) restarts: Restarts,
    /// Of the process that runs, or ran last.
    pub(super) process_id: u32,
}

/// What all processes of a cluster are told.
pub(super) struct Common<'a> {
    pub(super) folder: &'a RunFolder,
    pub(super) address: &'a str,
    pub(super) logging: &'a LoggingArguments,
    pub(super) base_dir: &'a Path,
    /// Memory of a worker for which the manifest says nothing.
    pub(super) share_bytes: u64,
}

impl Member {
    pub(super) fn scheduler(common: &Common<'_>, listening: Listening) -> Self {
        let mut arguments = common.arguments("scheduler", Role::Scheduler);
        arguments.push("--listen-on-stdin".to_owned());
        let journal = common.folder.journal();
        arguments.push(format!("--journal-dir={}", journal.display()));
        match listening {
            Listening::Ephemeral => arguments.push("--no-http".to_owned()),
            Listening::WellKnown => {
                arguments.push("--http-port-or-free".to_owned());
                let folder = common.folder.path();
                for (flag, file) in [
                    ("http-token-file", tokens::reader_file(folder)),
                    ("http-operator-token-file", tokens::operator_file(folder)),
                ] {
                    arguments.push(format!("--{flag}={}", file.display()));
                }
            }
        }
        Self::new("scheduler".to_owned(), true, arguments, Vec::new())
    }

    pub(super) fn worker(common: &Common<'_>, group: &GroupPlan, index: u32) -> Self {
        let name = format!("{}-{index}", group.name);
        let mut arguments = common.arguments("worker", Role::Worker);
        let memory_bytes = group.memory_bytes.unwrap_or(common.share_bytes);
        let resources: Vec<String> = group
            .resources
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        let mut add = |flag: &str, value: String| arguments.push(format!("--{flag}={value}"));
        add("port", "0".to_owned());
        add("scheduler", common.address.to_owned());
        add("name", name.clone());
        add("group", group.name.clone());
        add("threads", group.slots.to_string());
        add("memory", memory_bytes.to_string());
        add("base-dir", common.base_dir.display().to_string());
        add("reconnect-seconds", RECONNECT_SECONDS.to_string());
        if !resources.is_empty() {
            add("resources", resources.join(","));
        }
        arguments.push("--no-http".to_owned());
        Self::new(name, false, arguments, group.environment.clone())
    }

    fn new(
        name: String,
        is_scheduler: bool,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
    ) -> Self {
        Self {
            name,
            is_scheduler,
            arguments,
            environment,
            lines: LastLines::default(),
            restarts: Restarts::default(),
            process_id: 0,
        }
    }

    /// As a person calls it.
    pub(super) fn title(&self) -> String {
        if self.is_scheduler {
            "the scheduler".to_owned()
        } else {
            format!("worker `{}`", self.name)
        }
    }

    /// The command that starts it, with nothing of our own settings.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Settings for this command are not meant for the services.
        for (name, _) in std::env::vars_os() {
            let is_ours = name.to_str().is_some_and(|name| {
                name.starts_with("OXIDASK_")
                    || name == "DASK_SCHEDULER_ADDRESS"
                    || name == "DASK_WORKER_NAME"
            });
            if is_ours {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

impl Common<'_> {
    fn arguments(&self, service: &str, role: Role) -> Vec<String> {
        let level = self.logging.log_level.as_deref().unwrap_or(LOG_LEVEL);
        let format = match self.logging.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![
            service.to_owned(),
            "--bind=127.0.0.1".to_owned(),
            format!("--tls-dir={}", self.folder.certificates(role).display()),
            format!("--parent-pid={}", std::process::id()),
            format!("--log-level={level}"),
            format!("--log-format={format}"),
        ]
    }
}
