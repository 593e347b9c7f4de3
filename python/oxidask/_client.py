"""What stock `distributed.Client` objects are set up with.

Owns finding the client of a conversation, its certificates, and the few private names of `Client`
that are changed on one object: graphs are prepared in the thread of the user rather than pickled
whole; messages are sent at once rather than each 10 ms; values come from the scheduler's side rather
than from Dask workers. A release of `distributed` without such a name works, only slower. Never
changes the class.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.core import ConnectionPool
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from oxidask import _annotations, _gathering, _optimise, _sending, _shuffle, _waiting
from oxidask._errors import NotThereError
from oxidask._graph import Prepared, prepare
from oxidask._intern import CannotPickle
from oxidask._keys import KeyNames

if TYPE_CHECKING:
    from oxidask._connection import Connection
    from oxidask._stream import Stream

logger = logging.getLogger("oxidask")

_NAMES = "_oxidask_names"
_CONNECTION = "_oxidask_connection"
_SENDING = "_oxidask_sending"
#: Methods of `Client` and of its pool that open conversations.
_CALLERS = frozenset({"_ensure_connected", "_update_scheduler_info", "_connect", "connect"})
#: How far up the caller is looked for.
FRAMES_MAX = 60


class _Handed:
    """A prepared graph on its way through `Client` into the message."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared


@dask_serialize.register(_Handed)
def _hand_over(handed: _Handed) -> tuple[dict[str, Any], list[Any]]:
    # The graph is the frame: Dask only asks how large it is.
    return {}, [handed.prepared]


@dask_deserialize.register(_Handed)
def _take_over(_: Any, frames: list[Any]) -> _Handed:
    return _Handed(frames[0])


def find(client: str, connection_args: dict[str, Any]) -> Any:
    """The `Client` object with this id, or the one that opens a conversation just now."""
    from distributed import Client

    context = connection_args.get("ssl_context")
    for found in list(Client._instances):
        if client and found.id == client:
            return found
        if not client and context is not None and (found.connection_args or {}).get("ssl_context") is context:
            return found
    # Nothing says whose conversation it is: look at who is calling.
    frame: Any = sys._getframe(1)
    for _ in range(FRAMES_MAX):
        if frame is None:
            return None
        caller = frame.f_locals.get("self") if frame.f_code.co_name in _CALLERS else None
        if isinstance(caller, ConnectionPool):
            owners = [found for found in list(Client._instances) if getattr(found, "rpc", None) is caller]
            caller = owners[0] if owners else None
        if isinstance(caller, Client) and client in ("", caller.id):
            return caller
        frame = frame.f_back
    return None


def names_of(client: Any) -> KeyNames | None:
    """What a client remembers about its keys, also over connections."""
    if client is None:
        return None
    names = getattr(client, _NAMES, None)
    if names is None:
        names = KeyNames()
        setattr(client, _NAMES, names)
    return names


def credentials(client: Any, connection_args: dict[str, Any], address: str) -> Any:
    """The certificates for a connection."""
    from oxidask import _security

    security = getattr(client, "security", None)
    return _security.credentials_for(security, connection_args.get("extra_conn_args"), f"oxidask://{address}")


def set_up(client: Any, connection: Connection, stream: Stream) -> None:
    """Prepare a client that has connected."""
    _optimise.set_config()
    _shuffle.use_tasks()
    _annotations.remember_frames()
    if client.direct_to_workers is None:
        client.direct_to_workers = False
    setattr(client, _NAMES, connection.names)
    setattr(client, _CONNECTION, connection)
    if not getattr(client, "_oxidask_is_set_up", False):
        client._oxidask_is_set_up = True
        _change(client)
    sending = getattr(client, _SENDING)
    if sending is not None:
        sending.use(stream)


def _change(client: Any) -> None:
    setattr(client, _SENDING, _sending.send_at_once(client))
    _waiting.wait_in_thread(client, lambda: getattr(client, _CONNECTION))
    _hand_graphs_over(client)
    _gather_directly(client)
    _without_worker(client, "_scatter")


def at_start_of_stream(client: Any, comm: Any) -> None:
    """Send messages as soon as there are any; those of one turn of the loop go together."""
    sender = getattr(client, "scheduler_comm", None)
    if sender is not None and getattr(sender, "comm", None) is comm and sender.interval:
        sender.interval = 0
        if hasattr(sender, "buffer") and callable(getattr(sender, "send", None)):
            sender.send = _Sender(sender, comm, type(sender).send)


