//! Who is let in at the ports of real services, and what strangers can do there: nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use oxidask_identity::Role;
use oxidask_pki::{Authority, Lifetime};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;
use support::{Finished, Running, Workspace, eventually, signal};

const TIDY: Duration = Duration::from_secs(3);
/// Time in which a refusal must be told.
const TOLD: Duration = Duration::from_secs(8);
const HOUR: Duration = Duration::from_hours(1);
/// A handshake has 5 s.
const HANDSHAKE: Duration = Duration::from_secs(9);
/// What most systems give a process that does not ask for more.
const OPEN_FILES: u64 = 1_024;

/// Two clusters' authorities.
struct Authorities {
    home: Authority,
    other: Authority,
}

impl Authorities {
    fn new() -> Self {
        oxidask_comm::install_crypto_provider();
        Self {
            home: Authority::new("local", "home").unwrap(),
            other: Authority::new("local", "other").unwrap(),
        }
    }
}

/// Writes a folder with certificates: a leaf of an authority, and the authorities that are trusted.
fn write_certificates(
    workspace: &Workspace,
    folder: &str,
    (leaf, trusted): (&Authority, &[&Authority]),
    role: Role,
    lifetime: impl Into<Lifetime>,
) {
    let path = workspace.path().join(folder);
    leaf.write_dir(&path, role, lifetime).unwrap();
    let bundle: String = trusted.iter().map(|authority| authority.ca_pem()).collect();
    fs::write(path.join("ca.crt"), bundle).unwrap();
}

/// A scheduler and workers, each with both of its ports.
struct Cluster {
    workspace: Workspace,
    authorities: Authorities,
    scheduler: Running,
    workers: Vec<Running>,
    /// `oxidask://host:port`
    address: String,
    /// `host:port` of the ports with mutual TLS.
    tls_ports: Vec<String>,
    /// `host:port` of the HTTP ports.
    http_ports: Vec<String>,
}

impl Cluster {
    fn start(workers: usize) -> Self {
        let workspace = Workspace::new();
        let authorities = Authorities::new();
        let (home, other) = (&authorities.home, &authorities.other);
        // The scheduler trusts both authorities, so that identities alone keep the other out.
        let both = (home, &[home, other][..]);
        write_certificates(&workspace, "scheduler", both, Role::Scheduler, HOUR);
        let own = (home, &[home][..]);
        write_certificates(&workspace, "worker", own, Role::Worker, HOUR);
        write_certificates(&workspace, "client", own, Role::Client, HOUR);
        let (scheduler, ready) = start_service(&workspace, &scheduler_arguments("scheduler"));
        let address = text(&ready, "address");
        let mut cluster = Self {
            workspace,
            authorities,
            scheduler,
            workers: Vec::new(),
            tls_ports: vec![address.replace("oxidask://", "")],
            address,
            http_ports: vec![text(&ready, "http").replace("http://", "")],
        };
        for number in 0..workers {
            let name = format!("worker-{number}");
            let arguments = worker_arguments(&name, &cluster.address, "worker");
            let (worker, ready) = start_service(&cluster.workspace, &arguments);
            cluster.workers.push(worker);
            cluster.tls_ports.push(text(&ready, "address"));
            let http = text(&ready, "http").replace("http://", "");
            cluster.http_ports.push(http);
        }
        eventually("the workers", TIDY * 3, || {
            cluster.worker_lines().len() == workers
        });
        cluster
    }

