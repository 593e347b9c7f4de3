//! A local cluster of real processes for measuring: one scheduler, two workers of one thread.
//!
//! Owns the processes and their certificates, and ends them when it is dropped. It starts the
//! services directly, without a supervisor, so that nothing but the services is measured.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oxidask_client::Client;
use oxidask_comm::Credentials;
use oxidask_identity::Role;
use oxidask_pki::Authority;
use tempfile::TempDir;

use crate::Failure;

/// Workers of a measured cluster.
pub(crate) const WORKERS: usize = 2;
const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(24);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    children: Vec<Child>,
    folder: TempDir,
    address: String,
}

impl Cluster {
    /// Starts the services and waits until both workers are there.
    pub(crate) async fn start(oxidask: &Path) -> Result<(Self, Client), Failure> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("local", "bench")?;
        for role in [Role::Scheduler, Role::Worker, Role::Client] {
            let dir = folder.path().join(role.to_string());
            authority.write_dir(&dir, role, CERTIFICATE_LIFETIME)?;
        }
        let mut cluster = Self {
            children: Vec::new(),
            folder,
            address: String::new(),
        };
        cluster.address = cluster.service(oxidask, "scheduler", Role::Scheduler, &[])?;
        for number in 0..WORKERS {
            let name = format!("bench-{number}");
            let scheduler = cluster.address.clone();
            let scratch = cluster.folder.path().to_string_lossy().into_owned();
            let words = ["--scheduler", &scheduler, "--name", &name, "--threads", "1"];
            let words = [&words[..], &["--scratch-dir", &scratch]].concat();
            cluster.service(oxidask, "worker", Role::Worker, &words)?;
        }
        let client = cluster.connect().await?;
        Ok((cluster, client))
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let dir = self.folder.path().join(Role::Client.to_string());
        let client = Client::connect(&self.address, &Credentials::from_dir(&dir)?).await?;
        let deadline = tokio::time::Instant::now() + WAIT_MAX;
        while client.status().await?.workers.len() < WORKERS {
            if tokio::time::Instant::now() > deadline {
                return Err("the workers did not join in time".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(client)
    }

    /// Starts one service and returns the address that it says it listens on.
    fn service(
        &mut self,
        oxidask: &Path,
        service: &str,
        role: Role,
        words: &[&str],
    ) -> Result<String, Failure> {
        let mut command = Command::new(oxidask);
        command
            .arg(service)
            .arg("--tls-dir")
            .arg(self.folder.path().join(role.to_string()));
        command.args(["--bind", "127.0.0.1", "--port", "0", "--no-http"]);
        command.args([
            "--log-level",
            "error",
            "--parent-pid",
            &std::process::id().to_string(),
        ]);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child
            .stdout
            .take()
            .ok_or("the service has no standard output")?;
        self.children.push(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ready: serde_json::Value = serde_json::from_str(&line)
            .map_err(|error| format!("{service} did not start: `{line}`: {error}"))?;
        Ok(ready["address"]
            .as_str()
            .ok_or("the ready line has no address")?
            .to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The scheduler last, so that no worker has to say that it is gone.
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
