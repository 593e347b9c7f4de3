"""What clients coordinate by: locks, events, queues, variables, multi-locks, published data, metadata and topics.

Owns the translation between the messages of `distributed`'s classes and the questions of the scheduler, and
the form of the values: each is one pickle. The scheduler never opens one. Names that are no strings travel as
`repr` after a zero character; keys of futures as everywhere in the package, with the pickled key as the value.

A wait without end asks again whenever the scheduler says `again`. What the scheduler refuses becomes the
exception that `distributed` raises in that case.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

from dask.typing import no_default
from dask.utils import parse_timedelta
from distributed.protocol.pickle import dumps, loads
from distributed.protocol.serialize import Serialize, Serialized, ToPickle, deserialize

logger = logging.getLogger("oxidask")

#: How long published data wait for what their client submitted before.
FLUSH_SECONDS = 30
#: How long a future that is put somewhere waits for the stream with the graph that makes it; then it is put anyway.
KNOWN_SECONDS = 5
#: How often that is looked at.
KNOWN_PAUSE_SECONDS = 0.005
#: Flushes that are remembered for each connection; older ones belong to calls that have failed.
FLUSHES_MAX = 1_000
#: Levels of dictionaries of metadata that the scheduler sees into; what is deeper is one value.
METADATA_LEVELS_MAX = 24
#: Values of one call that the scheduler sees one by one; a larger dictionary is one value.
METADATA_VALUES_MAX = 10_000
#: The largest number that a question holds for a number of items.
_COUNT_MAX = 2**32 - 1

#: Operations of the client's stream that are answered here.
STREAM_OPERATIONS = frozenset(
    {
        "publish_flush_batched_send",
        "queue_release",
        "queue-future-release",
        "variable_delete",
        "variable-future-received-confirm",
        "subscribe-topic",
        "unsubscribe-topic",
        "log-event",
    }
)

_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


# ---- names, keys and values ----


def _text(name: Any) -> str:
    """A name as the scheduler knows it."""
    if isinstance(name, list):
        name = tuple(name)
    if isinstance(name, str) and not name.startswith("\0"):
        return str(name)
    return "\0" + repr(name)


def _name(text: str) -> Any:
    """The name that a text stands for."""
    if not text.startswith("\0"):
        return text
    try:
        return ast.literal_eval(text[1:])
    except (ValueError, SyntaxError):
        return text[1:]


def _is_plain(name: Any) -> bool:
    """Whether `_name` gives back the same after `_text`."""
    if type(name) is tuple:
        return all(map(_is_plain, name))
    return type(name) in _PLAIN_KEYS and not (type(name) is float and not math.isfinite(name))


def _wire_key(connection: Any, key: Any) -> str:
    names = getattr(connection, "names", None)
    if names is not None:
        return names.to_wire(key)
    return key if isinstance(key, str) else repr(key)


def _plain(value: Any) -> Any:
    if isinstance(value, (Serialize, ToPickle)):
        return value.data
    if isinstance(value, Serialized):
        return deserialize(value.header, value.frames)
    return value


def _pack(value: Any) -> bytes:
    return bytes(dumps(_plain(value)))


def topic_value(content: bytes) -> Any:
    """What was said about a topic."""
    return loads(content)


# ---- questions ----


class _Patience:
    """The time that a call has."""

    def __init__(self, timeout: Any) -> None:
        # `parse_timedelta` knows no negative and no infinite numbers.
        is_number = timeout is None or isinstance(timeout, (int, float))
        seconds = timeout if is_number else parse_timedelta(timeout)
        is_endless = seconds is None or seconds == math.inf
        self._end = None if is_endless else time.monotonic() + max(0.0, seconds)

    def left_ms(self) -> int | None:
        """Milliseconds that are left, rounded up; none: no end."""
        if self._end is None:
            return None
        return max(0, math.ceil((self._end - time.monotonic()) * 1000))


Answer = tuple[dict[str, Any], list[bytes]]


async def _ask_until(
    connection: Any, op: str, fields: dict[str, Any], patience: _Patience, values: Iterable[bytes] = ()
) -> Answer:
    """Ask, and again as long as there is time."""
    values = list(values)
    while True:
        answer, found = await connection.ask(op, {**fields, "timeout_ms": patience.left_ms()}, values)
        if answer["answer"] != "again":
            return answer, found


def _refuse(answer: dict[str, Any], kinds: dict[str, type[Exception]]) -> NoReturn:
    raise kinds.get(answer["reason"], ValueError)(answer["message"])


def _check(answer: dict[str, Any], **kinds: type[Exception]) -> None:
    """Raises what a refusal or the end of a time means."""
    if answer["answer"] == "refused":
        _refuse(answer, kinds)
    if answer["answer"] == "timed_out":
        raise TimeoutError


# ---- semaphores and locks ----


async def semaphore_register(connection: Any, message: dict[str, Any]) -> None:
    """Makes a semaphore if there is none."""
    lease_timeout = message.get("lease_timeout")
    lease_timeout_ms = None if lease_timeout in (None, math.inf) else math.ceil(lease_timeout * 1000)
    fields = {
        "name": _text(message["name"]),
        "max_leases": max(0, min(message["max_leases"], _COUNT_MAX)),
        "lease_timeout_ms": lease_timeout_ms,
    }
    answer, _ = await connection.ask("semaphore_register", fields)
    _check(answer, inconsistent=ValueError)


async def semaphore_acquire(connection: Any, message: dict[str, Any]) -> bool:
    """Takes a lease."""
    fields = {"name": _text(message["name"]), "lease": message["lease_id"]}
    patience = _Patience(message.get("timeout"))
    answer, _ = await _ask_until(connection, "semaphore_acquire", fields, patience)
    _check(answer, unknown=RuntimeError)
    return answer["truth"]


async def semaphore_release(connection: Any, message: dict[str, Any]) -> None:
    """Gives a lease back."""
    fields = {"name": _text(message["name"]), "lease": message["lease_id"]}
    answer, _ = await connection.ask("semaphore_release", fields)
    if not answer["truth"]:
        logger.warning(
            "a lease of the lock or semaphore `%s` was released that it did not have; did it time out before?",
            message["name"],
        )


async def semaphore_refresh_leases(connection: Any, message: dict[str, Any]) -> None:
    """Says that leases are still in use."""
    fields = {"name": _text(message["name"]), "leases": list(message["lease_ids"])}
    answer, _ = await connection.ask("semaphore_refresh", fields)
    if answer["unknown"]:
        logger.critical(
            "%d leases of the lock or semaphore `%s` had timed out, and others may have taken them. "
            "A task that holds the GIL for long is often the cause; see `distributed.scheduler.locks.lease-timeout`",
            len(answer["unknown"]),
            message["name"],
        )


async def semaphore_value(connection: Any, message: dict[str, Any]) -> int:
    """How many leases there are."""
    answer, _ = await connection.ask("semaphore_value", {"name": _text(message["name"])})
    return answer["count"]


async def semaphore_close(connection: Any, message: dict[str, Any]) -> None:
    """Forgets a semaphore."""
    await connection.ask("semaphore_close", {"name": _text(message["name"])})


# ---- events ----


async def event_wait(connection: Any, message: dict[str, Any]) -> bool:
    """Waits until an event is set."""
    fields = {"name": _text(message["name"])}
    answer, _ = await _ask_until(connection, "event_wait", fields, _Patience(message.get("timeout")))
    return answer["truth"]


async def event_set(connection: Any, message: dict[str, Any]) -> None:
    """Sets an event."""
    await connection.ask("event_set", {"name": _text(message["name"])})


async def event_clear(connection: Any, message: dict[str, Any]) -> None:
    """Clears an event."""
    await connection.ask("event_clear", {"name": _text(message["name"])})


async def event_is_set(connection: Any, message: dict[str, Any]) -> bool:
    """Whether an event is set."""
    answer, _ = await connection.ask("event_is_set", {"name": _text(message["name"])})
    return answer["truth"]


# ---- queues and variables ----


async def _item(connection: Any, message: dict[str, Any]) -> tuple[str | None, bytes]:
    """The key of a future and the value of an item."""
    key = message.get("key")
    if key is None:
        return None, _pack(message.get("data"))
    wire = _wire_key(connection, key)
    wanted = getattr(connection, "wanted", None)
    if wanted is not None:
        # The client's calls are faster than its stream, where its graph still may be.
        end = time.monotonic() + KNOWN_SECONDS
        while wire not in wanted and time.monotonic() < end:
            await asyncio.sleep(KNOWN_PAUSE_SECONDS)
    return wire, _pack(key)


def _records(answer: dict[str, Any], values: list[bytes]) -> list[dict[str, Any]]:
    """Items as `distributed` has them. The state of a future comes when its new holder wants it."""
    return [
        {"type": "msgpack", "value": loads(value)}
        if key is None
        else {"type": "Future", "value": loads(value), "state": "processing"}
        for key, value in zip(answer["keys"], values, strict=True)
    ]


def _received(connection: Any, op: str, message: dict[str, Any]) -> Awaitable[None]:
    """The client has a future now that it was handed. It wants its key at once, before it can release it again."""
    wire = _wire_key(connection, message["key"])
    connection.want([wire])

    async def tell() -> None:
        await connection.ask(op, {"name": _text(message["name"]), "key": wire})

    return tell()


async def queue_create(connection: Any, message: dict[str, Any]) -> None:
    """Makes a queue if there is none, and counts one more user."""
    maxsize = max(0, min(message.get("maxsize") or 0, _COUNT_MAX))
    await connection.ask("queue_create", {"name": _text(message["name"]), "maxsize": maxsize})


async def queue_release(connection: Any, message: dict[str, Any]) -> None:
    """Counts one user of a queue less."""
    await connection.ask("queue_release", {"name": _text(message["name"])})


async def queue_put(connection: Any, message: dict[str, Any]) -> None:
    """Puts an item at the end of a queue."""
    patience = _Patience(message.get("timeout"))
    key, value = await _item(connection, message)
    fields = {"name": _text(message["name"]), "key": key}
    answer, _ = await _ask_until(connection, "queue_put", fields, patience, [value])
    _check(answer, unknown=KeyError)


async def queue_get(connection: Any, message: dict[str, Any]) -> Any:
    """Takes one item, or several, from the front of a queue."""
    batch, timeout = message.get("batch") or False, message.get("timeout")
    name, patience = _text(message["name"]), _Patience(timeout)
    if batch is False:
        fields = {"name": name, "batch": None}
        answer, values = await _ask_until(connection, "queue_get", fields, patience)
        _check(answer, unknown=KeyError)
        return _records(answer, values)[0]
    if batch is not True and timeout is not None:
        raise NotImplementedError("Dask queues don't support simultaneous use of integer batch sizes and timeouts")
    records: list[dict[str, Any]] = []
    while True:
        count = "all" if batch is True else min(batch - len(records), _COUNT_MAX)
        answer, values = await _ask_until(connection, "queue_get", {"name": name, "batch": count}, _Patience(None))
        _check(answer, unknown=KeyError)
        records += _records(answer, values)
        if answer["is_all"]:
            return records


async def queue_qsize(connection: Any, message: dict[str, Any]) -> int:
    """How many items a queue has."""
    answer, _ = await connection.ask("queue_size", {"name": _text(message["name"])})
    _check(answer, unknown=KeyError)
    return answer["count"]


def queue_future_release(connection: Any, message: dict[str, Any]) -> Awaitable[None]:
    """This client wants a key itself that it took from a queue."""
    return _received(connection, "queue_future_release", message)


async def variable_set(connection: Any, message: dict[str, Any]) -> None:
    """Sets a variable."""
    key, value = await _item(connection, message)
    answer, _ = await connection.ask("variable_set", {"name": _text(message["name"]), "key": key}, [value])
    _check(answer)


async def variable_get(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """The value of a variable, once it has one."""
    fields = {"name": _text(message["name"])}
    answer, values = await _ask_until(connection, "variable_get", fields, _Patience(message.get("timeout")))
    _check(answer)
    record = _records(answer, values)[0]
    return {**record, "token": ""} if record["type"] == "Future" else record


def variable_future_received(connection: Any, message: dict[str, Any]) -> Awaitable[None]:
    """This client wants a key itself that it got from a variable."""
    return _received(connection, "variable_future_received", message)


async def variable_delete(connection: Any, message: dict[str, Any]) -> None:
    """Forgets a variable."""
    await connection.ask("variable_delete", {"name": _text(message["name"])})


# ---- multi-locks ----


async def multi_lock_acquire(connection: Any, message: dict[str, Any]) -> bool:
    """Takes some of several locks together."""
    names = [_text(name) for name in message["locks"]]
    count = message.get("num_locks") or len(names)
    fields = {"names": names, "id": str(message["id"]), "count": max(0, min(count, _COUNT_MAX))}
    patience = _Patience(message.get("timeout"))
    answer, _ = await _ask_until(connection, "multi_lock_acquire", fields, patience)
    _check(answer, invalid=ValueError)
    return answer["truth"]


async def multi_lock_release(connection: Any, message: dict[str, Any]) -> None:
    """Gives the locks of a multi-lock back."""
    answer, _ = await connection.ask("multi_lock_release", {"id": str(message["id"])})
    _check(answer, unknown=KeyError)


# ---- published data ----

_flushes: weakref.WeakKeyDictionary[Any, dict[Any, asyncio.Event]] = weakref.WeakKeyDictionary()


def _flush(connection: Any, uid: Any) -> asyncio.Event:
    of_connection = _flushes.setdefault(connection, {})
    while len(of_connection) >= FLUSHES_MAX and uid not in of_connection:
        of_connection.pop(next(iter(of_connection)))
    return of_connection.setdefault(uid, asyncio.Event())


async def publish_flush_batched_send(connection: Any, message: dict[str, Any]) -> None:
    """Everything that the client sent by its stream before this is on its way."""
    _flush(connection, message["uid"]).set()


async def _flushed(connection: Any, message: dict[str, Any]) -> None:
    uid = message.get("uid")
    if uid is None:
        return
    try:
        await asyncio.wait_for(_flush(connection, uid).wait(), FLUSH_SECONDS)
    finally:
        _flushes.get(connection, {}).pop(uid, None)


async def publish_put(connection: Any, message: dict[str, Any]) -> None:
    """Publishes values by name."""
    await _flushed(connection, message)
    names, datasets = [], []
    keys_of = [list(keys) for keys in message["keys"]]
    for name, keys, data in zip(message["names"], keys_of, message["data"], strict=True):
        names.append(_text(name))
        datasets.append(_pack({"data": _plain(data), "keys": tuple(keys)}))
    wires = [[_wire_key(connection, key) for key in keys] for keys in keys_of]
    fields = {"names": names, "keys": wires, "is_override": bool(message.get("override"))}
    answer, _ = await connection.ask("publish_put", fields, datasets)
    _check(answer, exists=KeyError)


async def publish_get(connection: Any, message: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Published values; none for a name that is not published."""
    names = [_text(name) for name in message["names"]]
    datasets: list[dict[str, Any] | None] = []
    while True:
        answer, values = await connection.ask("publish_get", {"names": names[len(datasets) :]})
        found = iter(values)
        datasets += [loads(next(found)) if is_found else None for is_found in answer["are_found"]]
        if answer["is_all"]:
            return datasets


