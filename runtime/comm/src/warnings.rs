//! Warnings about peers that fail to connect, at a bounded rate.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use oxidask_diagnostic::{Coded, Diagnostic};

use crate::error::CommError;

const WINDOW_SECONDS: u64 = 10;
const WARNINGS_PER_WINDOW: u32 = 10;

/// Counts the warnings of one listener.
#[derive(Debug)]
pub(crate) struct Warnings {
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    written: u32,
    left_out: u64,
}

impl Warnings {
    pub(crate) fn new() -> Self {
        let window = Window {
            start: Instant::now(),
            written: 0,
            left_out: 0,
        };
        Self {
            window: Mutex::new(window),
        }
    }

    /// Tells that a peer was turned away.
    pub(crate) fn refused(&self, address: SocketAddr, error: &CommError) {
        if let Some(left_out) = self.admit(Instant::now()) {
            let Diagnostic {
                message, causes, ..
            } = Diagnostic::from_error(error);
            let causes = causes.join(": ");
            let code = error.code();
            tracing::warn!(peer = %address, %code, causes, left_out, "{message}");
        }
    }

    /// Tells that connections cannot be accepted.
    pub(crate) fn accept_failed(&self, error: &std::io::Error) {
        if let Some(left_out) = self.admit(Instant::now()) {
            tracing::warn!(%error, left_out, "connections cannot be accepted for a moment");
        }
    }

    // How many warnings were left out before this one, or nothing if it is to be left out.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(window.start) >= Duration::from_secs(WINDOW_SECONDS) {
            window.start = now;
            window.written = 0;
        }
        if window.written >= WARNINGS_PER_WINDOW {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_what_is_too_much_and_says_so_later() {
        let warnings = Warnings::new();
        let start = Instant::now();
        for _ in 0..WARNINGS_PER_WINDOW {
            assert_eq!(warnings.admit(start), Some(0));
        }
        assert_eq!(warnings.admit(start), None);
        assert_eq!(warnings.admit(start), None);
        let later = start + Duration::from_secs(WINDOW_SECONDS + 1);
        assert_eq!(warnings.admit(later), Some(2));
        assert_eq!(warnings.admit(later), Some(0));
    }
}
