//! The operator's questions to a Dask scheduler, put to a real one: stock Dask from the environment
//! of the peers, with the configuration that it comes with.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::python;
use crate::packages::OPERATOR;
use crate::process::run as run_command;
use crate::{Failure, say};

/// Workers that the test counts.
const WORKERS: usize = 2;

/// How long Dask may take to come up.
const START_LIMIT: Duration = Duration::from_mins(1);

/// The test, as cargo selects it.
const TEST: &str = "a_real_scheduler_answers";

/// Starts a scheduler and workers, and runs the operator's test against them.
pub(crate) fn stage(root: &Path) -> Result<(), Failure> {
    let python = python::environment()?;
    let folder = tempfile::tempdir()?;
    let (comm, http) = (free_port()?, free_port()?);
    let mut arguments = vec!["scheduler".to_owned()];
    arguments.extend(["--host".to_owned(), "127.0.0.1".to_owned()]);
    arguments.extend(["--port".to_owned(), comm.to_string()]);
    arguments.extend([
        "--dashboard-address".to_owned(),
        format!("127.0.0.1:{http}"),
    ]);
    let _scheduler = Process::start(&python, &arguments, folder.path())?;
    wait_open(comm)?;
    let mut workers = Vec::new();
    for index in 0..WORKERS {
        let mut arguments = vec!["worker".to_owned(), format!("tcp://127.0.0.1:{comm}")];
        arguments.extend(["--name".to_owned(), format!("w{index}")]);
        arguments.extend(["--nthreads".to_owned(), "1".to_owned()]);
        arguments.extend(["--no-nanny".to_owned(), "--no-dashboard".to_owned()]);
        workers.push(Process::start(&python, &arguments, folder.path())?);
    }
    wait_workers(&python, comm)?;
    say!("a stock Dask scheduler with {WORKERS} workers listens on {comm} and {http}");
    let words = ["test", "--features", "real-dask", TEST];
    let mut test = OPERATOR.cargo_release(root, &words);
    test.env("OXIDASK_DASK_SCHEDULER", format!("127.0.0.1:{comm}:{http}"));
    run_command(&mut test)
}

/// A process that ends with the stage.
struct Process(Child);

impl Process {
    fn start(python: &Path, arguments: &[String], folder: &Path) -> Result<Self, Failure> {
        let child = Command::new(python)
            .args(["-m", "dask"])
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_open(port: u16) -> Result<(), Failure> {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > START_LIMIT {
            return Err("the Dask scheduler did not come up".into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Dask's own client waits for the workers.
fn wait_workers(python: &Path, port: u16) -> Result<(), Failure> {
    let seconds = START_LIMIT.as_secs();
    let program = format!(
        "from distributed import Client\n\
         with Client('tcp://127.0.0.1:{port}', timeout={seconds}) as client:\n\
         \x20   client.wait_for_workers({WORKERS}, timeout={seconds})\n"
    );
    run_command(Command::new(python).args(["-c", &program]))
}
