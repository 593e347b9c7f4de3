//! Log lines on standard error, and the last words of a start that failed.

use std::io::{self, Write as _};
use std::process::ExitCode;

use oxidask_diagnostic::{Coded, Diagnostic};
use tracing_subscriber::EnvFilter;

use crate::arguments::LogFormat;

/// What the client library says of itself, unless it is asked for by name.
const QUIET: &str = "kube_runtime=error,kube_client=error";

/// Starts logging; done once.
pub(crate) fn start(format: LogFormat, level: &str) {
    // The text was checked with the command line.
    let filter = EnvFilter::try_new(format!("{QUIET},{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr);
    // Another subscriber is there only in tests.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Prints an error that ends the program.
pub(crate) fn fatal(error: &impl Coded) -> ExitCode {
    let diagnostic = Diagnostic::from_error(error);
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "{diagnostic}");
    ExitCode::FAILURE
}