class _Sender:
    """Stands for the method that sends messages of a stream: without a task that waits for them.

    What cannot go this way (the stream has ended, or another has taken its place) goes the plain way.
    """

    def __init__(self, sender: Any, comm: Any, plain: Any) -> None:
        self._sender = sender
        self._comm = comm
        self._plain = plain
        self._waiting: list[Any] = []

    def __call__(self, *messages: Any) -> None:
        sender = self._sender
        if sender.comm is not self._comm or self._comm.closed() or sender.buffer:
            self._plain(sender, *messages)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.extend(messages)

    def _send(self) -> None:
        messages, self._waiting = self._waiting, []
        self._comm.take(messages)


def result_handler(client: Any) -> Callable[[Any], None] | None:
    """What the client does when a result is there, if that is what we know; called with the key."""
    handler = getattr(client, "_handle_key_in_memory", None)
    handlers = getattr(client, "_stream_handlers", None)
    if handler is None or not isinstance(handlers, dict) or handlers.get("key-in-memory") != handler:
        return None
    return handler if not inspect.iscoroutinefunction(handler) else None


def _gather_directly(client: Any) -> None:
    """Let values come the short way; see `_gathering`."""
    plain = getattr(client, "_gather", None)
    if plain is None or not {"errors", "direct", "local_worker"} <= set(inspect.signature(plain).parameters):
        return

    @functools.wraps(plain)
    async def gather(futures: Any, errors: str = "raise", direct: Any = None, local_worker: Any = None) -> Any:
        return await _gathering.gather(client, getattr(client, _CONNECTION), plain, futures, errors)

    client._gather = gather


def _without_worker(client: Any, name: str) -> None:
    """Let a method go to the scheduler also inside a task."""
    plain = getattr(client, name, None)
    if plain is None or "local_worker" not in inspect.signature(plain).parameters:
        return

    @functools.wraps(plain)
    async def remote(*args: Any, **kwargs: Any) -> Any:
        kwargs["local_worker"] = None
        kwargs["direct"] = False
        return await plain(*args, **kwargs)

    setattr(client, name, remote)


def _hand_graphs_over(client: Any) -> None:
    """Let graphs reach the transport as they are, prepared in the thread that submits them."""
    plain = getattr(client, "_graph_to_futures", None)
    if plain is None:
        return
    names = tuple(inspect.signature(plain).parameters)
    if not {"expr", "keys"} <= set(names):
        return

    @functools.wraps(plain)
    def graph_to_futures(*args: Any, **kwargs: Any) -> Any:
        # `Signature.bind` would take a tenth of a `submit`.
        named = dict(zip(names, args, strict=False)) | kwargs
        if named.get("actors"):
            raise NotThereError("actors are not there on oxidask", "keep state in a worker plugin or a variable")
        keys = list(named["keys"])
        prepared = _prepared(named["expr"], keys, _annotations_of(named), getattr(client, _NAMES))
        named["expr"], named["keys"] = _Handed(prepared), keys
        return plain(**named)

    client._graph_to_futures = graph_to_futures


def _annotations_of(named: dict[str, Any]) -> dict[str, Any]:
    """What holds for all tasks of a call; what was passed counts more than what is around it."""
    import dask

    workers = named.get("workers")
    given = {
        "workers": workers if workers is None or isinstance(workers, (list, tuple, set)) else [workers],
        "allow_other_workers": named.get("allow_other_workers"),
        "resources": named.get("resources"),
        "retries": named.get("retries"),
        "priority": named.get("user_priority"),
    }
    around = {name: value for name, value in dask.get_annotations().items() if name in given}
    return {**around, **{name: value for name, value in given.items() if value}}


def _prepared(expr: Any, keys: list[Any], annotations: dict[str, Any], names: KeyNames) -> Prepared:
    try:
        return prepare(expr, keys, annotations, names)
    except CannotPickle as error:
        # The words that stock Dask has for it.
        words = f"Could not serialize object of type {type(expr).__name__}"
        raise TypeError(words, _text(expr)[:10_000]) from (error.__cause__ or error)


def _text(expr: Any) -> str:
    try:
        return str(expr)
    except Exception:  # several collections together have none
        return type(expr).__name__
