//! The host of a lab, which is also its nodes: processes in pods are processes here.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::dask::{name, uid};
use crate::process::{failure, finish};

const KILL: Duration = Duration::from_secs(5);

/// Kills the process of a pod that runs this command of ours, as the kernel does when memory is
/// short.
pub(crate) fn kill(pod: &Value, command: &str) -> Outcome {
    let process = process(pod, command)?;
    finish(Command::new("kill").args(["-KILL", &process]), None, KILL)?
        .succeeded()
        .map(drop)
}

/// Bytes of memory that the process of a pod that runs this command of ours uses.
pub(crate) fn resident_bytes(pod: &Value, command: &str) -> Outcome<u64> {
    let process = process(pod, command)?;
    let status = read(&Path::new("/proc").join(&process), "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let kibibytes =
        kibibytes.ok_or_else(|| failure(format!("process {process} says no memory: {status}")))?;
    Ok(kibibytes * 1024)
}

/// By the pod's name among the control groups, and by what it runs, because the pod's pause process
/// is there too.
fn process(pod: &Value, wanted: &str) -> Outcome<String> {
    let marker = format!("pod{}", uid(pod));
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let is_of_pod = read(&folder, "cgroup").contains(&marker);
        let command = read(&folder, "cmdline");
        let is_wanted = command.split('\0').nth(1) == Some(wanted);
        if let (true, true, Some(id)) = (is_of_pod, is_wanted, folder.file_name()) {
            return Ok(id.to_string_lossy().into_owned());
        }
    }
    Err(failure(format!(
        "no process of pod {} on this host: this case needs nodes that are on it",
        name(pod)
    )))
}

fn read(folder: &Path, file: &str) -> String {
    // Processes end while they are looked at.
    std::fs::read_to_string(folder.join(file)).unwrap_or_default()
}
