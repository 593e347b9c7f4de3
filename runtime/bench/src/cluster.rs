//! A local cluster of real processes for measuring: one scheduler and some workers.
//!
//! Owns the processes and their certificates, and ends them when it is dropped. It starts the
//! services directly, without a supervisor, so that nothing but the services is measured and a
//! worker that is killed stays gone until another is asked for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oxidask_client::Client;
use oxidask_comm::Credentials;
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use tempfile::TempDir;

use crate::Failure;

const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(24);
const WAIT_MAX: Duration = Duration::from_secs(10);
const METRICS_BYTES_MAX: u64 = 16 << 20;

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

/// What the services have besides their work.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Services {
    /// Whether the scheduler has a journal.
    pub(crate) has_journal: bool,
    /// Whether metrics can be read.
    pub(crate) has_http: bool,
}

/// A service that runs.
#[derive(Debug)]
struct Service {
    process: Child,
    /// Where it listens.
    address: String,
    /// Where its metrics are, `http://host:port`.
    http: Option<String>,
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    oxidask: PathBuf,
    shape: Shape,
    services: Services,
    scheduler: Option<Service>,
    workers: Vec<Service>,
    /// Workers that were ever started; each has a name of its own.
    workers_named: u32,
    folder: TempDir,
    address: String,
}

impl Cluster {
    /// Starts the services and waits until all workers are there.
    pub(crate) async fn start(oxidask: &Path, shape: Shape) -> Result<(Self, Client), Failure> {
        Self::start_with(oxidask, shape, Services::default()).await
    }

