"""What tasks see of their worker, against a stock scheduler: `distributed` must take it for a worker.

Private names of `distributed` on which this rests fail here first when a release changes them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import (
    Client,
    LocalCluster,
    Lock,
    Semaphore,
    Variable,
    get_client,
    get_worker,
    rejoin,
    secede,
    worker_client,
)

from oxidask._executor import frames, worker_context
from oxidask._executor.task import Task
from oxidask._executor.worker_context import TaskThread, WorkerContext


class Recorder:
    """A channel that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def write(self, kind: int, *body: bytes, file: int | None = None) -> None:
        self.written.append((kind, b"".join(body)))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def context(scheduler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[WorkerContext]:
    monkeypatch.setenv(worker_context.SCHEDULER_VARIABLE, scheduler)
    monkeypatch.setenv(worker_context.WORKER_VARIABLE, "w7")
    monkeypatch.setenv(worker_context.DIRECTORY_VARIABLE, str(tmp_path / "files"))
    monkeypatch.delenv(worker_context.CERTIFICATES_VARIABLE, raising=False)
    made = WorkerContext()
    yield made
    if made._client is not None:
        made._client.close()


def in_task(context: WorkerContext, function: Callable[[], Any]) -> tuple[Any, list[int]]:
    """The function's value in a thread that runs a task, and the frames that it sent."""
    recorder, found = Recorder(), []

    def run() -> None:
        thread = TaskThread(context, recorder)  # type: ignore[arg-type]
        thread.begin(Task(5, 1, 1, 1, "my-key", memoryview(b""), []))
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)
        finally:
            thread.end()

    runner = threading.Thread(target=run)
    runner.start()
    runner.join(60)
    assert found, "the task hangs"
    if isinstance(found[0], BaseException):
        raise found[0]
    assert all(body == frames.RUN.pack(5) for _, body in recorder.written)
    return found[0], [kind for kind, _ in recorder.written]


def test_a_task_knows_its_worker(context: WorkerContext) -> None:
    def look() -> tuple[str, str, str]:
        worker = get_worker()
        return worker.name, worker.get_current_task(), worker.local_directory

    (name, key, folder), sent = in_task(context, look)
    assert (name, key) == ("w7", "my-key")
    assert folder.endswith("files")
    assert sent == []
    assert context._client is None, "who does not ask pays nothing"


def test_leaving_and_coming_back(context: WorkerContext) -> None:
    def away() -> None:
        secede()
        with pytest.raises(KeyError):
            secede()
        rejoin()
        rejoin()

    assert in_task(context, away)[1] == [frames.SECEDE, frames.REJOIN]


def test_tasks_submit_tasks(context: WorkerContext) -> None:
    def nested() -> list[int]:
        client = get_client()
        assert client is get_client()
        return client.gather(client.map(lambda x: x + 1, range(5)))

    assert in_task(context, nested) == ([1, 2, 3, 4, 5], [])
    first = context._client
    assert in_task(context, nested)[0] == [1, 2, 3, 4, 5]
    assert context._client is first, "the client is kept"


def test_worker_client_leaves_the_slot(context: WorkerContext) -> None:
    def nested() -> int:
        with worker_client() as client:
            return client.submit(sum, [1, 2]).result()

    assert in_task(context, nested) == (3, [frames.SECEDE, frames.REJOIN])


def test_scattered_values_go_through_the_scheduler(context: WorkerContext) -> None:
    def nested() -> int:
        client = get_client()
        future = client.scatter([1, 2, 3], hash=False, broadcast=False)
        return client.submit(len, future if not isinstance(future, list) else future).result()

    assert in_task(context, nested)[0] == 3


def test_coordination_works_inside_tasks(context: WorkerContext) -> None:
    def coordinated() -> int:
        semaphore = Semaphore(max_leases=1, name="s")
        assert semaphore.acquire(timeout=10)
        assert not Semaphore(max_leases=1, name="s").acquire(timeout=0.1)
        semaphore.release()
        with Lock("l"):
            variable = Variable("v")
            variable.set(5)
        return variable.get(timeout=10)

    assert in_task(context, coordinated)[0] == 5


def test_collections_compute_on_the_cluster(context: WorkerContext) -> None:
    def nested() -> int:
        import dask

        return dask.delayed(sum)([1, 2, 3]).compute()

    value, sent = in_task(context, nested)
    assert value == 6
    assert sent in ([], [frames.SECEDE, frames.REJOIN])


def test_without_a_scheduler_the_error_says_so(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(worker_context.SCHEDULER_VARIABLE)
    with pytest.raises(ValueError, match=worker_context.SCHEDULER_VARIABLE):
        in_task(context, get_client)


def test_coroutines_are_awaited(context: WorkerContext) -> None:
    async def name() -> str:
        return get_worker().name

    assert in_task(context, lambda: context.wait(name()))[0] == "w7"


def test_a_task_that_does_not_ask_loads_nothing_of_dask() -> None:
    """In a process of its own: here `distributed` is loaded already."""
    program = """
import sys, threading
from oxidask._executor.task import Task
from oxidask._executor.worker_context import TaskThread, WorkerContext, serve_here
context = WorkerContext()
thread = TaskThread(context, None)
thread.begin(Task(1, 1, 1, 1, "first", memoryview(b""), []))
thread.end()
thread.begin(Task(2, 1, 1, 1, "second", memoryview(b""), []))
assert not [name for name in sys.modules if name.partition(".")[0] in ("dask", "distributed")], "loaded"

found = []
def beside():
    serve_here(context)
    from distributed import get_worker
    found.append(get_worker())
other = threading.Thread(target=beside)
other.start()
other.join()
assert found == [context]

from distributed import get_worker
from distributed.worker import thread_state
assert not hasattr(thread_state, "key"), "nobody has asked here"
assert get_worker() is context and get_worker().get_current_task() == "second"
thread.end()
thread.begin(Task(3, 1, 1, 1, "third", memoryview(b""), []))
assert get_worker().get_current_task() == "third"

def stranger():
    try:
        get_worker()
    except ValueError as error:
        found.append(error)
other = threading.Thread(target=stranger)
other.start()
other.join()
assert isinstance(found[1], ValueError), "a thread of the task's own has no worker, as with Dask"

import contextvars
with_variables = threading.Thread(target=contextvars.copy_context().run, args=(lambda: found.append(get_worker()),))
with_variables.start()
with_variables.join()
assert found[2] is context, "unless it has the task's variables, as with Dask"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_worker_of_dask_within_a_task_is_its_own(context: WorkerContext) -> None:
    def look() -> tuple[str, str]:
        before = get_worker().name
        with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as inner:
            with Client(inner, set_as_default=False) as client:
                within = client.submit(lambda: type(get_worker()).__name__).result()
        return before, within

    assert in_task(context, look)[0] == ("w7", "Worker")
