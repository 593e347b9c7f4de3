//! The first process of a container, as the only test of its program: it collects every child.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test program: what must not happen ends it"
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use oxidask_worker::init::{is_first_process, run_below};
use rustix::process::{Signal, getpid, kill_process, set_child_subreaper};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command
}

fn wait_for(file: &Path) {
    let start = Instant::now();
    while !file.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn orphans_are_collected_signals_passed_on_and_the_status_is_the_childs() {
    assert!(!is_first_process());
    // What loses its parent below this process becomes its child.
    set_child_subreaper(Some(getpid())).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let (orphan, ready) = (folder.path().join("orphan"), folder.path().join("ready"));

    // An inner shell leaves a sleeper behind. A zombie would be there for ever.
    let script = format!(
        "sh -c 'sleep 0.2 & echo $! > {0}'
         for _ in $(seq 200); do kill -0 $(cat {0}) || exit 3; sleep 0.05; done 2>/dev/null
         exit 4",
        orphan.display()
    );
    assert_eq!(run_below(shell(&script)).unwrap(), 3);
    let pid = std::fs::read_to_string(orphan).unwrap();
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());

    // A signal reaches the child, which decides.
    let script = format!(
        "trap 'exit 7' TERM; : > {}; while :; do sleep 0.02; done",
        ready.display()
    );
    let below = std::thread::spawn(move || run_below(shell(&script)).unwrap());
    wait_for(&ready);
    kill_process(getpid(), Signal::TERM).unwrap();
    assert_eq!(below.join().unwrap(), 7);

    // One that a signal ended.
    assert_eq!(run_below(shell("kill -9 $$")).unwrap(), 137);
    assert!(run_below(Command::new("/nonexistent/program")).is_err());
}
