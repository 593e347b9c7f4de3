//! `kubectl`, as people use it.
//!
//! Invariant: every call has a bound, of the request and of the process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Outcome;
use crate::process::{Finished, failure, finish};
use crate::settings::Settings;

const CALL: Duration = Duration::from_mins(1);
const FORWARD_SECONDS_MAX: u64 = 20;
const WATCH_STARTS: Duration = Duration::from_secs(2);

/// `kubectl` for one cluster and, mostly, one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    /// For calls in a namespace.
    pub(crate) fn new(settings: &Settings, namespace: &str) -> Self {
        Self {
            program: settings.kubectl.clone(),
            kubeconfig: settings.kubeconfig.clone(),
            namespace: namespace.to_owned(),
        }
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig);
        // First: what follows `--` is not kubectl's.
        command.arg("--namespace").arg(&self.namespace);
        command.args(arguments);
        command
    }

    /// Runs it, whatever comes of it.
    pub(crate) fn call(
        &self,
        arguments: &[&str],
        input: Option<&str>,
        limit: Duration,
    ) -> Outcome<Finished> {
        finish(&mut self.command(arguments), input, limit)
    }

    /// Its standard output; it must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome<String> {
        self.call(arguments, None, CALL)?.succeeded()
    }

    /// The same for a call that waits by itself.
    pub(crate) fn run_long(&self, arguments: &[&str], seconds: u64) -> Outcome<String> {
        let timeout = format!("--timeout={seconds}s");
        let arguments = [arguments, &[timeout.as_str()]].concat();
        let limit = Duration::from_secs(seconds) + CALL;
        self.call(&arguments, None, limit)?.succeeded()
    }

    /// `kubectl apply` of a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> Outcome<String> {
        self.call(&["apply", "-f", "-"], Some(manifest), CALL)?
            .succeeded()
    }

    /// `kubectl create` of a manifest that may be too large to be kept in an annotation.
    pub(crate) fn create(&self, manifest: &str) -> Outcome<String> {
        self.call(&["create", "-f", "-"], Some(manifest), CALL)?
            .succeeded()
    }

    /// What `kubectl apply` says of a manifest that must be refused.
    pub(crate) fn apply_refused(&self, manifest: &str) -> Outcome<String> {
        self.call(&["apply", "-f", "-"], Some(manifest), CALL)?
            .failed()
    }

    /// An object, `kind/name`.
    pub(crate) fn get(&self, object: &str) -> Outcome<Value> {
        Ok(serde_json::from_str(
            &self.run(&["get", object, "-o", "json"])?,
        )?)
    }

    /// An object, if it is there.
    pub(crate) fn find(&self, object: &str) -> Outcome<Option<Value>> {
        let text = self.run(&["get", object, "-o", "json", "--ignore-not-found"])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&text)?))
    }

    /// The objects of a kind with these labels.
    pub(crate) fn list(&self, kind: &str, selector: &str) -> Outcome<Vec<Value>> {
        let text = self.run(&["get", kind, "--selector", selector, "-o", "json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Err(failure(format!("no list of {kind}: {text}"))),
        }
    }

    /// `kubectl patch` with a merge patch.
    pub(crate) fn patch(&self, object: &str, patch: &Value) -> Outcome<String> {
        let patch = patch.to_string();
        self.run(&["patch", object, "--type=merge", "--patch", &patch])
    }

    /// Evicts a pod, as `kubectl drain` does. A budget that does not allow it is an error.
    pub(crate) fn evict(&self, pod: &str) -> Outcome<String> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.namespace);
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        });
        let arguments = ["create", "--raw", &path, "-f", "-"];
        self.call(&arguments, Some(&eviction.to_string()), CALL)?
            .succeeded()
    }

    /// The names of new objects of a kind with these labels and when they were seen first, for as
    /// long as the value lives.
    pub(crate) fn watch(&self, kind: &str, selector: &str) -> Outcome<Watch> {
        let mut command = self.command(&[
            "get",
            kind,
            "--selector",
            selector,
            "--watch-only",
            "-o",
            "name",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let seen: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        if let Some(stdout) = child.stdout.take() {
            let seen = Arc::clone(&seen);
            // Ends with the child.
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let Ok(mut seen) = seen.lock() else { return };
                    if seen.iter().all(|(_, name)| *name != line) {
                        seen.push((Instant::now(), line));
                    }
                }
            });
        }
        // There is no sign that it has begun.
        std::thread::sleep(WATCH_STARTS);
        Ok(Watch { child, seen })
    }

    /// Everything in the namespace except events, as `kind/name`.
    pub(crate) fn everything(&self) -> Outcome<Vec<String>> {
        let kinds = self.run(&[
            "api-resources",
            "--namespaced",
            "--verbs=list",
            "-o",
            "name",
        ])?;
        let kinds: Vec<&str> = kinds
            .lines()
            .filter(|kind| !kind.starts_with("events"))
            .collect();
        let names = self.run(&["get", &kinds.join(","), "-o", "name"])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// A value of a Secret.
    pub(crate) fn secret(&self, name: &str, key: &str) -> Outcome<String> {
        let template = format!(
            "go-template={{{{with index .data \"{key}\"}}}}{{{{base64decode .}}}}{{{{end}}}}"
        );
        let value = self.run(&["get", "secret", name, "-o", &template])?;
        if value.is_empty() {
            return Err(failure(format!("Secret {name} has no {key}")));
        }
        Ok(value)
    }

    /// A port of a pod or Service on this host, for as long as the value lives.
    pub(crate) fn forward(&self, object: &str, port: u16) -> Outcome<Forward> {
        let ports = format!(":{port}");
        let mut command = self.command(&["port-forward", object, &ports]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            // Ends with the child, whose output must be read for as long as it lives.
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        let mut forward = Forward {
            child,
            address: String::new(),
        };
        let limit = Duration::from_secs(FORWARD_SECONDS_MAX);
        let line = lines.recv_timeout(limit).map_err(|_| {
            failure(format!(
                "no port-forward to {object} port {port} within {FORWARD_SECONDS_MAX} s"
            ))
        })?;
        // Forwarding from 127.0.0.1:41235 -> 8786
        let address = line.split_whitespace().nth(2).unwrap_or_default();
        if address.parse::<std::net::SocketAddr>().is_err() {
            return Err(failure(format!("kubectl port-forward said `{line}`")));
        }
        address.clone_into(&mut forward.address);
        Ok(forward)
    }
}

/// A port on this host that leads into the cluster.
#[derive(Debug)]
pub(crate) struct Forward {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `kubectl get --watch-only` has shown.
#[derive(Debug)]
pub(crate) struct Watch {
    child: Child,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Watch {
    /// When each object was seen first, in this order.
    pub(crate) fn seen(&self) -> Vec<(Instant, String)> {
        self.seen
            .lock()
            .map(|seen| seen.clone())
            .unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