    fn arguments<'a>(&'a self, command: &[&'a str], tls_dir: &'a str) -> Vec<&'a str> {
        let connect = ["--scheduler", &self.address, "--tls-dir", tls_dir];
        command.iter().copied().chain(connect).collect()
    }

    fn run(&self, command: &[&str]) -> Finished {
        self.workspace.run(&self.arguments(command, "client"))
    }

    fn start_command(&self, command: &[&str]) -> Running {
        self.workspace.start(&self.arguments(command, "client"))
    }

    fn worker_lines(&self) -> Vec<Value> {
        let status = self.run(&["status", "-o", "json"]).expect(0);
        let mut lines = status.json();
        lines.retain(|line| line["kind"] == "worker");
        lines
    }

    /// Starts a job that sleeps for about so long, and adds up.
    fn start_sum(&self) -> Running {
        self.workspace.graph_job(1, &sum(40, 0.1));
        let submit = self.start_command(&["submit", "job.yaml"]);
        eventually("the running job", TIDY * 3, || {
            let status = self.run(&["status", "-o", "json"]).expect(0);
            status.json().iter().any(|line| line["kind"] == "graph")
        });
        submit
    }

    /// Everything goes on: health, status, a job.
    fn assert_alive(&self) {
        for port in &self.http_ports {
            let (status, _) = http(port, "GET", "/health");
            assert_eq!(status, 200, "{port}");
        }
        assert_eq!(self.worker_lines().len(), self.workers.len());
        self.workspace.graph_job(1, &sum(4, 0.0));
        let job = self.run(&["submit", "job.yaml"]).expect(0);
        assert_eq!(job.stdout, "{\"key\":\"total\",\"value\":6}\n");
    }

    /// All services end tidily, and none has met a defect.
    fn end(self) {
        for service in self.workers.into_iter().chain([self.scheduler]) {
            service.signal(Signal::TERM);
            let ended = service.finish_within(TIDY).expect(0);
            for defect in ["defect:", "panicked", "error["] {
                assert!(!ended.stderr.contains(defect), "{}", ended.stderr);
            }
        }
        self.workspace.assert_clean(TIDY);
    }
}

fn scheduler_arguments(tls_dir: &str) -> Vec<&str> {
    vec![
        "scheduler",
        "--bind=127.0.0.1",
        "--port=0",
        "--http-port=0",
        "--tls-dir",
        tls_dir,
    ]
}

fn worker_arguments<'a>(name: &'a str, scheduler: &'a str, tls_dir: &'a str) -> Vec<&'a str> {
    vec![
        "worker",
        "--bind=127.0.0.1",
        "--port=0",
        "--http-port=0",
        "--threads=2",
        "--name",
        name,
        "--scheduler",
        scheduler,
        "--tls-dir",
        tls_dir,
    ]
}

/// A service as most systems start it, with few open files, and what it says when it is ready.
fn start_service(workspace: &Workspace, arguments: &[&str]) -> (Running, Value) {
    let plain = workspace.command(arguments);
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -S -n {OPEN_FILES}; exec \"$0\" \"$@\""))
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(workspace.path())
        .env_clear()
        .stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let service = Running::spawn(command);
    service.await_stdout("\n");
    let ready = serde_json::from_str(service.stdout().trim()).unwrap();
    (service, ready)
}

fn text(ready: &Value, field: &str) -> String {
    ready[field].as_str().unwrap().to_owned()
}

/// So many numbers, each after a sleep, and their sum.
fn sum(count: usize, seconds: f64) -> String {
    let mut lines = String::new();
    let mut inputs = Vec::new();
    for number in 0..count {
        let _ = write!(
            lines,
            "{{\"key\": \"nap-{number}\", \"op\": \"sleep\", \"args\": {{\"seconds\": {seconds}}}}}\n\
             {{\"key\": \"n-{number}\", \"op\": \"value\", \"inputs\": [\"nap-{number}\"], \
             \"args\": {{\"value\": {number}}}}}\n"
        );
        inputs.push(format!("\"n-{number}\""));
    }
    let inputs = inputs.join(", ");
    let _ = writeln!(
        lines,
        "{{\"key\": \"total\", \"op\": \"sum\", \"inputs\": [{inputs}]}}"
    );
    lines
}

fn assert_sum(job: Running) {
    let job = job.finish().expect(0);
    assert_eq!(job.stdout, "{\"key\":\"total\",\"value\":780}\n");
    assert!(!job.stderr.contains("died"), "{}", job.stderr);
}

