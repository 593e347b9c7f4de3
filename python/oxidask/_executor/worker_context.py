"""What a task sees of its worker: `distributed.get_worker`, `get_client`, `secede` and what is built on them.

Owns what stands for `distributed.worker._worker_cvar`, the object behind it, and what `distributed` keeps for
each thread that runs tasks. The client of a task connects to the scheduler by itself, when it is first asked
for, and is kept for the tasks that follow.

Invariants: a task that never asks pays for nothing, least of all for loading `distributed`; a task that left
its slot takes it again or ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from oxidask._executor import frames
from oxidask._executor.frames import Channel
from oxidask._executor.task import Task
from oxidask._when_loaded import when_loaded

SCHEDULER_VARIABLE = "OXIDASK_SCHEDULER"
CERTIFICATES_VARIABLE = "OXIDASK_TLS_DIR"
WORKER_VARIABLE = "OXIDASK_WORKER_NAME"
ADDRESS_VARIABLE = "OXIDASK_WORKER_ADDRESS"
THREADS_VARIABLE = "OXIDASK_WORKER_SLOTS"
MEMORY_VARIABLE = "OXIDASK_WORKER_MEMORY_BYTES"
DIRECTORY_VARIABLE = "OXIDASK_WORKER_DIRECTORY"


class WorkerContext:
    """Stands for `distributed.Worker` inside a task."""

    def __init__(self) -> None:
        self.name = os.environ.get(WORKER_VARIABLE, "worker")
        self.address = os.environ.get(ADDRESS_VARIABLE) or f"oxidask://{self.name}"
        self.id = self.name
        self.worker_address = self.address
        self.nthreads = int(os.environ.get(THREADS_VARIABLE, "1"))
        self.memory_limit = int(os.environ.get(MEMORY_VARIABLE, "0")) or None
        self.plugins: dict[str, Any] = {}
        self.data: dict[Any, Any] = {}
        self.memory_manager = SimpleNamespace(memory_limit=self.memory_limit)
        self.state = SimpleNamespace(nthreads=self.nthreads, address=self.address, tasks={})
        self.status = SimpleNamespace(name="running", value="running")
        self._lock = threading.RLock()
        self._client: Any = None
        self._loop_runner: Any = None
        self._directory: str | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.address!r}, name: {self.name!r}>"

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler is; an error if nobody said."""
        address = os.environ.get(SCHEDULER_VARIABLE)
        if not address:
            raise ValueError(f"nobody said where the scheduler of this task is: {SCHEDULER_VARIABLE} is not set")
        return address if "://" in address else f"oxidask://{address}"

    @property
    def scheduler(self) -> Any:
        """Operations of the scheduler, and its address."""
        return self._get_client().scheduler

    @property
    def client(self) -> Any:
        """The client of this process."""
        return self._get_client()

    @property
    def loop(self) -> Any:
        """An event loop with a thread of its own."""
        with self._lock:
            if self._loop_runner is None:
                from distributed.utils import LoopRunner

                self._loop_runner = LoopRunner(asynchronous=False)
                self._loop_runner.start()
            return self._loop_runner.loop

    @property
    def io_loop(self) -> Any:
        """The same."""
        return self.loop

    @property
    def local_directory(self) -> str:
        """A folder for files of tasks and plugins, one for all processes of the worker."""
        with self._lock:
            if self._directory is None:
                import tempfile

                named = os.environ.get(DIRECTORY_VARIABLE)
                if named:
                    os.makedirs(named, exist_ok=True)
                self._directory = named or tempfile.mkdtemp(prefix="oxidask-")
            return self._directory

    def _get_client(self, timeout: float | None = None) -> Any:
        with self._lock:
            if self._client is None or self._client.status in ("closed", "closing"):
                self._client = _connect(self.scheduler_address, self.loop, timeout)
            return self._client

    def wait(self, awaitable: Any) -> Any:
        """The value of a coroutine, run in the event loop."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(_awaited(self, awaitable), self.loop.asyncio_loop).result()

    def get_current_task(self) -> Any:
        """The key of the task that runs in this thread."""
        from distributed.worker import thread_state

        return thread_state.key

    def log_event(self, topic: Any, message: Any) -> None:
        """Sends an event to the scheduler. What `distributed` says of its own accord is dropped."""
        if topic != "worker-client":
            self._get_client().log_event(topic, message)

    def handle_stimulus(self, *_: Any) -> None:
        """Leaving a slot has been said already."""

    def trigger_profile(self) -> None:
        """Profiles are not kept."""


async def _awaited(context: WorkerContext, value: Any) -> Any:
    serve_here(context)
    return await value


def _connect(address: str, loop: Any, timeout: float | None) -> Any:
    from distributed import Client

    class TaskClient(Client):
        """A client inside a task: what it scatters goes through the scheduler."""

        async def _scatter(self, data: Any, *args: Any, local_worker: Any = None, **kwargs: Any) -> Any:
            return await super()._scatter(data, *args, local_worker=None, **kwargs)

    TaskClient.__name__ = TaskClient.__qualname__ = "Client"
    options: dict[str, Any] = {}
    folder = os.environ.get(CERTIFICATES_VARIABLE)
    if folder:
        from oxidask._security import security_from_dir

        options["security"] = security_from_dir(folder)
    if timeout is not None:
        options["timeout"] = timeout
    return TaskClient(address, loop=loop, set_as_default=True, direct_to_workers=False, name="worker", **options)


class _Threads:
    """The threads of the pool: one, as long as it has its slot."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self.is_in = True

    def remove(self, thread: threading.Thread) -> None:
        """The thread leaves its slot; `KeyError` if it has done so."""
        if not self.is_in:
            raise KeyError(thread)
        self.is_in = False
        self._leave()

    def add(self, _: threading.Thread) -> None:
        """The thread has its slot again."""
        self.is_in = True

    def __len__(self) -> int:
        return int(self.is_in)


