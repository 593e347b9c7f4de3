//! A local cluster of real processes for measuring: one scheduler and some workers.
//!
//! Owns the processes and their certificates, and ends them when it is dropped. It starts the
//! services directly, without a supervisor, so that nothing but the services is measured and a
//! worker that is killed stays gone until another is asked for.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oxidask_client::Client;
use oxidask_comm::Credentials;
use oxidask_identity::Role;
use oxidask_pki::Authority;
use tempfile::TempDir;

use crate::Failure;

const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(24);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How many workers there are, and what each has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Worker processes.
    pub(crate) workers: u32,
    /// Slots of each.
    pub(crate) threads: u32,
    /// Bytes of memory of each; the machine's if none.
    pub(crate) memory_bytes: Option<u64>,
}

impl Default for Shape {
    /// Two workers of one thread.
    fn default() -> Self {
        Self {
            workers: 2,
            threads: 1,
            memory_bytes: None,
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    oxidask: PathBuf,
    shape: Shape,
    scheduler: Option<Child>,
    workers: Vec<Child>,
    /// Workers that were ever started; each has a name of its own.
    workers_named: u32,
    folder: TempDir,
    address: String,
}

impl Cluster {
    /// Starts the services and waits until all workers are there.
    pub(crate) async fn start(oxidask: &Path, shape: Shape) -> Result<(Self, Client), Failure> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("local", "bench")?;
        for role in [Role::Scheduler, Role::Worker, Role::Client] {
            let dir = folder.path().join(role.to_string());
            authority.write_dir(&dir, role, CERTIFICATE_LIFETIME)?;
        }
        let mut cluster = Self {
            oxidask: oxidask.to_owned(),
            shape,
            scheduler: None,
            workers: Vec::new(),
            workers_named: 0,
            folder,
            address: String::new(),
        };
        let (scheduler, address) = cluster.service("scheduler", Role::Scheduler, &[])?;
        cluster.scheduler = Some(scheduler);
        cluster.address = address;
        for _ in 0..shape.workers {
            cluster.add_worker()?;
        }
        let dir = cluster.folder.path().join(Role::Client.to_string());
        let credentials = Credentials::from_dir(&dir)?;
        let client = Client::connect(&cluster.address, &credentials).await?;
        cluster.wait_for_workers(&client).await?;
        Ok((cluster, client))
    }

    /// What was asked for.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let scheduler = self.scheduler.iter();
        scheduler.chain(&self.workers).map(Child::id).collect()
    }

    /// Waits until the scheduler knows exactly the workers that are running.
    pub(crate) async fn wait_for_workers(&self, client: &Client) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + WAIT_MAX;
        while client.status().await?.workers.len() != self.workers.len() {
            if tokio::time::Instant::now() > deadline {
                return Err("the workers did not join in time".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Starts one more worker.
    pub(crate) fn add_worker(&mut self) -> Result<(), Failure> {
        let name = format!("bench-{}", self.workers_named);
        self.workers_named += 1;
        let scratch = self.folder.path().to_string_lossy().into_owned();
        let threads = self.shape.threads.to_string();
        let mut words = vec!["--scheduler", &self.address, "--name", &name];
        words.extend(["--threads", &threads, "--scratch-dir", &scratch]);
        let memory = self.shape.memory_bytes.map(|bytes| bytes.to_string());
        if let Some(memory) = &memory {
            words.extend(["--memory", memory]);
        }
        let (worker, _) = self.service("worker", Role::Worker, &words)?;
        self.workers.push(worker);
        Ok(())
    }

    /// The process of the worker that was started first of those that run.
    pub(crate) fn first_worker(&self) -> Option<u32> {
        self.workers.first().map(Child::id)
    }

    /// Waits for the end of that worker, which was killed. It is not started again.
    pub(crate) fn forget_worker(&mut self) -> Result<(), Failure> {
        if self.workers.is_empty() {
            return Err("no worker is left".into());
        }
        end(&mut self.workers.remove(0));
        Ok(())
    }

    /// Starts one service and returns the address that it says it listens on.
    fn service(
        &self,
        service: &str,
        role: Role,
        words: &[&str],
    ) -> Result<(Child, String), Failure> {
        let mut command = Command::new(&self.oxidask);
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
        // As `oxidask up` and the image have it.
        command
            .env("MIMALLOC_ARENA_MAX_OBJECT_SIZE", "16384")
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        match address(&mut child, service) {
            Ok(address) => Ok((child, address)),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }
}

/// Reads the line in which a service says that it is ready.
fn address(child: &mut Child, service: &str) -> Result<String, Failure> {
    let output = child
        .stdout
        .take()
        .ok_or("the service has no standard output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line)
        .map_err(|error| format!("{service} did not start: `{line}`: {error}"))?;
    let address = ready["address"].as_str();
    Ok(address.ok_or("the ready line has no address")?.to_owned())
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The scheduler last, so that no worker has to say that it is gone.
        self.workers.iter_mut().for_each(end);
        self.scheduler.iter_mut().for_each(end);
    }
}
