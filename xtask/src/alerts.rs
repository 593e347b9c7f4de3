//! The alerts that the operator's chart brings.
//!
//! Owns what is checked of them: that Prometheus understands them, that they fire when they should,
//! that each has a page that says what to do, and that every metric in them is a documented one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::charts::read;
use crate::process::run as run_command;
use crate::{Failure, say};

const RULES: &str = "charts/oxidask-operator/files/alerts.yaml";
const TESTS: &str = "charts/oxidask-operator/tests/alerts.yaml";
const PAGES: &str = "docs/src/runbooks";
/// Where metrics are documented.
const DOCUMENTED: &[&str] = &[
    "docs/src/observing.md",
    "docs/src/memory.md",
    "docs/src/journal.md",
    "docs/src/operator.md",
];
/// What a page of an alert answers.
const HEADINGS: &[&str] = &["## What it means", "## What to look at", "## What to do"];

/// Checks rules, their tests and their pages.
pub(crate) fn check(root: &Path, promtool: &Path) -> Result<(), Failure> {
    for (verb, file) in [("check", RULES), ("test", TESTS)] {
        let mut command = Command::new(promtool);
        run_command(command.args([verb, "rules"]).arg(root.join(file)))?;
    }
    let problems = problems(root)?;
    if problems.is_empty() {
        say!(
            "alerts: {} with a page each",
            names(&read(&root.join(RULES))?).len()
        );
        return Ok(());
    }
    Err(problems.join("\n").into())
}

fn problems(root: &Path) -> Result<Vec<String>, Failure> {
    let rules = read(&root.join(RULES))?;
    let names = names(&rules);
    let mut problems = Vec::new();
    let summary = read(&root.join("docs/src/SUMMARY.md"))?;
    for name in &names {
        if !rules.contains(&format!("/{PAGES}/{name}.md")) {
            problems.push(format!("{name}: no runbook_url leads to {PAGES}/{name}.md"));
        }
        if !summary.contains(&format!("(runbooks/{name}.md)")) {
            problems.push(format!("{name}: its page is not in SUMMARY.md"));
        }
        let path = root.join(PAGES).join(format!("{name}.md"));
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        for heading in HEADINGS {
            if !page.lines().any(|line| line == *heading) {
                problems.push(format!("{}: no `{heading}`", path.display()));
            }
        }
    }
    for entry in std::fs::read_dir(root.join(PAGES))? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        let name = file.trim_end_matches(".md");
        if name != "index" && !names.contains(name) {
            problems.push(format!("{PAGES}/{file} is about no alert"));
        }
    }
    let mut documented = String::new();
    for path in DOCUMENTED {
        documented.push_str(&read(&root.join(path))?);
    }
    for metric in metrics(&rules) {
        if !is_documented(&documented, &metric) {
            problems.push(format!("no page documents `{metric}`"));
        }
    }
    Ok(problems)
}

fn names(rules: &str) -> BTreeSet<String> {
    let lines = rules.lines().map(str::trim_start);
    lines
        .filter_map(|line| line.strip_prefix("- alert: "))
        .map(str::to_owned)
        .collect()
}

/// Our own metrics in the rules.
fn metrics(rules: &str) -> BTreeSet<String> {
    let words = rules.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| {
            [
                "oxidask_operator_",
                "oxidask_scheduler_",
                "oxidask_worker_",
                "dask_scheduler_",
            ]
            .iter()
            .any(|prefix| word.starts_with(prefix))
        })
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

/// By its whole name, or by the rest of it below a heading that has the prefix.
fn is_documented(pages: &str, metric: &str) -> bool {
    let rest = metric.split('_').skip(2).collect::<Vec<_>>().join("_");
    pages.contains(&format!("`{metric}`")) || pages.contains(&format!("| `{rest}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_in_expressions() {
        let rules = "expr: rate(oxidask_scheduler_lag_seconds_bucket{a=\"b\"}[5m]) > up{job=\"x\"}";
        assert_eq!(
            metrics(rules).into_iter().collect::<Vec<_>>(),
            ["oxidask_scheduler_lag_seconds"]
        );
    }

    #[test]
    fn a_metric_is_documented_by_its_name_or_its_end() {
        assert!(is_documented("| `oxidask_worker_a` |", "oxidask_worker_a"));
        assert!(is_documented(
            "| `journal_refusing` | x",
            "oxidask_scheduler_journal_refusing"
        ));
        assert!(!is_documented(
            "| `journal` |",
            "oxidask_scheduler_journal_refusing"
        ));
    }

    #[test]
    fn alerts_pages_and_metrics_belong_together() {
        let problems = problems(&crate::root().unwrap()).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }
}
