"""The connection of one client to a scheduler.

Owns the session of the Rust half, what is known about keys of this client (where a result is, which
keys are wanted), the questions that were asked, and how events become messages of `distributed`.
Lives on one event loop; only `_from_session` is called from other threads. Never reads a graph.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import dask
from distributed.comm.core import CommClosedError

from oxidask import _errors
from oxidask._graph import Prepared
from oxidask._inline import InlineValues
from oxidask._keys import KeyNames
from oxidask._optimise import notice_once
from oxidask._versions import own_versions
from oxidask._waiting import WaitingThreads
from oxidask._workers import Workers

logger = logging.getLogger("oxidask")

#: Config: how long a scheduler may be away before futures are given up.
RECONNECT_TIMEOUT_NAME = "oxidask.comm.reconnect-timeout"
RECONNECT_TIMEOUT_DEFAULT = "300s"
#: Results that are fetched at a time.
FETCHES_MAX = 512
#: Values that are sent at a time.
PUTS_MAX = 16
#: How often a result is looked for again when it was not where it should be.
FETCH_ATTEMPTS_MAX = 4
FETCH_PAUSE_SECONDS = 0.05
#: How long a key that was sent by itself may take to be known.
PUT_KNOWN_SECONDS = 60.0

#: Questions that change nothing: they are asked again when the scheduler goes before it answers.
_REPEATED = frozenset(
    {
        "adaptive_target", "groups", "has_what", "identity", "nbytes", "ncores", "processing",
        "scheduler_logs", "task_status", "versions", "who_has", "worker_logs",
    }
)  # fmt: skip
ASK_ATTEMPTS_MAX = 4
ASK_PAUSE_SECONDS = 0.2
#: The code of a call that broke off.
_BROKEN_OFF = "OX113"

#: Turns of the event loop until the client has certainly handled a message.
CLIENT_TURNS = 4
#: Whoever waits for news looks by itself after this time.
LISTEN_SECONDS_MAX = 1.0
#: Messages that are no trouble to those who wait for results.
_NO_TROUBLE = frozenset({"key-in-memory", "event"})

#: Parts of the news of a result that came with its value.
_READY_WITH_VALUE = 7

Location = tuple[int, int, int]
Fault = tuple[str, str, str]


def reconnect_seconds() -> float:
    """How long to go on trying to reach a scheduler that went away."""
    from dask.utils import parse_timedelta

    return float(parse_timedelta(dask.config.get(RECONNECT_TIMEOUT_NAME, RECONNECT_TIMEOUT_DEFAULT)))


class Connection:
    """A client's session, as the event loop sees it."""

    def __init__(self, address: str, credentials: Any, client: str, names: KeyNames | None = None) -> None:
        from oxidask._oxidask import Session

        self.address = address
        self.client = client
        self.names = names if names is not None else KeyNames()
        self.loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = self.loop.create_future()
        self.is_closed = False
        #: Conversations that wait for it to be there.
        self.waiters = 0
        #: The client's versions as the scheduler has them.
        self.versions = own_versions()
        #: Where results are, by key on the wire.
        self.locations: dict[str, Location] = {}
        #: Small ones that came with the news.
        self.inline = InlineValues()
        self.wanted: set[str] = set()
        #: Keys whose last news was a failure.
        self.failed: set[str] = set()
        #: Work in the background, kept so that it is not lost.
        self.tasks: set[asyncio.Task[Any]] = set()
        self.workers = Workers(self)
        #: True if the client has handled them when it returns.
        self.on_message: Callable[[list[dict[str, Any]]], bool] | None = None
        self.on_close: Callable[[], None] | None = None
        #: What the event loop has not taken yet, and whether it was called.
        self._arrived: deque[list[tuple[Any, ...]]] = deque()
        self._is_called = False
        #: How often this client has cancelled a key and not yet been told of it.
        self._cancelling: dict[str, int] = {}
        self._unfinished_anyway: set[str] = set()
        self._released_early: set[str] = set()
        #: How often something has failed, was cancelled or has ended.
        self.troubles = 0
        #: Who waits for that, or for results.
        self._listeners: list[asyncio.Future[None]] = []
        self.threads = WaitingThreads(self._call_loop)
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self.session = Session(
            f"oxidask://{address}", credentials, client, self.versions, self._from_session, reconnect_seconds()
        )

    # ---- events ----

    def _from_session(self, events: list[tuple[Any, ...]]) -> None:
        """On a thread of the Rust half."""
        self._arrived.append(events)
        event = events[0]
        if len(events) == 1 and event[0] == "ready" and len(event) == _READY_WITH_VALUE:
            _, wire, _, _, _, kind, data = event
            if self.threads.hand_over(wire, (kind, data)):
                # Who has it calls the loop: one that woke now would be in its way.
                return
        self._call_loop()

    def _call_loop(self) -> None:
        """Let the event loop take what has arrived. From any thread."""
        # If the loop has not yet looked at what came before, it takes this with it.
        if self._arrived and not self._is_called:
            self._is_called = True
            try:
                self.loop.call_soon_threadsafe(self._take_arrived)
            except RuntimeError:
                logger.debug("events after the end of the event loop")

    def _take_arrived(self) -> None:
        self._is_called = False
        events = self._arrived.popleft() if self._arrived else []
        while self._arrived:
            events.extend(self._arrived.popleft())
        if events:
            self._take(events)

    def _take(self, events: list[tuple[Any, ...]]) -> None:
        messages: list[dict[str, Any]] = []
        for event in events:
            try:
                on = self._on_ready if event[0] == "ready" else getattr(self, f"_on_{event[0]}", self._on_unknown)
                message = on(*event[1:])
            except Exception:  # one bad event must not stop all others
                logger.exception("an event of the scheduler could not be handled: %s", event[0])
                continue
            if message is not None:
                messages.append(message)
        if messages and self.on_message is not None:
            if self.on_message(messages):
                self.threads.wake([event[1] for event in events if event[0] == "ready"])
                self._tell_listeners()
            else:
                is_trouble = any(message["op"] not in _NO_TROUBLE for message in messages)
                # After the client has read the messages.
                self.loop.call_soon(self._tell_later, is_trouble)

    async def next_news(self) -> None:
        """Until results are there, or something fails, is cancelled or ends, and the client knows it."""
        listener: asyncio.Future[None] = self.loop.create_future()
        self._listeners.append(listener)
        alarm = self.loop.call_later(LISTEN_SECONDS_MAX, self._tell_listeners)
        try:
            await listener
        finally:
            alarm.cancel()

    def _tell_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if not listener.done():
                listener.set_result(None)

    def _tell_later(self, is_trouble: bool = True, turns: int = CLIENT_TURNS) -> None:
        if turns:
            self.loop.call_soon(self._tell_later, is_trouble, turns - 1)
        else:
            self.troubles += is_trouble
            self._tell_listeners()
            self.threads.wake_all()

    def _on_unknown(self, *_: Any) -> None:
        return None

    def _on_connected(self) -> None:
        if not self.connected.done():
            self.connected.set_result(None)

    def _on_refused(self, code: str, message: str, hint: str) -> None:
        error = _errors.OxidaskError(code, message, hint)
        if not self.connected.done():
            self.connected.set_exception(error)
        else:
            logger.error("%s", error)
        self._end()

    def _forget(self, wire: str) -> None:
        """It is not known any more where the value of a key is."""
        self.locations.pop(wire, None)
        self.inline.forget((wire,))

    def _on_ready(
        self, wire: str, graph: int, task: int, nbytes: int, kind: int | None = None, data: bytes = b""
    ) -> dict[str, Any]:
        self.locations[wire] = (graph, task, nbytes)
        if kind is not None:
            self.inline.keep(wire, (graph, task), (kind, data))
        else:
            # Made again, it may be another value.
            self.inline.forget((wire,))
        self.failed.discard(wire)
        self._cancelling.pop(wire, None)
        for waiter in self._waiting.pop(wire, ()):
            if not waiter.done():
                waiter.set_result(None)
        self._is_finished(wire)
        return {"op": "key-in-memory", "key": self.names.from_wire(wire), "type": None, "workers": ()}

    def _on_failed(
        self, wire: str, code: str, message: str, hint: str, causes: list[str], attachment: bytes | None
    ) -> dict[str, Any]:
        self._forget(wire)
        self.failed.add(wire)
        self._cancelling.pop(wire, None)
        self._is_finished(wire)
        exception, traceback = _errors.task_failure(code, message, hint, causes, attachment)
        return {
            "op": "task-erred",
            "key": self.names.from_wire(wire),
            "exception": exception,
            "traceback": traceback,
        }

    def _on_lost(self, wire: str) -> dict[str, Any]:
        # Nobody makes it again: whoever waits for it would wait for ever.
        self._forget(wire)
        reason, message = "lost", "The result was lost with its worker and cannot be made again."
        return {"op": "cancelled-keys", "keys": [self.names.from_wire(wire)], "reason": reason, "msg": message}

    def _on_cancelled(self, wire: str, reason: str, message: str) -> dict[str, Any] | None:
        self._is_finished(wire)
        if count := self._cancelling.pop(wire, 0):
            # The client knows. It may have submitted the key anew meanwhile, and that was not cancelled.
            if count > 1:
                self._cancelling[wire] = count - 1
            return None
        self._forget(wire)
        key = self.names.from_wire(wire)
        return {"op": "cancelled-keys", "keys": [key], "reason": reason or None, "msg": message or None}

    def _on_retried(self, wire: str) -> dict[str, Any]:
        self._forget(wire)
        self.failed.discard(wire)
        return {"op": "task-retried", "key": self.names.from_wire(wire)}

    def _on_topic(self, topic: str, time: float, content: bytes) -> dict[str, Any] | None:
        from oxidask import _operations

        return {"op": "event", "topic": topic, "event": (time, _operations.topic_value(content))}

    def _on_notice(self, text: str) -> None:
        notice_once(text)

    def _on_restarted(self) -> dict[str, Any]:
        self.locations.clear()
        self.inline.clear()
        self.wanted.clear()
        self.failed.clear()
        return {"op": "restart"}

    def _on_reconnecting(self, text: str) -> None:
        if not self.connected.done():
            # Whoever waits tries again by itself, and can say what is wrong if it gives up.
            waited, self.connected = self.connected, self.loop.create_future()
            waited.set_exception(OSError(text))
            waited.exception()
            return
        logger.warning("the scheduler %s is away, trying to reach it again: %s", self.address, text)

    def _on_closed(self, text: str) -> None:
        if not self.connected.done():
            self.connected.set_exception(OSError(text or f"cannot reach the scheduler {self.address}"))
            # Whoever waits may have given up before.
            self.connected.exception()
        elif not self.is_closed:
            logger.error("the connection to %s has ended: %s", self.address, text)
        self._end()

    def _end(self) -> None:
        self.is_closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(CommClosedError(f"the connection to {self.address} has ended"))
        self._waiting.clear()
        self._tell_later(turns=0)
        if self.on_close is not None:
            self.on_close()

    # ---- keys ----

    def submit(self, prepared: Prepared) -> None:
        """Send a graph."""
        self.wanted.update(prepared.wanted)
        self.names.remember(prepared.names)
        sent: set[str] = set()
        for submission in prepared.submissions:
            priority = retries = requirement = table = None
            if submission.wishes is not None:
                priority, retries, requirement, table = _columns(submission.wishes, self.workers.names_of)
            self.session.submit(
                submission.keys,
                submission.body,
                submission.arguments,
                submission.groups,
                submission.group,
                submission.input_counts,
                submission.inputs,
                submission.external,
                submission.wanted,
                priority,
                retries,
                requirement,
                table,
            )
            sent.update(submission.keys[place] for place in submission.wanted)
        if others := [wire for wire in prepared.wanted if wire not in sent]:
            self.session.want(others)
        temporary = [*prepared.bridges, *prepared.values]
        if unwanted := [wire for wire in temporary if wire not in self.wanted]:
            for wire in unwanted:
                self._forget(wire)
            self.session.release(unwanted)

    def want(self, wires: list[str]) -> None:
        """This client wants these keys."""
        self.wanted.update(wires)
        self.session.want(wires)

    def cancel(self, wires: list[str], is_forced: bool, reason: str, message: str) -> None:
        """These keys are not to be made, for anyone if it is forced."""
        for wire in wires:
            self._forget(wire)
            self.failed.discard(wire)
            self._cancelling[wire] = self._cancelling.get(wire, 0) + 1
        self.session.cancel(wires, is_forced, reason, message)
        self._tell_later()

    def want_until_finished(self, wires: list[str]) -> None:
        """These keys are to be made even if their futures go."""
        self._unfinished_anyway.update(wire for wire in wires if wire not in self.locations)
        self.want(wires)

    def release(self, wires: list[str]) -> None:
        """This client does not want these keys any more."""
        early = [wire for wire in wires if wire in self._unfinished_anyway]
        self._released_early.update(early)
        self._release_now([wire for wire in wires if wire not in self._unfinished_anyway] if early else wires)

    def _release_now(self, wires: list[str]) -> None:
        for wire in wires:
            self.locations.pop(wire, None)
        self.inline.forget(wires)
        self.wanted.difference_update(wires)
        self.failed.difference_update(wires)
        self.names.forget(wires)
        if wires and not self.is_closed:
            self.session.release(wires)

    def _is_finished(self, wire: str) -> None:
        if wire in self._unfinished_anyway:
            self._unfinished_anyway.discard(wire)
            if wire in self._released_early:
                self._released_early.discard(wire)
                self.loop.call_soon(self._release_now, [wire])

    # ---- questions and values ----

    async def ask(
        self, op: str, fields: dict[str, Any] | None = None, values: Iterable[bytes] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Ask the scheduler; raises `OxidaskError` if it has no answer."""
        for attempt in range(1, ASK_ATTEMPTS_MAX + 1):
            try:
                return await self._ask_once(op, fields, values)
            except _errors.OxidaskError as error:
                if op not in _REPEATED or error.code != _BROKEN_OFF or attempt == ASK_ATTEMPTS_MAX:
                    raise
            await asyncio.sleep(ASK_PAUSE_SECONDS * attempt)
        raise AssertionError("the last attempt ends the loop")

    async def _ask_once(
        self, op: str, fields: dict[str, Any] | None, values: Iterable[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        if self.is_closed:
            raise CommClosedError(f"the connection to {self.address} has ended")
        answer: asyncio.Future[tuple[bytes, list[bytes]]] = self.loop.create_future()

        def answered(fault: Fault | None, content: bytes, found: list[bytes]) -> None:
            if answer.done():
                return
            if fault is not None:
                answer.set_exception(_errors.from_fault(fault))
            else:
                answer.set_result((content, found))

        def hop(fault: Fault | None, content: bytes, found: list[bytes]) -> None:
            self._hop(answered, fault, content, found)

        question = json.dumps({"op": op, **(fields or {})}).encode()
        self.session.ask(question, list(values), hop)
        content, found = await answer
        return (json.loads(content) if content else {}), found

    def _hop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("an answer after the end of the event loop")

    async def fetch(self, wires: list[str]) -> tuple[dict[str, Any], list[str]]:
        """The values of results, and the keys of those that are not there."""
        from oxidask._payload import decode

        values = self._values_here(wires)
        missing = [wire for wire in wires if wire not in values] if values else list(wires)
        if not missing:
            return values, missing
        for attempt in range(FETCH_ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(FETCH_PAUSE_SECONDS * 2**attempt)
            known = [wire for wire in missing if wire in self.locations]
            for start in range(0, len(known), FETCHES_MAX):
                part = known[start : start + FETCHES_MAX]
                payloads = await self._fetch_some([self.locations[wire][:2] for wire in part])
                for wire, (kind, data) in zip(part, payloads, strict=True):
                    if kind is None:
                        logger.debug("no result for %s: %s", wire, data)
                    else:
                        values[wire] = decode(kind, data)
            missing = [wire for wire in missing if wire not in values]
            if not missing:
                break
        return values, missing

    def _values_here(self, wires: list[str]) -> dict[str, Any]:
        """Those that came with the news."""
        from oxidask._payload import decode

        values: dict[str, Any] = {}
        for wire in wires:
            payload = self.payload_here(wire)
            if payload is not None:
                values[wire] = decode(*payload)
        return values

    def payload_here(self, wire: str) -> Any:
        """Kind and bytes of a result that came with the news, or nothing. From any thread."""
        location = self.locations.get(wire)
        return self.inline.find(wire, location[:2]) if location is not None else None

    async def _fetch_some(self, tasks: list[tuple[int, int]]) -> list[tuple[int | None, Any]]:
        done: asyncio.Future[None] = self.loop.create_future()
        payloads: list[tuple[int | None, Any]] = [(None, None)] * len(tasks)
        lock, left = threading.Lock(), len(tasks)

        def fetched(index: int, kind: int | None, data: Any) -> None:
            nonlocal left
            payloads[index] = (kind, data)
            with lock:
                left -= 1
                is_last = left == 0
            if is_last:
                # One hop for all: a hop costs more than a small result.
                self._hop(lambda: None if done.done() else done.set_result(None))

        self.session.fetch(tasks, fetched)
        await done
        return payloads

    async def put(self, values: dict[str, Any], workers: list[str], is_shared: bool) -> None:
        """Send values by themselves; they are known to this client when it returns."""
        slots = asyncio.Semaphore(PUTS_MAX)

        async def one(wire: str, value: Any) -> None:
            async with slots:
                await self._put_one(wire, value, workers, is_shared)

        await asyncio.gather(*(one(wire, value) for wire, value in values.items()))

    async def _put_one(self, wire: str, value: Any, workers: list[str], is_shared: bool) -> None:
        from oxidask._payload import encode

        kind, buffers = encode(value)
        done: asyncio.Future[None] = self.loop.create_future()
        known: asyncio.Future[None] = self.loop.create_future()
        self._waiting.setdefault(wire, []).append(known)

        def finished(fault: Fault | None) -> None:
            if done.done():
                return
            if fault is None:
                done.set_result(None)
            else:
                done.set_exception(_errors.from_fault(fault))

        self.session.put(wire, kind, buffers, workers, is_shared, lambda fault: self._hop(finished, fault))
        try:
            await done
            if wire not in self.locations:
                await asyncio.wait_for(known, PUT_KNOWN_SECONDS)
        finally:
            known.cancel()
            waiters = self._waiting.get(wire, [])
            if known in waiters:
                waiters.remove(known)

    def close(self) -> None:
        """End the session; the scheduler lets go of this client's keys."""
        if not self.is_closed:
            self.is_closed = True
            self.session.close()


def _columns(
    wishes: list[Any], names_of: Callable[[tuple[str, ...]], list[str]]
) -> tuple[list[int] | None, list[int] | None, list[int] | None, list[tuple[int, dict[str, int], list[str]]] | None]:
    """Priority, retries, requirement and requirements of tasks; a column that says nothing is absent."""
    priority = [wish.priority for wish in wishes]
    retries = [wish.retries for wish in wishes]
    places: dict[Any, int] = {}
    requirement = []
    for wish in wishes:
        if wish.is_restricted:
            requirement.append(places.setdefault((wish.resources, wish.workers), len(places) + 1))
        else:
            requirement.append(0)
    table = [(1, dict(resources), names_of(workers)) for resources, workers in places]
    return (
        priority if any(priority) else None,
        retries if any(retries) else None,
        requirement if table else None,
        table or None,
    )