    /// As [`Cluster::start`], with a journal or metrics.
    pub(crate) async fn start_with(
        oxidask: &Path,
        shape: Shape,
        services: Services,
    ) -> Result<(Self, Client), Failure> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("local", "bench")?;
        for role in [Role::Scheduler, Role::Worker, Role::Client] {
            let dir = folder.path().join(role.to_string());
            authority.write_dir(&dir, role, CERTIFICATE_LIFETIME)?;
        }
        let mut cluster = Self {
            oxidask: oxidask.to_owned(),
            shape,
            services,
            scheduler: None,
            workers: Vec::new(),
            workers_named: 0,
            folder,
            address: String::new(),
        };
        cluster.start_scheduler("0")?;
        for _ in 0..shape.workers {
            cluster.add_worker()?;
        }
        let credentials = cluster.credentials(Role::Client)?;
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
        let all = scheduler.chain(&self.workers);
        all.map(|service| service.process.id()).collect()
    }

    /// The scheduler's process.
    pub(crate) fn scheduler_process(&self) -> Option<u32> {
        self.scheduler.as_ref().map(|service| service.process.id())
    }

    /// Kills the scheduler, without a word.
    pub(crate) fn kill_scheduler(&mut self) {
        if let Some(mut scheduler) = self.scheduler.take() {
            scheduler.end();
        }
    }

    /// Starts the scheduler again where it was, with its journal if it has one. Returns when it
    /// serves.
    pub(crate) fn start_scheduler_again(&mut self) -> Result<(), Failure> {
        let (_, port) = self
            .address
            .rsplit_once(':')
            .ok_or("the scheduler has no port")?;
        let port = port.to_owned();
        self.start_scheduler(&port)
    }

    fn start_scheduler(&mut self, port: &str) -> Result<(), Failure> {
        let journal = self.folder.path().join("journal");
        let journal = journal.to_string_lossy();
        let mut words = vec!["--port", port];
        if self.services.has_journal {
            words.extend(["--journal-dir", &journal]);
        }
        let scheduler = self.service("scheduler", Role::Scheduler, &words)?;
        scheduler.address.clone_into(&mut self.address);
        self.scheduler = Some(scheduler);
        Ok(())
    }

    /// Where the scheduler listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A certificate of this cluster.
    pub(crate) fn credentials(&self, role: Role) -> Result<Credentials, Failure> {
        Ok(Credentials::from_dir(
            &self.folder.path().join(role.to_string()),
        )?)
    }

    /// The sum of a counter over all workers.
    pub(crate) fn worker_counters(&self, counter: &str) -> Result<u64, Failure> {
        let counts = self.workers.iter().map(|worker| {
            let text = worker.metrics()?;
            let line = text.lines().find_map(|line| line.strip_prefix(counter));
            let count = line.and_then(|rest| rest.trim().parse::<u64>().ok());
            count.ok_or_else(|| format!("a worker does not count {counter}").into())
        });
        counts.sum()
    }

    /// The scheduler's metrics.
    pub(crate) fn scheduler_metrics(&self) -> Result<String, Failure> {
        let scheduler = self.scheduler.as_ref().ok_or("there is no scheduler")?;
        scheduler.metrics()
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
        let mut words = vec!["--port", "0", "--scheduler", &self.address, "--name", &name];
        words.extend(["--threads", &threads, "--scratch-dir", &scratch]);
        let memory = self.shape.memory_bytes.map(|bytes| bytes.to_string());
        if let Some(memory) = &memory {
            words.extend(["--memory", memory]);
        }
        let worker = self.service("worker", Role::Worker, &words)?;
        self.workers.push(worker);
        Ok(())
    }

    /// The process of the worker that was started first of those that run.
    pub(crate) fn first_worker(&self) -> Option<u32> {
        self.workers.first().map(|service| service.process.id())
    }

    /// Waits for the end of that worker, which was killed. It is not started again.
    pub(crate) fn forget_worker(&mut self) -> Result<(), Failure> {
        if self.workers.is_empty() {
            return Err("no worker is left".into());
        }
        self.workers.remove(0).end();
        Ok(())
    }

    /// Asks for a worker to be drained.
    pub(crate) async fn retire(&self, worker: &str) -> Result<(), Failure> {
        let credentials = self.credentials(Role::Client)?;
        let channel = oxidask_comm::connect(&self.address, &credentials, Role::Scheduler).await?;
        let request = wire::RetireRequest {
            workers: vec![worker.to_owned()],
            ..wire::RetireRequest::default()
        };
        let reply = SchedulerClient::new(channel).retire(request).await?;
        match reply.into_inner().refused.pop() {
            None => Ok(()),
            Some(refused) => Err(format!("`{worker}` was refused: {}", refused.reason).into()),
        }
    }

    /// Starts one service and waits until it says that it listens.
    fn service(&self, service: &str, role: Role, words: &[&str]) -> Result<Service, Failure> {
        let mut command = Command::new(&self.oxidask);
        command
            .arg(service)
            .arg("--tls-dir")
            .arg(self.folder.path().join(role.to_string()));
        command.args(["--bind", "127.0.0.1"]);
        command.args(if self.services.has_http {
            ["--http-port", "0"].as_slice()
        } else {
            ["--no-http"].as_slice()
        });
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
        match addresses(&mut child, service) {
            Ok((address, http)) => Ok(Service {
                process: child,
                address,
                http,
            }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }
}

impl Service {
    /// Its metrics, in the text form.
    fn metrics(&self) -> Result<String, Failure> {
        let http = self.http.as_deref().ok_or("the service has no metrics")?;
        let host = http.trim_start_matches("http://");
        let mut line = TcpStream::connect(host)?;
        line.set_read_timeout(Some(WAIT_MAX))?;
        write!(
            line,
            "GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        line.take(METRICS_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn end(&mut self) {
        end(&mut self.process);
    }
}

/// Reads the line in which a service says that it is ready: where it listens, and its HTTP port.
fn addresses(child: &mut Child, service: &str) -> Result<(String, Option<String>), Failure> {
    let output = child
        .stdout
        .take()
        .ok_or("the service has no standard output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line)
        .map_err(|error| format!("{service} did not start: `{line}`: {error}"))?;
    let address = ready["address"].as_str();
    let address = address.ok_or("the ready line has no address")?.to_owned();
    Ok((address, ready["http"].as_str().map(str::to_owned)))
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The scheduler last, so that no worker has to say that it is gone.
        self.workers.iter_mut().for_each(Service::end);
        self.scheduler.iter_mut().for_each(Service::end);
    }
}
