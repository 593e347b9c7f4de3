"""Clients that do odd things, operations that are not there, clusters without room.

Owns what test_nonsense.py leaves: everything that is not a task of its own. Every test has a time
limit: an operation answers or says that it is not there, and never hangs. The wait for the grace time
of a client that vanished runs only with `OXIDASK_ALL_FAULTS=1`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from distributed import (
    Client,
    Future,
    NannyPlugin,
    SchedulerPlugin,
    get_task_metadata,
    get_task_stream,
    get_worker,
    performance_report,
    progress,
)
from distributed.diagnostics import MemorySampler

import oxidask

IS_ALL = os.environ.get("OXIDASK_ALL_FAULTS") == "1"
TEST_SECONDS_MAX = 30
ANSWER_SECONDS_MAX = 15
#: Longer than a connection may be silent: 10 s until it is asked for a sign of life, 5 s for the answer.
HELD_SECONDS = 17
#: How long the keys of a client that vanished stay, and how often that is looked at.
GRACE_SECONDS = 60

pytestmark = pytest.mark.timeout(TEST_SECONDS_MAX)
# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster() -> Iterator[oxidask.LocalCluster]:
    with oxidask.LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        cluster.wait_for_workers(2, timeout=30)
        yield cluster


@pytest.fixture
def client(cluster: oxidask.LocalCluster) -> Iterator[Client]:
    """A client; after the test it must be connected and the cluster well."""
    with cluster.get_client() as client:
        yield client
        assert client.submit(plus_one, 1, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 2


def plus_one(number: int) -> int:
    return number + 1


def sleeps(seconds: int) -> int:
    time.sleep(seconds)
    return seconds


def divide(over: int) -> float:
    return 1 / over


class Account:
    """An actor."""

    total = 0


class OfScheduler(SchedulerPlugin):
    """Does nothing."""


class OfNanny(NannyPlugin):
    """Does nothing."""


# ---- operations ----


def _sampled(client: Client) -> None:
    with MemorySampler().sample("odd", client=client):
        pass


def _task_metadata(client: Client) -> None:
    with get_task_metadata():
        client.submit(plus_one, 1).result()


def _task_stream(client: Client) -> None:
    with get_task_stream(client):
        client.submit(plus_one, 1).result()


def _asked(operation: str) -> Callable[[Client], Any]:
    return lambda client: client.sync(getattr(client.scheduler, operation))


#: Operations of Dask that oxidask has not, and words of their refusal.
REFUSED: dict[str, tuple[Callable[[Client], Any], str]] = {
    "profile": (lambda client: client.profile(), "profile"),
    "profile of the server": (lambda client: client.profile(server=True), "profile"),
    "profile of the scheduler": (lambda client: client.profile(scheduler=True), "profile"),
    "call_stack": (lambda client: client.call_stack(), "call stack"),
    "actor": (lambda client: client.submit(Account, actor=True).result(timeout=5), "actors"),
    "actors by map": (lambda client: client.gather(client.map(lambda _: Account(), [1], actor=True)), "actors"),
    "scheduler plugin": (lambda client: client.register_plugin(OfScheduler()), "scheduler has no Python"),
    "nanny plugin": (lambda client: client.register_plugin(OfNanny()), "nannies"),
    "unregister scheduler plugin": (lambda client: client.unregister_scheduler_plugin("odd"), "scheduler"),
    "unregister nanny plugin": (lambda client: client.unregister_worker_plugin("odd", nanny=True), "nannies"),
    "run on nannies": (lambda client: client.run(plus_one, 1, nanny=True), "nannies"),
    "dump": (_asked("get_cluster_state"), "dumps"),
    "dump to a URL": (lambda client: client.dump_cluster_state("memory://odd"), "dumps"),
    "story": (lambda client: client.story("odd"), "story"),
    "benchmark": (lambda client: client.benchmark_hardware(), "benchmarks"),
    "restart one worker": (lambda client: client.restart_workers(list(client.nthreads())[:1]), "nanny"),
    "memory sampler": (_sampled, "memory"),
    "memory manager": (lambda client: client.amm.start(), "memory manager"),
    "task metadata": (_task_metadata, "metadata"),
    "task stream": (_task_stream, "streams"),
    "recreate an error": (
        lambda client: client.recreate_error_locally(client.submit(divide, 0, pure=False)),
        "cause of an error",
    ),
    "unknown": (_asked("no_such_operation"), "no_such_operation"),
    "feed": (_asked("feed"), "feed"),
    "no such worker": (lambda client: client.run(plus_one, 1, workers=["nowhere"]), "nowhere"),
    "no such data set": (lambda client: client.get_dataset("nowhere"), "nowhere"),
    "no such metadata": (lambda client: client.get_metadata(["nowhere"]), "nowhere"),
    "no such file": (lambda client: client.upload_file("/nowhere/odd.py"), "nowhere"),
    "too few workers": (lambda client: client.wait_for_workers(9, timeout=0.5), "2 of 9|2/9"),
    "not a function": (lambda client: client.submit(3), "callable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_refused(client: Client, name: str) -> None:
    operation, words = REFUSED[name]
    with pytest.raises(Exception, match=words):
        operation(client)


#: Operations that answer, if only with nothing.
ANSWERED: dict[str, Callable[[Client], Any]] = {
    "versions": lambda client: client.get_versions(),
    "scheduler logs": lambda client: client.get_scheduler_logs(),
    "worker logs": lambda client: client.get_worker_logs(),
    "processing": lambda client: client.processing(),
    "nbytes": lambda client: client.nbytes(),
    "who_has": lambda client: client.who_has(),
    "has_what": lambda client: client.has_what(),
    "events": lambda client: client.get_events(),
    "task stream": lambda client: client.get_task_stream(),
    "forward logging": lambda client: (client.forward_logging(), client.unforward_logging()),
    "rebalance": lambda client: client.rebalance(),
    "retire nobody": lambda client: client.retire_workers(["nowhere"]),
    "unregister nothing": lambda client: client.unregister_worker_plugin("nowhere"),
    "run without waiting": lambda client: client.run(plus_one, 1, wait=False),
    "run a coroutine": lambda client: client.run(asyncio.sleep, 0.01),
    "run on the scheduler": lambda client: client.run_on_scheduler(plus_one, 1),
    "executor": lambda client: list(client.get_executor().map(plus_one, range(3))),
    "gather directly": lambda client: client.gather(client.submit(plus_one, 1), direct=True),
    "scatter directly": lambda client: client.scatter(1, direct=True).result(timeout=ANSWER_SECONDS_MAX),
    "show": lambda client: (repr(client), client._repr_html_()),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_there_answers(client: Client, name: str) -> None:
    ANSWERED[name](client)


def test_versions_that_are_the_same_are_not_warned_about(client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = client.get_versions(check=True, packages=["oxidask"])
    assert {name: told["client"]["packages"][name] for name in ("python", "dask")}.items() <= (
        told["workers"][sorted(client.nthreads())[0]]["packages"].items()
    )


def test_a_performance_report(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with performance_report(str(path)):
        client.submit(plus_one, 1).result(timeout=ANSWER_SECONDS_MAX)
    assert "plus_one" in path.read_text()


def test_progress_bars(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """They have an event loop of their own, and must not end the client's connection."""
    numbers = client.map(plus_one, range(10), pure=False)
    progress(numbers, notebook=False)
    assert "100% Completed" in capsys.readouterr().out
    progress(client.submit(divide, 0), notebook=False)
    time.sleep(0.2)
    assert client.gather(numbers) == list(range(1, 11))


