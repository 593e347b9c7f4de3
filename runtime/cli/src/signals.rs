//! Ctrl-C, SIGTERM and SIGHUP.
//!
//! Owns the meaning of signals: the first asks for a tidy end, the second ends the process at once.
//! A hang-up that was ignored at the start (`nohup`) stays ignored.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

const SIGNAL_HANGUP: u8 = 1;
const SIGNAL_INTERRUPT: u8 = 2;
const SIGNAL_TERMINATE: u8 = 15;
const STATUS_SIGNALLED: u8 = 128;

/// Waits for signals in the background. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    first: watch::Receiver<Option<u8>>,
    folder: Arc<Mutex<Option<PathBuf>>>,
}

impl Signals {
    /// Takes the signals over from the system. Must run inside a runtime.
    pub(crate) fn install() -> io::Result<Self> {
        let (sender, first) = watch::channel(None);
        let folder = Arc::new(Mutex::new(None));
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let hangup = if is_hangup_ignored() {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        let mut sources = Sources {
            interrupt,
            terminate,
            hangup,
        };
        let at_second = Arc::clone(&folder);
        tokio::spawn(async move {
            let status = sources.next().await;
            let _ = sender.send(Some(status));
            let status = sources.next().await;
            end_at_once(status, &at_second);
        });
        Ok(Self { first, folder })
    }

    /// The exit status that the first signal asks for. Waits for ever without one.
    pub(crate) async fn first(&self) -> u8 {
        let mut first = self.first.clone();
        loop {
            if let Some(status) = *first.borrow_and_update() {
                return status;
            }
            if first.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The folder that even a second signal tries to remove.
    pub(crate) fn remove_at_second(&self, folder: Option<PathBuf>) {
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    }
}

struct Sources {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Sources {
    async fn next(&mut self) -> u8 {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let number = tokio::select! {
            _ = self.interrupt.recv() => SIGNAL_INTERRUPT,
            _ = self.terminate.recv() => SIGNAL_TERMINATE,
            _ = hangup => SIGNAL_HANGUP,
        };
        STATUS_SIGNALLED + number
    }
}

#[allow(
    clippy::exit,
    reason = "a second signal ends the process without waiting for anything"
)]
fn end_at_once(status: u8, folder: &Mutex<Option<PathBuf>>) -> ! {
    if let Ok(Some(folder)) = folder.try_lock().as_deref() {
        let _ = std::fs::remove_dir_all(folder);
    }
    std::process::exit(i32::from(status))
}

/// Whether the process was started with SIGHUP ignored.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0);
    mask & 1 << (SIGNAL_HANGUP - 1) != 0
}
