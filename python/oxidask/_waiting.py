"""The short way of a thread that waits for one result.

Owns which threads wait for which keys, and `Client.sync` for `Future.result`: the thread sleeps until the
client knows of the result, and reads it if it came with the news, without a coroutine on the event loop.
Everything else (a timeout, a failure, a result that must be fetched) goes the client's own way.

Invariants: a thread wakes after the client knows; one that was forgotten looks by itself.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from distributed.client import Future

if TYPE_CHECKING:
    from oxidask._connection import Connection

#: A thread that waits looks by itself after this time.
LOOK_SECONDS = 1.0


class WaitingThreads:
    """Threads that wait for news of keys."""

    def __init__(self) -> None:
        self._locks: dict[str, list[threading.Lock]] = {}

    def wait(self, wire: str, is_over: Callable[[], bool]) -> None:
        """Sleep until there is news of a key, or for a while."""
        lock = threading.Lock()
        lock.acquire()
        locks = self._locks.setdefault(wire, [])
        locks.append(lock)
        try:
            # News that came before the lock was there woke nobody.
            if not is_over():
                lock.acquire(timeout=LOOK_SECONDS)
        finally:
            if lock in locks:
                locks.remove(lock)
            if not locks and self._locks.get(wire) is locks:
                self._locks.pop(wire, None)

    def wake(self, wires: Iterable[str]) -> None:
        """There is news of these keys."""
        if self._locks:
            for wire in wires:
                # A copy: a thread that has waited long enough takes its lock out.
                for lock in tuple(self._locks.pop(wire, ())):
                    lock.release()

    def wake_all(self) -> None:
        """There may be news of any key."""
        self.wake(list(self._locks))


def wait_in_thread(client: Any, connection_of: Callable[[], Connection]) -> None:
    """Let `result()` of this client's futures wait the short way."""
    plain = getattr(client, "sync", None)
    if plain is None or not {"asynchronous", "callback_timeout"} <= set(inspect.signature(plain).parameters):
        return

    @functools.wraps(plain)
    def sync(func: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(func, "__func__", None) is Future._result and not args and kwargs == _NO_TIMEOUT:
            future = func.__self__
            if type(future) is Future and future._client is client and not client.asynchronous:
                payload = _payload(client, connection_of(), future)
                if payload is not None:
                    from oxidask._payload import decode

                    return decode(*payload)
        return plain(func, *args, **kwargs)

    client.sync = sync


#: What `Future.result` passes on without a timeout.
_NO_TIMEOUT = {"callback_timeout": None}


def _payload(client: Any, connection: Connection, future: Any) -> Any:
    """The result's payload as soon as it is there; nothing if it did not come with the news."""
    state = future._state
    if state is None or client.futures.get(future.key) is not state:
        return None
    wire = connection.names.to_wire(future.key)
    while state.status == "pending":
        if connection.is_closed:
            return None
        connection.threads.wait(wire, lambda: state.status != "pending")
    return connection.payload_here(wire) if state.status == "finished" else None
