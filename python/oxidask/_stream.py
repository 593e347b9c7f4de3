"""The stream of messages between a client and the scheduler.

Owns what each message of the client's stream does, in order: graphs, wants, releases, cancelling, the
end. Releases of one batch are sent together. A graph that must wait for something (values of its own,
names of workers) holds back what comes after it. Never raises: a graph that cannot be sent fails its
keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from distributed.core import error_message
from distributed.protocol.serialize import Serialized, ToPickle, deserialize

from oxidask import _operations
from oxidask._connection import Connection
from oxidask._graph import Prepared, prepare

logger = logging.getLogger("oxidask")


class Stream:
    """Handles the messages of one client's stream."""

    def __init__(self, connection: Connection, push: Callable[[list[dict[str, Any]]], None]) -> None:
        self._connection = connection
        self._workers = connection.workers
        self._push = push
        self._releasing: list[str] = []
        self._held: deque[dict[str, Any]] = deque()
        self._holder: asyncio.Task[None] | None = None
        self._side: deque[Awaitable[Any]] = deque()
        self._side_task: asyncio.Task[None] | None = None
        self.is_ended = False
        #: Hears which messages have taken effect, or are held back here.
        self.on_taken: Callable[[list[dict[str, Any]]], None] = _ignore

    def take(self, messages: list[dict[str, Any]]) -> None:
        """Handle messages in order."""
        try:
            self._take(messages)
        finally:
            self.on_taken(messages)

    def _take(self, messages: list[dict[str, Any]]) -> None:
        if self._holder is not None:
            self._held.extend(messages)
            return
        for position, message in enumerate(messages):
            waits = self._handle(message)
            if waits is not None:
                self._held.extend(messages[position + 1 :])
                self._holder = asyncio.ensure_future(self._hold(waits))
                return
        self._flush()

    def take_at_once(self, message: dict[str, Any]) -> bool:
        """Send a graph, from any thread; false if something is before it or it cannot be sent just so."""
        if self.is_ended or self._holder is not None or self._releasing or self._connection.is_closed:
            return False
        found = message["expr_ser"]
        if not (isinstance(found, Serialized) and found.frames and isinstance(found.frames[0], Prepared)):
            return False
        prepared = found.frames[0]
        if prepared.values or prepared.bridges or any(one.wishes is not None for one in prepared.submissions):
            return False
        self._connection.submit(prepared)
        return True

    async def _hold(self, waits: Awaitable[None]) -> None:
        await waits
        while self._held:
            further = self._handle(self._held.popleft())
            if further is not None:
                await further
        self._flush()
        # From here on others may send.
        self._holder = None

    def _handle(self, message: dict[str, Any]) -> Awaitable[None] | None:
        op = message.get("op")
        if op == "client-releases-keys":
            self._releasing.extend(self._connection.names.all_to_wire(message["keys"]))
            return None
        self._flush()
        if op == "update-graph":
            return self._update_graph(message)
        known = _HANDLERS.get(op)  # type: ignore[arg-type]
        if known is not None:
            known(self, message)
        elif (handler := _operations.stream_handler(op)) is not None:
            self._aside(handler(self._connection, message))
        else:
            logger.debug("a message of the client was ignored: %s", op)
        return None

    def _flush(self) -> None:
        if self._releasing:
            releasing, self._releasing = self._releasing, []
            self._connection.release(releasing)

    def _aside(self, work: Awaitable[Any]) -> None:
        """Questions in order among themselves; they hold nothing else back."""
        self._side.append(work)
        if self._side_task is None:
            self._side_task = asyncio.ensure_future(self._run_aside())

    async def _run_aside(self) -> None:
        while self._side:
            try:
                await self._side.popleft()
            except Exception:  # nobody waits for an answer
                logger.warning("a message to the scheduler failed", exc_info=True)
        self._side_task = None

    async def settled(self) -> None:
        """Until all that was taken has been sent."""
        if self._holder is not None:
            await asyncio.wait([self._holder])
        if self._side_task is not None:
            await asyncio.wait([self._side_task])

    # ---- graphs ----

    def _update_graph(self, message: dict[str, Any]) -> Awaitable[None] | None:
        try:
            prepared = self._prepared(message)
            unknown = {
                worker
                for submission in prepared.submissions
                for wish in submission.wishes or ()
                for worker in wish.workers
            }
            if prepared.values or not self._workers.know(unknown):
                return self._update_graph_later(prepared, bool(unknown), message["keys"])
            self._connection.submit(prepared)
        except Exception as error:  # it becomes the failure of the keys
            self._fail(message["keys"], error)
        return None

    async def _update_graph_later(self, prepared: Prepared, has_workers: bool, keys: Any) -> None:
        try:
            if has_workers:
                await self._workers.refresh()
            if prepared.values:
                await self._connection.put(prepared.values, [], False)
            self._connection.submit(prepared)
        except Exception as error:  # it becomes the failure of the keys
            self._fail(keys, error)

    def _prepared(self, message: dict[str, Any]) -> Prepared:
        found = message["expr_ser"]
        if isinstance(found, Serialized) and found.frames and isinstance(found.frames[0], Prepared):
            return found.frames[0]
        # A client that is not set up by `_client`: its expression comes as bytes.
        if isinstance(found, Serialized):
            found = deserialize(found.header, found.frames)
        annotations = message.get("annotations")
        if isinstance(annotations, ToPickle):
            annotations = annotations.data
        return prepare(found, message["keys"], dict(annotations or {}), self._connection.names)

    def _fail(self, keys: Any, error: Exception) -> None:
        logger.debug("a graph could not be sent", exc_info=error)
        said = error_message(error)
        exception, traceback = said["exception"].data, said["traceback"].data
        self._push([{"op": "task-erred", "key": key, "exception": exception, "traceback": traceback} for key in keys])

    # ---- the rest ----

    def _want(self, message: dict[str, Any]) -> None:
        wires = self._connection.names.all_to_wire(message["keys"])
        if message.get("client") == "fire-and-forget":
            self._connection.want_until_finished(wires)
        else:
            self._connection.want(wires)

    def _report(self, message: dict[str, Any]) -> None:
        self._connection.want([self._connection.names.to_wire(message["key"])])

    def _cancel(self, message: dict[str, Any]) -> None:
        wires = self._connection.names.all_to_wire(message["keys"])
        reason, text = message.get("reason") or "", message.get("msg") or ""
        self._connection.cancel(wires, bool(message.get("force")), str(reason), str(text))

    def _close(self, _: dict[str, Any]) -> None:
        self.end()

    def end(self) -> None:
        """The client goes."""
        if not self.is_ended:
            self.is_ended = True
            self._flush()
            self._push([{"op": "stream-closed"}])
            self._connection.close()

    def _nothing(self, _: dict[str, Any]) -> None:
        """The session says by itself that the client is there."""


_HANDLERS: dict[str, Callable[[Stream, dict[str, Any]], None]] = {
    "client-desires-keys": Stream._want,
    "report-key": Stream._report,
    "cancel-keys": Stream._cancel,
    "heartbeat-client": Stream._nothing,
    "close-client": Stream._close,
    "close-stream": Stream._close,
}


def _ignore(_messages: list[dict[str, Any]]) -> None:
    """Nobody asks."""
