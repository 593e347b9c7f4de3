//! `oxidask explain`: how the SQL text of a job would run, without running it.
//!
//! The text is planned in this process, for the cluster that the manifest describes. Files of its
//! tables are looked at, as planning does; nothing is started and nothing is written.

use std::io::Write;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_operator_api::Work;

use crate::arguments::ExplainArguments;
use crate::error::CliError;
use crate::local::LocalCluster;
use crate::run::install_signals;
use crate::{output, service, work};

/// Threads beside the main thread.
const THREADS: usize = 1;

/// Prints the stages of each statement.
pub(crate) fn explain(arguments: &ExplainArguments) -> Result<(), CliError> {
    let mut job = work::load_job(&arguments.target)?;
    work::apply_overrides(&mut job.cluster, &arguments.overrides);
    let Work::Sql { text, origin } = job.work else {
        let message = format!(
            "`{}` holds no SQL text: only that has stages to explain",
            arguments.target.display()
        );
        let diagnostic = Diagnostic::new(Code::WorkUnavailable, message);
        let hint = "the tasks of a graph are in its file; `oxidask run` shows them as groups";
        return Err(CliError::usage(diagnostic.with_hint(hint)));
    };
    let size = LocalCluster::size_of(&job.cluster);
    let runtime = service::runtime(THREADS)?;
    let told = runtime.block_on(async {
        let signals = install_signals()?;
        let explaining = oxidask_exec_frame::explain(text, origin, job.base_dir, size);
        tokio::select! {
            told = explaining => told.map_err(refused),
            status = signals.first() => Err(CliError::interrupted(status)),
        }
    });
    runtime.shutdown_background();
    print(&told?)
}

/// The syntax is a matter of the file, all else is found while planning.
fn refused(diagnostic: Diagnostic) -> CliError {
    match diagnostic.code {
        Code::SqlSyntax | Code::SqlUnsupported => CliError::usage(diagnostic),
        _ => CliError::failed(diagnostic),
    }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end())
        .and_then(|()| stdout.flush())
        .map_err(|error| output::failure(&error))
}