async def publish_delete(connection: Any, message: dict[str, Any]) -> None:
    """Ends the publication of names."""
    await _flushed(connection, message)
    await connection.ask("publish_delete", {"names": [_text(name) for name in message["names"]]})


async def publish_list(connection: Any, message: dict[str, Any]) -> list[Any]:
    """All names."""
    answer, _ = await connection.ask("publish_list", {})
    return sorted(map(_name, answer["names"]), key=str)


# ---- metadata ----


def _count_values(value: Any, levels: int) -> int:
    """Values of a dictionary one by one, at least; more than the bound if it is not to be taken apart."""
    if type(value) is not dict or levels == 0:
        return 1
    if not all(map(_is_plain, value)):
        return METADATA_VALUES_MAX + 1
    return 1 + sum(_count_values(nested, levels - 1) for nested in value.values())


def _node(value: Any, levels: int, values: list[bytes]) -> dict[str, Any]:
    if type(value) is dict and levels > 0 and all(map(_is_plain, value)):
        return {"tree": {_text(key): _node(nested, levels - 1, values) for key, nested in value.items()}}
    values.append(_pack(value))
    return {"leaf": len(values) - 1}


def _value(node: dict[str, Any], values: list[bytes]) -> Any:
    if "leaf" in node:
        return loads(values[node["leaf"]])
    return {_name(key): _value(nested, values) for key, nested in node["tree"].items()}


