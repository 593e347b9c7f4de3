"""Operations that move values: gather, scatter, retry.

Owns the forms of their answers. Values are fetched and sent by the connection; none is kept here.
"""

from __future__ import annotations

from typing import Any

from distributed.protocol.serialize import Serialize, Serialized, ToPickle, deserialize

#: Seconds that the answer to `retry` goes ahead of the request. The client sets its futures to pending when it has the
#: answer; an event that came before that would be undone.
RETRY_DELAY_SECONDS = 0.002


async def gather(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """The values of keys."""
    wires = {connection.names.to_wire(key): key for key in message["keys"]}
    values, missing = await connection.fetch(list(wires))
    if missing:
        return {"status": "error", "keys": [wires[wire] for wire in missing]}
    return {"status": "OK", "data": {wires[wire]: value for wire, value in values.items()}}


def _value(value: Any) -> Any:
    if isinstance(value, (Serialize, ToPickle)):
        return value.data
    if isinstance(value, Serialized):
        return deserialize(value.header, value.frames)
    return value


async def scatter(connection: Any, message: dict[str, Any]) -> list[Any]:
    """Values become results of their keys."""
    data = {key: _value(value) for key, value in message["data"].items()}
    wires = {connection.names.to_wire(key): value for key, value in data.items()}
    is_shared = bool(message.get("broadcast"))
    workers = await connection.workers.known_names(message.get("workers"))
    connection.wanted.update(wires)
    here = [wire for wire in wires if wire in connection.locations and not is_shared]
    if here:
        # The same content under the same key is there already.
        connection.want(here)
    await connection.put({wire: value for wire, value in wires.items() if wire not in here}, workers, is_shared)
    return list(data)


async def retry(connection: Any, message: dict[str, Any]) -> list[Any]:
    """Failed keys are tried again; the client waits anew for those that are returned."""
    keys = [key for key in message["keys"] if connection.names.to_wire(key) in connection.failed]
    wires = connection.names.all_to_wire(keys)
    connection.loop.call_later(RETRY_DELAY_SECONDS, connection.session.retry, wires)
    return keys


async def update_data(connection: Any, message: dict[str, Any]) -> None:
    """Values that a task put into its worker: here they go through the scheduler."""
    connection.want(connection.names.all_to_wire(message["who_has"]))


HANDLERS = {"gather": gather, "scatter": scatter, "retry": retry, "update_data": update_data}
