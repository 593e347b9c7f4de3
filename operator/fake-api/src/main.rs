//! `oxidask-fake-api`: an API server in memory for `kubectl` and an operator started by hand.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use oxidask_fake_api::{Fake, Fault, Kubelet, On, Options, What, When};

/// Serves a Kubernetes API from memory until it is interrupted.
#[derive(Debug, Parser)]
#[command(name = "oxidask-fake-api", version)]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// Milliseconds from a pod's creation until it is ready
    #[arg(long, default_value_t = 200)]
    ready_after_ms: u64,
    /// Leave pods pending
    #[arg(long)]
    without_kubelet: bool,
    /// Of a thousand writes, how many fail with 503
    #[arg(long, default_value_t = 0)]
    failing_per_mille: u16,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let kubelet = Kubelet {
        ready_after: Duration::from_millis(arguments.ready_after_ms),
        ..Kubelet::default()
    };
    let options = Options {
        address: arguments.listen,
        kubelet: (!arguments.without_kubelet).then_some(kubelet),
        ..Options::default()
    };
    match Fake::start(options).await {
        Ok(fake) => {
            let unavailable = What::Status {
                code: 503,
                retry_after_seconds: None,
            };
            let chance = When::PerMille(arguments.failing_per_mille);
            fake.set_faults(vec![Fault::new(On::writes(), chance, unavailable)]);
            let _ = writeln!(std::io::stdout(), "{}", fake.kubeconfig());
            let _ = tokio::signal::ctrl_c().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
