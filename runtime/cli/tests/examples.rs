//! Every example runs, and prints what it promises.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use support::{Finished, Workspace, signal};

const TIDY: Duration = Duration::from_secs(2);

/// An example, its exit status, and a look at what it printed.
type Expected = (&'static str, i32, fn(&Workspace, &Finished));

const EXPECTED: &[Expected] = &[
    ("flights/clean.yaml", 0, flights_clean),
    ("flights/flights.yaml", 0, flights),
    ("graphs/checksum-tree.yaml", 0, checksum_tree),
    ("graphs/exec-pipeline.yaml", 0, exec_pipeline),
    ("graphs/fails-on-purpose.yaml", 1, fails_on_purpose),
    ("graphs/map-reduce.yaml", 0, map_reduce),
];

#[test]
fn every_example_runs() {
    let workspace = Workspace::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    copy_folder(&source, workspace.path());
    let mut found = Vec::new();
    // Those need a Python with packages, and run with the Python package's own tests.
    fs::remove_dir_all(workspace.path().join("python")).unwrap();
    manifests(workspace.path(), &mut found);
    let mut found: Vec<String> = found
        .iter()
        .map(|path| {
            path.strip_prefix(workspace.path())
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    found.sort();
    let known: Vec<&str> = EXPECTED.iter().map(|(name, ..)| *name).collect();
    assert_eq!(found, known, "each example needs its line in EXPECTED");
    for (name, status, look) in EXPECTED {
        let run = workspace.run(&["run", name]).expect(*status);
        look(&workspace, &run);
        workspace.assert_clean(TIDY);
    }
}

/// Whenever a worker is killed, the result is the same, and one line says that it died.
#[test]
fn a_worker_killed_in_the_middle_changes_nothing() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut told = 0;
    for (name, status, look) in EXPECTED {
        for delay_ms in [5, 20, 40, 80, 160, 320] {
            let workspace = Workspace::new();
            copy_folder(&source, workspace.path());
            let run = workspace.start(&["run", name]);
            let worker = workspace.service("worker");
            sleep(Duration::from_millis(delay_ms));
            signal(worker, Signal::KILL);
            let run = run.finish().expect(*status);
            look(&workspace, &run);
            let lines = run.stderr.lines().filter(|line| line.contains("died"));
            let lines: Vec<&str> = lines.collect();
            assert!(lines.len() <= 1, "{name} after {delay_ms} ms: {lines:?}");
            told += lines.len();
            workspace.assert_clean(TIDY);
        }
    }
    // The small ones may be over before any kill, the flights are not.
    assert!(told > 0, "every run was over before the kill");
}

fn map_reduce(_: &Workspace, run: &Finished) {
    assert_eq!(
        run.stdout,
        "{\"key\":\"total\",\"value\":381}\n\
         {\"key\":\"wettest-station\",\"value\":207}\n\
         {\"key\":\"wettest-day\",\"value\":77}\n\
         {\"key\":\"days\",\"value\":28}\n\
         {\"key\":\"all-days\",\"value\":[12,0,0,53,41,7,0,0,0,3,18,26,0,0,0,0,0,5,9,0,0,31,8,0,77,64,22,5]}\n"
    );
    run.assert_stderr("done: 13 tasks in ");
}

fn checksum_tree(_: &Workspace, run: &Finished) {
    assert_eq!(
        run.stdout,
        "{\"key\":\"checksum\",\"value\":\"e75f630a059dd64716aaf31fa2f9d826377bb87ff7648eae61ac4f1f991665d0\"}\n"
    );
}

fn exec_pipeline(_: &Workspace, run: &Finished) {
    assert_eq!(
        run.stdout,
        "{\"key\":\"failures-by-path\",\"bytes\":112,\
         \"sha256\":\"4a7600cdf54492111c97043acc3960b95d6870c94dd7119d6fd38eed5af582fd\"}\n\
         {\"key\":\"summary\",\"bytes\":23,\
         \"sha256\":\"aeec7a32074853a4d1ef3a5f4131a80278b1927b83b4959653572feb4843ef7d\"}\n"
    );
}

fn fails_on_purpose(_: &Workspace, run: &Finished) {
    let words = ["task `broken`: this task fails on purpose", "`retries`"];
    let finished = "{\"key\":\"good\",\"value\":6}\n{\"key\":\"recovered\",\"value\":4}\n";
    run.assert_failed("fails-on-purpose", "OX208", &words, finished);
}

fn flights(_: &Workspace, run: &Finished) {
    assert_eq!(run.json().len(), 21);
    let first = "{\"airline\":\"Frontier Airlines Inc.\",\"flights\":685,\"minutes_late\":21.9,\"percent_late\":25.1}\n";
    assert!(run.stdout.starts_with(first), "{}", run.stdout);
    for row in [
        "{\"weather\":\"heavy rain or snow\",\"flights\":4447,\"minutes_late\":40.6,\"percent_cancelled\":8.6}",
        "{\"plane\":\"N711MQ\",\"manufacturer\":\"GULFSTREAM AEROSPACE\",\"model\":\"G1159B\",\"built\":1976,\
         \"flights\":462,\"hours\":678.0,\"miles\":250957}",
        "{\"origin\":\"EWR\",\"flights\":9893,\"cancelled\":238,\"diverted_or_unknown\":39,\"without_plane\":34}",
    ] {
        assert!(run.stdout.contains(row), "no {row} in:\n{}", run.stdout);
    }
}

fn flights_clean(workspace: &Workspace, run: &Finished) {
    assert_eq!(run.json().len(), 3);
    let last = "{\"month\":12,\"flights\":27020,\"minutes_late\":14.9,\"latest\":878}\n";
    assert!(run.stdout.ends_with(last), "{}", run.stdout);
    run.assert_stderr("wrote 327,346 rows");
    run.assert_stderr("a local run has no pods and ignores ");
    let folder = workspace.path().join("flights/out/flights_clean");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 12);
    // A second run replaces the first one's output.
    let again = workspace.run(&["run", "flights/clean.yaml"]).expect(0);
    assert_eq!(again.stdout, run.stdout);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 12);
}

/// Without what earlier runs wrote.
fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if !entry.file_type().unwrap().is_dir() {
            fs::copy(entry.path(), target).unwrap();
        } else if entry.file_name() != "out" {
            fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        }
    }
}

fn manifests(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            found.push(path);
        }
    }
}