/// One error with this code and these words, a hint, soon, and nothing on standard output.
#[track_caller]
fn assert_refused(ended: Finished, status: i32, code: &str, words: &str) {
    let ended = ended.expect(status);
    ended.assert_stderr(&format!("error[{code}]: "));
    ended.assert_stderr(words);
    ended.assert_stderr("\nhint: ");
    assert_eq!(ended.stderr.matches("error[").count(), 1, "{ended:?}");
    assert_eq!(ended.stdout.replace(char::is_whitespace, ""), "");
    assert!(ended.elapsed < TOLD, "{ended:?}");
}

const NOT_TRUSTED: &str = "it is not from the authority that the peer trusts";
const OTHER_CLUSTER: &str =
    "belongs to another cluster: it is `spiffe://oxidask/ns/local/cluster/home/role/scheduler`";

/// Folders with certificates that do not let their owner in, whatever it is.
fn write_bad_certificates(
    cluster: &Cluster,
    role: Role,
) -> Vec<(&'static str, i32, &'static str, &'static str)> {
    let workspace = &cluster.workspace;
    let (home, other) = (&cluster.authorities.home, &cluster.authorities.other);
    let stranger = &Authority::new("local", "home").unwrap();
    let own = (home, &[home][..]);
    write_certificates(workspace, "expired", own, role, Lifetime::expired());
    // The right names, but of an authority that nobody knows.
    write_certificates(workspace, "stranger", (stranger, &[home]), role, HOUR);
    write_certificates(workspace, "distrusting", (home, &[stranger]), role, HOUR);
    write_certificates(workspace, "elsewhere", (other, &[home, other]), role, HOUR);
    write_certificates(workspace, "mixed", own, role, HOUR);
    let key = home.issue(role, HOUR).unwrap().key_pem;
    workspace.write("mixed/tls.key", key);
    write_certificates(workspace, "garbage", own, role, HOUR);
    workspace.write("garbage/tls.crt", "no certificate\n");
    write_certificates(workspace, "keyless", own, role, HOUR);
    fs::remove_file(workspace.path().join("keyless/tls.key")).unwrap();
    vec![
        ("nowhere", 2, "OX401", "`nowhere/"),
        ("keyless", 2, "OX401", "`keyless/tls.key` cannot be read"),
        ("garbage", 2, "OX401", "there is no usable "),
        (
            "mixed",
            2,
            "OX401",
            "certificate, key and authority do not fit together",
        ),
        ("expired", 1, "OX402", "it has expired"),
        ("stranger", 1, "OX402", NOT_TRUSTED),
        (
            "distrusting",
            1,
            "OX402",
            "it is not from this cluster's authority",
        ),
        ("elsewhere", 1, "OX403", OTHER_CLUSTER),
    ]
}

#[test]
fn clients_are_told_why_they_are_not_let_in() {
    let cluster = Cluster::start(1);
    cluster.workspace.graph_job(1, &sum(4, 0.0));
    let mut cases = write_bad_certificates(&cluster, Role::Client);
    let home = &cluster.authorities.home;
    for (role, folder) in [
        (Role::Worker, "as-worker"),
        (Role::Operator, "as-operator"),
        (Role::Scheduler, "as-scheduler"),
    ] {
        write_certificates(&cluster.workspace, folder, (home, &[home]), role, HOUR);
        cases.push((folder, 1, "OX404", "may not make this call"));
    }
    for (folder, status, code, words) in cases {
        for command in [&["status"][..], &["submit", "job.yaml"]] {
            let ended = cluster.workspace.run(&cluster.arguments(command, folder));
            assert_refused(ended, status, code, words);
        }
    }
    cluster.assert_alive();
    cluster.end();
}