async def set_metadata(connection: Any, message: dict[str, Any]) -> None:
    """Sets what metadata has at a path of keys."""
    path = [_text(key) for key in message["keys"]]
    value, values = _plain(message.get("value")), []
    levels = max(0, METADATA_LEVELS_MAX - len(path))
    if _count_values(value, levels) > METADATA_VALUES_MAX:
        levels = 0
    answer, _ = await connection.ask("metadata_set", {"path": path, "node": _node(value, levels, values)}, values)
    _check(answer)


async def get_metadata(connection: Any, message: dict[str, Any]) -> Any:
    """What metadata has at a path of keys."""
    keys = list(message["keys"])
    answer, values = await connection.ask("metadata_get", {"path": [_text(key) for key in keys]})
    try:
        if answer["node"] is None:
            raise KeyError(keys[-1] if len(keys) == 1 else tuple(keys))
        found = _value(answer["node"], values)
        for key in keys[len(keys) - len(answer["rest"]) :]:
            found = found[key]
    except KeyError:
        default = message.get("default", no_default)
        if default is no_default:
            raise
        return default
    return found


# ---- topics ----


async def log_event(connection: Any, message: dict[str, Any]) -> None:
    """Says something about topics."""
    topic = message["topic"]
    topics = [topic] if isinstance(topic, str) else list(topic)
    await connection.ask("topic_log", {"topics": topics}, [_pack(message.get("msg"))])


