"""Small results that came with the news that they are there.

Owns how many of them are kept: those that came last, up to a bound. They are a shortcut, never the only
copy: what is not here is fetched. A value belongs to one task; that of another task under the same key
is never given out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oxidask._payload import PYTHON, TABLE

#: Bytes that are kept, with what Python needs besides.
BYTES_MAX = 4 << 20
#: What Python needs besides the bytes of one.
_OVERHEAD_BYTES = 200

Task = tuple[int, int]
Payload = tuple[int, Any]
#: How a pickle without buffers beside it begins.
_NO_BUFFERS = (1).to_bytes(8, "little")


def for_reading(payload: Payload) -> Payload:
    """The payload, as whoever reads the value may keep it."""
    kind, data = payload
    if kind == TABLE or (kind == PYTHON and not data.startswith(_NO_BUFFERS)):
        # Whoever gets the value may write to it.
        return kind, bytearray(data)
    return payload


class InlineValues:
    """Payloads by key on the wire. In two generations: the older one goes when the newer one is full."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._half_bytes = bytes_max // 2
        self._bytes = 0
        self._new: dict[str, tuple[Task, Payload]] = {}
        self._old: dict[str, tuple[Task, Payload]] = {}

    def keep(self, wire: str, task: Task, payload: Payload) -> None:
        """Remember the value of a key; it replaces the one before."""
        if wire in self._new or wire in self._old:
            self.forget((wire,))
        size = _OVERHEAD_BYTES + len(payload[1])
        if self._bytes + size > self._half_bytes:
            self._old, self._new, self._bytes = self._new, {}, 0
        self._new[wire] = (task, payload)
        self._bytes += size

    def find(self, wire: str, task: Task) -> Payload | None:
        """The value of a key, if it is of this task."""
        found = self._new.get(wire) or self._old.get(wire)
        if found is None or found[0] != task:
            return None
        return for_reading(found[1])

    def forget(self, wires: Iterable[str]) -> None:
        """These keys have other values, or none, or nobody wants them any more."""
        new, old = self._new, self._old
        if new or old:
            for wire in wires:
                found = new.pop(wire, None)
                if found is not None:
                    self._bytes -= _OVERHEAD_BYTES + len(found[1][1])
                old.pop(wire, None)

    def clear(self) -> None:
        """Forget all."""
        self._new.clear()
        self._old.clear()
        self._bytes = 0
