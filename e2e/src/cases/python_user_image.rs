//! Stock Dask on the Rust runtime, in an image that has nothing of ours: workers and client.

use std::path::Path;

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{cluster_with, wait_ready, wait_workers, workers};
use crate::process::failure;
use crate::python;

pub(crate) const CASE: Case = Case {
    name: "python_user_image",
    about: "three acceptance scripts print in pods, in the image with stock Dask, what they print on Dask",
    run,
};

const SCRIPTS: &str = "python/tests/acceptance";
/// None of them has files that clients and workers share.
const NAMES: [&str; 3] = ["01_futures", "20_custom_graph", "11_array_basics"];

/// Plays `__main__`, as the harness of the scripts does, so that their functions travel by value.
const HARNESS: &str = "\
import sys, types
from distributed import Client
module = types.ModuleType('__main__')
sys.modules['__main__'] = module
source = open(sys.argv[1], encoding='utf-8').read()
exec(compile(source, sys.argv[1], 'exec'), module.__dict__)
with Client(timeout=60) as client:
    module.main(client)
";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&cluster_with("c", 2, python::image()))?;
    wait_ready(kubectl, "c")?;
    wait_workers(kubectl, "c", 2)?;
    let folder = context.settings.root.join(SCRIPTS);
    for name in NAMES {
        let script = read(&folder.join(format!("{name}.py")))?;
        let wanted = read(&folder.join(format!("expected/{name}.txt")))?;
        let pod = name.replace('_', "-");
        let pod = format!("client-{pod}");
        let files = json!({"harness.py": HARNESS, "script.py": script});
        let command = ["python3", "/work/harness.py", "/work/script.py"];
        python::start(kubectl, "c", &pod, &command, &files)?;
        let printed = python::finish(kubectl, &pod)?;
        // Both outputs are in the log; lines of the script are all there, in their order.
        let mut lines = printed.lines();
        let missing = wanted
            .lines()
            .find(|line| !lines.any(|found| found == *line));
        if let Some(line) = missing {
            return Err(failure(format!(
                "{name} does not print `{line}`:\n{printed}"
            )));
        }
    }
    for worker in workers(kubectl, "c")? {
        let spec = &worker["spec"];
        let brings = spec["initContainers"][0]["name"] == "oxidask-program";
        if !brings || spec["containers"][0]["image"] != crate::stock::IMAGE {
            return Err(failure(format!("not in the user's image: {spec}")));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| failure(format!("{}: {error}", path.display())))
}
