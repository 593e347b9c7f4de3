//! Who may read a scheduler's data over HTTP.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::start_cluster;
use crate::probe::http_get;
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "http_token",
    about: "/api/v1 answers to the tokens of the cluster's Secret and to nobody else",
    run,
};

const PORT: u16 = 8787;
const PATH: &str = "/api/v1/status";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    let reader = kubectl.secret("c-http-token", "token")?;
    let operator = kubectl.secret("c-http-token", "operator-token")?;
    if reader == operator {
        return Err(failure("both tokens are the same"));
    }
    for (who, token, wanted) in [
        ("nobody", None, 401),
        ("a wrong token", Some("wrong"), 401),
        ("the reader's token", Some(reader.as_str()), 200),
        ("the operator's token", Some(operator.as_str()), 200),
    ] {
        let forward = kubectl.forward("service/c-scheduler", PORT)?;
        let (status, body) = http_get(&forward.address, PATH, token)?;
        if status != wanted {
            return Err(failure(format!("{who} gets {status}: {body}")));
        }
        if status == 200 && !body.contains("\"workers\":1") {
            return Err(failure(format!("{who} does not see the worker: {body}")));
        }
    }
    Ok(())
}
