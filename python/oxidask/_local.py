"""A cluster on this machine.

Owns finding the program `oxidask`, starting the scheduler by `oxidask up` and workers beside it, and
how many there are. The scheduler and its certificates live in a private folder that `oxidask up`
makes and removes. Needs no Rust code beyond the program.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oxidask import _finding
from oxidask._adaptive import Adaptive, Rule, bounds
from oxidask._cluster import BaseCluster
from oxidask._errors import OxidaskError
from oxidask._processes import Member, Processes
from oxidask._security import security_from_dir

PROGRAM = "oxidask"
PROGRAM_VARIABLE = "OXIDASK_PROGRAM"
PYTHON_VARIABLE = "OXIDASK_PYTHON"

_GROUP = "default"
_SCHEDULER = "oxidask up"
#: Time that the scheduler has to come up, and a worker to hand over what it holds.
_START_SECONDS = 30.0
_GRACE_SECONDS = 30
#: Lines that `oxidask up` says before it is ready.
_START_LINES_MAX = 100
_ADAPT_INTERVAL = "1s"
_ADAPT_WAIT_COUNT = 3


class LocalCluster(BaseCluster):
    """Scheduler and workers as processes of this machine; they end with this Python.

    Parameters
    ----------
    n_workers
        Processes that run tasks; `None`: as many as fit the processors.
    threads_per_worker
        Tasks that one worker runs at a time, each in a process of its own.
    memory_limit
        Of each worker: `"auto"` for an equal share of the machine's, bytes, a text such as `"2GiB"`,
        a share of the machine's memory, or `None` for all of it.
    name
        Of the cluster.
    resources
        What each worker offers to tasks that ask for it, such as `{"gpu": 1}`.
    environment
        Variables of the workers, which are also those of tasks.
    program
        The program `oxidask`, if it is not `$OXIDASK_PROGRAM`, beside the package or on the `PATH`.
    python
        The interpreter of tasks; this one unless it is given.
    local_directory
        Where workers put what does not fit into memory.
    log_level
        Of all processes: `error`, `warn`, `info` or `debug`.
    asynchronous
        Methods are awaited: `async with LocalCluster(asynchronous=True) as cluster`.

    Examples
    --------
    >>> with LocalCluster(n_workers=2) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """

    def __init__(  # noqa: PLR0913 (named settings, as distributed.LocalCluster has them)
        self,
        n_workers: int | None = 2,
        threads_per_worker: int | None = 1,
        memory_limit: str | float | int | None = "auto",
        *,
        name: str | None = None,
        resources: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        program: str | os.PathLike[str] | None = None,
        python: str | os.PathLike[str] | None = None,
        local_directory: str | os.PathLike[str] | None = None,
        log_level: str = "error",
        asynchronous: bool = False,
    ) -> None:
        super().__init__(name or f"local-{uuid.uuid4().hex[:8]}", asynchronous)
        self._settings = _Settings(n_workers, threads_per_worker, memory_limit)
        self._settings.resources = dict(resources or {})
        self._settings.environment = dict(environment or {})
        self._settings.python = str(python or sys.executable)
        self._settings.log_level = log_level
        self._program = find_program(program)
        parent = None if local_directory is None else str(local_directory)
        self._folder = Path(tempfile.mkdtemp(prefix="oxidask-workers-", dir=parent))
        self._processes: Processes | None = None
        self._adaptive: Adaptive | None = None
        self._next_worker = 0
        self._scale_lock = threading.RLock()
        self._dashboard_link = ""
        self._tls_folder = Path()
        # Also when nobody closes it, and while the interpreter still works.
        self._finalizer = weakref.finalize(self, _end, None, self._folder)
        if not asynchronous:
            self._ensure_started()

    # ---- starting ----

    def _start(self) -> None:
        self._processes = processes = Processes(_Reporter(self))
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _end, processes, self._folder)
        manifest = self._folder / "cluster.json"
        manifest.write_text(json.dumps(self._manifest()))
        scheduler = Member(
            name=_SCHEDULER,
            command=[str(self._program), "--log-level", self._settings.log_level, "up", str(manifest)],
            environment=_environment({}),
            log=self._folder / "logs" / "scheduler.log",
            ends_by_signal=True,
        )
        processes.add(scheduler)
        said = _read_invitation(scheduler)
        self.scheduler_address = said["scheduler"]
        self._dashboard_link = said.get("http", "")
        tls_dir = Path(said["tls dir"])
        self._tls_folder = tls_dir.parent
        self.security = security_from_dir(tls_dir)
        self._scale(self._settings.n_workers)

    def _manifest(self) -> dict[str, Any]:
        # Workers are started here, where they can be more and fewer.
        return {
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskCluster",
            "metadata": {"name": self.name},
            "spec": {"worker": {"replicas": 0, "threads": self._settings.threads}},
        }

    def _worker(self, name: str) -> Member:
        settings = self._settings
        scratch = self._folder / "scratch" / name
        scratch.mkdir(parents=True, exist_ok=True)
        command = [
            str(self._program),
            "worker",
            "--bind=127.0.0.1",
            "--port=0",
            "--no-http",
            f"--tls-dir={self._tls_folder / 'worker'}",
            f"--parent-pid={os.getpid()}",
            f"--log-level={settings.log_level}",
            f"--scheduler={self.scheduler_address}",
            f"--name={name}",
            f"--group={_GROUP}",
            f"--threads={settings.threads}",
            f"--memory={settings.memory_bytes}",
            f"--base-dir={os.getcwd()}",
            f"--scratch-dir={scratch}",
            f"--grace-seconds={_GRACE_SECONDS}",
            "--load-python",
        ]
        if settings.resources:
            offered = ",".join(f"{key}={value}" for key, value in settings.resources.items())
            command.append(f"--resources={offered}")
        return Member(
            name=name,
            command=command,
            environment=_environment({PYTHON_VARIABLE: settings.python, **settings.environment}),
            log=self._folder / "logs" / f"{name}.log",
        )

    # ---- size ----

    def _scale(self, n: int) -> None:
        with self._scale_lock:
            processes = self._processes
            if processes is None:
                raise RuntimeError(f"the cluster `{self.name}` does not run")
            names = [name for name in processes.names() if name != _SCHEDULER]
            for _ in range(n - len(names)):
                name = f"{_GROUP}-{self._next_worker}"
                self._next_worker += 1
                processes.add(self._worker(name))
            if n < len(names):
                self._retire(processes, names, len(names) - n)

    def _retire(self, processes: Processes, names: list[str], count: int) -> None:
        """Those go that hold least; they end by themselves when they are empty."""
        try:
            accepted, _ = self._administration().retire(_GROUP, count)
        except OxidaskError:
            accepted = []
        chosen = [name for name in accepted if name in names]
        # Workers that have not joined yet hold nothing.
        others = [name for name in reversed(names) if name not in chosen][: count - len(chosen)]
        for name in chosen:
            processes.leave(name)
        for name in others:
            processes.leave(name)
            processes.signal(name, signal.SIGTERM)

    def scale(self, n: int | None = None, cores: int | None = None, memory: str | int | None = None) -> Any:
        """Have so many workers, or as many as give so many cores or so much memory."""
        from dask.utils import parse_bytes

        wanted = [n] if n is not None else []
        if cores is not None:
            wanted.append(-(-cores // self._settings.threads))
        if memory is not None:
            wanted.append(-(-parse_bytes(memory) // self._settings.memory_bytes))
        if not wanted:
            raise TypeError("scale() needs a number of workers, `cores` or `memory`")
        self._stop_adapting()
        return super().scale(max(wanted))

    def adapt(
        self,
        minimum: int | None = None,
        maximum: int | None = None,
        interval: str | float = _ADAPT_INTERVAL,
        wait_count: int = _ADAPT_WAIT_COUNT,
        **_: Any,
    ) -> Adaptive:
        """Have as many workers as there is work for, between these numbers."""
        from dask.utils import parse_timedelta

        self._stop_adapting()
        rule = Rule(*bounds(minimum, maximum), wait_count)
        self._adaptive = Adaptive(rule, parse_timedelta(interval, "s"), self._look, self._scale)
        return self._adaptive

    def _look(self) -> tuple[int, int]:
        groups = self._administration().status()["groups"]
        wanted = groups.get(_GROUP, {}).get("workers_wanted", 0)
        names = self._processes.names() if self._processes is not None else []
        return len([name for name in names if name != _SCHEDULER]), wanted

    def _stop_adapting(self) -> None:
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None

    # ---- what it is ----

    @property
    def dashboard_link(self) -> str:
        """Where the scheduler serves HTTP, with the token that opens it."""
        return self._dashboard_link

    @property
    def tls_dir(self) -> Path:
        """The folder with the certificates of clients, for `OXIDASK_TLS_DIR` of other programs."""
        return self._tls_folder / "client"

    @property
    def worker_spec(self) -> dict[str, dict[str, Any]]:
        """Workers by name, and what each was started with."""
        names = self._processes.names() if self._processes is not None else []
        settings = self._settings
        spec = {"nthreads": settings.threads, "memory_limit": settings.memory_bytes, "resources": settings.resources}
        return {name: {"cls": "oxidask worker", "options": dict(spec)} for name in names if name != _SCHEDULER}

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """The same, under the name that `distributed` has for it."""
        return self.worker_spec

    def _close(self) -> None:
        self._stop_adapting()
        processes, self._processes = self._processes, None
        self._finalizer.detach()
        _end(processes, self._folder)


class _Settings:
    """How workers are started."""

    def __init__(self, n_workers: int | None, threads: int | None, memory_limit: str | float | int | None) -> None:
        from dask.system import CPU_COUNT

        self.threads = threads or 1
        if self.threads < 1:
            raise ValueError(f"a worker cannot have {threads} threads")
        self.n_workers = max(1, CPU_COUNT // self.threads) if n_workers is None else n_workers
        if self.n_workers < 0:
            raise ValueError(f"a cluster cannot have {n_workers} workers")
        self.memory_bytes = memory_bytes(memory_limit, self.n_workers)
        self.resources: dict[str, int] = {}
        self.environment: dict[str, str] = {}
        self.python = sys.executable
        self.log_level = "error"


class _Reporter:
    """Tells the scheduler at once how a worker has ended; otherwise it would wait for it."""

    def __init__(self, cluster: LocalCluster) -> None:
        # The thread of the processes must not keep the cluster alive.
        self._cluster = weakref.ref(cluster)

    def __call__(self, member: Member, how: str) -> None:
        cluster = self._cluster()
        if cluster is None or member.name == _SCHEDULER or not how:
            return
        process_id = member.last_process_id
        threading.Thread(
            target=_tell, args=(cluster, member.name, how, process_id), name="oxidask-report", daemon=True
        ).start()


def _tell(cluster: LocalCluster, worker: str, how: str, process_id: int) -> None:
    try:
        cluster._administration().worker_ended(worker, how, process_id)
    except (OxidaskError, RuntimeError):
        # The scheduler finds out by itself, a little later.
        return


def memory_bytes(limit: str | float | int | None, n_workers: int) -> int:
    """The memory of one worker."""
    from dask.utils import parse_bytes
    from distributed.system import MEMORY_LIMIT

    if limit == "auto":
        return MEMORY_LIMIT // max(n_workers, 1)
    if limit is None or limit == 0:
        return MEMORY_LIMIT
    if isinstance(limit, float) and limit <= 1:
        return int(limit * MEMORY_LIMIT)
    return parse_bytes(limit)


def find_program(program: str | os.PathLike[str] | None = None) -> Path:
    """The program `oxidask`; an error says where it was looked for."""
    if program is not None:
        found = shutil.which(os.fspath(program))
        if found is None:
            raise OxidaskError("OX352", f"`{os.fspath(program)}` is not a program that can be started", _PROGRAM_HINT)
        return Path(found)
    search = _finding.Search()
    named = os.environ.get(PROGRAM_VARIABLE)
    if named:
        return find_program(named)
    search.note(f"the variable {PROGRAM_VARIABLE}", "is not set")
    for candidate in (Path(__file__).parent / "bin" / PROGRAM, Path(sys.executable).parent / PROGRAM):
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
        search.note(str(candidate), "is not there")
    found = shutil.which(PROGRAM)
    if found is not None:
        return Path(found)
    search.note("the PATH", f"has no `{PROGRAM}`")
    message = f"a local cluster needs the program `{PROGRAM}`, which was not found"
    raise OxidaskError("OX352", message, _PROGRAM_HINT, search.looked_at)


_PROGRAM_HINT = f"build it with `cargo build --release` and set {PROGRAM_VARIABLE} to it, or put it on the PATH"


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without those that are meant for a client."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OXIDASK_") and name not in {"DASK_SCHEDULER_ADDRESS", "DASK_WORKER_NAME"}
    }
    # Tasks import what this Python can import, as in stock Dask's local clusters.
    paths = dict.fromkeys(os.getcwd() if not path else path for path in sys.path)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if os.path.isdir(path))
    environment.update(added)
    return environment


def _read_invitation(scheduler: Member) -> dict[str, str]:
    """What `oxidask up` says once its scheduler listens."""
    process = scheduler.process
    assert process is not None and process.stdout is not None
    said: dict[str, str] = {}
    timer = threading.Timer(_START_SECONDS, process.kill)
    timer.start()
    try:
        for _ in range(_START_LINES_MAX):
            line = process.stdout.readline().decode(errors="replace")
            if not line:
                break
            for name in ("scheduler", "http", "tls dir"):
                if line.startswith(f"  {name} "):
                    said[name] = line.strip().removeprefix(name).strip()
            if "tls dir" in said:
                threading.Thread(target=_drain, args=(process.stdout,), name="oxidask-up", daemon=True).start()
                return said
    finally:
        timer.cancel()
    time.sleep(0.1)
    message = "the scheduler of a local cluster did not come up"
    raise OxidaskError("OX352", message, "its last lines say why", [scheduler.last_lines()])


def _drain(stdout: Any) -> None:
    try:
        while stdout.read(65_536):
            pass
    except (OSError, ValueError):
        return


def _end(processes: Processes | None, folder: Path) -> None:
    if processes is not None:
        processes.end(last=_SCHEDULER)
    shutil.rmtree(folder, ignore_errors=True)
