//! What must work on a real Kubernetes, a case a file.
//!
//! Owns the harness: it installs the charts, runs the cases side by side in namespaces of their
//! own, keeps what a failed case left behind and reports. Drives `kubectl` and `helm` as people do;
//! knows nothing about the lab that it runs in, so any cluster that has the images will do.
//!
//! Invariants: every wait has a bound and says what it waits for; every namespace that was made is
//! deleted; the exit status is 1 if anything failed.

mod argocd;
mod case;
mod cases;
mod dask;
mod dump;
mod figures;
mod helm;
mod host;
mod kubectl;
mod link;
mod namespace;
mod operator;
mod probe;
mod process;
mod prometheus;
mod python;
mod random;
mod report;
mod settings;
mod stock;
mod submission;
mod volume;
mod wait;

use std::process::ExitCode;

use crate::settings::{Settings, Task};

/// What went wrong, as text for a developer.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a case and its steps come to.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Prints a line for the developer; a closed standard output is not this program's concern.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}
pub(crate) use say;

fn main() -> ExitCode {
    oxidask_comm::install_crypto_provider();
    match Settings::parse(std::env::args().skip(1)).and_then(|settings| run(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say!("oxidask-e2e: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn run(settings: &Settings) -> Outcome<bool> {
    match settings.task {
        Task::List => {
            for case in cases::SIDE_BY_SIDE.iter().chain(cases::ALONE) {
                say!("{:<26} {}", case.name, case.about);
            }
            Ok(true)
        }
        Task::Install => helm::install(settings).map(|()| true),
        Task::Figures => {
            helm::install(settings)?;
            figures::measure(settings).map(|()| true)
        }
        Task::Cases => {
            helm::install(settings)?;
            case::run_all(settings)
        }
    }
}
