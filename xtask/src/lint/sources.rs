//! Limits and purity of source files, by reading them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::process::output;

const FILE_LINES_MAX: usize = 600;
const TEST_FILE_LINES_MAX: usize = 1_000;

/// Folders and files whose code is a function of (state, event, now).
const PURE_PLACES: &[&str] = &[
    "runtime/core/src/",
    "runtime/diagnostic/src/",
    "runtime/store/src/ledger",
    "runtime/worker-machine/src/",
    "operator/plan/src/",
];

/// What such code never names.
const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "Instant::now",
    "SystemTime",
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "rand::",
];

/// The files that may switch the workspace's ban on `unsafe` off, for one function each.
const UNSAFE_PLACES: &[&str] = &["runtime/exec-python/src/segment.rs"];

/// How that is done.
const UNSAFE_WORD: &str = concat!("allow(unsafe", "_code");

/// A promise broken on main, wherever it stands. Split so that this file does not find itself.
const BROKEN_PROMISES: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[", "ignore"),
    concat!("FIX", "ME"),
];

/// What is wrong with the sources, a line each.
pub(super) fn check(root: &Path) -> Result<Vec<String>, Failure> {
    let mut findings = Vec::new();
    for path in tracked(root)? {
        let name = path.to_string_lossy().into_owned();
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else {
            continue;
        };
        if name.ends_with("Cargo.toml") && name != "Cargo.toml" {
            check_manifest(&name, &text, &mut findings);
        }
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let is_generated = name.contains("/src/generated");
        if is_rust && !is_generated {
            check_rust(&name, &text, &mut findings);
        }
    }
    Ok(findings)
}

fn check_manifest(name: &str, text: &str, findings: &mut Vec<String>) {
    if !text.contains("[lints]\nworkspace = true") {
        findings.push(format!("{name}: `[lints] workspace = true` is missing"));
    }
}

fn check_rust(name: &str, text: &str, findings: &mut Vec<String>) {
    let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
    let limit = if is_test {
        TEST_FILE_LINES_MAX
    } else {
        FILE_LINES_MAX
    };
    let lines = text.lines().count();
    if lines > limit {
        findings.push(format!(
            "{name}: {lines} lines, at most {limit} are allowed"
        ));
    }
    if !text.starts_with("//!") {
        findings.push(format!("{name}: does not open with `//!` and what it owns"));
    }
    if text.contains(UNSAFE_WORD) && !UNSAFE_PLACES.contains(&name) {
        findings.push(format!("{name}: allows `unsafe`"));
    }
    let is_pure = PURE_PLACES.iter().any(|place| name.starts_with(place));
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for word in BROKEN_PROMISES.iter().filter(|word| code.contains(**word)) {
            findings.push(format!("{name}:{}: `{word}` is left", number + 1));
        }
        if is_pure && !is_test {
            for word in IMPURE_WORDS.iter().filter(|word| code.contains(**word)) {
                findings.push(format!("{name}:{}: pure code names `{word}`", number + 1));
            }
        }
    }
}

/// Files that git knows or would add.
fn tracked(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listing = output(Command::new("git").current_dir(root).args(arguments))?;
    Ok(listing.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_long_files_missing_headers_and_impure_words() {
        let mut findings = Vec::new();
        let text = format!(
            "fn f() {{ tokio::spawn(g) }}\n{}",
            "\n".repeat(FILE_LINES_MAX)
        );
        check_rust("runtime/core/src/x.rs", &text, &mut findings);
        assert_eq!(findings.len(), 3, "{findings:?}");
    }

    #[test]
    fn comments_may_name_what_code_may_not() {
        let mut findings = Vec::new();
        check_rust("runtime/core/src/x.rs", "//! Never tokio.\n", &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
    }
}
