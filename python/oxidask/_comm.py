"""The transport `oxidask://` of `distributed`.

Owns `Backend`, the connector, and `Comm`: one object per conversation, of which one becomes the
client's stream and all others answer one question at a time. Conversations of one client share one
`Connection`; `Hub` finds it. Messages never become bytes here: the client's dictionaries are handled
as they are, and answers are plain Python. An operation that is not there is answered with an error.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from collections import deque
from typing import Any

from distributed.comm import core
from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.registry import Backend as DaskBackend
from distributed.core import error_message
from distributed.protocol.serialize import Serialize, ToPickle

from oxidask import _client, _operations
from oxidask._connection import Connection
from oxidask._errors import OxidaskError
from oxidask._stream import Stream

logger = logging.getLogger("oxidask")

SCHEME = "oxidask"
#: What `BatchedSend` is told that a message had: it does not keep large ones, and ours hold graphs.
SENT_BYTES = 10_000_000
#: A connection that nobody waits for any more is given up after this long.
UNUSED_SECONDS = 10.0


class Hub:
    """The connections from one event loop to one scheduler."""

    _all: weakref.WeakKeyDictionary[Any, dict[str, Hub]] = weakref.WeakKeyDictionary()

    def __init__(self, address: str) -> None:
        self.address = address
        #: By the id of the client; the one without a client yet is under the empty text.
        self.connections: dict[str, Connection] = {}
        self.comms: weakref.WeakSet[Comm] = weakref.WeakSet()

    @classmethod
    def of(cls, address: str) -> Hub:
        """The hub of this event loop for a scheduler."""
        hubs = cls._all.setdefault(asyncio.get_running_loop(), {})
        if address not in hubs:
            hubs[address] = cls(address)
        return hubs[address]

    @classmethod
    def _is_elsewhere(cls, client: str) -> bool:
        """Whether this client has a connection on another event loop, as when it shows a progress bar."""
        here = asyncio.get_running_loop()
        others = [hubs for loop, hubs in list(cls._all.items()) if loop is not here]
        connections = [one for hubs in others for hub in list(hubs.values()) for one in list(hub.connections.values())]
        return any(one.client == client and not one.is_closed for one in connections)

    def _forget_closed(self) -> None:
        for name in [name for name, connection in self.connections.items() if connection.is_closed]:
            del self.connections[name]

    async def any_connection(self, connection_args: dict[str, Any]) -> Connection:
        """A connection that works; raises `OSError` if the scheduler cannot be reached."""
        self._forget_closed()
        for name, connection in self.connections.items():
            if name and connection.connected.done():
                return connection
        return await self._opened("", connection_args)

    async def _opened(self, client: str, connection_args: dict[str, Any]) -> Connection:
        connection = self.connections.get(client)
        if connection is None:
            owner = _client.find(client, connection_args)
            credentials = _client.credentials(owner, connection_args, self.address)
            name = client or (owner.id if owner is not None else "")
            # The scheduler ends the older of two connections of one name.
            if not name or (not client and self._is_elsewhere(name)):
                name = f"Client-{uuid.uuid4().hex[:12]}"
            names = _client.names_of(owner)
            connection = self.connections[client] = Connection(self.address, credentials, name, names)
        connection.waiters += 1
        try:
            await asyncio.shield(connection.connected)
        except OxidaskError as error:
            self.connections.pop(client, None)
            raise FatalCommClosedError(str(error)) from error
        finally:
            connection.waiters -= 1
            if connection.is_closed:
                self.connections.pop(client, None)
            elif not connection.waiters and not connection.connected.done():
                connection.loop.call_later(UNUSED_SECONDS, self._end_unused, client, connection)
        return connection

    def _end_unused(self, client: str, connection: Connection) -> None:
        """Whoever wanted a connection has given up before there was one."""
        if not connection.waiters and not connection.connected.done():
            if self.connections.get(client) is connection:
                del self.connections[client]
            connection.close()

    async def claim(self, client: str, connection_args: dict[str, Any]) -> Connection:
        """The connection of a client that registers."""
        self._forget_closed()
        if client not in self.connections:
            spare = self.connections.get("")
            if spare is not None and spare.client == client:
                self.connections[client] = self.connections.pop("")
        return await self._opened(client, connection_args)

    def for_message(self, message: dict[str, Any], owner: str | None) -> Connection | None:
        """The connection that can answer a message of a client; nothing if there is none."""
        self._forget_closed()
        if owner is not None and owner in self.connections:
            return self.connections[owner]
        named = self.connections.get(str(message.get("client") or ""))
        if named is not None and message.get("client"):
            return named
        found = list(self.connections.values())
        if not found:
            return None
        if message.get("op") == "gather" and len(found) > 1:
            keys = message["keys"]
            return max(found, key=lambda one: sum(one.names.to_wire(key) in one.locations for key in keys))
        return found[-1]

    def leave(self, comm: Comm) -> None:
        """A conversation has ended; without any, a connection without a client ends, too."""
        self.comms.discard(comm)
        if not self.comms and "" in self.connections:
            self.connections.pop("").close()


class Comm(core.Comm):
    """One conversation."""

    def __init__(self, hub: Hub, deserialize: bool, connection_args: dict[str, Any]) -> None:
        super().__init__(deserialize=deserialize)
        self._hub = hub
        self._connection_args = connection_args
        owner = _client.find("", connection_args)
        self._owner: str | None = owner.id if owner is not None else None
        self._peer_addr = f"{SCHEME}://{hub.address}"
        self._local_addr = f"{SCHEME}://client-{id(self):x}"
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_closed = False
        self._stream: Stream | None = None
        self._client: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: Called when the conversation ends, by operations that turn it into a stream.
        self.on_end: list[Any] = []
        hub.comms.add(self)

    # ---- what distributed asks for ----

    @property
    def local_address(self) -> str:
        """A name for this end."""
        return self._local_addr

    @property
    def peer_address(self) -> str:
        """The scheduler's address."""
        return self._peer_addr

    @property
    def same_host(self) -> bool:
        """Never assumed."""
        return False

    @property
    def connection_args(self) -> dict[str, Any]:
        """What the conversation was opened with."""
        return self._connection_args

    def handshake_info(self) -> dict[str, Any]:
        """Nothing is compressed here: there are no bytes."""
        return {**super().handshake_info(), "compression": None}

    async def read(self, deserializers: Any = None) -> Any:
        """The next message; of a stream all that there are."""
        if self._stream is not None and self._client is not None:
            _client.at_start_of_stream(self._client, self)
        while not self._inbox:
            if self._is_closed:
                raise CommClosedError(f"the conversation with {self._peer_addr} has ended")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._stream is None:
            return self._inbox.popleft()
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    async def write(self, msg: Any, serializers: Any = None, on_error: Any = None) -> int:
        """Handle a message of the client."""
        if self._is_closed:
            raise CommClosedError(f"the conversation with {self._peer_addr} has ended")
        if self._stream is not None:
            self._stream.take(list(msg) if isinstance(msg, (list, tuple)) else [msg])
        elif "op" not in msg:
            self.push([dict(msg)])
        elif msg["op"] == "register-client":
            await self._register(msg)
        else:
            task = asyncio.ensure_future(self._answer(dict(msg)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return SENT_BYTES

    async def close(self) -> None:
        """End the conversation."""
        self.abort()

    def abort(self) -> None:
        """End the conversation."""
        if self._is_closed:
            return
        self._is_closed = True
        for end in self.on_end:
            end()
        if self._stream is not None:
            self._stream.end()
        else:
            for task in self._tasks:
                task.cancel()
        self._wake()
        self._hub.leave(self)

    def closed(self) -> bool:
        """Whether it has ended."""
        return self._is_closed

    # ---- inside ----

    def take(self, messages: list[Any]) -> None:
        """Handle messages of the client's stream; those of a stream that has ended are lost."""
        if self._stream is not None and not self._is_closed:
            self._stream.take(messages)

    def push(self, messages: list[Any]) -> None:
        """Give messages to the client."""
        self._inbox.extend(messages)
        self._wake()

    def _hear(self, messages: list[dict[str, Any]]) -> bool:
        """News for the client. True if it has handled them: if it waits for messages, results need no turn of it."""
        handle = _client.result_handler(self._client)
        is_waiting = self._reader is not None and not self._reader.done() and not self._inbox
        if handle is None or not is_waiting or any(message["op"] != "key-in-memory" for message in messages):
            self.push(messages)
            return False
        for message in messages:
            handle(message["key"])
        return True

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _register(self, message: dict[str, Any]) -> None:
        client = message["client"]
        connection = await self._hub.claim(client, self._connection_args)
        connection.on_message = self._hear
        connection.on_close = self._lost
        self._stream = Stream(connection, self.push)
        self._client = _client.find(client, self._connection_args)
        if self._client is not None:
            _client.set_up(self._client, connection, self._stream)
        warning = await _operations.versions_warning(connection)
        self.push([{"op": "stream-start", **({"warning": warning} if warning else {})}])

    def _lost(self) -> None:
        """The connection has ended for good."""
        if not self._is_closed:
            self._is_closed = True
            self._wake()
            self._hub.leave(self)

    async def _answer(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        try:
            connection = self._hub.for_message(message, self._owner)
            if connection is None:
                connection = await self._hub.any_connection(self._connection_args)
            answer = await _operations.answer(connection, message, self)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # every error is an answer
            logger.debug("operation %s failed", op, exc_info=True)
            answer = error_message(error, status="uncaught-error")
        if message.get("reply", True) and not self._is_closed and answer is not _operations.NO_ANSWER:
            self.push([plain(answer)])


def plain(value: Any) -> Any:
    """A message without the wrappers for serialising."""
    if isinstance(value, (Serialize, ToPickle)):
        return value.data
    if type(value) is dict:
        return {name: plain(part) if isinstance(part, (Serialize, ToPickle)) else part for name, part in value.items()}
    return value


class Connector(core.Connector):
    """Opens conversations."""

    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Comm:
        """A conversation with the scheduler at `host:port`."""
        hub = Hub.of(address)
        await hub.any_connection(connection_args)
        return Comm(hub, deserialize, connection_args)


class Backend(DaskBackend):
    """What `distributed` finds under `oxidask://`."""

    def get_connector(self) -> Connector:
        """Opens conversations."""
        return Connector()

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any) -> Any:
        """Clients do not listen."""
        raise NotImplementedError("oxidask:// is for clients; schedulers and workers are programs of their own")

    def get_address_host(self, loc: str) -> str:
        """The host of `host:port`."""
        return loc.rpartition(":")[0]

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        """Host and port."""
        host, _, port = loc.rpartition(":")
        return host, int(port)

    def resolve_address(self, loc: str) -> str:
        """Names stay: certificates are made out to them."""
        return loc

    def get_local_address_for(self, loc: str) -> str:
        """No other process connects to a client."""
        return "client"