def test_a_future_of_an_unknown_key(client: Client) -> None:
    """It may still be made, so it stays pending, as in stock Dask; a time limit ends the wait."""
    with pytest.raises(TimeoutError):
        Future("nobody-made-this", client).result(timeout=0.5)


# ---- several clients ----


def test_two_clients_with_the_same_keys(cluster: oxidask.LocalCluster, client: Client, tmp_path: Path) -> None:
    def note(path: Path) -> int:
        with path.open("a") as stream:
            stream.write("x")
        time.sleep(0.3)
        return len(path.read_text())

    path = tmp_path / "runs"
    with cluster.get_client(set_as_default=False) as other:
        first = client.submit(note, path, key="same-key")
        time.sleep(0.1)
        second = other.submit(note, path, key="same-key")
        assert first.result(timeout=ANSWER_SECONDS_MAX) == second.result(timeout=ANSWER_SECONDS_MAX) == 1
        first.release()
        del first
        time.sleep(0.2)
        assert second.result(timeout=ANSWER_SECONDS_MAX) == 1
        # What one client cancels, the other still wants.
        mine, theirs = (one.submit(time.sleep, 0.5, key="same-sleep") for one in (client, other))
        client.cancel(mine)
        assert theirs.result(timeout=ANSWER_SECONDS_MAX) is None