#[test]
fn workers_are_told_why_they_are_not_let_in() {
    let cluster = Cluster::start(1);
    let mut cases = write_bad_certificates(&cluster, Role::Worker);
    cases.push(("client", 1, "OX404", "may not make this call"));
    for (folder, status, code, words) in cases {
        let arguments = worker_arguments("eve", &cluster.address, folder);
        let ended = cluster.workspace.run(&arguments);
        let ready = ended.stdout.lines().next().unwrap_or_default().to_owned();
        // Its ports are there before it knocks; with unusable files it has none.
        assert_eq!(ready.is_empty(), code == "OX401", "{ended:?}");
        let stdout = ended.stdout.replace(&ready, "");
        if code != "OX401" {
            ended.assert_stderr("worker `eve`");
        }
        assert_refused(Finished { stdout, ..ended }, status, code, words);
    }
    cluster.assert_alive();
    cluster.end();
}

#[test]
fn whoever_connects_to_a_wrong_scheduler_is_told() {
    let cluster = Cluster::start(1);
    let workspace = &cluster.workspace;
    let (home, other) = (&cluster.authorities.home, &cluster.authorities.other);
    let stranger = &Authority::new("local", "home").unwrap();
    // Clients and workers that know the other authority, too: the identity alone is wrong.
    for (role, folder) in [(Role::Client, "wide-client"), (Role::Worker, "wide-worker")] {
        write_certificates(workspace, folder, (home, &[home, other]), role, HOUR);
    }
    let everyone = &[home, other, stranger][..];
    let expired = Lifetime::expired();
    let cases = [
        (
            "other",
            other,
            Role::Scheduler,
            HOUR.into(),
            "OX403",
            "belongs to another cluster",
        ),
        (
            "unknown",
            stranger,
            Role::Scheduler,
            HOUR.into(),
            "OX402",
            "it is not from this cluster's authority",
        ),
        (
            "old",
            home,
            Role::Scheduler,
            expired,
            "OX402",
            "it has expired",
        ),
        (
            "posing",
            home,
            Role::Worker,
            HOUR.into(),
            "OX403",
            "is not a scheduler of this cluster but a worker",
        ),
    ];
    for (folder, issuer, role, lifetime, code, words) in cases {
        let lifetime: Lifetime = lifetime;
        write_certificates(workspace, folder, (issuer, everyone), role, lifetime);
        let (scheduler, ready) = start_service(workspace, &scheduler_arguments(folder));
        let address = text(&ready, "address");
        let status = [
            "status",
            "--scheduler",
            &address,
            "--tls-dir",
            "wide-client",
        ];
        assert_refused(workspace.run(&status), 1, code, words);
        let worker = workspace.run(&worker_arguments("eve", &address, "wide-worker"));
        let stdout = String::new();
        assert_refused(Finished { stdout, ..worker }, 1, code, words);
        scheduler.signal(Signal::TERM);
        scheduler.finish_within(TIDY).expect(0);
    }
    cluster.assert_alive();
    cluster.end();
}

#[test]
fn whoever_connects_to_a_port_of_another_kind_is_told() {
    let cluster = Cluster::start(1);
    let workspace = &cluster.workspace;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap().to_string();
    drop(closed);
    let wrong_ports = [
        (&cluster.tls_ports[1], "is a port of another kind"),
        (&cluster.http_ports[0], "does not speak TLS as oxidask does"),
        (&nobody, "cannot be reached"),
    ];
    for (port, words) in wrong_ports {
        let address = format!("oxidask://{port}");
        let status = ["status", "--scheduler", &address, "--tls-dir", "client"];
        assert_refused(workspace.run(&status), 1, "OX113", words);
    }
    let http = format!("http://{}", cluster.http_ports[0]);
    let status = ["status", "--scheduler", &http, "--tls-dir", "client"];
    workspace
        .run(&status)
        .expect(2)
        .assert_stderr("`oxidask://host:port`");
    cluster.assert_alive();
    cluster.end();
}

/// The status and the whole answer.
fn http(port: &str, method: &str, path: &str) -> (u16, String) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(port, request.as_bytes(), TOLD).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (
        status.unwrap_or_else(|| panic!("no status in `{answer}` of {port}{path}")),
        answer,
    )
}

