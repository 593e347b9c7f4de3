//! The operator's process, and what the kernel and its own port say of it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::Failure;

/// Ticks of the kernel's clock for processor time; Linux has had 100 for ever.
const TICKS_PER_SECOND: f64 = 100.0;

const SCRAPE_LIMIT: Duration = Duration::from_secs(10);

/// An operator; it is killed when it is dropped.
pub(crate) struct Operator {
    child: Child,
    address: SocketAddr,
}

impl Operator {
    pub(crate) async fn start(
        binary: &Path,
        kubeconfig: &Path,
        arguments: &[String],
    ) -> Result<Self, Failure> {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            listener.local_addr()?
        };
        let log = kubeconfig.with_extension("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        let child = Command::new(binary)
            .args(["--http-bind", &address.to_string(), "--log-level", "warn"])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            // As its image does.
            .env("MIMALLOC_PURGE_DELAY", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, address })
    }

    pub(crate) async fn kill(mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Seconds of processor time so far.
    pub(crate) fn processor_seconds(&self) -> Result<f64, Failure> {
        let text = self.proc("stat")?;
        // The name in parentheses may hold anything.
        let rest = text
            .rsplit_once(") ")
            .ok_or("no fields in /proc/PID/stat")?
            .1;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| -> f64 {
            fields
                .get(at)
                .and_then(|it| it.parse().ok())
                .unwrap_or_default()
        };
        Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
    }

    /// MB of memory now, and at most so far.
    pub(crate) fn memory_mb(&self) -> Result<(f64, f64), Failure> {
        let text = self.proc("status")?;
        let kb = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|it| it.split_whitespace().next()?.parse().ok());
            number.unwrap_or_default()
        };
        Ok((kb("VmRSS:") / 1024.0, kb("VmHWM:") / 1024.0))
    }

    fn proc(&self, file: &str) -> Result<String, Failure> {
        let id = self.child.id().ok_or("the operator has ended")?;
        Ok(std::fs::read_to_string(format!("/proc/{id}/{file}"))?)
    }

    /// The sum of all samples of a metric whose labels contain a text.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> Result<f64, Failure> {
        let text = tokio::time::timeout(SCRAPE_LIMIT, self.scrape()).await??;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    async fn scrape(&self) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = "GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}
