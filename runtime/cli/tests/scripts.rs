//! Python programs as work. What stands for Python here says that it has all packages and is a plain
//! `python3` otherwise, so that these tests need no package: the programs look at what they are given.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use support::Workspace;

const TIDY: Duration = Duration::from_secs(8);

/// Prints what it was given.
const LOOK: &str = "\
import json, os, sys
import beside
scheduler, dask = os.environ['OXIDASK_SCHEDULER'], os.environ['DASK_SCHEDULER_ADDRESS']
print(json.dumps({
    'arguments': sys.argv[1:], 'folder': os.getcwd(), 'mode': os.environ.get('MODE'),
    'scheduler': scheduler == dask and scheduler.startswith('oxidask://127.0.0.1:'),
    'tls': sorted(os.listdir(os.environ['OXIDASK_TLS_DIR'])), 'beside': beside.A,
}))
print('to standard error', file=sys.stderr)
";

/// A Python that seems to have all packages.
fn python(workspace: &Workspace) -> PathBuf {
    let program = workspace.write(
        "python",
        "#!/bin/sh\nif [ \"$1\" = -c ]; then\n  echo '{\"version\": [3, 12, 0], \"missing\": []}'\n\
         else\n  exec python3 \"$@\"\nfi\n",
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn indented(program: &str) -> String {
    let lines = program.lines().map(|line| format!("      {line}\n"));
    lines.collect()
}

/// A job whose program stands in the manifest.
fn inline(workspace: &Workspace, program: &str, fields: &str) -> PathBuf {
    let work = format!("script:\n    source: |\n{}    {fields}", indented(program));
    workspace.job(1, &work)
}

fn run(workspace: &Workspace, arguments: &[&str]) -> support::Finished {
    let python = python(workspace);
    let mut command = workspace.command(&["run"]);
    command.args(arguments).env("OXIDASK_PYTHON", python);
    support::Running::spawn(command).finish()
}

fn looked(workspace: &Workspace, arguments: &[&str], expected: &[&str], mode: Option<&str>) {
    workspace.write("beside.py", "A = 5\n");
    let run = run(workspace, arguments).expect(0);
    let found = &run.json()[0];
    assert_eq!(found["arguments"], serde_json::json!(expected));
    let folder = fs::canonicalize(workspace.path()).unwrap();
    assert_eq!(found["folder"], folder.to_str().unwrap());
    assert_eq!(found["scheduler"], true);
    assert_eq!(
        found["tls"],
        serde_json::json!(["ca.crt", "tls.crt", "tls.key"])
    );
    assert_eq!(found["beside"], 5);
    assert_eq!(found["mode"], serde_json::json!(mode));
    run.assert_stderr("to standard error");
    run.assert_stderr("done: the program in ");
    workspace.assert_clean(TIDY);
}

#[test]
fn a_program_in_a_manifest_finds_the_cluster() {
    let workspace = Workspace::new();
    let fields = "args: [--rows, '10']\n    env: [{name: MODE, value: fast}]";
    inline(&workspace, LOOK, fields);
    looked(&workspace, &["job.yaml"], &["--rows", "10"], Some("fast"));
    looked(
        &workspace,
        &["job.yaml", "--", "a b", "-x"],
        &["a b", "-x"],
        Some("fast"),
    );
}

#[test]
fn a_program_in_a_file_finds_the_cluster() {
    let workspace = Workspace::new();
    workspace.write("look.py", LOOK);
    workspace.job(1, "script: {file: look.py, args: [one]}");
    looked(&workspace, &["job.yaml"], &["one"], None);
    let short = [
        "look.py",
        "--workers",
        "1",
        "--threads",
        "1",
        "--",
        "--rows",
        "3",
    ];
    looked(&workspace, &short, &["--rows", "3"], None);
}

#[test]
fn the_status_is_the_programs_own() {
    let workspace = Workspace::new();
    for (program, status, words) in [
        (
            "import sys; print('early'); sys.exit(3)",
            3,
            "ended with exit status 3",
        ),
        (
            "print('early'); raise ValueError('no')",
            1,
            "ValueError: no",
        ),
        (
            "import os; print('early', flush=True); os.kill(os.getpid(), 9)",
            137,
            "ended by signal 9",
        ),
        ("print('early'); syntax error", 1, "SyntaxError"),
    ] {
        workspace.write("fails.py", program);
        let run = run(&workspace, &["fails.py", "--workers", "1"]).expect(status);
        run.assert_stderr("error[OX354]: the Python program");
        run.assert_stderr(words);
        let is_printed = !program.contains("syntax");
        assert_eq!(run.stdout.contains("early"), is_printed, "{}", run.stdout);
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn signals_end_program_and_cluster() {
    let program = "import subprocess, sys, time\n\
                   child = subprocess.Popen(['sleep', '100'])\n\
                   try:\n    print('up', flush=True)\n    time.sleep(100)\nexcept KeyboardInterrupt:\n    print('caught', flush=True)\n";
    for (kind, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let workspace = Workspace::new();
        workspace.write("long.py", program);
        let python = python(&workspace);
        let mut command = workspace.command(&["run", "long.py", "--workers", "1"]);
        command.env("OXIDASK_PYTHON", python);
        let run = support::Running::spawn(command);
        run.await_stdout("up");
        run.signal(kind);
        let run = run.finish_within(TIDY).expect(status);
        run.assert_stderr("error[OX114]: interrupted");
        assert_eq!(run.stdout.contains("caught"), kind == Signal::INT);
        workspace.assert_clean(TIDY);
    }
}

#[test]
fn a_program_ends_with_a_command_that_is_killed() {
    let workspace = Workspace::new();
    workspace.write(
        "long.py",
        "import time\nprint('up', flush=True)\ntime.sleep(100)\n",
    );
    let python = python(&workspace);
    let mut command = workspace.command(&["run", "long.py", "--workers", "1"]);
    command.env("OXIDASK_PYTHON", python);
    let run = support::Running::spawn(command);
    run.await_stdout("up");
    run.signal(Signal::KILL);
    support::eventually("the end of all processes", TIDY, || {
        workspace.processes().is_empty()
    });
}

#[test]
fn a_deadline_ends_the_program() {
    let workspace = Workspace::new();
    let program = "import time\ntime.sleep(100)\n";
    let fields = "python: ./python\n  activeDeadlineSeconds: 2";
    inline(&workspace, program, fields);
    let run = run(&workspace, &["job.yaml"]).expect(1);
    run.assert_stderr("longer than its `2` s");
    workspace.assert_clean(TIDY);
}

#[test]
fn what_is_missing_is_said_before_anything_starts() {
    let workspace = Workspace::new();
    workspace.write("a.py", "print(1)");
    let refused = |arguments: &[&str], code: &str, words: &[&str]| {
        let run = workspace.run(arguments).expect(2);
        run.assert_refused(&arguments.join(" "), code, words);
        assert!(workspace.leftovers().is_empty());
    };
    refused(&["run", "b.py"], "OX101", &["cannot read `b.py`"]);
    refused(
        &["run", "a.py", "--python", "/no/python"],
        "OX355",
        &["`/no/python`"],
    );
    workspace.job(1, "script: {source: a, python: no-python-of-this-name}");
    refused(&["run", "job.yaml"], "OX355", &["`no-python-of-this-name`"]);
    workspace.graph_job(1, "{\"key\": \"a\", \"op\": \"noop\"}\n");
    refused(&["run", "job.yaml", "--", "a"], "OX107", &["after `--`"]);
}

#[test]
fn the_program_and_its_package_are_unpacked() {
    let workspace = Workspace::new();
    let folder = workspace.path().join("program");
    workspace.run(&["unpack", "program"]).expect(0);
    let copied: &Path = &folder.join("oxidask");
    let version = std::process::Command::new(copied).arg("--version").output();
    assert!(version.unwrap().status.success());
}