async def events(connection: Any, message: dict[str, Any]) -> Any:
    """The log of one topic, or of all by their names."""
    topic = message.get("topic")
    answer, values = await connection.ask("topic_events", {"topic": topic})
    found, logs = iter(values), {}
    for log in answer["topics"]:
        logs[log["topic"]] = tuple((micros / 1e6, loads(next(found))) for micros in log["times_micros"])
    return logs if topic is None else logs.get(topic, ())


async def subscribe_topic(connection: Any, message: dict[str, Any]) -> None:
    """This client listens to a topic."""
    await connection.ask("topic_subscribe", {"topic": message["topic"]})


async def unsubscribe_topic(connection: Any, message: dict[str, Any]) -> None:
    """This client listens no longer."""
    await connection.ask("topic_unsubscribe", {"topic": message["topic"]})


HANDLERS: dict[str, Callable[[Any, dict[str, Any]], Awaitable[Any]]] = {
    "semaphore_register": semaphore_register,
    "semaphore_acquire": semaphore_acquire,
    "semaphore_release": semaphore_release,
    "semaphore_close": semaphore_close,
    "semaphore_refresh_leases": semaphore_refresh_leases,
    "semaphore_value": semaphore_value,
    "event_wait": event_wait,
    "event_set": event_set,
    "event_clear": event_clear,
    "event_is_set": event_is_set,
    "queue_create": queue_create,
    "queue_release": queue_release,
    "queue_put": queue_put,
    "queue_get": queue_get,
    "queue_qsize": queue_qsize,
    "queue-future-release": queue_future_release,
    "variable_set": variable_set,
    "variable_get": variable_get,
    "variable_delete": variable_delete,
    "variable-future-received-confirm": variable_future_received,
    "multi_lock_acquire": multi_lock_acquire,
    "multi_lock_release": multi_lock_release,
    "publish_put": publish_put,
    "publish_get": publish_get,
    "publish_list": publish_list,
    "publish_delete": publish_delete,
    "publish_flush_batched_send": publish_flush_batched_send,
    "get_metadata": get_metadata,
    "set_metadata": set_metadata,
    "log_event": log_event,
    "log-event": log_event,
    "events": events,
    "subscribe-topic": subscribe_topic,
    "unsubscribe-topic": unsubscribe_topic,
}