/// Sends bytes and reads until the peer ends the connection; an error if it does not in time.
fn exchange(port: &str, bytes: &[u8], within: Duration) -> Result<Vec<u8>, ErrorKind> {
    let mut tcp = TcpStream::connect(port).unwrap();
    tcp.set_read_timeout(Some(within)).unwrap();
    // The peer may have seen enough before it has all.
    let _ = tcp.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    let start = Instant::now();
    while start.elapsed() < within {
        match tcp.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) => return Err(error.kind()),
        }
    }
    Err(ErrorKind::TimedOut)
}

/// Bytes that are no message of anything; the same for the same seed.
fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// The beginning of a TLS greeting that never goes on.
const HALF_GREETING: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00];
const REQUEST: &[u8] = b"GET /api/v1/status HTTP/1.1\r\nHost: test\r\n\r\n";
/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn nonsense_at_every_port_harms_nobody() {
    let cluster = Cluster::start(2);
    let job = cluster.start_sum();
    thread::scope(|scope| {
        for port in &cluster.tls_ports {
            scope.spawn(move || {
                for round in 0..20 {
                    drop(TcpStream::connect(port).unwrap());
                    let random = random_bytes(round, 64 * 1_024);
                    for bytes in [&random[..], REQUEST, PREFACE] {
                        let answer = exchange(port, bytes, HANDSHAKE).unwrap();
                        assert!(answer.len() < 64, "{port}: {answer:?}");
                    }
                }
                // Those that do not go on are cut when their time is over.
                for bytes in [&b""[..], HALF_GREETING] {
                    exchange(port, bytes, HANDSHAKE).unwrap();
                }
            });
        }
        for port in &cluster.http_ports {
            scope.spawn(move || {
                for round in 0..20 {
                    drop(TcpStream::connect(port).unwrap());
                    let random = random_bytes(round, 64 * 1_024);
                    for bytes in [&random[..], HALF_GREETING] {
                        let tcp = TcpStream::connect(port).unwrap();
                        let _ = (&tcp).write_all(bytes);
                        let _ = tcp.shutdown(Shutdown::Both);
                    }
                }
            });
        }
    });
    assert_sum(job);
    cluster.assert_alive();
    cluster.end();
}

#[test]
fn http_ports_give_no_data_away() {
    let cluster = Cluster::start(1);
    // There is something to give away.
    let job = cluster.start_sum();
    for port in &cluster.http_ports {
        for path in ["/health", "/livez", "/readyz", "/metrics"] {
            let (status, answer) = http(port, "GET", path);
            assert_eq!(status, 200, "{port}{path}");
            assert!(!answer.contains("nap-"), "{answer}");
        }
        for path in [
            "/api/v1/status",
            "/api/v1/workers",
            "/api/v1/graphs",
            "/api/v1/",
            "/api/v1/../../health/../api/v1/status",
            "/json/counts.json",
            "/json/identity.json",
            "/json/workers.json",
            "/info/main/workers.html",
            "/status",
            "/",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                let (status, answer) = http(port, method, path);
                let is_refused = matches!(status, 401 | 404);
                assert!(is_refused, "{method} {port}{path} gave {answer}");
                assert!(answer.len() < 512, "{method} {port}{path} gave {answer}");
            }
        }
    }
    assert_sum(job);
    cluster.end();
}

/// Lets this process open as many files as it may.
fn allow_many_connections() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = maximum;
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    });
}

fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_thousand_idle_connections_to_each_port_keep_nobody_out() {
    allow_many_connections();
    let cluster = Cluster::start(1);
    let processes = [cluster.scheduler.pid(), cluster.workers[0].pid()];
    let job = cluster.start_sum();
    let mut idle = Vec::new();
    for port in cluster.tls_ports.iter().chain(&cluster.http_ports) {
        for _ in 0..1_000 {
            idle.push(TcpStream::connect(port).unwrap());
        }
    }
    let start = Instant::now();
    cluster.assert_alive();
    assert!(start.elapsed() < TOLD, "{:?}", start.elapsed());
    assert_sum(job);
    cluster.assert_alive();
    // Those that are still open do not keep a service from ending; those that left are forgotten.
    idle.truncate(2_000);
    for port in &cluster.tls_ports {
        exchange(port, b"", HANDSHAKE).unwrap();
    }
    for pid in processes {
        eventually("the end of idle connections", HANDSHAKE, || {
            open_files(pid) < 100
        });
    }
    cluster.assert_alive();
    cluster.end();
    drop(idle);
}

/// A small result, then a large one, then one that takes a while.
const LARGE: &str = r#"{"outputs": ["small", "large", "late"]}
{"key": "small", "op": "bytes", "args": {"len": 100}}
{"key": "large", "op": "bytes", "args": {"len": 167772160, "seed": 7}}
{"key": "nap", "op": "sleep", "args": {"seconds": 1}}
{"key": "late", "op": "bytes", "inputs": ["nap"], "args": {"len": 16777216, "seed": 8}}
"#;

/// Starts the job with large results and stops its client in the middle of them.
fn start_and_stop_client(cluster: &Cluster) -> Running {
    cluster.workspace.graph_job(1, LARGE);
    let client = cluster.start_command(&["submit", "job.yaml"]);
    client.await_stdout("\"small\"");
    client.signal(Signal::STOP);
    assert!(!client.stdout().contains("\"large\""), "stopped too late");
    client
}

#[test]
fn a_client_that_stops_reading_for_a_while_harms_nobody_and_gets_its_results() {
    let cluster = Cluster::start(1);
    let client = start_and_stop_client(&cluster);
    let stopped = Instant::now();
    // Longer than the scheduler keeps a worker's connection for a client that does not read.
    while stopped.elapsed() < Duration::from_secs(7) {
        cluster.assert_alive();
        sleep(Duration::from_millis(250));
    }
    client.signal(Signal::CONT);
    let client = client.finish().expect(0);
    cluster.workspace.graph_job(1, LARGE);
    let undisturbed = cluster.run(&["submit", "job.yaml"]).expect(0);
    assert_eq!(client.stdout, undisturbed.stdout);
    assert_eq!(client.json()[1]["bytes"], 167_772_160);
    cluster.end();
}

#[test]
fn peers_that_are_away_for_long_are_missed_and_come_back() {
    let cluster = Cluster::start(2);
    let client = start_and_stop_client(&cluster);
    let job = cluster.start_sum();
    let worker = cluster.workers[1].pid();
    signal(worker, Signal::STOP);
    // Longer than the interval of keepalive and the time for its answer.
    let job = job.finish().expect(0);
    assert_eq!(job.stdout, "{\"key\":\"total\",\"value\":780}\n");
    job.assert_stderr("worker worker-1 is silent; ");
    sleep(Duration::from_secs(16).saturating_sub(job.elapsed));
    client.signal(Signal::CONT);
    signal(worker, Signal::CONT);
    let client = client.finish_within(TOLD).expect(0);
    client.assert_stderr("reconnecting to the scheduler");
    cluster.workspace.graph_job(1, LARGE);
    let undisturbed = cluster.run(&["submit", "job.yaml"]).expect(0);
    assert_eq!(client.stdout, undisturbed.stdout);
    // The worker was given up; it is welcome again.
    eventually("both workers", TOLD, || cluster.worker_lines().len() == 2);
    assert_sum(cluster.start_sum());
    cluster.end();
}

#[test]
fn a_worker_that_stops_for_a_moment_changes_nothing() {
    let cluster = Cluster::start(2);
    let job = cluster.start_sum();
    let worker = cluster.workers[1].pid();
    signal(worker, Signal::STOP);
    sleep(Duration::from_secs(3));
    signal(worker, Signal::CONT);
    assert_sum(job);
    cluster.assert_alive();
    cluster.end();
}
