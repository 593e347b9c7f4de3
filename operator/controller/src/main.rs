//! `oxidask-operator`: watches the manifests of a cluster, carries out plans, reports.

mod api_error;
mod apply;
mod arguments;
mod backoff;
mod cache;
mod caches;
mod certificates;
mod context;
mod controllers;
mod dask;
mod definitions;
mod discovery;
mod doubts;
mod error;
mod execute;
mod health;
mod http;
mod issued;
mod kinds;
mod leadership;
mod lease;
mod link;
mod logging;
mod metrics;
mod queue;
mod reconcile;
mod refusals;
mod route;
mod run;
mod scope;
mod secrets;
mod seen_pod;
#[cfg(test)]
mod server;
mod signals;
mod tokens;
mod traffic;
mod turns;
mod warnings;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Command};

/// Objects of Kubernetes are trees of small strings: two fifths of the operator's time went into
/// allocating them with the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Fails only when a provider is installed already, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Crds) => definitions::print(),
        Some(Command::Run(run)) => run::run(*run),
        None => run::run(arguments.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => logging::fatal(&error),
    }
}
