"""The acceptance scripts print the same when a process of the cluster is killed meanwhile.

Owns when what is killed: after a random line of a script, and a little later. What a test prints
names the seed, and `OXIDASK_FAULT_SEED` sets it. A few scripts run always, all of them with
`OXIDASK_ALL_FAULTS=1`. Those that do not survive a fault at every moment, which is so on stock Dask,
too, are named here with the reason.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster_processes import services

import oxidask

FOLDER = Path(__file__).parent
SCRIPTS = {path.stem: path for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))}
IS_ALL = os.environ.get("OXIDASK_ALL_FAULTS") == "1"
SEED = int(os.environ.get("OXIDASK_FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
SCRIPT_SECONDS_MAX = 120
TEST_SECONDS_MAX = SCRIPT_SECONDS_MAX + 30
#: A fault comes at most so long after the line that it waits for.
LATER_SECONDS_MAX = 0.3
LOOK_SECONDS = 0.01
WORKERS = 2

_COUNTS = "its tasks leave something outside, such as a line of a file, and counts it: a second attempt shows"
_SCATTERS = "what a client has scattered is nowhere else, and is lost with the worker that holds it"
_PLACES = "it names workers or counts them: the one that comes for the one that went is another"
_COMMANDS = "a call to workers that is under way when the scheduler goes fails: nobody knows whether it was done"
_COORDINATES = "locks, queues, variables and published data are in no journal, and end with the scheduler"

#: Scripts whose output depends on every worker staying, and why.
NOT_WITHOUT_A_WORKER = {
    "02_errors_retries": _COUNTS,
    "04_priorities": _COUNTS,
    "05_as_completed_wait": _SCATTERS,
    "06_scatter": _SCATTERS,
    "08_delayed": _COUNTS,
    "21_annotations": _COUNTS,
    "22_coordination": _COUNTS,
    "23_nested_tasks": _SCATTERS,
    "24_publish_upload": _PLACES,
    "25_workers": _PLACES,
    "26_joblib": _SCATTERS,
    "27_dask_ml": _SCATTERS,
    "29_large_results": _SCATTERS,
    "31_restart": _PLACES,
}
#: Scripts whose output depends on the scheduler staying, and why.
NOT_WITHOUT_THE_SCHEDULER = {
    "22_coordination": _COORDINATES,
    "24_publish_upload": _COORDINATES,
    "25_workers": _COMMANDS,
    "31_restart": _COMMANDS,
}

WORKER_SELECTION = ("01_futures", "09_bag", "11_array_basics")
SCHEDULER_SELECTION = ("01_futures", "07_persist", "30_tiny_tasks")


def chosen(selection: tuple[str, ...], exceptions: dict[str, str]) -> list[str]:
    """The scripts of this run."""
    names = list(SCRIPTS) if IS_ALL else list(selection)
    return [name for name in names if name not in exceptions]


@pytest.fixture
def cluster() -> Iterator[oxidask.LocalCluster]:
    """Its own for each script: a fault of one is not seen by the next."""
    with oxidask.LocalCluster(n_workers=WORKERS, threads_per_worker=1) as cluster:
        cluster.wait_for_workers(WORKERS, timeout=30)
        yield cluster


class Fault(threading.Thread):
    """Calls something once, when a script has printed so many lines and a little later."""

    def __init__(self, folder: Path, lines: int, later_seconds: float, function: Callable[[], None]) -> None:
        super().__init__(name="fault", daemon=True)
        self.folder, self.lines, self.later_seconds, self.function = folder, lines, later_seconds, function
        self.has_happened = False
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.is_set():
            if self._printed() >= self.lines:
                if not self.is_over.wait(self.later_seconds):
                    self.function()
                    self.has_happened = True
                return
            time.sleep(LOOK_SECONDS)

    def _printed(self) -> int:
        for path in self.folder.glob("accept-*/lines"):
            try:
                return path.read_bytes().count(b"\n")
            except OSError:
                break
        return -1


def run_with_fault(cluster: oxidask.LocalCluster, name: str, service: str, folder: Path) -> None:
    """Run a script, kill one process of this service meanwhile, and compare what it prints."""
    script = SCRIPTS[name]
    chance = random.Random(f"{SEED} {service} {name}")
    count = (FOLDER / "expected" / f"{name}.txt").read_text(encoding="utf-8").count("\n")
    lines, later_seconds = chance.randrange(count), chance.uniform(0, LATER_SECONDS_MAX)
    place = chance.random()

    def kill() -> None:
        found = services(cluster, service)
        os.kill(found[int(place * len(found))], signal.SIGKILL)

    text = f"{service} killed {later_seconds:.3f} s after line {lines} of {count}, OXIDASK_FAULT_SEED={SEED}"
    fault = Fault(folder, lines, later_seconds, kill)
    command = [sys.executable, str(FOLDER / "harness.py"), str(script), "--expected"]
    command += ["--address", cluster.scheduler_address, "--timeout", str(SCRIPT_SECONDS_MAX)]
    environment = {**os.environ, "OXIDASK_TLS_DIR": str(cluster.tls_dir), "TMPDIR": str(folder)}
    fault.start()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    fault.is_over.set()
    fault.join(5)
    print(text if fault.has_happened else f"over before the fault ({text})")
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(TEST_SECONDS_MAX)
@pytest.mark.parametrize("name", chosen(WORKER_SELECTION, NOT_WITHOUT_A_WORKER))
def test_a_worker_is_killed(cluster: oxidask.LocalCluster, name: str, tmp_path: Path) -> None:
    run_with_fault(cluster, name, "worker", tmp_path)


@pytest.mark.timeout(TEST_SECONDS_MAX)
@pytest.mark.parametrize("name", chosen(SCHEDULER_SELECTION, NOT_WITHOUT_THE_SCHEDULER))
def test_the_scheduler_is_killed(cluster: oxidask.LocalCluster, name: str, tmp_path: Path) -> None:
    run_with_fault(cluster, name, "scheduler", tmp_path)


@pytest.mark.timeout(TEST_SECONDS_MAX)
def test_questions_are_answered_by_the_next_scheduler(cluster: oxidask.LocalCluster) -> None:
    """What only reads is asked again when the scheduler goes before it answers."""
    answers: list[int] = []
    is_over = threading.Event()
    with cluster.get_client() as client:
        future = client.submit(abs, -1)
        assert future.result(timeout=SCRIPT_SECONDS_MAX) == 1

        def ask() -> None:
            while not is_over.is_set():
                answers.append(len(client.who_has([future])) + len(client.scheduler_info()))

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            time.sleep(0.5)
            os.kill(services(cluster, "scheduler")[0], signal.SIGKILL)
            time.sleep(1.5)
            before = len(answers)
            time.sleep(0.5)
            is_over.set()
            for each in asking:
                each.result(timeout=SCRIPT_SECONDS_MAX)
        assert len(answers) > before > 0
        assert future.result(timeout=SCRIPT_SECONDS_MAX) == 1


def test_each_exception_is_a_script() -> None:
    assert set(NOT_WITHOUT_A_WORKER) | set(NOT_WITHOUT_THE_SCHEDULER) <= set(SCRIPTS)
    assert not set(WORKER_SELECTION) & set(NOT_WITHOUT_A_WORKER)
    assert not set(SCHEDULER_SELECTION) & set(NOT_WITHOUT_THE_SCHEDULER)
