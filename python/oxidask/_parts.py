"""Values made of parts that can be read alone: groups of a shuffle, the arrays of a decomposition.

Owns the form of such a value, and how a task says that it takes one part. A shuffle cuts each block into
groups, and a task of its own takes each group out: with this form the worker gives it the bytes of the group,
no process of Python runs for it, and nobody reads the other groups.

It is a pickle like any other (see `_payload`) whose buffers are the parts, each a pickle with its buffers
again. Behind the pickle's end, where `pickle` does not look, stand the fingerprint of each part's key and then
their number and `MARK`. The worker's side is `runtime/exec-python/src/parts.rs`.

Invariant: reading the whole gives what reading each part gives.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import struct
import sys
from typing import Any

from oxidask import _payload

#: Ends the directory of a value that has one.
MARK = b"oxiparts"
FINGERPRINT_BYTES = 8
#: More parts than this are written as one value.
PARTS_MAX = 4096
#: Arrays that have fewer bytes in all are written as one value.
ARRAYS_BYTES_MIN = 4096

_KEYS = frozenset({int, str})


@functools.lru_cache(4096, typed=True)
def fingerprint(key: int | str) -> bytes:
    """What stands for a key, the same in every process."""
    text = f"{type(key).__name__} {key}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=FINGERPRINT_BYTES).digest()


def fingerprint_of_item(item: Any) -> bytes | None:
    """What stands for what a task takes out of a value; None if it cannot be a part."""
    return fingerprint(item) if type(item) in _KEYS else None


def divided(value: Any) -> list[Any] | None:
    """The buffers of a payload whose parts can be read alone; None for all other values."""
    kind = type(value)
    is_dict = isinstance(value, dict) and _is_plain_dict(kind)
    if is_dict and kind is not dict and getattr(value, "__dict__", None):
        return None
    if not (is_dict or kind is list or kind is tuple) or not 2 <= len(value) <= PARTS_MAX:
        return None
    keys = list(value) if is_dict else list(range(len(value)))
    parts = list(value.values()) if is_dict else list(value)
    if not (_are_frames(parts) or _are_arrays(parts)) or not all(type(key) in _KEYS for key in keys):
        return None
    if len({id(part) for part in parts}) < len(parts):
        return None  # What is the same in one pickle is written once, and is the same again.
    marks = [fingerprint(key) for key in keys]
    if len(set(marks)) < len(marks):
        return None
    stands = [_Part() for _ in parts]
    if is_dict:
        whole = dict.__new__(kind)
        dict.update(whole, zip(keys, stands, strict=True))
    else:
        whole = kind(stands)
    pickled = pickle.dumps(whole, protocol=_payload.PROTOCOL, buffer_callback=lambda _: None)
    directory = b"".join([*marks, struct.pack("<Q", len(marks)), MARK])
    return _payload.with_index(pickled + directory, [_payload.pickled(part) for part in parts])


@functools.lru_cache(256)
def _is_plain_dict(kind: type) -> bool:
    """Whether it is a dictionary and nothing more, as `ShuffleGroupResult` of Dask."""
    names = ("__getitem__", "__reduce_ex__", "__reduce__")
    has_own = any(getattr(kind, name) is not getattr(dict, name) for name in names)
    return not has_own and not hasattr(kind, "__missing__") and kind.__module__ != "__main__"


def _are_frames(parts: list[Any]) -> bool:
    pandas = sys.modules.get("pandas")
    kinds = (getattr(pandas, "DataFrame", None), getattr(pandas, "Series", None))
    return pandas is not None and all(type(part) in kinds for part in parts)


def _are_arrays(parts: list[Any]) -> bool:
    numpy = sys.modules.get("numpy")
    kind = getattr(numpy, "ndarray", None)
    return numpy is not None and all(type(part) is kind for part in parts) and _bytes(parts) >= ARRAYS_BYTES_MIN


def _bytes(arrays: list[Any]) -> int:
    return sum(array.nbytes for array in arrays)


class _Part:
    """Stands for a part in the pickle of the whole."""

    def __reduce_ex__(self, _: Any) -> Any:
        # Of memory that can be written: the pickle then leaves it to the reader's memory whether it can.
        return _payload.unpickled, (pickle.PickleBuffer(bytearray()),)
