"""What the classes for clusters have in common.

Owns the shape that users of `distributed`'s cluster classes know: context managers, `scale`,
`get_client`, `wait_for_workers`, forms that are awaited when `asynchronous=True`. The work itself is
done by methods whose names begin with `_`, which block and run in threads. Never starts anything by
itself.
"""

from __future__ import annotations

import asyncio
import html
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.utils import Log, Logs

from oxidask._oxidask import Cluster as Admin

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

#: How often whoever waits for workers looks.
_LOOK_SECONDS = 0.2
#: Lines of each worker's log in `get_logs`.
_LOG_LINES = 1_000


class BaseCluster:
    """A cluster that clients can be made for: `Client(cluster)` or `cluster.get_client()`."""

    def __init__(self, name: str, asynchronous: bool) -> None:
        self.name = name
        self.asynchronous = asynchronous
        self.status = Status.created
        self.scheduler_address = ""
        self.security: Security | None = None
        self._admin: Admin | None = None
        self._start_lock = threading.Lock()

    # ---- what a class of clusters does ----

    def _start(self) -> None:
        """Start, or connect to what runs; blocks until there is an address."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _scale(self, n: int) -> None:
        raise NotImplementedError

    @property
    def dashboard_link(self) -> str:
        """Where a browser finds the scheduler's pages."""
        raise NotImplementedError

    # ---- starting and ending ----

    def _ensure_started(self) -> None:
        with self._start_lock:
            if self.status is not Status.created:
                return
            self.status = Status.starting
            try:
                self._start()
            except BaseException:
                self.status = Status.failed
                self._close()
                self.status = Status.closed
                raise
            self.status = Status.running

    def _ensure_closed(self) -> None:
        with self._start_lock:
            if self.status in {Status.closed, Status.closing}:
                return
            self.status = Status.closing
            self._admin = None
            try:
                self._close()
            finally:
                self.status = Status.closed

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """In the way that the user wants it: at once, or to be awaited."""
        if self.asynchronous:
            return asyncio.to_thread(function, *arguments)
        return function(*arguments)

    def close(self) -> Any:
        """End the cluster; it cannot be started again."""
        if not self.asynchronous and _is_loop_of_client():
            # `Client.shutdown` closes the cluster from its event loop, and awaits that.
            return asyncio.to_thread(self._ensure_closed)
        return self._run(self._ensure_closed)

    def __await__(self) -> Generator[Any, Any, BaseCluster]:
        async def started() -> BaseCluster:
            if self.status is Status.created:
                await asyncio.to_thread(self._ensure_started)
            return self

        return started().__await__()

    def __enter__(self) -> BaseCluster:
        if self.asynchronous:
            raise TypeError("this cluster is asynchronous: use `async with`")
        return self

    def __exit__(self, *_: object) -> None:
        self._ensure_closed()

    async def __aenter__(self) -> BaseCluster:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._ensure_closed)

    # ---- using it ----

    def get_client(self, **client_kwargs: Any) -> Client:
        """A client of this cluster."""
        from distributed import Client

        client_kwargs.setdefault("asynchronous", self.asynchronous)
        return Client(self, **client_kwargs)

    def scale(self, n: int) -> Any:
        """Have so many workers; those that go hand over what they hold first."""
        if n < 0:
            raise ValueError(f"a cluster cannot have {n} workers")
        return self._run(self._scale, n)

    def wait_for_workers(self, n_workers: int = 0, timeout: float | str | None = None) -> Any:
        """Wait until the scheduler knows so many workers."""
        return self._run(self._wait_for_workers, n_workers, timeout)

    def _wait_for_workers(self, n_workers: int, timeout: float | str | None) -> None:
        from dask.utils import parse_timedelta

        seconds = None if timeout is None else parse_timedelta(timeout, "s")
        deadline = None if seconds is None else time.monotonic() + seconds
        while (found := len(self._workers())) < n_workers:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{found} of {n_workers} workers have come within {timeout} s")
            time.sleep(_LOOK_SECONDS)

    def _administration(self) -> Admin:
        if self._admin is None:
            from oxidask._security import credentials_for

            if self.status in {Status.created, Status.closed, Status.failed}:
                raise RuntimeError(f"the cluster `{self.name}` does not run")
            self._admin = Admin(self.scheduler_address, credentials_for(self.security, None, self.scheduler_address))
        return self._admin

    def _workers(self) -> list[dict[str, Any]]:
        return self._administration().status()["workers"]

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """Scheduler and workers in the form of `distributed`."""
        if self.status is not Status.running:
            return {"type": "Scheduler", "workers": {}}
        workers = {
            worker["name"]: {
                "type": "Worker",
                "id": worker["name"],
                "name": worker["name"],
                "host": worker["data_address"].rpartition(":")[0],
                "nthreads": worker["slots"],
                "memory_limit": worker["limit_bytes"],
                "status": "running" if worker["standing"] == "active" else worker["standing"],
                "resources": {},
            }
            for worker in self._workers()
        }
        return {
            "type": "Scheduler",
            "id": self.name,
            "address": self.scheduler_address,
            "n_workers": len(workers),
            "total_threads": sum(worker["nthreads"] for worker in workers.values()),
            "total_memory": sum(worker["memory_limit"] for worker in workers.values()),
            "workers": workers,
        }

    def logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Any:
        """The newest log lines by process; what tasks print is in those of their workers."""
        return self._run(self._logs, cluster, scheduler, workers)

    get_logs = logs

    def _logs(self, cluster: bool, scheduler: bool, workers: bool) -> Logs:
        found = Logs()
        if cluster:
            found["Cluster"] = Log(f"cluster `{self.name}` is {self.status.name}")
        admin = self._administration()
        lines: dict[str, list[str]] = {}
        for worker, level, text in admin.logs("", _LOG_LINES):
            lines.setdefault(worker or "Scheduler", []).append(f"{level} {text}")
        if scheduler:
            found["Scheduler"] = Log("\n".join(lines.pop("Scheduler", [])))
        if workers:
            for worker in sorted({entry["name"] for entry in self._workers()} | (lines.keys() - {"Scheduler"})):
                found[worker] = Log("\n".join(lines.get(worker, [])))
        return found

    def __repr__(self) -> str:
        kind = type(self).__name__
        if self.status is not Status.running:
            return f"<{kind} {self.name!r} {self.status.name}>"
        try:
            info = self.scheduler_info
        except Exception:  # noqa: BLE001 (showing an object must not raise)
            return f"<{kind} {self.name!r} {self.scheduler_address!r}>"
        return (
            f"<{kind} {self.name!r} {self.scheduler_address!r}, workers={info['n_workers']}, "
            f"threads={info['total_threads']}>"
        )

    def _repr_html_(self, cluster_status: Any = None) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _is_loop_of_client() -> bool:
    """Whether the caller is on an event loop that runs in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return threading.current_thread() is not threading.main_thread()
