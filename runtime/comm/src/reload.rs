//! Certificates that are renewed while a process runs.
//!
//! Owns how often the folder is looked at and what is said of it. Decides nothing about what is in
//! it.

use std::time::Duration;

use oxidask_diagnostic::Coded;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::error::CommError;

/// How often the folder is looked at. A mounted Secret follows its object within a minute or two,
/// so this adds nothing that anybody notices.
const LOOK_SECONDS: u64 = 2;

/// Keeps the credentials as their folder has them, until `shutdown`. Returns at once for those that
/// do not come from a folder.
pub async fn keep_fresh(credentials: Credentials, shutdown: CancellationToken) {
    if !credentials.has_folder() {
        return;
    }
    let mut looks = interval(Duration::from_secs(LOOK_SECONDS));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_error = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        last_error = reload(&credentials, last_error.as_deref()).await;
    }
}

/// One look; the error, if it failed.
pub(crate) async fn reload(credentials: &Credentials, last_error: Option<&str>) -> Option<String> {
    let looked_at = credentials.clone();
    // Ends early only when the whole runtime does.
    let outcome = tokio::task::spawn_blocking(move || looked_at.reload())
        .await
        .ok()?;
    match outcome {
        Ok(is_new) => {
            if is_new {
                let loaded = credentials.loaded();
                let (bundle, certificate) = (loaded.bundle, loaded.certificate);
                tracing::info!(bundle, certificate, "new certificates are in use");
            }
            None
        }
        Err(error) => Some(said(&error, last_error)),
    }
}

/// Says an error once for as long as it stays the same.
fn said(error: &CommError, last_error: Option<&str>) -> String {
    let text = error.to_string();
    if last_error != Some(text.as_str()) {
        let (code, hint) = (error.code(), error.hint());
        let note = "certificates cannot be renewed; the old ones stay in use";
        tracing::warn!(%code, error = text, %hint, "{note}");
    }
    text
}