def test_the_same_key_for_something_else(cluster: oxidask.LocalCluster, client: Client) -> None:
    """Whichever comes first may be made for both, or each its own: both get something."""
    with cluster.get_client(set_as_default=False) as other:
        first = client.submit(plus_one, 1, key="one-key")
        second = other.submit(plus_one, 2, key="one-key")
        assert {one.result(timeout=ANSWER_SECONDS_MAX) for one in (first, second)} <= {2, 3}


VANISHING = """
import sys, time
from distributed import Client
client = Client(sys.argv[1])
kept = client.submit(abs, -1, key="of-a-client-that-vanishes")
kept.result()
held = [client.submit(time.sleep, 3600, pure=False) for _ in range(int(sys.argv[2]))]
waiting = client.submit(abs, -2, key="waits-in-vain", workers=["nowhere"], allow_other_workers=False)
print("ready", flush=True)
time.sleep(3600)
"""


def _start(cluster: oxidask.LocalCluster, code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, cluster.scheduler_address, *arguments]
    environment = {**os.environ, "OXIDASK_TLS_DIR": str(cluster.tls_dir)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", line
    return process


def _held(client: Client) -> set[Any]:
    return {key for keys in client.has_what().values() for key in keys}


@pytest.mark.skipif(not IS_ALL, reason="waits for the grace time")
@pytest.mark.timeout(3 * GRACE_SECONDS)
def test_the_keys_of_a_client_that_vanishes_go(cluster: oxidask.LocalCluster, client: Client) -> None:
    key = "of-a-client-that-vanishes"
    process = _start(cluster, VANISHING, "2")
    assert key in _held(client)
    process.kill()
    process.wait()
    time.sleep(5)
    assert key in _held(client), "it might come back"
    # Its tasks hold both slots until the time is over.
    assert client.submit(plus_one, 1, pure=False).result(timeout=2 * GRACE_SECONDS) == 2
    assert key not in _held(client)


def test_others_go_on_when_a_client_vanishes(cluster: oxidask.LocalCluster, client: Client) -> None:
    process = _start(cluster, VANISHING, "0")
    futures = client.map(plus_one, range(200), pure=False)
    process.kill()
    process.wait()
    assert client.gather(futures) == list(range(1, 201))


INTERRUPTED = """
import sys, time
from distributed import Client
client = Client(sys.argv[1])
slow = client.submit(time.sleep, 60)
print("ready", flush=True)
try:
    slow.result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
slow.cancel()
print("then", client.submit(abs, -3).result(timeout=15), flush=True)
client.close()
"""


def test_keyboard_interrupt_in_the_client(cluster: oxidask.LocalCluster) -> None:
    process = _start(cluster, INTERRUPTED)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=ANSWER_SECONDS_MAX)
    assert said.splitlines() == ["interrupted", "then 3"]
    assert process.returncode == 0


