//! From a manifest to a graph that can be submitted.
//!
//! Owns the checks that come before anything is started: the manifest, the graph or the SQL text,
//! and whether the cluster offers what the tasks ask for.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use oxidask_client::graph_file::{GraphFileError, GraphPlan, GraphPlanBuilder};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec_frame::script::{self, ClusterSize, GraphTask};
use oxidask_operator_api::{
    ClusterPlan, GraphSource, GroupPlan, JobPlan, Manifest, ScriptWork, Work,
};

use crate::arguments::OverrideArguments;
use crate::error::CliError;
use crate::output::Label;
use crate::progress::counted;
use crate::script as program;
use crate::terminal::Terminal;

/// Bytes read at once from a graph file.
const GRAPH_BUFFER_BYTES: usize = 256 * 1024;
/// Worker processes on one machine.
const LOCAL_WORKERS_MAX: u64 = 256;
/// Names in the line about ignored fields.
const IGNORED_NAMED: usize = 6;

/// What a job does, checked.
#[derive(Debug)]
pub(crate) struct PlannedWork {
    /// The job's name.
    pub(crate) name: String,
    /// The graph, or the statements of a SQL text that need no other before them.
    pub(crate) plan: GraphPlan,
    /// The SQL text.
    pub(crate) sql: Option<SqlWork>,
}

impl PlannedWork {
    /// Number of tasks that are known before anything runs.
    pub(crate) fn tasks(&self) -> usize {
        let statements = self.sql.as_ref().map(|sql| sql.tasks.len());
        statements.unwrap_or(self.plan.len())
    }

    /// A task's error, with the task's key unless it says where it happened itself.
    pub(crate) fn named(&self, task: u32, diagnostic: &Diagnostic) -> Diagnostic {
        let mut named = diagnostic.clone();
        if self.sql.is_none() && (task as usize) < self.plan.len() {
            let key = self.plan.key(task).chars().take(KEY_SHOWN_MAX);
            let key: String = key.map(|c| if c.is_control() { '?' } else { c }).collect();
            if !named.message.contains(&format!("task `{key}`")) {
                named.message = format!("task `{key}`: {}", named.message);
            }
        }
        named
    }

    /// How the output of a graph at a position is printed.
    pub(crate) fn label(&self, position: usize) -> Label {
        let task = self.plan.outputs().get(position);
        task.map_or(Label::Silent, |task| {
            Label::Key(self.plan.key(*task).to_owned())
        })
    }
}

/// The statements of a SQL text as tasks.
#[derive(Debug, Clone)]
pub(crate) struct SqlWork {
    origin: String,
    statements: Vec<script::Statement>,
    /// What the tasks are planned for.
    pub(crate) cluster: ClusterSize,
    /// In order of the statements.
    pub(crate) tasks: Vec<GraphTask>,
}

impl SqlWork {
    fn parse(text: &str, origin: &str, cluster: ClusterSize) -> Result<Self, Diagnostic> {
        let statements = script::parse(text, origin)?;
        Ok(Self {
            tasks: script::to_graph(&statements, origin, cluster)?,
            origin: origin.to_owned(),
            statements,
            cluster,
        })
    }

    /// The same for a cluster of another size.
    pub(crate) fn sized(&self, cluster: ClusterSize) -> Result<Cow<'_, Self>, Diagnostic> {
        if cluster == self.cluster {
            return Ok(Cow::Borrowed(self));
        }
        Ok(Cow::Owned(Self {
            origin: self.origin.clone(),
            statements: self.statements.clone(),
            tasks: script::to_graph(&self.statements, &self.origin, cluster)?,
            cluster,
        }))
    }

    /// The graph of some statements; what they wait for is done.
    pub(crate) fn wave(&self, statements: &[usize]) -> Result<GraphPlan, Diagnostic> {
        let mut builder = GraphPlanBuilder::new(&self.origin);
        let tasks = statements
            .iter()
            .filter_map(|number| self.tasks.get(*number));
        for task in tasks {
            let added = builder.task(&task.key, &task.body, &[]);
            builder.output(added.map_err(|error| Diagnostic::from_error(&error))?);
        }
        let plan = builder.finish();
        plan.map_err(|error| Diagnostic::from_error(&error))
    }

    /// The statements that need no other before them.
    pub(crate) fn first_wave(&self) -> Vec<usize> {
        let first = self.tasks.iter().enumerate();
        let first = first.filter(|(_, task)| task.inputs.is_empty());
        first.map(|(number, _)| number).collect()
    }

    /// How the result of a statement is printed.
    pub(crate) fn label(&self, statement: usize) -> Label {
        match self.tasks.get(statement) {
            Some(task) if task.is_table => Label::Rows,
            Some(task) if task.key.starts_with("copy-") => {
                Label::Written(format!("statement {}", task.statement))
            }
            _ => Label::Silent,
        }
    }
}

