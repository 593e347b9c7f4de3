//! One step of a transfer, the same at both ends: bounded in time, its failures told with the peer.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::frame::STALL_SECONDS_MAX;
use crate::error::CommError;

/// Reads or writes something, unless the peer does not move.
pub(crate) async fn step<T>(
    address: &str,
    moving: impl Future<Output = io::Result<T>>,
) -> Result<T, CommError> {
    match timeout(Duration::from_secs(STALL_SECONDS_MAX), moving).await {
        Ok(Ok(moved)) => Ok(moved),
        Ok(Err(source)) => Err(broken(address, source)),
        Err(_) => Err(stalled(address)),
    }
}

/// The connection broke.
pub(crate) fn broken(address: &str, source: io::Error) -> CommError {
    CommError::Transfer {
        address: address.to_owned(),
        source,
    }
}

/// The peer did not move for too long.
pub(crate) fn stalled(address: &str) -> CommError {
    CommError::Stalled {
        address: address.to_owned(),
        seconds: STALL_SECONDS_MAX,
    }
}
