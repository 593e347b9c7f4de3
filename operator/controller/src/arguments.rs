//! The command line: flags, their environment variables and defaults.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::link::{AddressTemplate, TEMPLATE_DEFAULT};

/// Reconciliations beside each other, unless a flag says otherwise.
const CONCURRENCY_DEFAULT: u16 = 32;
const CONCURRENCY_MAX: i64 = 1024;

/// With what the next replica needs to notice, a replica that is killed is replaced within 15 s.
const LEASE_SECONDS_DEFAULT: u16 = 13;
/// Less would not outlast a short pause of the API server.
const LEASE_SECONDS_MIN: i64 = 5;
const LEASE_SECONDS_MAX: i64 = 60;

/// Runs Dask clusters and jobs on Kubernetes.
#[derive(Debug, Parser)]
#[command(
    name = "oxidask-operator",
    version,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Arguments {
    /// What to do; `run` if nothing is said.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch and reconcile until told to stop (the default)
    Run(Box<RunArguments>),
    /// Print the definitions of the custom resources as YAML
    Crds,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArguments {
    /// Namespace to watch; repeat it or separate with commas [default: all namespaces]
    #[arg(
        long = "namespace",
        env = "OXIDASK_OPERATOR_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    namespaces: Vec<String>,
    /// Image of schedulers, workers and job runners
    #[arg(
        long,
        env = "OXIDASK_RUNTIME_IMAGE",
        value_name = "IMAGE",
        default_value = concat!("docker.io/oxidask/oxidask-runtime:", env!("CARGO_PKG_VERSION"))
    )]
    pub(crate) runtime_image: String,
    /// When the kubelet pulls that image [default: the cluster's own rule]
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_IMAGE_PULL_POLICY",
        value_enum,
        value_name = "POLICY"
    )]
    pub(crate) image_pull_policy: Option<PullPolicy>,
    /// Give each cluster a network policy: only its own pods, the operator and pods with the label
    /// kubernetes.dask.org/client-of reach it
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_NETWORK_POLICIES",
        value_name = "BOOL",
        default_value_t = false,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub(crate) network_policies: bool,
    /// The only namespace that those policies let look at metrics [default: every one]
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_METRICS_NAMESPACE",
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub(crate) metrics_namespace: Option<String>,
    /// Address of the health checks and metrics
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_HTTP_BIND",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub(crate) http_bind: SocketAddr,
    /// Form of the log lines
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,kube=debug`
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = log_level
    )]
    pub(crate) log_level: String,
    /// Objects of a kind that are reconciled beside each other
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_CONCURRENCY",
        value_name = "N",
        default_value_t = CONCURRENCY_DEFAULT,
        value_parser = clap::value_parser!(u16).range(1..=CONCURRENCY_MAX)
    )]
    pub(crate) concurrency: u16,
    /// Write only while holding a lease, so that further replicas may stand by
    #[arg(
        long,
        visible_alias = "leader-election",
        env = "OXIDASK_OPERATOR_LEADER_ELECT",
        value_name = "BOOL",
        default_value_t = false,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub(crate) leader_elect: bool,
    /// Name of that lease
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_LEASE_NAME",
        value_name = "NAME",
        default_value = "oxidask-operator"
    )]
    pub(crate) lease_name: String,
    /// Namespace of that lease [default: the operator's own]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,
    /// Seconds after its last sign of life after which a replica is replaced
    #[arg(
        long,
        env = "OXIDASK_OPERATOR_LEASE_SECONDS",
        value_name = "SECONDS",
        default_value_t = LEASE_SECONDS_DEFAULT,
        value_parser = clap::value_parser!(u16).range(LEASE_SECONDS_MIN..=LEASE_SECONDS_MAX)
    )]
    pub(crate) lease_seconds: u16,
    /// Where schedulers are found; for tests and port-forwards outside of the cluster's network
    #[arg(
        long,
        env = "OXIDASK_SCHEDULER_ADDRESS_TEMPLATE",
        value_name = "HOST:PORT",
        default_value = TEMPLATE_DEFAULT
    )]
    pub(crate) scheduler_address_template: AddressTemplate,
}

impl RunArguments {
    /// The namespaces to watch, each once; empty for all. A chart passes an empty text for "all".
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .namespaces
            .iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The three policies, spelled as Kubernetes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

fn log_level(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(arguments: &[&str]) -> RunArguments {
        let parsed = Arguments::try_parse_from(arguments).unwrap();
        match parsed.command {
            Some(Command::Run(run)) => *run,
            Some(Command::Crds) => panic!("not `run`"),
            None => parsed.run,
        }
    }

    #[test]
    fn flags_work_with_and_without_the_command() {
        Arguments::command().debug_assert();
        for command in [&["oxidask-operator"][..], &["oxidask-operator", "run"]] {
            let flags = [
                "--namespace",
                "b,a",
                "--namespace",
                "a",
                "--image-pull-policy",
                "Never",
            ];
            let run = run(&[command, &flags].concat());
            assert_eq!(run.namespaces(), ["a", "b"]);
            assert_eq!(run.image_pull_policy, Some(PullPolicy::Never));
            assert_eq!(run.concurrency, CONCURRENCY_DEFAULT);
            assert!(!run.leader_elect);
            assert!(
                run.runtime_image
                    .starts_with("docker.io/oxidask/oxidask-runtime:")
            );
        }
    }

    #[test]
    fn the_lease_is_switched_with_and_without_a_value() {
        for (flag, is_on) in [
            ("--leader-elect", true),
            ("--leader-elect=true", true),
            ("--leader-elect=false", false),
            ("--leader-election", true),
        ] {
            assert_eq!(run(&["oxidask-operator", flag]).leader_elect, is_on);
        }
    }

    #[test]
    fn an_empty_namespace_means_all() {
        assert!(
            run(&["oxidask-operator", "--namespace", ""])
                .namespaces()
                .is_empty()
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for flags in [
            ["--concurrency", "0"],
            ["--log-level", "loud=very"],
            ["--http-bind", "8080"],
            ["--lease-seconds", "1"],
            ["--scheduler-address-template", "{cluster}"],
        ] {
            assert!(
                Arguments::try_parse_from([&["oxidask-operator"], &flags[..]].concat()).is_err()
            );
        }
    }
}