/// The size of a cluster as a manifest gives it.
pub(crate) fn size_of(cluster: &ClusterPlan) -> ClusterSize {
    let groups = || cluster.groups.iter().filter(|group| group.replicas > 0);
    let slots = |group: &GroupPlan| u64::from(group.replicas) * u64::from(group.slots);
    let bounded = |number: u64| u32::try_from(number.max(1)).unwrap_or(u32::MAX);
    let least_memory = groups().filter_map(|group| group.memory_bytes).min();
    ClusterSize {
        workers: bounded(cluster.workers()),
        slots: bounded(groups().map(slots).sum()),
        memory_bytes: least_memory.unwrap_or(u64::MAX),
    }
}

/// Characters of a key in a message.
const KEY_SHOWN_MAX: usize = 100;

/// Reads the manifest of a job; a Python program without one is a job as well.
pub(crate) fn load_job(file: &Path) -> Result<JobPlan, CliError> {
    if program::is_program(file) {
        return program::job(file);
    }
    let usage = |error| CliError::usage(Diagnostic::from_error(&error));
    Manifest::load(file)
        .and_then(Manifest::into_job)
        .map_err(usage)
}

/// What is to be run.
pub(crate) enum Planned {
    /// Graphs that this process submits.
    Graphs(Box<PlannedWork>),
    /// A program, which submits its graphs itself.
    Script(ScriptWork),
}

/// Reads, checks and orders the work.
///
/// `cluster` is what a SQL text is planned for, unless more is known later.
pub(crate) fn plan(name: &str, work: Work, cluster: ClusterSize) -> Result<Planned, CliError> {
    let (plan, sql) = match work {
        Work::Graph { tasks, outputs } => (graph(tasks, outputs.as_deref())?, None),
        Work::Sql { text, origin } => {
            let sql = SqlWork::parse(&text, &origin, cluster).map_err(CliError::usage)?;
            let plan = sql.wave(&sql.first_wave()).map_err(CliError::usage)?;
            (plan, Some(sql))
        }
        Work::Script(script) => return Ok(Planned::Script(script)),
        Work::Job => {
            return Err(unavailable(
                "work of kind `job` is a pod of your own, which only Kubernetes can run",
                "run the manifest on a cluster with `kubectl apply`, or say the work as `sql`, \
                 `graph` or `script`",
            ));
        }
    };
    Ok(Planned::Graphs(Box::new(PlannedWork {
        name: name.to_owned(),
        plan,
        sql,
    })))
}

/// Arguments on the command line are for Python programs.
pub(crate) fn refuse_arguments(arguments: &[String]) -> Result<(), CliError> {
    if arguments.is_empty() {
        return Ok(());
    }
    Err(unavailable(
        "words after `--` are the arguments of a Python program, but the work is of another kind",
        "leave them out",
    ))
}

