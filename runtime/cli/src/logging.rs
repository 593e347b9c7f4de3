//! Log lines of this process, on standard error.
//!
//! Owns the set-up of `tracing`. Lines go through the terminal, so bars stay whole. A service keeps
//! its lines besides, from the level [`KEPT_LEVEL`] on, whatever is shown: they are read later.

use std::io;
use std::sync::{Arc, OnceLock};

use oxidask_logbook::{JsonLines, Logbook, Secrets};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::arguments::{LogFormat, LoggingArguments};
use crate::terminal::Terminal;

/// Level from which lines are kept.
const KEPT_LEVEL: LevelFilter = LevelFilter::INFO;

/// Something that keeps lines.
pub(crate) type Keeper = Box<dyn Layer<Registry> + Send + Sync>;

/// The lines of this process, for whoever ships them.
static LOGBOOK: OnceLock<Arc<Logbook>> = OnceLock::new();

/// The lines of this process. What the environment holds in secrets never stands in them.
pub(crate) fn logbook() -> Arc<Logbook> {
    let make = || Arc::new(Logbook::hiding(Secrets::of_environment()));
    Arc::clone(LOGBOOK.get_or_init(make))
}

/// Starts logging; `default_level` holds unless the command line or the environment says another.
pub(crate) fn start(
    arguments: &LoggingArguments,
    default_level: &str,
    terminal: &Terminal,
    keeper: Option<Keeper>,
) {
    let level = arguments.log_level.as_deref().unwrap_or(default_level);
    // The command line has checked the text already.
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new(default_level));
    let shown = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(LineWriter {
            terminal: terminal.clone(),
            line: Vec::new(),
        });
    let keeper = keeper.map(|keeper| keeper.with_filter(KEPT_LEVEL));
    let registry = tracing_subscriber::registry().with(keeper);
    // A second start in one process cannot happen, and would only keep the first.
    let _ = match arguments.log_format {
        LogFormat::Text => registry.with(shown.with_filter(filter)).try_init(),
        LogFormat::Json => {
            let shown = shown.event_format(JsonLines);
            registry.with(shown.with_filter(filter)).try_init()
        }
    };
}

/// Collects one event and hands it over as a line.
#[derive(Debug)]
struct LineWriter {
    terminal: Terminal,
    line: Vec<u8>,
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            terminal: self.terminal.clone(),
            line: Vec::new(),
        }
    }
}

impl io::Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.terminal
                .line(String::from_utf8_lossy(&self.line).trim_end());
        }
    }
}