class _Pool:
    """Stands for the executor of a thread that runs tasks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.run = 0
        self._threads = _Threads(self._secede)
        self._rejoin_list: list[tuple[threading.Thread, threading.Event]] = []
        self._rejoin_lock = threading.Lock()

    def _adjust_thread_count(self) -> None:
        """The worker does so."""

    def _secede(self) -> None:
        self._channel.write(frames.SECEDE, frames.RUN.pack(self.run))

    def submit(self, _function: Callable[[], Any]) -> None:
        """Lets those in who wait for their slots: at once, the worker allows it."""
        with self._rejoin_lock:
            waiting, self._rejoin_list = self._rejoin_list, []
        for thread, event in waiting:
            if not self._threads.is_in:
                self._threads.add(thread)
                self._channel.write(frames.REJOIN, frames.RUN.pack(self.run))
            event.set()


class TaskThread:
    """The thread that runs tasks, as `distributed` knows such threads."""

    def __init__(self, context: WorkerContext, channel: Channel) -> None:
        self._context = context
        self._pool = _Pool(channel)
        self._key: str | None = None
        self._began = 0.0
        #: What `distributed` keeps for this thread, once a task has asked for its worker.
        self._state: Any = None
        serve_here(context, self._enter)

    def _enter(self) -> None:
        if self._state is not None:
            return
        from distributed import threadpoolexecutor, worker

        self._state = state = worker.thread_state
        state.execution_state = {"worker": self._context}
        state.key, state.start_time = self._key, self._began
        threadpoolexecutor.thread_state.proceed = True
        threadpoolexecutor.thread_state.executor = self._pool

    def begin(self, task: Task) -> None:
        """A task runs from here on."""
        self._pool.run = task.run
        self._pool._threads.is_in = True
        self._key, self._began = task.key, time.time()
        if self._state is not None:
            self._state.key, self._state.start_time = self._key, self._began

    def end(self) -> None:
        """No task runs any more."""
        if self._state is not None:
            self._state.key = None


#: The worker that functions in a thread see, and what is to be done when the first of them asks.
_here = threading.local()


def serve_here(context: WorkerContext, enter: Callable[[], None] = lambda: None) -> None:
    """Functions that run in this thread have this worker. `enter` is called each time one asks for it."""
    _here.context, _here.enter = context, enter
    when_loaded("distributed.worker", _stand_in)


def _stand_in() -> None:
    from distributed import worker

    if not isinstance(worker._worker_cvar, _WorkerVariable):
        worker._worker_cvar = _WorkerVariable(worker._worker_cvar)  # type: ignore[assignment]
    # Threads that are started with a copy of this thread's variables have its worker too.
    worker._worker_cvar.get(None)


class _WorkerVariable:
    """Stands for the variable behind `get_worker`: a worker that somebody has set, else that of the thread."""

    def __init__(self, plain: ContextVar[Any]) -> None:
        self._plain = plain
        self.set, self.reset = plain.set, plain.reset

    def get(self, *default: Any) -> Any:
        """The worker; `LookupError` if there is none and no default is given."""
        found = self._plain.get(None)
        context = getattr(_here, "context", None)
        if context is None or found not in (None, context):
            return self._plain.get(*default)
        _here.enter()
        if found is None:
            self._plain.set(context)
        return context