def test_a_program_may_keep_the_interpreter_to_itself(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    # News comes meanwhile, and cannot be taken.
    later = client.map(sleeps, [1, 2, 3], pure=False)
    time.sleep(0.2)
    ctypes.PyDLL(None).sleep(HELD_SECONDS)
    assert client.gather(later) == [1, 2, 3]
    assert not [record for record in caplog.records if record.name == "oxidask"]


def test_a_client_in_a_forked_process(client: Client) -> None:
    """The copy of a process has no connection; the process keeps its own."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.submit(plus_one, 4, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 5


def test_a_client_used_by_many_threads(client: Client) -> None:
    found: list[int] = []

    def ask(number: int) -> None:
        found.extend(client.gather(client.map(plus_one, range(number, number + 10))))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(0, 100, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_SECONDS_MAX)
    assert sorted(found) == list(range(1, 101))


def test_a_client_that_was_closed(cluster: oxidask.LocalCluster) -> None:
    client = cluster.get_client(set_as_default=False)
    future = client.submit(plus_one, 1)
    client.close()
    for use in (lambda: client.submit(plus_one, 1), lambda: future.result(timeout=5), lambda: client.scatter(1)):
        with pytest.raises(Exception, match="."):
            use()


def test_an_address_where_nobody_listens(cluster: oxidask.LocalCluster) -> None:
    assert cluster.security is not None
    with pytest.raises(OSError, match="."):
        Client("oxidask://127.0.0.1:9", security=cluster.security, timeout=2)


def test_a_cluster_that_is_closed_under_its_client() -> None:
    with oxidask.LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        client = cluster.get_client(set_as_default=False)
        future = client.submit(time.sleep, 60)
        time.sleep(0.5)
    with pytest.raises(Exception, match="."):
        future.result(timeout=3)
    client.close(timeout=5)


# ---- no room ----


def _large() -> Any:
    return np.arange(2_000_000)


def test_no_shared_memory() -> None:
    """Values lie in files instead, and are the same."""
    environment = {"OXIDASK_SHARED_MEMORY": "files"}
    with oxidask.LocalCluster(n_workers=2, threads_per_worker=1, environment=environment) as cluster:
        with cluster.get_client() as client:
            future = client.submit(_large)
            assert int(future.result(timeout=ANSWER_SECONDS_MAX).sum()) == 1_999_999_000_000
            sums = client.map(lambda part, array: int(array[part::4].sum()), range(4), array=future)
            assert sum(client.gather(sums)) == 1_999_999_000_000
            scattered = client.scatter(_large(), broadcast=True)
            assert client.submit(len, scattered).result(timeout=ANSWER_SECONDS_MAX) == 2_000_000
            assert client.run(lambda: os.environ["OXIDASK_SHARED_MEMORY"]).keys() == client.nthreads().keys()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 8 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "oxidask-tiny", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no `mount`")
    if done.returncode:
        pytest.skip("this user may not mount")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=False)


def test_no_shared_memory_and_no_room_for_files(tiny_folder: Path) -> None:
    environment = {"OXIDASK_SHARED_MEMORY": "files"}
    with oxidask.LocalCluster(1, 1, environment=environment, local_directory=tiny_folder) as cluster:
        with cluster.get_client() as client:
            error = client.submit(_large).exception(timeout=ANSWER_SECONDS_MAX)
            assert error is not None and "space" in str(error), error
            assert client.submit(plus_one, 1).result(timeout=ANSWER_SECONDS_MAX) == 2
            small = client.submit(np.arange, 100_000)
            assert client.submit(len, small).result(timeout=ANSWER_SECONDS_MAX) == 100_000


def test_a_task_that_takes_more_memory_than_its_worker_has() -> None:
    with oxidask.LocalCluster(1, 1, memory_limit="512MiB") as cluster, cluster.get_client() as client:
        error = client.submit(lambda: len(b"x" * (2 << 30))).exception(timeout=ANSWER_SECONDS_MAX)
        assert error is not None and "memory" in f"{type(error).__name__} {error}".lower(), error
        assert client.submit(plus_one, 1).result(timeout=ANSWER_SECONDS_MAX) == 2


def test_there_is_no_worker_outside_tasks() -> None:
    with pytest.raises(ValueError, match="(?i)worker"):
        get_worker()
