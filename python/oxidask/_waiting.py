"""The short way of a thread that waits for one result.

Owns which threads wait for which keys, and `Client.sync` for `Future.result`: a result that comes by itself
and with its value is handed to the thread that waits, which lets the event loop know; for other news the
thread sleeps until the client knows it. No coroutine runs for either. Everything else (a timeout, a failure,
a result that must be fetched) goes the client's own way.

Invariants: the event loop hears of everything, whoever was handed it first; a thread to which nothing was
handed wakes after the client knows; one that was forgotten looks by itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from distributed.client import Future

from oxidask._inline import Payload, for_reading

if TYPE_CHECKING:
    from oxidask._connection import Connection

#: A thread that waits looks by itself after this time.
LOOK_SECONDS = 1.0


class Awaited(asyncio.Event):
    """The event of a future that a thread may be handed the result of: done for those who ask from then on,
    while those who wait on the event loop hear of it there."""

    def __init__(self) -> None:
        super().__init__()
        self._is_handed_over = False

    def hand_over(self) -> None:
        """A thread has the result. From any thread."""
        self._is_handed_over = True

    def is_set(self) -> bool:
        """Whether the result is there."""
        return self._is_handed_over or super().is_set()

    def clear(self) -> None:
        """The result has gone."""
        self._is_handed_over = False
        super().clear()


def expect(client: Any, key: Any) -> None:
    """Let the result of a future that nobody else knows yet be handed to a thread; called before it is asked for."""
    state = client.futures.get(key)
    if client.refcount.get(key) == 1 and getattr(state, "_event", state) is None:
        state._event = Awaited()


class _Waiter:
    """A thread that waits, and what it was handed."""

    __slots__ = ("lock", "payload")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.payload: Payload | None = None


class WaitingThreads:
    """Threads that wait for news of keys. `tell_loop` is called for what may have been handed over."""

    def __init__(self, tell_loop: Callable[[], None]) -> None:
        self._waiters: dict[str, list[_Waiter]] = {}
        self._tell_loop = tell_loop

    def wait(self, wire: str, is_over: Callable[[], bool]) -> Payload | None:
        """Sleep until there is news of a key, or for a while; its value if that was handed over."""
        waiter = _Waiter()
        waiters = self._waiters.setdefault(wire, [])
        waiters.append(waiter)
        try:
            # News that came before the waiter was there woke nobody.
            if not is_over():
                waiter.lock.acquire(timeout=LOOK_SECONDS)
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._waiters.get(wire) is waiters:
                self._waiters.pop(wire, None)
            self._tell_loop()
        return waiter.payload

    def hand_over(self, wire: str, payload: Payload) -> bool:
        """Give a value to the threads that wait for it, from any thread; false if there are none."""
        return self._release(wire, payload)

    def wake(self, wires: Iterable[str]) -> None:
        """There is news of these keys."""
        if self._waiters:
            for wire in wires:
                self._release(wire, None)

    def wake_all(self) -> None:
        """There may be news of any key."""
        self.wake(list(self._waiters))

    def _release(self, wire: str, payload: Payload | None) -> bool:
        # A copy: a thread that has waited long enough takes itself out.
        waiters = tuple(self._waiters.pop(wire, ()))
        for waiter in waiters:
            waiter.payload = payload
            waiter.lock.release()
        return bool(waiters)


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


#: Of a future that another thread may have been handed the result of.
_PENDING_OR_FINISHED = ("pending", "finished")


def _payload(client: Any, connection: Connection, future: Any) -> Payload | None:
    """The result's payload as soon as it is there; nothing if it did not come with the news."""
    state = future._state
    if state is None or client.futures.get(future.key) is not state:
        return None
    wire = connection.names.to_wire(future.key)
    while state.status == "pending":
        if connection.is_closed:
            return None
        payload = connection.threads.wait(wire, lambda: state.status != "pending")
        event = state._event
        if payload is not None and type(event) is Awaited and state.status in _PENDING_OR_FINISHED:
            # The event loop will do the same; whoever asks the future until then gets the same answers.
            state.status = "finished"
            event.hand_over()
            return for_reading(payload)
    return connection.payload_here(wire) if state.status == "finished" else None
