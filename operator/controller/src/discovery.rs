//! Whether the definitions of our kinds are ours, asked before anything is written.
//!
//! The definitions of dask-kubernetes have the same names; without the subresource `status` an
//! operator could not say what it sees.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use oxidask_diagnostic::Coded as _;
use oxidask_operator_api::API_VERSION;

use crate::api_error::request_error;
use crate::error::{OneLine, OperatorError};
use crate::health::Health;

const PLURALS: [&str; 4] = [
    "daskclusters",
    "daskworkergroups",
    "daskjobs",
    "daskautoscalers",
];

/// How the check is called where it stands among the watches.
const WHAT: &str = "the definitions of the custom resources";

const ASK_AGAIN: Duration = Duration::from_secs(3);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the definitions that are served are ours. Whether they are served at all, the
/// watches say.
pub(crate) async fn wait_for_definitions(client: &Client, health: &Health) {
    health.expect(WHAT);
    loop {
        let asked = client.list_api_group_resources(API_VERSION);
        let error = match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(Ok(served)) => check(&served).err(),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => None,
            Ok(Err(error)) => Some(request_error(format!("{WHAT} cannot be read"), error)),
            Err(_) => Some(OperatorError::Timeout {
                what: format!("{WHAT} cannot be read"),
                seconds: ANSWER_LIMIT.as_secs(),
            }),
        };
        let Some(error) = error else {
            health.works(WHAT, true);
            return;
        };
        if health.fails(WHAT, &error) {
            let (code, hint) = (error.code(), error.hint());
            tracing::warn!(%code, error = %OneLine(&error), %hint, "waiting for definitions");
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn check(served: &APIResourceList) -> Result<(), OperatorError> {
    let has = |name: &str| served.resources.iter().any(|it| it.name == name);
    let without: Vec<String> = PLURALS
        .into_iter()
        .filter(|plural| has(plural) && !has(&format!("{plural}/status")))
        .map(|plural| format!("`{plural}`"))
        .collect();
    if without.is_empty() {
        return Ok(());
    }
    let kinds = without.join(", ");
    Err(OperatorError::ForeignKinds {
        what: format!(
            "{kinds} are served without `/status`: the definitions are not those of this operator"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::{Value, json};

    use super::*;
    use crate::server::{self, failure};

    fn list(names: &[&str]) -> Value {
        let resources = names.iter().map(|name| {
            json!({"name": name, "singularName": "", "namespaced": true, "kind": "K", "verbs": []})
        });
        json!({
            "kind": "APIResourceList", "groupVersion": API_VERSION,
            "resources": resources.collect::<Vec<_>>(),
        })
    }

    #[test]
    fn definitions_without_status_are_not_ours() {
        let check = |names: &[&str]| check(&serde_json::from_value(list(names)).unwrap());
        let error = check(&["daskclusters", "daskclusters/status", "daskjobs"]).unwrap_err();
        assert_eq!(error.code().to_string(), "OX546");
        assert!(
            error
                .to_string()
                .starts_with("`daskjobs` are served without")
        );
        assert!(check(&["daskjobs", "daskjobs/status"]).is_ok());
        assert!(check(&[]).is_ok(), "the watches say so");
    }

    #[tokio::test]
    async fn foreign_definitions_are_an_obstacle_until_they_are_replaced() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let (context, _log) =
            server::context(move |_| match count.fetch_add(1, Ordering::SeqCst) {
                0 => (200, list(&["daskjobs"])),
                _ => (200, list(&["daskjobs", "daskjobs/status"])),
            });
        let health = Health::default();
        tokio::join!(wait_for_definitions(&context.client, &health), async {
            while asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(
                health.obstacles()[0].starts_with("OX546"),
                "{:?}",
                health.obstacles()
            );
        });
        assert!(health.obstacles().is_empty());
        let (context, _log) = server::context(|_| failure(404, "no discovery"));
        wait_for_definitions(&context.client, &health).await;
    }
}