fn graph(tasks: GraphSource, outputs: Option<&[String]>) -> Result<GraphPlan, CliError> {
    let plan = match tasks {
        GraphSource::Inline {
            tasks,
            places,
            origin,
        } => GraphPlan::from_placed_values(&tasks, &places, &origin, outputs),
        GraphSource::Text { text, origin } => GraphPlan::parse(&text, &origin, outputs),
        GraphSource::File(path) => {
            let file = File::open(&path).map_err(|error| {
                let message = format!("cannot read `{}`", path.display());
                let diagnostic = Diagnostic::new(Code::ManifestUnreadable, message);
                CliError::usage(diagnostic.with_cause(error.to_string()))
            })?;
            let reader = BufReader::with_capacity(GRAPH_BUFFER_BYTES, file);
            GraphPlan::read(reader, &path.display().to_string(), outputs)
        }
    };
    plan.map_err(|error| wrong_graph(&error))
}

fn wrong_graph(error: &GraphFileError) -> CliError {
    CliError::usage(Diagnostic::from_error(error))
}

fn unavailable(message: &str, hint: &str) -> CliError {
    CliError::usage(Diagnostic::new(Code::WorkUnavailable, message).with_hint(hint))
}

/// Changes the cluster as the command line asks.
pub(crate) fn apply_overrides(cluster: &mut ClusterPlan, overrides: &OverrideArguments) {
    for group in &mut cluster.groups {
        group.replicas = overrides.workers.unwrap_or(group.replicas);
        group.slots = overrides.threads.unwrap_or(group.slots);
        group.memory_bytes = overrides.memory.or(group.memory_bytes);
    }
}

/// Refuses a cluster that no single machine is meant for.
pub(crate) fn check_size(cluster: &ClusterPlan) -> Result<(), CliError> {
    let workers = cluster.workers();
    if workers <= LOCAL_WORKERS_MAX {
        return Ok(());
    }
    let message = format!(
        "the cluster has {workers} workers, but a local run starts at most {LOCAL_WORKERS_MAX}"
    );
    let hint = "each worker is a process: use `--workers 4`, and `--threads` for more at a time";
    let diagnostic = Diagnostic::new(Code::LimitPassed, message).with_hint(hint);
    Err(CliError::usage(diagnostic))
}

/// Refuses at once what no worker of a local cluster will ever offer.
pub(crate) fn check_offers(plan: &GraphPlan, cluster: &ClusterPlan) -> Result<(), CliError> {
    let groups: Vec<&GroupPlan> = cluster
        .groups
        .iter()
        .filter(|group| group.replicas > 0)
        .collect();
    for (number, requirement) in plan.requirements().iter().enumerate() {
        let Some(task) = plan.first_with_requirement(number) else {
            continue;
        };
        let named = |group: &&&GroupPlan| {
            requirement.workers.is_empty()
                || requirement
                    .workers
                    .iter()
                    .any(|name| is_of_group(name, group))
        };
        let offers = |group: &GroupPlan, (name, amount): &(String, u64)| {
            group
                .resources
                .iter()
                .any(|(offered, most)| offered == name && most >= amount)
        };
        let allowed: Vec<&&GroupPlan> = groups.iter().filter(named).collect();
        let is_offered = |group: &&&GroupPlan| {
            requirement
                .resources
                .iter()
                .all(|asked| offers(group, asked))
        };
        if allowed.iter().any(is_offered) {
            continue;
        }
        let missing = requirement
            .resources
            .iter()
            .find(|asked| !allowed.iter().any(|group| offers(group, asked)))
            .or_else(|| requirement.resources.first());
        let key = plan.key(task);
        let message = match (allowed.is_empty(), missing) {
            (true, _) if groups.is_empty() => {
                format!("the cluster has no workers to run task `{key}`")
            }
            (true, _) => format!(
                "task `{key}` is limited to {}, and no worker or group has such a name",
                quoted(&requirement.workers)
            ),
            (false, Some((name, amount))) => format!(
                "task `{key}` asks for {amount} of the resource `{name}`, which no worker that \
                 may run it offers"
            ),
            (false, None) => format!("no worker can run task `{key}`"),
        };
        let mut diagnostic = Diagnostic::new(Code::Unplaceable, message);
        if groups.is_empty() {
            diagnostic = diagnostic.with_hint("set `replicas` to 1 or more, or use `--workers 1`");
        }
        return Err(CliError::failed(diagnostic));
    }
    Ok(())
}

