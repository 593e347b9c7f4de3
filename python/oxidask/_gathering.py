"""The short way from futures to their values.

Owns `gather` for lists of futures of one client: it waits for them in turn, hears of failures at once,
and takes the values from the connection, without a conversation and without a task for each future.
Whatever is out of the ordinary (a missing value, another client's futures) goes the client's own way,
which says what is wrong. Never fetches before all futures are finished.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from distributed.client import Future

if TYPE_CHECKING:
    from oxidask._connection import Connection

Plain = Callable[..., Awaitable[Any]]


async def gather(client: Any, connection: Connection, plain: Plain, futures: Any, errors: str) -> Any:
    """The values of futures, in whatever they are in."""
    values = None
    if errors == "raise" and type(futures) is list and _are_of(client, futures):
        values = await _values(client, connection, futures)
    if values is None:
        return await plain(futures, errors=errors, direct=False, local_worker=None)
    return values


def _are_of(client: Any, futures: list[Any]) -> bool:
    return all(type(future) is Future and future._client is client for future in futures)


async def _values(client: Any, connection: Connection, futures: list[Any]) -> list[Any] | None:
    """The values in order; nothing if something is not as it should be."""
    troubles = -1
    for future in futures:
        state = future._state
        if state is None or client.futures.get(future.key) is not state:
            return None
        while state.status == "pending":
            if troubles != connection.troubles:
                troubles = connection.troubles
                _raise_failures(futures)
            await connection.next_news()
        if state.status != "finished":
            return None
    wires = connection.names.all_to_wire([future.key for future in futures])
    found, missing = await connection.fetch(list(dict.fromkeys(wires)))
    return None if missing else [found[wire] for wire in wires]


def _raise_failures(futures: list[Any]) -> None:
    """The first failure there is, as the client's own way raises it."""
    for future in futures:
        state = future._state
        if state is not None and state.status in ("error", "cancelled") and state.exception is not None:
            raise state.exception.with_traceback(state.traceback)
