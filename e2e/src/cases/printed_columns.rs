//! `kubectl get` shows what people want to know, under short names too.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::start_cluster;
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "printed_columns",
    about: "kubectl get has useful columns and short names; the scale subresource is true",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    for (kind, wanted) in [
        (
            "daskcluster",
            &["NAME", "WORKERS", "READY", "STATUS", "AGE", "Running"][..],
        ),
        ("dsk", &["NAME", "WORKERS"]),
        (
            "daskworkergroup",
            &["NAME", "WORKERS", "READY", "AGE", "c-default"],
        ),
        ("daskworkers", &["NAME", "WORKERS"]),
    ] {
        let table = kubectl.run(&["get", kind])?;
        let has_word = |word: &&&str| table.split_whitespace().any(|found| found == **word);
        if let Some(missing) = wanted.iter().find(|word| !has_word(word)) {
            return Err(failure(format!(
                "`kubectl get {kind}` lacks {missing}:\n{table}"
            )));
        }
    }
    for object in ["daskcluster/c", "daskworkergroup/c-default"] {
        let scale = kubectl.run(&["get", object, "--subresource=scale", "-o", "json"])?;
        let scale: serde_json::Value = serde_json::from_str(&scale)?;
        let selector = scale["status"]["selector"].as_str().unwrap_or_default();
        let found = kubectl.list("pods", selector)?.len();
        let is_right =
            scale["spec"]["replicas"] == 1 && scale["status"]["replicas"] == 1 && found == 1;
        if !is_right || selector.is_empty() {
            return Err(failure(format!(
                "the scale of {object} selects {found} pods: {scale}"
            )));
        }
    }
    Ok(())
}