/// Whether a name is that of a group or of one of its workers.
fn is_of_group(name: &str, group: &GroupPlan) -> bool {
    name == group.name
        || name
            .strip_prefix(group.name.as_str())
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|index| {
                let number = index.parse::<u32>();
                number.is_ok_and(|n| n < group.replicas && n.to_string() == index)
            })
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names
        .iter()
        .take(IGNORED_NAMED)
        .map(|name| format!("`{name}`"))
        .collect();
    names.join(" or ")
}

/// The line about fields that only pods have.
pub(crate) fn say_what_is_ignored(cluster: &ClusterPlan, terminal: &Terminal) {
    if let Some(line) = ignored_line(&cluster.ignored) {
        terminal.notice(&line);
    }
}

/// The lines that a person should read before the run.
pub(crate) fn say_what_is_left_out(plan: &GraphPlan, terminal: &Terminal) {
    match plan.skipped() {
        0 => {}
        1 => terminal.notice("1 task is not run: no output needs it"),
        many => {
            let tasks = counted(many as u64, "task");
            terminal.notice(&format!("{tasks} are not run: no output needs them"));
        }
    }
}

/// What only pods have, in one line.
fn ignored_line(ignored: &[String]) -> Option<String> {
    if ignored.is_empty() {
        return None;
    }
    let mut names = ignored
        .iter()
        .take(IGNORED_NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if ignored.len() > IGNORED_NAMED {
        let _ = write!(names, " and {} more", ignored.len() - IGNORED_NAMED);
    }
    Some(format!("a local run has no pods and ignores {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, replicas: u32, resources: &[(&str, u64)]) -> GroupPlan {
        GroupPlan {
            name: name.to_owned(),
            replicas,
            slots: 1,
            memory_bytes: None,
            resources: resources
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect(),
            environment: Vec::new(),
        }
    }

    fn check(line: &str) -> Result<(), String> {
        let cluster = ClusterPlan {
            namespace: "local".to_owned(),
            name: "test".to_owned(),
            groups: vec![
                group("default", 2, &[]),
                group("fast", 1, &[("gpu", 2)]),
                group("none", 0, &[("tpu", 1)]),
            ],
            ignored: Vec::new(),
        };
        let plan = GraphPlan::parse(line, "test", None).unwrap();
        check_offers(&plan, &cluster)
            .map_err(|error| error.diagnostic.map(|d| d.message).unwrap_or_default())
    }

    #[test]
    fn only_what_somebody_offers_passes() {
        for options in [
            "",
            r#", "resources": {"gpu": 2}"#,
            r#", "workers": ["fast-0"], "resources": {"gpu": 1}"#,
            r#", "workers": ["elsewhere", "default"]"#,
            r#", "workers": ["default-1"]"#,
        ] {
            check(&format!(r#"{{"key": "a", "op": "noop"{options}}}"#)).unwrap();
        }
        for (options, word) in [
            (r#", "resources": {"gpu": 3}"#, "`gpu`"),
            (r#", "resources": {"tpu": 1}"#, "`tpu`"),
            (
                r#", "workers": ["default"], "resources": {"gpu": 1}"#,
                "`gpu`",
            ),
            (r#", "workers": ["default-2"]"#, "`default-2`"),
            (r#", "workers": ["default-01"]"#, "`default-01`"),
            (r#", "workers": ["none"]"#, "`none`"),
        ] {
            let line = format!(r#"{{"key": "a", "op": "noop"{options}}}"#);
            let message = check(&line).unwrap_err();
            assert!(
                message.contains(word) && message.contains("task `a`"),
                "{message}"
            );
        }
    }

    #[test]
    fn ignored_fields_are_one_line() {
        assert_eq!(ignored_line(&[]), None);
        let names: Vec<String> = (0..8).map(|number| format!("f{number}")).collect();
        let line = ignored_line(&names).unwrap();
        assert!(line.ends_with("f4, f5 and 2 more"), "{line}");
    }
}
