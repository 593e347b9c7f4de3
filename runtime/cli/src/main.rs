//! The `oxidask` command.
//!
//! Owns the process: arguments, logging, signals, exit status, what is printed. It wires the other
//! crates together and decides nothing that a library could decide.

mod allocator;
mod arguments;
mod attach;
mod error;
mod explain;
mod explain_key;
mod local;
mod logging;
mod logs;
mod look;
mod output;
mod progress;
mod python;
mod run;
mod script;
mod service;
mod session;
mod signals;
mod status;
mod terminal;
mod top;
mod unpack;
mod up;
mod work;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use oxidask_logbook::LogbookLayer;
use oxidask_scheduler::LogTap;

use crate::arguments::{Arguments, Command};
use crate::error::{CliError, STATUS_USAGE};
use crate::terminal::Terminal;

/// Level of log lines unless the user asks for another.
const LOG_LEVEL_COMMAND: &str = "warn";
const LOG_LEVEL_SERVICE: &str = "info";

fn main() -> ExitCode {
    oxidask_comm::install_crypto_provider();
    say_defects_shortly();
    let arguments = match Arguments::try_parse().and_then(Arguments::complete) {
        Ok(arguments) => arguments,
        Err(error) => return clap_end(&error),
    };
    if matches!(
        arguments.command,
        Command::Scheduler(_) | Command::Worker(_)
    ) {
        allocator::settle();
    }
    let terminal = Terminal::new();
    let level = if arguments.command.is_service() {
        LOG_LEVEL_SERVICE
    } else {
        LOG_LEVEL_COMMAND
    };
    let log_tap = LogTap::default();
    let keeper: Option<logging::Keeper> = match &arguments.command {
        Command::Scheduler(_) => Some(Box::new(log_tap.clone())),
        Command::Worker(_) => Some(Box::new(LogbookLayer::new(logging::logbook()))),
        _ => None,
    };
    logging::start(&arguments.logging, level, &terminal, keeper);
    match dispatch(arguments, &terminal, log_tap) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError { diagnostic, status }) => {
            if let Some(diagnostic) = diagnostic {
                terminal.error(&diagnostic);
            }
            ExitCode::from(status)
        }
    }
}

fn dispatch(arguments: Arguments, terminal: &Terminal, log_tap: LogTap) -> Result<(), CliError> {
    let logging = arguments.logging;
    match arguments.command {
        Command::Run(command) => run::run(&command, &logging, terminal),
        Command::Up(command) => up::up(&command, &logging, terminal),
        Command::Submit(command) => run::submit(&command, terminal),
        Command::Explain(command) if command.is_key() => explain_key::explain_key(&command),
        Command::Explain(command) => explain::explain(&command),
        Command::Status(command) => status::status(&command),
        Command::Top(command) => top::top(&command),
        Command::Logs(command) => logs::logs(&command, terminal),
        Command::Scheduler(command) => service::scheduler::run(&command, log_tap),
        Command::Worker(command) => service::worker::run(&command),
        Command::ExecGuard => {
            oxidask_exec::guard::watch(std::io::stdin().lock());
            Ok(())
        }
        Command::ScriptHost(command) => script::host(&command),
        Command::Unpack(command) => unpack::unpack(&command),
    }
}

/// Help and version go to standard output with status 0, errors to standard error with 2.
fn clap_end(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { STATUS_USAGE } else { 0 })
}

/// A panic is a defect of this program: one line instead of a backtrace, unless it is asked for.
fn say_defects_shortly() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let _ = writeln!(
            std::io::stderr().lock(),
            "defect: {text} at {place}; please report it, with RUST_BACKTRACE=1"
        );
    }));
}
