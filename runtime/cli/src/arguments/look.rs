//! The arguments of the commands that look at a cluster.

#![allow(
    clippy::doc_markdown,
    reason = "these comments are help texts for a terminal"
)]

use std::path::PathBuf;

use clap::Args;

use super::{OutputForm, OverrideArguments};

/// Where a running cluster is, and how to be let in.
#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    /// Address of the scheduler, `oxidask://host:port` [env: DASK_SCHEDULER_ADDRESS too]
    #[arg(
        long,
        value_name = "URL",
        env = "OXIDASK_SCHEDULER",
        hide_env_values = true
    )]
    pub(crate) scheduler: Option<String>,
    /// Folder with ca.crt, tls.crt and tls.key
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/oxidask/tls",
        env = "OXIDASK_TLS_DIR",
        hide_env_values = true
    )]
    pub(crate) tls_dir: PathBuf,
}

impl ClusterArguments {
    /// The scheduler's address; `Arguments::complete` has filled it in.
    pub(crate) fn address(&self) -> &str {
        self.scheduler.as_deref().unwrap_or_default()
    }
}

/// `oxidask explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// Manifest with a DaskJob whose work is SQL, or the key of a task; what is a file is a manifest
    #[arg(value_name = "FILE|KEY")]
    pub(crate) target: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Graph in which the key is looked up [default: all]
    #[arg(
        long,
        value_name = "NAME",
        env = "OXIDASK_GRAPH",
        hide_env_values = true
    )]
    pub(crate) graph: Option<String>,
    /// Form of what is said of a key [default: table on a terminal, else json]
    #[arg(
        short,
        long,
        value_enum,
        env = "OXIDASK_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Option<OutputForm>,
    #[command(flatten)]
    pub(crate) overrides: OverrideArguments,
}

impl ExplainArguments {
    /// Whether a task of a running cluster is meant. The name of a manifest that is not there is a
    /// mistake, not a key.
    pub(crate) fn is_key(&self) -> bool {
        let is_manifest = self
            .target
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        !self.target.exists() && (self.graph.is_some() || !is_manifest)
    }
}

/// `oxidask status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Form of the output [default: table on a terminal, else json]
    #[arg(
        short,
        long,
        value_enum,
        env = "OXIDASK_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Option<OutputForm>,
}

/// `oxidask top`.
#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Form of the output; json is an object every 2 seconds [default: table]
    #[arg(
        short,
        long,
        value_enum,
        env = "OXIDASK_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Option<OutputForm>,
}

/// `oxidask logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Only lines of this graph
    #[arg(
        long,
        value_name = "NAME",
        env = "OXIDASK_GRAPH",
        hide_env_values = true
    )]
    pub(crate) graph: Option<String>,
    /// Only lines of the task with this key
    #[arg(long, value_name = "KEY", env = "OXIDASK_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Only lines of this worker; `scheduler` is the scheduler itself
    #[arg(
        long,
        value_name = "NAME",
        env = "OXIDASK_WORKER",
        hide_env_values = true
    )]
    pub(crate) worker: Option<String>,
    /// Lines at most, the newest; each worker keeps a few hundred
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          default_value_t = 1_000, env = "OXIDASK_LINES", hide_env_values = true)]
    pub(crate) lines: u32,
    /// Go on with new lines as they come, until Ctrl-C
    #[arg(short, long, env = "OXIDASK_FOLLOW", hide_env_values = true)]
    pub(crate) follow: bool,
    /// Form of the output [default: table on a terminal, else json]
    #[arg(
        short,
        long,
        value_enum,
        env = "OXIDASK_OUTPUT",
        hide_env_values = true
    )]
    pub(crate) output: Option<OutputForm>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::arguments::{Arguments, Command};

    #[test]
    fn what_is_no_file_is_a_key_unless_it_looks_like_a_manifest() {
        let is_key = |words: &[&str]| {
            let words = ["oxidask", "explain"].iter().chain(words);
            match Arguments::try_parse_from(words).unwrap().command {
                Command::Explain(explain) => explain.is_key(),
                _ => false,
            }
        };
        assert!(is_key(&["sum-3"]));
        assert!(!is_key(&["missing.yaml"]));
        assert!(is_key(&["a.yaml", "--graph", "g"]));
        assert!(!is_key(&["Cargo.toml"]), "the tests run beside it");
    }

    #[test]
    fn shares_of_memory_are_checked() {
        let parse = |more: &[&str]| {
            let given = ["oxidask", "worker", "--scheduler", "oxidask://localhost:1"];
            let given = given.iter().chain(more);
            Arguments::try_parse_from(given).and_then(Arguments::complete)
        };
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--memory-spill", "0", "--memory-pause", "0.5"]).is_ok());
        for wrong in ["1.5", "-1", "NaN", "much"] {
            assert!(parse(&["--memory-pause", wrong]).is_err(), "{wrong}");
        }
        let error = parse(&["--memory-pause", "0.99"]).unwrap_err().to_string();
        assert!(
            error.contains("`terminate` must not be below `pause`"),
            "{error}"
        );
    }
}
