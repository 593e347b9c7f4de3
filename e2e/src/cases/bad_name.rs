//! A name that is too long for what is made of it.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{API_VERSION, events, has};
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "bad_name",
    about: "a cluster with a bad name is admitted, gets the phase Error and says why",
    run,
};

const SECONDS_MAX: u64 = 30;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    for name in ["x".repeat(54), "dots.in.it".to_owned()] {
        let manifest = json!({
            "apiVersion": API_VERSION, "kind": "DaskCluster", "metadata": {"name": name},
            "spec": {"worker": {"replicas": 1}},
        });
        kubectl.apply(&manifest.to_string())?;
        let object = format!("daskcluster/{name}");
        until(&format!("{object} to be in Error"), SECONDS_MAX, || {
            let cluster = kubectl.get(&object)?;
            let is_error = cluster["status"]["phase"] == "Error";
            done_if(
                is_error && has(&cluster, "Stalled", "True"),
                cluster["status"].to_string(),
            )
        })?;
        until("a warning about its name", SECONDS_MAX, || {
            let events = events(kubectl, &name)?;
            let is_said = |line: &String| line.starts_with("Warning") && line.contains("OX5");
            done_if(events.iter().any(is_said), events.join("\n"))
        })?;
    }
    let pods = kubectl.list("pods", "")?;
    if pods.is_empty() {
        return Ok(());
    }
    Err(failure(format!("{} pods were made", pods.len())))
}
