"""Keys of Dask and the strings that stand for them on the wire.

Owns the mapping in both directions. A string stands for itself, every other key for its `repr`; what
is too long is cut and ends in its hash. The way back is remembered for keys that were sent; a key
that only another client sent is read from its `repr`. Never talks to anyone.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from collections.abc import Hashable, Iterable
from typing import Any

Key = Hashable


#: Keys of up to so many characters are never too long.
_SHORT_CHARACTERS = 256
#: The scheduler takes keys of up to so many bytes.
KEY_BYTES_MAX = 1024
_KEPT_BYTES = 900


def wire_key(key: Any) -> str:
    """The string that stands for a key."""
    text = key if type(key) is str else str(key) if isinstance(key, str) else repr(key)
    if 0 < len(text) <= _SHORT_CHARACTERS and text.isascii():
        return text
    # Half a surrogate pair is nothing that can be sent; it goes by its number.
    data = text.encode(errors="backslashreplace")
    text = data.decode()
    if len(data) > KEY_BYTES_MAX:
        kept = data[:_KEPT_BYTES].decode(errors="ignore")
        return f"{kept}…{hashlib.blake2b(data, digest_size=16).hexdigest()}"
    return text or "''"


def _is_plain(key: Any) -> bool:
    """Whether a key stands for itself."""
    return type(key) is str and 0 < len(key) <= _SHORT_CHARACTERS and key.isascii()


class KeyNames:
    """The way back from the wire for the keys of one client. Safe from any thread."""

    def __init__(self) -> None:
        self._keys: dict[str, Any] = {}
        self._lock = threading.Lock()

    def to_wire(self, key: Any) -> str:
        """The string that stands for a key, remembered until `forget`."""
        if _is_plain(key):
            return key
        wire = wire_key(key)
        with self._lock:
            self._keys.setdefault(wire, key)
        return wire

    def all_to_wire(self, keys: Iterable[Any]) -> list[str]:
        """`to_wire` of each."""
        return [self.to_wire(key) for key in keys]

    def from_wire(self, wire: str) -> Any:
        """The key that a string stands for."""
        known = self._keys.get(wire, wire)
        if known is wire and wire[:1] == "(" and wire[-1:] == ")":
            try:
                known = ast.literal_eval(wire)
            except (ValueError, SyntaxError):
                return wire
        return known

    def remember(self, keys: dict[str, Any]) -> None:
        """The way back for keys that are sent again."""
        if keys:
            with self._lock:
                self._keys.update(keys)

    def forget(self, wires: Iterable[str]) -> None:
        """These keys were released."""
        with self._lock:
            for wire in wires:
                self._keys.pop(wire, None)
